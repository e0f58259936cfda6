//! Who is kept out: blocked users, revoked tokens, tokens that were issued too early.
//!
//! The entries are registers of the ledger. Every replica reads what changed each half second into memory and carries it
//! out on the connections that it holds; nobody is admitted before everything was read once.

mod control;
mod copy;
mod follow;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use hashbrown::HashMap;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::node::unix_now;
use crate::{ConnectionClaims, Copies, SubscriptionClaims};

pub use self::control::{ConnectionInfo, TokenInfo};
pub(crate) use self::follow::follow;

/// Registers of entries begin so.
const ENTRIES: &str = "a/";
/// Ids up to this length stand in keys as they are, longer ones as a hash.
const MAX_PLAIN: usize = 160;
/// How far replicas' clocks may differ: entries are kept so long past their end, because whoever keeps or copies one decides for
/// others, whose clocks may be behind. Whether it holds each replica says by its own clock.
const CLOCKS: Duration = Duration::from_secs(3600);
/// How long a connect waits for the first reading of the entries; less than SDKs wait for a reply, so that they hear why.
const FIRST_READING: Duration = Duration::from_secs(4);

/// One entry, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// A user is kept out.
    Block {
        user: String,
        /// Unix seconds; 0: until unblocked.
        expire_at: u64,
    },
    /// A token is void.
    Revocation { uid: String, expire_at: u64 },
    /// Tokens of a user are void that were issued before a time: connection tokens, or those for one channel.
    Invalidation { user: String, channel: String, issued_before: u64, expire_at: u64 },
}

/// Why somebody is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The user is blocked.
    Blocked,
    /// The token was called back.
    Revoked,
}

impl Entry {
    /// Its register.
    pub(crate) fn key(&self) -> String {
        match self {
            Entry::Block { user, .. } => block_key(user),
            Entry::Revocation { uid, .. } => revocation_key(uid),
            Entry::Invalidation { user, channel, .. } => invalidation_key(user, channel),
        }
    }

    pub(crate) fn expire_at(&self) -> u64 {
        match self {
            Entry::Block { expire_at, .. }
            | Entry::Revocation { expire_at, .. }
            | Entry::Invalidation { expire_at, .. } => *expire_at,
        }
    }

    fn holds(&self, now: u64) -> bool {
        self.expire_at() == 0 || now < self.expire_at()
    }

    /// Whether it is kept: it may still hold by another replica's clock.
    fn is_kept(&self, now: u64) -> bool {
        self.expire_at() == 0 || now < self.expire_at().saturating_add(CLOCKS.as_secs())
    }
}

fn name(kind: char, id: &str) -> String {
    if id.len() <= MAX_PLAIN {
        return format!("{ENTRIES}{kind}/={id}");
    }
    let hash = digest(&SHA256, id.as_bytes());
    format!("{ENTRIES}{kind}/#{}", hex(hash.as_ref()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn block_key(user: &str) -> String {
    name('b', user)
}

fn revocation_key(uid: &str) -> String {
    name('r', uid)
}

fn invalidation_key(user: &str, channel: &str) -> String {
    // The length keeps two ids apart that are one text together.
    name('i', &format!("{} {user} {channel}", user.len()))
}

/// A replica's copy of all entries.
pub(crate) struct Access {
    entries: RwLock<HashMap<String, Entry>>,
    /// Up to which revision of the ledger it is complete.
    revision: watch::Sender<u64>,
    /// The copy of all entries beside the ledger.
    copy: copy::Known,
    complete: watch::Sender<bool>,
    /// Reads at once what changed.
    look: Notify,
}

impl Access {
    pub(crate) fn new(copies: Option<Arc<dyn Copies>>) -> Self {
        Self {
            entries: RwLock::default(),
            revision: watch::Sender::new(0),
            copy: copy::Known::new(copies),
            complete: watch::Sender::new(false),
            look: Notify::new(),
        }
    }

    /// Waits until all entries were read once. False when that takes too long: then nobody may be let in.
    pub(crate) async fn is_known(&self) -> bool {
        if *self.complete.borrow() {
            return true;
        }
        let mut complete = self.complete.subscribe();
        tokio::time::timeout(FIRST_READING, complete.wait_for(|complete| *complete)).await.is_ok_and(|it| it.is_ok())
    }

    fn find(&self, key: &str, now: u64) -> Option<Entry> {
        self.entries.read().get(key).filter(|entry| entry.holds(now)).cloned()
    }

    fn is_empty(&self) -> bool {
        self.entries.read().is_empty()
    }

    fn keeps_out_user(&self, user: &str, now: u64) -> bool {
        !user.is_empty() && self.find(&block_key(user), now).is_some()
    }

    fn keeps_out_token(&self, user: &str, channel: &str, uid: &str, issued_at: u64, now: u64) -> bool {
        if !uid.is_empty() && self.find(&revocation_key(uid), now).is_some() {
            return true;
        }
        let found = self.find(&invalidation_key(user, channel), now);
        // A token that does not say when it was issued may be older than any time.
        matches!(found, Some(Entry::Invalidation { issued_before, .. }) if issued_at < issued_before)
    }

    /// Whether a connection may be made; `token` says that it shows one.
    pub(crate) fn check(&self, claims: &ConnectionClaims, token: bool) -> Result<(), Refusal> {
        if self.is_empty() {
            return Ok(());
        }
        let now = unix_now();
        if self.keeps_out_user(&claims.user, now) {
            return Err(Refusal::Blocked);
        }
        if token && self.keeps_out_token(&claims.user, "", &claims.token_id, claims.issued_at, now) {
            return Err(Refusal::Revoked);
        }
        Ok(())
    }

    /// Whether a subscription token still grants anything.
    pub(crate) fn check_subscription(&self, claims: &SubscriptionClaims) -> Result<(), Refusal> {
        if self.is_empty() {
            return Ok(());
        }
        let now = unix_now();
        let void = |channel| self.keeps_out_token(&claims.user, channel, &claims.token_id, claims.issued_at, now);
        if void(claims.channel.as_str()) { Err(Refusal::Revoked) } else { Ok(()) }
    }
}
