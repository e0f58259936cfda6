//! Live delivery of one channel.
//!
//! A channel is the work that travels with its live messages through the keyed workers. Whatever else happens to it
//! (subscriptions, finished reads, what ticks name) is put into its inbox, and whoever holds its state carries it out, one
//! thing after the other: so nobody ever waits for it. Joins, reads of gaps and verifications run beside, while live messages
//! wait in the [`Chain`] within bounds.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use async_nats::header::NATS_SEQUENCE;
use async_nats::{Message, Subscriber};
use futures_util::stream::AbortHandle;
use parking_lot::Mutex;
use plenum_channels::{Announcement, LiveEvent, ReadError};

use super::chain::{Chain, Filled, Gap, Incoming, Output};
use super::delivery::{Delivery, Reply, Sink};
use super::event::{decode_announcement, publication};
use super::jetstream::{RequestError, Stored};
use super::piece::{Piece, Pieces};
use super::repair;
use super::shard::{Current, Shard, Tracked};
use crate::channel_token;
use crate::parcel::Parcel;
use crate::workers::{Loss, Step, Terms, Work};

/// One channel with a local subscription.
pub(super) struct Channel {
    pub name: Arc<str>,
    pub hash: u64,
    pub shard: Arc<Shard>,
    pub pieces: Pieces,
    me: Weak<Channel>,
    tracked: Arc<Tracked>,
    delivery: Arc<Delivery>,
    inbox: Mutex<Inbox>,
    state: Mutex<State>,
}

/// What happens to a channel.
enum Input {
    Subscribe {
        sink: Arc<Sink>,
        reply: Reply,
    },
    End,
    Arrived(Piece),
    /// It has something at or after this sequence.
    Require(u64),
    /// The same, of this incarnation only.
    Verified {
        current: Arc<Current>,
        last: u64,
    },
    Joined(Box<Result<Joined, RequestError>>),
    Filled {
        current: Arc<Current>,
        filled: Option<Box<Filled<Stored>>>,
    },
    Reincarnated,
}

/// What waits to be carried out, oldest first: most of the time one thing or nothing, which takes no memory of its own.
#[derive(Default)]
struct Inbox {
    first: Option<Input>,
    rest: VecDeque<Input>,
}

impl Inbox {
    fn push(&mut self, input: Input) {
        match self.first {
            None if self.rest.is_empty() => self.first = Some(input),
            _ => self.rest.push_back(input),
        }
    }

    fn push_first(&mut self, input: Input) {
        if let Some(second) = self.first.replace(input) {
            self.rest.push_front(second);
        }
    }

    fn take(&mut self) -> Option<Input> {
        self.first.take().or_else(|| self.rest.pop_front())
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }
}

/// What a join found.
pub(super) struct Joined {
    pub subscriber: Option<Subscriber>,
    pub current: Arc<Current>,
    pub last: u64,
    pub through: u64,
}

struct State {
    phase: Phase,
    sink: Option<Arc<Sink>>,
    chain: Chain<Stored>,
    /// Stream of the sequences in `chain`; `None` while joining.
    current: Option<Arc<Current>>,
    waiting: Vec<Reply>,
    subscription: Option<AbortHandle>,
    /// The read of a gap.
    reading: Option<tokio::task::AbortHandle>,
    out: Vec<Output<Stored>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Subscribed,
    Ended,
}

impl Work<Parcel> for Channel {
    fn run(self: Arc<Self>, _key: u64, parcel: Parcel) -> Step {
        parcel.step()
    }

    /// So few pieces wait for their worker that none needs to be given up, and reading what they held would cost more.
    fn terms(&self) -> Terms {
        Terms { deadline: None, waits: false }
    }

    /// A panic may have cost more than the piece: the channel begins anew, and its subscriber is told.
    fn lost(&self, _key: u64, loss: Loss) {
        self.delivery.counts.missed.fetch_add(1, Ordering::Relaxed);
        if loss != Loss::Stopped {
            self.reincarnated();
        }
    }
}

