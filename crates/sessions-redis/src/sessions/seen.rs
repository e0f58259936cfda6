//! Versions that this replica saw acknowledged, to notice a store that went back behind them.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::record::{Header, Mark};
use crate::keys::Tag;

/// How long a version is remembered, and a deleted session's record kept: a failover is over by then.
pub(super) const HORIZON: Duration = Duration::from_secs(600);

const SHARDS: usize = 16;
/// Redis' clock and ours may differ by this much in 10 min before a session that expired is taken for lost.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);

/// The newest version known of one session.
#[derive(Clone, Debug)]
struct Known {
    id: Arc<str>,
    incarnation: u64,
    version: u64,
    mark: Mark,
    deleted: bool,
    /// Last heard of.
    at: Instant,
    /// When this version was first known here.
    since: Instant,
    /// When it expires at the earliest; `None` where this replica neither wrote nor read it.
    expires: Option<Instant>,
    /// Its loss was reported, and no caller was told yet.
    reported: bool,
    /// When its entry among the user's sessions should be renewed.
    relist: Option<Instant>,
}

/// Two generations of what was seen; when the young one is full the old one is dropped.
#[derive(Default)]
struct Generations {
    young: HashMap<Tag, Known>,
    old: HashMap<Tag, Known>,
}

/// A bounded memory: of more sessions than it holds those not used for longest are forgotten, and with them the proof.
pub(super) struct Seen {
    shards: Vec<Mutex<Generations>>,
    hasher: RandomState,
    /// Of one generation of one shard.
    max: usize,
}

/// What this replica knows of a version that a writer expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Nothing.
    Nothing,
    /// Its mark: another version of the same number is not it.
    Mark(Mark),
    /// It is over: a store that still has it went back.
    Refuse,
}

/// The store is behind: the newest version known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub known: u64,
    /// Whether that was reported already.
    pub reported: bool,
}

/// How a session stands that nobody asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Audit {
    /// As it should, as far as is known.
    Sound,
    /// It was written meanwhile: that may have been before the loss.
    Again,
    /// The store is behind this version, which was not reported yet.
    Lost { id: Arc<str>, known: u64 },
}

/// What this replica wrote or read, and how long it lasts from then on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lasts {
    /// Before the call was sent.
    pub sent: Instant,
    pub ttl: Duration,
}

impl Generations {
    fn get(&self, tag: &Tag, now: Instant) -> Option<Known> {
        let known = self.young.get(tag).or_else(|| self.old.get(tag));
        known.filter(|known| now - known.at < HORIZON).cloned()
    }

    fn put(&mut self, tag: &Tag, known: Known, max: usize) {
        if self.young.len() >= max && !self.young.contains_key(tag) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(tag.clone(), known);
    }

    fn forget(&mut self, tag: &Tag) {
        self.young.remove(tag);
        self.old.remove(tag);
    }
}

impl Seen {
    /// Remembers at least half of `max` sessions.
    pub fn new(max: usize) -> Self {
        let max = (max / SHARDS / 2).max(1);
        Seen { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new(), max }
    }

    fn shard(&self, tag: &Tag) -> &Mutex<Generations> {
        &self.shards[self.hasher.hash_one(tag) as usize % SHARDS]
    }

    /// What the store must check beside the version.
    pub fn guard(&self, tag: &Tag, expected: u64) -> Guard {
        match self.shard(tag).lock().get(tag, Instant::now()) {
            Some(known) if !known.deleted && known.version == expected => Guard::Mark(known.mark),
            Some(known) if known.version > expected => Guard::Refuse,
            _ => Guard::Nothing,
        }
    }

    /// Compares what is there with what is known, and takes it over. `asked_at`: before the question was sent.
    pub fn found(
        &self,
        (tag, id): (&Tag, &str),
        header: Option<&Header>,
        asked_at: Instant,
        lasts: Option<Lasts>,
    ) -> Result<(), Behind> {
        let mut shard = self.shard(tag).lock();
        let known = shard.get(tag, asked_at);
        // An answer that was asked for before the newest version was known may be older without anything being wrong.
        if known.as_ref().is_some_and(|known| known.since > asked_at) {
            return Ok(());
        }
        let behind = known.as_ref().filter(|known| known.is_missing_in(header, asked_at));
        let behind = behind.map(|known| Behind { known: known.version, reported: known.reported });
        match header {
            None => shard.forget(tag),
            Some(header) => {
                let same = known.filter(|known| known.incarnation == header.incarnation && behind.is_none());
                shard.put(tag, Known::from(id, header, same, lasts), self.max);
            }
        }
        behind.map_or(Ok(()), Err)
    }

