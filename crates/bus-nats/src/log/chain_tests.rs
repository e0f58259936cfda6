//! The chain check against a model: every order in which few messages can be lost, doubled, swapped and trimmed, and
//! random long ones.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::chain::{Chain, Filled, Gap, Incoming, MAX_HELD, Output};

fn incoming(seq: u64, previous: u64, front_safe: bool) -> Incoming<u64> {
    Incoming { seq, previous, front_safe, bytes: 1, item: seq }
}

fn live(chain: &mut Chain<u64>, seq: u64, previous: u64, front_safe: bool) -> Vec<Output<u64>> {
    let mut out = Vec::new();
    chain.live(incoming(seq, previous, front_safe), &mut out);
    out
}

fn at(last: u64) -> Chain<u64> {
    let mut chain = Chain::joining();
    chain.joined(last, last, &mut Vec::new());
    chain
}

fn delivered(seq: u64, previous: u64) -> Output<u64> {
    Output::Deliver { seq, previous, item: seq }
}

#[test]
fn what_follows_is_delivered_and_what_is_known_is_dropped() {
    let mut chain = at(5);
    assert_eq!(live(&mut chain, 9, 5, false), [delivered(9, 5)]);
    assert_eq!(live(&mut chain, 9, 5, false), []);
    assert_eq!(live(&mut chain, 5, 2, false), []);
    assert_eq!(chain.last(), 9);
}

#[test]
fn a_gap_is_read_before_anything_later() {
    let mut chain = at(5);
    assert_eq!(live(&mut chain, 20, 12, false), [Output::Fill(Gap { after: 5, verified: 5, target: 12 })]);
    assert_eq!(live(&mut chain, 30, 20, false), []);
    let mut out = Vec::new();
    chain.filled(Filled { items: vec![(8, 8), (12, 12)], through: 12, complete: true }, &mut out);
    assert_eq!(out, [delivered(8, 5), delivered(12, 8), delivered(20, 12), delivered(30, 20)]);
}

/// The front trimmed the predecessor, so the server says "none before": no duplicate, and no silent loss.
#[test]
fn a_trimmed_predecessor_is_not_taken_for_a_duplicate() {
    for previous in [0, 3] {
        let mut chain = at(5);
        assert_eq!(live(&mut chain, 20, previous, false), [Output::Fill(Gap { after: 5, verified: 5, target: 20 })]);
        let mut out = Vec::new();
        chain.filled(Filled { items: vec![(20, 20)], through: 20, complete: false }, &mut out);
        assert_eq!(out, [Output::Lost { after: 19 }, delivered(20, 19)]);
    }
    // The front is known not to have passed what is verified: nothing can lie between.
    let mut chain = at(5);
    assert_eq!(live(&mut chain, 20, 0, true), [delivered(20, 5)]);
    // Verified up to the message itself.
    let mut chain = at(5);
    chain.verify(19);
    assert_eq!(live(&mut chain, 20, 0, false), [delivered(20, 5)]);
}

#[test]
fn a_lost_last_message_is_read_when_a_digest_names_it() {
    let mut chain = at(5);
    let mut out = Vec::new();
    chain.require(5, &mut out);
    assert_eq!(out, []);
    chain.require(9, &mut out);
    assert_eq!(out, [Output::Fill(Gap { after: 5, verified: 5, target: 9 })]);
    chain.verify(50);
    assert_eq!(chain.verified(), 5, "nothing is verified while a read is under way");
    out.clear();
    chain.filled(Filled { items: vec![(9, 9)], through: 9, complete: true }, &mut out);
    assert_eq!(out, [delivered(9, 5)]);
    chain.verify(50);
    assert_eq!(chain.verified(), 50);
}

/// A hash that two channels share, or an entry that was trimmed: the read proves that nothing is there.
#[test]
fn a_requirement_that_nothing_meets_ends_with_the_read() {
    let mut chain = at(5);
    let mut out = Vec::new();
    chain.require(9, &mut out);
    chain.filled(Filled { items: Vec::new(), through: 40, complete: true }, &mut out);
    chain.require(9, &mut out);
    assert_eq!(out.len(), 1, "one read: {out:?}");
    assert_eq!(live(&mut chain, 50, 0, true), [delivered(50, 5)]);
}

#[test]
fn what_waits_is_bounded_and_read_later() {
    let mut chain = at(1);
    let mut out = live(&mut chain, 10, 8, false);
    let last = 10 + 2 * MAX_HELD as u64;
    for seq in 11..=last {
        out.extend(live(&mut chain, seq, seq - 1, false));
    }
    assert_eq!(out.len(), 1, "one read under way");
    out.clear();
    chain.filled(Filled { items: vec![(8, 8)], through: 8, complete: true }, &mut out);
    let held = out.iter().filter(|output| matches!(output, Output::Deliver { .. })).count();
    assert!(held <= MAX_HELD + 2, "{held}");
    let next = chain.last();
    assert_eq!(out.last(), Some(&Output::Fill(Gap { after: next, verified: next, target: last })));
}

