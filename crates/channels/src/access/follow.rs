//! Following the ledger: entries go into memory, and what they say is carried out on the connections held here.

use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashSet;
use plenum_protocol::Disconnect;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{ENTRIES, Entry};
use crate::node::unix_now;
use crate::resume::Fence;
use crate::{LedgerError, Node, Record, SUPERSEDED};

/// How often the ledger is asked for changes.
const INTERVAL: Duration = Duration::from_millis(500);
/// Changes of one answer.
const PAGE: usize = 500;
/// An answer of so many may be followed by more: they are asked for at once.
const MORE: usize = PAGE / 2;
/// After so long without an answer everything is read again: erased registers are not shown for ever.
const READ_AGAIN: Duration = Duration::from_secs(600);
/// How often the ledger's room is looked at.
const ROOM: Duration = Duration::from_secs(10);
/// How often the end of a reading of everything is moved to where the ledger has come to meanwhile; then it ends, however fast
/// others write.
const MOVES: u32 = 4;

/// Runs until the node is gone.
pub(crate) async fn follow(node: Weak<Node>) {
    let mut progress = Progress { answered: Instant::now(), whole: None, room: Instant::now() };
    loop {
        let Some(node) = node.upgrade() else { return };
        let more = match node.catch_up(&mut progress).await {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(%error, "blocks and revocations are not followed");
                false
            }
        };
        let access = node.access.clone();
        drop(node);
        if !more {
            let _ = timeout(INTERVAL, access.look.notified()).await;
        }
    }
}

/// How far the ledger was read.
struct Progress {
    /// When it answered last.
    answered: Instant,
    /// The reading of everything that is under way.
    whole: Option<Whole>,
    /// When its room is to be looked at.
    room: Instant,
}

/// A reading of everything. What is known of entries holds until it ends; then it loses what was not found.
struct Whole {
    /// Read up to here.
    from: u64,
    /// It ends here.
    end: u64,
    /// Entries stay that were not found: the ledger went back, or a copy says what is before `from`.
    keep: bool,
    copied: bool,
    /// Keys of the entries that were found.
    found: HashSet<String>,
    /// Records read.
    read: usize,
    began: Instant,
    /// When the end was asked for.
    ended: Instant,
    moves: u32,
}

impl Whole {
    fn up_to(end: u64, keep: bool) -> Self {
        let now = Instant::now();
        Self { from: 0, end, keep, copied: false, found: HashSet::new(), read: 0, began: now, ended: now, moves: 0 }
    }

    fn take(&mut self, changes: &[Record]) {
        self.read += changes.len();
        self.from = changes.last().map_or(self.from, |record| record.revision);
        for record in changes.iter().filter(|record| record.key.starts_with(ENTRIES)) {
            match record.value {
                Some(_) => self.found.insert(record.key.clone()),
                None => self.found.remove(&record.key),
            };
        }
    }
}

impl Node {
    /// One look at the ledger; true when there may be more to read at once.
    async fn catch_up(self: &Arc<Self>, progress: &mut Progress) -> Result<bool, LedgerError> {
        if self.settings().client.resume.enabled && !self.resume.has_key() {
            self.resume.share_key().await?;
        }
        self.look_at_room_if_due(progress);
        let stale = progress.answered.elapsed() > READ_AGAIN;
        if stale {
            progress.whole = None;
        }
        if progress.whole.is_none() && (stale || !*self.access.complete.borrow()) {
            progress.whole = Some(self.begin().await?);
        }
        let from = progress.whole.as_ref().map_or(*self.access.revision.borrow(), |whole| whole.from);
        let changes = match self.ledger.changes(from, PAGE).await {
            Err(LedgerError::WentBack { known, found }) => {
                self.went_back(known, found);
                progress.whole = Some(Whole::up_to(found, true));
                return Ok(false);
            }
            changes => changes?,
        };
        progress.answered = Instant::now();
        if let Some(whole) = &mut progress.whole {
            whole.take(&changes);
        }
        let (count, last) = (changes.len(), changes.last().map(|record| record.revision));
        for record in changes {
            self.access.copy.read(&record);
            self.apply(record);
        }
        match progress.whole.take() {
            Some(whole) if last.is_some_and(|last| last < whole.end) => {
                progress.whole = Some(whole);
                return Ok(true);
            }
            // What was written while it was read is read too, but not for ever.
            Some(mut whole) if last.is_some() && whole.ended.elapsed() > INTERVAL && whole.moves < MOVES => {
                (whole.moves, whole.ended) = (whole.moves + 1, Instant::now());
                let end = self.ledger.end().await;
                whole.end = end.as_ref().map_or(whole.end, |end| *end);
                progress.whole = Some(whole);
                return end.map(|_| true);
            }
            Some(whole) => self.finish(whole),
            None => {
                if let Some(last) = last {
                    self.access.revision.send_replace(last);
                }
            }
        }
        let now = unix_now();
        self.access.entries.write().retain(|_, entry| entry.is_kept(now));
        self.copy_if_due(self.access.entries.read().len());
        Ok(count >= MORE)
    }

