//! A copy of the ledger's blocks and revocations beside it, for replicas that start.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Largest copy, in bytes.
pub const MAX_COPY_BYTES: usize = 4 * 1024 * 1024;

/// Keeps the newest copy, at best: one that was forgotten or altered costs its reader the time to read the ledger. Nobody
/// believes a copy for itself; the ledger holds its digest. Every call ends within a second.
#[async_trait]
pub trait Copies: Send + Sync + 'static {
    /// Keeps a copy for `ttl` in place of the one before. False where it was not kept, where nobody knows whether it was,
    /// and for one of 0 or more than [`MAX_COPY_BYTES`] bytes.
    async fn keep(&self, copy: Bytes, ttl: Duration) -> bool;

    /// The copy, which has `bytes` bytes; `None` also when it has not, or cannot be read now.
    async fn copy(&self, bytes: usize) -> Option<Bytes>;
}
