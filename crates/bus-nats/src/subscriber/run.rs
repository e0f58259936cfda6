//! The tasks of a subscription: one reader, a fixed number of workers.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::durable::Settle;
use super::inbox::{Full, Inbox, Item};
use super::{Process, ProcessError, QueueConfig, Received, SubscriptionStats};
use crate::histogram::Histogram;
use crate::pool::Pool;

#[derive(Default)]
pub(super) struct Counts {
    pub(super) received: AtomicU64,
    processed: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    timed_out: AtomicU64,
    dropped_full: AtomicU64,
    dropped_bytes: AtomicU64,
    pub(super) redelivered: AtomicU64,
    exhausted: AtomicU64,
    abandoned: AtomicU64,
    pub(super) reopened: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) struct Running {
    name: String,
    workers: usize,
    pub(super) inbox: Inbox,
    pub(super) counts: Counts,
    latency: Histogram,
    busy: AtomicUsize,
    /// The reader is to end; with `draining` it first takes what is under way.
    pub(super) ending: CancellationToken,
    pub(super) draining: CancellationToken,
    /// What waits is not wanted any more.
    pub(super) discarding: CancellationToken,
    /// Nor is what is processed now.
    pub(super) cut: CancellationToken,
    /// Messages and bytes that an ordered subscription holds, and messages that NATS still has for it.
    held: AtomicUsize,
    held_bytes: AtomicUsize,
    remaining: AtomicU64,
    /// Tasks that live.
    alive: watch::Sender<usize>,
    aborts: Mutex<Vec<AbortHandle>>,
}

impl Running {
    pub(super) fn new(name: &str, workers: usize, max_pending: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Running {
            name: name.into(),
            workers: workers.max(1),
            inbox: Inbox::new(max_pending, max_bytes),
            counts: Counts::default(),
            latency: Histogram::new(),
            busy: AtomicUsize::new(0),
            ending: CancellationToken::new(),
            draining: CancellationToken::new(),
            discarding: CancellationToken::new(),
            cut: CancellationToken::new(),
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            remaining: AtomicU64::new(0),
            alive: watch::Sender::new(0),
            aborts: Mutex::new(Vec::new()),
        })
    }

    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.alive.send_modify(|alive| *alive += 1);
        let guard = Alive(self.clone());
        let handle = tokio::spawn(async move {
            // Moved in, so that an aborted task counts as ended as well.
            let _guard = guard;
            task.await;
        });
        self.aborts.lock().push(handle.abort_handle());
    }

    pub(super) fn spawn_workers(
        self: &Arc<Self>,
        processor: &Arc<dyn Process>,
        limit: Duration,
        settle: Option<Arc<Settle>>,
    ) {
        for _ in 0..self.workers {
            self.spawn(work(self.clone(), processor.clone(), limit, settle.clone()));
        }
    }

    /// Counts a delivery of a durable message.
    pub(super) fn note_delivery(&self, attempt: u64) {
        count(&self.counts.received);
        if attempt > 1 {
            count(&self.counts.redelivered);
        }
    }

    pub(super) fn note(&self, tried: Tried) {
        count(match tried {
            Tried::Failed => &self.counts.failed,
            Tried::Panicked => &self.counts.panicked,
            Tried::TimedOut => &self.counts.timed_out,
            Tried::Exhausted => &self.counts.exhausted,
        });
    }

    pub(super) fn note_processed(&self, arrived: Instant) {
        count(&self.counts.processed);
        self.latency.record(arrived.elapsed());
    }

    pub(super) fn note_abandoned(&self) {
        count(&self.counts.abandoned);
    }

    pub(super) fn set_held(&self, messages: usize, bytes: usize) {
        self.held.store(messages, Ordering::Relaxed);
        self.held_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_remaining(&self, messages: u64) {
        self.remaining.store(messages, Ordering::Relaxed);
    }

    /// Something is processed until this is dropped.
    pub(super) fn busy(&self) -> impl Drop + '_ {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(&self.busy)
    }

    /// Takes a message of a queue subscription, or counts why not.
    fn take_in(&self, message: async_nats::Message) {
        count(&self.counts.received);
        let bytes = message.length;
        let item = Item { message: Received::new(message, None), ack: None, arrived: Instant::now(), bytes };
        match self.inbox.put(item) {
            None => {}
            Some((_, Full::Messages)) => count(&self.counts.dropped_full),
            Some((_, Full::Bytes)) => count(&self.counts.dropped_bytes),
            Some((_, Full::Closed)) => count(&self.counts.abandoned),
        }
    }

    pub(super) async fn stop(&self, deadline: Duration) -> bool {
        self.discarding.cancel();
        self.ending.cancel();
        let discarded = self.inbox.close(true);
        self.counts.abandoned.fetch_add(discarded as u64, Ordering::Relaxed);
        self.end_within(deadline).await
    }

    pub(super) async fn drain(&self, deadline: Duration) -> bool {
        self.draining.cancel();
        self.ending.cancel();
        self.end_within(deadline).await
    }

    async fn end_within(&self, deadline: Duration) -> bool {
        if tokio::time::timeout(deadline, self.wait()).await.is_ok() {
            return true;
        }
        // An ordered subscription counts what it holds when it lets go of it.
        let busy = if self.held.load(Ordering::Relaxed) > 0 { 0 } else { self.busy.load(Ordering::Relaxed) };
        let cut_off = busy + self.inbox.close(true);
        self.counts.abandoned.fetch_add(cut_off as u64, Ordering::Relaxed);
        self.abort();
        self.wait().await;
        false
    }

    pub(super) async fn wait(&self) {
        // The sender lives as long as `self`.
        let _ = self.alive.subscribe().wait_for(|alive| *alive == 0).await;
    }

    pub(super) fn abort(&self) {
        for token in [&self.cut, &self.discarding, &self.ending] {
            token.cancel();
        }
        for task in self.aborts.lock().drain(..) {
            task.abort();
        }
    }

    pub(super) fn stats(&self) -> SubscriptionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (waiting, waiting_bytes) = self.inbox.size();
        let pending = waiting + self.held.load(Ordering::Relaxed);
        let pending_bytes = waiting_bytes + self.held_bytes.load(Ordering::Relaxed);
        let (max_pending, max_pending_bytes) = self.inbox.bounds();
        let counts = &self.counts;
        SubscriptionStats {
            source: self.name.clone(),
            workers: self.workers,
            busy: self.busy.load(Ordering::Relaxed),
            pending,
            pending_bytes,
            max_pending,
            max_pending_bytes,
            remaining: get(&self.remaining),
            received: get(&counts.received),
            processed: get(&counts.processed),
            failed: get(&counts.failed),
            panicked: get(&counts.panicked),
            timed_out: get(&counts.timed_out),
            dropped_full: get(&counts.dropped_full),
            dropped_bytes: get(&counts.dropped_bytes),
            redelivered: get(&counts.redelivered),
            exhausted: get(&counts.exhausted),
            abandoned: get(&counts.abandoned),
            reopened: get(&counts.reopened),
            latency: self.latency.latency(),
        }
    }
}

