//! Presence on real servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod concurrent;
mod conformance;
mod faults;
mod leftovers;

use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::conformance::Stalls;
use plenum_channels::memory::{MemoryReplicas, ReplicaBus};
use tokio::time::sleep;

use super::*;
use crate::client::{RedisConfig, RedisMetrics};

/// Replicas that know each other: by heartbeats on one bus, or by a list.
struct Rig<R = MemoryReplicas> {
    sides: Vec<Arc<R>>,
    replicas: Vec<Arc<RedisPresence>>,
}

/// A replica that is alive whatever the machine does; only what presence itself asks for begins another generation.
struct Listed {
    own: u64,
    all: Arc<Mutex<HashMap<u64, u32>>>,
}

impl Replicas for Listed {
    fn census(&self) -> Arc<Census> {
        let all = self.all.lock().clone();
        let own = Incarnation { replica: self.own, generation: all.get(&self.own).copied().unwrap_or_default() };
        Arc::new(Census { own, alive: Arc::new(all), judging: true })
    }

    fn begin_anew(&self) {
        *self.all.lock().entry(self.own).or_default() += 1;
    }

    fn resign(&self) {
        self.all.lock().remove(&self.own);
    }
}

impl Rig {
    /// On one bus.
    fn new(config: RedisConfig, presence: PresenceConfig, count: usize) -> Self {
        let bus = ReplicaBus::new();
        Rig::on((0..count).map(|_| bus.side()).collect(), config, presence)
    }
}

impl Rig<Listed> {
    /// That are alive all the time.
    fn listed(config: RedisConfig, presence: PresenceConfig, count: usize) -> Self {
        let all: Vec<u64> = (0..count).map(|_| rand::random()).collect();
        let list = Arc::new(Mutex::new(all.iter().map(|own| (*own, 1)).collect()));
        Rig::on(all.iter().map(|own| Arc::new(Listed { own: *own, all: list.clone() })).collect(), config, presence)
    }
}

impl<R: Replicas> Rig<R> {
    /// Under a prefix of their own.
    fn on(sides: Vec<Arc<R>>, config: RedisConfig, presence: PresenceConfig) -> Self {
        static PREFIXES: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("t{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
        let replica = |side: &Arc<R>| {
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
        let judges = |side: &Arc<R>| side.census().judging && side.census().alive.len() == all;
        until("all judge", async || self.sides.iter().all(judges)).await;
        self
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> Duration {
    let (limit, start) = (Duration::from_secs(90), Instant::now());
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
