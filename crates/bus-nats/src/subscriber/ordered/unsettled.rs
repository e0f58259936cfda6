//! Messages that were taken and are not settled: each stays known until all its parts have ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::Subject;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::super::run::Running;
use super::super::{Delivery, ProcessError, Received};
use super::MAX_BYTES;
use super::settled::Settled;

/// Reasons that are kept of one message.
const MAX_REASONS: usize = 8;

/// One message.
pub(super) struct Entry<J> {
    pub(super) message: Received,
    pub(super) job: Result<J, ProcessError>,
    pub(super) arrived: Instant,
    /// Where its newest delivery is acknowledged.
    ack: Mutex<Subject>,
    bytes: usize,
    /// It came more than once, here or elsewhere.
    redelivered: AtomicBool,
    /// Keys of its parts until they are given to the workers.
    keys: Mutex<Vec<u64>>,
    /// Parts that have not ended.
    left: AtomicUsize,
    abandoned: AtomicBool,
    reasons: Mutex<Vec<String>>,
}

impl<J> Entry<J> {
    pub(super) fn new(
        message: Received,
        job: Result<J, ProcessError>,
        ack: Subject,
        keys: Vec<u64>,
        bytes: usize,
    ) -> Self {
        let redelivered = message.delivery.is_some_and(|delivery| delivery.attempt > 1);
        Entry {
            message,
            job,
            arrived: Instant::now(),
            ack: Mutex::new(ack),
            bytes,
            redelivered: AtomicBool::new(redelivered),
            left: AtomicUsize::new(keys.len()),
            keys: Mutex::new(keys),
            abandoned: AtomicBool::new(false),
            reasons: Mutex::default(),
        }
    }

    pub(super) fn ack(&self) -> Subject {
        self.ack.lock().clone()
    }

    /// The keys of its parts, once: it is begun with that.
    pub(super) fn begin(&self) -> Vec<u64> {
        std::mem::take(&mut self.keys.lock())
    }

    fn waits(&self) -> bool {
        !self.keys.lock().is_empty()
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().clone()
    }

    fn sequence(&self) -> u64 {
        self.message.delivery.map_or(0, |delivery| delivery.sequence)
    }

    fn stored_ns(&self) -> u64 {
        self.message.delivery.map_or(0, |delivery| delivery.stored_ns)
    }
}

/// What is known of a message that was delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    New,
    /// It is here already, and will be acknowledged by this delivery.
    Held,
    /// It was settled; JetStream has not heard of that, or not in time.
    Settled,
}

/// What is here at one time, above what the consumer has acknowledgements of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Census {
    pub(super) count: usize,
    /// Those of them that were delivered more than once.
    pub(super) redelivered: usize,
    /// The highest sequence.
    pub(super) newest: u64,
    /// Messages that came and went so far.
    pub(super) changes: u64,
}

/// How a part ended.
pub(super) enum Ended {
    Done,
    Failed(String),
    /// Without an outcome: the message is to be delivered again.
    Abandoned,
}

/// One part of a message on its way through the workers. Dropping it abandons its message.
pub(super) struct Part<J> {
    pub(super) entry: Arc<Entry<J>>,
    pub(super) index: usize,
    unsettled: Arc<Unsettled<J>>,
    ended: bool,
}

impl<J> Part<J> {
    pub(super) fn new(unsettled: &Arc<Unsettled<J>>, entry: &Arc<Entry<J>>, index: usize) -> Self {
        Part { entry: entry.clone(), index, unsettled: unsettled.clone(), ended: false }
    }

    /// Notes the outcome. True for the last part of a message that has an outcome, and now has to be settled.
    pub(super) fn end(&mut self, ended: Ended) -> bool {
        self.ended = true;
        let entry = &self.entry;
        match ended {
            Ended::Done => {}
            Ended::Failed(reason) => {
                let mut reasons = entry.reasons.lock();
                if reasons.len() < MAX_REASONS {
                    reasons.push(reason);
                }
            }
            Ended::Abandoned => entry.abandoned.store(true, Ordering::Release),
        }
        if entry.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return false;
        }
        if entry.abandoned.load(Ordering::Acquire) {
            self.unsettled.abandon(entry);
            return false;
        }
        true
    }
}

impl<J> Drop for Part<J> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Ended::Abandoned);
        }
    }
}

/// All of a subscription.
pub(super) struct Unsettled<J> {
    running: Arc<Running>,
    ack_wait: Duration,
    held: Mutex<Held<J>>,
    /// One message less.
    fewer: Notify,
    /// How often everything was lost.
    losses: watch::Sender<u64>,
}

struct Held<J> {
    /// By sequence.
    entries: BTreeMap<u64, Arc<Entry<J>>>,
    changes: u64,
    bytes: usize,
    pin: Option<String>,
    settled: Settled,
    /// When JetStream was last told that all of them are wanted.
    kept: Instant,
}

