//! One shard as a replica sees it: which stream it is, how far it is known, and which local channels it has.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::Client;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use plenum_channels::{Epoch, Position};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::config::LogConfig;
use super::digest::TickChain;
use super::entry::VOID_AFTER_MS;
use super::jetstream::{Answer, RequestError, get_last};
use super::live::Channel;
use super::names::ShardNames;
use super::setup::Incarnation;
use super::tails::TailStore;

/// Without a tick for this long the shard's state cannot be trusted.
pub(super) const DOUBTFUL_AFTER: Duration = Duration::from_secs(3);

/// How long a read tries to be proven fresh.
pub(super) const READ_PATIENCE: Duration = Duration::from_secs(5);

/// Clocks of servers may differ by this much.
pub(super) const CLOCK_MARGIN_MS: u64 = 60_000;

/// Most that one tick sets the stream's clock back.
const MAX_SET_BACK_MS: u64 = 2_000;

/// Most sequences noted for the next tick.
const MAX_KNOWN: usize = 400_000;

/// No server stores more than this in one stream.
const MAX_BYTES_PER_MS: u64 = 1 << 20;

/// The stream that the shard is in now.
#[derive(Debug)]
pub(super) struct Current {
    pub stream: String,
    pub epoch: Epoch,
    pub regress: u32,
    went_back: AtomicBool,
}

impl Current {
    /// It acknowledged a sequence that it had given out before: nothing that it says counts any more, and the shard's
    /// ticker replaces it.
    pub fn goes_back(&self) {
        self.went_back.store(true, Ordering::SeqCst);
    }

    pub fn has_gone_back(&self) -> bool {
        self.went_back.load(Ordering::SeqCst)
    }

    pub fn position(&self, offset: u64) -> Position {
        Position { offset, epoch: self.epoch.clone() }
    }
}

/// A channel with a local subscription, as the shard's ticks need to know it.
pub(super) struct Tracked {
    pub channel: Weak<Channel>,
    /// Last sequence delivered.
    pub last: AtomicU64,
    /// A tick or a read knows of this sequence.
    pub required: AtomicU64,
}

struct Ticks {
    chain: TickChain,
    newest_ms: u64,
    before_ms: u64,
    received: Instant,
    any: bool,
    writer: u64,
}

#[derive(Default)]
struct Known {
    /// This replica writes the ticks now.
    wanted: bool,
    stream: String,
    seen: Vec<(u64, u64)>,
}

/// See the module's description.
pub(super) struct Shard {
    pub index: usize,
    pub group: usize,
    /// Its number in the group.
    pub number: u32,
    pub names: ShardNames,
    pub group_name: String,
    pub tails: Option<TailStore>,
    pub max_age_ms: u64,
    pub max_bytes: Option<u64>,
    #[cfg(test)]
    pub faults: Arc<super::faults::Faults>,
    current: RwLock<Arc<Current>>,
    /// Highest sequence acknowledged, seen live or in a tick.
    seen: AtomicU64,
    ticks: Mutex<Ticks>,
    tracked: Mutex<HashMap<u64, Vec<Arc<Tracked>>>>,
    /// Sequences with the channels' hashes that this replica has seen, for the ticks that it writes.
    known: Mutex<Known>,
    /// A setting of the stream that breaks a promise, in words.
    broken: Mutex<Option<String>>,
    /// A tick was taken in.
    pub ticked: Notify,
    /// Somebody saw a sign of another incarnation.
    pub suspect: Notify,
}

/// The newest of what was asked for, proven not to be older than what this replica knows of.
pub(super) struct Fresh {
    pub current: Arc<Current>,
    pub answer: Answer,
}

impl Shard {
    pub fn new(index: usize, group: usize, number: u32, config: &LogConfig, incarnation: &Incarnation) -> Self {
        let settings = &config.groups[group];
        let ticks = Ticks {
            chain: TickChain::default(),
            newest_ms: 0,
            before_ms: 0,
            received: Instant::now(),
            any: false,
            writer: 0,
        };
        Self {
            index,
            group,
            number,
            group_name: settings.name.clone(),
            tails: config.tails.clone(),
            names: ShardNames::new(&config.prefix, &settings.name, number),
            max_age_ms: u64::try_from(settings.max_age.as_millis()).unwrap_or(u64::MAX),
            max_bytes: settings.max_bytes,
            #[cfg(test)]
            faults: config.faults.clone(),
            current: RwLock::new(Arc::new(current(incarnation))),
            seen: AtomicU64::new(0),
            ticks: Mutex::new(ticks),
            tracked: Mutex::default(),
            known: Mutex::default(),
            broken: Mutex::default(),
            ticked: Notify::new(),
            suspect: Notify::new(),
        }
    }

