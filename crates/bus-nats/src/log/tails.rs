//! Last positions that outlive their channels' data: told to the port `Tails` in batches, and what they prove.
//!
//! The store may have forgotten a newer tail. So a tail proves nothing beyond its `through`: from there on the reader
//! must see the stream itself.

use std::sync::Arc;
use std::time::Duration;

use plenum_channels::{Epoch, RememberedTail, Tails};
use tokio::task::JoinHandle;

use super::digest::Digest;
use super::lasts::Lasts;
use super::shard::{Current, Shard};

/// Tails told at once.
const AT_ONCE: usize = 1000;

/// Where tails are remembered.
#[derive(Clone)]
pub struct TailStore {
    /// The store, the same for all replicas.
    pub tails: Arc<dyn Tails>,
    /// How long a channel's last position outlives its newest publication; the longest of all namespaces.
    pub ttl: Duration,
}

/// Tells the store which channels of one shard are quiet, while this replica writes the shard's ticks.
pub(super) struct Teller {
    store: TailStore,
    /// In step with the chain of ticks, also while another replica writes them.
    lasts: Lasts,
    /// The incarnation that `lasts` is of.
    epoch: Epoch,
    /// The batch under way.
    telling: Option<JoinHandle<()>>,
}

impl Teller {
    pub fn new(shard: &Shard) -> Option<Self> {
        let store = shard.tails.clone()?;
        let lasts = Lasts::new(store.ttl, Duration::from_millis(shard.max_age_ms));
        Some(Self { store, lasts, epoch: shard.current().epoch.clone(), telling: None })
    }

    /// The next tick of the chain.
    pub fn note(&mut self, shard: &Shard, digest: &Digest) {
        self.follow(shard);
        self.lasts.note(digest);
    }

    /// A tick is missing.
    pub fn forget(&mut self) {
        self.lasts.forget();
    }

    fn follow(&mut self, shard: &Shard) {
        let epoch = shard.current().epoch.clone();
        if self.epoch != epoch {
            self.lasts.forget();
            self.epoch = epoch;
        }
    }

    /// Tells the next batch if none is under way. Does not wait for it.
    pub fn tell(&mut self, shard: &Shard, writes: bool) {
        if self.telling.as_ref().is_some_and(|telling| !telling.is_finished()) {
            return;
        }
        self.follow(shard);
        let (through, quiet) = self.lasts.due(AT_ONCE);
        if quiet.is_empty() || !writes {
            return;
        }
        let current = shard.current();
        let tail = |(hash, last)| (name(shard, hash), RememberedTail { position: current.position(last), through });
        let batch: Vec<(String, RememberedTail)> = quiet.into_iter().map(tail).collect();
        let TailStore { tails, ttl } = self.store.clone();
        self.telling = Some(tokio::spawn(async move { tails.remember(&batch, ttl).await }));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if let Some(telling) = &self.telling {
            telling.abort();
        }
    }
}

/// What is remembered of a channel, if it is of this incarnation.
pub(super) async fn recall(shard: &Shard, current: &Current, hash: u64) -> Option<RememberedTail> {
    let tail = shard.tails.as_ref()?.tails.recall(&name(shard, hash)).await?;
    (tail.position.epoch == current.epoch).then_some(tail)
}

/// Ticks know channels by their hash only. Of two that share one, the tail is that of the later publication, so it never
/// says too much.
fn name(shard: &Shard, hash: u64) -> String {
    format!("{}/{}/{hash:016x}", shard.group_name, shard.number)
}
