//! What a consumer is set up with.

use plenum_bus_nats::subscriber::OrderedConfig;

/// One consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// Its name in metrics, logs and reports; unique.
    pub name: String,
    /// Where it reads.
    pub source: OrderedConfig,
    /// What a message is.
    pub mode: Mode,
    /// Longest message in bytes; a longer one is put aside.
    pub max_message_bytes: usize,
}

/// What a message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A command: `{"method": …, "payload": …}`.
    Commands {
        /// A header that names the method; a message with it is the request alone. Empty: none does.
        method_header: String,
    },
    /// A payload that is published as it is.
    Publications(PublicationHeaders),
}

/// The headers that say what to do with a payload; an empty name: that is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicationHeaders {
    /// Channels, with commas between them.
    pub channels: String,
    /// Idempotency key.
    pub idempotency_key: String,
    /// Delta flag, which must not be true.
    pub delta: String,
    /// Version.
    pub version: String,
    /// Epoch of the version.
    pub version_epoch: String,
    /// What the names of headers with tags begin with; the rest is the tag's name.
    pub tags_prefix: String,
}
