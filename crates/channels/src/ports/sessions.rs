//! Sessions: small shared states with a version, and snapshots of states at a position of the log.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::Position;

/// Longest session id and user id, in bytes; any bytes are allowed.
pub const MAX_SESSION_ID_BYTES: usize = 255;
/// Largest state, in bytes.
pub const MAX_SESSION_BYTES: usize = 256 * 1024;

/// A session as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// Whose it is; empty for nobody's.
    pub user: String,
    /// What the application keeps in it.
    pub state: Bytes,
    /// 1 when created, one more with each update.
    pub version: u64,
}

/// A reducer's state at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The state is the fold of everything up to here.
    pub position: Position,
    /// When the state was made, by its maker's clock; Unix milliseconds.
    pub time: u64,
    /// The state.
    pub state: Bytes,
}

impl Snapshot {
    /// Whether a log that ends at `fresh_end` can have led to it: of the same epoch and not beyond.
    pub fn fits(&self, fresh_end: &Position) -> bool {
        self.position.epoch == fresh_end.epoch && self.position.offset <= fresh_end.offset
    }
}

/// Why a session was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No session has this id.
    #[error("there is no such session")]
    NotFound,
    /// The id is taken; nothing was written.
    #[error("the session exists at version {version}")]
    Exists {
        /// Its version.
        version: u64,
    },
    /// Somebody was faster; nothing was written.
    #[error("the session is at version {found}, not at the expected {expected}")]
    Conflict {
        /// What the caller expected.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The store went back behind what it had acknowledged (a failover lost writes): what was there is gone.
    #[error("the session went back to version {found}; version {known} had been acknowledged")]
    WentBack {
        /// The newest version that this replica saw acknowledged.
        known: u64,
        /// What is there now.
        found: u64,
    },
    /// An id or a state is larger than the store takes, or an id is empty.
    #[error("{field} of {size} bytes is not allowed: 1 to {max}")]
    Size {
        /// Which.
        field: &'static str,
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Temporary; nothing was written.
    #[error("sessions are unavailable: {reason}")]
    Unavailable {
        /// For operators; holds no state.
        reason: String,
    },
    /// Nobody knows whether it was written: read it again.
    #[error("the session store did not answer in time: the session may have been written")]
    Indeterminate,
}

/// The session store. Every call ends within a second; every session expires `ttl` after its last write.
#[async_trait]
pub trait Sessions: Send + Sync + 'static {
    /// Reads.
    async fn get(&self, id: &str) -> Result<StoredSession, SessionError>;

    /// Creates at version 1.
    async fn create(&self, id: &str, user: &str, state: Bytes, ttl: Duration) -> Result<(), SessionError>;

    /// Replaces the state if the version is `expected`; resolves to the new version.
    async fn update(&self, id: &str, expected: u64, state: Bytes, ttl: Duration) -> Result<u64, SessionError>;

    /// Deletes if the version is `expected`; `None` deletes whatever is there.
    async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), SessionError>;

    /// Ids of a user's sessions, at most `limit`, in no order; ids of expired sessions are not among them.
    async fn of_user(&self, user: &str, limit: usize) -> Result<Vec<String>, SessionError>;

    /// The channel's snapshot, if one is kept.
    async fn snapshot(&self, channel: &str) -> Result<Option<Snapshot>, SessionError>;

    /// Keeps a snapshot unless one at the same or a later position of the same epoch is there; false: it was not kept. One of another epoch is
    /// replaced.
    async fn keep_snapshot(&self, channel: &str, snapshot: Snapshot, ttl: Duration) -> Result<bool, SessionError>;

    /// Removes the channel's snapshot if it is at this position; false: it was not there.
    async fn discard_snapshot(&self, channel: &str, position: &Position) -> Result<bool, SessionError>;

    /// The channel's snapshot if it fits a log that ends at `fresh_end`. One that does not is removed: the log went back, and
    /// once it has grown past that position again the snapshot would be believed.
    async fn fitting_snapshot(&self, channel: &str, fresh_end: &Position) -> Result<Option<Snapshot>, SessionError> {
        let Some(snapshot) = self.snapshot(channel).await? else { return Ok(None) };
        if snapshot.fits(fresh_end) {
            return Ok(Some(snapshot));
        }
        self.discard_snapshot(channel, &snapshot.position).await?;
        Ok(None)
    }
}
