//! Commands and live messages on the same keyed workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use plenum_bus_nats::log::{GroupConfig, LogConfig, NatsLog, PoolLinks};
use plenum_bus_nats::subscriber::OrderedConfig;
use plenum_bus_nats::workers::WorkersConfig;
use plenum_channels::{
    Announcement, Append, AppendError, Appended, Live, LiveEvent, Log, Page, Position, Read, ReadError, Tail,
};
use plenum_worker::ConsumerConfig;
use serde_json::Value;

use crate::{Bench, PATIENCE, publish, published, settled};

/// A log that takes nothing on one channel while it is cut.
struct Cut {
    log: Arc<NatsLog>,
    channel: &'static str,
    cut: AtomicBool,
    refused: AtomicU64,
}

#[async_trait]
impl Log for Cut {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        if *append.channel == *self.channel && self.cut.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return ready(Err(AppendError::Unavailable { reason: "cut".into() })).boxed();
        }
        self.log.append(append)
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.log.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.log.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.log.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        self.log.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.log.remove(channel).await
    }
}

/// Counts live publications.
#[derive(Default)]
struct Witness(AtomicU64);

impl Live for Witness {
    fn deliver(&self, events: &[LiveEvent]) {
        let count = events.iter().filter(|event| matches!(event, LiveEvent::Publication(_))).count();
        self.0.fetch_add(count as u64, Ordering::SeqCst);
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process's only worker has a command that is tried again and again, and others behind it on its channel: commands of
/// other channels and live messages, also of that very channel, go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_waits_for_its_next_try_holds_up_only_its_channel() {
    let one = WorkersConfig { workers: 1, ..WorkersConfig::default() };
    let mut kept = None;
    let bench = Bench::on("", ["", ""], one, async |pool, workers| {
        let groups = vec![GroupConfig { max_bytes: None, ..GroupConfig::default() }];
        let config = LogConfig { groups, workers: Some(workers.clone()), ..LogConfig::default() };
        let log = NatsLog::start(PoolLinks::new(pool.clone()), config).await.unwrap();
        let refused = AtomicU64::new(0);
        let log = Arc::new(Cut { log, channel: "log:stuck", cut: AtomicBool::new(true), refused });
        kept = Some(log.clone());
        log
    });
    let bench = bench.await;
    let log = kept.unwrap();
    let (stuck, free) = (Arc::new(Witness::default()), Arc::new(Witness::default()));
    for (channel, witness) in [("log:stuck", &stuck), ("log:free", &free)] {
        let started = Instant::now();
        while let Err(error) = log.log.subscribe(channel, witness.clone()).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
        }
    }
    let source = OrderedConfig { tries: u32::MAX, ..bench.config().source };
    let consumers = bench.start(ConsumerConfig { source, ..bench.config() });
    bench.send((0..10).map(|number| publish("log:stuck", number))).await;
    until("it is tried again", || log.refused.load(Ordering::SeqCst) > 2).await;
    bench.send((0..50).map(|number| publish("log:free", number))).await;
    settled(&consumers, 50, 0).await;
    until("live messages arrive", || free.0.load(Ordering::SeqCst) == 50).await;
    let numbers = |range: std::ops::Range<u64>| range.map(Value::from).collect::<Vec<_>>();
    assert_eq!(published(&bench.node, "log:free").await, numbers(0..50));
    assert_eq!((stuck.0.load(Ordering::SeqCst), log.log.stats().delivery.missed), (0, 0));
    let stats = bench.workers.stats();
    assert_eq!((stats.waiting, stats.expired, stats.panicked), (10, 0, 0), "{stats:?}");
    log.cut.store(false, Ordering::SeqCst);
    settled(&consumers, 60, 0).await;
    assert_eq!(published(&bench.node, "log:stuck").await, numbers(0..10));
    until("they arrive", || stuck.0.load(Ordering::SeqCst) == 10).await;
    assert!(consumers.drain(PATIENCE).await);
    assert_eq!(bench.workers.stop(PATIENCE).await, 0);
}