    /// Compares what is there with what is known, for nobody: who asks for it next is still told.
    pub fn audit(&self, tag: &Tag, header: Option<&Header>, asked_at: Instant) -> Audit {
        let mut shard = self.shard(tag).lock();
        let Some(known) = shard.get(tag, asked_at) else { return Audit::Sound };
        if known.since > asked_at {
            return Audit::Again;
        }
        if known.reported || !known.is_missing_in(header, asked_at) {
            return Audit::Sound;
        }
        let Generations { young, old } = &mut *shard;
        if let Some(known) = young.get_mut(tag).or_else(|| old.get_mut(tag)) {
            known.reported = true;
        }
        Audit::Lost { id: known.id, known: known.version }
    }

    /// The sessions in slots that `wanted` accepts.
    pub fn in_slots(&self, wanted: impl Fn(u16) -> bool) -> Vec<Tag> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(shard.young.keys().filter(|tag| wanted(tag.slot())).cloned());
            let old = shard.old.keys().filter(|tag| wanted(tag.slot()) && !shard.young.contains_key(*tag));
            found.extend(old.cloned());
        }
        found
    }

    /// Notes an acknowledged write.
    pub fn wrote(&self, (tag, id): (&Tag, &str), header: &Header, lasts: Lasts) {
        let mut shard = self.shard(tag).lock();
        let known = shard.get(tag, lasts.sent).filter(|known| known.incarnation == header.incarnation);
        if known.as_ref().is_none_or(|known| known.version < header.version) {
            let next = Known::from(id, header, known, Some(lasts));
            shard.put(tag, next, self.max);
        }
    }

    /// Whether the session's entry among its user's is due for renewal, as far as this replica knows.
    pub fn relist_due(&self, tag: &Tag) -> bool {
        let now = Instant::now();
        self.shard(tag).lock().get(tag, now).and_then(|known| known.relist).is_none_or(|due| due <= now)
    }

    /// Notes that the entry among the user's sessions was renewed.
    pub fn relisted(&self, tag: &Tag, ttl: Duration) {
        let mut shard = self.shard(tag).lock();
        let now = Instant::now();
        if let Some(mut known) = shard.get(tag, now) {
            known.relist = Some(now + ttl / 3);
            shard.put(tag, known, self.max);
        }
    }
}

impl Known {
    fn from(id: &str, header: &Header, before: Option<Known>, lasts: Option<Lasts>) -> Self {
        let expires = |lasts: Lasts| lasts.sent + (lasts.ttl - lasts.ttl / 100).saturating_sub(CLOCK_MARGIN);
        let now = Instant::now();
        let unchanged = before.as_ref().filter(|before| before.version == header.version);
        Known {
            id: before.as_ref().map_or_else(|| id.into(), |before| before.id.clone()),
            incarnation: header.incarnation,
            version: header.version,
            mark: header.mark_of(header.version).unwrap_or_default(),
            deleted: !header.live,
            at: now,
            since: unchanged.map_or(now, |before| before.since),
            expires: lasts.map(expires).or_else(|| unchanged.and_then(|before| before.expires)),
            reported: false,
            relist: before.as_ref().and_then(|before| before.relist),
        }
    }

