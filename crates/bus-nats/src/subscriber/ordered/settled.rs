//! Messages that were settled: one that comes again, because its acknowledgement was late or lost, is not carried out after
//! what came later.

use std::collections::BTreeMap;

/// Messages kept above the floor, at most; the oldest are forgotten first. Reached only while one message is tried for long.
const MOST: usize = 128 * 1024;

#[derive(Default)]
pub(super) struct Settled {
    /// When their consumer was made, Unix nanoseconds. One that was made anew delivers everything again, and rightly so.
    consumer: Option<i128>,
    /// When each was stored, by its sequence: a stream that went back uses sequences again.
    stored: BTreeMap<u64, u64>,
    /// Whatever has at most this sequence, and was stored by this time, is settled.
    floor: (u64, u64),
}

impl Settled {
    pub(super) fn add(&mut self, sequence: u64, stored_ns: u64) {
        self.stored.insert(sequence, stored_ns);
        if self.stored.len() > MOST {
            self.stored.pop_first();
        }
    }

    pub(super) fn holds(&self, sequence: u64, stored_ns: u64) -> bool {
        let (floor, newest) = self.floor;
        (sequence <= floor && stored_ns <= newest) || self.stored.get(&sequence) == Some(&stored_ns)
    }

    /// Messages come from this consumer now.
    pub(super) fn come_from(&mut self, consumer: i128) {
        if self.consumer != Some(consumer) {
            *self = Settled { consumer: Some(consumer), ..Settled::default() };
        }
    }

    /// The consumer has acknowledgements of everything up to this sequence.
    pub(super) fn confirm(&mut self, consumer: i128, floor: u64) {
        if self.consumer != Some(consumer) {
            return;
        }
        while let Some(first) = self.stored.first_entry().filter(|first| *first.key() <= floor) {
            let (sequence, stored) = first.remove_entry();
            self.floor = (self.floor.0.max(sequence), self.floor.1.max(stored));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_settled_stays_so_below_the_floor_until_its_sequence_is_another_message() {
        let mut settled = Settled::default();
        settled.come_from(1);
        for sequence in 1..=10 {
            settled.add(sequence, sequence * 10);
        }
        assert!(settled.holds(7, 70) && !settled.holds(7, 200) && !settled.holds(11, 110));
        settled.confirm(2, 10);
        assert_eq!(settled.stored.len(), 10, "the floor of another consumer");
        settled.confirm(1, 5);
        assert_eq!(settled.stored.len(), 5);
        assert!(settled.holds(3, 30) && settled.holds(7, 70) && !settled.holds(3, 200));
        settled.come_from(1);
        assert!(settled.holds(3, 30));
        settled.come_from(2);
        assert!(!settled.holds(3, 30) && !settled.holds(7, 70));
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut settled = Settled::default();
        for sequence in 1..=MOST as u64 + 1 {
            settled.add(sequence, 1);
        }
        assert!(!settled.holds(1, 1) && settled.holds(2, 1) && settled.holds(MOST as u64 + 1, 1));
    }
}
