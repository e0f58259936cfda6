//! Where messages go that nobody could process: a bounded stream of envelopes, for people to look at.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy};
use async_nats::jetstream::{self};

use super::{Envelope, EnvelopeError, PublishError, Publisher};
use crate::pool::Pool;

/// Longest making of the stream.
const MAKING: Duration = Duration::from_secs(10);

/// Settings of the stream, used when it is made; one that is there is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLettersConfig {
    /// First token of its subject, and of its name.
    pub prefix: String,
    /// Copies of it.
    pub replicas: u32,
    /// Messages, at most (default 100,000); the oldest go first.
    pub max_messages: i64,
    /// Bytes, at most (default 256 MiB), which NATS reserves; `None`: not bounded by bytes.
    pub max_bytes: Option<i64>,
    /// Age at which they go (default 7 days).
    pub max_age: Duration,
}

impl DeadLettersConfig {
    /// The defaults under this prefix.
    pub fn new(prefix: impl Into<String>) -> Self {
        DeadLettersConfig {
            prefix: prefix.into(),
            replicas: 1,
            max_messages: 100_000,
            max_bytes: Some(256 << 20),
            max_age: Duration::from_secs(7 * 24 * 3600),
        }
    }

    /// The stream's name.
    pub fn stream(&self) -> String {
        format!("{}-commands-failed", self.prefix)
    }

    /// Its subject.
    pub fn subject(&self) -> String {
        format!("{}.commands.failed", self.prefix)
    }

    fn settings(&self) -> stream::Config {
        stream::Config {
            name: self.stream(),
            subjects: vec![self.subject()],
            max_messages: self.max_messages,
            max_bytes: self.max_bytes.unwrap_or(-1),
            max_age: self.max_age,
            discard: DiscardPolicy::Old,
            num_replicas: self.replicas as usize,
            allow_direct: true,
            ..stream::Config::default()
        }
    }
}

/// Why an envelope was not put aside.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// It cannot be written.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// It was not stored, or nobody knows.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// There is no stream, and none could be made.
    #[error("the stream {stream} could not be made: {reason}")]
    NoStream {
        /// Its name.
        stream: String,
        /// What NATS said.
        reason: String,
    },
}

/// Puts envelopes aside.
pub struct DeadLetters {
    pool: Arc<Pool>,
    publisher: Arc<Publisher>,
    config: DeadLettersConfig,
}

impl DeadLetters {
    /// Through this publisher. The stream is made when the first envelope needs it.
    pub fn new(pool: Arc<Pool>, publisher: Arc<Publisher>, config: DeadLettersConfig) -> Self {
        DeadLetters { pool, publisher, config }
    }

    /// Stores an envelope; once, when one with this id comes again within two minutes.
    pub async fn put(&self, envelope: &Envelope) -> Result<(), DeadLetterError> {
        let message = envelope.message(&self.config.subject(), true)?;
        match self.publisher.publish_sync(message.clone()).await {
            // A cluster without a leader answers the same; making a stream that is there changes nothing.
            Err(PublishError::NoStream) => {}
            outcome => return Ok(outcome.map(|_| ())?),
        }
        self.make().await?;
        self.publisher.publish_sync(message).await?;
        Ok(())
    }

    async fn make(&self) -> Result<(), DeadLetterError> {
        let failed = |reason: String| DeadLetterError::NoStream { stream: self.config.stream(), reason };
        let context = jetstream::new(self.pool.any().client().clone());
        match tokio::time::timeout(MAKING, context.get_or_create_stream(self.config.settings())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("no answer".into())),
        }
    }
}
