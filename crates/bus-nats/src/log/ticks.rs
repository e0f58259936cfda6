//! Writing and taking in the ticks of one shard.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures_util::StreamExt;
use rand::Rng;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::config::LogConfig;
use super::delivery::Delivery;
use super::digest::{Collector, Digest, Link};
use super::elections::{Elections, look_after};
use super::jetstream::{REQUEST_TIMEOUT, RequestError, Stored, get_batch, get_last, parse_api};
use super::links::Links;
use super::names::Kind;
use super::settings::check_running;
use super::setup::{note_high, note_regress, set_up_again, stream_info};
use super::shard::{Current, Shard};
use super::tails::Teller;
use crate::channel_token;

/// A tick a second.
const PERIOD: Duration = Duration::from_secs(1);

/// Another replica writes the next one after this much silence and up to as much again of [`SPREAD`].
const TAKEOVER: Duration = Duration::from_millis(1500);
const SPREAD: Duration = Duration::from_millis(300);

/// No tick for longer than an election takes: the connection may lead to a server that is cut off.
const MOVE_AFTER: Duration = Duration::from_secs(12);

/// Entries of the shard read with one request.
const BATCH: usize = 1000;

/// How long the writer reads before it writes what it has.
const READ_TIME: Duration = Duration::from_millis(700);

/// How often the stream's settings and its incarnation are looked at.
const INSPECT_EVERY: Duration = Duration::from_secs(5);

/// How often the writer notes how far the stream had come, and how old that must be: older than what a server that is
/// cut off from its peers may still believe, so that no such server looks as if the stream had gone back.
const NOTE_EVERY: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
const NOTE_AGE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// After this many ticks in a row that the stream refuses although nothing newer can be read, it is examined.
const MAX_REFUSED: u32 = 4;

/// What became of a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Written {
    /// It is stored, or another replica's is.
    Yes,
    /// The stream knows an older tick as the last one.
    Refused,
    /// It was stored at a sequence that had been given out before.
    WentBack,
    /// No answer, or one that says nothing.
    Unknown,
}

/// Follows one shard's ticks and writes them when it is this replica's turn. Ends when the log is dropped.
pub(super) struct Ticker {
    pub shard: Arc<Shard>,
    pub links: Arc<dyn Links>,
    pub delivery: Arc<Delivery>,
    pub config: LogConfig,
    /// Remembers where quiet channels ended, if that is configured.
    pub teller: Option<Teller>,
    /// Random number of this run.
    pub writer: u64,
}

impl Ticker {
    pub async fn run(mut self) {
        let mut check = interval(Duration::from_millis(100));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let spread = SPREAD.mul_f64(rand::rng().random());
        let mut moved = Instant::now();
        let mut not_before = Instant::now();
        let mut live = self.listen().await;
        let mut elections = Elections::of(self.shard.clone(), self.links.clone());
        let mut inspected = Instant::now();
        let mut refused = 0;
        let mut high = (Instant::now(), None);
        self.start().await;
        loop {
            tokio::select! {
                () = self.shard.suspect.notified() => {
                    self.refresh().await;
                    // A sign that nothing explains must not keep this task busy.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                () = elections.next() => {
                    tokio::spawn(look_after(self.shard.clone(), self.links.clone(), self.delivery.clone()));
                }
                message = next(&mut live) => match message {
                    Some(message) => self.arrived(message).await,
                    None => live = self.listen().await,
                },
                _ = check.tick() => {
                    let (silence, writer) = self.shard.silence();
                    let due = if writer == self.writer { PERIOD } else { TAKEOVER + spread };
                    if (silence >= due || self.shard.chain().newest == 0) && Instant::now() >= not_before {
                        // Failing writes are repeated a little slower than successful ones.
                        not_before = Instant::now() + PERIOD / 2;
                        let written = self.write().await;
                        refused = if written == Written::Refused { refused + 1 } else { 0 };
                        if written == Written::WentBack || refused >= MAX_REFUSED {
                            refused = 0;
                            self.examine(written).await;
                        }
                    }
                    if let Some(teller) = &mut self.teller {
                        teller.tell(&self.shard, writer == self.writer);
                    }
                    if inspected.elapsed() >= INSPECT_EVERY {
                        inspected = Instant::now();
                        self.inspect(&mut elections).await;
                    }
                    if high.1.is_none() && high.0.elapsed() >= NOTE_EVERY - NOTE_AGE {
                        high.1 = Some((self.shard.current(), self.shard.seen()));
                    }
                    if writer == self.writer && high.0.elapsed() >= NOTE_EVERY {
                        if let Some((current, seen)) = high.1.take() {
                            self.note_high(&current, seen).await;
                        }
                        high.0 = Instant::now();
                    }
                    if self.shard.current().has_gone_back() && Instant::now() >= not_before {
                        not_before = Instant::now() + PERIOD / 2;
                        self.examine(Written::WentBack).await;
                    }
                    if silence >= MOVE_AFTER && moved.elapsed() >= MOVE_AFTER {
                        moved = Instant::now();
                        #[cfg(test)]
                        if super::faults::Faults::on(&self.shard.faults.stay) {
                            continue;
                        }
                        tracing::warn!(stream = self.shard.current().stream, ?silence, "no tick; moving to other servers");
                        self.links.leave_all();
                    }
                }
            }
        }
    }

