//! Tails: last positions of channels that outlive the channels' data.

use std::time::Duration;

use async_trait::async_trait;

use crate::Position;

/// A channel's end as it was known at one point of its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedTail {
    /// Position of the channel's last publication.
    pub position: Position,
    /// Nothing followed it on the channel up to this offset of its shard.
    pub through: u64,
}

/// Remembers tails in batches; best effort: what was forgotten costs a `recovered: false`. A reader must prove for itself
/// that nothing followed after [`RememberedTail::through`].
#[async_trait]
pub trait Tails: Send + Sync + 'static {
    /// Remembers tails under the names that the log gives its channels, at most 255 bytes; an older one never replaces a newer one of the same epoch. Ends within a second.
    async fn remember(&self, tails: &[(String, RememberedTail)], ttl: Duration);

    /// What is known of a channel; `None` also when the store cannot be asked.
    async fn recall(&self, channel: &str) -> Option<RememberedTail>;
}
