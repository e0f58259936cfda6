//! Which channels have a local subscription, and how their live messages get to the keyed workers.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::stream::{AbortHandle as StreamAbortHandle, Abortable, SelectAll};
use futures_util::{Stream, StreamExt};
use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::{Live, Position, ReadError};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::links::Links;
use super::live::Channel;
use super::piece::Piece;
use super::repair;
use super::shard::{Shard, Tracked};
use super::stats::DeliveryStats;
use crate::parcel::Parcel;
use crate::workers::{Reason, Rejected, Work, Workers};

/// Live messages taken from one subscription before others have their turn.
const CHUNK: usize = 64;

/// Tasks that take live messages from the client library; a channel belongs to one of them.
const READERS: usize = 2;

/// How often a piece that found its worker's queue full is offered again.
const RETRY: Duration = Duration::from_millis(10);

/// A tick may overtake live messages of another connection; what it names is read after this much patience.
const GRACE: Duration = Duration::from_millis(150);

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
    /// Pieces that found no room in their worker's queue, or whose work panicked.
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
    channels: Mutex<HashMap<Arc<str>, Subscribed>>,
    readers: Vec<mpsc::UnboundedSender<Arrivals>>,
    named: mpsc::UnboundedSender<Named>,
    closed: CancellationToken,
    /// Where reads run: a channel may be let go on a thread without a runtime.
    runtime: Handle,
}

impl Delivery {
    /// Starts readers, which deliver through these workers. Must be called within a tokio runtime.
    pub fn start(workers: &Arc<Workers>, links: &Arc<dyn Links>) -> Arc<Self> {
        let closed = CancellationToken::new();
        let reader = |_| {
            let (sender, subscribed) = mpsc::unbounded_channel();
            let (workers, wait) = (workers.clone(), workers.config().wait);
            let (arrivals, held, holding) = (SelectAll::new(), VecDeque::new(), HashMap::new());
            let reader = Reader { workers, wait, subscribed, arrivals, held, holding };
            tokio::spawn(until_closed(closed.clone(), reader.run()));
            sender
        };
        let (named, lacking) = mpsc::unbounded_channel();
        let readers = (0..READERS).map(reader).collect();
        let (links, channels, runtime) = (links.clone(), Mutex::default(), Handle::current());
        let delivery = Arc::new(Self { links, counts: Counts::default(), channels, readers, named, closed, runtime });
        let (closed, later) = (delivery.closed.clone(), require_later(Arc::downgrade(&delivery), lacking));
        tokio::spawn(until_closed(closed, later));
        delivery
    }

    /// Ends every task and forgets every channel; who waits for one hears that its subscription was ended.
    pub fn close(&self) {
        self.closed.cancel();
        let channels = std::mem::take(&mut *self.channels.lock());
        for Subscribed { channel, sink } in channels.into_values() {
            sink.active.store(false, Ordering::SeqCst);
            channel.end();
        }
    }

    pub fn stats(&self) -> DeliveryStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        DeliveryStats {
            channels: self.channels.lock().len(),
            reads: counts.reads.load(Ordering::Relaxed),
            delivered: count(&counts.delivered),
            gaps: count(&counts.gaps),
            lost: count(&counts.lost),
            missed: count(&counts.missed),
        }
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
    pub fn listen(&self, channel: &Arc<Channel>, subscriber: Subscriber) -> StreamAbortHandle {
        let (messages, abort) = futures_util::stream::abortable(subscriber);
        let reader = (channel.hash >> 40) as usize % self.readers.len();
        // A reader that is gone went with the log.
        let _ = self.readers[reader].send(Arrivals { channel: channel.clone(), messages });
        abort
    }

    /// Reads beside everything else; ends with the log.
    pub fn read(self: &Arc<Self>, read: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let under_way = UnderWay::new(self);
        let reading = async move {
            let _ = under_way.0.closed.run_until_cancelled(read).await;
        };
        self.runtime.spawn(reading).abort_handle()
    }

    /// What a tick named is read unless it comes live soon.
    pub fn require(&self, lacking: Vec<(Arc<Tracked>, u64)>) {
        if !lacking.is_empty() {
            let _ = self.named.send(Named { due: Instant::now() + GRACE, lacking });
        }
    }

