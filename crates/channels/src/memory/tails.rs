//! In-process tails.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::expiring::Expiring;
use crate::{RememberedTail, Tails};

/// Tails in this process's memory; beyond the bound those that expire first are forgotten early.
pub struct MemoryTails {
    kept: Mutex<Expiring<Box<str>, RememberedTail>>,
    max: usize,
}

impl MemoryTails {
    /// Room for the tails of this many channels, at least one.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), max: max.max(1) })
    }
}

#[async_trait]
impl Tails for MemoryTails {
    async fn remember(&self, tails: &[(String, RememberedTail)], ttl: Duration) {
        let (mut kept, now) = (self.kept.lock(), Instant::now());
        kept.take_expired(now);
        for (channel, tail) in tails {
            let there = kept.get(channel.as_str());
            let newer = |there: &RememberedTail| {
                there.position.epoch == tail.position.epoch
                    && (there.position.offset, there.through) > (tail.position.offset, tail.through)
            };
            if there.is_some_and(newer) {
                continue;
            }
            if there.is_none() && kept.len() >= self.max {
                kept.remove_first();
            }
            kept.insert(channel.as_str().into(), tail.clone(), now + ttl);
        }
    }

    async fn recall(&self, channel: &str) -> Option<RememberedTail> {
        let mut kept = self.kept.lock();
        kept.take_expired(Instant::now());
        kept.get(channel).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Fixture, tails_suite};

    #[tokio::test(start_paused = true)]
    async fn tails_conform() {
        tails_suite(async |replicas| {
            let tails = MemoryTails::new(1000);
            Fixture::with_tokio_time((0..replicas).map(|_| tails.clone() as Arc<dyn Tails>).collect())
        })
        .await;
    }
}
