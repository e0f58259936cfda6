//! Publishing to JetStream: without waiting, in batches, and one by one. `docs/nats.md` says when to use which.

mod ack;
mod dead_letters;
mod envelope;
mod publisher;
#[cfg(test)]
mod tests;
mod window;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;

pub use ack::{Ack, PublishError};
pub use dead_letters::{DeadLetterError, DeadLetters, DeadLettersConfig};
pub use envelope::{Envelope, EnvelopeError};
pub use publisher::{BatchReport, FailedPublish, FailureSink, Publisher, PublisherConfig, PublisherStats};
pub use window::{PendingAck, Window};

/// One message to publish. Clones share its bytes.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub subject: Subject,
    /// What.
    pub payload: Bytes,
    /// Headers; none is the cheapest.
    pub headers: Option<HeaderMap>,
    /// Messages with the same key keep their order; `None` takes the subject as the key.
    pub key: Option<u64>,
}

impl Outgoing {
    /// A message without headers.
    pub fn new(subject: impl Into<Subject>, payload: impl Into<Bytes>) -> Self {
        Outgoing { subject: subject.into(), payload: payload.into(), headers: None, key: None }
    }

    /// Stored once within the stream's duplicate window, however often it is sent.
    pub fn message_id(self, id: &str) -> Self {
        self.header("Nats-Msg-Id", id)
    }

    /// Carries a W3C trace context.
    pub fn traceparent(self, traceparent: &str) -> Self {
        self.header("traceparent", traceparent)
    }

    /// Keeps the order among messages with the same key, whatever their subjects.
    pub fn key(mut self, key: u64) -> Self {
        self.key = Some(key);
        self
    }

    /// Carries a header; `name` is one of HTTP's, `value` is one line.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.get_or_insert_with(HeaderMap::new).insert(name, value);
        self
    }

    fn pin(&self) -> u64 {
        self.key.unwrap_or_else(|| key_of(self.subject.as_str()))
    }
}

/// The key of a name; the same in every process of one build.
pub fn key_of(name: &str) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name)
}
