//! The three ways to publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::window::{Completion, Waiter};
use super::{Ack, Outgoing, PublishError};
use crate::pool::{Pinned, Pool};

/// A message without acknowledgement, and why.
#[derive(Clone, Debug)]
pub struct FailedPublish {
    /// The message, whole, so that it can be sent again.
    pub message: Outgoing,
    /// What is known of it.
    pub error: PublishError,
}

/// Takes the failures of all [`Publisher::publish_async`] calls. Called on a connection's task: must not block.
pub trait FailureSink: Send + Sync + 'static {
    /// Takes one.
    fn failed(&self, failed: FailedPublish);
}

impl<F: Fn(FailedPublish) + Send + Sync + 'static> FailureSink for F {
    fn failed(&self, failed: FailedPublish) {
        self(failed);
    }
}

/// Settings of a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherConfig {
    /// Publishes of `publish_async` that wait for an acknowledgement, at most (default 256).
    pub max_unacknowledged: usize,
    /// Messages of one `publish_batch` that wait for an acknowledgement, at most (default 100).
    pub batch_window: usize,
    /// How long an acknowledgement may take (default 5 s).
    pub ack_timeout: Duration,
}

impl Default for PublisherConfig {
    fn default() -> Self {
        PublisherConfig { max_unacknowledged: 256, batch_window: 100, ack_timeout: Duration::from_secs(5) }
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct BatchReport {
    /// Messages that are stored.
    pub acknowledged: usize,
    /// The others, in the order of the batch.
    pub failed: Vec<FailedPublish>,
}

/// Counts since the publisher was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PublisherStats {
    /// Messages given to a connection.
    pub sent: u64,
    /// Messages with an acknowledgement.
    pub acknowledged: u64,
    /// Messages without one.
    pub failed: u64,
    /// Messages of `publish_async` that wait for one.
    pub unacknowledged: usize,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn note<T>(&self, outcome: &Result<T, PublishError>) {
        let counter = if outcome.is_ok() { &self.acknowledged } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Publishes to JetStream through a pool. Messages of one key go out in the order of the calls.
pub struct Publisher {
    pool: Arc<Pool>,
    config: PublisherConfig,
    room: Arc<Semaphore>,
    shared: Arc<Shared>,
}

struct Shared {
    failures: Box<dyn FailureSink>,
    counts: Counts,
}

impl Publisher {
    /// A publisher whose `publish_async` hands its failures to `failures`.
    pub fn new(pool: Arc<Pool>, config: PublisherConfig, failures: impl FailureSink) -> Self {
        let shared = Arc::new(Shared { failures: Box::new(failures), counts: Counts::default() });
        Publisher { pool, config, room: Arc::new(Semaphore::new(config.max_unacknowledged)), shared }
    }

    /// Gives the message to a connection and returns; the failure sink is told if it gets no acknowledgement. Waits
    /// while the window is full. An error here means that it was not sent, and the sink is not told.
    pub async fn publish_async(&self, message: Outgoing) -> Result<(), PublishError> {
        let permit = self.room.clone().acquire_owned().await.map_err(|_| PublishError::Closed)?;
        self.hand_over(message, permit).await
    }

    /// Like [`publish_async`](Self::publish_async), but a full window is [`PublishError::WindowFull`].
    pub async fn try_publish_async(&self, message: Outgoing) -> Result<(), PublishError> {
        let permit = self.room.clone().try_acquire_owned().map_err(|_| PublishError::WindowFull)?;
        self.hand_over(message, permit).await
    }

    async fn hand_over(&self, message: Outgoing, permit: OwnedSemaphorePermit) -> Result<(), PublishError> {
        let pinned = self.pool.pinned(message.pin());
        let window = pinned.window().clone();
        let Outgoing { subject, payload, headers, .. } = message.clone();
        let unacknowledged = Unacknowledged { message, shared: self.shared.clone(), _pinned: pinned, _permit: permit };
        let waiter = Waiter::Call(Box::new(unacknowledged));
        self.shared.counts.sent.fetch_add(1, Ordering::Relaxed);
        let sent = window.send(subject, headers, payload, self.config.ack_timeout, waiter).await;
        if sent.is_err() {
            self.shared.counts.note(&sent);
        }
        sent
    }

    /// Publishes all messages, at most [`batch_window`](PublisherConfig::batch_window) waiting at a time, and returns
    /// when the last one has its outcome.
    pub async fn publish_batch(&self, messages: Vec<Outgoing>) -> BatchReport {
        let mut report = BatchReport::default();
        let mut messages = messages.into_iter();
        loop {
            let mut waiting = Vec::with_capacity(self.config.batch_window);
            for message in messages.by_ref().take(self.config.batch_window.max(1)) {
                let sent = self.send(&message).await;
                waiting.push((message, sent));
            }
            if waiting.is_empty() {
                return report;
            }
            for (message, sent) in waiting {
                let outcome = match sent {
                    Ok((pending, _pinned)) => pending.await,
                    Err(error) => Err(error),
                };
                self.shared.counts.note(&outcome);
                match outcome {
                    Ok(_) => report.acknowledged += 1,
                    Err(error) => report.failed.push(FailedPublish { message, error }),
                }
            }
        }
    }

    /// Publishes one message and waits for its acknowledgement.
    pub async fn publish_sync(&self, message: Outgoing) -> Result<Ack, PublishError> {
        let outcome = match self.send(&message).await {
            Ok((pending, _pinned)) => pending.await,
            Err(error) => Err(error),
        };
        self.shared.counts.note(&outcome);
        outcome
    }

    async fn send(&self, message: &Outgoing) -> Result<(super::PendingAck, Pinned), PublishError> {
        let pinned = self.pool.pinned(message.pin());
        self.shared.counts.sent.fetch_add(1, Ordering::Relaxed);
        let Outgoing { subject, payload, headers, .. } = message.clone();
        let pending = pinned.window().publish(subject, headers, payload, self.config.ack_timeout).await?;
        Ok((pending, pinned))
    }

    /// Numbers at this moment.
    pub fn stats(&self) -> PublisherStats {
        let counts = &self.shared.counts;
        PublisherStats {
            sent: counts.sent.load(Ordering::Relaxed),
            acknowledged: counts.acknowledged.load(Ordering::Relaxed),
            failed: counts.failed.load(Ordering::Relaxed),
            unacknowledged: self.config.max_unacknowledged.saturating_sub(self.room.available_permits()),
        }
    }

    /// Waits until nothing of `publish_async` waits for an acknowledgement, at most for `deadline`; false if something
    /// still does.
    pub async fn settled(&self, deadline: Duration) -> bool {
        let all = u32::try_from(self.config.max_unacknowledged).unwrap_or(u32::MAX);
        matches!(tokio::time::timeout(deadline, self.room.acquire_many(all)).await, Ok(Ok(_)))
    }
}

/// A message of `publish_async` on its way; keeps its key's connection and its place in the window.
struct Unacknowledged {
    message: Outgoing,
    shared: Arc<Shared>,
    _pinned: Pinned,
    _permit: OwnedSemaphorePermit,
}

impl Completion for Unacknowledged {
    fn complete(self: Box<Self>, outcome: Result<Ack, PublishError>) {
        self.shared.counts.note(&outcome);
        if let Err(error) = outcome {
            self.shared.failures.failed(FailedPublish { message: self.message, error });
        }
    }
}
