//! The port `Log` on JetStream.
//!
//! A few streams hold all channels; docs/log.md says by which rules nothing is lost, doubled or reordered.

mod ack;
mod append;
mod archive;
mod bucket;
mod chain;
#[cfg(test)]
mod chain_tests;
mod config;
mod delivery;
mod digest;
mod elections;
mod entry;
mod event;
#[cfg(test)]
mod faults;
mod inspect;
mod jetstream;
mod lasts;
mod line;
mod links;
mod live;
mod names;
mod piece;
mod proof;
mod read;
mod repair;
mod settings;
mod setup;
mod shard;
mod stats;
mod tails;
#[cfg(test)]
mod tests;
mod ticks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use plenum_channels::{
    Announcement, Append, AppendError, Appended, IdempotencyKey, Live, Log, Page, Position, Read, ReadError, Tail,
};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::append::Lanes;
use self::delivery::Delivery;
use self::entry::Record;
use self::jetstream::{REQUEST_TIMEOUT, RequestError};
use self::line::Request;
use self::read::Reader;
use self::shard::{READ_PATIENCE, Shard};
use self::stats::Outcomes;
use self::tails::Teller;
use self::ticks::Ticker;
use crate::channel_token;
use crate::workers::{Workers, WorkersConfig};

pub(crate) use archive::{Contents, contents, record_stream};
pub use config::{GroupConfig, LogConfig, Placement};
pub(crate) use entry::format_time_ms;
pub(crate) use inspect::{bytes, inspect, unix_ms};
pub(crate) use jetstream::{RequestError as ApiError, api as js_api, parse_api as js_answer};
pub use links::{Held, Links, PoolLinks};
pub(crate) use piece::Piece;
pub use setup::SetupError;
pub(crate) use setup::{is_new_enough, min_server};
pub use stats::{DeliveryStats, LaneStats, LogStats};
pub use tails::TailStore;

/// Room for headers and subject beside the payload, in the server's limit on a message.
const OVERHEAD_BYTES: usize = 4096;

/// Ticks come once a second, and after an election of 4 to 9 s.
const FIRST_TICKS: Duration = Duration::from_secs(3);

/// One replica's side of a log on JetStream. Its tasks end when it is dropped.
pub struct NatsLog {
    config: LogConfig,
    links: Arc<dyn Links>,
    groups: Vec<Vec<Arc<Shard>>>,
    delivery: Arc<Delivery>,
    lanes: Lanes,
    outcomes: Arc<Outcomes>,
    max_payload: usize,
    /// Makes the ids of appends unique.
    run: u64,
    next: AtomicU64,
    tasks: Vec<JoinHandle<()>>,
}

impl NatsLog {
    /// Creates, checks or widens the streams, then starts. Must be called within a tokio runtime.
    pub async fn start(links: Arc<dyn Links>, config: LogConfig) -> Result<Arc<Self>, SetupError> {
        let client = links.any();
        let ready = setup::set_up(&client, &config).await?;
        let workers = config.workers.clone().unwrap_or_else(|| Workers::start(WorkersConfig::default()));
        let delivery = Delivery::start(&workers, &links);
        let (mut groups, mut tasks, run) = (Vec::new(), Vec::new(), rand::random::<u64>());
        let mut index = 0;
        for (group, incarnations) in ready.incarnations.iter().enumerate() {
            let mut shards = Vec::new();
            for (number, incarnation) in incarnations.iter().enumerate() {
                let shard = Arc::new(Shard::new(index, group, number as u32, &config, incarnation));
                index += 1;
                let ticker = Ticker {
                    teller: Teller::new(&shard),
                    shard: shard.clone(),
                    links: links.clone(),
                    delivery: delivery.clone(),
                    config: config.clone(),
                    writer: run,
                };
                tasks.push(tokio::spawn(ticker.run()));
                shards.push(shard);
            }
            groups.push(shards);
        }
        let lanes = Lanes::start(
            config.append_lanes,
            config.append_window,
            config.append_queue,
            config.append_patience,
            &links,
        );
        let max_payload = client.max_payload().saturating_sub(OVERHEAD_BYTES);
        for shard in groups.iter().flatten() {
            tasks.push(tokio::spawn(verify_when_disturbed(links.disturbed(), delivery.clone(), shard.clone())));
        }
        let log = Arc::new(Self {
            config,
            links,
            groups,
            delivery,
            lanes,
            outcomes: Arc::new(Outcomes::new()),
            max_payload,
            run,
            next: AtomicU64::new(1),
            tasks,
        });
        first_ticks(&log.groups).await;
        Ok(log)
    }

