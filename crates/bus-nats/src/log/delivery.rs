//! Which channels have a local subscription, and how their live messages get to the keyed workers.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::stream::{AbortHandle, Abortable, SelectAll};
use futures_util::{Stream, StreamExt};
use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::{Live, Position, ReadError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::links::Links;
use super::live::Channel;
use super::repair;
use super::shard::{Shard, Tracked};
use super::stats::DeliveryStats;
use crate::workers::{Reason, Work, Workers, WorkersConfig, WorkersStats};

/// Live messages taken from one subscription before others have their turn.
const CHUNK: usize = 64;

/// Tasks that take live messages from the client library; a channel belongs to one of them.
const READERS: usize = 2;

/// How often a piece that found its worker's queue full is offered again.
const RETRY: Duration = Duration::from_millis(10);

/// A tick may overtake live messages of another connection; what it names is read after this much patience.
const GRACE: Duration = Duration::from_millis(150);

/// Live messages of one channel that came together.
pub(super) type Piece = Vec<Message>;

/// One call of `subscribe`.
pub(super) struct Sink {
    pub live: Arc<dyn Live>,
    /// Cleared by `unsubscribe`, so that nothing that is appended later arrives.
    pub active: AtomicBool,
}

/// Where the outcome of one call of `subscribe` goes.
pub(super) type Reply = oneshot::Sender<Result<Position, ReadError>>;

/// A look at the ends of one shard's channels.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// Everything through here is known.
    pub behind: u64,
    /// The answer must come from a server that knows this sequence.
    pub required: u64,
}

/// Counts since the start, and how many reads are under way.
#[derive(Default)]
pub(super) struct Counts {
    pub delivered: AtomicU64,
    pub gaps: AtomicU64,
    pub lost: AtomicU64,
    /// Pieces that found no room in their worker's queue, or were lost in it.
    pub missed: AtomicU64,
    reads: AtomicUsize,
}

/// What a tick named, channels with the sequences that they lack.
struct Named {
    /// When its grace is over.
    due: Instant,
    lacking: Vec<(Arc<Tracked>, u64)>,
}

struct Subscribed {
    channel: Arc<Channel>,
    sink: Arc<Sink>,
}

/// See the module's description. Ends with [`Delivery::close`].
pub(super) struct Delivery {
    pub links: Arc<dyn Links>,
    pub counts: Counts,
    workers: Arc<Workers<Piece>>,
    channels: Mutex<HashMap<Arc<str>, Subscribed>>,
    readers: Vec<mpsc::UnboundedSender<Arrivals>>,
    named: mpsc::UnboundedSender<Named>,
    closed: CancellationToken,
}

impl Delivery {
    /// Starts readers and keyed workers. Must be called within a tokio runtime.
    pub fn start(config: WorkersConfig, links: &Arc<dyn Links>) -> Arc<Self> {
        let pool = Workers::start(config);
        let closed = CancellationToken::new();
        let reader = |_| {
            let (sender, subscribed) = mpsc::unbounded_channel();
            let (workers, wait) = (pool.clone(), config.wait);
            let reader = Reader { workers, wait, subscribed, arrivals: SelectAll::new(), held: VecDeque::new() };
            tokio::spawn(until_closed(closed.clone(), reader.run()));
            sender
        };
        let (named, lacking) = mpsc::unbounded_channel();
        tokio::spawn(until_closed(closed.clone(), require_later(lacking)));
        let readers = (0..READERS).map(reader).collect();
        let (links, channels) = (links.clone(), Mutex::default());
        Arc::new(Self { links, counts: Counts::default(), workers: pool, channels, readers, named, closed })
    }

    /// Ends every task and forgets every channel; who waits for one hears that the log has ended.
    pub fn close(&self) {
        self.closed.cancel();
        let channels = std::mem::take(&mut *self.channels.lock());
        for Subscribed { channel, sink } in channels.into_values() {
            sink.active.store(false, Ordering::SeqCst);
            channel.end();
        }
    }

