//! A channel on this replica: its local subscribers and the place where history and live stream join.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use parking_lot::Mutex;
use plenum_protocol::PushEvent;
use plenum_protocol::codes::Disconnect;
use plenum_telemetry::Metrics;
use tokio::sync::watch;

use crate::burst::{Burst, Bursts, Frames, publication_frame};
use crate::node::unix_now_ms;
use crate::outbox::Mail;
use crate::{Announcement, Entry, Live, LiveEvent, Outbox, Position, ReadError};

/// Publications kept for subscribers that are joining; more and they read the log once more.
const MAX_RECENT: usize = 1024;
/// Payload bytes kept for them.
const MAX_RECENT_BYTES: usize = 1024 * 1024;

/// [`Member::after`] of a member that is not live yet.
const JOINING: u64 = u64::MAX;
/// [`Member::after`] of a member for which publications were lost.
const LOST: u64 = u64::MAX - 1;

/// A channel with at least one local subscriber, present or joining.
pub(crate) struct Channel {
    pub(crate) name: Arc<str>,
    /// Whether the log delivers here.
    pub(crate) start: Mutex<Start>,
    /// Holders of a [`crate::hub::Lease`]; changed under the hub's shard lock only.
    pub(crate) holders: AtomicUsize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

/// How far a channel is subscribed in the log.
#[derive(Default)]
pub(crate) enum Start {
    #[default]
    None,
    /// Somebody asks the log; the outcome comes here. Closed when that has ended.
    UnderWay(watch::Receiver<Option<Result<(), ReadError>>>),
    Live,
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    gone: usize,
    next_member: u64,
    /// Everything up to here was handed to the members.
    position: Position,
    /// Whether publications carry their offset on the wire: only where there is history to recover from.
    shows_offsets: bool,
    joining: usize,
    recent: Option<Box<Recent>>,
}

/// What was delivered while somebody was joining.
#[derive(Default)]
struct Recent {
    /// Everything after this offset that was delivered is in `entries`.
    after: u64,
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

/// One subscription as the channel sees it; sorted by `id`.
struct Member {
    id: u64,
    /// Publications up to this offset are not for this member; also [`JOINING`] and [`LOST`].
    after: u64,
    /// `None` once it left; swept when half of the members are gone.
    outbox: Option<Arc<Outbox>>,
    traits: MemberTraits,
}

/// What a subscription asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemberTraits {
    /// Gets join and leave pushes.
    pub(crate) join_leave: bool,
    /// Relies on positions: is told when something was lost.
    pub(crate) positioned: bool,
}

/// Whether a joining subscription could go live.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum GoLive {
    /// Live: every later publication reaches the outbox.
    Done,
    /// Publications after the position read were delivered and are no longer at hand: read on from it.
    Behind,
    /// The member was removed meanwhile.
    Gone,
}

impl Channel {
    pub(crate) fn new(name: Arc<str>, metrics: Arc<Metrics>) -> Self {
        Self {
            name,
            start: Mutex::default(),
            holders: AtomicUsize::new(1),
            metrics,
            state: Mutex::new(State::default()),
        }
    }

    /// The log delivers from here on.
    pub(crate) fn started(&self, position: Position) {
        let mut state = self.state.lock();
        // Publications after `position` may have been delivered already.
        state.position = Position { offset: position.offset.max(state.position.offset), ..position };
    }

    /// Follows the namespace's settings, which a reload may change.
    pub(crate) fn show_offsets(&self, shows_offsets: bool) {
        self.state.lock().shows_offsets = shows_offsets;
    }

    /// Adds a member that gets nothing before [`Channel::go_live`].
    pub(crate) fn join(&self, outbox: Arc<Outbox>, traits: MemberTraits) -> u64 {
        let mut state = self.state.lock();
        let id = state.next_member;
        state.next_member += 1;
        state.joining += 1;
        let after = state.position.offset;
        state.recent.get_or_insert_with(|| Box::new(Recent { after, ..Recent::default() }));
        if state.members.is_empty() {
            // Most channels of many have one.
            state.members.reserve_exact(1);
        }
        state.members.push(Member { id, after: JOINING, outbox: Some(outbox), traits });
        self.metrics.subscriptions.inc();
        id
    }

