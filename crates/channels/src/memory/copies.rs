//! In-process copy of blocks and revocations.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Copies, MAX_COPY_BYTES};

/// A copy in this process's memory, shared by every replica of the process that holds it.
#[derive(Default)]
pub struct MemoryCopies(Mutex<Option<(Bytes, Instant)>>);

impl MemoryCopies {
    /// Without a copy.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

#[async_trait]
impl Copies for MemoryCopies {
    async fn keep(&self, copy: Bytes, ttl: Duration) -> bool {
        if !(1..=MAX_COPY_BYTES).contains(&copy.len()) {
            return false;
        }
        *self.0.lock() = Some((copy, Instant::now() + ttl));
        true
    }

    async fn copy(&self, bytes: usize) -> Option<Bytes> {
        let kept = self.0.lock();
        let (copy, ends) = kept.as_ref()?;
        (copy.len() == bytes && Instant::now() < *ends).then(|| copy.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Fixture, copies_suite};

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        copies_suite(async |count| {
            let copies = MemoryCopies::new();
            Fixture::with_tokio_time((0..count).map(|_| copies.clone() as Arc<dyn Copies>).collect())
        })
        .await;
    }
}
