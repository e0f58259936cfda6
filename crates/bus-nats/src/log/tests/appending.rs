//! Appends whose answers are lost, or that find nobody.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use plenum_channels::{Append, AppendError, IdempotencyKey, Log, Since};

use super::servers::{config, faulty, history, prefix, publish, request};
use crate::testing::{NatsCluster, NatsServer};

async fn texts(log: &crate::log::NatsLog) -> Vec<String> {
    let page = history(log, "channel", Since::End).await;
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.publication.data).into_owned()).collect()
}

/// Stored, but the acknowledgement was not heard: the retry under the same id tells the first result. R1 refuses it for
/// its condition, R3 knows the id.
async fn unheard_acknowledgements(urls: Vec<String>, copies: u32) {
    let (log, faults) = faulty(urls, config(&prefix(), copies)).await;
    let first = publish(&log, "channel", "1").await;
    faults.deafen.store(1, Ordering::SeqCst);
    let plain = log.append(request("channel", "2")).await.unwrap();
    assert!(!plain.duplicate && plain.position.offset > first);
    faults.deafen.store(1, Ordering::SeqCst);
    let conditional = Append { expected: Some(plain.position.offset), ..request("channel", "3") };
    let conditional = log.append(conditional).await.unwrap();
    assert!(!conditional.duplicate);
    faults.deafen.store(1, Ordering::SeqCst);
    let key = IdempotencyKey { scope: "s".into(), key: "k".into() };
    let keyed = || Append { idempotency: Some(key.clone()), ..request("channel", "4") };
    let appended = log.append(keyed()).await.unwrap();
    assert!(!appended.duplicate, "our own first attempt is no duplicate of somebody");
    let again = log.append(keyed()).await.unwrap();
    assert!(again.duplicate && again.position == appended.position);
    // A condition that somebody else made false stays a conflict, heard or not.
    let stale = Append { expected: Some(first), ..request("channel", "no") };
    let refused = log.append(stale).await;
    assert_eq!(refused, Err(AppendError::Conflict { expected: first, last: appended.position.offset }));
    assert_eq!(texts(&log).await, ["1", "2", "3", "4"]);
    let stats = log.stats();
    assert_eq!((stats.acknowledged, stats.failed), (5, 1), "{stats:?}");
    assert!(stats.lanes.iter().all(|lane| (lane.waiting, lane.in_flight) == (0, 0)), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unheard_acknowledgements_on_one_server() {
    let server = NatsServer::start().await.unwrap();
    unheard_acknowledgements(vec![server.url()], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unheard_acknowledgements_on_three_servers() {
    let cluster = NatsCluster::start().await.unwrap();
    unheard_acknowledgements(cluster.urls(), 3).await;
}

/// The first finds nobody while those behind it, already sent, are stored: it must not be stored behind them. One thread, so
/// that all are called before the first has failed.
#[tokio::test]
async fn an_overtaken_append_is_not_put_behind_its_successors() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], config(&prefix(), 1)).await;
        faults.retry_overtaken.store(!rule, Ordering::SeqCst);
        publish(&log, "channel", "0").await;
        faults.misroute.store(1, Ordering::SeqCst);
        let calls: Vec<_> = (1..20).map(|n| log.append(request("channel", n.to_string()))).collect();
        let done = join_all(calls).await;
        let stored = texts(&log).await;
        let acknowledged: Vec<String> =
            done.iter().enumerate().filter(|(_, it)| it.is_ok()).map(|(n, _)| (n + 1).to_string()).collect();
        let in_order = stored[1..] == acknowledged;
        assert_eq!(in_order, rule, "rule {rule}: stored {stored:?}, acknowledged {acknowledged:?}");
        if rule {
            assert!(matches!(done[0], Err(AppendError::Unavailable { .. })), "{:?}", done[0]);
        }
    }
}

/// Alone, it is tried until it is stored, and those that are called later wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_appends_wait_for_one_that_is_retried() {
    let server = NatsServer::start().await.unwrap();
    let (log, faults) = faulty(vec![server.url()], config(&prefix(), 1)).await;
    faults.misroute.store(5, Ordering::SeqCst);
    let first = tokio::spawn(log.append(request("channel", "1")));
    // It has failed at least once.
    while faults.misroute.load(Ordering::SeqCst) > 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let rest = join_all((2..6).map(|n| log.append(request("channel", n.to_string())))).await;
    assert!(first.await.unwrap().is_ok() && rest.iter().all(Result::is_ok), "{rest:?}");
    assert_eq!(texts(&log).await, ["1", "2", "3", "4", "5"]);
}
