//! The copy of blocks and revocations, from which a replica starts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::control::connect;
use super::ledger::FarLedger;
use super::{Cluster, settings};
use crate::memory::MemoryCopies;
use crate::node::unix_now;
use crate::{Copies, Ledger, Node};

const BLOCKED: usize = 1500;
const REGISTER: &str = "c/entries";

/// A store that takes its time.
struct Slow(Arc<MemoryCopies>, Duration);

#[async_trait]
impl Copies for Slow {
    async fn keep(&self, copy: Bytes, ttl: Duration) -> bool {
        tokio::time::sleep(self.1).await;
        self.0.keep(copy, ttl).await
    }

    async fn copy(&self, bytes: usize) -> Option<Bytes> {
        tokio::time::sleep(self.1).await;
        self.0.copy(bytes).await
    }
}

fn cluster(ledger: &Arc<FarLedger>, copies: Arc<dyn Copies>) -> Cluster {
    Cluster { copies: Some(copies), ..Cluster::on(ledger.clone()) }
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

/// A cluster with many blocks; the copy is made as soon as a replica has read them.
async fn blocked(ledger: &Arc<FarLedger>, copies: Arc<dyn Copies>) -> (Cluster, Arc<Node>) {
    let mut cluster = cluster(ledger, copies);
    let one = cluster.replica(settings());
    for n in 0..BLOCKED {
        one.block_user(&user(n), 0).await.unwrap();
    }
    settle().await;
    // Made while the blocks came; another one holds them all.
    tokio::time::sleep(Duration::from_secs(900)).await;
    ledger.take_shown();
    (cluster, one)
}

/// Blocks hold on a replica that starts now; the records that it read.
async fn start(cluster: &mut Cluster, ledger: &FarLedger) -> (Arc<Node>, usize) {
    ledger.take_shown();
    let node = cluster.replica(settings());
    for n in [0, BLOCKED / 2, BLOCKED - 1] {
        assert_eq!(connect(&node, &user(n), String::new()).await, 3507, "{n}");
    }
    assert_eq!(connect(&node, "bert", String::new()).await, 0);
    (node, ledger.take_shown())
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_reads_the_copy_and_what_came_after_it() {
    let ledger = FarLedger::new();
    let (mut cluster, one) = blocked(&ledger, MemoryCopies::new()).await;
    let (_, read) = start(&mut cluster, &ledger).await;
    assert!(read <= 2, "{read} records of the ledger were read");
    one.unblock_user(&user(7)).await.unwrap();
    one.block_user("anna", 0).await.unwrap();
    one.revoke_token("spilled", 0).await.unwrap();
    let (node, read) = start(&mut cluster, &ledger).await;
    assert!((3..20).contains(&read), "{read} records of the ledger were read");
    assert_eq!(connect(&node, &user(7), String::new()).await, 0, "erased after the copy");
    assert_eq!(connect(&node, "anna", String::new()).await, 3507);
    assert_eq!(connect(&node, "carl;jti=spilled", String::new()).await, 113);
    assert_eq!(cluster.started, 3);
}

/// An erased register shows for an hour only: a copy is never used that is so old that it could lack the erasure.
#[tokio::test(start_paused = true)]
async fn an_old_copy_brings_no_block_back() {
    let ledger = FarLedger::new();
    let copies = MemoryCopies::new();
    let (mut cluster, one) = blocked(&ledger, copies).await;
    one.unblock_user(&user(7)).await.unwrap();
    // Nobody makes another one.
    ledger.set_away(true);
    tokio::time::sleep(Duration::from_secs(1801)).await;
    drop(one);
    ledger.set_away(false);
    assert_eq!(ledger.get(REGISTER).await.unwrap(), None);
    let (node, read) = start(&mut cluster, &ledger).await;
    assert!(read >= BLOCKED - 1, "{read}");
    assert_eq!(connect(&node, &user(7), String::new()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_copy_that_the_ledger_names_is_not_believed() {
    let ledger = FarLedger::new();
    let copies = MemoryCopies::new();
    let (mut cluster, _one) = blocked(&ledger, copies.clone()).await;
    let named: serde_json::Value =
        serde_json::from_slice(&ledger.get(REGISTER).await.unwrap().unwrap().value.unwrap()).unwrap();
    let bytes = named["copy"]["bytes"].as_u64().unwrap() as usize;
    let good = copies.copy(bytes).await.unwrap();
    assert!(start(&mut cluster, &ledger).await.1 <= 2);
    let poisoned = String::from_utf8(good.to_vec()).unwrap().replacen("user-0", "user-X", 1);
    // Emptied, and an answer that does not come.
    let none: Arc<dyn Copies> = MemoryCopies::new();
    let silent: Arc<dyn Copies> = Arc::new(Slow(copies.clone(), Duration::from_secs(3600)));
    for other in [none, silent] {
        cluster.copies = Some(other);
        assert!(start(&mut cluster, &ledger).await.1 >= BLOCKED);
    }
    // Of the same length, but not the same.
    cluster.copies = Some(copies.clone());
    assert!(copies.keep(poisoned.into(), Duration::from_secs(600)).await);
    assert!(start(&mut cluster, &ledger).await.1 >= BLOCKED);
    // The same copy, said to reach further than the ledger had come when it was named.
    assert!(copies.keep(good, Duration::from_secs(600)).await);
    let mut further = named.clone();
    further["copy"]["revision"] = (ledger.end().await.unwrap() + 2).into();
    ledger.put(REGISTER, Some(further.to_string().into()), None, None).await.unwrap();
    ledger.block("anna").await;
    let (node, read) = start(&mut cluster, &ledger).await;
    assert_eq!((connect(&node, "anna", String::new()).await, read >= BLOCKED), (3507, true));
    // The same copy beside another ledger, which names none.
    ledger.begin_anew();
    let fresh = cluster.replica(settings());
    assert_eq!(connect(&fresh, &user(0), String::new()).await, 0);
}

/// The revision of the copy that the ledger names; `None`: it names none.
async fn named(ledger: &FarLedger) -> Option<u64> {
    let found = ledger.get(REGISTER).await.unwrap()?;
    found.value?.starts_with(b"{\"copy\"").then_some(found.revision)
}

/// A maker that slept between reading and naming lacks what came meanwhile: its claim has run out, also where nobody else
/// has made another one.
#[tokio::test(start_paused = true)]
async fn a_claim_that_ran_out_names_no_copy() {
    let ledger = FarLedger::new();
    for (takes, alone, is_named) in [(50, false, true), (61, false, false), (61, true, false)] {
        ledger.begin_anew();
        let mut cluster = cluster(&ledger, Arc::new(Slow(MemoryCopies::new(), Duration::from_secs(takes))));
        let one = cluster.replica(settings());
        one.block_user("anna", 0).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        // What it began goes on; it begins nothing more.
        let one = (!alone).then_some(one);
        tokio::time::sleep(Duration::from_secs(takes + 3)).await;
        assert_eq!(named(&ledger).await.is_some(), is_named, "after {takes} s, alone: {alone}");
        drop(one);
    }
}

/// Who reads so slowly that it has not read its own claim knows nothing that is new enough.
#[tokio::test(start_paused = true)]
async fn who_is_behind_makes_no_copy() {
    let ledger = FarLedger::new();
    let mut cluster = cluster(&ledger, MemoryCopies::new());
    ledger.block("anna").await;
    ledger.page_ms.store(11_000, Ordering::Relaxed);
    let _one = cluster.replica(settings());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(named(&ledger).await, None);
    ledger.page_ms.store(0, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert!(named(&ledger).await.is_some());
}

/// Its reader would have to read too much after it, or it has run out while nobody could make another one.
#[tokio::test(start_paused = true)]
async fn a_copy_is_made_anew_when_much_came_after_it_and_when_it_is_gone() {
    let ledger = FarLedger::new();
    let mut cluster = cluster(&ledger, MemoryCopies::new());
    let one = cluster.replica(settings());
    one.block_user("anna", 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(90)).await;
    let first = named(&ledger).await.expect("a copy");
    ledger.resumes(1100).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let second = named(&ledger).await.expect("a copy");
    assert!(second > first + 1100, "{first}, {second}");
    ledger.set_away(true);
    tokio::time::sleep(Duration::from_secs(1900)).await;
    ledger.set_away(false);
    settle().await;
    assert!(named(&ledger).await > Some(second));
}

/// Several replicas take turns: one of them makes the copy.
#[tokio::test(start_paused = true)]
async fn a_copy_is_made_by_one_and_made_anew_before_it_ends() {
    let ledger = FarLedger::new();
    let mut cluster = cluster(&ledger, MemoryCopies::new());
    let nodes: Vec<_> = (0..3).map(|_| cluster.replica(settings())).collect();
    nodes[0].block_user("anna", 0).await.unwrap();
    settle().await;
    let mut revisions = Vec::new();
    for _ in 0..120 {
        let found = ledger.get(REGISTER).await.unwrap().expect("there is always one");
        revisions.push(found.revision);
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    revisions.dedup();
    // Every 15 minutes for two hours, two writes each.
    assert!((8..=9).contains(&revisions.len()), "{revisions:?}");
    assert!(revisions.windows(2).all(|pair| pair[1] - pair[0] == 2), "{revisions:?}");
}

#[tokio::test(start_paused = true)]
async fn without_blocks_or_resumes_nothing_is_written() {
    let ledger = FarLedger::new();
    let mut cluster = cluster(&ledger, MemoryCopies::new());
    let _node = cluster.replica(settings());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(ledger.get(REGISTER).await.unwrap(), None);
}

/// Who makes the copy may have a clock that is ahead of those who read it: what is over for the maker may hold for them.
#[tokio::test(start_paused = true)]
async fn a_copy_keeps_what_holds_by_a_clock_that_is_an_hour_behind() {
    let (ledger, copies) = (FarLedger::new(), MemoryCopies::new());
    let mut cluster = cluster(&ledger, copies.clone());
    let one = cluster.replica(settings());
    // By a clock an hour behind the first one holds for half an hour yet, and the second one was over half an hour ago.
    one.block_user("half", unix_now() - 1800).await.unwrap();
    one.block_user("long", unix_now() - 5400).await.unwrap();
    one.block_user("anna", 0).await.unwrap();
    settle().await;
    let named: serde_json::Value =
        serde_json::from_slice(&ledger.get(REGISTER).await.unwrap().unwrap().value.unwrap()).unwrap();
    let copy = copies.copy(named["copy"]["bytes"].as_u64().unwrap() as usize).await.unwrap();
    let copy = String::from_utf8(copy.to_vec()).unwrap();
    assert_eq!(["half", "long", "anna"].map(|user| copy.contains(user)), [true, false, true], "{copy}");
    let late = cluster.replica(settings());
    for (user, code) in [("half", 0), ("anna", 3507)] {
        for node in [&one, &late] {
            assert_eq!(connect(node, user, String::new()).await, code, "by this clock: {user}");
        }
    }
}
