//! One shard of the in-process log: its state, the queue of live events, and the worker that delivers them.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, timeout_at};

use super::store::{Moment, Sink, Store, cost};
use crate::{Announcement, Append, AppendError, Appended, Epoch, Live, LiveEvent, Position};

/// Most events that one turn of the worker delivers.
const BATCH_EVENTS: usize = 256;

/// Most channels that one turn of the worker sweeps under the lock.
const SWEEP_CHANNELS: usize = 512;

/// Bounds of a shard's queues.
#[derive(Clone, Copy)]
pub(super) struct QueueLimits {
    pub events: usize,
    pub bytes: usize,
    pub waiting: usize,
    pub wait: Duration,
}

/// Reads the clock: tokio's, so that a test that pauses time moves it.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    start_unix_ms: u64,
}

impl Clock {
    pub fn start() -> Self {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_unix_ms: unix.as_millis() as u64 }
    }

    pub fn now(&self) -> Moment {
        let ms = self.start.elapsed().as_millis() as u64;
        Moment { ms, unix_ms: self.start_unix_ms + ms }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }
}

pub(super) struct Shard {
    state: Mutex<State>,
    work: Notify,
    limits: QueueLimits,
    clock: Clock,
    epoch: Epoch,
}

struct State {
    store: Store,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// Number of the first event in `queue`, counted since the start.
    taken: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    next_ticket: u64,
    /// When the idle worker wakes by itself (ms; `u64::MAX`: never); `None` while it works.
    asleep_until: Option<u64>,
    closed: bool,
}

struct Queued {
    channel: u32,
    bytes: u32,
    event: LiveEvent,
}

/// An operation that waits for room in the queue of live events.
struct Waiting {
    ticket: u64,
    deadline: Instant,
    bytes: usize,
    hash: u64,
    operation: Operation,
}

/// What goes through the queue of live events.
pub(super) enum Operation {
    Append(Box<Append>, oneshot::Sender<Result<Appended, AppendError>>),
    Announce(Arc<str>, Arc<Announcement>, oneshot::Sender<Result<(), AppendError>>),
}

/// An operation that waits; [`Shard::wait`] takes it.
pub(super) struct Ticket<T> {
    number: u64,
    deadline: Instant,
    result: oneshot::Receiver<Result<T, AppendError>>,
}

/// What became of an operation at once.
pub(super) enum Entered<T> {
    Done(Result<T, AppendError>),
    Waits(Ticket<T>),
}

/// What the worker does next.
enum Turn {
    Deliver,
    Again,
    Sleep(u64),
    End,
}

/// Events that the worker took, and who gets which of them.
#[derive(Default)]
struct Batch {
    events: Vec<LiveEvent>,
    deliveries: Vec<(Arc<dyn Live>, Range<usize>)>,
}

impl Shard {
    pub fn new(store: Store, limits: QueueLimits, clock: Clock) -> Self {
        let epoch = store.epoch().clone();
        let state = State {
            store,
            queue: VecDeque::new(),
            queue_bytes: 0,
            taken: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            next_ticket: 0,
            asleep_until: None,
            closed: false,
        };
        Self { state: Mutex::new(state), work: Notify::new(), limits, clock, epoch }
    }

    /// Runs `access` under the lock and wakes the worker when that gave it something to do.
    pub fn with<R>(&self, access: impl FnOnce(&mut Store, Moment) -> R) -> R {
        let mut state = self.state.lock();
        let result = access(&mut state.store, self.clock.now());
        self.wake(state);
        result
    }

    pub fn subscribe(&self, hash: u64, channel: &str, replica: u32, live: Arc<dyn Live>) -> Position {
        let mut state = self.state.lock();
        let since = state.taken + state.queue.len() as u64;
        let sink = Sink { replica, since, live };
        let (position, _replaced) = state.store.subscribe(hash, channel, sink, self.clock.now().ms);
        self.wake(state);
        position
    }

