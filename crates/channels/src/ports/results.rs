//! Results of publications with an idempotency key, beyond the log's own window.

use std::time::Duration;

use async_trait::async_trait;

use crate::{IdempotencyKey, Position};

/// First results by key; best effort: what it forgot is a miss, what it says is true.
#[async_trait]
pub trait Results: Send + Sync + 'static {
    /// The first result of this key on this channel; `None` also when the store cannot be asked within its deadline.
    async fn recall(&self, channel: &str, key: &IdempotencyKey) -> Option<Position>;

    /// Remembers a result for `ttl`; the first one stays. Returns at once; when too many wait, the newest is not kept.
    fn remember(&self, channel: &str, key: &IdempotencyKey, position: Position, ttl: Duration);
}
