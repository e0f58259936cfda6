//! Last positions that outlive the data of their channels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use plenum_channels::memory::MemoryTails;
use plenum_channels::{Log, Position, RememberedTail, Since, Tails};

use super::servers::{config, faulty, history, prefix, publish, replica};
use crate::log::{GroupConfig, LogConfig, NatsLog, TailStore};
use crate::testing::NatsServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// Remembers until told to stop: what comes then is lost.
struct Losing {
    inner: Arc<MemoryTails>,
    stopped: AtomicBool,
}

#[async_trait]
impl Tails for Losing {
    async fn remember(&self, tails: &[(String, RememberedTail)], ttl: Duration) {
        if !self.stopped.load(Ordering::SeqCst) {
            self.inner.remember(tails, ttl).await;
        }
    }

    async fn recall(&self, channel: &str) -> Option<RememberedTail> {
        self.inner.recall(channel).await
    }
}

fn store() -> Arc<Losing> {
    Arc::new(Losing { inner: MemoryTails::new(1000), stopped: AtomicBool::new(false) })
}

/// One shard that holds a megabyte.
fn small(prefix: &str, tails: Option<Arc<Losing>>) -> LogConfig {
    let group = GroupConfig { shards: 1, max_bytes: Some(1 << 20), ..GroupConfig::default() };
    let ttl = Duration::from_secs(3600);
    let tails = tails.map(|tails| TailStore { tails, ttl });
    LogConfig { groups: vec![group], tails, ..config(prefix, 1) }
}

/// Publishes until nothing of the channel is left in the stream, with ticks between the pieces.
async fn push_out(log: &NatsLog, channel: &str, last: u64) {
    let deadline = Instant::now() + PATIENCE;
    while log.tail(channel).await.unwrap().position.offset <= last {
        assert!(Instant::now() < deadline, "the front does not move");
        publish(log, "ballast", vec![b'x'; 100_000]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn is_complete(log: &NatsLog, channel: &str, offset: u64) -> bool {
    let epoch = log.tail(channel).await.unwrap().position.epoch;
    let page = history(log, channel, Since::Position(Position { offset, epoch })).await;
    page.complete
}

async fn remembered(store: &Losing, names: &str, offset: u64) {
    let deadline = Instant::now() + PATIENCE;
    while store.inner.recall(names).await.is_none_or(|tail| tail.position.offset != offset) {
        assert!(Instant::now() < deadline, "no tail of {offset}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn name(channel: &str) -> String {
    format!("default/0/{:016x}", crate::channel_token::hash(channel))
}

/// Nothing of the channel is left. Who stands at its last publication has missed nothing, and with the tails this can be
/// proven; who stands before it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_outlives_the_data() {
    let server = NatsServer::start().await.unwrap();
    let (prefix, store) = (prefix(), store());
    let log = replica(vec![server.url()], small(&prefix, Some(store.clone()))).await;
    let first = publish(&log, "quiet", "1").await;
    let second = publish(&log, "quiet", "2").await;
    remembered(&store, &name("quiet"), second).await;
    push_out(&log, "quiet", second).await;
    // Told again since: nobody needs to hold the channel for it.
    let deadline = Instant::now() + PATIENCE;
    while !is_complete(&log, "quiet", second).await {
        assert!(Instant::now() < deadline, "the tail is not renewed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!is_complete(&log, "quiet", first).await, "the second one was missed");
    assert!(!is_complete(&log, "other", 1).await, "nobody knows that channel");
    // Another replica answers alike; without the store nobody can know.
    let other = replica(vec![server.url()], small(&prefix, Some(store))).await;
    let without = replica(vec![server.url()], small(&prefix, None)).await;
    let deadline = Instant::now() + PATIENCE;
    while !is_complete(&other, "quiet", second).await {
        assert!(Instant::now() < deadline, "the other replica does not know");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!is_complete(&without, "quiet", second).await);
}

/// The store forgot the newer tail, as after a failover: the older one must not be believed once what it does not cover
/// is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_tail_never_makes_a_loss_a_recovery() {
    let server = NatsServer::start().await.unwrap();
    let store = store();
    let (log, faults) = faulty(vec![server.url()], small(&prefix(), Some(store.clone()))).await;
    let first = publish(&log, "quiet", "1").await;
    remembered(&store, &name("quiet"), first).await;
    store.stopped.store(true, Ordering::SeqCst);
    let second = publish(&log, "quiet", "2").await;
    push_out(&log, "quiet", second).await;
    assert!(!is_complete(&log, "quiet", first).await, "the second one was missed");
    assert!(!is_complete(&log, "quiet", second).await, "forgotten");
    // Without the rule the client is told that it has everything.
    faults.trust_tails.store(true, Ordering::SeqCst);
    assert!(is_complete(&log, "quiet", first).await);
}