    /// Appends now, or takes a place in the line when the queue of live events is full.
    pub fn append(&self, hash: u64, append: Append) -> Entered<Appended> {
        let mut state = self.state.lock();
        if state.waiting.is_empty() && state.has_room(&self.limits) {
            let result = state.append(hash, append, self.clock.now());
            self.wake(state);
            return Entered::Done(result);
        }
        let bytes = cost(&append.publication);
        let (done, result) = oneshot::channel();
        self.enqueue(state, hash, bytes, Operation::Append(Box::new(append), done), result)
    }

    /// Announces now, or takes a place in the line when the queue of live events is full.
    pub fn announce(&self, hash: u64, channel: &str, announcement: Announcement) -> Entered<()> {
        let mut state = self.state.lock();
        let announcement = Arc::new(announcement);
        if state.waiting.is_empty() && state.has_room(&self.limits) {
            state.announce(hash, channel, announcement);
            self.wake(state);
            return Entered::Done(Ok(()));
        }
        let bytes = announcement_cost(&announcement);
        let (done, result) = oneshot::channel();
        self.enqueue(state, hash, bytes, Operation::Announce(channel.into(), announcement, done), result)
    }

    fn enqueue<T>(
        &self,
        mut state: parking_lot::MutexGuard<'_, State>,
        hash: u64,
        bytes: usize,
        operation: Operation,
        result: oneshot::Receiver<Result<T, AppendError>>,
    ) -> Entered<T> {
        if state.waiting.len() >= self.limits.waiting || state.waiting_bytes >= self.limits.bytes {
            return Entered::Done(Err(behind()));
        }
        let (number, deadline) = (state.next_ticket, Instant::now() + self.limits.wait);
        state.next_ticket += 1;
        state.waiting_bytes += bytes;
        state.waiting.push_back(Waiting { ticket: number, deadline, bytes, hash, operation });
        Entered::Waits(Ticket { number, deadline, result })
    }

    /// Resolves when the operation was done, or withdraws it at its deadline.
    pub async fn wait<T>(&self, mut ticket: Ticket<T>) -> Result<T, AppendError> {
        if let Ok(result) = timeout_at(ticket.deadline, &mut ticket.result).await {
            return result.unwrap_or_else(|_| Err(behind()));
        }
        self.withdraw(ticket.number);
        // Dropped with the operation, unless the worker was faster.
        ticket.result.await.unwrap_or_else(|_| Err(behind()))
    }

    fn withdraw(&self, number: u64) {
        let mut state = self.state.lock();
        if let Ok(index) = state.waiting.binary_search_by_key(&number, |waiting| waiting.ticket)
            && let Some(waiting) = state.waiting.remove(index)
        {
            state.waiting_bytes -= waiting.bytes;
        }
    }

    /// Ends the worker; what waits is refused.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        drop(state);
        self.work.notify_one();
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let Some(until) = state.asleep_until else { return };
        if !state.queue.is_empty() || state.store.next_sweep_ms().is_some_and(|next| next < until) {
            state.asleep_until = None;
            drop(state);
            self.work.notify_one();
        }
    }

    /// Delivers live events and sweeps until the shard is closed. Nothing is locked while it delivers.
    pub async fn work(self: Arc<Self>) {
        let mut batch = Batch::default();
        loop {
            match self.turn(&mut batch) {
                Turn::Deliver => batch.deliver(&self.epoch),
                Turn::Again => {}
                Turn::Sleep(u64::MAX) => self.work.notified().await,
                Turn::Sleep(until) => {
                    let _ = timeout_at(self.clock.at(until), self.work.notified()).await;
                }
                Turn::End => return,
            }
            tokio::task::yield_now().await;
        }
    }

    fn turn(&self, batch: &mut Batch) -> Turn {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if state.closed {
            return Turn::End;
        }
        state.asleep_until = None;
        let swept = state.store.sweep(now.ms, SWEEP_CHANNELS);
        state.take(batch);
        state.admit(&self.limits, now);
        if !batch.events.is_empty() {
            return Turn::Deliver;
        }
        if !swept || !state.queue.is_empty() || !state.waiting.is_empty() {
            return Turn::Again;
        }
        let until = state.store.next_sweep_ms().unwrap_or(u64::MAX);
        state.asleep_until = Some(until);
        Turn::Sleep(until)
    }
}

impl State {
    fn has_room(&self, limits: &QueueLimits) -> bool {
        self.queue.len() < limits.events && self.queue_bytes < limits.bytes
    }