impl<J> Unsettled<J> {
    pub(super) fn new(running: Arc<Running>, ack_wait: Duration) -> Self {
        let (entries, settled) = (BTreeMap::new(), Settled::default());
        let held = Held { entries, changes: 0, bytes: 0, pin: None, settled, kept: Instant::now() };
        let (fewer, losses) = (Notify::new(), watch::Sender::new(0));
        Unsettled { running, ack_wait, held: Mutex::new(held), fewer, losses }
    }

    /// Messages come from the consumer that was made at this time, from now on. Yields what tells that all were lost.
    pub(super) fn begin(&self, consumer: i128) -> watch::Receiver<u64> {
        let mut held = self.held.lock();
        held.settled.come_from(consumer);
        if held.entries.is_empty() {
            held.kept = Instant::now();
        }
        self.losses.subscribe()
    }

    /// The consumer has acknowledgements of everything up to this sequence.
    pub(super) fn confirm(&self, consumer: i128, floor: u64) {
        self.held.lock().settled.confirm(consumer, floor);
    }

    /// JetStream was told at this time that everything is wanted.
    pub(super) fn kept(&self, at: Instant) {
        self.held.lock().kept = at;
    }

    /// Lets go of everything if JetStream was not told in time that it is wanted: this process stood still, or was cut off.
    /// Another one may be at work on it by now, and whatever comes here again comes in order.
    pub(super) fn lose_overdue(&self) -> bool {
        self.lose_if_overdue(&mut self.held.lock())
    }

    fn lose_if_overdue(&self, held: &mut Held<J>) -> bool {
        if held.kept.elapsed() < self.ack_wait {
            return false;
        }
        held.kept = Instant::now();
        for _ in std::mem::take(&mut held.entries) {
            self.running.note_abandoned();
        }
        held.bytes = 0;
        held.changes += 1;
        self.running.set_held(0, 0);
        self.losses.send_modify(|losses| *losses += 1);
        self.fewer.notify_waiters();
        true
    }

    /// Whether it is still ours.
    pub(super) fn keeps(&self, entry: &Arc<Entry<J>>) -> bool {
        let mut held = self.held.lock();
        !self.lose_if_overdue(&mut held)
            && held.entries.get(&entry.sequence()).is_some_and(|one| Arc::ptr_eq(one, entry))
    }

    /// Whether it was settled by way of an earlier delivery.
    pub(super) fn was_settled(&self, entry: &Entry<J>) -> bool {
        self.held.lock().settled.holds(entry.sequence(), entry.stored_ns())
    }

    /// The pin that messages come with now.
    pub(super) fn pinned(&self, pin: &str) {
        let mut held = self.held.lock();
        if held.pin.as_deref() != Some(pin) {
            held.pin = Some(pin.to_owned());
        }
    }

    pub(super) fn pin(&self) -> Option<String> {
        self.held.lock().pin.clone()
    }

    /// What is known of a message; one that is here is acknowledged by its newest delivery.
    pub(super) fn known(&self, delivery: &Delivery, ack: &Subject) -> Known {
        let mut held = self.held.lock();
        if let Some(entry) = held.entries.get(&delivery.sequence) {
            if entry.stored_ns() == delivery.stored_ns {
                *entry.ack.lock() = ack.clone();
                entry.redelivered.fetch_or(delivery.attempt > 1, Ordering::Relaxed);
                return Known::Held;
            }
            // The stream was made anew, or went back: what had this sequence is gone.
            let gone = entry.clone();
            self.take_out(&mut held, &gone);
            self.running.note_abandoned();
        }
        if held.settled.holds(delivery.sequence, delivery.stored_ns) { Known::Settled } else { Known::New }
    }

    /// Takes a message in, unless everything was lost since its delivery.
    pub(super) fn add(&self, entry: Entry<J>, losses: &watch::Receiver<u64>) -> Option<Arc<Entry<J>>> {
        let entry = Arc::new(entry);
        let mut held = self.held.lock();
        if self.lose_if_overdue(&mut held) || losses.has_changed().unwrap_or(true) {
            return None;
        }
        held.bytes += entry.bytes;
        held.changes += 1;
        held.entries.insert(entry.sequence(), entry.clone());
        self.running.set_held(held.entries.len(), held.bytes);
        Some(entry)
    }

    /// It has its outcome.
    pub(super) fn settled(&self, entry: &Arc<Entry<J>>) {
        let mut held = self.held.lock();
        held.settled.add(entry.sequence(), entry.stored_ns());
        // Lost meanwhile, it may have come again: it was acknowledged with this one.
        let again = held.entries.get(&entry.sequence());
        if let Some(again) = again.filter(|again| again.waits() && again.stored_ns() == entry.stored_ns()).cloned() {
            self.take_out(&mut held, &again);
        }
        drop(held);
        self.remove(entry);
    }

    /// Leaves it to be delivered again when its time is over.
    pub(super) fn abandon(&self, entry: &Arc<Entry<J>>) {
        if self.remove(entry) {
            self.running.note_abandoned();
        }
    }

    /// It is not ours any more. False if it was not before.
    fn remove(&self, entry: &Arc<Entry<J>>) -> bool {
        self.take_out(&mut self.held.lock(), entry)
    }