    /// What the log does, for the resource report.
    pub fn stats(&self) -> LogStats {
        let (failed, append_latency) = self.outcomes.read();
        LogStats {
            lanes: self.lanes.stats(),
            delivery: self.delivery.stats(),
            acknowledged: append_latency.count - failed.min(append_latency.count),
            failed,
            append_latency,
            shards: self.groups.iter().map(Vec::len).sum(),
            doubtful: self.doubtful().len(),
        }
    }

    /// Shards without a tick for 3 s, as their streams' names: delivery and reads of their channels are in doubt.
    pub fn doubtful(&self) -> Vec<String> {
        let shards = self.groups.iter().flatten();
        shards.filter(|shard| shard.is_doubtful()).map(|shard| shard.current().stream.clone()).collect()
    }

    /// Settings of streams that somebody changed so that a promise is in doubt, in words; looked at every 5 s.
    pub fn broken(&self) -> Vec<String> {
        self.groups.iter().flatten().filter_map(|shard| shard.broken()).collect()
    }

    /// Records the retention groups of all namespaces (group by namespace), as they are after a reload: namespaces that
    /// are new are fixed from now on. Fails on one that another replica recorded with another group, by its name; and as
    /// [`SetupError::Unavailable`] when NATS does not answer within about 20 s.
    pub async fn record_namespaces(&self, namespaces: BTreeMap<String, String>) -> Result<(), SetupError> {
        setup::record_namespaces(&self.links.any(), &self.config, namespaces).await
    }

    fn shard(&self, channel: &str) -> &Arc<Shard> {
        let group = (self.config.placement)(channel).min(self.groups.len() - 1);
        let shards = &self.groups[group];
        &shards[(channel_token::hash(channel) % shards.len() as u64) as usize]
    }

