//! The session store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use plenum_channels::{SessionError, Sessions};
use plenum_sessions_redis::RedisSessions;

use super::percentiles;
use super::servers::Servers;
use crate::lines::nats::runtime;
use crate::report::{Line, number};

const LIFE: Duration = Duration::from_secs(3600);
/// Sessions that one task updates in turn would wait for each other; each task has its own.
const STATE: [u8; 200] = [b'x'; 200];
/// Updates one after the other, for their latency.
const IN_TURN: usize = 2000;

/// Updates of sessions by compare-and-set, 200 bytes each.
#[derive(Args, Clone, Debug)]
pub struct Store {
    /// Updates under way at the same time, each of a session of its own.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrent: u64,
    /// Seconds of updating.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
}

impl Default for Store {
    fn default() -> Self {
        Self { concurrent: 256, seconds: 5.0 }
    }
}

impl Store {
    /// The command that measures this, without `plenum-bench sessions`.
    pub fn command(&self) -> String {
        let Self { concurrent, seconds } = self;
        format!("store --concurrent {concurrent} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        runtime()?.block_on(async {
            let servers = Servers::start().await?;
            let redis = servers.client().await?;
            let sessions = RedisSessions::new(&redis);
            let begin = Instant::now();
            let tasks = (0..self.concurrent).map(|n| {
                let sessions = sessions.clone();
                async move { created(&sessions, &format!("session-{n}"), &format!("user-{n}")).await }
            });
            try_join_all(tasks).await?;
            let creating = self.concurrent as f64 / begin.elapsed().as_secs_f64();

            let time = Duration::from_secs_f64(self.seconds.clamp(0.1, 60.0));
            let (before, begin) = (servers.cpu()?, Instant::now());
            let tasks = (0..self.concurrent).map(|n| {
                let (sessions, end) = (sessions.clone(), begin + time);
                tokio::spawn(
                    async move { updated(&*sessions, &format!("session-{n}"), |_| Instant::now() < end).await },
                )
            });
            let mut all = 0;
            for times in try_join_all(tasks).await? {
                all += times?.len();
            }
            let rate = all as f64 / begin.elapsed().as_secs_f64();
            let cpu = servers.cpu_since(&before)?.as_secs_f64() * 1e6 / all.max(1) as f64;

            created(&sessions, "alone", "alone").await?;
            let (p50, p99) = percentiles(updated(&*sessions, "alone", |done| done < IN_TURN).await?);
            let notes = format!(
                "{} at a time, {} µs CPU of all six servers each; creating {} /s",
                self.concurrent,
                number(cpu),
                number(creating)
            );
            Ok(vec![
                Line::new("session updates", rate, "/s", None).notes(notes),
                Line::new("session update, p50, one at a time", p50, "ms", None),
                Line::new("session update, p99, one at a time", p99, "ms", None),
            ])
        })
    }
}

async fn created(sessions: &Arc<RedisSessions>, id: &str, user: &str) -> Result<()> {
    sessions.create(id, user, Bytes::from_static(&STATE), LIFE).await?;
    Ok(())
}

/// Updates one session as long as `more` says of the number done; how long each took.
async fn updated(
    sessions: &dyn Sessions,
    id: &str,
    more: impl Fn(usize) -> bool,
) -> Result<Vec<Duration>, SessionError> {
    let (mut version, mut times) = (1, Vec::new());
    while more(times.len()) {
        let begin = Instant::now();
        version = sessions.update(id, version, Bytes::from_static(&STATE), LIFE).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}
