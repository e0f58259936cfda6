//! The in-process log.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use hashbrown::DefaultHashBuilder;
use tokio::time::Duration;

use super::shard::{Clock, Entered, QueueLimits, Shard};
use super::store::Store;
use crate::idempotency::Idempotency;
use crate::{Announcement, Append, AppendError, Appended, Epoch, Live, Log, Page, Position, Read, ReadError, Tail};

/// Bounds of the in-process log.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Shards, each with a sequence, a lock and a delivering task of its own; at least 1.
    pub shards: usize,
    /// Bytes of entries and remembered tails. A shard keeps within its equal share: beyond it the oldest go first.
    pub max_bytes: usize,
    /// Largest payload in bytes; beyond it an append fails as too large.
    pub max_payload_bytes: usize,
    /// Live events that wait for delivery, per shard; at least one. When it is full, appends wait in line.
    pub queue_events: usize,
    /// Bytes of the live events that wait for delivery, per shard (at least one event is let in); as many again may
    /// wait in line.
    pub queue_bytes: usize,
    /// Appends that wait in line, per shard; beyond it an append fails as unavailable at once.
    pub waiting_appends: usize,
    /// How long an append waits in line before it fails as unavailable.
    pub append_wait: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
    /// Idempotency keys remembered, per shard; beyond it the oldest are forgotten early.
    pub idempotency_keys: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            shards: 4,
            max_bytes: 1 << 30,
            max_payload_bytes: 1 << 20,
            queue_events: 16_384,
            queue_bytes: 64 << 20,
            waiting_appends: 16_384,
            append_wait: Duration::from_secs(5),
            idempotency_window: Duration::from_secs(300),
            idempotency_keys: 1 << 18,
        }
    }
}

/// A log in this process's memory, shared by the replicas that [`MemoryBroker::replica`] makes.
///
/// Like a stored log it has a sequence per shard, so that a channel's offsets have holes, and a random epoch per
/// incarnation. It forgets everything when it is dropped; its tasks end then.
pub struct MemoryBroker {
    shards: Vec<Arc<Shard>>,
    hasher: DefaultHashBuilder,
    max_payload_bytes: usize,
    next_replica: AtomicU32,
}

impl MemoryBroker {
    /// A fresh, empty log. Must be called within a tokio runtime, in which its tasks then run.
    pub fn new(config: MemoryConfig) -> Arc<Self> {
        let (epoch, hasher, clock) = (random_epoch(), DefaultHashBuilder::default(), Clock::start());
        let count = config.shards.max(1);
        let limits = QueueLimits {
            events: config.queue_events.max(1),
            bytes: config.queue_bytes.max(1),
            waiting: config.waiting_appends,
            wait: config.append_wait,
        };
        let window_ms = config.idempotency_window.as_millis() as u64;
        let shard = |_| {
            let known = Idempotency::new(window_ms, config.idempotency_keys);
            let store = Store::new(epoch.clone(), hasher.clone(), config.max_bytes / count, known);
            let shard = Arc::new(Shard::new(store, limits, clock));
            tokio::spawn(shard.clone().work());
            shard
        };
        Arc::new(Self {
            shards: (0..count).map(shard).collect(),
            max_payload_bytes: config.max_payload_bytes,
            next_replica: AtomicU32::new(0),
            hasher,
        })
    }

    /// One more replica on this log; its subscriptions end when it is dropped.
    pub fn replica(self: &Arc<Self>) -> Arc<MemoryLog> {
        let replica = self.next_replica.fetch_add(1, Ordering::Relaxed);
        Arc::new(MemoryLog { broker: self.clone(), replica })
    }

    /// Channels with a record, entries, bytes counted against the bound.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let counts = self.shards.iter().map(|shard| shard.with(|store, _| store.counts()));
        counts.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    }

    fn shard(&self, channel: &str) -> (&Arc<Shard>, u64) {
        let hash = self.hasher.hash_one(channel);
        (&self.shards[(hash >> 32) as u32 as usize % self.shards.len()], hash)
    }
}

impl Drop for MemoryBroker {
    fn drop(&mut self) {
        self.shards.iter().for_each(|shard| shard.close());
    }
}

/// One replica's side of a [`MemoryBroker`].
pub struct MemoryLog {
    broker: Arc<MemoryBroker>,
    replica: u32,
}

impl MemoryLog {
    /// The only replica on a fresh log with default bounds. Must be called within a tokio runtime.
    pub fn single() -> Arc<Self> {
        MemoryBroker::new(MemoryConfig::default()).replica()
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        for shard in &self.broker.shards {
            shard.with(|store, now| store.unsubscribe_all(self.replica, now.ms));
        }
    }
}

#[async_trait]
impl Log for MemoryLog {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (size, max) = (append.publication.data.len(), self.broker.max_payload_bytes);
        if size > max {
            return ready(Err(AppendError::TooLarge { size, max })).boxed();
        }
        let (shard, hash) = self.broker.shard(&append.channel);
        match shard.append(hash, append) {
            Entered::Done(result) => ready(result).boxed(),
            Entered::Waits(ticket) => {
                let shard = shard.clone();
                async move { shard.wait(ticket).await }.boxed()
            }
        }
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        let (shard, hash) = self.broker.shard(channel);
        match shard.announce(hash, channel, announcement) {
            Entered::Done(result) => result,
            Entered::Waits(ticket) => shard.wait(ticket).await,
        }
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        let (shard, hash) = self.broker.shard(channel);
        Ok(shard.with(|store, now| store.read(hash, channel, &read, now.ms)))
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        let (shard, hash) = self.broker.shard(channel);
        Ok(shard.with(|store, now| store.tail(hash, channel, now.ms)))
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        let (shard, hash) = self.broker.shard(channel);
        Ok(shard.subscribe(hash, channel, self.replica, live))
    }

    fn unsubscribe(&self, channel: &str) {
        let (shard, hash) = self.broker.shard(channel);
        shard.with(|store, now| store.unsubscribe(hash, channel, self.replica, now.ms));
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        let (shard, hash) = self.broker.shard(channel);
        Ok(shard.with(|store, now| store.remove(hash, channel, now.ms)))
    }
}

/// Eight letters and digits, as clients see epochs elsewhere.
fn random_epoch() -> Epoch {
    use rand::Rng;
    let text: String = rand::rng().sample_iter(rand::distr::Alphanumeric).take(8).map(char::from).collect();
    Epoch::from(text.as_str())
}
