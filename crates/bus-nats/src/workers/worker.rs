//! One worker: takes jobs in order, goes on with others while one waits, keeps their deadlines by one coarse clock, survives
//! their panics.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture};
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use tokio::time::{Interval, MissedTickBehavior};

use super::places::Place;
use super::queue::{Job, Queue};
use super::{Loss, Step, Work};

/// How late the end of a deadline may be noticed while a message waits for something.
const CLOCK: Duration = Duration::from_millis(20);
/// Messages between two looks at the time while the queue is never empty.
const LOOK_EVERY: u32 = 32;
/// Of this many messages that were done at once one is measured.
const SAMPLE: u32 = 16;
/// Room for so many parked keys is kept.
const KEPT: usize = 64;

pub(super) async fn run<M: Send + 'static>(queue: Arc<Queue<M>>) {
    let mut worker = Worker::new(queue);
    loop {
        match poll_fn(|context| worker.poll_next(context)).await {
            Next::Job(job) => worker.take(job),
            Next::Ended(key, outcome) => worker.ended(key, outcome),
            Next::Resumed(key) => worker.resume(key),
            Next::Tick => worker.expire(),
            Next::Over => return,
        }
        // Leaves the thread to others after a share of messages.
        tokio::task::coop::consume_budget().await;
    }
}

/// A key of one work: another's work on the same number is another key. The work lives as long as anything of it is here.
type Key = (usize, u64);

fn key_of<M>(job: &Job<M>) -> Key {
    (Arc::as_ptr(&job.work).cast::<()>().addr(), job.key)
}

/// What is to be done next.
enum Next<M> {
    Job(Job<M>),
    /// What a message waited for is over; without a key it is the one that held up everything.
    Ended(Option<Key>, Result<(), Loss>),
    /// What waited behind it has its turn.
    Resumed(Key),
    Tick,
    /// Nothing is left, and nothing comes.
    Over,
}

/// A message whose first step is done, and that waits.
struct AtWork<M> {
    task: Task<M>,
    abort: AbortHandle,
    _place: Option<Place>,
}

/// What is known of a message apart from its content.
struct Task<M> {
    work: Arc<dyn Work<M>>,
    key: u64,
    submitted: Instant,
    deadline: Option<Instant>,
    waits: bool,
}

/// A key of which a message waits, or of which what came meanwhile is worked off.
struct Parked<M> {
    at_work: Option<AtWork<M>>,
    behind: VecDeque<Job<M>>,
}

struct Worker<M: Send + 'static> {
    queue: Arc<Queue<M>>,
    now: Instant,
    /// The queue was empty since the last look at the time.
    idle: bool,
    count: u32,
    parked: HashMap<Key, Parked<M>>,
    /// One that waits without a place: nothing is taken from the queue before it is over.
    alone: Option<AtWork<M>>,
    driven: FuturesUnordered<Driven>,
    /// Parked keys of which nothing is at work.
    resuming: VecDeque<Key>,
    /// Ticks while something with a deadline waits.
    clock: Option<Interval>,
    /// Whose turn is next: the queue, what is driven, what resumes.
    turn: usize,
}

