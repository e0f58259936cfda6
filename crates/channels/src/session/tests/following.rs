//! Following the ledger: after a long time without it, and while others write without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plenum_protocol::Disconnect;
use plenum_telemetry::Resume;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::control::connect;
use super::{Client, Cluster, settings};
use crate::access::{Entry, block_key};
use crate::memory::MemoryLedger;
use crate::resume::FENCES;
use crate::{Ledger, LedgerError, Record};

/// A ledger that may be away, takes its time, and to which others write while it is read.
struct Busy {
    ledger: Arc<MemoryLedger>,
    away: AtomicBool,
    /// Milliseconds for a page.
    takes: AtomicU64,
    /// Fences written while a page is read.
    fences: AtomicU64,
    /// Of its room.
    percent: AtomicU64,
}

impl Busy {
    fn new(takes: u64, fences: u64) -> Arc<Self> {
        let (takes, fences) = (takes.into(), fences.into());
        Arc::new(Self { ledger: MemoryLedger::new(), away: false.into(), takes, fences, percent: 0.into() })
    }

    fn answer(&self) -> Result<(), LedgerError> {
        let away = self.away.load(Ordering::Relaxed);
        if away { Err(LedgerError::Unavailable { reason: "away".into() }) } else { Ok(()) }
    }

    /// Another replica, for which the ledger is not away, blocks a user.
    async fn block(&self, user: &str) {
        let entry = Entry::Block { user: user.to_owned(), expire_at: 0 };
        let value = serde_json::to_vec(&entry).unwrap();
        self.ledger.put(&entry.key(), Some(value.into()), None, None).await.unwrap();
    }

    async fn resumes(&self, count: u64) {
        for _ in 0..count {
            let fence = format!("{FENCES}{}", Uuid::new_v4().simple());
            self.ledger.put(&fence, Some("1".into()), Some(0), Some(Duration::from_secs(60))).await.unwrap();
        }
    }
}

#[async_trait]
impl Ledger for Busy {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        self.answer()?;
        self.ledger.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        self.answer()?;
        self.ledger.put(key, value, expected, ttl).await
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        self.answer()?;
        self.resumes(self.fences.load(Ordering::Relaxed)).await;
        sleep(Duration::from_millis(self.takes.load(Ordering::Relaxed))).await;
        self.ledger.changes(revision, limit).await
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        self.answer()?;
        self.ledger.end().await
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        self.answer()?;
        Ok(self.percent.load(Ordering::Relaxed) as f64 / 100.0)
    }
}

/// After ten minutes without the ledger everything is read again, page by page: meanwhile all that was known holds, also
/// when the ledger is away again before the last page.
#[tokio::test(start_paused = true)]
async fn blocks_hold_while_everything_is_read_again() {
    let ledger = Busy::new(0, 0);
    for n in 0..1200 {
        ledger.block(&format!("user-{n}")).await;
    }
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    assert_eq!(connect(&node, "user-7", String::new()).await, 3507);
    ledger.away.store(true, Ordering::Relaxed);
    ledger.ledger.put(&block_key("user-7"), None, None, None).await.unwrap();
    ledger.block("carl").await;
    // The erasure does not show any more.
    sleep(Duration::from_secs(4000)).await;
    let (mut carl, _) = Client::connect_as(&node, "carl").await;
    ledger.takes.store(1000, Ordering::Relaxed);
    ledger.away.store(false, Ordering::Relaxed);
    let began = Instant::now();
    while connect(&node, "user-7", String::new()).await != 0 {
        for n in [0, 600, 1199] {
            assert_eq!(connect(&node, &format!("user-{n}"), String::new()).await, 3507, "{n}: {:?}", began.elapsed());
        }
        let seconds = began.elapsed().as_secs();
        ledger.away.store((2..10).contains(&seconds), Ordering::Relaxed);
        assert!(seconds < 60, "what was erased is not forgotten");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(10), "it was away for some time: {:?}", began.elapsed());
    assert_eq!(carl.close().await, Disconnect::PERMISSION_DENIED);
    assert_eq!(connect(&node, "user-1199", String::new()).await, 3507);
}

/// While clients come back everywhere each page of the ledger is followed by another one.
#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_while_others_write_admits_and_refuses() {
    // Pages come faster than what fills them, and more slowly.
    for (takes, fences) in [(50, 3), (50, 600), (300, 600)] {
        let ledger = Busy::new(takes, fences);
        ledger.block("anna").await;
        ledger.resumes(3000).await;
        ledger.block("bert").await;
        let mut cluster = Cluster::on(ledger.clone());
        let (node, began) = (cluster.replica(settings()), Instant::now());
        let mut code = 100;
        while code == 100 {
            assert!(began.elapsed() < Duration::from_secs(60), "{takes} ms, {fences} fences: nobody is admitted");
            code = connect(&node, "carl", String::new()).await;
        }
        assert_eq!(code, 0);
        for user in ["anna", "bert"] {
            assert_eq!(connect(&node, user, String::new()).await, 3507, "{user}");
        }
        // Following goes on.
        ledger.fences.store(0, Ordering::Relaxed);
        ledger.block("carl").await;
        let began = Instant::now();
        while connect(&node, "carl", String::new()).await != 3507 {
            assert!(began.elapsed() < Duration::from_secs(60), "{takes} ms, {fences} fences");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Fences leave a fifth of the ledger to blocks and revocations.
#[tokio::test(start_paused = true)]
async fn a_full_ledger_takes_no_further_client_ids_but_blocks() {
    let ledger = Busy::new(0, 0);
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, anna, first) = Client::connect_with(&node, "anna", "").await;
    let (_, bert, other) = Client::connect_with(&node, "bert", "").await;
    let (mut back, again, next) = Client::connect_with(&node, "anna", &first).await;
    assert_eq!(again.client, anna.client);
    back.idle(1).await;
    ledger.percent.store(85, Ordering::Relaxed);
    sleep(Duration::from_secs(11)).await;
    let (_, stranger, _) = Client::connect_with(&node, "bert", &other).await;
    assert_ne!(stranger.client, bert.client, "he connects as if he had none");
    assert_eq!(node.metrics.resumes(Resume::Full).get(), 1);
    assert_eq!(node.metrics.ledger_fill_percent.get(), 85);
    let (_back, again, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!(again.client, anna.client, "she has a fence");
    node.block_user("carl", 0).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(connect(&node, "carl", String::new()).await, 3507);
    ledger.percent.store(70, Ordering::Relaxed);
    sleep(Duration::from_secs(11)).await;
    let (_client, again, _) = Client::connect_with(&node, "bert", &other).await;
    assert_eq!(again.client, bert.client, "the pass was not used up");
}
