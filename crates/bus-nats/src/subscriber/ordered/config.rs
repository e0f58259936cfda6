//! Settings, and the consumer that they make.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PriorityPolicy, pull};

use super::GROUP;

/// A process that stops asking for messages loses its pin after this; longer than the longest `ack_wait`, so that what it
/// had comes again before anything new.
pub(super) const PIN: Duration = Duration::from_secs(15);
const ACK_WAIT_MAX: Duration = Duration::from_secs(12);

/// Settings of a durable subscription that keeps order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedConfig {
    /// Name of the stream, which must exist sooner or later.
    pub stream: String,
    /// Name of the consumer. Of the processes that subscribe by one name, one at a time gets messages.
    pub durable: String,
    /// Subject filters; empty for the whole stream.
    pub filters: Vec<String>,
    /// Messages taken and not settled, at most (default 1,000). The rest stays in the stream.
    pub max_unsettled: usize,
    /// Tries of one part of a message, at most (default 5). One during which contact with NATS was lost does not count.
    pub tries: u32,
    /// Pause after the first failed try (default 1 s); doubles with each, at most 60 s.
    pub retry_delay: Duration,
    /// Time for one try (default 60 s).
    pub process_timeout: Duration,
    /// A message of a process that is gone is delivered again after this (default 10 s, at most 12 s); those of a living
    /// one are kept from it.
    pub ack_wait: Duration,
    /// Begin with what is published after the consumer was made, instead of the oldest (default false).
    pub new_only: bool,
}

impl OrderedConfig {
    /// The defaults for this stream and consumer.
    pub fn new(stream: impl Into<String>, durable: impl Into<String>) -> Self {
        OrderedConfig {
            stream: stream.into(),
            durable: durable.into(),
            filters: Vec::new(),
            max_unsettled: 1000,
            tries: 5,
            retry_delay: Duration::from_secs(1),
            process_timeout: Duration::from_secs(60),
            ack_wait: Duration::from_secs(10),
            new_only: false,
        }
    }

    /// With what can never work put right.
    pub(super) fn within_bounds(mut self) -> Self {
        self.max_unsettled = self.max_unsettled.max(1);
        self.tries = self.tries.max(1);
        self.ack_wait = self.ack_wait.clamp(Duration::from_millis(500), ACK_WAIT_MAX);
        self
    }

    pub(super) fn consumer(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.durable.clone()),
            filter_subjects: self.filters.clone(),
            deliver_policy: if self.new_only { DeliverPolicy::New } else { DeliverPolicy::All },
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            // Tries are counted here: what the server gives up would be lost without a word.
            max_deliver: -1,
            max_ack_pending: self.max_unsettled as i64,
            priority_policy: PriorityPolicy::PinnedClient,
            priority_groups: vec![GROUP.into()],
            priority_timeout: PIN,
            ..pull::Config::default()
        }
    }
}
