//! What waits in a lane: the appends of one channel, in the order of the calls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plenum_channels::{AppendError, Appended};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::shard::Shard;

/// An append on its way to a lane.
pub(super) struct Request {
    pub shard: Arc<Shard>,
    pub channel: Arc<str>,
    pub subject: String,
    pub payload: Bytes,
    pub id: String,
    /// The id was made from the caller's key, so that others may use it too.
    pub keyed: bool,
    pub nonce: Option<u128>,
    pub expected: Option<u64>,
    /// When the caller made it.
    pub called: Instant,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
}

/// Where an append stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Waits,
    /// Whether "never published" can be believed is being looked up.
    Checking,
    InFlight(Instant),
    Failed,
}

/// An append and what became of its attempts.
pub(super) struct Op {
    pub request: Request,
    pub number: u64,
    /// The stream of the first attempt: no id is tried in another one.
    pub stream: Option<String>,
    pub attempts: u32,
    /// The highest sequence known when the first attempt was sent, and the last one: it must be stored above.
    pub floors: (u64, u64),
    pub state: State,
    /// An attempt without an answer may have been stored.
    pub maybe_stored: bool,
    /// A later append of the channel was acknowledged, at this sequence.
    pub overtaken_by: Option<u64>,
    /// Nothing was trimmed from under "never published".
    pub checked: bool,
    /// What the servers last said.
    pub trouble: String,
}

/// The appends of one channel.
#[derive(Default)]
pub(super) struct Line {
    pub ops: VecDeque<Op>,
    pub in_flight: usize,
    /// After a failure: one append at a time, the first not before this moment.
    pub recovering: Option<Instant>,
    /// An append is [`State::Checking`]: what comes behind it waits.
    pub checking: bool,
    pub pause: Duration,
    pub last_acknowledged: u64,
}

/// Ends an append.
pub(super) fn finish(op: Op, result: Result<Appended, AppendError>) {
    let _ = op.request.reply.send(result);
}

/// Ends an append whose outcome is not known, or known to be nothing.
pub(super) fn finish_unanswered(op: Op) {
    let result = match op.maybe_stored {
        true => AppendError::Indeterminate,
        false => AppendError::Unavailable { reason: op.trouble.clone() },
    };
    finish(op, Err(result));
}
