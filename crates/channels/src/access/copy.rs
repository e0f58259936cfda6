//! The copy of all entries beside the ledger, for replicas that start: they read it and then only what the ledger got
//! after it, instead of every register that the ledger holds.
//!
//! The ledger stays the truth. Its register [`REGISTER`] says how far the copy goes, how large it is and which digest it
//! has, and a copy that is not exactly that does not count. So whatever the copy's store forgot, kept too long or was
//! given by others is not believed; and where the ledger itself went back, the register went back with it.
//!
//! A replica that makes a copy claims the register first, for a minute, and waits until it has read its own claim. What it
//! holds then lacks only what came after the claim. The claim is replaced by compare-and-set, so one that ran out makes no
//! copy known, however long its replica slept; and the register lives for less time than erased registers show. Both times
//! are those of the ledger's clock. So every erasure that a copy lacks is among the changes after it.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::{Access, Entry, hex};
use crate::node::unix_now;
use crate::{Copies, LEDGER_ERASED_SHOWS, Ledger, LedgerError, MAX_COPY_BYTES, Record};

/// The register that names the copy.
pub(super) const REGISTER: &str = "c/entries";
/// How long a copy can be used.
const LIFE: Duration = Duration::from_secs(1800);
/// How long a replica may take to make one.
const CLAIM: Duration = Duration::from_secs(60);
const _: () = assert!(LIFE.as_secs() + CLAIM.as_secs() < LEDGER_ERASED_SHOWS.as_secs());
/// A copy is made anew when it is so old.
const OLD: Duration = Duration::from_secs(900);
/// A copy is made anew when its reader would have so many records to read after it.
const MANY: u64 = 1000;
/// Between two attempts of one replica.
const SPACING: Duration = Duration::from_secs(60);
/// How long a replica waits until it has read its own claim.
const CATCHING_UP: Duration = Duration::from_secs(10);
/// How long a replica that starts waits for the copy.
const READING: Duration = Duration::from_secs(1);

/// What the register holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Named {
    /// A replica is making a copy.
    Claim,
    /// There is one.
    Copy {
        /// All entries up to here are in it.
        revision: u64,
        /// Its size.
        bytes: usize,
        /// Its SHA-256, in hex.
        sha256: String,
        /// Unix seconds, by its maker's clock; decides only when it is made anew.
        made_at: u64,
    },
}

/// What this replica knows of the copy.
pub(super) struct Known {
    store: Option<Arc<dyn Copies>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Revision of the register; 0: there is none.
    register: u64,
    /// When the newest copy becomes old; `None`: none is known.
    old_at: Option<Instant>,
    /// Records of the ledger read since the newest copy.
    since: u64,
    /// Nobody tries before.
    next: Option<Instant>,
}

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMade {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the entries take {0} bytes, a copy holds {MAX_COPY_BYTES}")]
    TooLarge(usize),
    #[error("what it must hold was not read in time")]
    Behind,
    #[error("it was not kept")]
    NotKept,
}

impl Known {
    pub fn new(store: Option<Arc<dyn Copies>>) -> Self {
        Self { store, state: Mutex::default() }
    }

    /// A record of the ledger was read.
    pub fn read(&self, record: &Record) {
        let mut state = self.state.lock();
        if record.key != REGISTER {
            state.since += 1;
            return;
        }
        state.register = if record.value.is_some() { record.revision } else { 0 };
        match record.value.as_deref().map(serde_json::from_slice) {
            Some(Ok(Named::Claim)) => state.next = Some(Instant::now() + CLAIM),
            Some(Ok(Named::Copy { made_at, .. })) => {
                let age = Duration::from_secs(unix_now().saturating_sub(made_at));
                state.since = 0;
                state.old_at = Some(Instant::now() + OLD.saturating_sub(age));
            }
            _ => {}
        }
    }

