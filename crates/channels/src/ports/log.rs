//! The log: durable, ordered publications of channels, and their live delivery.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use plenum_protocol::{ClientInfo, Publication};

use crate::{Epoch, Position};

/// One publication as the log holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its offset in the channel.
    pub offset: u64,
    /// Offset of the publication before it on the same channel; 0 when it is the first known one.
    pub previous: u64,
    /// The publication; its own `offset` field equals [`Entry::offset`].
    pub publication: Publication,
    /// When the log stored it, Unix milliseconds by the log's clock.
    pub stored_at_ms: u64,
}

impl Entry {
    /// Bytes that others may choose: payload, tags and what is shown of the publisher.
    pub fn bytes(&self) -> usize {
        let Publication { data, tags, info, .. } = &self.publication;
        let tags: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
        let info = info
            .as_ref()
            .map_or(0, |info| info.user.len() + info.client.len() + info.conn_info.len() + info.chan_info.len());
        data.len() + tags + info
    }
}

/// How much of a channel's past readers may see; a namespace's `history_size`, `history_ttl`, `history_meta_ttl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of newest publications that are visible; 0 means no history.
    pub size: usize,
    /// The whole history is visible until this long after the channel's newest publication; zero means no history.
    pub ttl: Duration,
    /// How long the channel's last position outlives its newest publication.
    pub meta_ttl: Duration,
}

impl Retention {
    /// Nothing is kept for readers.
    pub const NONE: Retention = Retention { size: 0, ttl: Duration::ZERO, meta_ttl: Duration::ZERO };

    /// Whether readers can see any past publication.
    pub fn keeps_history(&self) -> bool {
        self.size > 0 && !self.ttl.is_zero()
    }
}

/// A number by which a publisher orders its own publications; older ones are not published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Grows with each publication of the same `scope`.
    pub number: u64,
    /// The API's `version_epoch`: numbers of different scopes do not compare.
    pub scope: String,
}

/// Makes a retry safe: the same key on the same channel appends once within the log's window.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Who chose the key (the server API, or a user), so that two callers cannot collide.
    pub scope: String,
    /// The caller's key.
    pub key: String,
}

/// A request to append one publication.
#[derive(Clone, Debug)]
pub struct Append {
    /// Channel name, whole, at most [`MAX_CHANNEL_BYTES`] bytes.
    pub channel: Arc<str>,
    /// What to publish; its `offset` is ignored.
    pub publication: Publication,
    /// What later readers may see.
    pub retention: Retention,
    /// Makes retries safe.
    pub idempotency: Option<IdempotencyKey>,
    /// Append only if this is the offset of the channel's last publication (0: none was ever published). Of a channel
    /// that may have been forgotten, what [`Log::tail`] says counts, so a retry with the tail's offset succeeds. A known
    /// idempotency key is answered before this is looked at, and a refusal does not use the key up.
    pub expected: Option<u64>,
    /// Kept with the channel's tail, returned by [`Log::tail`].
    pub version: Option<Version>,
}

/// Longest channel name that any log must take, in bytes.
pub const MAX_CHANNEL_BYTES: usize = 255;

/// An acknowledged append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where it stands.
    pub position: Position,
    /// The idempotency key was known: this is the first result, nothing was appended now.
    pub duplicate: bool,
}

/// Why an append has no acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// `expected` was not the last offset; nothing was appended.
    #[error("the channel's last offset is {last}, not the expected {expected}")]
    Conflict {
        /// What the caller expected.
        expected: u64,
        /// The last offset at the time.
        last: u64,
    },
    /// Larger than the log takes; nothing was appended.
    #[error("publication of {size} bytes is over the log's limit of {max}")]
    TooLarge {
        /// Bytes of the publication.
        size: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The log takes nothing now; nothing was appended, trying again makes sense.
    #[error("the log is unavailable: {reason}")]
    Unavailable {
        /// For operators; holds no payload.
        reason: String,
    },
    /// Nobody knows whether it was appended; a retry with the same idempotency key is safe.
    #[error("the log did not answer in time: the publication may have been appended")]
    Indeterminate,
}

/// Where a read starts, exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Since {
    #[default]
    /// The oldest visible publication when reading forwards, the newest when reading backwards.
    End,
    /// Next to this position: after it when reading forwards, before it when reading backwards.
    Position(Position),
}