    /// Ends the joining of a member that has everything up to and including `read`: queues `reply`, then what was
    /// delivered since, and from then on every publication. All of it under one lock, so nothing can slip between.
    ///
    /// `read` is `None` for a member that starts wherever the channel is.
    pub(crate) fn go_live(&self, member: u64, read: Option<&Position>, reply: &mut Option<Bytes>) -> GoLive {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Ok(index) = state.members.binary_search_by_key(&member, |m| m.id) else { return GoLive::Gone };
        let Some(outbox) = state.members[index].outbox.clone() else { return GoLive::Gone };
        let Some(recent) = &state.recent else { return GoLive::Gone };
        let read = match read {
            None => state.position.offset,
            Some(read) if read.epoch == state.position.epoch => read.offset,
            // The log went into another epoch: reading on tells that the old position is worth nothing.
            Some(_) => return GoLive::Behind,
        };
        if recent.after > read {
            return GoLive::Behind;
        }
        if let Some(reply) = reply.take() {
            outbox.push(reply);
        }
        let encoding = outbox.encoding();
        let floor = read;
        #[cfg(test)]
        let floor = Sabotage::distort(floor);
        let missed = recent.entries.iter().filter(|entry| entry.offset > floor);
        let mut frames = Vec::new();
        for entry in missed {
            match publication_frame(encoding, &self.name, &entry.publication, state.shows_offsets) {
                Some(frame) => frames.push(frame),
                None => outbox.close(Disconnect::INAPPROPRIATE_PROTOCOL),
            }
        }
        outbox.push_all(frames);
        let after = read.max(state.position.offset);
        #[cfg(test)]
        let after = if Sabotage::is(Sabotage::SkipFilter) { 0 } else { after };
        state.members[index].after = after;
        state.end_joining();
        GoLive::Done
    }

    /// Whether publications were lost for a member that relies on positions: it gets nothing any more.
    pub(crate) fn is_lost(&self, member: u64) -> bool {
        let state = self.state.lock();
        let index = state.members.binary_search_by_key(&member, |m| m.id);
        index.is_ok_and(|index| state.members[index].after == LOST)
    }

    /// Removes a member, joining or live.
    pub(crate) fn leave(&self, member: u64) {
        let mut state = self.state.lock();
        let Ok(index) = state.members.binary_search_by_key(&member, |m| m.id) else { return };
        state.remove(index);
        state.sweep();
        self.metrics.subscriptions.dec();
    }

    /// Local subscriptions, joining ones included.
    pub(crate) fn len(&self) -> usize {
        let state = self.state.lock();
        state.members.len() - state.gone
    }

    /// Hands a run of publications out. What a member gets of it is one message, so that a burst costs each member as
    /// much as a single publication.
    fn publications(&self, state: &mut State, run: &[&Arc<Entry>]) {
        let mut fresh = Vec::with_capacity(run.len());
        for &entry in run {
            // The log promises increasing offsets; what is older was delivered.
            if entry.offset > state.position.offset {
                state.position.offset = entry.offset;
                if let Some(recent) = &mut state.recent {
                    recent.push(entry);
                }
                fresh.push(entry);
            }
        }
        let (Some(first), Some(last)) = (fresh.first(), fresh.last()) else { return };
        self.metrics.publications_received.inc_by(fresh.len() as u64);
        let age = unix_now_ms().saturating_sub(first.stored_at_ms as i64).max(0);
        self.metrics.delivery_seconds.observe(age as f64 / 1000.0);
        let mut frames = Bursts::default();
        let mut delivered = 0;
        for member in &state.members {
            let Some(outbox) = &member.outbox else { continue };
            if member.after >= last.offset {
                continue;
            }
            if member.after < first.offset {
                let burst = frames
                    .get(outbox.encoding(), || Burst::new(outbox.encoding(), &self.name, &fresh, state.shows_offsets));
                burst.push(outbox);
                delivered += fresh.len();
            } else {
                // It has read ahead of the delivery: the rest is for it alone.
                let rest = &fresh[fresh.partition_point(|entry| entry.offset <= member.after)..];
                Burst::new(outbox.encoding(), &self.name, rest, state.shows_offsets).push(outbox);
                delivered += rest.len();
            }
        }
        self.metrics.publications_delivered.inc_by(delivered as u64);
    }

