use std::time::Instant;

use plenum_channels::conformance::{Fixture, Stalls, results_suite};

use super::*;
use crate::client::{RedisConfig, RedisMetrics};
use crate::testing::{RedisCluster, RedisServer};

fn open(config: RedisConfig) -> Arc<Redis> {
    Redis::open(config, RedisMetrics::new().unwrap()).unwrap()
}

/// Remembers until it is recalled: before the layout is known nothing is.
async fn remember(results: &RedisResults, channel: &str, key: &IdempotencyKey, position: &Position) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while results.recall(channel, key).await.as_ref() != Some(position) {
        assert!(Instant::now() < deadline, "{channel}: nothing is remembered");
        results.remember(channel, key, position.clone(), RESULT_TTL);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Until there are connections to all primaries, as in a process that runs.
async fn warm(results: &RedisResults) {
    let (key, position) =
        (IdempotencyKey { scope: "warm".into(), key: "k".into() }, Position { offset: 1, epoch: Epoch::from("e") });
    for n in 0..30 {
        remember(results, &format!("warm{n}"), &key, &position).await;
    }
}

#[tokio::test]
async fn results_conform_on_a_cluster_and_on_one_server() {
    let (cluster, server) =
        (Arc::new(RedisCluster::start_steady().await.unwrap()), RedisServer::start().await.unwrap());
    for config in [cluster.patient(), server.patient()] {
        let n = std::sync::atomic::AtomicU32::new(0);
        results_suite(async |replicas| {
            let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let redis = open(RedisConfig { prefix: format!("p{n}"), ..config.clone() });
            let all: Vec<_> = (0..replicas).map(|_| RedisResults::new(&redis)).collect();
            for one in &all {
                warm(one).await;
            }
            let all = all.into_iter().map(|one| one as Arc<dyn Results>).collect();
            Fixture { guard: Box::new(redis), ..Fixture::with_tokio_time(all) }
        })
        .await;
    }
    for server in &cluster.servers {
        assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    }
}

/// "None also when the store cannot be asked within its deadline": publishing waits no longer than that.
#[tokio::test]
async fn a_frozen_server_holds_nobody_up() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.config());
    let results = RedisResults::new(&redis);
    let key = IdempotencyKey { scope: "api".into(), key: "k".into() };
    let position = Position { offset: 7, epoch: Epoch::from("e") };
    remember(&results, "c", &key, &position).await;
    let stalls = Stalls::watch();
    server.pause().unwrap();
    let started = Instant::now();
    assert_eq!(results.recall("c", &key).await, None);
    assert!(started.elapsed() >= RECALL_DEADLINE, "it was asked: {:?}", started.elapsed());
    let (started, skipped) = (Instant::now(), redis.metrics().recalls_skipped.get());
    for _ in 0..100 {
        assert_eq!(results.recall("c", &key).await, None);
    }
    let (took, stood) = (started.elapsed(), stalls.since(started));
    assert!(took < 5 * RECALL_DEADLINE + stood, "it is not asked any more: {took:?}, standing still {stood:?}");
    assert_eq!(redis.metrics().recalls_skipped.get() - skipped, 100);
    let started = Instant::now();
    for n in 0..2 * MAX_WAITING as u64 {
        results.remember(&n.to_string(), &key, position.clone(), RESULT_TTL);
    }
    let (took, stood) = (started.elapsed(), stalls.since(started));
    assert!(took < Duration::from_secs(5) + stood, "{took:?}, of which it stood still for {stood:?}");
    assert!(redis.metrics().memories_dropped.get() > 0);
    server.resume().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while results.recall("c", &key).await != Some(position.clone()) {
        assert!(Instant::now() < deadline, "it is asked again once it answers");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