    /// Everything of the shard through `behind` is known from ticks; what it has through `required` is looked at.
    pub fn verify_shard(self: &Arc<Self>, shard: &Arc<Shard>, behind: u64, required: u64) {
        let (delivery, shard) = (self.clone(), shard.clone());
        self.read(async move { delivery.verify(&shard, Look { behind, required }).await });
    }

    /// Looks up the end of every channel of the shard, as far as ticks do not tell it. Goes on until it succeeds, or the
    /// shard is another stream.
    pub async fn verify_now(&self, shard: &Arc<Shard>) {
        self.verify(shard, Look { behind: shard.chain().through, required: 0 }).await;
    }

    async fn verify(&self, shard: &Arc<Shard>, look: Look) {
        for part in shard.channels().chunks(repair::VERIFY_BATCH) {
            let (current, lasts) = repair::verify(&*self.links, shard, part, look).await;
            for (channel, last) in lasts {
                channel.verified(&current, last);
            }
        }
    }

    /// The shard is another stream now.
    pub fn reincarnated(&self, shard: &Arc<Shard>) {
        for channel in shard.channels() {
            channel.reincarnated();
        }
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

async fn require_later(delivery: Weak<Delivery>, mut named: mpsc::UnboundedReceiver<Named>) {
    while let Some(Named { due, lacking }) = named.recv().await {
        sleep_until(due).await;
        let Some(delivery) = delivery.upgrade() else { return };
        // Beside this task: a subscriber may take its time with what this leads to.
        delivery.read(async move {
            for (tracked, seq) in lacking {
                if let Some(channel) = tracked.channel.upgrade() {
                    channel.require(seq);
                }
            }
        });
    }
}

/// What arrives on one subscription, in pieces; pauses while enough of them wait for their worker, so that more comes
/// together meanwhile.
struct Arrivals {
    channel: Arc<Channel>,
    messages: Abortable<Subscriber>,
}

impl Stream for Arrivals {
    type Item = Piece;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        ready!(self.channel.pieces.poll_room(context));
        let mut messages = Vec::new();
        while messages.len() < CHUNK {
            match self.messages.poll_next_unpin(context) {
                Poll::Ready(Some(message)) => messages.push(message),
                Poll::Ready(None) if messages.is_empty() => return Poll::Ready(None),
                Poll::Pending if messages.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Piece::new(self.channel.clone(), messages)))
    }
}

/// Takes live messages from subscriptions and gives them to the keyed workers. Never waits for one of them.
struct Reader {
    workers: Arc<Workers>,
    wait: Duration,
    subscribed: mpsc::UnboundedReceiver<Arrivals>,
    arrivals: SelectAll<Arrivals>,
    /// What waits for room in its worker's queue, and until when.
    held: VecDeque<(Instant, Piece)>,
    /// The hashes of its channels, with the number of pieces.
    holding: HashMap<u64, usize>,
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
                Some(piece) = self.arrivals.next(), if !self.arrivals.is_empty() => {
                    self.offer(Instant::now() + self.wait, piece);
                }
                _ = retry.tick(), if !self.held.is_empty() => self.offer_again(),
            }
        }
    }

    /// Submits the piece, or holds it back while its worker's queue is full or an earlier one of its channel waits.
    fn offer(&mut self, until: Instant, piece: Piece) {
        let hash = piece.channel().hash;
        let back = if self.holding.contains_key(&hash) { Some(piece) } else { self.submit(piece) };
        if let Some(piece) = back {
            *self.holding.entry(hash).or_default() += 1;
            self.held.push_back((until, piece));
        }
    }

    /// Gives the piece back when its worker's queue is full.
    fn submit(&self, piece: Piece) -> Option<Piece> {
        let channel = piece.channel().clone();
        let key = channel.hash;
        let work: Arc<dyn Work<Parcel>> = channel;
        match self.workers.try_submit(key, &work, Parcel::live(piece)) {
            Ok(()) => None,
            Err(Rejected { message, reason: Reason::Full }) => message.into_live(),
            // The pool is stopped: so is the process.
            Err(_) => None,
        }
    }

    fn offer_again(&mut self) {
        let now = Instant::now();
        self.holding.clear();
        for (until, piece) in std::mem::take(&mut self.held) {
            if until <= now && self.holding.contains_key(&piece.channel().hash) {
                piece.missed();
            } else if until <= now {
                if let Some(piece) = self.submit(piece) {
                    piece.missed();
                }
            } else {
                self.offer(until, piece);
            }
        }
    }
}
