//! Small durable registers that every replica agrees on: what must not be forgotten by a failover of a cache.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Longest key, in bytes; any bytes are allowed.
pub const MAX_LEDGER_KEY_BYTES: usize = 255;
/// Longest value, in bytes.
pub const MAX_LEDGER_VALUE_BYTES: usize = 4096;
/// How long an erased register shows among the changes. Who has not read them for longer reads everything again.
pub const LEDGER_ERASED_SHOWS: Duration = Duration::from_secs(3600);
/// Above this share of its room a ledger takes no fences of further client ids: the rest is for blocks and revocations.
pub const LEDGER_FULL: f64 = 0.8;

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
    /// The ledger ends before a revision that it had acknowledged: its storage was lost or restored. Read everything again.
    #[error("the ledger ends at revision {found}; {known} had been acknowledged")]
    WentBack {
        /// What the caller had seen.
        known: u64,
        /// The ledger's end now.
        found: u64,
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

/// Registers with compare-and-set, replicated like the log. Every answer holds everything that was acknowledged before the
/// question; one that cannot be proven to do so is [`LedgerError::Unavailable`]. Every call ends within 3 s.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// The register; `None` where nothing was ever written, it was erased, or its time is over.
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError>;

    /// Writes (`None` erases) if the register is at revision `expected` (0: nothing there or erased); `None` writes
    /// whatever is there. With `ttl` (at least 1 s, whole seconds) the register is forgotten by itself after that time, which
    /// no change tells. Resolves to the new revision.
    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError>;

    /// Every register whose newest write is after `revision`, oldest first, at most `limit` (1 to 1,000); empty when there
    /// is none. Erased ones show for [`LEDGER_ERASED_SHOWS`]. Costs one small write and one read: replicas ask every half
    /// second.
    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError>;

    /// A revision that no write is above which was acknowledged before the question. Costs one small write.
    async fn end(&self) -> Result<u64, LedgerError>;

    /// Share of its room that is taken, 0 to 1; 0 where it has no bound. At the bound writes are refused as unavailable.
    async fn fill(&self) -> Result<f64, LedgerError>;
}

/// Refuses what no ledger takes.
pub fn check_ledger_sizes(key: &str, value: Option<&Bytes>) -> Result<(), LedgerError> {
    let value = value.map_or(0, Bytes::len);
    for (what, size, max) in [("key", key.len(), MAX_LEDGER_KEY_BYTES), ("value", value, MAX_LEDGER_VALUE_BYTES)] {
        if size > max {
            return Err(LedgerError::TooLarge { what, size, max });
        }
    }
    Ok(())
}
