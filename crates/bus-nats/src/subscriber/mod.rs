//! Subscriptions of services: queue subscriptions at most once, durable ones at least once. Both are bounded, count
//! what happens at each bound, and end without leaving a task behind.

mod durable;
mod inbox;
mod ordered;
mod run;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use crate::histogram::Latency;
use crate::pool::Pool;
pub use durable::DurableConfig;
pub use ordered::{Assignment, OrderedConfig, ProcessInOrder};
use run::Running;

/// A message as a processor sees it.
#[derive(Clone, Debug)]
pub struct Received {
    /// Where it was published.
    pub subject: Subject,
    /// What was published.
    pub payload: Bytes,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Where an answer is awaited, of a queue subscription's request.
    pub reply: Option<Subject>,
    /// Of a durable subscription.
    pub delivery: Option<Delivery>,
}

/// Which delivery of a stored message this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Sequence in the stream.
    pub sequence: u64,
    /// 1 for the first try.
    pub attempt: u64,
    /// Number of this delivery among all of the consumer; those that one process gets follow each other.
    pub consumer_sequence: u64,
    /// Messages of the stream that this consumer has not seen yet.
    pub remaining: u64,
    /// When it was stored, Unix nanoseconds: with the sequence it names the message, also after the stream was made anew.
    pub stored_ns: u64,
}

impl Received {
    fn new(message: Message, delivery: Option<Delivery>) -> Self {
        let Message { subject, reply, payload, headers, .. } = message;
        Received { subject, payload, headers, reply: reply.filter(|_| delivery.is_none()), delivery }
    }

    /// The trace context that came with it.
    pub fn traceparent(&self) -> Option<&str> {
        self.headers.as_ref()?.get("traceparent").map(|value| value.as_str())
    }
}

/// Why a message was not processed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Another try may succeed.
    #[error("{0}")]
    Temporary(String),
    /// No other try will succeed: a durable message is not delivered again.
    #[error("{0}")]
    Permanent(String),
}

/// Processes messages, several at a time.
#[async_trait]
pub trait Process: Send + Sync + 'static {
    /// Processes one message. A durable one is acknowledged when this returns `Ok`, and may come again all the same:
    /// be idempotent.
    async fn process(&self, message: &Received) -> Result<(), ProcessError>;

    /// Takes leave of a durable message that had all its tries; it is not delivered again after this.
    async fn exhausted(&self, message: &Received, error: &ProcessError) {
        tracing::error!(subject = %message.subject, %error, "a message was given up");
    }
}

/// Settings of a queue subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Subject, wildcards allowed.
    pub subject: String,
    /// Queue group: each message goes to one member. `None`: to every subscriber.
    pub queue: Option<String>,
    /// Messages processed at a time (default 16).
    pub workers: usize,
    /// Messages that wait for a worker, at most (default 131,072). One more is dropped and counted.
    pub max_pending: usize,
    /// Their bytes, at most (default 256 MiB). A message beyond is dropped and counted.
    pub max_pending_bytes: usize,
    /// Time for one message (default 30 s).
    pub process_timeout: Duration,
}

impl QueueConfig {
    /// The defaults for this subject and queue group.
    pub fn new(subject: impl Into<String>, queue: Option<&str>) -> Self {
        QueueConfig {
            subject: subject.into(),
            queue: queue.map(Into::into),
            workers: 16,
            max_pending: 128 * 1024,
            max_pending_bytes: 256 * 1024 * 1024,
            process_timeout: Duration::from_secs(30),
        }
    }
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SubscriptionStats {
    /// Its subject, or the durable's name.
    pub source: String,
    /// Messages processed at a time, at most.
    pub workers: usize,
    /// Messages processed now.
    pub busy: usize,
    /// Messages that wait for a worker; of an ordered one all that are not settled.
    pub pending: usize,
    /// Their bytes.
    pub pending_bytes: usize,
    /// Bound of `pending`.
    pub max_pending: usize,
    /// Bound of `pending_bytes`.
    pub max_pending_bytes: usize,
    /// Messages that NATS still has for an ordered one, at the last look.
    pub remaining: u64,
    /// Messages taken from NATS.
    pub received: u64,
    /// Messages processed.
    pub processed: u64,
    /// Tries that ended in an error.
    pub failed: u64,
    /// Tries that panicked.
    pub panicked: u64,
    /// Tries that took too long.
    pub timed_out: u64,
    /// Messages dropped because too many waited.
    pub dropped_full: u64,
    /// Messages dropped because too many bytes waited.
    pub dropped_bytes: u64,
    /// Deliveries of a durable message after the first.
    pub redelivered: u64,
    /// Durable messages given up after all tries or for good.
    pub exhausted: u64,
    /// Waiting messages discarded by a stop, and those whose processing it cut off.
    pub abandoned: u64,
    /// Times that a durable's stream of messages had to be opened anew.
    pub reopened: u64,
    /// From arrival to processed.
    pub latency: Latency,
}

/// A subscription that runs. Dropping it ends it at once.
pub struct Subscription {
    running: Arc<Running>,
}

impl Subscription {
    /// Starts a queue subscription and returns at once; it stands as soon as the pool has contact.
    pub fn queue(pool: &Arc<Pool>, config: QueueConfig, processor: Arc<dyn Process>) -> Self {
        let running = Running::new(&config.subject, config.workers, config.max_pending, config.max_pending_bytes);
        running.spawn(run::read_queue(running.clone(), pool.clone(), config.clone()));
        running.spawn_workers(&processor, config.process_timeout, None);
        Subscription { running }
    }

    /// Starts a durable subscription and returns at once; it makes its consumer as soon as the stream exists.
    pub fn durable(pool: &Arc<Pool>, config: DurableConfig, processor: Arc<dyn Process>) -> Self {
        let config = config.within_bounds();
        let running = Running::new(&config.durable, config.workers, config.workers, usize::MAX);
        let client = pool.subscribing(crate::publish::key_of(&config.durable));
        running.spawn(durable::read(running.clone(), client.clone(), config.clone()));
        let settle = durable::Settle { client, tries: config.tries, retry_delay: config.retry_delay };
        running.spawn_workers(&processor, config.process_timeout, Some(Arc::new(settle)));
        Subscription { running }
    }

    /// Takes no more, discards what waits (a durable's messages are delivered again later), lets the messages that are
    /// processed now finish, at most for `deadline`. False if some had to be cut off. Leaves no task behind.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.running.stop(deadline).await
    }

    /// Takes no more and processes everything that waits, at most for `deadline`. False if some had to be cut off.
    /// Leaves no task behind.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.running.drain(deadline).await
    }

    /// Waits until it has ended, by [`stop`](Self::stop), [`drain`](Self::drain) or the end of the pool.
    pub async fn wait(&self) {
        self.running.wait().await;
    }

    /// Numbers at this moment.
    pub fn stats(&self) -> SubscriptionStats {
        self.running.stats()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.running.abort();
    }
}