    pub fn stats(&self) -> (DeliveryStats, WorkersStats) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let stats = DeliveryStats {
            channels: self.channels.lock().len(),
            reads: counts.reads.load(Ordering::Relaxed),
            delivered: count(&counts.delivered),
            gaps: count(&counts.gaps),
            lost: count(&counts.lost),
            missed: count(&counts.missed),
        };
        (stats, self.workers.stats())
    }

    /// Calls for one channel take effect in their order.
    pub fn subscribe(self: &Arc<Self>, name: &str, shard: &Arc<Shard>, live: Arc<dyn Live>, reply: Reply) {
        let sink = Arc::new(Sink { live, active: AtomicBool::new(true) });
        let channel = {
            let mut channels = self.channels.lock();
            let known = channels.get_mut(name).map(|known| {
                known.sink = sink.clone();
                known.channel.clone()
            });
            let channel = known.unwrap_or_else(|| {
                let channel = Channel::new(name.into(), shard.clone(), self.clone());
                channels.insert(channel.name.clone(), Subscribed { channel: channel.clone(), sink: sink.clone() });
                channel
            });
            channel.will_subscribe(sink, reply);
            channel
        };
        channel.work();
    }

    /// Nothing that is appended after this call arrives.
    pub fn unsubscribe(&self, name: &str) {
        let Some(Subscribed { channel, sink }) = self.channels.lock().remove(name) else { return };
        sink.active.store(false, Ordering::SeqCst);
        channel.end();
    }

    /// The channel could not be joined.
    pub fn forget(&self, channel: &Arc<Channel>) {
        let mut channels = self.channels.lock();
        if channels.get(&channel.name).is_some_and(|known| Arc::ptr_eq(&known.channel, channel)) {
            channels.remove(&channel.name);
        }
    }

    /// Hands what arrives on a subscription to the channel, through the keyed workers, until the handle aborts it.
    pub fn listen(&self, channel: &Arc<Channel>, subscriber: Subscriber) -> AbortHandle {
        let (messages, abort) = futures_util::stream::abortable(subscriber);
        let reader = (channel.hash >> 40) as usize % self.readers.len();
        // A reader that is gone went with the log.
        let _ = self.readers[reader].send(Arrivals { channel: channel.clone(), messages });
        abort
    }

    /// Reads beside everything else; ends with the log.
    pub fn read(self: &Arc<Self>, read: impl Future<Output = ()> + Send + 'static) {
        let under_way = UnderWay::new(self);
        tokio::spawn(async move {
            let _ = under_way.0.closed.run_until_cancelled(read).await;
        });
    }

    /// What a tick named is read unless it comes live soon.
    pub fn require(&self, lacking: Vec<(Arc<Tracked>, u64)>) {
        if !lacking.is_empty() {
            let _ = self.named.send(Named { due: Instant::now() + GRACE, lacking });
        }
    }

    /// Everything of the shard through `behind` is known from ticks; what it has through `required` is looked at.
    pub fn verify_shard(self: &Arc<Self>, shard: &Arc<Shard>, behind: u64, required: u64) {
        self.verify(shard, self.channels_of(shard), Look { behind, required });
    }

    /// Looks up the end of every channel.
    pub fn verify_all(self: &Arc<Self>) {
        let mut by_shard: HashMap<usize, Vec<Arc<Channel>>> = HashMap::new();
        for Subscribed { channel, .. } in self.channels.lock().values() {
            by_shard.entry(channel.shard.index).or_default().push(channel.clone());
        }
        for channels in by_shard.into_values() {
            let shard = channels[0].shard.clone();
            let look = Look { behind: shard.chain().through, required: 0 };
            self.verify(&shard, channels, look);
        }
    }

    /// Looks up the ends of these channels of the shard.
    pub fn verify(self: &Arc<Self>, shard: &Arc<Shard>, channels: Vec<Arc<Channel>>, look: Look) {
        for part in channels.chunks(repair::VERIFY_BATCH) {
            let (shard, links, part) = (shard.clone(), self.links.clone(), part.to_vec());
            self.read(async move {
                let (current, lasts) = repair::verify(&*links, &shard, &part, look).await;
                for (channel, last) in lasts {
                    channel.verified(&current, last);
                }
            });
        }
    }

    /// The shard is another stream now.
    pub fn reincarnated(&self, shard: &Arc<Shard>) {
        for channel in self.channels_of(shard) {
            channel.reincarnated();
        }
    }

    fn channels_of(&self, shard: &Arc<Shard>) -> Vec<Arc<Channel>> {
        let channels = self.channels.lock();
        let channels = channels.values().map(|subscribed| &subscribed.channel);
        channels.filter(|channel| channel.shard.index == shard.index).cloned().collect()
    }
}

