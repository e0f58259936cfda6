//! Quotas on real servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod nodes;

use std::sync::atomic::{AtomicU32, Ordering};

use plenum_channels::conformance::{Isolating, quotas_suite};
use plenum_channels::memory::{MemoryReplicas, ReplicaBus};
use tokio::time::sleep;

use super::*;
use crate::client::{RedisConfig, RedisMetrics};
use crate::testing::{RedisCluster, RedisServer, Reply};

const USER: Quota = Quota::UserConnections;
const HOUR: Duration = Duration::from_secs(3600);

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Replicas on one bus, under a prefix of their own, connected and introduced to each other.
async fn replicas(
    config: &RedisConfig,
    count: usize,
    life: Duration,
) -> (Vec<Arc<MemoryReplicas>>, Vec<Arc<RedisQuotas>>) {
    static PREFIXES: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("q{}", PREFIXES.fetch_add(1, Ordering::Relaxed));
    let bus = ReplicaBus::new();
    let sides: Vec<_> = (0..count).map(|_| bus.side()).collect();
    let replica = |side: &Arc<MemoryReplicas>| {
        let config = RedisConfig { prefix: prefix.clone(), ..config.clone() };
        RedisQuotas::start(Redis::open(config, RedisMetrics::new().unwrap()).unwrap(), side.clone(), life)
    };
    let replicas: Vec<_> = sides.iter().map(replica).collect();
    for replica in &replicas {
        for n in 0..32 {
            let key = format!("warm {n}");
            until("Redis answers", async || replica.enter(USER, &key, "m", 9).await.is_ok()).await;
            replica.exit(USER, &key, "m");
            until("buckets are told", async || {
                replica.take(Rate::UserConnect, &key, Bucket { tokens: 1000, period: Duration::from_secs(1) });
                true
            })
            .await;
        }
    }
    sleep(Duration::from_millis(600)).await;
    until("all know all", async || sides.iter().all(|side| side.census().alive.len() == count)).await;
    (sides, replicas)
}

