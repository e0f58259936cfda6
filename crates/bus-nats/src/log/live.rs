//! Live delivery: a fixed number of workers, each with the channels whose hash falls to it.
//!
//! A worker never waits for the network: joins, gap reads and verifications run beside it as jobs, while live messages of
//! that channel wait in its [`Chain`] within bounds. So the reader of a connection is never blocked.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::header::NATS_SEQUENCE;
use async_nats::{Message, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::stream::{AbortHandle, Abortable, FuturesUnordered, SelectAll};
use futures_util::{FutureExt, Stream, StreamExt};
use hashbrown::HashMap;
use plenum_channels::{Announcement, LiveEvent, Position, ReadError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::chain::{Chain, Filled, Gap, Incoming, Output};
use super::event::{decode_announcement, publication};
use super::jetstream::{RequestError, Stored};
use super::links::Links;
use super::repair;
use super::shard::{Current, Shard, Tracked};
use super::stats::Deliveries;
use super::workers::{Command, Look, Sink};
use crate::channel_token;

/// Live messages taken from one subscription before others have their turn.
const CHUNK: usize = 64;

/// A tick may overtake live messages of another connection; what it names is read after this much patience.
const GRACE: Duration = Duration::from_millis(150);

/// One channel with a local subscription.
struct Channel {
    name: Arc<str>,
    hash: u64,
    shard: Arc<Shard>,
    tracked: Arc<Tracked>,
    sink: Arc<Sink>,
    chain: Chain<Stored>,
    /// Stream of the sequences in `chain`; `None` while joining.
    current: Option<Arc<Current>>,
    waiting: Vec<oneshot::Sender<Result<Position, ReadError>>>,
    subscription: Option<AbortHandle>,
}

/// Ends with the abort of its subscription; yields what has arrived, in pieces.
struct Arrivals {
    id: u64,
    messages: Abortable<Subscriber>,
}

impl Stream for Arrivals {
    type Item = (u64, Vec<Message>);

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK {
            match self.messages.poll_next_unpin(context) {
                Poll::Ready(Some(message)) => chunk.push(message),
                Poll::Ready(None) if chunk.is_empty() => return Poll::Ready(None),
                Poll::Pending if chunk.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some((self.id, chunk)))
    }
}

/// What a job found.
enum Done {
    Joined {
        id: u64,
        result: Result<Joined, RequestError>,
    },
    Filled {
        id: u64,
        current: Arc<Current>,
        filled: Option<Filled<Stored>>,
    },
    /// Last sequence of channels that have something new.
    Verified {
        current: Arc<Current>,
        lasts: Vec<(u64, u64)>,
    },
}

pub(super) struct Joined {
    pub subscriber: Option<Subscriber>,
    pub current: Arc<Current>,
    pub last: u64,
    pub through: u64,
}

/// See the module's description.
pub(super) struct Worker {
    index: usize,
    links: Arc<dyn Links>,
    channels: HashMap<u64, Channel>,
    by_name: HashMap<Arc<str>, u64>,
    arrivals: SelectAll<Arrivals>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Requirements of ticks that get their grace, oldest first.
    later: std::collections::VecDeque<(Instant, u64, u64)>,
    out: Vec<Output<Stored>>,
    counts: Arc<Deliveries>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Worker {
    pub fn new(index: usize, links: Arc<dyn Links>, counts: Arc<Deliveries>) -> Self {
        Self {
            index,
            links,
            channels: HashMap::new(),
            by_name: HashMap::new(),
            arrivals: SelectAll::new(),
            jobs: FuturesUnordered::new(),
            later: Default::default(),
            out: Vec::new(),
            counts,
        }
    }

    /// Inputs: commands, live messages, finished jobs, requirements whose grace is over.
    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.counts.channels.store(self.channels.len(), Ordering::Relaxed);
            self.counts.reads.store(self.jobs.len(), Ordering::Relaxed);
            let due = self.later.front().map(|(due, ..)| *due);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some((id, messages)) = self.arrivals.next(), if !self.arrivals.is_empty() => self.arrived(id, messages),
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    while let Some(&(due, id, seq)) = self.later.front() && due <= Instant::now() {
                        self.later.pop_front();
                        self.require(id, seq);
                    }
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Subscribe { channel, shard, sink, reply } => self.subscribe(channel, shard, sink, reply),
            Command::Unsubscribe { channel, sink } => {
                let id = self.by_name.get(&channel).copied();
                if let Some(id) = id.filter(|id| self.channels.get(id).is_some_and(|it| Arc::ptr_eq(&it.sink, &sink))) {
                    self.end(id);
                }
            }
            Command::Require { id, seq } => self.later.push_back((Instant::now() + GRACE, id, seq)),
            Command::Verify { only } => self.verify(only),
            Command::Reincarnated { shard } => self.reincarnated(shard),
        }
    }

    fn subscribe(
        &mut self,
        name: Arc<str>,
        shard: Arc<Shard>,
        sink: Arc<Sink>,
        reply: oneshot::Sender<Result<Position, ReadError>>,
    ) {
        if let Some(channel) = self.by_name.get(&name).and_then(|id| self.channels.get_mut(id)) {
            channel.sink = sink;
            match &channel.current {
                Some(current) => drop(reply.send(Ok(current.position(channel.chain.last())))),
                None => channel.waiting.push(reply),
            }
            return;
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let hash = channel_token::hash(&name);
        let tracked =
            Arc::new(Tracked { id, worker: self.index, last: AtomicU64::new(0), required: AtomicU64::new(0) });
        // Ticks count from now on, before the subscription and before the read.
        shard.track(hash, tracked.clone());
        self.by_name.insert(name.clone(), id);
        let channel = Channel {
            name,
            hash,
            shard,
            tracked,
            sink,
            chain: Chain::joining(),
            current: None,
            waiting: vec![reply],
            subscription: None,
        };
        self.start_join(&channel, id, true);
        self.channels.insert(id, channel);
    }

    fn start_join(&self, channel: &Channel, id: u64, subscribe: bool) {
        let client = self.links.subscribing(channel.hash);
        let (shard, name) = (channel.shard.clone(), channel.name.clone());
        let job = async move {
            let result = repair::join(&client, &shard, &name, subscribe).await;
            Done::Joined { id, result }
        };
        self.jobs.push(job.boxed());
    }

    fn end(&mut self, id: u64) {
        let Some(channel) = self.channels.remove(&id) else { return };
        channel.shard.untrack(channel.hash, id);
        self.by_name.remove(&channel.name);
        if let Some(subscription) = channel.subscription {
            subscription.abort();
        }
        for reply in channel.waiting {
            let _ = reply.send(Err(ReadError::Unavailable { reason: "the subscription was ended".into() }));
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Joined { id, result } => self.joined(id, result),
            Done::Filled { id, current, filled } => {
                let Some(channel) = self.channels.get_mut(&id) else { return };
                // Another incarnation took over meanwhile: its own join is under way.
                let Some(filled) = filled else { return };
                if channel.current.as_ref().is_some_and(|now| Arc::ptr_eq(now, &current)) {
                    channel.chain.filled(filled, &mut self.out);
                    self.carry_out(id);
                }
            }
            Done::Verified { current, lasts } => {
                for (id, last) in lasts {
                    let same =
                        |channel: &Channel| channel.current.as_ref().is_some_and(|now| Arc::ptr_eq(now, &current));
                    if self.channels.get(&id).is_some_and(same) {
                        self.require(id, last);
                    }
                }
            }
        }
    }

    fn joined(&mut self, id: u64, result: Result<Joined, RequestError>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let joined = match result {
            Ok(joined) => joined,
            Err(error) if channel.subscription.is_none() => {
                let reason = error.to_string();
                for reply in channel.waiting.drain(..) {
                    let _ = reply.send(Err(ReadError::Unavailable { reason: reason.clone() }));
                }
                self.end(id);
                return;
            }
            Err(_) => {
                // A new incarnation that cannot be read yet: those who are subscribed wait for it.
                let channel = &self.channels[&id];
                self.start_join(channel, id, false);
                return;
            }
        };
        let position = joined.current.position(joined.last);
        let again = channel.subscription.is_some();
        channel.current = Some(joined.current);
        channel.tracked.last.store(joined.last, Ordering::SeqCst);
        for reply in channel.waiting.drain(..) {
            let _ = reply.send(Ok(position.clone()));
        }
        if again {
            hand_over(channel, &[LiveEvent::Lost { position }]);
        }
        channel.chain.joined(joined.last, joined.through, &mut self.out);
        let required = channel.tracked.required.load(Ordering::SeqCst);
        channel.chain.require(required, &mut self.out);
        if let Some(subscriber) = joined.subscriber {
            let (abort, registration) = AbortHandle::new_pair();
            channel.subscription = Some(abort);
            self.arrivals.push(Arrivals { id, messages: Abortable::new(subscriber, registration) });
        }
        self.carry_out(id);
    }

    fn require(&mut self, id: u64, seq: u64) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.current.is_some() && seq > channel.chain.last() {
            channel.tracked.required.fetch_max(seq, Ordering::SeqCst);
            channel.chain.require(seq, &mut self.out);
            self.carry_out(id);
        }
    }

    fn arrived(&mut self, id: u64, messages: Vec<Message>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let Some(current) = channel.current.clone() else { return };
        let mut announced = false;
        for message in messages {
            if message.headers.as_ref().is_none_or(|headers| headers.get_last(NATS_SEQUENCE).is_none()) {
                if let Some(announcement) = decode_announcement(&message.payload) {
                    // What was decided so far comes first.
                    self.carry_out(id);
                    self.announce(id, announcement);
                    announced = true;
                }
                let Some(_) = self.channels.get(&id) else { return };
                continue;
            }
            let Some(stored) = Stored::parse(message) else { continue };
            let Some(channel) = self.channels.get_mut(&id) else { return };
            #[cfg(test)]
            if channel.shard.faults.loses_this() {
                continue;
            }
            if stored.stream != current.stream {
                channel.shard.suspect.notify_one();
                continue;
            }
            channel.shard.see(&stored.stream, stored.seq);
            channel.shard.note(&stored.stream, stored.seq, channel.hash);
            // A digest that named nothing new of this channel verifies it as far as it goes.
            let through = channel.shard.chain().through;
            let settled =
                channel.tracked.required.load(Ordering::SeqCst) <= channel.chain.last() && channel.chain.is_settled();
            if settled {
                channel.chain.verify(through);
            }
            let front_safe = settled && channel.shard.front_is_safe(through, stored.seq, stored.time_ms);
            #[cfg(test)]
            if super::faults::Faults::on(&channel.shard.faults.trust_trimmed) && stored.previous < channel.chain.last()
            {
                continue;
            }
            let incoming = Incoming {
                seq: stored.seq,
                previous: stored.previous,
                front_safe,
                bytes: stored.payload.len(),
                item: stored,
            };
            channel.chain.live(incoming, &mut self.out);
        }
        if !self.out.is_empty() || !announced {
            self.carry_out(id);
        }
    }

    fn announce(&self, id: u64, announcement: Announcement) {
        let Some(channel) = self.channels.get(&id) else { return };
        hand_over(channel, &[LiveEvent::Announcement(Arc::new(announcement))]);
    }

    /// Does what the chain decided.
    fn carry_out(&mut self, id: u64) {
        if self.out.is_empty() {
            return;
        }
        let outputs = std::mem::take(&mut self.out);
        let Some(channel) = self.channels.get(&id) else { return };
        let Some(current) = &channel.current else { return };
        let mut events = Vec::with_capacity(outputs.len());
        let (mut gaps, mut lost) = (0, 0);
        for output in outputs {
            match output {
                Output::Deliver { seq, previous, item } => {
                    events.extend(publication(&channel.shard, seq, previous, &item))
                }
                Output::Lost { after } => {
                    lost += 1;
                    events.push(LiveEvent::Lost { position: current.position(after) });
                }
                Output::Fill(gap) => {
                    gaps += 1;
                    self.jobs.push(self.fill(id, channel, gap));
                }
            }
        }
        for (counter, count) in
            [(&self.counts.delivered, events.len() as u64 - lost), (&self.counts.gaps, gaps), (&self.counts.lost, lost)]
        {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
        channel.tracked.last.store(channel.chain.last(), Ordering::SeqCst);
        if !events.is_empty() {
            hand_over(channel, &events);
        }
    }

    fn fill(&self, id: u64, channel: &Channel, gap: Gap) -> BoxFuture<'static, Done> {
        let (shard, links, name) = (channel.shard.clone(), self.links.clone(), channel.name.clone());
        let current = channel.current.clone();
        async move {
            match current {
                Some(current) => {
                    let filled = repair::fill(&*links, &shard, &current, &name, gap).await;
                    Done::Filled { id, current, filled }
                }
                None => Done::Filled { id, current: shard.current(), filled: None },
            }
        }
        .boxed()
    }

    fn verify(&mut self, only: Option<Look>) {
        let mut by_shard: HashMap<usize, Vec<(u64, Arc<str>)>> = HashMap::new();
        let mut shards: HashMap<usize, Arc<Shard>> = HashMap::new();
        for (id, channel) in &self.channels {
            let index = channel.shard.index;
            if only.is_none_or(|look| look.shard == index) {
                by_shard.entry(index).or_default().push((*id, channel.name.clone()));
                shards.entry(index).or_insert_with(|| channel.shard.clone());
            }
        }
        for (index, channels) in by_shard {
            let shard = &shards[&index];
            let all = Look { shard: index, behind: shard.chain().through, required: 0 };
            let look = only.unwrap_or(all);
            for part in channels.chunks(repair::VERIFY_BATCH) {
                let (shard, links, part) = (shard.clone(), self.links.clone(), part.to_vec());
                let job = async move {
                    let (current, lasts) = repair::verify(&*links, &shard, part, look).await;
                    Done::Verified { current, lasts }
                };
                self.jobs.push(job.boxed());
            }
        }
    }

    fn reincarnated(&mut self, shard: usize) {
        let ids: Vec<u64> = self.channels.iter().filter(|(_, it)| it.shard.index == shard).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            if channel.current.take().is_none() {
                continue;
            }
            channel.chain = Chain::joining();
            channel.tracked.required.store(0, Ordering::SeqCst);
            let channel = &self.channels[&id];
            self.start_join(channel, id, channel.subscription.is_none());
        }
    }
}

/// Gives events to the subscriber. One that panics loses them, and nobody else does.
fn hand_over(channel: &Channel, events: &[LiveEvent]) {
    if !channel.sink.active.load(Ordering::SeqCst) {
        return;
    }
    let deliver = AssertUnwindSafe(|| channel.sink.live.deliver(events));
    if std::panic::catch_unwind(deliver).is_err() {
        tracing::error!(events = events.len(), "a subscriber panicked; it has lost these events");
    }
}