impl Channel {
    pub fn new(name: Arc<str>, shard: Arc<Shard>, delivery: Arc<Delivery>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let tracked = Tracked { channel: me.clone(), last: AtomicU64::new(0), required: AtomicU64::new(0) };
            let state = State {
                phase: Phase::New,
                sink: None,
                chain: Chain::joining(),
                current: None,
                waiting: Vec::new(),
                subscription: None,
                reading: None,
                out: Vec::new(),
            };
            Self {
                hash: channel_token::hash(&name),
                name,
                shard,
                pieces: Pieces::default(),
                me: me.clone(),
                tracked: Arc::new(tracked),
                delivery,
                inbox: Mutex::default(),
                state: Mutex::new(state),
            }
        })
    }

    /// Takes effect with the next [`Channel::work`].
    pub fn will_subscribe(&self, sink: Arc<Sink>, reply: Reply) {
        self.put(Input::Subscribe { sink, reply });
    }

    /// Ends it before anything else that waits, so that this takes no time: the caller may hold a lock.
    pub fn end(&self) {
        self.inbox.lock().push_first(Input::End);
        self.work();
    }

    pub fn require(&self, seq: u64) {
        self.put(Input::Require(seq));
        self.work();
    }

    /// A look found this last sequence in this incarnation.
    pub fn verified(&self, current: &Arc<Current>, last: u64) {
        self.put(Input::Verified { current: current.clone(), last });
        self.work();
    }

    pub fn reincarnated(&self) {
        self.put(Input::Reincarnated);
        self.work();
    }

    /// Carries a piece out, after everything that waits.
    pub fn receive(&self, piece: Piece) {
        match self.state.try_lock() {
            Some(mut state) => {
                self.carry_out_all(&mut state);
                self.carry_out(&mut state, Input::Arrived(piece));
            }
            // So few pieces are let in that who holds the state now can carry them out as well.
            None => self.put(Input::Arrived(piece)),
        }
        self.work();
    }

    /// These live messages found no room: what they held is read from the stream.
    pub fn missed(self: &Arc<Self>, messages: &[Message]) {
        self.delivery.counts.missed.fetch_add(1, Ordering::Relaxed);
        let Some(last) = messages.iter().rev().find_map(|message| Stored::parse(message.clone())) else { return };
        if last.stream != self.shard.current().stream {
            return self.shard.suspect.notify_one();
        }
        self.shard.see(&last.stream, last.seq);
        let channel = self.clone();
        // Beside the reader: a subscriber may take its time with what this leads to.
        self.delivery.read(async move { channel.require(last.seq) });
    }

    fn put(&self, input: Input) {
        self.inbox.lock().push(input);
    }

    /// Carries out what waits, unless somebody is at it: then he does.
    pub fn work(&self) {
        while !self.inbox.lock().is_empty() {
            let Some(mut state) = self.state.try_lock() else { return };
            self.carry_out_all(&mut state);
        }
    }

    fn carry_out_all(&self, state: &mut State) {
        loop {
            let Some(input) = self.inbox.lock().take() else { return };
            self.carry_out(state, input);
        }
    }

    fn carry_out(&self, state: &mut State, input: Input) {
        if state.phase == Phase::Ended {
            if let Input::Subscribe { reply, .. } = input {
                refuse(reply, "the channel cannot be joined now");
            }
            return;
        }
        match input {
            Input::Subscribe { sink, reply } => self.subscribe(state, sink, reply),
            Input::End => self.finish(state, "the subscription was ended"),
            Input::Arrived(piece) => self.arrived(state, piece),
            Input::Require(seq) => self.required(state, seq),
            Input::Verified { current, last } if state.is_in(&current) => self.required(state, last),
            Input::Filled { current, filled: Some(filled) } if state.is_in(&current) => {
                state.chain.filled(*filled, &mut state.out);
                self.decided(state);
            }
            // Another incarnation took over meanwhile: its own join is under way.
            Input::Verified { .. } | Input::Filled { .. } => {}
            Input::Joined(result) => self.joined(state, *result),
            Input::Reincarnated => {
                if state.current.take().is_some() {
                    state.chain = Chain::joining();
                    // What a panic left undelivered is behind what subscribers are told now.
                    state.out.clear();
                    self.tracked.required.store(0, Ordering::SeqCst);
                    self.start_join(state.subscription.is_none());
                }
            }
        }
    }

    fn subscribe(&self, state: &mut State, sink: Arc<Sink>, reply: Reply) {
        state.sink = Some(sink);
        if let Some(current) = &state.current {
            let _ = reply.send(Ok(current.position(state.chain.last())));
            return;
        }
        state.waiting.push(reply);
        if state.phase == Phase::New {
            state.phase = Phase::Subscribed;
            // Ticks count from now on, before the subscription and before the read.
            self.shard.track(self.hash, self.tracked.clone());
            self.start_join(true);
        }
    }

    fn start_join(&self, subscribe: bool) {
        let Some(channel) = self.me.upgrade() else { return };
        let client = self.delivery.links.subscribing(self.hash);
        self.delivery.read(async move {
            let result = repair::join(&client, &channel.shard, &channel.name, subscribe).await;
            channel.put(Input::Joined(Box::new(result)));
            channel.work();
        });
    }

    fn finish(&self, state: &mut State, reason: &str) {
        state.phase = Phase::Ended;
        state.sink = None;
        state.current = None;
        state.chain = Chain::joining();
        if let Some(reading) = state.reading.take() {
            reading.abort();
        }
        self.shard.untrack(self.hash, &self.tracked);
        if let Some(subscription) = state.subscription.take() {
            subscription.abort();
        }
        state.waiting.drain(..).for_each(|reply| refuse(reply, reason));
    }

    fn joined(&self, state: &mut State, result: Result<Joined, RequestError>) {
        let joined = match result {
            Ok(joined) => joined,
            Err(error) if state.subscription.is_none() => {
                if let Some(me) = self.me.upgrade() {
                    self.delivery.forget(&me);
                }
                self.finish(state, &error.to_string());
                return;
            }
            Err(_) => {
                // A new incarnation that cannot be read yet: those who are subscribed wait for it.
                self.start_join(false);
                return;
            }
        };
        let position = joined.current.position(joined.last);
        let again = state.subscription.is_some();
        state.current = Some(joined.current);
        self.tracked.last.store(joined.last, Ordering::SeqCst);
        for reply in state.waiting.drain(..) {
            let _ = reply.send(Ok(position.clone()));
        }
        if again {
            hand_over(state, &[LiveEvent::Lost { position }]);
        }
        state.chain.joined(joined.last, joined.through, &mut state.out);
        let required = self.tracked.required.load(Ordering::SeqCst);
        state.chain.require(required, &mut state.out);
        if let (Some(subscriber), Some(me)) = (joined.subscriber, self.me.upgrade()) {
            state.subscription = Some(self.delivery.listen(&me, subscriber));
        }
        self.decided(state);
        // The shard became another stream while this was read: nothing of the new one would count.
        #[cfg(test)]
        if super::faults::Faults::on(&self.shard.faults.trust_joins) {
            return;
        }
        if !state.is_in(&self.shard.current()) {
            self.put(Input::Reincarnated);
        }
    }

    fn required(&self, state: &mut State, seq: u64) {
        if state.current.is_some() && seq > state.chain.last() {
            self.tracked.required.fetch_max(seq, Ordering::SeqCst);
            state.chain.require(seq, &mut state.out);
            self.decided(state);
        }
    }

    fn arrived(&self, state: &mut State, mut piece: Piece) {
        let Some(current) = state.current.clone() else { return };
        for message in piece.take() {
            if message.headers.as_ref().is_none_or(|headers| headers.get_last(NATS_SEQUENCE).is_none()) {
                if let Some(announcement) = decode_announcement(&message.payload) {
                    self.announce(state, announcement);
                }
                continue;
            }
            let Some(stored) = Stored::parse(message) else { continue };
            #[cfg(test)]
            if self.shard.faults.loses_this() {
                continue;
            }
            if stored.stream != current.stream {
                self.shard.suspect.notify_one();
                continue;
            }
            self.shard.see(&stored.stream, stored.seq);
            self.shard.note(&stored.stream, stored.seq, self.hash);
            // A digest that named nothing new of this channel verifies it as far as it goes.
            let through = self.shard.chain().through;
            let settled =
                self.tracked.required.load(Ordering::SeqCst) <= state.chain.last() && state.chain.is_settled();
            if settled {
                state.chain.verify(through);
            }
            let front_safe = settled && self.shard.front_is_safe(through, stored.seq, stored.time_ms);
            #[cfg(test)]
            if super::faults::Faults::on(&self.shard.faults.trust_trimmed) && stored.previous < state.chain.last() {
                continue;
            }
            let incoming = Incoming {
                seq: stored.seq,
                previous: stored.previous,
                front_safe,
                bytes: stored.payload.len(),
                item: stored,
            };
            state.chain.live(incoming, &mut state.out);
        }
        self.decided(state);
    }

    fn announce(&self, state: &mut State, announcement: Announcement) {
        // What was decided so far comes first.
        self.decided(state);
        hand_over(state, &[LiveEvent::Announcement(Arc::new(announcement))]);
    }

    /// Does what the chain decided.
    fn decided(&self, state: &mut State) {
        if state.out.is_empty() {
            return;
        }
        let outputs = std::mem::take(&mut state.out);
        let Some(current) = &state.current else { return };
        let mut events = Vec::with_capacity(outputs.len());
        let (mut gaps, mut lost) = (0, 0);
        for output in outputs {
            match output {
                Output::Deliver { seq, previous, item } => {
                    events.extend(publication(&self.shard, seq, previous, &item))
                }
                Output::Lost { after } => {
                    lost += 1;
                    events.push(LiveEvent::Lost { position: current.position(after) });
                }
                Output::Fill(gap) => {
                    gaps += 1;
                    state.reading = self.fill(current.clone(), gap);
                }
            }
        }
        let counts = &self.delivery.counts;
        let delivered = events.len() as u64 - lost;
        for (counter, count) in [(&counts.delivered, delivered), (&counts.gaps, gaps), (&counts.lost, lost)] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
        self.tracked.last.store(state.chain.last(), Ordering::SeqCst);
        if !events.is_empty() {
            hand_over(state, &events);
        }
    }

    fn fill(&self, current: Arc<Current>, gap: Gap) -> Option<tokio::task::AbortHandle> {
        let channel = self.me.upgrade()?;
        Some(self.delivery.read(async move {
            let filled = repair::fill(&*channel.delivery.links, &channel.shard, &current, &channel.name, gap).await;
            channel.put(Input::Filled { current, filled: filled.map(Box::new) });
            channel.work();
        }))
    }
}

impl State {
    /// The channel's sequences are those of this incarnation.
    fn is_in(&self, current: &Arc<Current>) -> bool {
        self.current.as_ref().is_some_and(|now| Arc::ptr_eq(now, current))
    }
}

fn refuse(reply: Reply, reason: &str) {
    let _ = reply.send(Err(ReadError::Unavailable { reason: reason.into() }));
}

/// Gives events to the subscriber. One that panics loses them, and nobody else does.
fn hand_over(state: &State, events: &[LiveEvent]) {
    let Some(sink) = state.sink.as_ref().filter(|sink| sink.active.load(Ordering::SeqCst)) else { return };
    let deliver = AssertUnwindSafe(|| sink.live.deliver(events));
    if std::panic::catch_unwind(deliver).is_err() {
        tracing::error!(events = events.len(), "a subscriber panicked; it has lost these events");
    }
}
