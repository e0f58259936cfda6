//! One worker's bounded queue: many submitters, one taker, no lock, its memory taken once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;

use super::places::{Place, Places};
use super::{Loss, Reason, Rejected, Work, WorkersStats, worker};
use crate::histogram::Histogram;

pub(super) struct Job<M> {
    pub(super) work: Arc<dyn Work<M>>,
    pub(super) message: M,
    pub(super) key: u64,
    pub(super) submitted: Instant,
    pub(super) deadline: Option<Instant>,
    /// It is of work that waits, and needs a place.
    pub(super) waits: bool,
    pub(super) place: Option<Place>,
}

pub(super) struct Queue<M> {
    jobs: OnceLock<ArrayQueue<Job<M>>>,
    capacity: usize,
    places: Arc<Places>,
    taker: AtomicWaker,
    closed: AtomicBool,
    pub(super) done: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) panicked: AtomicU64,
    pub(super) overran: AtomicU64,
    pub(super) abandoned: AtomicU64,
    rejected: AtomicU64,
    pub(super) latency: Histogram,
    /// Of all workers: what waits takes so long that nobody is in another's way.
    pub(super) waited: Arc<Histogram>,
}

impl<M: 'static> Queue<M> {
    pub(super) fn new(capacity: usize, waited: Arc<Histogram>) -> Self {
        Queue {
            jobs: OnceLock::new(),
            capacity,
            places: Places::new(capacity),
            taker: AtomicWaker::new(),
            closed: AtomicBool::new(false),
            done: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            overran: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            latency: Histogram::new(),
            waited,
        }
    }

    pub(super) fn push(&self, mut job: Job<M>) -> Result<(), (Job<M>, Reason)> {
        if self.closed.load(Ordering::Acquire) {
            return Err((job, Reason::Stopped));
        }
        // What is offered again has its place already.
        if job.waits && job.place.is_none() {
            job.place = self.places.take();
            if job.place.is_none() {
                return Err((job, Reason::Full));
            }
        }
        let jobs = self.jobs.get_or_init(|| ArrayQueue::new(self.capacity));
        jobs.push(job).map_err(|job| (job, Reason::Full))?;
        self.taker.wake();
        Ok(())
    }

    /// Waits for room.
    pub(super) async fn push_within(&self, job: Job<M>, wait: Duration) -> Result<(), (Job<M>, Reason)> {
        let until = tokio::time::Instant::now() + wait;
        let room = &self.places.room;
        let _waiting = room.wait();
        let mut job = job;
        loop {
            // Listens before it tries, so that room made in between is not missed.
            let mut made = std::pin::pin!(room.made.notified());
            made.as_mut().enable();
            match self.push(job) {
                Err((back, Reason::Full)) => job = back,
                other => return other,
            }
            if tokio::time::timeout_at(until, made).await.is_err() {
                return self.push(job);
            }
        }
    }

    pub(super) fn reject(&self, message: M, reason: Reason) -> Rejected<M> {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        Rejected { message, reason }
    }

    /// The next job; `None` when the queue is closed and empty.
    pub(super) fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<Job<M>>> {
        if let Some(job) = self.take() {
            return Poll::Ready(Some(job));
        }
        self.taker.register(context.waker());
        // Whatever came before the waker was in place is seen now.
        match self.take() {
            Some(job) => Poll::Ready(Some(job)),
            None if self.closed.load(Ordering::Acquire) => Poll::Ready(self.take()),
            None => Poll::Pending,
        }
    }

    fn take(&self) -> Option<Job<M>> {
        let job = self.jobs.get()?.pop()?;
        self.places.room.make();
        Some(job)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.taker.wake();
        self.places.room.made.notify_waiters();
    }

    /// Gives up what is left, after the worker has ended.
    pub(super) fn abandon(&self) {
        while let Some(job) = self.take() {
            self.give_up(job);
        }
    }

    pub(super) fn give_up(&self, job: Job<M>) {
        let Job { work, message, key, .. } = job;
        self.abandoned.fetch_add(1, Ordering::Relaxed);
        // It was not done, whatever its drop does.
        let _ = worker::guarded(move || drop(message));
        worker::tell(&work, key, Loss::Stopped);
    }

    pub(super) fn add_to(&self, stats: &mut WorkersStats) {
        let queued = self.jobs.get().map_or(0, ArrayQueue::len);
        let waiting = self.places.taken();
        stats.queued += queued;
        stats.longest_queue = stats.longest_queue.max(queued);
        stats.waiting += waiting;
        stats.most_waiting = stats.most_waiting.max(waiting);
        stats.done += self.done.load(Ordering::Relaxed);
        stats.rejected += self.rejected.load(Ordering::Relaxed);
        stats.expired += self.expired.load(Ordering::Relaxed);
        stats.panicked += self.panicked.load(Ordering::Relaxed);
        stats.overran += self.overran.load(Ordering::Relaxed);
        stats.abandoned += self.abandoned.load(Ordering::Relaxed);
    }
}
