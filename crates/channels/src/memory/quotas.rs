//! In-process quotas.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::SoleReplica;
use crate::{Bucket, Quota, QuotaError, Quotas, Rate, Replicas, Token};

/// Buckets that are kept; of more, those that are full are forgotten, then any.
const MAX_BUCKETS: usize = 65_536;

/// Who is counted in a quota: the replica that counted, and the member.
type Members = HashSet<(u64, Box<str>)>;

/// Counts in this process's memory, shared by the replicas that [`QuotaStore::replica`] makes.
#[derive(Default)]
pub struct QuotaStore {
    /// Members by quota and key, with the replica that counted them.
    members: Mutex<HashMap<(Quota, Box<str>), Members>>,
    buckets: Mutex<HashMap<(Rate, Box<str>), Level>>,
}

/// How much is missing from a full bucket, at one moment.
#[derive(Clone, Copy)]
struct Level {
    missing: f64,
    at: Instant,
    per_second: f64,
}

impl Level {
    fn missing(&self, now: Instant) -> f64 {
        (self.missing - self.per_second * now.saturating_duration_since(self.at).as_secs_f64()).max(0.0)
    }
}

/// One replica's side of a [`QuotaStore`].
pub struct MemoryQuotas {
    store: Arc<QuotaStore>,
    replicas: Arc<dyn Replicas>,
}

impl QuotaStore {
    /// A store in which nothing is counted.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A side for the replica whose heartbeats these are.
    pub fn replica(self: &Arc<Self>, replicas: Arc<dyn Replicas>) -> Arc<MemoryQuotas> {
        Arc::new(MemoryQuotas { store: self.clone(), replicas })
    }
}

impl MemoryQuotas {
    /// The only replica of a fresh store.
    pub fn single() -> Arc<Self> {
        QuotaStore::new().replica(SoleReplica::new())
    }
}

impl Drop for MemoryQuotas {
    fn drop(&mut self) {
        let own = self.replicas.census().own.replica;
        self.store.members.lock().retain(|_, members| {
            members.retain(|(replica, _)| *replica != own);
            !members.is_empty()
        });
    }
}

#[async_trait]
impl Quotas for MemoryQuotas {
    async fn enter(&self, quota: Quota, key: &str, member: &str, max: u64) -> Result<(), QuotaError> {
        let census = self.replicas.census();
        let mut counts = self.store.members.lock();
        let members = counts.entry((quota, key.into())).or_default();
        if members.contains(&(census.own.replica, member.into())) {
            return Ok(());
        }
        let counts_now = |replica: &u64| *replica == census.own.replica || census.alive.contains_key(replica);
        let others = members.iter().filter(|(replica, other)| counts_now(replica) && **other != *member);
        let others = others.map(|(_, other)| other);
        let found = others.collect::<HashSet<_>>().len() as u64;
        if found >= max {
            if members.is_empty() {
                counts.remove(&(quota, key.into()));
            }
            return Err(QuotaError::Reached { found, max });
        }
        members.insert((census.own.replica, member.into()));
        Ok(())
    }

    fn hold(&self, quota: Quota, key: &str, member: &str) {
        let own = self.replicas.census().own.replica;
        self.store.members.lock().entry((quota, key.into())).or_default().insert((own, member.into()));
    }

    fn exit(&self, quota: Quota, key: &str, member: &str) {
        let own = self.replicas.census().own.replica;
        let (mut counts, place) = (self.store.members.lock(), (quota, key.into()));
        let Some(members) = counts.get_mut(&place) else { return };
        members.remove(&(own, member.into()));
        if members.is_empty() {
            counts.remove(&place);
        }
    }

    fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> Token {
        let now = Instant::now();
        let mut buckets = self.store.buckets.lock();
        let place = (rate, key.into());
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&place) {
            buckets.retain(|_, level| level.missing(now) > 0.0);
            if buckets.len() >= MAX_BUCKETS {
                buckets.clear();
            }
        }
        let per_second = f64::from(bucket.tokens) / bucket.period.max(Duration::from_millis(1)).as_secs_f64();
        let level = buckets.entry(place).or_insert(Level { missing: 0.0, at: now, per_second });
        let missing = level.missing(now);
        let room = missing + 1.0 <= f64::from(bucket.tokens);
        *level = Level { missing: missing + f64::from(u8::from(room)), at: now, per_second };
        if room { Token::Given } else { Token::Refused }
    }
}
