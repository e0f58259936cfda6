//! Writing and taking in the ticks of one shard.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures_util::StreamExt;
use rand::Rng;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::digest::{Collector, Digest, Link};
use super::jetstream::{REQUEST_TIMEOUT, RequestError, Stored, get_batch, parse_api};
use super::links::Links;
use super::live::Workers;
use super::names::Kind;
use super::shard::Shard;
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

/// Follows one shard's ticks and writes them when it is this replica's turn. Ends when the log is dropped.
pub(super) struct Ticker {
    pub shard: Arc<Shard>,
    pub links: Arc<dyn Links>,
    pub workers: Workers,
    /// Random number of this run.
    pub writer: u64,
}

impl Ticker {
    pub async fn run(self) {
        let mut check = interval(Duration::from_millis(100));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let spread = SPREAD.mul_f64(rand::rng().random());
        let mut moved = Instant::now();
        let mut not_before = Instant::now();
        let mut live = self.listen().await;
        self.start().await;
        loop {
            tokio::select! {
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
                        self.write().await;
                    }
                    if silence >= MOVE_AFTER && moved.elapsed() >= MOVE_AFTER {
                        moved = Instant::now();
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
        let answer = super::jetstream::get_last(&self.links.any(), &current.stream, tick, 0).await;
        let Some(stored) = answer.ok().and_then(|answer| answer.messages.into_iter().next()) else { return };
        if let Some(digest) = Digest::decode(stored.payload.clone()) {
            self.shard.with_chain(|chain| {
                chain.newest = stored.seq;
                chain.through = digest.through;
            });
            self.shard.see(&stored.stream, stored.seq);
        }
    }

    async fn arrived(&self, message: async_nats::Message) {
        let Some(stored) = Stored::parse(message) else { return };
        if stored.stream != self.shard.current().stream {
            self.shard.suspect.notify_one();
            return;
        }
        if self.take(&stored) == Some(Link::Missing) {
            self.catch_up().await;
        }
    }

    /// Takes a tick in if it is the next one.
    fn take(&self, stored: &Stored) -> Option<Link> {
        let digest = Digest::decode(stored.payload.clone())?;
        self.shard.see(&stored.stream, stored.seq);
        let mut probe = self.shard.chain();
        let link = probe.take(stored.seq, &digest);
        if link == Link::Next {
            // First what is missing, then how far it is known: nobody may conclude from the second without the first.
            self.workers.require(self.shard.lacking(&digest.changes));
            self.shard.with_chain(|chain| *chain = probe);
            self.shard.alive(stored.time_ms, digest.writer);
        }
        Some(link)
    }

    /// Reads the ticks that were missed; where they are gone, every local channel of the shard is verified.
    async fn catch_up(&self) {
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
                    self.workers.verify_shard(&self.shard);
                    self.shard.with_chain(|chain| {
                        chain.newest = stored.seq;
                        chain.through = digest.through;
                    });
                    self.shard.alive(stored.time_ms, digest.writer);
                }
            }
            if ticks.len() < 64 {
                return;
            }
        }
    }

    /// Reads what the shard got since the newest tick and writes the next one, unless another replica is faster.
    async fn write(&self) {
        let current = self.shard.current();
        let chain = self.shard.chain();
        let client = self.links.any();
        let Ok(collector) = self.collect(&client, &current.stream, chain.through).await else { return };
        let digest = collector.digest(self.writer);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", current.stream.as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence", chain.newest.to_string());
        let request = client.request_with_headers(self.shard.names.tick(), headers, digest.encode());
        let Ok(Ok(answer)) = timeout(REQUEST_TIMEOUT, request).await else { return };
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        match parse_api::<Ack>(&answer.payload) {
            // It comes back live like everybody's; until then it is known to exist.
            Ok(ack) => self.shard.see(&current.stream, ack.seq),
            Err(RequestError::Refused { code: 10071 | 10164, .. }) => self.catch_up().await,
            Err(RequestError::Refused { code: 10060, .. }) => self.shard.suspect.notify_one(),
            Err(error) => tracing::debug!(stream = current.stream, %error, "a tick was not written"),
        }
    }

    async fn collect(&self, client: &async_nats::Client, stream: &str, from: u64) -> Result<Collector, RequestError> {
        let mut collector = Collector::after(from);
        let start = Instant::now();
        loop {
            let batch = get_batch(client, stream, &self.shard.names.all(), collector.through() + 1, BATCH).await?;
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
            if count == 0 || collector.is_full() || start.elapsed() > READ_TIME {
                return Ok(collector);
            }
            if count < BATCH / 2 {
                return Ok(collector);
            }
        }
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