    pub fn current(&self) -> Arc<Current> {
        self.current.read().clone()
    }

    /// Goes over to another incarnation; everything known of the one before is forgotten.
    pub fn reincarnate(&self, incarnation: &Incarnation) {
        let mut ticks = self.ticks.lock();
        *self.current.write() = Arc::new(current(incarnation));
        self.seen.store(0, Ordering::SeqCst);
        ticks.chain = TickChain::default();
        ticks.any = false;
    }

    /// This sequence exists in the stream of this name.
    pub fn see(&self, stream: &str, seq: u64) {
        if self.current.read().stream == stream {
            self.seen.fetch_max(seq, Ordering::SeqCst);
        }
    }

    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    /// What `change` makes of the chain of ticks; a tick that was taken in is the newest sign of life.
    pub fn with_chain<R>(&self, change: impl FnOnce(&mut TickChain) -> R) -> R {
        change(&mut self.ticks.lock().chain)
    }

    pub fn chain(&self) -> TickChain {
        self.ticks.lock().chain
    }

    /// A tick, stored at `time_ms`, came live just now.
    pub fn alive(&self, time_ms: u64, writer: u64) {
        let mut ticks = self.ticks.lock();
        let now = Instant::now();
        // One that was long on its way sets the clock back a little only.
        let estimate = ticks.newest_ms + now.duration_since(ticks.received).as_millis() as u64;
        let least = if ticks.any { estimate.saturating_sub(MAX_SET_BACK_MS) } else { 0 };
        ticks.before_ms = if ticks.any { ticks.newest_ms.min(time_ms) } else { 0 };
        ticks.newest_ms = time_ms.max(least);
        ticks.received = now;
        ticks.any = true;
        ticks.writer = writer;
        drop(ticks);
        self.ticked.notify_waiters();
    }

    /// Time since the newest tick came, and who wrote it.
    pub fn silence(&self) -> (Duration, u64) {
        let ticks = self.ticks.lock();
        (ticks.received.elapsed(), ticks.writer)
    }

    /// The entry at this sequence belongs to the channel with this hash. Kept while this replica writes the ticks, up
    /// to a bound; what is not kept is read.
    pub fn note(&self, stream: &str, seq: u64, hash: u64) {
        let mut known = self.known.lock();
        if known.wanted && known.stream == stream && known.seen.len() < MAX_KNOWN {
            known.seen.push((seq, hash));
        }
    }

    /// Everything noted since the last call, by sequence; from now on this replica notes.
    pub fn take_known(&self, stream: &str) -> Vec<(u64, u64)> {
        let mut known = self.known.lock();
        if known.stream != stream {
            known.seen.clear();
            known.stream = stream.to_owned();
        }
        known.wanted = true;
        let mut seen = std::mem::take(&mut known.seen);
        drop(known);
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    /// Gives back what the next tick may need.
    pub fn keep_known(&self, stream: &str, rest: Vec<(u64, u64)>) {
        let mut known = self.known.lock();
        if known.stream == stream {
            known.seen.extend(rest);
        }
    }

    /// Another replica writes the ticks: nothing is noted any more.
    pub fn forget_known(&self) {
        let mut known = self.known.lock();
        known.wanted = false;
        known.seen = Vec::new();
    }

    /// An entry stored so long after its first attempt does not count.
    pub fn void_after_ms(&self) -> u64 {
        #[cfg(test)]
        match (&self.faults.count_late, self.faults.void_after_ms.load(Ordering::SeqCst)) {
            (late, _) if super::faults::Faults::on(late) => return u64::MAX,
            (_, 0) => {}
            (_, after_ms) => return after_ms,
        }
        VOID_AFTER_MS
    }

    pub fn set_broken(&self, broken: Option<String>) {
        *self.broken.lock() = broken;
    }

    pub fn broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }

    pub fn is_doubtful(&self) -> bool {
        let ticks = self.ticks.lock();
        !ticks.any || ticks.received.elapsed() > DOUBTFUL_AFTER
    }

