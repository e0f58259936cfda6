//! Small durable registers that every replica agrees on: what must not be forgotten by a failover of a cache.

use async_trait::async_trait;
use bytes::Bytes;

/// Longest key, in bytes; any bytes are allowed.
pub const MAX_LEDGER_KEY_BYTES: usize = 255;
/// Longest value, in bytes.
pub const MAX_LEDGER_VALUE_BYTES: usize = 4096;

/// A register's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: String,
    /// Its value; `None` where it was erased.
    pub value: Option<Bytes>,
    /// Grows with every write in the ledger; never 0.
    pub revision: u64,
}

/// Why a register was not read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Somebody wrote first; nothing was written.
    #[error("the register is at revision {found}, not at the expected {expected}")]
    Conflict {
        /// What the caller expected.
        expected: u64,
        /// What is there; 0: nothing.
        found: u64,
    },
    /// Key or value is larger than the ledger takes.
    #[error("{what} of {size} bytes is over the ledger's limit of {max}")]
    TooLarge {
        /// `key` or `value`.
        what: &'static str,
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Temporary; nothing was written.
    #[error("the ledger is unavailable: {reason}")]
    Unavailable {
        /// For operators; holds no value.
        reason: String,
    },
    /// Nobody knows whether it was written: read it again.
    #[error("the ledger did not answer in time: the register may have been written")]
    Indeterminate,
}

/// Registers with compare-and-set, replicated like the log and never older than what was acknowledged.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// The register; `None` where nothing was ever written or it was erased and forgotten.
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError>;

    /// Writes (`None` erases) if the register is at revision `expected` (0: nothing there or erased); `None` writes
    /// whatever is there. Resolves to the new revision.
    async fn put(&self, key: &str, value: Option<Bytes>, expected: Option<u64>) -> Result<u64, LedgerError>;

    /// Every register whose newest write is after `revision`, oldest first, at most `limit`; empty when there is none.
    /// Costs next to nothing then: replicas ask every half second.
    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError>;
}