    fn unique_id(&self) -> String {
        format!("{:016x}{:x}", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn request(
        &self,
        append: Append,
    ) -> Result<(Request, oneshot::Receiver<Result<Appended, AppendError>>), AppendError> {
        let shard = self.shard(&append.channel).clone();
        let nonce = append.idempotency.is_some().then(rand::random);
        let record = Record {
            first_attempt_ms: shard.now_ms(),
            nonce,
            version: append.version,
            publication: append.publication,
        };
        let payload = record.encode();
        if payload.len() > self.max_payload {
            return Err(AppendError::TooLarge { size: payload.len(), max: self.max_payload });
        }
        let (reply, result) = oneshot::channel();
        let request = Request {
            subject: shard.names.publication(&append.channel).into(),
            id: match &append.idempotency {
                #[cfg(test)]
                Some(key) if faults::Faults::on(&self.config.faults.bare_keys) => key.key.clone(),
                Some(key) => key_id(&append.channel, key),
                None => self.unique_id(),
            },
            keyed: append.idempotency.is_some(),
            channel: append.channel,
            shard,
            payload,
            nonce,
            expected: append.expected,
            called: Instant::now(),
            reply,
        };
        Ok((request, result))
    }
}

impl Drop for NatsLog {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.delivery.close();
    }
}

#[async_trait]
impl Log for NatsLog {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (request, result) = match self.request(append) {
            Ok(request) => request,
            Err(error) => return ready(Err(error)).boxed(),
        };
        let (called, outcomes) = (request.called, self.outcomes.clone());
        self.lanes.send(request);
        let outcome = async move {
            let result = result.await.unwrap_or(Err(AppendError::Indeterminate));
            outcomes.count(called.elapsed(), result.is_ok());
            result
        };
        outcome.boxed()
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        let payload = event::encode_announcement(&announcement);
        if payload.len() > self.max_payload {
            return Err(AppendError::TooLarge { size: payload.len(), max: self.max_payload });
        }
        let unavailable = |reason: &str| AppendError::Unavailable { reason: reason.into() };
        let client = self.links.pinned(channel_token::hash(channel));
        if client.connection_state() != async_nats::connection::State::Connected {
            return Err(unavailable("there is no connection"));
        }
        let subject = self.shard(channel).names.live(channel);
        match timeout(REQUEST_TIMEOUT, client.publish(subject, payload.into())).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(unavailable("the connection takes nothing")),
        }
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        let reader = Reader { links: &*self.links, shard: self.shard(channel), channel };
        #[cfg(test)]
        let read = reader.held(read);
        let deadline = Instant::now() + READ_PATIENCE;
        loop {
            match reader.read(&read).await {
                Ok(page) => return Ok(page),
                Err(error) => retry_until(deadline, error).await?,
            }
        }
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        let reader = Reader { links: &*self.links, shard: self.shard(channel), channel };
        let deadline = Instant::now() + READ_PATIENCE;
        loop {
            match reader.tail().await {
                Ok(tail) => return Ok(tail),
                Err(error) => retry_until(deadline, error).await?,
            }
        }
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        let (reply, result) = oneshot::channel();
        self.delivery.subscribe(channel, self.shard(channel), live, reply);
        let gone = || ReadError::Unavailable { reason: "the log has ended".into() };
        result.await.unwrap_or_else(|_| Err(gone()))
    }

    fn unsubscribe(&self, channel: &str) {
        self.delivery.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let shard = self.shard(channel);
        let id = self.unique_id();
        let deadline = Instant::now() + self.config.append_patience;
        let mut maybe_stored = false;
        loop {
            let (floor, current) = (shard.seen(), shard.current());
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            headers.insert("Nats-Expected-Stream", current.stream.as_str());
            let client = self.links.any();
            let request = client.request_with_headers(shard.names.marker(channel), headers, entry::marker());
            let reason = match timeout(REQUEST_TIMEOUT, request).await {
                Ok(Ok(answer)) => match jetstream::parse_api::<Ack>(&answer.payload) {
                    // A marker that was repeated may be older.
                    Ok(ack) if ack.seq <= floor && !maybe_stored => {
                        current.goes_back();
                        "the stream went back".into()
                    }
                    Ok(ack) => {
                        shard.see(&current.stream, ack.seq);
                        return Ok(current.position(ack.seq));
                    }
                    Err(error) => error.to_string(),
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    maybe_stored = true;
                    "no acknowledgement in time".into()
                }
            };
            if Instant::now() > deadline {
                return Err(match maybe_stored {
                    true => AppendError::Indeterminate,
                    false => AppendError::Unavailable { reason },
                });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Waits for the first sign of life of every shard, for a short time: it tells the stream's time, without which a
/// publication cannot say when it was first tried.
async fn first_ticks(groups: &[Vec<Arc<Shard>>]) {
    let deadline = Instant::now() + FIRST_TICKS;
    for shard in groups.iter().flatten() {
        let ticked = shard.ticked.notified();
        if shard.is_doubtful() && timeout_at(deadline, ticked).await.is_err() {
            tracing::warn!(stream = shard.current().stream, "no sign of life yet");
        }
    }
}

/// Verifies every channel of the shard after each event that may have lost live messages; what happens during a look leads
/// to one more. Ends with the connections.
async fn verify_when_disturbed(mut disturbed: watch::Receiver<u64>, delivery: Arc<Delivery>, shard: Arc<Shard>) {
    while disturbed.changed().await.is_ok() {
        #[cfg(test)]
        if faults::Faults::on(&shard.faults.ignore_disturbances) {
            continue;
        }
        delivery.verify_now(&shard).await;
    }
}

/// Waits a little before the next attempt of a read, or ends it with its last error.
async fn retry_until(deadline: Instant, error: RequestError) -> Result<(), ReadError> {
    if Instant::now() > deadline {
        return Err(ReadError::Unavailable { reason: error.to_string() });
    }
    sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// An id that is the same for the same key on the same channel, and that no other channel, scope and key share: the
/// lengths keep the parts apart.
fn key_id(channel: &str, key: &IdempotencyKey) -> String {
    use aws_lc_rs::digest::{Context, SHA256};
    let mut hash = Context::new(&SHA256);
    for part in [channel, &key.scope, &key.key] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finish().as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