    fn take_out(&self, held: &mut Held<J>, entry: &Arc<Entry<J>>) -> bool {
        let ours = held.entries.get(&entry.sequence()).is_some_and(|one| Arc::ptr_eq(one, entry));
        if ours {
            held.entries.remove(&entry.sequence());
            held.bytes -= entry.bytes;
            held.changes += 1;
        }
        self.running.set_held(held.entries.len(), held.bytes);
        self.fewer.notify_waiters();
        ours
    }

    /// What is here above this sequence.
    pub(super) fn census(&self, floor: u64) -> Census {
        let held = self.held.lock();
        let mut census = Census { count: 0, redelivered: 0, newest: 0, changes: held.changes };
        for (sequence, entry) in held.entries.range(floor.saturating_add(1)..) {
            census.count += 1;
            census.redelivered += usize::from(entry.redelivered.load(Ordering::Relaxed));
            census.newest = *sequence;
        }
        census
    }

    /// How often messages came or went.
    pub(super) fn changes(&self) -> u64 {
        self.held.lock().changes
    }

    pub(super) fn has_room(&self) -> bool {
        self.held.lock().bytes < MAX_BYTES
    }

    /// Those that were not begun, in the order of the stream.
    pub(super) fn waiting(&self) -> Vec<Arc<Entry<J>>> {
        self.held.lock().entries.values().filter(|entry| entry.waits()).cloned().collect()
    }

    /// Leaves what was not begun to be delivered again.
    pub(super) fn let_go(&self) {
        for entry in self.waiting() {
            self.abandon(&entry);
        }
    }

    /// Where everything that is here is acknowledged, in the order of the stream: what is prolonged earlier comes again
    /// earlier.
    pub(super) fn acks(&self) -> Vec<Subject> {
        self.held.lock().entries.values().map(|entry| entry.ack()).collect()
    }

    /// Waits for room for one more; false when it is not wanted any more.
    pub(super) async fn room(&self) -> bool {
        tokio::select! {
            () = self.running.discarding.cancelled() => false,
            () = self.until(|held| held.bytes < MAX_BYTES) => true,
        }
    }

    /// Waits until nothing is left.
    pub(super) async fn empty(&self) {
        self.until(|held| held.entries.is_empty()).await;
    }

    async fn until(&self, holds: impl Fn(&Held<J>) -> bool) {
        loop {
            let mut fewer = std::pin::pin!(self.fewer.notified());
            fewer.as_mut().enable();
            if holds(&self.held.lock()) {
                return;
            }
            fewer.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn delivery(sequence: u64, attempt: u64, stored_ns: u64) -> Delivery {
        Delivery { sequence, attempt, consumer_sequence: 0, remaining: 0, stored_ns }
    }

    fn entry(delivery: Delivery, keys: Vec<u64>) -> Entry<()> {
        let message = async_nats::Message {
            subject: "a".into(),
            reply: None,
            payload: Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 100,
        };
        Entry::new(Received::new(message, Some(delivery)), Ok(()), "ack".into(), keys, 100)
    }

    fn unsettled() -> (Unsettled<()>, watch::Receiver<u64>) {
        let unsettled = Unsettled::new(Running::new("test", 1, 10, 1000), Duration::from_secs(10));
        let losses = unsettled.begin(1);
        (unsettled, losses)
    }

    #[tokio::test]
    async fn a_message_of_a_stream_that_was_made_anew_is_no_redelivery() {
        let (unsettled, losses) = unsettled();
        unsettled.add(entry(delivery(5, 1, 50), vec![1]), &losses).unwrap();
        assert_eq!(unsettled.known(&delivery(5, 2, 50), &"again".into()), Known::Held);
        let here = unsettled.census(0);
        assert_eq!((here.count, here.redelivered, here.newest), (1, 1, 5));
        assert_eq!(unsettled.census(5).count, 0);
        assert_eq!(unsettled.acks(), ["again".into()]);
        assert_eq!(unsettled.known(&delivery(5, 1, 90), &"new".into()), Known::New);
        assert!(unsettled.acks().is_empty(), "what is gone would be acknowledged in its place");
        assert_ne!(unsettled.census(0).changes, here.changes);
    }

    #[tokio::test]
    async fn what_an_overdue_try_settled_does_not_wait_any_more() {
        let (unsettled, losses) = unsettled();
        let lost = unsettled.add(entry(delivery(5, 1, 50), vec![1]), &losses).unwrap();
        lost.begin();
        unsettled.abandon(&lost);
        unsettled.add(entry(delivery(5, 2, 50), vec![1]), &losses).unwrap();
        unsettled.add(entry(delivery(6, 1, 60), vec![1]), &losses).unwrap();
        unsettled.settled(&lost);
        assert_eq!(unsettled.waiting().iter().map(|entry| entry.sequence()).collect::<Vec<_>>(), [6]);
        unsettled.let_go();
        assert_eq!((unsettled.census(0).count, unsettled.has_room()), (0, true));
    }
}
