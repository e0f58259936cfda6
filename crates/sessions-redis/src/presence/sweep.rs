//! What incarnations that are gone left behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use plenum_channels::{Census, Incarnation};
use tokio::time::Instant;

use super::{Inner, calls, fence};
use crate::client::{Call, Value};

/// Leftovers that wait to be removed; of more, later reads and touches tell again.
const MAX_WAITING: usize = 200_000;

/// Leftovers removed with one write.
const AT_ONCE: usize = 256;

/// Incarnations watched; all that is known of them is forgotten beyond it, and learned again.
const MAX_ABSENT: usize = 4096;

/// Life of a fence.
const FENCE_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Since when incarnations have not counted, as far as this replica could judge.
struct Absences {
    patience: Duration,
    since: HashMap<Incarnation, Instant>,
}

impl Absences {
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: HashMap::new() }
    }

    /// Whether nobody can be harmed when what this incarnation left is removed.
    pub fn over(&mut self, of: Incarnation, census: &Census) -> bool {
        if census.counts(of) {
            self.since.remove(&of);
            return false;
        }
        // This replica knows best what it was.
        if of.replica == census.own.replica {
            return of.generation < census.own.generation;
        }
        if !census.judging {
            self.since.clear();
            return false;
        }
        if self.since.len() >= MAX_ABSENT {
            self.since.clear();
        }
        self.since.entry(of).or_insert_with(Instant::now).elapsed() >= self.patience
    }
}

/// Leftovers, and the incarnations that left them.
pub(super) struct Sweeps {
    absences: Absences,
    waiting: VecDeque<(Arc<str>, Incarnation)>,
    known: HashSet<(Arc<str>, Incarnation)>,
    /// Others that counted when last looked at, then those that stopped and whose channels were not looked at yet.
    counted: HashSet<Incarnation>,
    stopped: HashSet<Incarnation>,
    fenced: HashSet<Incarnation>,
}

impl Sweeps {
    pub fn new(patience: Duration) -> Self {
        Self {
            absences: Absences::new(patience),
            waiting: VecDeque::new(),
            known: HashSet::new(),
            counted: HashSet::new(),
            stopped: HashSet::new(),
            fenced: HashSet::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn push(&mut self, channel: Arc<str>, of: Incarnation) {
        if self.waiting.len() < MAX_WAITING && self.known.insert((channel.clone(), of)) {
            self.waiting.push_back((channel, of));
        }
    }

    /// A channel holds entries of these, which do not count.
    pub fn found(&mut self, channel: &str, gone: &[Incarnation], census: &Census) {
        for of in gone {
            if self.absences.over(*of, census) {
                self.push(channel.into(), *of);
            }
        }
    }

    /// Whether somebody has been gone for so long now that the channels shared with it are to be looked at.
    pub fn deaths(&mut self, census: &Census) -> bool {
        let alive = census.alive.iter();
        let alive = alive.map(|(replica, generation)| Incarnation { replica: *replica, generation: *generation });
        let counted = std::mem::replace(&mut self.counted, alive.filter(|one| *one != census.own).collect());
        self.stopped.extend(counted.into_iter().filter(|one| !census.counts(*one)));
        let before = self.stopped.len();
        let absences = &mut self.absences;
        self.stopped.retain(|one| !census.counts(*one) && !absences.over(*one, census));
        self.stopped.len() < before
    }

    fn take(&mut self) -> Vec<(Arc<str>, Incarnation)> {
        let count = self.waiting.len().min(AT_ONCE);
        let taken: Vec<_> = self.waiting.drain(..count).collect();
        for one in &taken {
            self.known.remove(one);
        }
        taken
    }
}

impl Inner {
    /// Removes leftovers until there are none, something fails, or it is time for something else.
    pub(super) async fn sweep(&self, until: Instant) {
        while Instant::now() < until {
            let taken = self.sweeps.lock().take();
            if taken.is_empty() || !self.sweep_some(taken).await {
                return;
            }
        }
    }

    async fn sweep_some(&self, mut taken: Vec<(Arc<str>, Incarnation)>) -> bool {
        let census = self.replicas.census();
        // Somebody may have been heard again.
        taken.retain(|(_, of)| !census.counts(*of));
        let owners: HashSet<Incarnation> = taken.iter().map(|(_, of)| *of).collect();
        for of in owners {
            if of.replica != census.own.replica && !self.raise_fence(of).await {
                taken.into_iter().for_each(|(channel, of)| self.sweeps.lock().push(channel, of));
                return false;
            }
        }
        let sweeps = taken.iter().map(|(channel, of)| calls::sweep(&self.base(channel), *of)).collect();
        let mut clean = true;
        for ((channel, of), answer) in taken.into_iter().zip(self.background.call_all(sweeps).await) {
            clean &= answer.is_ok();
            if !answer.is_ok_and(|left| left.as_i64() == Some(1)) {
                self.sweeps.lock().push(channel, of);
            }
        }
        clean
    }

    async fn raise_fence(&self, of: Incarnation) -> bool {
        if self.sweeps.lock().fenced.contains(&of) {
            return true;
        }
        let key = fence(self.redis.keys(), of);
        let life = Value::Integer(FENCE_LIFE.as_millis() as i64);
        let raise = Call::command("SET", &key, [Value::from("1"), Value::from("PX"), life]).repeatable();
        let raised = self.background.call(raise).await.is_ok();
        if raised {
            let mut sweeps = self.sweeps.lock();
            if sweeps.fenced.len() >= MAX_ABSENT {
                sweeps.fenced.clear();
            }
            sweeps.fenced.insert(of);
        }
        raised
    }
}