/// A read, counted until it is dropped.
struct UnderWay(Arc<Delivery>);

impl UnderWay {
    fn new(delivery: &Arc<Delivery>) -> Self {
        delivery.counts.reads.fetch_add(1, Ordering::Relaxed);
        Self(delivery.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.counts.reads.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn until_closed(closed: CancellationToken, work: impl Future<Output = ()>) {
    let _ = closed.run_until_cancelled(work).await;
}

async fn require_later(mut named: mpsc::UnboundedReceiver<Named>) {
    while let Some(Named { due, lacking }) = named.recv().await {
        sleep_until(due).await;
        for (tracked, seq) in lacking {
            if let Some(channel) = tracked.channel.upgrade() {
                channel.require(seq);
            }
        }
    }
}

/// What arrives on one subscription, in pieces; pauses while enough of them wait for their worker, so that more comes
/// together meanwhile.
struct Arrivals {
    channel: Arc<Channel>,
    messages: Abortable<Subscriber>,
}

impl Stream for Arrivals {
    type Item = (Arc<Channel>, Piece);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        ready!(self.channel.pieces.poll_room(context));
        let mut piece = Vec::new();
        while piece.len() < CHUNK {
            match self.messages.poll_next_unpin(context) {
                Poll::Ready(Some(message)) => piece.push(message),
                Poll::Ready(None) if piece.is_empty() => return Poll::Ready(None),
                Poll::Pending if piece.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        self.channel.pieces.add();
        Poll::Ready(Some((self.channel.clone(), piece)))
    }
}

/// A piece that waits for room in its worker's queue.
struct HeldBack {
    until: Instant,
    channel: Arc<Channel>,
    piece: Piece,
}

/// Takes live messages from subscriptions and gives them to the keyed workers. Never waits for one of them.
struct Reader {
    workers: Arc<Workers<Piece>>,
    wait: Duration,
    subscribed: mpsc::UnboundedReceiver<Arrivals>,
    arrivals: SelectAll<Arrivals>,
    held: VecDeque<HeldBack>,
}

impl Reader {
    async fn run(mut self) {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                subscribed = self.subscribed.recv() => match subscribed {
                    Some(arrivals) => self.arrivals.push(arrivals),
                    None => return,
                },
                Some((channel, piece)) = self.arrivals.next(), if !self.arrivals.is_empty() => {
                    // Behind those of its channel that wait already.
                    if self.held.iter().any(|held| Arc::ptr_eq(&held.channel, &channel)) {
                        self.hold(channel, piece);
                    } else if let Some(piece) = self.offer(&channel, piece) {
                        self.hold(channel, piece);
                    }
                }
                _ = retry.tick(), if !self.held.is_empty() => self.offer_again(),
            }
        }
    }

    /// Gives the piece back when its worker's queue is full.
    fn offer(&self, channel: &Arc<Channel>, piece: Piece) -> Option<Piece> {
        let work: Arc<dyn Work<Piece>> = channel.clone();
        match self.workers.try_submit(channel.hash, &work, piece) {
            Ok(()) => None,
            Err(rejected) if rejected.reason == Reason::Full => Some(rejected.message),
            Err(rejected) => {
                channel.missed(&rejected.message);
                None
            }
        }
    }

    fn hold(&mut self, channel: Arc<Channel>, piece: Piece) {
        self.held.push_back(HeldBack { until: Instant::now() + self.wait, channel, piece });
    }

    fn offer_again(&mut self) {
        let now = Instant::now();
        for HeldBack { until, channel, piece } in std::mem::take(&mut self.held) {
            let waits = self.held.iter().any(|held| Arc::ptr_eq(&held.channel, &channel));
            let back = if waits { Some(piece) } else { self.offer(&channel, piece) };
            match back {
                Some(piece) if until <= now => channel.missed(&piece),
                Some(piece) => self.held.push_back(HeldBack { until, channel, piece }),
                None => {}
            }
        }
    }
}
