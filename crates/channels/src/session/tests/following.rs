//! Following the ledger: after a long time without it, and while others write without end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_protocol::Disconnect;
use tokio::time::{Instant, sleep};

use super::control::connect;
use super::ledger::FarLedger;
use super::{Client, Cluster, settings};
use crate::Ledger;
use crate::access::block_key;

/// After ten minutes without the ledger everything is read again, page by page: meanwhile all that was known holds, also
/// when the ledger is away again before the last page.
#[tokio::test(start_paused = true)]
async fn blocks_hold_while_everything_is_read_again() {
    let ledger = FarLedger::new();
    for n in 0..1200 {
        ledger.block(&format!("user-{n}")).await;
    }
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    assert_eq!(connect(&node, "user-7", String::new()).await, 3507);
    ledger.set_away(true);
    ledger.inner().put(&block_key("user-7"), None, None, None).await.unwrap();
    ledger.block("carl").await;
    // The erasure does not show any more.
    sleep(Duration::from_secs(4000)).await;
    let (mut carl, _) = Client::connect_as(&node, "carl").await;
    ledger.page_ms.store(1000, Ordering::Relaxed);
    ledger.set_away(false);
    let began = Instant::now();
    while connect(&node, "user-7", String::new()).await != 0 {
        for n in [0, 600, 1199] {
            assert_eq!(connect(&node, &format!("user-{n}"), String::new()).await, 3507, "{n}: {:?}", began.elapsed());
        }
        let seconds = began.elapsed().as_secs();
        ledger.set_away((2..10).contains(&seconds));
        assert!(seconds < 60, "what was erased is not forgotten");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(10), "it was away for some time: {:?}", began.elapsed());
    assert_eq!(carl.close().await, Disconnect::PERMISSION_DENIED);
    assert_eq!(connect(&node, "user-1199", String::new()).await, 3507);
}

/// What was found before a long interruption may have been erased during it, which does not show any more.
#[tokio::test(start_paused = true)]
async fn a_reading_of_everything_that_was_interrupted_for_long_begins_anew() {
    let ledger = FarLedger::new();
    for n in 0..1200 {
        ledger.block(&format!("user-{n}")).await;
    }
    ledger.page_ms.store(1000, Ordering::Relaxed);
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    sleep(Duration::from_millis(1500)).await;
    ledger.set_away(true);
    ledger.inner().put(&block_key("user-7"), None, None, None).await.unwrap();
    sleep(Duration::from_secs(4000)).await;
    ledger.set_away(false);
    let began = Instant::now();
    let mut code = 100;
    while code == 100 {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody is admitted");
        code = connect(&node, "user-7", String::new()).await;
    }
    assert_eq!(code, 0);
    assert_eq!(connect(&node, "user-8", String::new()).await, 3507);
}

/// While clients come back everywhere each page of the ledger is followed by another one.
#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_while_others_write_admits_and_refuses() {
    // Pages come faster than what fills them, and more slowly.
    for (takes, fences) in [(50, 3), (50, 600), (300, 600)] {
        let ledger = FarLedger::new();
        ledger.page_ms.store(takes, Ordering::Relaxed);
        ledger.fences.store(fences, Ordering::Relaxed);
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

/// What is blocked while a replica that starts reads is known to it before it admits anybody.
#[tokio::test(start_paused = true)]
async fn who_is_blocked_while_everything_is_read_is_not_admitted() {
    let ledger = FarLedger::new();
    ledger.page_ms.store(1000, Ordering::Relaxed);
    ledger.resumes(2000).await;
    let mut cluster = Cluster::on(ledger.clone());
    let (node, began) = (cluster.replica(settings()), Instant::now());
    sleep(Duration::from_secs(2)).await;
    ledger.resumes(3000).await;
    ledger.block("anna").await;
    let mut code = 100;
    while code == 100 {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody is admitted");
        code = connect(&node, "anna", String::new()).await;
    }
    assert_eq!(code, 3507);
}

/// Many come back at once: a block that was written behind their fences does not wait for half a second at each page.
#[tokio::test(start_paused = true)]
async fn a_block_behind_many_fences_is_carried_out_soon() {
    let ledger = FarLedger::new();
    ledger.page_ms.store(50, Ordering::Relaxed);
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (mut anna, _) = Client::connect_as(&node, "anna").await;
    ledger.resumes(20_000).await;
    ledger.block("anna").await;
    let began = Instant::now();
    assert_eq!(anna.close().await, Disconnect::PERMISSION_DENIED);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// A ledger that was lost, or restored from a backup, knows fewer blocks than its replicas: these hold, and later ones too.
#[tokio::test(start_paused = true)]
async fn a_ledger_that_went_back_takes_no_block_back() {
    // Noticed by a replica that follows, and by one that reads everything again.
    for away in [0, 700] {
        let ledger = FarLedger::new();
        for user in ["anna", "bert", "carl"] {
            ledger.block(user).await;
        }
        let mut cluster = Cluster::on(ledger.clone());
        let node = cluster.replica(settings());
        assert_eq!(connect(&node, "anna", String::new()).await, 3507);
        ledger.set_away(away > 0);
        sleep(Duration::from_secs(away)).await;
        ledger.begin_anew();
        ledger.block("bert").await;
        ledger.set_away(false);
        let began = Instant::now();
        sleep(Duration::from_secs(5)).await;
        ledger.block("dora").await;
        while connect(&node, "dora", String::new()).await != 3507 {
            assert!(began.elapsed() < Duration::from_secs(60), "{away}: it is not followed");
            sleep(Duration::from_millis(100)).await;
        }
        for user in ["anna", "bert", "carl"] {
            assert_eq!(connect(&node, user, String::new()).await, 3507, "{user}, {away}");
        }
    }
}
