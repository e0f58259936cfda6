//! NATS servers and replicas for the tests of the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plenum_channels::{Append, Live, LiveEvent, Log, Page, Position, Read, ReadError, Retention, Since};
use plenum_protocol::Publication;

use crate::log::faults::Faults;
use crate::log::{GroupConfig, Links, LogConfig, NatsLog, PoolLinks, SetupError};
use crate::pool::{Pool, PoolConfig};

/// A prefix that no other test on the same servers has.
pub fn prefix() -> String {
    format!("t{:08x}", rand::random::<u32>())
}

pub fn config(prefix: &str, copies: u32) -> LogConfig {
    // A server refuses a stream whose bytes it could not hold; tests hold little.
    let groups = vec![GroupConfig { max_bytes: None, ..GroupConfig::default() }];
    LogConfig { prefix: prefix.into(), replicas: copies, groups, ..LogConfig::default() }
}

pub async fn pool(urls: Vec<String>) -> Arc<Pool> {
    let pool = Pool::connect(PoolConfig::new(urls)).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    pool
}

/// A pool that stays at these servers.
pub async fn pool_at(urls: Vec<String>) -> Arc<Pool> {
    let pool = Pool::connect(PoolConfig { discover_servers: false, ..PoolConfig::new(urls) }).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    pool
}

/// A log on these connections that hears ticks. On a busy machine the servers may elect just then, and say so.
pub async fn started(pool: Arc<Pool>, config: LogConfig) -> Arc<NatsLog> {
    started_on(PoolLinks::new(pool), config).await
}

/// The same on links of any kind.
pub async fn started_on(links: Arc<dyn Links>, config: LogConfig) -> Arc<NatsLog> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = loop {
        match NatsLog::start(links.clone(), config.clone()).await {
            Err(SetupError::Unavailable { .. }) if Instant::now() < deadline => {}
            result => break result.unwrap(),
        }
    };
    // The start waits for first ticks for a short time only; without them calls are refused as temporary.
    assert!(until(Duration::from_secs(60), || log.doubtful().is_empty()).await, "no ticks: {:?}", log.doubtful());
    log
}

/// One replica.
pub async fn replica(urls: Vec<String>, config: LogConfig) -> Arc<NatsLog> {
    started(pool(urls).await, config).await
}

/// Replicas of one log under a prefix of its own.
pub async fn replicas(urls: &[String], count: usize, copies: u32) -> Vec<Arc<NatsLog>> {
    let prefix = prefix();
    let mut logs = Vec::new();
    for _ in 0..count {
        logs.push(replica(urls.to_vec(), config(&prefix, copies)).await);
    }
    logs
}

/// A replica and what breaks it.
pub async fn faulty(urls: Vec<String>, mut config: LogConfig) -> (Arc<NatsLog>, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    config.faults = faults.clone();
    (replica(urls, config).await, faults)
}

/// The same, always on this server.
pub async fn faulty_at(url: String, mut config: LogConfig) -> (Arc<NatsLog>, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    config.faults = faults.clone();
    (started(pool_at(vec![url]).await, config).await, faults)
}

pub fn request(channel: &str, data: impl Into<Vec<u8>>) -> Append {
    Append {
        channel: channel.into(),
        publication: Publication { data: data.into().into(), ..Publication::default() },
        retention: KEEP,
        idempotency: None,
        expected: None,
        version: None,
    }
}

pub const KEEP: Retention =
    Retention { size: 1_000_000, ttl: Duration::from_secs(3600), meta_ttl: Duration::from_secs(3600) };

pub async fn publish(log: &NatsLog, channel: &str, data: impl Into<Vec<u8>>) -> u64 {
    log.append(request(channel, data)).await.unwrap().position.offset
}

/// The history. On a busy machine a read may be refused as temporary; then it is made again.
pub async fn history(log: &NatsLog, channel: &str, since: Since) -> Page {
    let read = Read { since, reverse: false, limit: 100_000, max_bytes: usize::MAX, retention: KEEP };
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match log.read(channel, read.clone()).await {
            Ok(page) => return page,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Remembers what it got and when; losses too.
#[derive(Default)]
pub struct Witness {
    pub events: Mutex<Vec<(Instant, LiveEvent)>>,
}

impl Live for Witness {
    fn deliver(&self, events: &[LiveEvent]) {
        let now = Instant::now();
        self.events.lock().extend(events.iter().map(|event| (now, event.clone())));
    }
}

impl Witness {
    pub async fn on(log: &NatsLog, channel: &str) -> Arc<Self> {
        Self::within(Duration::from_secs(30), log, channel).await.unwrap()
    }

    /// A witness that joined. On a busy machine the first ticks may take their time; until then a subscription is refused
    /// as temporary.
    pub async fn within(patience: Duration, log: &NatsLog, channel: &str) -> Result<Arc<Self>, ReadError> {
        let witness = Arc::new(Self::default());
        let deadline = Instant::now() + patience;
        while let Err(error) = log.subscribe(channel, witness.clone()).await {
            if Instant::now() > deadline {
                return Err(error);
            }
        }
        Ok(witness)
    }

    pub fn offsets(&self) -> Vec<u64> {
        let offset = |(_, event): &(Instant, LiveEvent)| match event {
            LiveEvent::Publication(entry) => Some(entry.offset),
            _ => None,
        };
        self.events.lock().iter().filter_map(offset).collect()
    }

    pub fn losses(&self) -> Vec<Position> {
        let lost = |(_, event): &(Instant, LiveEvent)| match event {
            LiveEvent::Lost { position } => Some(position.clone()),
            _ => None,
        };
        self.events.lock().iter().filter_map(lost).collect()
    }

    /// When the publication arrived.
    pub fn arrival(&self, offset: u64) -> Option<Instant> {
        let here = |event: &LiveEvent| matches!(event, LiveEvent::Publication(entry) if entry.offset == offset);
        self.events.lock().iter().find(|(_, event)| here(event)).map(|(at, _)| *at)
    }

    /// Whether the publication arrives within `patience`.
    pub async fn gets(&self, offset: u64, patience: Duration) -> bool {
        until(patience, || self.arrival(offset).is_some()).await
    }
}

/// Whether something becomes true in time.
pub async fn until(patience: Duration, ready: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !ready() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}