/// What became of a try.
#[derive(Clone, Copy)]
pub(super) enum Tried {
    Failed,
    Panicked,
    TimedOut,
    Exhausted,
}

struct Alive(Arc<Running>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.send_modify(|alive| *alive -= 1);
    }
}

/// Closes the inbox when the reader ends for whatever reason, so that the workers end as well.
pub(super) struct LastOne(pub(super) Arc<Running>);

impl Drop for LastOne {
    fn drop(&mut self) {
        self.0.inbox.close(false);
    }
}

/// The reader of a queue subscription; ends when told, or with the pool.
pub(super) async fn read_queue(running: Arc<Running>, pool: Arc<Pool>, config: QueueConfig) {
    let _last = LastOne(running.clone());
    let client = pool.subscribing(crate::publish::key_of(&config.subject));
    drop(pool);
    let subscribed = match config.queue.clone() {
        Some(queue) => client.queue_subscribe(config.subject.clone(), queue).await,
        None => client.subscribe(config.subject.clone()).await,
    };
    let mut messages = match subscribed {
        Ok(messages) => messages,
        Err(error) => {
            tracing::error!(subject = config.subject, %error, "cannot subscribe");
            return;
        }
    };
    drop(client);
    loop {
        tokio::select! {
            biased;
            () = running.ending.cancelled() => break,
            message = messages.next() => match message {
                Some(message) => running.take_in(message),
                None => return,
            },
        }
    }
    if running.draining.is_cancelled() {
        // After the server has confirmed, what it sent before comes out and then the stream ends.
        if messages.drain().await.is_ok() {
            while let Some(message) = messages.next().await {
                running.take_in(message);
            }
        }
    } else {
        // A closed connection has no subscription left to end.
        let _ = messages.unsubscribe().await;
    }
}

async fn work(running: Arc<Running>, processor: Arc<dyn Process>, limit: Duration, settle: Option<Arc<Settle>>) {
    while let Some(item) = running.inbox.take().await {
        let _busy = running.busy();
        let processed = AssertUnwindSafe(processor.process(&item.message)).catch_unwind();
        let outcome = match tokio::time::timeout(limit, processed).await {
            Ok(Ok(Ok(()))) => {
                count(&running.counts.processed);
                running.latency.record(item.arrived.elapsed());
                Ok(())
            }
            Ok(Ok(Err(error))) => {
                count(&running.counts.failed);
                Err(error)
            }
            Ok(Err(_)) => {
                count(&running.counts.panicked);
                Err(ProcessError::Temporary("processing panicked".into()))
            }
            Err(_) => {
                count(&running.counts.timed_out);
                Err(ProcessError::Temporary(format!("processing took longer than {limit:?}")))
            }
        };
        match &settle {
            Some(settle) => {
                if settle.settle(&item, outcome, &*processor).await {
                    count(&running.counts.exhausted);
                }
            }
            None => {
                if let Err(error) = outcome {
                    tracing::warn!(subject = %item.message.subject, %error, "a message was not processed");
                }
            }
        }
    }
}

struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
