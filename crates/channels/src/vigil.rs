//! The rules of heartbeats, as one state without clock or network: who counts, who does not, and who may say so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use crate::{Census, Incarnation};

/// How often a replica shows that it lives.
pub const BEAT: Duration = Duration::from_millis(500);

/// A replica whose sign has not changed for so long does not count.
const READERS_PATIENCE: Duration = Duration::from_secs(4);

/// A replica whose own sign did not come back for so long is another one from then on: before any reader says so.
const OWN_PATIENCE: Duration = Duration::from_secs(3);

/// An own sign that comes back later than this may have waited in a buffer while those of others were lost.
const TIMELY: Duration = Duration::from_millis(1500);

/// Own signs that came back prove that this replica hears, if they are not further apart than this.
const UNBROKEN: Duration = Duration::from_secs(2);

/// What is known of a replica that is gone is kept so long, so that a late sign does not bring it back.
const REMEMBER: Duration = Duration::from_secs(60);

/// Replicas that are watched; signs of more are passed over.
const MAX_REPLICAS: usize = 4096;

/// Own signs that may be on their way.
const MAX_SENT: usize = 64;

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whose.
    pub from: Incarnation,
    /// Greater than that of every earlier sign of the replica.
    pub counter: u64,
    /// It leaves: this is its last sign.
    pub resigned: bool,
}

/// What one replica knows of all by their signs of life, its own among them.
///
/// - A replica counts from its first sign until it has been silent for 4 s during which this one heard itself without
///   interruption: who hears nothing judges nobody.
/// - An own sign that stays away for more than 3 s begins another generation of this replica, at the latest in the
///   first [`Vigil::census`] after the lapse.
#[derive(Debug)]
pub struct Vigil {
    own: Incarnation,
    resigned: bool,
    counter: u64,
    /// Own signs of this generation that have not come back, with the time when they were sent.
    sent: VecDeque<(u64, Instant)>,
    /// When the newest own sign of this generation that came back was sent.
    confirmed: Option<Instant>,
    /// Since when and until when this replica heard itself without interruption.
    heard: Option<(Instant, Instant)>,
    others: HashMap<u64, Other>,
}

#[derive(Debug)]
struct Other {
    generation: u32,
    counter: u64,
    changed: Instant,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Counts,
    Silent,
    Resigned,
}

impl Vigil {
    /// `replica` is a random number of this run. It counts for itself from the start.
    pub fn new(replica: u64) -> Self {
        Self {
            own: Incarnation { replica, generation: 1 },
            resigned: false,
            counter: 0,
            sent: VecDeque::new(),
            confirmed: None,
            heard: None,
            others: HashMap::new(),
        }
    }

    /// The next own sign, to be sent now.
    pub fn beat(&mut self, now: Instant) -> Beat {
        self.notice_lapse(now);
        self.counter += 1;
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((self.counter, now));
        Beat { from: self.own, counter: self.counter, resigned: self.resigned }
    }

    /// Takes another generation before a lapse asks for it.
    pub fn begin_anew(&mut self) {
        self.own.generation += 1;
        self.confirmed = None;
        self.sent.clear();
    }

    /// This replica leaves; the next [`Vigil::beat`] says so to the others.
    pub fn resign(&mut self) {
        self.resigned = true;
    }

    /// Takes a sign in. True: it came from a replica that did not count until now and wants to know who is there.
    pub fn hear(&mut self, beat: Beat, now: Instant) -> bool {
        if beat.from.replica == self.own.replica {
            self.hear_own(beat, now);
            return false;
        }
        self.judge();
        let standing = if beat.resigned { Standing::Resigned } else { Standing::Counts };
        let heard = Other { generation: beat.from.generation, counter: beat.counter, changed: now, standing };
        let Some(known) = self.others.get_mut(&beat.from.replica) else {
            if self.others.len() >= MAX_REPLICAS {
                self.others.retain(|_, other| other.standing == Standing::Counts);
            }
            if self.others.len() >= MAX_REPLICAS {
                return false;
            }
            self.others.insert(beat.from.replica, heard);
            return !beat.resigned;
        };
        let stale = (heard.generation, heard.counter) <= (known.generation, known.counter);
        let left = known.standing == Standing::Resigned && heard.generation == known.generation;
        if stale || left {
            return false;
        }
        let returns = known.standing != Standing::Counts && !beat.resigned;
        *known = heard;
        returns
    }

    fn hear_own(&mut self, beat: Beat, now: Instant) {
        self.notice_lapse(now);
        let position = self.sent.iter().position(|(counter, _)| *counter == beat.counter);
        let Some((_, at)) = position.and_then(|position| self.sent.drain(..=position).next_back()) else { return };
        self.confirmed = self.confirmed.max(Some(at));
        if now.saturating_duration_since(at) > TIMELY {
            return;
        }
        self.heard = match self.heard {
            Some((since, until)) if at.saturating_duration_since(until) <= UNBROKEN => Some((since, at)),
            _ => Some((at, at)),
        };
        self.judge();
    }

    fn notice_lapse(&mut self, now: Instant) {
        let lapsed = self.confirmed.is_some_and(|at| now.saturating_duration_since(at) > OWN_PATIENCE);
        if lapsed && !self.resigned {
            self.begin_anew();
        }
    }

    /// Takes those for gone that were silent while this replica heard itself.
    fn judge(&mut self) {
        let Some((since, until)) = self.heard else { return };
        self.others.retain(|_, other| {
            let silence = until.saturating_duration_since(other.changed.max(since));
            if other.standing == Standing::Counts && silence >= READERS_PATIENCE {
                other.standing = Standing::Silent;
            }
            other.standing == Standing::Counts || silence < REMEMBER
        });
    }