    async fn listen(&self) -> Option<Subscriber> {
        let client = self.links.subscribing(self.shard.index as u64);
        let subscribe = client.subscribe(self.shard.names.live_tick());
        match timeout(REQUEST_TIMEOUT, subscribe).await {
            Ok(Ok(subscriber)) => Some(subscriber),
            _ => None,
        }
    }

    /// Begins with the newest tick there is; one that is missing is written like any other.
    async fn start(&self) {
        let current = self.shard.current();
        let tick = vec![self.shard.names.tick()];
        let answer = get_last(&self.links.any(), &current.stream, tick, 0).await;
        let Some(stored) = answer.ok().and_then(|answer| answer.messages.into_iter().next()) else { return };
        if let Some(digest) = Digest::decode(stored.payload.clone()) {
            self.shard.with_chain(|chain| {
                chain.newest = stored.seq;
                chain.through = digest.through;
            });
            self.shard.see(&stored.stream, stored.seq);
        }
    }

    async fn arrived(&mut self, message: async_nats::Message) {
        let Some(stored) = Stored::parse(message) else { return };
        if stored.stream != self.shard.current().stream {
            self.shard.suspect.notify_one();
            return;
        }
        #[cfg(test)]
        if super::faults::Faults::on(&self.shard.faults.read_ticks_first) {
            self.catch_up().await;
        }
        if self.take(&stored) == Some(Link::Missing) {
            self.catch_up().await;
            self.take(&stored);
        }
        // Only what came live says that the stream is alive, also when it had been read before: over a slow connection that
        // is so with every tick.
        if let Some(digest) = Digest::decode(stored.payload.clone()) {
            self.shard.alive(stored.time_ms, digest.writer);
        }
    }

    /// Takes a tick in if it is the next one.
    fn take(&mut self, stored: &Stored) -> Option<Link> {
        let digest = Digest::decode(stored.payload.clone())?;
        self.shard.see(&stored.stream, stored.seq);
        #[cfg(test)]
        if super::faults::Faults::on(&self.shard.faults.hold_ticks) {
            return Some(Link::Next);
        }
        let mut probe = self.shard.chain();
        let link = probe.take(stored.seq, &digest);
        if link == Link::Next {
            // First what is missing, then how far it is known: nobody may conclude from the second without the first.
            #[cfg(test)]
            let ignored = super::faults::Faults::on(&self.shard.faults.ignore_ticks);
            #[cfg(not(test))]
            let ignored = false;
            if !ignored {
                self.delivery.require(self.shard.lacking(&digest.changes));
            }
            self.shard.with_chain(|chain| *chain = probe);
            if digest.writer != self.writer {
                self.shard.forget_known();
            }
            if let Some(teller) = &mut self.teller {
                teller.note(&self.shard, &digest);
            }
        }
        Some(link)
    }