    /// Whether what is there lacks this version.
    fn is_missing_in(&self, found: Option<&Header>, now: Instant) -> bool {
        match found {
            // Deleted sessions leave a record for as long as versions are remembered, so nothing is there only after a
            // loss or an expiry.
            None => !self.deleted && self.expires.is_some_and(|expires| now < expires),
            Some(found) if found.incarnation != self.incarnation => false,
            Some(found) if found.version < self.version => true,
            Some(found) => found.mark_of(self.version).is_some_and(|mark| mark != self.mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Address, RedisConfig};
    use crate::keys::Keys;

    fn tag(id: &str) -> Tag {
        Keys::new(&RedisConfig::standalone(Address::new("h", 1))).tag(&[id])
    }

    fn version(n: u8) -> Header {
        (2..=n).fold(Header::first(7, [1; 4], "ann"), |header, n| header.next([n; 4]))
    }

    fn behind(known: u64) -> Behind {
        Behind { known, reported: false }
    }

    fn found(seen: &Seen, tag: &Tag, header: Option<&Header>, asked_at: Instant) -> Result<(), Behind> {
        seen.found((tag, "s"), header, asked_at, None)
    }

    async fn tick() -> Instant {
        tokio::time::advance(Duration::from_millis(1)).await;
        Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn what_went_back_is_told_once() {
        let (seen, tag) = (Seen::new(100), tag("s"));
        assert_eq!(found(&seen, &tag, Some(&version(5)), tick().await), Ok(()));
        assert_eq!(found(&seen, &tag, Some(&version(9)), tick().await), Ok(()));
        assert_eq!(found(&seen, &tag, Some(&version(7)), tick().await), Err(behind(9)));
        assert_eq!(found(&seen, &tag, Some(&version(7)), tick().await), Ok(()), "from now on this counts");
        let other = version(6).next([99; 4]);
        assert_eq!(found(&seen, &tag, Some(&other), tick().await), Err(behind(7)), "another version 7");
        let ahead = version(6).next([98; 4]).next([8; 4]).next([9; 4]);
        assert_eq!(found(&seen, &tag, Some(&ahead), tick().await), Err(behind(7)), "overtaken, and still told");
        let anew = Header::first(8, [1; 4], "ann");
        assert_eq!(found(&seen, &tag, Some(&anew), tick().await), Ok(()), "another session under the same id");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_under_way_during_a_write_prove_nothing() {
        let (seen, tag) = (Seen::new(100), tag("s"));
        let asked = tick().await;
        let sent = tick().await;
        tick().await;
        seen.wrote((&tag, "s"), &version(3), Lasts { sent, ttl: Duration::from_secs(100) });
        assert_eq!(found(&seen, &tag, Some(&version(2)), asked), Ok(()));
        assert_eq!(seen.guard(&tag, 3), Guard::Mark([3; 4]), "and replace nothing");
        assert_eq!((seen.guard(&tag, 2), seen.guard(&tag, 4)), (Guard::Refuse, Guard::Nothing));
        assert_eq!(found(&seen, &tag, Some(&version(2)), tick().await), Err(behind(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_not_there_was_deleted_expired_or_lost() {
        let (seen, tag) = (Seen::new(100), tag("s"));
        let ttl = Duration::from_secs(100);
        let wrote = async || Lasts { sent: tick().await, ttl };
        seen.wrote((&tag, "s"), &version(2), wrote().await);
        assert_eq!(found(&seen, &tag, None, tick().await), Err(behind(2)));
        assert_eq!(found(&seen, &tag, None, tick().await), Ok(()));
        seen.wrote((&tag, "s"), &version(2), wrote().await);
        tokio::time::advance(ttl - Duration::from_secs(1)).await;
        assert_eq!(found(&seen, &tag, None, tick().await), Ok(()), "expired");
        seen.wrote((&tag, "s"), &version(3).deleted(), wrote().await);
        assert_eq!(found(&seen, &tag, None, tick().await), Ok(()), "deleted");
        seen.wrote((&tag, "s"), &version(3).deleted(), wrote().await);
        assert_eq!(found(&seen, &tag, Some(&version(2)), tick().await), Err(behind(3)), "back from the dead");
        seen.wrote((&tag, "s"), &version(9), wrote().await);
        tokio::time::advance(HORIZON).await;
        assert_eq!(found(&seen, &tag, Some(&version(2)), tick().await), Ok(()), "too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_that_nobody_asked_about_is_reported_once_and_told_all_the_same() {
        let (seen, tag) = (Seen::new(100), tag("s"));
        let lost = |known| Audit::Lost { id: "s".into(), known };
        seen.wrote((&tag, "s"), &version(5), Lasts { sent: tick().await, ttl: Duration::from_secs(100) });
        let asked = tick().await;
        assert_eq!(seen.audit(&tag, Some(&version(5)), asked), Audit::Sound);
        assert_eq!(seen.audit(&tag, Some(&version(6)), asked), Audit::Sound);
        tick().await;
        seen.wrote((&tag, "s"), &version(6), Lasts { sent: tick().await, ttl: Duration::from_secs(100) });
        assert_eq!(seen.audit(&tag, Some(&version(4)), asked), Audit::Again, "written meanwhile");
        assert_eq!(seen.audit(&tag, Some(&version(4)), tick().await), lost(6));
        assert_eq!(seen.audit(&tag, Some(&version(4)), tick().await), Audit::Sound, "once");
        let told = Err(Behind { known: 6, reported: true });
        assert_eq!(found(&seen, &tag, Some(&version(4)), tick().await), told);
        assert_eq!(found(&seen, &tag, Some(&version(4)), tick().await), Ok(()));
        seen.wrote((&tag, "s"), &version(5), Lasts { sent: tick().await, ttl: Duration::from_secs(100) });
        assert_eq!(seen.audit(&tag, None, tick().await), lost(5), "another loss");
        assert_eq!(seen.in_slots(|slot| slot == tag.slot()), std::slice::from_ref(&tag));
        assert_eq!(seen.in_slots(|slot| slot != tag.slot()), []);
        seen.found((&tag, "s"), None, tick().await, None).unwrap_err();
        let read = Lasts { sent: tick().await, ttl: Duration::from_secs(100) };
        seen.found((&tag, "s"), Some(&version(2)), read.sent, Some(read)).unwrap();
        assert_eq!(seen.audit(&tag, None, tick().await), lost(2), "what was only read");
        tokio::time::advance(Duration::from_secs(99)).await;
        assert_eq!(seen.audit(&tag, None, tick().await), Audit::Sound, "expired");
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_is_bounded() {
        let seen = Seen::new(3200);
        for n in 0..20_000 {
            found(&seen, &tag(&n.to_string()), Some(&version(2)), Instant::now()).unwrap();
        }
        let held: usize = seen
            .shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                shard.young.len() + shard.old.len()
            })
            .sum();
        assert!((1600..=3200).contains(&held), "{held}");
        assert_eq!(seen.guard(&tag("19999"), 2), Guard::Mark([2; 4]));
    }
}
