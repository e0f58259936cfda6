use std::time::Instant;

use plenum_channels::conformance::{Fixture, Stalls, tails_suite};

use super::*;
use crate::client::{RedisConfig, RedisMetrics};
use crate::testing::{RedisCluster, RedisServer};

fn open(config: RedisConfig) -> Arc<Redis> {
    Redis::open(config, RedisMetrics::new().unwrap()).unwrap()
}

/// Until there are connections to all primaries, as in a process that runs.
async fn warm(tails: &RedisTails) {
    let tail = RememberedTail { position: Position { offset: 1, epoch: Epoch::from("e") }, through: 1 };
    let batch: Vec<_> = (0..30).map(|n| (format!("warm{n}"), tail.clone())).collect();
    for (channel, tail) in &batch {
        while tails.recall(channel).await.as_ref() != Some(tail) {
            tails.remember(&batch, Duration::from_secs(600)).await;
        }
    }
}

#[tokio::test]
async fn tails_conform_on_a_cluster_and_on_one_server() {
    let (cluster, server) =
        (Arc::new(RedisCluster::start_steady().await.unwrap()), RedisServer::start().await.unwrap());
    for config in [cluster.patient(), server.patient()] {
        let n = std::sync::atomic::AtomicU32::new(0);
        tails_suite(async |replicas| {
            let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let redis = open(RedisConfig { prefix: format!("p{n}"), ..config.clone() });
            let all: Vec<_> = (0..replicas).map(|_| RedisTails::new(&redis)).collect();
            for one in &all {
                warm(one).await;
            }
            let all = all.into_iter().map(|one| one as Arc<dyn Tails>).collect();
            Fixture { guard: Box::new(redis), ..Fixture::with_tokio_time(all) }
        })
        .await;
    }
    for server in &cluster.servers {
        assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    }
}

/// Many writers with tails of one channel in any order: the newest stays.
#[tokio::test]
async fn writers_of_one_tail_leave_the_newest() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let tails: Vec<_> = (0..4).map(|_| RedisTails::new(&redis)).collect();
    let position = |offset| Position { offset, epoch: Epoch::from("e") };
    let ttl = Duration::from_secs(600);
    while tails[0].recall("ready").await.is_none() {
        let ready = RememberedTail { position: position(1), through: 1 };
        tails[0].remember(&[("ready".into(), ready)], ttl).await;
    }
    let dropped = redis.metrics().memories_dropped.get();
    let write = |n: u64| {
        let tails = tails[n as usize % 4].clone();
        async move {
            let offset = (n * 7919) % 200;
            let tail = RememberedTail { position: position(offset), through: offset + 1 };
            tails.remember(&[("c".to_owned(), tail)], ttl).await;
        }
    };
    futures_util::future::join_all((0..200).map(write)).await;
    let newest = RememberedTail { position: position(199), through: 200 };
    let deadline = Instant::now() + Duration::from_secs(20);
    let recalled = loop {
        if let Some(tail) = tails[0].recall("c").await {
            break tail;
        }
        assert!(Instant::now() < deadline, "nothing is recalled");
    };
    assert_eq!((recalled, redis.metrics().memories_dropped.get()), (newest, dropped));
}

#[tokio::test]
async fn a_redis_that_is_away_costs_a_bounded_time() {
    let mut server = RedisServer::start().await.unwrap();
    server.kill().unwrap();
    let redis = open(server.config());
    let tails = RedisTails::new(&redis);
    let tail = RememberedTail { position: Position { offset: 1, epoch: Epoch::from("e") }, through: 1 };
    let batch: Vec<_> = (0..1000).map(|n| (n.to_string(), tail.clone())).collect();
    let (stalls, started) = (Stalls::watch(), Instant::now());
    tails.remember(&batch, Duration::from_secs(600)).await;
    let (took, stood) = (started.elapsed(), stalls.since(started));
    assert!(took < Duration::from_millis(1100) + stood, "{took:?}, of which it stood still for {stood:?}");
    assert_eq!(tails.recall("1").await, None);
    assert_eq!(redis.metrics().memories_dropped.get(), 1000);
}
