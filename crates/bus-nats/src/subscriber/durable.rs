//! Durable JetStream consumers: acknowledged, delivered again on failure, a bounded number of tries.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use rand::Rng;

use super::inbox::Item;
use super::run::{LastOne, Running};
use super::{Delivery, Process, ProcessError, Received};

const REOPEN_MIN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(30);
/// A failed try is not repeated later than this.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Settings of a durable subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableConfig {
    /// Name of the stream, which must exist sooner or later.
    pub stream: String,
    /// Name of the consumer; subscriptions with the same name share its messages.
    pub durable: String,
    /// Subject filter; empty for the whole stream.
    pub filter: String,
    /// Messages processed at a time (default 16). As many more wait; the rest stays in the stream.
    pub workers: usize,
    /// Tries of one message, at most (default 5).
    pub tries: u32,
    /// Pause after the first failed try (default 1 s); doubles with each, at most 60 s.
    pub retry_delay: Duration,
    /// Time for one message (default 20 s).
    pub process_timeout: Duration,
    /// A message without an answer for this long is delivered again (default 60 s). At least two and a half times
    /// `process_timeout`, and raised to that, because a message may wait as long as it is processed.
    pub ack_wait: Duration,
    /// Begin with what is published after the consumer was made, instead of the oldest (default false).
    pub new_only: bool,
}

impl DurableConfig {
    /// The defaults for this stream and consumer.
    pub fn new(stream: impl Into<String>, durable: impl Into<String>) -> Self {
        DurableConfig {
            stream: stream.into(),
            durable: durable.into(),
            filter: String::new(),
            workers: 16,
            tries: 5,
            retry_delay: Duration::from_secs(1),
            process_timeout: Duration::from_secs(20),
            ack_wait: Duration::from_secs(60),
            new_only: false,
        }
    }

    /// With what can never work put right.
    pub(super) fn within_bounds(mut self) -> Self {
        self.workers = self.workers.max(1);
        self.tries = self.tries.max(1);
        self.ack_wait = self.ack_wait.max(self.process_timeout.mul_f64(2.5));
        self
    }

    fn consumer(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.durable.clone()),
            filter_subject: self.filter.clone(),
            deliver_policy: if self.new_only { DeliverPolicy::New } else { DeliverPolicy::All },
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: i64::from(self.tries),
            // As many as can be processed or wait here, times the replicas that may share the consumer.
            max_ack_pending: (self.workers * 2 * 64) as i64,
            ..pull::Config::default()
        }
    }
}

/// The reader; opens the consumer again, for ever, when it breaks.
pub(super) async fn read(running: Arc<Running>, client: async_nats::Client, config: DurableConfig) {
    let _last = LastOne(running.clone());
    let context = jetstream::new(client);
    let mut opening = Opening::new(&config.stream, &config.durable);
    loop {
        let ended = tokio::select! {
            biased;
            () = running.ending.cancelled() => return,
            ended = deliver(&running, &context, &config) => ended,
        };
        let Err(error) = ended else { return };
        if !opening.pause(&running, &error).await {
            return;
        }
    }
}

/// The pauses between attempts to open a consumer.
pub(super) struct Opening {
    stream: String,
    durable: String,
    begun: Instant,
    delay: Duration,
}

impl Opening {
    pub(super) fn new(stream: &str, durable: &str) -> Self {
        Opening { stream: stream.into(), durable: durable.into(), begun: Instant::now(), delay: REOPEN_MIN }
    }

    /// Says why there is another one, and waits; false when told to end.
    pub(super) async fn pause(&mut self, running: &Running, error: &async_nats::Error) -> bool {
        if self.begun.elapsed() > REOPEN_MAX {
            self.delay = REOPEN_MIN;
        }
        running.counts.reopened.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(stream = self.stream, durable = self.durable, %error, "the consumer is opened anew");
        let pause = rand::rng().random_range(Duration::from_millis(50)..=self.delay);
        self.delay = (self.delay * 2).min(REOPEN_MAX);
        let goes_on = tokio::select! {
            () = running.ending.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        };
        self.begun = Instant::now();
        goes_on
    }
}

/// What a message says about its delivery.
pub(super) fn delivery(message: &jetstream::Message) -> Result<Delivery, async_nats::Error> {
    let info = message.info()?;
    Ok(Delivery {
        sequence: info.stream_sequence,
        attempt: info.delivered.max(1) as u64,
        consumer_sequence: info.consumer_sequence,
        remaining: info.pending,
        stored_ns: u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default(),
    })
}

/// The pause after this many failed tries.
pub(super) fn delay(first: Duration, failed: u64) -> Duration {
    let doublings = u32::try_from(failed.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    first.saturating_mul(1 << doublings).min(RETRY_MAX)
}

/// Delivers until the consumer breaks (an error) or the inbox is closed.
async fn deliver(
    running: &Running,
    context: &jetstream::Context,
    config: &DurableConfig,
) -> Result<(), async_nats::Error> {
    let consumer = context.create_consumer_on_stream(config.consumer(), config.stream.as_str()).await?;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(config.workers)
        .expires(Duration::from_secs(10))
        .heartbeat(Duration::from_secs(3))
        .messages()
        .await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let delivery = delivery(&message)?;
        running.note_delivery(delivery.attempt);
        let message = message.message;
        let (bytes, ack) = (message.length, message.reply.clone());
        let message = Received::new(message, Some(delivery));
        if !running.inbox.put_when_room(Item { message, ack, arrived: Instant::now(), bytes }).await {
            return Ok(());
        }
    }
    Err("the stream of messages ended".into())
}

/// Tells JetStream what became of a message.
pub(super) struct Settle {
    pub(super) client: async_nats::Client,
    pub(super) tries: u32,
    pub(super) retry_delay: Duration,
}

impl Settle {
    /// True when the message was given up.
    pub(super) async fn settle(&self, item: &Item, outcome: Result<(), ProcessError>, processor: &dyn Process) -> bool {
        let attempt = item.message.delivery.map_or(1, |delivery| delivery.attempt);
        let (answer, given_up) = match outcome {
            Ok(()) => (AckKind::Ack, false),
            Err(error) if attempt >= u64::from(self.tries) || matches!(error, ProcessError::Permanent(_)) => {
                let farewell = AssertUnwindSafe(processor.exhausted(&item.message, &error)).catch_unwind();
                if farewell.await.is_err() {
                    tracing::error!(subject = %item.message.subject, "taking leave of a message panicked");
                }
                (AckKind::Term, true)
            }
            Err(_) => (AckKind::Nak(Some(delay(self.retry_delay, attempt))), false),
        };
        if let Some(reply) = &item.ack {
            // A lost answer is one more delivery after `ack_wait`.
            let _ = self.client.publish(reply.clone(), Bytes::from(answer)).await;
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_work_is_put_right() {
        let config = DurableConfig::new("EVENTS", "worker");
        assert_eq!(config.clone().within_bounds(), config, "the defaults can work");
        let wrong = DurableConfig { workers: 0, tries: 0, process_timeout: Duration::from_secs(40), ..config };
        let consumer = wrong.within_bounds().consumer();
        assert_eq!((consumer.max_deliver, consumer.max_ack_pending), (1, 128));
        assert_eq!(consumer.ack_wait, Duration::from_secs(100), "a message may wait as long as it is processed");
    }
}
