//! Positions in a channel's log.

use std::fmt;
use std::sync::Arc;

/// Names one incarnation of the log that holds a channel; positions of different epochs never compare.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// The epoch as it stands on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Epoch {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place in a channel's log: everything up to and including `offset`, in incarnation `epoch`.
///
/// Offsets of a channel increase strictly and have holes (they are sequence numbers of a stream that
/// many channels share); 0 lies before the first publication.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Position {
    /// Sequence number of the last publication included; 0 for none.
    pub offset: u64,
    /// Incarnation of the log.
    pub epoch: Epoch,
}
