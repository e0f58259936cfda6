//! The channels that have subscribers on this replica.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_telemetry::Metrics;
use tokio::sync::watch;

use crate::channel::{Channel, Start};
use crate::{Live, Log, ReadError};

/// Locks that the map of channels is spread over.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Arc<str>, Arc<Channel>, RandomState>>;

/// All channels with a local subscriber.
pub(crate) struct Hub {
    shards: Vec<Shard>,
    hasher: RandomState,
    log: Arc<dyn Log>,
    metrics: Arc<Metrics>,
}

/// Keeps a channel subscribed in the log; the last one to be dropped ends that.
pub(crate) struct Lease {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
}

impl Lease {
    pub(crate) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Has the log deliver to the channel.
    async fn begin(self, outcome: watch::Sender<Option<Result<(), ReadError>>>) {
        let channel = &self.channel;
        let subscribed = self.hub.log.subscribe(&channel.name, channel.clone() as Arc<dyn Live>).await;
        let subscribed = subscribed.map(|position| {
            channel.started(position);
            *channel.start.lock() = Start::Live;
        });
        outcome.send_replace(Some(subscribed));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.hub.release(&self.channel);
    }
}

impl Hub {
    pub(crate) fn new(log: Arc<dyn Log>, metrics: Arc<Metrics>) -> Self {
        let hasher = RandomState::new();
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect();
        Self { shards, hasher, log, metrics }
    }

    fn shard(&self, name: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }

    /// The channel, with the log delivering to it. Where the log has to be asked, one task does that for all who wait, and it
    /// goes on when they are cancelled: else nobody would get the channel whose callers wait for less time than the log takes.
    pub(crate) async fn acquire(self: &Arc<Self>, name: &str) -> Result<Lease, ReadError> {
        let lease = self.lease(name);
        let outcome = {
            let mut start = lease.channel.start.lock();
            match &*start {
                Start::Live => None,
                Start::UnderWay(outcome) if outcome.has_changed().is_ok() => Some(outcome.clone()),
                // Nobody has tried, or the last attempt has ended, with an error or a panic.
                _ => {
                    let (sender, outcome) = watch::channel(None);
                    *start = Start::UnderWay(outcome.clone());
                    tokio::spawn(self.lease(name).begin(sender));
                    Some(outcome)
                }
            }
        };
        let Some(mut outcome) = outcome else { return Ok(lease) };
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Err(error))) => Err(error),
            Ok(_) => Ok(lease),
            Err(_) => {
                Err(ReadError::Unavailable { reason: "the channel's subscription ended without an answer".into() })
            }
        }
    }

    fn lease(self: &Arc<Self>, name: &str) -> Lease {
        Lease { channel: self.hold(name), hub: self.clone() }
    }

    fn hold(&self, name: &str) -> Arc<Channel> {
        let mut shard = self.shard(name).lock();
        if let Some(channel) = shard.get(name) {
            channel.holders.fetch_add(1, Ordering::Relaxed);
            return channel.clone();
        }
        let name: Arc<str> = name.into();
        let channel = Arc::new(Channel::new(name.clone(), self.metrics.clone()));
        shard.insert(name, channel.clone());
        self.metrics.channels.inc();
        channel
    }

    fn release(&self, channel: &Channel) {
        let mut shard = self.shard(&channel.name).lock();
        if channel.holders.fetch_sub(1, Ordering::Relaxed) == 1 {
            shard.remove(&channel.name);
            // Under the lock: a later subscriber of the same channel subscribes after this.
            self.log.unsubscribe(&channel.name);
            self.metrics.channels.dec();
        }
    }

    /// Calls `see` with each channel and its number of local subscriptions.
    pub(crate) fn for_each(&self, mut see: impl FnMut(&str, usize)) {
        for shard in &self.shards {
            for channel in shard.lock().values() {
                see(&channel.name, channel.len());
            }
        }
    }
}
