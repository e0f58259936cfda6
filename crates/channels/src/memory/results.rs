//! In-process results of publications with an idempotency key.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::expiring::Expiring;
use crate::{IdempotencyKey, Position, Results};

type Name = (Box<str>, Box<str>, Box<str>);

/// Results in this process's memory; beyond the bound those that expire first are forgotten early.
pub struct MemoryResults {
    kept: Mutex<Expiring<Name, Position>>,
    max: usize,
}

impl MemoryResults {
    /// Room for this many results, at least one.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), max: max.max(1) })
    }
}

fn name(channel: &str, key: &IdempotencyKey) -> Name {
    (channel.into(), key.scope.as_str().into(), key.key.as_str().into())
}

#[async_trait]
impl Results for MemoryResults {
    async fn recall(&self, channel: &str, key: &IdempotencyKey) -> Option<Position> {
        let mut kept = self.kept.lock();
        kept.take_expired(Instant::now());
        kept.get(&name(channel, key)).cloned()
    }

    fn remember(&self, channel: &str, key: &IdempotencyKey, position: Position, ttl: Duration) {
        let (mut kept, now, name) = (self.kept.lock(), Instant::now(), name(channel, key));
        kept.take_expired(now);
        if kept.get(&name).is_some() {
            return;
        }
        if kept.len() >= self.max {
            kept.remove_first();
        }
        kept.insert(name, position, now + ttl);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Fixture, results_suite};

    #[tokio::test(start_paused = true)]
    async fn results_conform() {
        results_suite(async |replicas| {
            let results = MemoryResults::new(1000);
            Fixture::with_tokio_time((0..replicas).map(|_| results.clone() as Arc<dyn Results>).collect())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_forgets_what_expires_first() {
        let (results, position) = (MemoryResults::new(2), Position { offset: 1, epoch: crate::Epoch::from("e") });
        let key = |n: u64| IdempotencyKey { scope: String::new(), key: n.to_string() };
        for n in [2, 1, 3] {
            results.remember("c", &key(n), position.clone(), Duration::from_secs(n));
        }
        assert_eq!(results.recall("c", &key(1)).await, None);
        assert_eq!(results.recall("c", &key(2)).await, Some(position.clone()));
        assert_eq!(results.recall("c", &key(3)).await, Some(position));
    }
}