    /// Reads the ticks that were missed; where they are gone, every local channel of the shard is verified.
    async fn catch_up(&mut self) {
        let (client, current) = (self.links.any(), self.shard.current());
        loop {
            let from = self.shard.chain().newest + 1;
            let Ok(ticks) = get_batch(&client, &current.stream, &self.shard.names.tick(), from, 64).await else {
                return;
            };
            for stored in &ticks {
                if self.take(stored) == Some(Link::Missing)
                    && let Some(digest) = Digest::decode(stored.payload.clone())
                {
                    self.delivery.verify_shard(&self.shard, self.shard.chain().through, 0);
                    if let Some(teller) = &mut self.teller {
                        teller.forget();
                    }
                    self.shard.with_chain(|chain| {
                        chain.newest = stored.seq;
                        chain.through = digest.through;
                    });
                }
            }
            if ticks.len() < 64 {
                return;
            }
        }
    }

    /// Reads what the shard got since the newest tick and writes the next one, unless another replica is faster.
    async fn write(&mut self) -> Written {
        let current = self.shard.current();
        let chain = self.shard.chain();
        let client = self.links.any();
        let Ok(collector) = self.collect(&client, &current.stream, chain.through).await else {
            return Written::Unknown;
        };
        let seen = self.shard.seen();
        match self.send(&current.stream, chain.newest, &collector.digest(self.writer)).await {
            Ok(seq) if seq <= seen => Written::WentBack,
            // It comes back live like everybody's; until then it is known to exist.
            Ok(seq) => {
                self.shard.see(&current.stream, seq);
                Written::Yes
            }
            Err(RequestError::Refused { code: 10071 | 10164, .. }) => {
                self.catch_up().await;
                if self.shard.chain().newest > chain.newest { Written::Yes } else { Written::Refused }
            }
            Err(RequestError::Refused { code: 10060, .. }) => {
                self.shard.suspect.notify_one();
                Written::Unknown
            }
            Err(error) => {
                tracing::debug!(stream = current.stream, %error, "a tick was not written");
                Written::Unknown
            }
        }
    }