    fn announcement(&self, state: &mut State, announcement: &Announcement) {
        if matches!(announcement, Announcement::Publication(_)) {
            self.metrics.publications_received.inc();
        }
        let mut frames = Frames::default();
        let mut delivered = 0;
        for member in &mut state.members {
            let Some(outbox) = &member.outbox else { continue };
            if member.after == JOINING {
                continue;
            }
            let encoding = outbox.encoding();
            let frame = match announcement {
                Announcement::Publication(publication) => {
                    delivered += 1;
                    frames.publication(encoding, &self.name, publication, false)
                }
                Announcement::Join(_) | Announcement::Leave(_) if !member.traits.join_leave => continue,
                Announcement::Join(info) => frames.event(encoding, &self.name, || PushEvent::Join(info.clone())),
                Announcement::Leave(info) => frames.event(encoding, &self.name, || PushEvent::Leave(info.clone())),
            };
            match frame {
                Some(frame) => outbox.push(frame),
                None => outbox.close(Disconnect::INAPPROPRIATE_PROTOCOL),
            }
        }
        self.metrics.publications_delivered.inc_by(delivered);
    }

    fn lost(&self, state: &mut State, position: &Position) {
        state.position = position.clone();
        if let Some(recent) = &mut state.recent {
            // A joining member reads on from what it has and learns from the log whether anything is missing.
            **recent = Recent { after: position.offset, ..Recent::default() };
        }
        for member in &mut state.members {
            if member.after == JOINING || !member.traits.positioned {
                member.after = if member.after == JOINING { JOINING } else { 0 };
                continue;
            }
            // Nothing more reaches it; its session says so to the client and removes it.
            member.after = LOST;
            if let Some(outbox) = &member.outbox {
                outbox.mail(Mail::Lost { channel: self.name.clone(), member: member.id });
            }
        }
    }
}

impl Live for Channel {
    fn deliver(&self, events: &[LiveEvent]) {
        let mut state = self.state.lock();
        let mut run = Vec::new();
        for event in events {
            if let LiveEvent::Publication(entry) = event {
                run.push(entry);
                continue;
            }
            self.publications(&mut state, &std::mem::take(&mut run));
            match event {
                LiveEvent::Publication(_) => {}
                LiveEvent::Announcement(announcement) => self.announcement(&mut state, announcement),
                LiveEvent::Lost { position } => self.lost(&mut state, position),
            }
        }
        self.publications(&mut state, &run);
    }
}

impl State {
    fn end_joining(&mut self) {
        self.joining -= 1;
        if self.joining == 0 {
            self.recent = None;
        }
    }

    fn remove(&mut self, index: usize) {
        let member = &mut self.members[index];
        if member.outbox.take().is_none() {
            return;
        }
        let joining = member.after == JOINING;
        self.gone += 1;
        if joining {
            self.end_joining();
        }
    }

    fn sweep(&mut self) {
        if self.gone * 2 > self.members.len() {
            self.members.retain(|member| member.outbox.is_some());
            self.gone = 0;
            if self.members.capacity() > 16 && self.members.capacity() > self.members.len() * 4 {
                self.members.shrink_to(self.members.len() * 2);
            }
        }
    }
}

impl Recent {
    fn push(&mut self, entry: &Arc<Entry>) {
        self.bytes += entry.publication.data.len();
        self.entries.push_back(entry.clone());
        if self.entries.len() > MAX_RECENT || self.bytes > MAX_RECENT_BYTES {
            *self = Recent { after: entry.offset, ..Recent::default() };
        }
    }
}

/// Ways to break the joining code, for the test that must notice them.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    None,
    /// What was delivered while the member was joining is not handed to it.
    ForgetRecent,
    /// All of it is, also what the read brought already.
    RepeatRecent,
    /// A member that has read ahead of the delivery gets it again.
    SkipFilter,
}

#[cfg(test)]
thread_local! {
    static SABOTAGE: std::cell::Cell<Sabotage> = const { std::cell::Cell::new(Sabotage::None) };
}

#[cfg(test)]
impl Sabotage {
    /// Runs `f` with the joining code of this thread broken in this way.
    pub(crate) fn with<T>(self, f: impl FnOnce() -> T) -> T {
        SABOTAGE.set(self);
        let result = f();
        SABOTAGE.set(Sabotage::None);
        result
    }

    fn is(sabotage: Sabotage) -> bool {
        SABOTAGE.get() == sabotage
    }

    fn distort(read: u64) -> u64 {
        match SABOTAGE.get() {
            Sabotage::ForgetRecent => u64::MAX - 2,
            Sabotage::RepeatRecent => 0,
            Sabotage::None | Sabotage::SkipFilter => read,
        }
    }
}
