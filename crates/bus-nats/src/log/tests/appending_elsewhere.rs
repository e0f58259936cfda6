//! Connections to a server that is cut off from its peers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plenum_channels::{AppendError, Log};

use super::servers::{Witness, config, prefix, publish, replica, request, started, until};
use crate::log::faults::Faults;
use crate::pool::{Pool, PoolConfig, Role};
use crate::testing::NatsCluster;

const PATIENCE: Duration = Duration::from_secs(40);

/// Connections leave a server without ticks after 12 s.
const LEAVES: Duration = Duration::from_secs(15);

/// The server keeps its clients and says at once that nobody is there: the lane leaves it and the append succeeds elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_cut_off_is_left() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    // Others write the ticks.
    let others = replica(cluster.urls(), config(&prefix, 3)).await;
    let faults = Arc::new(Faults::default());
    let pool_config =
        PoolConfig { publishing: 1, min_publishing: 1, max_publishing: 1, ..PoolConfig::new(cluster.urls()) };
    let pool = Pool::connect(pool_config).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    let mut config = config(&prefix, 3);
    config.faults = faults.clone();
    let log = started(pool.clone(), config).await;
    let server = || {
        let found = pool.stats().connections.into_iter().find(|one| one.role == Role::Publishing).unwrap().server;
        cluster.servers.iter().position(|one| one.url().ends_with(&found)).unwrap()
    };
    let cut_off = server();
    // A channel whose stream is led by another server, if there is one: there nobody answers at once.
    let client = async_nats::connect(cluster.urls()).await.unwrap();
    let mut channel = String::new();
    for number in 0..32 {
        channel = format!("channel {number}");
        let leader = cluster.stream_leader(&client, &log.shard(&channel).current().stream).await;
        if leader.is_some_and(|leader| leader != cut_off) {
            break;
        }
    }
    publish(&log, &channel, "before").await;
    for proxy in cluster.routes_of(cut_off) {
        proxy.cut();
    }
    faults.stay.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        match log.append(request(&channel, "without the rule")).await {
            Err(error) => break error,
            // The cut takes a moment.
            Ok(_) => assert!(Instant::now() < deadline, "the cut has no effect"),
        }
    };
    assert!(matches!(refused, AppendError::Unavailable { .. } | AppendError::Indeterminate), "{refused:?}");
    assert_eq!(server(), cut_off);
    faults.stay.store(false, Ordering::SeqCst);
    let start = Instant::now();
    while let Err(error) = log.append(request(&channel, "after")).await {
        // An election may take longer than one append waits.
        assert!(start.elapsed() < Duration::from_secs(60), "{error}");
    }
    eprintln!("without the rule {refused:?}; with it appended elsewhere after {:?}", start.elapsed());
    assert_ne!(server(), cut_off);
    drop(others);
}

/// Nothing is appended there, so only the missing ticks tell: the connections leave the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_ticks_is_left() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    let others = replica(cluster.urls(), config(&prefix, 3)).await;
    for stays in [true, false] {
        let faults = Arc::new(Faults::default());
        faults.stay.store(stays, Ordering::SeqCst);
        let pool = Pool::connect(PoolConfig::new(cluster.urls())).await.unwrap();
        pool.wait_ready(PATIENCE).await.unwrap();
        let mut config = config(&prefix, 3);
        config.faults = faults.clone();
        let log = started(pool.clone(), config).await;
        let subscribing = || {
            let found = pool.stats().connections.into_iter().find(|one| one.role == Role::Subscribing).unwrap().server;
            cluster.servers.iter().position(|one| one.url().ends_with(&found)).unwrap()
        };
        let cut_off = subscribing();
        for proxy in cluster.routes_of(cut_off) {
            proxy.cut();
        }
        let left = until(if stays { LEAVES } else { PATIENCE }, || subscribing() != cut_off).await;
        assert_eq!(left, !stays);
        for proxy in cluster.routes_of(cut_off) {
            proxy.restore();
        }
        Witness::on(&log, "channel").await;
    }
    drop(others);
}