    async fn send(&self, stream: &str, expected: u64, digest: &Digest) -> Result<u64, RequestError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", stream);
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let client = self.links.any();
        let request = client.request_with_headers(self.shard.names.tick(), headers, digest.encode());
        match timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(answer)) => parse_api::<Ack>(&answer.payload).map(|ack| ack.seq),
            _ => Err(RequestError::Unavailable("no acknowledgement")),
        }
    }

    /// The stream may have gone back. Only an acknowledgement proves it, because a server that is cut off from its
    /// peers cannot give one: so a tick is written behind what the stream itself takes for the last.
    async fn examine(&self, written: Written) {
        #[cfg(test)]
        if super::faults::Faults::on(&self.shard.faults.ignore_regress) {
            return;
        }
        let current = self.shard.current();
        let (client, seen) = (self.links.any(), self.shard.seen());
        if written != Written::WentBack {
            let tick = vec![self.shard.names.tick()];
            let last = match get_last(&client, &current.stream, tick, 0).await {
                Ok(answer) => answer.messages.first().map_or(0, |stored| stored.seq),
                Err(RequestError::NotFound) => 0,
                Err(_) => return,
            };
            if last >= self.shard.chain().newest {
                return;
            }
            let probe = Digest { from: last, through: last, writer: self.writer, changes: Vec::new() };
            match self.send(&current.stream, last, &probe).await {
                Ok(seq) if seq <= seen => {}
                _ => return,
            }
        }
        tracing::error!(stream = current.stream, seen, "the stream went back behind what it had acknowledged");
        let (group, number) = (self.shard.group, self.shard.number);
        let noted = note_regress(&client, &self.config, group, number, current.regress, seen).await;
        if noted.is_ok() {
            self.refresh().await;
        }
    }

    /// `high` was seen in the incarnation `then`.
    async fn note_high(&self, then: &Arc<Current>, high: u64) {
        let (client, current) = (self.links.any(), self.shard.current());
        if !Arc::ptr_eq(then, &current) {
            return;
        }
        let (group, number) = (self.shard.group, self.shard.number);
        let noted = note_high(&client, &self.config, group, number, current.regress, high).await;
        if let Err(error) = noted {
            tracing::debug!(stream = current.stream, %error, "how far the stream has come was not noted");
        }
    }

    /// Goes over to another incarnation if there is one.
    async fn refresh(&self) {
        let client = self.links.any();
        let found = set_up_again(&client, &self.config, self.shard.group, self.shard.number).await;
        let incarnation = match found {
            Ok(incarnation) => incarnation,
            Err(error) => {
                tracing::error!(stream = self.shard.current().stream, %error, "the shard cannot be set up");
                return;
            }
        };
        if incarnation.stream != self.shard.current().stream {
            tracing::warn!(stream = incarnation.stream, "the shard is another stream now");
            self.shard.reincarnate(&incarnation);
            self.delivery.reincarnated(&self.shard);
            self.start().await;
        }
    }

    /// Looks whether the stream is there and still keeps its promises.
    async fn inspect(&self, elections: &mut Elections) {
        let current = self.shard.current();
        let client = self.links.any();
        match stream_info(&client, &current.stream).await {
            Ok(info) => {
                let names = &self.shard.names;
                if let Err(error) = check_running(&current.stream, names, &self.config, self.shard.group, &info) {
                    tracing::error!(%error, "somebody changed a stream; what it promises is in doubt");
                    self.shard.set_broken(Some(error.to_string()));
                } else {
                    self.shard.set_broken(None);
                }
                elections.seen(&info);
            }
            Err(RequestError::Refused { code: 10059, .. }) => self.refresh().await,
            Err(error) => tracing::debug!(stream = current.stream, %error, "the stream cannot be inspected"),
        }
    }

    /// Goes through the shard after `from`, one sequence after the other. What this replica has seen acknowledged or
    /// live needs no reading.
    async fn collect(&self, client: &async_nats::Client, stream: &str, from: u64) -> Result<Collector, RequestError> {
        let mut known = self.shard.take_known(stream).into_iter().peekable();
        let mut collector = Collector::after(from);
        let start = Instant::now();
        loop {
            while let Some((seq, hash)) = known.next_if(|(seq, _)| *seq <= collector.through() + 1) {
                collector.note(seq, Some(hash));
            }
            if collector.is_full() || start.elapsed() > READ_TIME {
                break;
            }
            let next = collector.through() + 1;
            // At the end of what is known read on, in a hole of it no further than the hole.
            let wanted = known.peek().map_or(BATCH, |(seq, _)| ((seq - next) as usize).min(BATCH));
            let batch = get_batch(client, stream, &self.shard.names.all(), next, wanted).await?;
            let count = batch.len();
            for stored in batch {
                let channel = match self.shard.names.kind(&stored.subject) {
                    Some(Kind::Publication(channel)) => Some(channel_token::hash(&channel)),
                    _ => None,
                };
                if !collector.note(stored.seq, channel) {
                    // The front has passed what was not covered yet; readers of the tick see the hole.
                    collector = Collector::after(stored.seq - 1);
                    collector.note(stored.seq, channel);
                }
            }
            if count == 0 || known.peek().is_none() && count < BATCH / 2 {
                break;
            }
        }
        self.shard.keep_known(stream, known.collect());
        Ok(collector)
    }
}

async fn next(live: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match live {
        Some(subscriber) => subscriber.next().await,
        None => {
            tokio::time::sleep(Duration::from_millis(200)).await;
            None
        }
    }
}