    /// Whether a copy is to be made now, and by which revision of the register it is claimed.
    pub fn is_due(&self, entries: usize) -> Option<(Arc<dyn Copies>, u64)> {
        let store = self.store.as_ref()?;
        let (mut state, now) = (self.state.lock(), Instant::now());
        let old = state.old_at.is_none_or(|at| at <= now);
        let wanted = state.since >= MANY || (old && entries > 0);
        if !wanted || state.next.is_some_and(|next| now < next) {
            return None;
        }
        state.next = Some(now + SPACING);
        Some((store.clone(), state.register))
    }

    fn lost(&self, found: u64) {
        let mut state = self.state.lock();
        // Where it has run out, which no change tells, the next look tries again.
        if found == 0 {
            state.next = None;
        }
        state.register = found;
    }
}

impl Access {
    /// Takes over the copy that the ledger names, if it is there and the very one; answers up to which revision it goes.
    pub(super) async fn adopt_copy(&self, ledger: &dyn Ledger) -> Result<Option<u64>, LedgerError> {
        let Some(store) = &self.copy.store else { return Ok(None) };
        let Some(record) = ledger.get(REGISTER).await? else { return Ok(None) };
        let named = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
        let Some(Named::Copy { revision, bytes, sha256, .. }) = named else { return Ok(None) };
        let found = timeout(READING, store.copy(bytes)).await.ok().flatten();
        let Some(found) = found else {
            tracing::info!("the copy of blocks and revocations is not there: all of the ledger is read");
            return Ok(None);
        };
        let entries = (fingerprint(&found) == sha256).then(|| serde_json::from_slice::<Vec<Entry>>(&found).ok());
        let Some(entries) = entries.flatten().filter(|_| revision < record.revision) else {
            tracing::warn!("the copy of blocks and revocations is not what the ledger says: all of the ledger is read");
            return Ok(None);
        };
        self.copy.read(&record);
        *self.entries.write() = entries.into_iter().map(|entry| (entry.key(), entry)).collect();
        self.revision.send_replace(revision);
        Ok(Some(revision))
    }

    /// Makes a copy of all entries and has the ledger name it; `claimed` is the register's revision.
    pub(super) async fn make_copy(&self, ledger: &dyn Ledger, store: &dyn Copies, claimed: u64) -> Result<(), NotMade> {
        let claim = match ledger.put(REGISTER, Some(value(&Named::Claim)), Some(claimed), Some(CLAIM)).await {
            Err(LedgerError::Conflict { found, .. }) => {
                self.copy.lost(found);
                return Ok(());
            }
            claim => claim?,
        };
        self.look.notify_one();
        let mut revision = self.revision.subscribe();
        let reached = timeout(CATCHING_UP, revision.wait_for(|revision| *revision >= claim)).await;
        let revision = reached.ok().and_then(Result::ok).map(|reached| *reached).ok_or(NotMade::Behind)?;
        // Entries may be newer than that by now: then they are read once more, to the same end.
        let now = unix_now();
        let entries: Vec<Entry> = self.entries.read().values().filter(|entry| entry.is_kept(now)).cloned().collect();
        let copy = Bytes::from(serde_json::to_vec(&entries).unwrap_or_default());
        if copy.len() > MAX_COPY_BYTES {
            return Err(NotMade::TooLarge(copy.len()));
        }
        let (bytes, sha256) = (copy.len(), fingerprint(&copy));
        if !store.keep(copy, LIFE).await {
            return Err(NotMade::NotKept);
        }
        let named = Named::Copy { revision, bytes, sha256, made_at: now };
        ledger.put(REGISTER, Some(value(&named)), Some(claim), Some(LIFE)).await?;
        tracing::debug!(entries = entries.len(), bytes, revision, "a copy of blocks and revocations was made");
        Ok(())
    }
}

fn value(named: &Named) -> Bytes {
    serde_json::to_vec(named).unwrap_or_default().into()
}

fn fingerprint(copy: &[u8]) -> String {
    hex(digest(&SHA256, copy).as_ref())
}
