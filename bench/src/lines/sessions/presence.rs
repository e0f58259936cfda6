//! Presence: joins, what asking costs, and what it costs at rest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use plenum_channels::Presence as _;
use plenum_channels::memory::ReplicaBus;
use plenum_protocol::ClientInfo;
use plenum_sessions_redis::presence::{PresenceConfig, RedisPresence};
use uuid::Uuid;

use super::percentiles;
use super::servers::Servers;
use crate::lines::nats::runtime;
use crate::process::CpuTime;
use crate::report::{Line, number};

/// Joins under way at the same time.
const WIDTH: usize = 256;
/// Members of the large channel.
const MANY: usize = 10_000;
/// Members of the small one.
const FEW: usize = 10;
/// Questions for the number of members.
const ASKED: usize = 2000;

/// Joins, stats of channels with 10 and 10,000 members, and the cost a second of many channels at rest, on two replicas.
#[derive(Args, Clone, Debug)]
pub struct Presence {
    /// Channels with one member each.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub channels: u64,
    /// Seconds at rest.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
}

impl Default for Presence {
    fn default() -> Self {
        Self { channels: 100_000, seconds: 10 }
    }
}

type Joins = Vec<(String, Arc<ClientInfo>)>;

impl Presence {
    /// The command that measures this, without `plenum-bench sessions`.
    pub fn command(&self) -> String {
        format!("presence --channels {} --seconds {}", self.channels, self.seconds)
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        runtime()?.block_on(async {
            let (servers, bus) = (Servers::start().await?, ReplicaBus::new());
            let mut replicas = Vec::new();
            for _ in 0..2 {
                let redis = servers.client().await?;
                replicas.push(RedisPresence::start(redis, bus.side(), PresenceConfig::default()));
            }
            let empty = rest(&servers, &replicas, self.seconds).await?;
            let mut lines = asked(&replicas).await?;
            lines.extend(one_channel(&replicas).await?);
            lines.extend(self.at_rest(&servers, &replicas, empty).await?);
            Ok(lines)
        })
    }

    /// `empty`: what nobody costs.
    async fn at_rest(
        &self,
        servers: &Servers,
        replicas: &[Arc<RedisPresence>],
        empty: (f64, f64),
    ) -> Result<Vec<Line>> {
        let idle = rest(servers, replicas, self.seconds).await?;
        let channels = usize::try_from(self.channels)?;
        let rate = join(&replicas[0], (0..channels).map(|n| (format!("channel {n}"), member(n))).collect()).await?;
        let busy = rest(servers, replicas, self.seconds).await?;
        let name = format!("{} channels at rest", number(self.channels as f64));
        let without = |of: f64| format!("without them {} ms/s", number(of));
        // The channels of those who were asked and who moved.
        let large = format!("two channels of {} members at rest", number(MANY as f64));
        Ok(vec![
            Line::new(format!("{large}, CPU of two replicas"), idle.0, "ms/s", None).notes(without(empty.0)),
            Line::new(format!("{large}, CPU of six servers"), idle.1, "ms/s", None).notes(without(empty.1)),
            Line::new("presence joins, a channel each", rate, "/s", None),
            Line::new(format!("{name}, CPU of two replicas"), busy.0, "ms/s", None).notes(without(idle.0)),
            Line::new(format!("{name}, CPU of six servers"), busy.1, "ms/s", None).notes(without(idle.1)),
        ])
    }
}

/// As a connection with a token of an application looks.
fn member(user: usize) -> Arc<ClientInfo> {
    Arc::new(ClientInfo {
        client: Uuid::new_v4().to_string(),
        user: format!("user-{user}"),
        conn_info: r#"{"name":"Ann Example"}"#.into(),
        chan_info: Bytes::new(),
    })
}

/// Joins a second.
async fn join(presence: &Arc<RedisPresence>, joins: Joins) -> Result<f64> {
    let (count, begin) = (joins.len(), Instant::now());
    let lanes = joins.chunks(count.div_ceil(WIDTH).max(1)).map(|lane| {
        let (presence, lane) = (presence.clone(), lane.to_vec());
        tokio::spawn(async move {
            for (channel, member) in lane {
                presence.join(&channel, member).await?;
            }
            anyhow::Ok(())
        })
    });
    for lane in try_join_all(lanes).await? {
        lane?;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// What a small and a large channel cost those who ask, both with members on both replicas.
async fn asked(replicas: &[Arc<RedisPresence>]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for members in [FEW, MANY] {
        let channel = format!("{members} members");
        for (half, presence) in replicas.iter().enumerate() {
            let joins = (0..members / 2).map(|n| (channel.clone(), member(2 * n + half))).collect();
            join(presence, joins).await?;
        }
        let mut times = Vec::with_capacity(ASKED);
        for _ in 0..ASKED {
            let begin = Instant::now();
            let stats = replicas[0].stats(&channel).await?;
            times.push(begin.elapsed());
            ensure!(stats.clients as usize == members, "{} clients instead of {members}", stats.clients);
        }
        let (p50, p99) = percentiles(times);
        let begin = Instant::now();
        let listed = replicas[0].members(&channel).await?.len();
        let listing = begin.elapsed().as_secs_f64() * 1e3;
        ensure!(listed == members, "{listed} members instead of {members}");
        let notes = format!("p99 {} ms; all of them listed in {} ms", number(p99), number(listing));
        let name = format!("presence_stats, {} members", number(members as f64));
        lines.push(Line::new(name, p50, "ms", None).notes(notes));
    }
    Ok(lines)
}

/// Joins of one channel, and of the same clients on another replica, as when they move.
async fn one_channel(replicas: &[Arc<RedisPresence>]) -> Result<Vec<Line>> {
    let joins: Joins = (0..MANY).map(|n| ("one".to_owned(), member(n))).collect();
    let first = join(&replicas[0], joins.clone()).await?;
    let moved = join(&replicas[1], joins).await?;
    Ok(vec![
        Line::new("presence joins, one channel", first, "/s", None),
        Line::new("presence joins, clients that move to another replica", moved, "/s", None),
    ])
}

/// CPU in ms a second: of this process, which is both replicas, and of the servers.
async fn rest(servers: &Servers, replicas: &[Arc<RedisPresence>], seconds: u64) -> Result<(f64, f64)> {
    let own = std::process::id();
    let (before, of_servers, begin) = (CpuTime::of(own)?, servers.cpu()?, Instant::now());
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for presence in replicas {
            presence.renew().await?;
        }
    }
    let took = begin.elapsed().as_secs_f64();
    let per_second = |time: Duration| time.as_secs_f64() * 1e3 / took;
    Ok((per_second(CpuTime::of(own)?.since(&before)), per_second(servers.cpu_since(&of_servers)?)))
}
