//! Whether messages may be begun as they come.
//!
//! What was delivered and not acknowledged is with this process, with another one, or was lost on its way and comes again
//! after the wait for its acknowledgement. Whatever is later in the order has to wait for it. So the gate is closed where
//! that can be: when this process is pinned (the server forgets a pin with its leader and may give it to another process at
//! any time), when the numbers of deliveries jump, and when the reader stood still. It opens when JetStream waits for
//! nothing that came before what is here.

use std::time::{Duration, Instant};

use super::unsettled::Census;

/// Between two looks at what JetStream waits for.
const LOOK: Duration = Duration::from_millis(100);
/// How long JetStream may leave that question without an answer; longer than an election.
const PATIENCE: Duration = Duration::from_secs(20);

/// What JetStream says of the consumer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    /// Messages delivered, to whomever, and not acknowledged.
    pub(super) pending: usize,
    /// Those of them that were delivered more than once.
    pub(super) redelivered: usize,
    /// Number of the newest delivery.
    pub(super) deliveries: u64,
    /// The highest sequence that was delivered.
    pub(super) newest: u64,
}

/// What comes of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What waits may be begun.
    Begin,
    Wait,
    /// JetStream does not wait for all that waits here: it has to come again.
    LetGo,
}

#[derive(Default)]
pub(super) struct Gate {
    pin: Option<String>,
    /// Number of the newest delivery.
    last: u64,
    open: bool,
    /// When to look; only while something waits.
    due: Option<Instant>,
    /// Since when there is no answer.
    unanswered: Option<Instant>,
    /// What was here when it was more than JetStream waits for.
    excess: Option<Census>,
    full: bool,
}

impl Gate {
    /// A message came with this pin and number of its delivery. Whether it may be begun.
    pub(super) fn passes(&mut self, pin: Option<&str>, number: u64) -> bool {
        if self.pin.as_deref() != pin {
            self.pin = pin.map(str::to_owned);
            self.open = false;
        }
        // A new leader may count from earlier on, and delivers from there.
        if number > self.last + 1 {
            self.open = false;
        }
        self.last = number;
        if !self.open {
            self.due.get_or_insert_with(Instant::now);
        }
        self.open
    }

    /// Messages may have gone to another process meanwhile.
    pub(super) fn close(&mut self) {
        self.open = false;
    }

    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether no more are to be taken for now: there is no room for them, and none that the others wait for is coming.
    pub(super) fn is_full(&self) -> bool {
        self.due.is_some() && self.full
    }

    pub(super) fn look_later(&mut self) {
        self.due = Some(Instant::now() + LOOK);
    }

    /// Whether JetStream answered. False if it has not for too long.
    pub(super) fn answered(&mut self, answered: bool) -> bool {
        let now = Instant::now();
        let since = *self.unanswered.get_or_insert(now);
        if answered {
            self.unanswered = None;
        }
        answered || now.saturating_duration_since(since) < PATIENCE
    }

    /// What to do where these are here, and no more came or went while JetStream was asked.
    pub(super) fn judge(&mut self, here: Census, told: Told, room: bool) -> Verdict {
        self.full = !room && told.redelivered <= here.redelivered;
        let excess = std::mem::take(&mut self.excess);
        // A leader that forgot deliveries of the one before does not count them.
        if told.newest < here.newest {
            return Verdict::Wait;
        }
        let Some(missing) = told.pending.checked_sub(here.count) else {
            // Removed from the stream, or an acknowledgement overtook the count.
            self.excess = Some(here);
            return if excess == Some(here) { Verdict::LetGo } else { Verdict::Wait };
        };
        // Those on their way here come after all that is here, unless one of them is delivered again.
        let on_the_way = told.deliveries.saturating_sub(self.last);
        if missing == 0 || (missing as u64 <= on_the_way && told.redelivered == here.redelivered) {
            Verdict::Begin
        } else {
            Verdict::Wait
        }
    }

    /// Nothing waits any more, but what comes next has to.
    pub(super) fn emptied(&mut self) {
        self.due = None;
    }

