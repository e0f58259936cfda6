//! Places for messages of work that waits: each has one of its worker's from its submission to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Submitters that wait for room with one worker.
#[derive(Default)]
pub(super) struct Room {
    waiting: AtomicUsize,
    pub(super) made: Notify,
}

impl Room {
    /// Room was made: whoever waits tries again.
    pub(super) fn make(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.made.notify_waiters();
        }
    }

    /// One more waits until this is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(self)
    }
}

pub(super) struct Waiting<'a>(&'a Room);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One worker's places.
pub(super) struct Places {
    bound: usize,
    taken: AtomicUsize,
    pub(super) room: Room,
}

impl Places {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Places { bound, taken: AtomicUsize::new(0), room: Room::default() })
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// `None` when all are taken.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let one_more = |taken: usize| (taken < self.bound).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Place(self.clone()))
    }
}

/// A place that is taken until this is dropped.
pub(super) struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.room.make();
    }
}
