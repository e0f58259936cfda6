//! What presence and quotas cost, on a real six-node cluster on this machine.
//!
//! ```text
//! cargo run --profile fast -p plenum-sessions-redis --features testing --example presence [channels]
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use plenum_channels::memory::{MemoryReplicas, ReplicaBus};
use plenum_channels::{Bucket, Presence, Quota, Quotas, Rate, Replicas};
use plenum_protocol::ClientInfo;
use plenum_sessions_redis::client::{Redis, RedisConfig, RedisMetrics};
use plenum_sessions_redis::presence::{PresenceConfig, RedisPresence};
use plenum_sessions_redis::quotas::RedisQuotas;
use plenum_sessions_redis::testing::RedisCluster;
use uuid::Uuid;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Calls under way at the same time.
const WIDTH: usize = 256;

#[tokio::main]
async fn main() -> Outcome<()> {
    let channels: usize = std::env::args().nth(1).map_or(Ok(100_000), |text| text.parse())?;
    let cluster = RedisCluster::start().await?;
    let bus = ReplicaBus::new();
    let sides = [bus.side(), bus.side()];
    let [one, two] = [presence(&cluster, &sides[0])?, presence(&cluster, &sides[1])?];
    for n in 0..64 {
        while one.stats(&n.to_string()).await.is_err() || two.stats(&n.to_string()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    stats(&one, &two).await?;
    one_channel(&cluster, &one, &two).await?;
    many_channels(&cluster, &one, channels).await?;
    quotas(&cluster, &sides).await
}

fn config(cluster: &RedisCluster) -> RedisConfig {
    cluster.config()
}

fn presence(cluster: &RedisCluster, side: &Arc<MemoryReplicas>) -> Outcome<Arc<RedisPresence>> {
    let redis = Redis::open(config(cluster), RedisMetrics::new()?)?;
    Ok(RedisPresence::start(redis, side.clone(), PresenceConfig::default()))
}

/// As a connection with a token of an application looks.
fn member(user: usize) -> Arc<ClientInfo> {
    Arc::new(ClientInfo {
        client: Uuid::new_v4().to_string(),
        user: format!("user-{user}"),
        conn_info: r#"{"name":"Ann Example"}"#.into(),
        chan_info: bytes::Bytes::new(),
    })
}

async fn join(presence: &Arc<RedisPresence>, joins: Vec<(String, Arc<ClientInfo>)>) -> Outcome<Duration> {
    let start = Instant::now();
    let mut lanes = Vec::new();
    let share = joins.len().div_ceil(WIDTH).max(1);
    for lane in joins.chunks(share).map(<[_]>::to_vec) {
        let presence = presence.clone();
        lanes.push(tokio::spawn(async move {
            for (channel, member) in lane {
                presence.join(&channel, member).await?;
            }
            Ok::<_, plenum_channels::PresenceError>(())
        }));
    }
    for lane in join_all(lanes).await {
        lane??;
    }
    Ok(start.elapsed())
}

async fn memory(cluster: &RedisCluster) -> Outcome<u64> {
    let mut bytes = 0;
    for server in &cluster.servers[..3] {
        let info = server.ask(&["INFO", "memory"]).await?;
        let used = info.text().lines().find_map(|line| line.strip_prefix("used_memory_dataset:"));
        bytes += used.unwrap_or("0").trim().parse::<u64>()?;
    }
    Ok(bytes)
}

/// CPU of all servers and of this process, in seconds.
async fn cpu(cluster: &RedisCluster) -> Outcome<(f64, f64)> {
    let mut servers = 0.0;
    for server in &cluster.servers {
        let info = server.ask(&["INFO", "cpu"]).await?;
        for line in info.text().lines() {
            let used = line.strip_prefix("used_cpu_user:").or_else(|| line.strip_prefix("used_cpu_sys:"));
            servers += used.map_or(Ok(0.0), |used| used.trim().parse::<f64>())?;
        }
    }
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let ticks: Vec<f64> = stat.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    Ok((servers, ticks.iter().sum::<f64>() / 100.0))
}

/// `presence_stats` of small and large channels with members on two replicas.
async fn stats(one: &Arc<RedisPresence>, two: &Arc<RedisPresence>) -> Outcome<()> {
    for members in [10, 10_000] {
        let name = format!("stats {members}");
        for (presence, half) in [(one, 0), (two, 1)] {
            join(presence, (0..members / 2).map(|n| (name.clone(), member(n * 2 + half))).collect()).await?;
        }
        let (calls, start) = (2000, Instant::now());
        for _ in 0..calls {
            one.stats(&name).await?;
        }
        let each = start.elapsed() / calls;
        let start = Instant::now();
        let listed = one.members(&name).await?.len();
        println!("stats of {members:>6} members: {each:?}; {listed} listed in {:?}", start.elapsed());
    }
    Ok(())
}

/// Joins of one large channel, their memory, and leaves.
async fn one_channel(cluster: &RedisCluster, one: &Arc<RedisPresence>, two: &Arc<RedisPresence>) -> Outcome<()> {
    let (members, before) = (20_000, memory(cluster).await?);
    let joins: Vec<_> = (0..members).map(|n| ("one".to_owned(), member(n))).collect();
    let took = join(one, joins.clone()).await?;
    let bytes = (memory(cluster).await? - before) / members as u64;
    println!("one channel: {:.0} joins/s, {bytes} bytes a member", members as f64 / took.as_secs_f64());
    // The same clients on another replica, as when they move.
    let took = join(two, joins).await?;
    println!("the same clients on another replica: {:.0} joins/s", members as f64 / took.as_secs_f64());
    Ok(())
}

/// Joins of many channels, what they cost at rest, and how long it takes until a flushed Redis has them again.
async fn many_channels(cluster: &RedisCluster, one: &Arc<RedisPresence>, channels: usize) -> Outcome<()> {
    let before = memory(cluster).await?;
    let joins = (0..channels).map(|n| (format!("channel {n}"), member(n))).collect();
    let took = join(one, joins).await?;
    let bytes = (memory(cluster).await? - before) / channels.max(1) as u64;
    println!("{channels} channels: {:.0} joins/s, {bytes} bytes each", channels as f64 / took.as_secs_f64());
    let ((servers, own), seconds) = (cpu(cluster).await?, 10);
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        one.renew().await?;
    }
    let (servers_after, own_after) = cpu(cluster).await?;
    let per_second = |spent: f64| spent * 1000.0 / f64::from(seconds);
    println!(
        "at rest: {:.1} ms of CPU a second on the six servers, {:.1} ms on both replicas",
        per_second(servers_after - servers),
        per_second(own_after - own)
    );
    let (start, last) = (Instant::now(), format!("channel {}", channels.saturating_sub(1)));
    cluster.flush().await?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let there = one.stats(&last).await.is_ok_and(|stats| stats.clients == 1);
        if there && start.elapsed() > Duration::from_secs(2) && one.state().doubtful == 0 {
            break;
        }
    }
    println!("rebuilt {:?} after a flush", start.elapsed());
    Ok(())
}

/// Entering a quota, and taking from a shared bucket.
async fn quotas(cluster: &RedisCluster, sides: &[Arc<MemoryReplicas>; 2]) -> Outcome<()> {
    let redis = Redis::open(config(cluster), RedisMetrics::new()?)?;
    let replicas: Arc<dyn Replicas> = sides[0].clone();
    let quotas = RedisQuotas::start(redis, replicas, Duration::from_secs(3600));
    while quotas.enter(Quota::UserConnections, "warm", "1", 1).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (count, start) = (2000u32, Instant::now());
    for n in 0..count {
        let _ = quotas.enter(Quota::UserConnections, &format!("user-{n}"), "1", 5).await;
    }
    println!("enter: {:?}, one after the other", start.elapsed() / count);
    let bucket = Bucket { tokens: 1_000_000, period: Duration::from_secs(1) };
    let keys: Vec<String> = (0..1000).map(|n| format!("user-{n}")).collect();
    let (count, start) = (1_000_000u32, Instant::now());
    for n in 0..count {
        quotas.take(Rate::UserPublish, &keys[n as usize % keys.len()], bucket);
    }
    println!("take of 1,000 users' shared buckets: {:?}", start.elapsed() / count);
    Ok(())
}
