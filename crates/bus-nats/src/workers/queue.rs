//! One worker's bounded queue: many submitters, one taker, no lock, its memory taken once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::{Loss, Reason, Rejected, Work, WorkersStats, worker};
use crate::histogram::Histogram;

pub(super) struct Job<M> {
    pub(super) work: Arc<dyn Work<M>>,
    pub(super) message: M,
    pub(super) key: u64,
    pub(super) submitted: Instant,
    pub(super) deadline: Instant,
}

pub(super) struct Queue<M> {
    jobs: OnceLock<ArrayQueue<Job<M>>>,
    capacity: usize,
    taker: AtomicWaker,
    closed: AtomicBool,
    /// Submitters that wait for room.
    waiting: AtomicUsize,
    room: Notify,
    pub(super) done: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) panicked: AtomicU64,
    pub(super) overran: AtomicU64,
    /// A message is being worked on now.
    pub(super) at_work: AtomicBool,
    rejected: AtomicU64,
    abandoned: AtomicU64,
    pub(super) latency: Histogram,
}

impl<M: 'static> Queue<M> {
    pub(super) fn new(capacity: usize) -> Self {
        Queue {
            jobs: OnceLock::new(),
            capacity,
            taker: AtomicWaker::new(),
            closed: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            room: Notify::new(),
            done: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            overran: AtomicU64::new(0),
            at_work: AtomicBool::new(false),
            rejected: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            latency: Histogram::new(),
        }
    }

    pub(super) fn push(&self, job: Job<M>) -> Result<(), (Job<M>, Reason)> {
        if self.closed.load(Ordering::Acquire) {
            return Err((job, Reason::Stopped));
        }
        let jobs = self.jobs.get_or_init(|| ArrayQueue::new(self.capacity));
        jobs.push(job).map_err(|job| (job, Reason::Full))?;
        self.taker.wake();
        Ok(())
    }

    /// Waits for room.
    pub(super) async fn push_within(&self, job: Job<M>, wait: Duration) -> Result<(), (Job<M>, Reason)> {
        let until = tokio::time::Instant::now() + wait;
        let _waiting = Waiting::new(&self.waiting);
        let mut job = job;
        loop {
            // Listens before it tries, so that room made in between is not missed.
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.push(job) {
                Err((back, Reason::Full)) => job = back,
                other => return other,
            }
            if tokio::time::timeout_at(until, room).await.is_err() {
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
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.room.notify_one();
        }
        Some(job)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.taker.wake();
        self.room.notify_waiters();
    }

    /// Gives up what is left, after the worker has ended.
    pub(super) fn abandon(&self) -> u64 {
        let mut count = u64::from(self.at_work.swap(false, Ordering::AcqRel));
        while let Some(job) = self.take() {
            worker::tell(&job.work, job.key, Loss::Stopped);
            count += 1;
        }
        self.abandoned.fetch_add(count, Ordering::Relaxed);
        count
    }

    pub(super) fn add_to(&self, stats: &mut WorkersStats) {
        let queued = self.jobs.get().map_or(0, ArrayQueue::len);
        stats.queued += queued;
        stats.longest_queue = stats.longest_queue.max(queued);
        stats.done += self.done.load(Ordering::Relaxed);
        stats.rejected += self.rejected.load(Ordering::Relaxed);
        stats.expired += self.expired.load(Ordering::Relaxed);
        stats.panicked += self.panicked.load(Ordering::Relaxed);
        stats.overran += self.overran.load(Ordering::Relaxed);
        stats.abandoned += self.abandoned.load(Ordering::Relaxed);
    }
}

/// One submitter that waits for room.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