    fn append(&mut self, hash: u64, append: Append, now: Moment) -> Result<Appended, AppendError> {
        let (appended, live) = self.store.append(hash, append, now)?;
        if let Some((channel, entry)) = live {
            let bytes = cost(&entry.publication);
            self.push(channel, bytes, LiveEvent::Publication(entry));
        }
        Ok(appended)
    }

    fn announce(&mut self, hash: u64, channel: &str, announcement: Arc<Announcement>) {
        if let Some(channel) = self.store.subscribed(hash, channel) {
            self.push(channel, announcement_cost(&announcement), LiveEvent::Announcement(announcement));
        }
    }

    fn push(&mut self, channel: u32, bytes: usize, event: LiveEvent) {
        self.queue_bytes += bytes;
        self.queue.push_back(Queued { channel, bytes: bytes as u32, event });
    }

    /// Moves the oldest events into the batch. An event is for those who were subscribed before it was queued, and
    /// are still: so an id that belongs to another channel by now reaches nobody.
    fn take(&mut self, batch: &mut Batch) {
        let count = self.queue.len().min(BATCH_EVENTS);
        let (mut start, mut run) = (0, None);
        for (index, queued) in self.queue.drain(..count).enumerate() {
            self.queue_bytes -= queued.bytes as usize;
            if run != Some(queued.channel) {
                batch.plan(&self.store, run, self.taken, start..index);
                (start, run) = (index, Some(queued.channel));
            }
            batch.events.push(queued.event);
        }
        batch.plan(&self.store, run, self.taken, start..count);
        self.taken += count as u64;
    }

    /// Does what waits, in the order of the calls, as far as there is room.
    fn admit(&mut self, limits: &QueueLimits, now: Moment) {
        let instant = Instant::now();
        while self.has_room(limits)
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.waiting_bytes -= waiting.bytes;
            if waiting.deadline <= instant {
                continue;
            }
            // Nobody may be listening any more: the operation proceeds all the same.
            match waiting.operation {
                Operation::Append(append, done) => drop(done.send(self.append(waiting.hash, *append, now))),
                Operation::Announce(channel, announcement, done) => {
                    self.announce(waiting.hash, &channel, announcement);
                    drop(done.send(Ok(())));
                }
            }
        }
    }
}

impl Batch {
    /// Notes who gets the events of one channel at `events`, the first of the batch having the number `taken`.
    fn plan(&mut self, store: &Store, channel: Option<u32>, taken: u64, events: Range<usize>) {
        let Some(channel) = channel else { return };
        for sink in store.sinks(channel) {
            let skip = usize::try_from(sink.since.saturating_sub(taken)).unwrap_or(usize::MAX);
            let start = events.start.max(skip);
            if start < events.end {
                self.deliveries.push((sink.live.clone(), start..events.end));
            }
        }
    }

    fn deliver(&mut self, epoch: &Epoch) {
        for (live, range) in self.deliveries.drain(..) {
            let events = &self.events[range];
            let panicked = |events: &[LiveEvent]| catch_unwind(AssertUnwindSafe(|| live.deliver(events))).is_err();
            if panicked(events) {
                tracing::error!(events = events.len(), "a live subscriber panicked");
                // Nobody knows which of the events took effect.
                if let Some(offset) = last_offset(events) {
                    let position = Position { offset, epoch: epoch.clone() };
                    panicked(&[LiveEvent::Lost { position }]);
                }
            }
        }
        self.events.clear();
    }
}

fn last_offset(events: &[LiveEvent]) -> Option<u64> {
    let offset = |event: &LiveEvent| match event {
        LiveEvent::Publication(entry) => Some(entry.offset),
        _ => None,
    };
    events.iter().rev().find_map(offset)
}

/// The queue of live events stayed full.
fn behind() -> AppendError {
    AppendError::Unavailable { reason: "live delivery is behind and its queue stayed full".to_owned() }
}

fn announcement_cost(announcement: &Announcement) -> usize {
    match announcement {
        Announcement::Publication(publication) => cost(publication),
        Announcement::Join(_) | Announcement::Leave(_) => 512,
    }
}
