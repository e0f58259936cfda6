//! Messages that were taken and are not settled: each stays known until all its parts have ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use async_nats::Subject;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::super::run::Running;
use super::super::{ProcessError, Received};
use super::MAX_BYTES;

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
        parts: usize,
        bytes: usize,
    ) -> Self {
        Entry {
            message,
            job,
            arrived: Instant::now(),
            ack: Mutex::new(ack),
            bytes,
            left: AtomicUsize::new(parts),
            abandoned: AtomicBool::new(false),
            reasons: Mutex::default(),
        }
    }

    pub(super) fn ack(&self) -> Subject {
        self.ack.lock().clone()
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.lock().clone()
    }

    fn sequence(&self) -> u64 {
        self.message.delivery.map_or(0, |delivery| delivery.sequence)
    }
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
    held: Mutex<Held<J>>,
    /// One message less.
    fewer: Notify,
}

struct Held<J> {
    /// By sequence.
    entries: BTreeMap<u64, Arc<Entry<J>>>,
    bytes: usize,
    pin: Option<String>,
}

impl<J> Unsettled<J> {
    pub(super) fn new(running: Arc<Running>) -> Self {
        let held = Held { entries: BTreeMap::new(), bytes: 0, pin: None };
        Unsettled { running, held: Mutex::new(held), fewer: Notify::new() }
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

    /// Whether this message is here already; it is then acknowledged by its newest delivery.
    pub(super) fn has(&self, sequence: u64, ack: &Subject) -> bool {
        let held = self.held.lock();
        let entry = held.entries.get(&sequence);
        if let Some(entry) = entry {
            *entry.ack.lock() = ack.clone();
        }
        entry.is_some()
    }

    pub(super) fn add(&self, entry: Entry<J>) -> Arc<Entry<J>> {
        let entry = Arc::new(entry);
        let mut held = self.held.lock();
        held.bytes += entry.bytes;
        held.entries.insert(entry.sequence(), entry.clone());
        self.running.set_held(held.entries.len(), held.bytes);
        entry
    }

    /// It is not ours any more.
    pub(super) fn remove(&self, entry: &Entry<J>) {
        let mut held = self.held.lock();
        if held.entries.remove(&entry.sequence()).is_some() {
            held.bytes -= entry.bytes;
        }
        self.running.set_held(held.entries.len(), held.bytes);
        drop(held);
        self.fewer.notify_waiters();
    }

    /// Leaves it to be delivered again when its time is over.
    pub(super) fn abandon(&self, entry: &Entry<J>) {
        self.running.note_abandoned();
        self.remove(entry);
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