    /// Begins to read everything.
    async fn begin(&self) -> Result<Whole, LedgerError> {
        let end = self.ledger.end().await?;
        let known = *self.access.revision.borrow();
        if end < known {
            self.went_back(known, end);
            return Ok(Whole::up_to(end, true));
        }
        let mut whole = Whole::up_to(end, false);
        if !*self.access.complete.borrow() && self.access.is_empty() {
            // Nobody was admitted yet, so there is nothing to carry out.
            if let Some(revision) = self.access.adopt_copy(self.ledger.as_ref()).await? {
                (whole.from, whole.keep, whole.copied) = (revision, true, true);
            }
        }
        Ok(whole)
    }

    fn went_back(&self, known: u64, found: u64) {
        tracing::error!(known, found, "the ledger went back: what is known of blocks stays, and it is read again");
        self.access.revision.send_replace(0);
    }

    /// Everything was read.
    fn finish(&self, whole: Whole) {
        let Whole { from, keep, copied, found, read, began, .. } = whole;
        if !keep {
            // What was erased and does not show any more.
            self.access.entries.write().retain(|key, _| found.contains(key));
        }
        self.access.revision.send_replace(from);
        if self.access.complete.send_if_modified(|complete| !std::mem::replace(complete, true)) {
            let (entries, took) = (self.access.entries.read().len(), began.elapsed());
            tracing::info!(entries, read, copied, ?took, "blocks and revocations are known");
        }
    }

    /// Looks at the ledger's room beside the following, which must not wait for it.
    fn look_at_room_if_due(&self, progress: &mut Progress) {
        if Instant::now() < progress.room {
            return;
        }
        progress.room = Instant::now() + ROOM;
        let (resume, metrics) = (self.resume.clone(), self.metrics.clone());
        tokio::spawn(async move {
            match resume.look_at_room().await {
                Ok(percent) => metrics.ledger_fill_percent.set(percent),
                Err(error) => tracing::debug!(%error, "the ledger did not say how full it is"),
            }
        });
    }

    /// Makes a copy of the entries beside the following, which must not wait for it.
    fn copy_if_due(&self, entries: usize) {
        let Some((store, claimed)) = self.access.copy.is_due(entries) else { return };
        let (access, ledger) = (self.access.clone(), self.ledger.clone());
        tokio::spawn(async move {
            if let Err(error) = access.make_copy(ledger.as_ref(), store.as_ref(), claimed).await {
                tracing::info!(%error, "no copy of blocks and revocations was made");
            }
        });
    }

    fn apply(&self, record: Record) {
        if let Some(client) = record.key.strip_prefix(crate::resume::FENCES) {
            if let (Ok(client), Some(value)) = (Uuid::try_parse(client), &record.value)
                && let Some(fence) = Fence::decode(value)
            {
                self.supersede(client, fence.step);
            }
            return;
        }
        if !record.key.starts_with(ENTRIES) {
            return;
        }
        let Some(value) = record.value else {
            self.access.entries.write().remove(&record.key);
            return;
        };
        match serde_json::from_slice::<Entry>(&value) {
            Ok(entry) => {
                self.access.entries.write().insert(record.key, entry.clone());
                self.carry_out(&entry);
            }
            Err(error) => tracing::error!(key = record.key, %error, "a block or revocation cannot be read"),
        }
    }

    /// Closes what another connection with the same client id has replaced.
    pub(crate) fn supersede(&self, client: Uuid, step: u32) {
        for replaced in self.registry.older(client, step) {
            replaced.outbox.close(SUPERSEDED);
        }
        self.grace.outrun(client, step);
    }

    /// Closes the connections that an entry keeps out.
    fn carry_out(&self, entry: &Entry) {
        if !entry.holds(unix_now()) {
            return;
        }
        match entry {
            Entry::Block { user, .. } => {
                let target = crate::Target { user: user.clone(), ..crate::Target::default() };
                for found in self.registry.find(&target) {
                    found.outbox.close(Disconnect::PERMISSION_DENIED);
                }
            }
            Entry::Revocation { uid, .. } => self.registry.for_each_known(|identity, outbox| {
                if identity.has_token() && identity.token_id() == uid {
                    outbox.close(Disconnect::INVALID_TOKEN);
                }
            }),
            Entry::Invalidation { user, channel, issued_before, .. } if channel.is_empty() => {
                let target = crate::Target { user: user.clone(), ..crate::Target::default() };
                for found in self.registry.find(&target) {
                    if found.identity.has_token() && found.identity.issued_at() < *issued_before {
                        found.outbox.close(Disconnect::INVALID_TOKEN);
                    }
                }
            }
            // Tokens of one channel: they grant no new subscription; the one that stands ends at its expiry, or by unsubscribe.
            Entry::Invalidation { .. } => {}
        }
    }
}
