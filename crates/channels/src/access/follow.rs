//! Following the ledger: entries go into memory, and what they say is carried out on the connections held here.

use std::sync::{Arc, Weak};
use std::time::Duration;

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
/// After so long without an answer everything is read again: erased registers are not shown for ever.
const READ_AGAIN: Duration = Duration::from_secs(600);

/// Runs until the node is gone.
pub(crate) async fn follow(node: Weak<Node>) {
    let mut answered = Instant::now();
    loop {
        let Some(node) = node.upgrade() else { return };
        let look = match node.catch_up(&mut answered).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "blocks and revocations are not followed");
                INTERVAL
            }
        };
        let access = node.access.clone();
        drop(node);
        let _ = timeout(look, access.look.notified()).await;
    }
}

impl Node {
    async fn catch_up(self: &Arc<Self>, answered: &mut Instant) -> Result<(), LedgerError> {
        if self.settings().client.resume.enabled && !self.resume.has_key() {
            self.resume.share_key().await?;
        }
        let mut anew = answered.elapsed() > READ_AGAIN;
        let begin = Instant::now();
        let (mut copied, mut read) = (None, 0);
        if !*self.access.complete.borrow() && *self.access.revision.borrow() == 0 {
            // Nobody was admitted yet, so there is nothing to carry out.
            copied = self.access.adopt_copy(self.ledger.as_ref()).await?;
            anew &= copied.is_none();
        }
        loop {
            let from = if anew { 0 } else { *self.access.revision.borrow() };
            let changes = match self.ledger.changes(from, PAGE).await {
                Err(LedgerError::WentBack { known, found }) => {
                    tracing::error!(
                        known,
                        found,
                        "the ledger went back: what is known of blocks stays, and it is read again"
                    );
                    self.access.revision.send_replace(0);
                    anew = false;
                    continue;
                }
                changes => changes?,
            };
            *answered = Instant::now();
            if anew {
                // What was erased meanwhile is not shown any more.
                self.access.entries.write().clear();
                self.access.revision.send_replace(0);
                anew = false;
            }
            let Some(last) = changes.last().map(|record| record.revision) else { break };
            read += changes.len();
            for record in changes {
                self.access.copy.read(&record);
                self.apply(record);
            }
            self.access.revision.send_replace(last);
        }
        let now = unix_now();
        self.access.entries.write().retain(|_, entry| entry.holds(now));
        let entries = self.access.entries.read().len();
        if self.access.complete.send_if_modified(|complete| !std::mem::replace(complete, true)) {
            let (took, copied) = (begin.elapsed(), copied.is_some());
            tracing::info!(entries, read, copied, ?took, "blocks and revocations are known");
        }
        self.copy_if_due(entries);
        Ok(())
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