async fn suite(config: RedisConfig) {
    quotas_suite(async |count| {
        let (sides, replicas) = replicas(&config, count, HOUR).await;
        let replicas = replicas.into_iter().map(|replica| replica as Arc<dyn Quotas>).collect();
        let slack = Duration::from_secs(20);
        Isolating { slack, ..Isolating::with_tokio_time(replicas, move |index, cut| sides[index].cut(cut)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_conform_on_a_cluster() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    suite(cluster.patient()).await;
    for server in &cluster.servers {
        assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_conform_on_a_single_server() {
    let server = RedisServer::start().await.unwrap();
    suite(server.patient()).await;
}

/// A Redis that is away says so for counts, and lets every token through; what left meanwhile is gone when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_the_local_part_holds() {
    let server = RedisServer::start().await.unwrap();
    let (_sides, replicas) = replicas(&server.config(), 2, HOUR).await;
    let bucket = Bucket { tokens: 5, period: HOUR };
    let [one, two] = [&replicas[0], &replicas[1]];
    until("it counts", async || one.enter(USER, "ann", "1", 1).await.is_ok()).await;
    while one.take(Rate::UserPublish, "ann", bucket) == Token::Given {}
    until("the other knows", async || two.take(Rate::UserPublish, "ann", bucket) == Token::Refused).await;
    server.pause().unwrap();
    until("it is away", async || matches!(two.enter(USER, "ann", "2", 1).await, Err(QuotaError::Unavailable { .. })))
        .await;
    one.exit(USER, "ann", "1");
    // A bucket of which Redis cannot be told refuses nobody by itself.
    until("that is said", async || (0..20).all(|_| one.take(Rate::UserConnect, "ann", bucket) == Token::Unknown)).await;
    server.resume().unwrap();
    until("there is room", async || {
        let answer = two.enter(USER, "ann", "3", 1).await;
        assert_ne!(answer, Err(QuotaError::Reached { found: 2, max: 1 }), "an attempt without an answer stays");
        answer.is_ok()
    })
    .await;
    until("the bucket is shared again", async || one.take(Rate::UserConnect, "ann", bucket) == Token::Refused).await;
    until("nothing is in doubt", async || [one, two].iter().all(|replica| replica.state().1 == 0)).await;
}

/// What Redis forgot is told again within a round, by those who hold it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_return_after_a_flush_and_a_failover() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let (_sides, replicas) = replicas(&cluster.config(), 2, HOUR).await;
    for n in 0..60 {
        until("it counts", async || replicas[n % 2].enter(USER, &n.to_string(), "1", 1).await.is_ok()).await;
    }
    let full = async || {
        let mut full = 0;
        for n in 0..60 {
            let key = n.to_string();
            match replicas[(n + 1) % 2].enter(USER, &key, "2", 1).await {
                Err(QuotaError::Reached { .. }) => full += 1,
                Err(QuotaError::Unavailable { .. }) => {}
                Ok(()) => replicas[(n + 1) % 2].exit(USER, &key, "2"),
            }
        }
        full == 60
    };
    until("all are counted", full).await;
    cluster.flush().await.unwrap();
    until("all are counted again", full).await;
    cluster.servers[0].kill().unwrap();
    until("all are counted", full).await;
}

/// The same before Redis was looked at for the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_return_after_a_flush_that_came_before_the_first_look() {
    let server = RedisServer::start().await.unwrap();
    // No look comes to an end without this command, which nothing else uses.
    server.ask(&["ACL", "SETUSER", "default", "-getex"]).await.unwrap();
    let (_sides, replicas) = replicas(&server.patient(), 2, HOUR).await;
    replicas[0].enter(USER, "ann", "1", 1).await.unwrap();
    server.ask(&["FLUSHALL"]).await.unwrap();
    server.ask(&["ACL", "SETUSER", "default", "+getex"]).await.unwrap();
    until("it counts again", async || {
        let full = replicas[1].enter(USER, "ann", "2", 1).await.is_err();
        replicas[1].exit(USER, "ann", "2");
        full
    })
    .await;
}

/// Keys live as long as somebody is counted, and no longer than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_renewed_while_they_are_held() {
    let server = RedisServer::start().await.unwrap();
    let (sides, replicas) = replicas(&server.patient(), 2, Duration::from_secs(12)).await;
    replicas[0].enter(USER, "ann", "1", 1).await.unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        assert!(replicas[1].enter(USER, "ann", "2", 1).await.is_err(), "{:?}", start.elapsed());
        sleep(Duration::from_millis(300)).await;
    }
    drop((sides, replicas));
    until("nothing is left", async || {
        let keys = server.ask(&["KEYS", "*:q:*"]).await.unwrap();
        keys.list().is_empty()
    })
    .await;
}

/// A quota with many members is written in pieces: the first, which replaces what is there, is there before the next is sent,
/// also where it has to be sent twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_a_large_quota_are_written_in_their_order() {
    let server = RedisServer::start().await.unwrap();
    let (_sides, replicas) = replicas(&server.patient(), 1, HOUR).await;
    let inner = &replicas[0].inner;
    let place: Place = (Quota::ChannelSubscribers, "hall".into());
    let base = inner.base(&place);
    for setting in [["slowlog-log-slower-than", "0"], ["slowlog-max-len", "100000"]] {
        server.ask(&["CONFIG", "SET", setting[0], setting[1]]).await.unwrap();
    }
    server.ask(&["SCRIPT", "FLUSH"]).await.unwrap();
    {
        let mut held = inner.held.lock();
        (0..9_000).for_each(|n| held.enter(&place, &n.to_string(), base.slot()));
        held.doubt(place.clone());
    }
    let mine = format!("{}:m:{}", base.as_str(), incarnation(inner.own()));
    until("all are counted", async || server.ask(&["SCARD", &mine]).await.unwrap().number() == 9_000).await;
    let log = server.ask(&["SLOWLOG", "GET", "-1"]).await.unwrap();
    let sent = log.list().iter().rev().map(|entry| entry.list()[3].list().iter().map(Reply::text).collect::<Vec<_>>());
    let holds = sent.filter(|words| words.len() > 6 && words[3] == base.as_str());
    let holds: Vec<_> = holds.map(|words| (words[0].to_owned(), words[6].to_owned())).collect();
    let expected = [("EVALSHA", "1"), ("EVAL", "1"), ("EVALSHA", "0"), ("EVALSHA", "0")];
    assert_eq!(holds, expected.map(|(name, replaces)| (name.to_owned(), replaces.to_owned())));
}

/// However many keys come along, memory is bounded, and nobody is refused for it.
#[tokio::test]
async fn buckets_are_bounded() {
    let rates = Rates::default();
    let bucket = Bucket { tokens: 1, period: HOUR };
    for n in 0..100_000 {
        assert_eq!(rates.take(Rate::AddressConnect, &n.to_string(), bucket), Token::Given);
    }
    assert!(rates.len() <= 65_536, "{}", rates.len());
}
