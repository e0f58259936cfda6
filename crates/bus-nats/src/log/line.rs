//! What waits in a lane: the appends of one channel, in the order of the calls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use plenum_channels::{AppendError, Appended};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::shard::{Current, Shard};
use crate::channel_token;

/// While the oldest append in flight is older than this, its channel sends nothing more: an election may be under way, and
/// what is sent after it must not land before what was sent before it.
const CALM: Duration = Duration::from_millis(500);

/// Appends of one channel in flight.
const CHANNEL_WINDOW: usize = 256;

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(20);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// An append on its way to a lane.
pub(super) struct Request {
    pub shard: Arc<Shard>,
    pub channel: Arc<str>,
    pub subject: Subject,
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
    /// Higher than that of every earlier call.
    pub number: u64,
    /// The stream of the first attempt: no id is tried in another one.
    pub stream: Option<Arc<Current>>,
    pub attempts: u32,
    /// The highest sequence known when the first attempt was sent, and the last one: it must be stored above.
    pub floors: (u64, u64),
    state: State,
    /// An attempt without an answer may have been stored.
    pub maybe_stored: bool,
    /// A later append of the channel was acknowledged, at this sequence.
    pub overtaken_by: Option<u64>,
    /// Nothing was trimmed from under "never published".
    pub checked: bool,
    /// What the servers last said.
    pub trouble: String,
}

impl Op {
    pub fn new(request: Request, number: u64) -> Self {
        Self {
            request,
            number,
            stream: None,
            attempts: 0,
            floors: (0, 0),
            state: State::Waits,
            maybe_stored: false,
            overtaken_by: None,
            checked: false,
            trouble: String::new(),
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Ends it.
    pub fn finish(self, result: Result<Appended, AppendError>) {
        // Nobody may be waiting any more.
        let _ = self.request.reply.send(result);
    }

    /// Ends it when its outcome is not known, or known to be nothing.
    pub fn finish_unanswered(mut self) {
        let result = match self.maybe_stored {
            true => AppendError::Indeterminate,
            false if self.trouble.is_empty() => {
                AppendError::Unavailable { reason: "earlier appends of the channel had no answer".into() }
            }
            false => AppendError::Unavailable { reason: std::mem::take(&mut self.trouble) },
        };
        self.finish(Err(result));
    }
}

/// The appends of one channel.
pub(super) struct Line {
    pub channel: Arc<str>,
    /// Names the channel in ticks.
    pub hash: u64,
    /// By number.
    ops: VecDeque<Op>,
    in_flight: usize,
    /// Those that were never sent; unless something failed they stand behind all others.
    waiting: usize,
    /// After a failure: one append at a time, the first not before this moment.
    pub recovering: Option<Instant>,
    pause: Duration,
    /// It waits for room in the lane's window.
    pub starved: bool,
    pub last_acknowledged: u64,
}

impl Line {
    pub fn new(channel: Arc<str>) -> Self {
        let hash = channel_token::hash(&channel);
        Self {
            channel,
            hash,
            ops: VecDeque::new(),
            in_flight: 0,
            waiting: 0,
            recovering: None,
            pause: Duration::ZERO,
            starved: false,
            last_acknowledged: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Oldest first.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter()
    }

    pub fn ops_mut(&mut self) -> impl Iterator<Item = &mut Op> {
        self.ops.iter_mut()
    }

    /// The place of the append with this number.
    pub fn place(&self, number: u64) -> Option<usize> {
        if self.ops.front()?.number == number {
            return Some(0);
        }
        self.ops.binary_search_by_key(&number, |op| op.number).ok()
    }

    pub fn get(&mut self, place: usize) -> Option<&mut Op> {
        self.ops.get_mut(place)
    }

    /// Puts an append where its number belongs.
    pub fn insert(&mut self, op: Op) {
        self.count(op.state, 1);
        if self.ops.back().is_none_or(|last| last.number < op.number) {
            return self.ops.push_back(op);
        }
        let place = self.ops.partition_point(|other| other.number < op.number);
        self.ops.insert(place, op);
    }

    pub fn remove(&mut self, place: usize) -> Option<Op> {
        let op = self.ops.remove(place)?;
        self.count(op.state, -1);
        Some(op)
    }

    pub fn change(&mut self, place: usize, state: State) {
        let Some(before) = self.ops.get_mut(place).map(|op| std::mem::replace(&mut op.state, state)) else { return };
        self.count(before, -1);
        self.count(state, 1);
    }

    fn count(&mut self, state: State, change: isize) {
        match state {
            State::InFlight(_) => self.in_flight = self.in_flight.saturating_add_signed(change),
            State::Waits => self.waiting = self.waiting.saturating_add_signed(change),
            State::Checking | State::Failed => {}
        }
    }

    /// The place of the append to send now, if there is one.
    pub fn next(&self, now: Instant) -> Option<usize> {
        if let Some(at) = self.recovering {
            let first = self.ops.front()?;
            return (self.in_flight == 0 && now >= at && first.state != State::Checking).then_some(0);
        }
        // One that is being looked up before it is sent holds back what comes behind it.
        if self.waiting == 0 || self.in_flight >= CHANNEL_WINDOW {
            return None;
        }
        let place = self.ops.len() - self.waiting;
        if place > 0 && self.ops[place - 1].state == State::Checking {
            return None;
        }
        match self.ops.iter().find_map(|op| if let State::InFlight(since) = op.state { Some(since) } else { None }) {
            Some(since) if now.saturating_duration_since(since) > CALM => None,
            _ => Some(place),
        }
    }

    /// An attempt failed: nothing is sent until all in flight is resolved, and for a pause that doubles.
    pub fn fail(&mut self, place: usize, now: Instant) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.recovering = Some(now + self.pause);
        self.change(place, State::Failed);
    }

    /// An append was acknowledged: what failed before may go on at once.
    pub fn recover(&mut self, now: Instant) {
        self.pause = Duration::ZERO;
        if self.recovering.is_some() {
            self.recovering = self.ops.iter().any(|op| op.state == State::Failed).then_some(now);
        }
    }
}