/// A stream with one channel of interest, from which anything can be read, and whose front moves.
struct Model {
    /// Sequences of the channel.
    stored: Vec<u64>,
    front: u64,
    top: u64,
    got: Vec<u64>,
    /// Every sequence of the channel through here may be missing: it was said so.
    excused: Vec<(u64, u64)>,
    reads: Vec<Gap>,
}

impl Model {
    fn take(&mut self, outputs: Vec<Output<u64>>) {
        for output in outputs {
            match output {
                Output::Deliver { seq, item, .. } => {
                    assert_eq!(seq, item);
                    assert!(self.got.last().is_none_or(|last| *last < seq), "{seq} after {:?}", self.got);
                    self.got.push(seq);
                }
                Output::Lost { after } => self.excused.push((self.got.last().copied().unwrap_or(0), after)),
                Output::Fill(gap) => self.reads.push(gap),
            }
        }
    }

    fn store(&mut self, others: u64) -> (u64, u64) {
        let previous = self.stored.last().copied().filter(|last| *last > self.front).unwrap_or(0);
        self.top += 1 + others;
        self.stored.push(self.top);
        (self.top, previous)
    }

    /// At most three entries at a time, so that reads follow each other.
    fn answer(&self, gap: Gap) -> Filled<u64> {
        let left = self.stored.iter().copied().filter(|seq| *seq > gap.after && *seq > self.front);
        let items: Vec<(u64, u64)> = left.take(3).map(|seq| (seq, seq)).collect();
        let reached = items.last().is_some_and(|(seq, _)| *seq >= gap.target);
        let through = match items.last() {
            Some((last, _)) if reached || items.len() == 3 => *last,
            _ => self.top,
        };
        let complete = self.front <= gap.verified || gap.after > self.front && self.stored.contains(&gap.after);
        Filled { items, through, complete }
    }

    fn check(&self, joined_at: u64) {
        for seq in self.stored.iter().filter(|seq| **seq > joined_at) {
            let excused = self.excused.iter().any(|(from, through)| seq > from && seq <= through);
            assert!(self.got.contains(seq) || excused, "{seq} is missing silently: {:?} {:?}", self.got, self.excused);
        }
    }
}

/// Random schedules: live messages lost, doubled and swapped; the front moves; digests come late. In the end every
/// message was delivered in order, or its loss was said.
#[test]
fn nothing_is_missing_silently_under_random_schedules() {
    let mut losses = 0;
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut model = Model { stored: vec![2], front: 0, top: 4, got: vec![], excused: vec![], reads: vec![] };
        let mut chain = at(2);
        chain.verify(4);
        let mut wire: Vec<(u64, u64, bool)> = Vec::new();
        for _ in 0..rng.random_range(1..40) {
            match rng.random_range(0..10) {
                0..4 => {
                    let (seq, previous) = model.store(rng.random_range(0..3));
                    let front_safe = model.front <= chain.verified();
                    for _ in 0..[1, 1, 0, 2][rng.random_range(0..4)] {
                        wire.push((seq, previous, front_safe));
                    }
                }
                4..7 if !wire.is_empty() => {
                    let place = rng.random_range(0..wire.len().min(2));
                    let (seq, previous, front_safe) = wire.remove(place);
                    // Judged anew: safe when it was stored and safe now.
                    let front_safe = front_safe && model.front <= chain.verified();
                    let outputs = live(&mut chain, seq, previous, front_safe);
                    model.take(outputs);
                }
                7 if !model.reads.is_empty() => {
                    let gap = model.reads.remove(0);
                    let filled = model.answer(gap);
                    let mut out = Vec::new();
                    chain.filled(filled, &mut out);
                    model.take(out);
                }
                8 => model.front = rng.random_range(model.front..=model.top),
                _ => {
                    let mut out = Vec::new();
                    let last = model.stored.last().copied().unwrap_or(0);
                    chain.require(last, &mut out);
                    model.take(out);
                }
            }
        }
        // The last digest, and everything that it leads to.
        let mut out = Vec::new();
        chain.require(model.stored.last().copied().unwrap_or(0), &mut out);
        model.take(out);
        while !model.reads.is_empty() {
            let gap = model.reads.remove(0);
            let filled = model.answer(gap);
            let mut out = Vec::new();
            chain.filled(filled, &mut out);
            model.take(out);
        }
        model.check(2);
        losses += model.excused.len();
    }
    assert!(losses > 100, "the schedules reach losses: {losses}");
}
