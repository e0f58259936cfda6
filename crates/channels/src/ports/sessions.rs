//! Sessions: small shared states with a version, and snapshots of states at a position of the log.

#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Log, Page, Position, Read, ReadError, Retention, Since};

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
    /// When the log stored the publication at `position` ([`crate::Entry::stored_at_ms`]); 0 with a position that no publication
    /// has.
    pub time: u64,
    /// The state.
    pub state: Bytes,
}

impl Snapshot {
    /// Whether a log that ends at `fresh_end` can have led to it: of the same epoch and not beyond.
    pub fn fits(&self, fresh_end: &Position) -> bool {
        self.position.epoch == fresh_end.epoch && self.position.offset <= fresh_end.offset
    }

    /// Whether this page, read backwards from behind the snapshot's position, shows the publication that the state ends with: a
    /// log that went back and has grown since holds another one there, or none. True where nothing is visible so far back:
    /// then nobody can tell.
    fn ends_with(&self, page: &Page) -> bool {
        match page.entries.first() {
            Some(entry) if self.time > 0 => (entry.offset, entry.stored_at_ms) == (self.position.offset, self.time),
            _ => true,
        }
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

    /// The channel's snapshot if `log` can have led to it: of the same epoch, not beyond the end, and with the publication at its
    /// position stored when the snapshot says, as far as that is still visible under `retention`. One that does not fit is
    /// removed: the log went back. Takes as long as two reads of the log more than [`Sessions::snapshot`].
    async fn fitting_snapshot(
        &self,
        channel: &str,
        log: &dyn Log,
        retention: Retention,
    ) -> Result<Option<Snapshot>, SessionError> {
        let Some(snapshot) = self.snapshot(channel).await? else { return Ok(None) };
        // The log after the snapshot: an end from before it may lie before a snapshot that somebody keeps meanwhile.
        let read = Read {
            since: Since::Position(snapshot.position.clone()),
            reverse: false,
            limit: 0,
            max_bytes: 0,
            retention,
        };
        let end = log.read(channel, read.clone()).await.map_err(unread)?.top;
        let mut fits = snapshot.fits(&end);
        if fits && snapshot.time > 0 {
            let behind = Position { offset: snapshot.position.offset.saturating_add(1), ..snapshot.position.clone() };
            let read = Read { since: Since::Position(behind), reverse: true, limit: 1, ..read };
            let page = log.read(channel, read).await.map_err(unread)?;
            if page.top.epoch == end.epoch && page.top.offset < snapshot.position.offset {
                return Err(SessionError::Unavailable { reason: "the log's answer lags behind".into() });
            }
            fits = page.top.epoch == end.epoch && snapshot.ends_with(&page);
        }
        if fits {
            return Ok(Some(snapshot));
        }
        self.discard_snapshot(channel, &snapshot.position).await?;
        Ok(None)
    }
}

fn unread(error: ReadError) -> SessionError {
    SessionError::Unavailable { reason: error.to_string() }
}