    /// The view at this moment, and until when it is true if nothing is heard.
    pub fn census(&mut self, now: Instant) -> (Census, Instant) {
        self.notice_lapse(now);
        let counted = self.others.iter().filter(|(_, other)| other.standing == Standing::Counts);
        let mut alive: HashMap<u64, u32> = counted.map(|(replica, other)| (*replica, other.generation)).collect();
        if !self.resigned {
            alive.insert(self.own.replica, self.own.generation);
        }
        let hears = |(since, until): (Instant, Instant)| {
            until - since >= READERS_PATIENCE && now.saturating_duration_since(until) <= UNBROKEN
        };
        let judging = !self.resigned && self.heard.is_some_and(hears);
        let lapse = self.confirmed.map(|at| at + OWN_PATIENCE);
        let deaf = self.heard.filter(|_| judging).map(|(_, until)| until + UNBROKEN);
        let valid = lapse.into_iter().chain(deaf).min().unwrap_or(now + REMEMBER);
        (Census { own: self.own, alive: Arc::new(alive), judging }, valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn beat(replica: u64, generation: u32, counter: u64) -> Beat {
        Beat { from: Incarnation { replica, generation }, counter, resigned: false }
    }

    /// Beats and hears itself for so long; the time afterwards.
    fn live(vigil: &mut Vigil, mut now: Instant, beats: u32) -> Instant {
        for _ in 0..beats {
            let own = vigil.beat(now);
            vigil.hear(own, now + 5 * MS);
            now += BEAT;
        }
        now
    }

    #[test]
    fn silence_counts_only_while_one_hears_oneself() {
        let (mut vigil, start) = (Vigil::new(1), Instant::now());
        let mut now = live(&mut vigil, start, 4);
        assert!(vigil.hear(beat(2, 1, 1), now), "a newcomer");
        assert!(!vigil.hear(beat(2, 1, 2), now));
        assert!(!vigil.census(now).0.judging, "it has listened for 2 s");
        now = live(&mut vigil, now, 7);
        assert!(vigil.census(now).0.alive.contains_key(&2), "silent for 3.5 s");
        now = live(&mut vigil, now, 2);
        let (census, _) = vigil.census(now);
        assert!(!census.alive.contains_key(&2), "silent for 4 s");
        assert!(census.judging && census.alive.contains_key(&1));
        assert!(vigil.hear(beat(2, 1, 3), now), "it was only cut off");
        // Nothing comes in any more, for long.
        let deaf = now + Duration::from_secs(30);
        let (census, _) = vigil.census(deaf);
        assert!(!census.judging && census.alive.contains_key(&2), "who hears nothing judges nobody");
        // The own sign is back, the other's is not yet.
        now = live(&mut vigil, deaf, 8);
        assert!(vigil.census(now).0.alive.contains_key(&2));
        now = live(&mut vigil, now, 2);
        assert!(!vigil.census(now).0.alive.contains_key(&2), "4 s of hearing oneself without a break");
    }

    #[test]
    fn signs_that_waited_in_a_buffer_prove_nothing() {
        let (mut vigil, start) = (Vigil::new(1), Instant::now());
        vigil.hear(beat(2, 1, 1), start);
        let own: Vec<Beat> = (0..14).map(|at| vigil.beat(start + at * BEAT)).collect();
        let late = start + Duration::from_secs(7);
        for own in own {
            vigil.hear(own, late);
        }
        assert!(vigil.census(late).0.alive.contains_key(&2));
    }

    #[test]
    fn a_lapse_of_three_seconds_begins_another_generation() {
        let (mut vigil, start) = (Vigil::new(1), Instant::now());
        assert_eq!(vigil.census(start + 60_000 * MS).0.own.generation, 1, "a sign that never came back cannot lapse");
        let now = live(&mut vigil, start, 3);
        let last = now - BEAT;
        let (census, valid) = vigil.census(last + 3000 * MS);
        assert_eq!((census.own.generation, valid), (1, last + 3000 * MS));
        let old = vigil.beat(last + 3000 * MS);
        let (census, _) = vigil.census(last + 3001 * MS);
        assert_eq!((census.own.generation, census.alive[&1]), (2, 2));
        vigil.hear(old, last + 3002 * MS);
        assert_eq!(vigil.census(last + 60_000 * MS).0.own.generation, 2, "once for each lapse");
        let now = live(&mut vigil, last + 60_000 * MS, 1);
        assert_eq!(vigil.census(now + 3001 * MS).0.own.generation, 3);
    }

    #[test]
    fn the_newest_generation_counts_and_older_signs_change_nothing() {
        let (mut vigil, start) = (Vigil::new(1), Instant::now());
        vigil.hear(beat(2, 2, 9), start);
        vigil.hear(beat(2, 1, 10), start);
        assert_eq!(vigil.census(start).0.alive[&2], 2);
        let mut resigning = beat(2, 2, 10);
        resigning.resigned = true;
        assert!(!vigil.hear(resigning, start));
        assert!(!vigil.hear(beat(2, 2, 11), start), "a sign that comes late");
        assert!(!vigil.census(start).0.alive.contains_key(&2));
        assert!(vigil.hear(beat(2, 3, 12), start));
        assert_eq!(vigil.census(start).0.alive[&2], 3);
        vigil.resign();
        assert!(vigil.beat(start).resigned);
        assert!(!vigil.census(start).0.alive.contains_key(&1));
    }

    #[test]
    fn more_replicas_than_can_be_watched_are_passed_over() {
        let (mut vigil, start) = (Vigil::new(1), Instant::now());
        for replica in 2..MAX_REPLICAS as u64 + 100 {
            vigil.hear(beat(replica, 1, 1), start);
        }
        assert_eq!(vigil.census(start).0.alive.len(), MAX_REPLICAS + 1);
    }
}