impl<M: Send + 'static> Worker<M> {
    fn new(queue: Arc<Queue<M>>) -> Self {
        Worker {
            queue,
            now: Instant::now(),
            idle: false,
            count: 0,
            parked: HashMap::new(),
            alone: None,
            driven: FuturesUnordered::new(),
            resuming: VecDeque::new(),
            clock: None,
            turn: 0,
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Next<M>> {
        if self.driven.is_empty() && self.resuming.is_empty() {
            let polled = self.poll_queue(context);
            return polled.map(|job| job.map_or(Next::Over, Next::Job));
        }
        if let Some(clock) = &mut self.clock
            && clock.poll_tick(context).is_ready()
        {
            return Poll::Ready(Next::Tick);
        }
        // One after the other, so that neither a flood of new messages nor one of wake-ups keeps the rest waiting.
        for source in (self.turn..).take(3).map(|turn| turn % 3) {
            let next = match source {
                0 if self.alone.is_some() => None,
                0 => match self.poll_queue(context) {
                    Poll::Ready(Some(job)) => Some(Next::Job(job)),
                    _ => None,
                },
                1 if self.driven.is_empty() => None,
                1 => match self.driven.poll_next_unpin(context) {
                    Poll::Ready(Some((key, outcome))) => Some(Next::Ended(key, outcome)),
                    _ => None,
                },
                _ => self.resuming.pop_front().map(Next::Resumed),
            };
            if let Some(next) = next {
                self.turn = source + 1;
                return Poll::Ready(next);
            }
        }
        Poll::Pending
    }

    fn poll_queue(&mut self, context: &mut Context<'_>) -> Poll<Option<Job<M>>> {
        let polled = self.queue.poll_take(context);
        self.idle |= polled.is_pending();
        polled
    }

    /// Works on a message, or parks it behind those of its key.
    fn take(&mut self, job: Job<M>) {
        self.count = self.count.wrapping_add(1);
        if std::mem::take(&mut self.idle) || self.count.is_multiple_of(LOOK_EVERY) {
            self.now = Instant::now();
        }
        if job.place.is_none() {
            self.alone = self.begin(job, None);
            return;
        }
        let key = key_of(&job);
        if let Some(parked) = self.parked.get_mut(&key) {
            parked.behind.push_back(job);
        } else if let Some(at_work) = self.begin(job, Some(key)) {
            self.parked.insert(key, Parked { at_work: Some(at_work), behind: VecDeque::new() });
        }
    }

    /// The first step of a message; gives it back when it waits.
    fn begin(&mut self, job: Job<M>, parked: Option<Key>) -> Option<AtWork<M>> {
        let Job { work, message, key, submitted, deadline, waits, place } = job;
        let task = Task { work, key, submitted, deadline, waits };
        let outcome = if deadline.is_some_and(|deadline| deadline <= self.now) {
            guarded(move || drop(message)).and(Err(Loss::Expired))
        } else {
            guarded(|| task.work.clone().run(key, message))
        };
        match outcome {
            Ok(Step::Done) => self.settle(&task, Ok(())),
            Err(loss) => self.settle(&task, Err(loss)),
            Ok(Step::Later(future)) => {
                let (abort, registration) = AbortHandle::new_pair();
                let future = Abortable::new(Guarded(Some(future)), registration);
                self.driven.push(Driven { key: parked, future });
                if deadline.is_some() && self.clock.is_none() {
                    let mut clock = tokio::time::interval_at(tokio::time::Instant::now() + CLOCK, CLOCK);
                    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    self.clock = Some(clock);
                }
                return Some(AtWork { task, abort, _place: place });
            }
        }
        None
    }

    fn ended(&mut self, key: Option<Key>, outcome: Result<(), Loss>) {
        self.now = Instant::now();
        let at_work = match key {
            None => self.alone.take(),
            Some(key) => self.parked.get_mut(&key).and_then(|parked| parked.at_work.take()),
        };
        if let Some(AtWork { task, .. }) = at_work {
            if outcome.is_ok() && task.deadline.is_some_and(|deadline| self.now >= deadline) {
                self.queue.overran.fetch_add(1, Ordering::Relaxed);
            }
            self.settle(&task, outcome);
        }
        if let Some(key) = key {
            self.go_on(key);
        }
    }

    /// One message of those that came while another of their key waited.
    fn resume(&mut self, key: Key) {
        self.now = Instant::now();
        let Some(job) = self.parked.get_mut(&key).and_then(|parked| parked.behind.pop_front()) else { return };
        let at_work = self.begin(job, Some(key));
        match self.parked.get_mut(&key) {
            Some(parked) if at_work.is_some() => parked.at_work = at_work,
            _ => self.go_on(key),
        }
    }

    /// Nothing of the key is at work.
    fn go_on(&mut self, key: Key) {
        if self.parked.get(&key).is_some_and(|parked| !parked.behind.is_empty()) {
            self.resuming.push_back(key);
            return;
        }
        self.parked.remove(&key);
        if self.parked.is_empty() && self.parked.capacity() > KEPT {
            self.parked = HashMap::new();
        }
    }

    /// Ends what waits past its deadline. What is behind it is looked at when its turn comes.
    fn expire(&mut self) {
        self.now = Instant::now();
        let at_work = self.parked.values().filter_map(|parked| parked.at_work.as_ref()).chain(&self.alone);
        let mut left = false;
        for AtWork { task, abort, .. } in at_work {
            let Some(deadline) = task.deadline else { continue };
            left = true;
            if deadline <= self.now {
                abort.abort();
            }
        }
        if !left {
            self.clock = None;
        }
    }

    fn settle(&self, task: &Task<M>, outcome: Result<(), Loss>) {
        let counter = match outcome {
            Ok(()) => &self.queue.done,
            Err(Loss::Expired) => &self.queue.expired,
            Err(Loss::Panicked) => &self.queue.panicked,
            Err(Loss::Stopped) => &self.queue.abandoned,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Err(loss) => tell(&task.work, task.key, loss),
            Ok(()) if task.waits => self.queue.waited.record(task.submitted.elapsed()),
            Ok(()) if self.count.is_multiple_of(SAMPLE) => self.queue.latency.record(task.submitted.elapsed()),
            Ok(()) => {}
        }
    }
}

/// A worker that is cut off gives up what it had.
impl<M: Send + 'static> Drop for Worker<M> {
    fn drop(&mut self) {
        // Their futures go first: what is told that it was not done is not at work any more.
        self.driven.clear();
        let alone = self.alone.take().map(|alone| Parked { at_work: Some(alone), behind: VecDeque::new() });
        let parked = std::mem::take(&mut self.parked);
        for Parked { at_work, behind } in parked.into_values().chain(alone) {
            if let Some(AtWork { task, .. }) = at_work {
                self.settle(&task, Err(Loss::Stopped));
            }
            behind.into_iter().for_each(|job| self.queue.give_up(job));
        }
    }
}

/// The rest of a message's work.
struct Driven {
    key: Option<Key>,
    future: Abortable<Guarded>,
}

impl Future for Driven {
    type Output = (Option<Key>, Result<(), Loss>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.future).poll(context));
        // Only the end of its deadline aborts it.
        Poll::Ready((self.key, outcome.unwrap_or(Err(Loss::Expired))))
    }
}

/// A future whose panics, also those of its drop, stay inside.
struct Guarded(Option<BoxFuture<'static, ()>>);

impl Future for Guarded {
    type Output = Result<(), Loss>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.0 else { return Poll::Ready(Ok(())) };
        match guarded(|| future.as_mut().poll(context)) {
            Ok(polled) => polled.map(Ok),
            Err(loss) => Poll::Ready(Err(loss)),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let future = self.0.take();
        // It was counted for what ended it.
        let _ = guarded(move || drop(future));
    }
}

/// A panic inside becomes a loss; what it left half done is its own business, nothing of the pool is.
pub(super) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Loss> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| Loss::Panicked)
}

pub(super) fn tell<M: 'static>(work: &Arc<dyn Work<M>>, key: u64, loss: Loss) {
    if guarded(|| work.lost(key, loss)).is_err() {
        tracing::error!(key, ?loss, "the notice of a lost message panicked");
    }
}