    pub(super) fn open(&mut self) {
        (self.open, self.due) = (true, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_for_another_pin_and_for_a_delivery_that_is_missing() {
        let mut gate = Gate::default();
        assert!(gate.due().is_none());
        assert!(!gate.passes(Some("a"), 1) && gate.due().is_some());
        assert!(!gate.passes(Some("a"), 2));
        gate.open();
        assert!(gate.due().is_none());
        assert!(gate.passes(Some("a"), 3) && gate.passes(Some("a"), 4));
        assert!(gate.passes(Some("a"), 2) && gate.passes(Some("a"), 3), "counted from earlier on");
        assert!(!gate.passes(Some("a"), 5) && gate.due().is_some());
        gate.emptied();
        assert!(gate.due().is_none());
        assert!(!gate.passes(Some("a"), 6) && gate.due().is_some());
        gate.open();
        assert!(!gate.passes(Some("b"), 7));
        gate.open();
        assert!(gate.passes(Some("b"), 8) && !gate.passes(None, 9));
        gate.open();
        gate.close();
        assert!(!gate.passes(None, 10) && gate.due().is_some());
    }

    #[test]
    fn opens_when_nothing_that_came_before_is_elsewhere() {
        let judge = |last, here: (usize, usize, u64), told: (usize, usize, u64, u64)| {
            let mut gate = Gate::default();
            gate.passes(None, last);
            let here = Census { count: here.0, redelivered: here.1, newest: here.2, changes: 0 };
            let told = Told { pending: told.0, redelivered: told.1, deliveries: told.2, newest: told.3 };
            gate.judge(here, told, true)
        };
        assert_eq!(judge(9, (9, 0, 9), (9, 0, 9, 9)), Verdict::Begin, "all is here");
        assert_eq!(judge(9, (9, 0, 9), (99, 0, 99, 99)), Verdict::Begin, "the rest is newer and on its way");
        assert_eq!(judge(9, (9, 0, 9), (99, 0, 98, 99)), Verdict::Wait, "one is elsewhere");
        assert_eq!(judge(9, (9, 0, 9), (99, 1, 99, 99)), Verdict::Wait, "one on its way may be older");
        assert_eq!(judge(9, (9, 3, 9), (99, 3, 99, 99)), Verdict::Begin, "all older ones are here");
        assert_eq!(judge(9, (9, 0, 9), (9, 0, 9, 8)), Verdict::Wait, "the leader forgot one");
    }

    #[test]
    fn what_jetstream_does_not_wait_for_has_to_come_again() {
        let mut gate = Gate::default();
        gate.passes(None, 9);
        let here = Census { count: 9, redelivered: 0, newest: 9, changes: 9 };
        let told = Told { pending: 8, redelivered: 0, deliveries: 9, newest: 9 };
        assert_eq!(gate.judge(here, told, true), Verdict::Wait, "an acknowledgement may have overtaken the count");
        assert_eq!(gate.judge(Census { changes: 10, ..here }, told, true), Verdict::Wait);
        assert_eq!(gate.judge(Census { changes: 10, ..here }, told, true), Verdict::LetGo);
        assert_eq!(gate.judge(here, told, true), Verdict::Wait);
        assert_eq!(gate.judge(here, Told { pending: 9, ..told }, true), Verdict::Begin);
    }

    #[test]
    fn takes_no_more_without_room_unless_older_ones_come() {
        let mut gate = Gate::default();
        gate.passes(None, 9);
        let here = Census { count: 9, redelivered: 1, newest: 9, changes: 9 };
        let told = Told { pending: 20, redelivered: 1, deliveries: 9, newest: 20 };
        assert_eq!((gate.judge(here, told, true), gate.is_full()), (Verdict::Wait, false));
        assert_eq!((gate.judge(here, told, false), gate.is_full()), (Verdict::Wait, true));
        assert_eq!((gate.judge(here, Told { redelivered: 2, ..told }, false), gate.is_full()), (Verdict::Wait, false));
        gate.judge(here, told, false);
        gate.emptied();
        assert!(!gate.is_full());
    }
}
