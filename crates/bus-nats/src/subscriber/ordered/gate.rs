//! Whether messages may be begun as they come.
//!
//! What was delivered and not acknowledged is with this process, with another one, or was lost on its way and comes again
//! after the wait for its acknowledgement. Whatever is later in the order has to wait for it. So the gate is closed where
//! that can be: when this process is pinned (the server forgets a pin with its leader and may give it to another process at
//! any time), and when the numbers of deliveries jump. It opens when JetStream waits for nothing that is not here.

use std::time::{Duration, Instant};

/// Between two looks at what JetStream waits for.
const LOOK: Duration = Duration::from_millis(100);
/// How long JetStream may leave that question without an answer; longer than an election.
const PATIENCE: Duration = Duration::from_secs(20);

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

    pub(super) fn pin(&self) -> Option<&str> {
        self.pin.as_deref()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
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
    }
}