    /// The stream's time, Unix milliseconds: the newest tick's and what has passed since; 0 while there is none.
    pub fn now_ms(&self) -> u64 {
        let ticks = self.ticks.lock();
        if ticks.any { ticks.newest_ms + ticks.received.elapsed().as_millis() as u64 } else { 0 }
    }

    /// Whether the front cannot have passed `verified` + 1 before a message at `seq` was stored at `time_ms`, judged
    /// by what was written since at most.
    pub fn front_is_safe(&self, verified: u64, seq: u64, time_ms: u64) -> bool {
        let ticks = self.ticks.lock();
        // A tick covers at least its predecessor, so what it does not cover was stored after that one.
        if !ticks.any || ticks.before_ms == 0 || verified < ticks.chain.through || time_ms == 0 {
            return false;
        }
        let age = time_ms.saturating_sub(ticks.before_ms);
        let young = age + CLOCK_MARGIN_MS < self.max_age_ms;
        let few = self.max_bytes.is_none_or(|max| age.max(1).saturating_mul(MAX_BYTES_PER_MS) < max);
        young && few && seq > 0
    }

    pub fn track(&self, hash: u64, tracked: Arc<Tracked>) {
        self.tracked.lock().entry(hash).or_default().push(tracked);
    }

    pub fn untrack(&self, hash: u64, tracked: &Arc<Tracked>) {
        let mut index = self.tracked.lock();
        if let Some(channels) = index.get_mut(&hash) {
            channels.retain(|other| !Arc::ptr_eq(other, tracked));
            if channels.is_empty() {
                index.remove(&hash);
            }
        }
    }

    /// The local channels of the shard.
    pub fn channels(&self) -> Vec<Arc<Channel>> {
        self.tracked.lock().values().flatten().filter_map(|tracked| tracked.channel.upgrade()).collect()
    }

    /// Last sequence that was delivered here on the channel with this hash.
    #[cfg(test)]
    pub fn delivered(&self, hash: u64) -> Option<u64> {
        let index = self.tracked.lock();
        index.get(&hash)?.first().map(|tracked| tracked.last.load(Ordering::SeqCst))
    }

    /// Notes what a tick says and returns the local channels that lack something, with the sequence they lack.
    pub fn lacking(&self, changes: &[(u64, u64)]) -> Vec<(Arc<Tracked>, u64)> {
        let index = self.tracked.lock();
        let mut lacking = Vec::new();
        for (hash, last) in changes {
            for tracked in index.get(hash).into_iter().flatten() {
                if tracked.last.load(Ordering::SeqCst) < *last {
                    tracked.required.fetch_max(*last, Ordering::SeqCst);
                    lacking.push((tracked.clone(), *last));
                }
            }
        }
        lacking
    }

    /// The last messages of `subjects`, those below sequence `min` left out, from a server that knows at least
    /// everything that this replica knows of, and `required`. The tick's subject is always among the answers.
    pub async fn fresh(
        &self,
        client: &Client,
        subjects: &[String],
        min: u64,
        required: u64,
    ) -> Result<Fresh, RequestError> {
        let deadline = Instant::now() + READ_PATIENCE;
        let mut pause = Duration::from_millis(2);
        loop {
            if self.is_doubtful() {
                let woken = self.ticked.notified();
                if self.is_doubtful() && tokio::time::timeout_at(deadline, woken).await.is_err() {
                    return Err(RequestError::Unavailable("the stream shows no sign of life"));
                }
            }
            let current = self.current();
            let required = required.max(self.seen());
            let mut all = Vec::with_capacity(subjects.len() + 1);
            all.extend_from_slice(subjects);
            all.push(self.names.tick());
            let result = match get_last(client, &current.stream, all, min).await {
                #[cfg(test)]
                Ok(answer) if super::faults::Faults::on(&self.faults.believe_stale) => {
                    return Ok(Fresh { current, answer });
                }
                Ok(answer) if answer.up_to >= required => return Ok(Fresh { current, answer }),
                Ok(_) => RequestError::Unavailable("the answering server lags behind"),
                Err(error) => error,
            };
            if Instant::now() + pause > deadline {
                return Err(result);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

fn current(incarnation: &Incarnation) -> Current {
    Current {
        stream: incarnation.stream.clone(),
        epoch: Epoch::from(incarnation.epoch.as_str()),
        regress: incarnation.regress,
        went_back: AtomicBool::new(false),
    }
}
