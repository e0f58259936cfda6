//! Presence on real servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod concurrent;
mod conformance;
mod faults;
mod leftovers;

use std::sync::atomic::{AtomicU32, Ordering};

use plenum_channels::memory::{MemoryReplicas, ReplicaBus};
use tokio::time::sleep;

use super::*;
use crate::client::{RedisConfig, RedisMetrics};

/// Replicas on one bus of heartbeats.
struct Rig {
    sides: Vec<Arc<MemoryReplicas>>,
    replicas: Vec<Arc<RedisPresence>>,
}

impl Rig {
    /// Under a prefix of their own.
    fn new(config: RedisConfig, presence: PresenceConfig, count: usize) -> Self {
        static PREFIXES: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
        let bus = ReplicaBus::new();
        let sides: Vec<_> = (0..count).map(|_| bus.side()).collect();
        let replica = |side: &Arc<MemoryReplicas>| {
            let config = RedisConfig { prefix: prefix.clone(), ..config.clone() };
            let redis = Redis::open(config, RedisMetrics::new().unwrap()).unwrap();
            RedisPresence::start(redis, side.clone(), presence)
        };
        Self { replicas: sides.iter().map(replica).collect(), sides }
    }

    /// Every replica is connected, and knows and judges the others.
    async fn ready(self) -> Self {
        for replica in &self.replicas {
            for n in 0..64 {
                until("presence answers", async || replica.stats(&format!("{n}")).await.is_ok()).await;
            }
        }
        let all = self.sides.len();
        let judges = |side: &Arc<MemoryReplicas>| side.census().judging && side.census().alive.len() == all;
        until("all judge", async || self.sides.iter().all(judges)).await;
        self
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> Duration {
    until_within(Duration::from_secs(30), what, holds).await
}

async fn until_within(limit: Duration, what: &str, holds: impl AsyncFn() -> bool) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

fn info(client: &str, user: &str) -> Arc<ClientInfo> {
    Arc::new(ClientInfo { client: client.into(), user: user.into(), ..ClientInfo::default() })
}

fn counts(clients: u32, users: u32) -> Result<PresenceStats, PresenceError> {
    Ok(PresenceStats { clients, users })
}

async fn clients(presence: &RedisPresence, channel: &str) -> Result<Vec<String>, PresenceError> {
    let mut clients: Vec<_> = presence.members(channel).await?.iter().map(|member| member.client.clone()).collect();
    clients.sort_unstable();
    Ok(clients)
}