/// A bounded read of a channel's visible history.
#[derive(Clone, Debug)]
pub struct Read {
    /// Where to start.
    pub since: Since,
    /// Newest first instead of oldest first.
    pub reverse: bool,
    /// At most this many publications; 0 reads only the top.
    pub limit: usize,
    /// Stop after the publication that takes the bytes ([`Entry::bytes`]) over this bound; at least one is returned.
    pub max_bytes: usize,
    /// What is visible.
    pub retention: Retention,
}

/// The answer to a [`Read`].
#[derive(Clone, Debug)]
pub struct Page {
    /// Publications in the order asked for.
    pub entries: Vec<Arc<Entry>>,
    /// The channel's last position, at least as new as everything that this replica has acknowledged or delivered live.
    pub top: Position,
    /// Proof that nothing is missing between `since` and what follows it here, and that `since` lies in this epoch and
    /// not beyond `top`. Never true when anything between was trimmed, expired, removed, or is older than
    /// `retention.size` publications. A quiet channel whose data expired is complete while its tail is remembered.
    /// Meaningless (true) for [`Since::End`]. With a foreign epoch it is false and `entries` is empty; with a position
    /// that is too old it is false and `entries` holds what is still visible.
    pub complete: bool,
    /// More visible publications follow in the direction read.
    pub more: bool,
}

/// A channel's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// The last position.
    pub position: Position,
    /// The version given with the newest versioned publication, as long as the tail is remembered.
    pub version: Option<Version>,
}

/// Why nothing could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Temporary; says nothing about what the log holds.
    #[error("the log is unavailable: {reason}")]
    Unavailable {
        /// For operators; holds no payload.
        reason: String,
    },
}

/// What reaches a subscribed replica on a channel, in order.
#[derive(Clone, Debug)]
pub enum LiveEvent {
    /// The next appended publication: `entry.offset` is greater than that of every earlier one.
    Publication(Arc<Entry>),
    /// An announcement: at most once, no position.
    Announcement(Arc<Announcement>),
    /// The log cannot deliver what lies between the last publication and `position`, or the epoch changed: whoever
    /// relies on positions must be told "insufficient state". Delivery goes on after `position`.
    Lost {
        /// Where delivery goes on.
        position: Position,
    },
}

/// A message to the present subscribers only.
#[derive(Clone, Debug, PartialEq)]
pub enum Announcement {
    /// A publication without history (`durability = "none"`, or `skip_history`).
    Publication(Publication),
    /// A client joined.
    Join(ClientInfo),
    /// A client left.
    Leave(ClientInfo),
}

/// Receives the live events of one channel on one replica.
pub trait Live: Send + Sync + 'static {
    /// Takes the next events, oldest first. Calls for one channel never overlap. Must not block.
    fn deliver(&self, events: &[LiveEvent]);
}

/// A broker with a log, seen from one replica.
///
/// Guarantees that every implementation gives:
/// - An append that was acknowledged is delivered exactly once to every [`Live`] subscribed to its channel before it,
///   on every replica, in the order of offsets; or that subscriber gets [`LiveEvent::Lost`] first. Gaps are repaired
///   below this port.
/// - Offsets of a channel increase strictly. They need not be contiguous.
/// - Calls to [`Log::append`] by one replica for one channel take effect in the order of the calls, also while an
///   earlier one is retried.
/// - Every method ends within a bounded time.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends one publication and resolves when the log has acknowledged it. The call itself fixes the order; the
    /// future need not be polled for the append to proceed once it was polled first.
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Sends to those who are subscribed now, at most once.
    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError>;

    /// Reads visible history; fresh as [`Page::top`] says.
    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError>;

    /// The channel's end, fresh as [`Page::top`] says.
    async fn tail(&self, channel: &str) -> Result<Tail, ReadError>;

    /// Starts live delivery to this replica and returns the position after which every append is delivered. A replica
    /// has at most one subscription to a channel: a second one replaces the first.
    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError>;

    /// Ends live delivery of the channel to this replica; events already under way may still arrive.
    fn unsubscribe(&self, channel: &str);

    /// Hides everything that the channel holds now from later readers. The last position stays, live subscribers
    /// notice nothing. Resolves to the position up to which it is hidden.
    async fn remove(&self, channel: &str) -> Result<Position, AppendError>;
}

impl Tail {
    /// The tail of a channel that nothing is known of.
    pub fn empty(epoch: Epoch) -> Self {
        Tail { position: Position { offset: 0, epoch }, version: None }
    }
}
