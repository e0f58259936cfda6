//! Presence: who is subscribed to a channel, on all replicas.

use std::sync::Arc;

use async_trait::async_trait;
use plenum_protocol::ClientInfo;

/// Counts of a channel's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceStats {
    /// Connections.
    pub clients: u32,
    /// Distinct user ids among them.
    pub users: u32,
}

/// What became of a replica's lease on its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Readers count this replica's entries.
    Held,
    /// It lapsed (the replica was paused or cut off): its entries no longer count, and it must join every member again.
    Lapsed,
}

/// Why presence is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// Temporary; nobody was taken for gone.
    #[error("presence is unavailable: {reason}")]
    Unavailable {
        /// For operators.
        reason: String,
    },
}

/// Presence, seen from one replica that owns the entries it made.
///
/// Entries are leased to the replica: while it renews at least each second its entries count; 5 s after its last
/// renewal they do not count for any reader. An entry is (channel, client id); joining again replaces its information.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Adds or replaces an entry of this replica.
    async fn join(&self, channel: &str, member: Arc<ClientInfo>) -> Result<(), PresenceError>;

    /// Removes this replica's entry of the client; an entry that another replica made for the same client id stays.
    async fn leave(&self, channel: &str, client: &str) -> Result<(), PresenceError>;

    /// Everyone present, in no order.
    async fn members(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, PresenceError>;

    /// Counts; costs the same for few and for many members.
    async fn stats(&self, channel: &str) -> Result<PresenceStats, PresenceError>;

    /// Renews the lease; to be called once a second. After [`Lease::Lapsed`] the lease is held anew and empty.
    async fn renew(&self) -> Result<Lease, PresenceError>;

    /// Gives the lease up: all entries of this replica stop counting at once.
    async fn resign(&self) -> Result<(), PresenceError>;
}
