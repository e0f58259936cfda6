#![allow(clippy::unwrap_used, reason = "tests")]

use plenum_channels::conformance::{Isolating, replicas_suite};

use super::*;
use crate::log::PoolLinks;
use crate::pool::{Pool, PoolConfig};
use crate::testing::{NatsServer, Proxy};

async fn replica(url: String, prefix: &str) -> Arc<NatsReplicas> {
    let pool = Pool::connect(PoolConfig::new(vec![url])).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    NatsReplicas::start(PoolLinks::new(pool), prefix)
}

fn prefix() -> String {
    format!("t{:08x}", rand::random::<u32>())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Replicas behind links of their own that drop every packet while they are cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_over_links_that_stall() {
    let server = NatsServer::start().await.unwrap();
    replicas_suite(async |count| {
        let prefix = prefix();
        let (mut replicas, mut proxies): (Vec<Arc<dyn Replicas>>, _) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let proxy = Proxy::start(server.address()).await.unwrap();
            replicas.push(replica(format!("nats://{}", proxy.address()), &prefix).await);
            proxies.push(proxy);
        }
        Isolating::with_tokio_time(
            replicas,
            move |index, cut| {
                if cut { proxies[index].stall() } else { proxies[index].restore() }
            },
        )
    })
    .await;
}

/// Connections that are closed lose what was sent meanwhile; nobody takes another for gone because of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_no_death() {
    let server = NatsServer::start().await.unwrap();
    let (proxy, prefix) = (Proxy::start(server.address()).await.unwrap(), prefix());
    let one = replica(format!("nats://{}", proxy.address()), &prefix).await;
    let other = replica(server.url(), &prefix).await;
    until("both judge", || [&one, &other].iter().all(|it| it.census().judging && it.census().alive.len() == 2)).await;
    let before = other.census().own;
    proxy.cut();
    sleep(Duration::from_secs(6)).await;
    assert!(one.census().counts(before));
    let gone = || !other.census().alive.contains_key(&one.census().own.replica);
    until("each notices", || !one.census().judging && gone()).await;
    proxy.restore();
    until("it judges again", || {
        assert!(one.census().counts(before), "{:?}", one.census());
        one.census().judging
    })
    .await;
    until("it is back", || other.census().counts(one.census().own)).await;
    assert_eq!((one.census().own.generation, other.census().own), (2, before));
}

/// A replica whose whole runtime stood still is another generation in the first thing that it does afterwards.
#[test]
fn a_pause_is_noticed_before_anything_is_done() {
    let others = tokio::runtime::Runtime::new().unwrap();
    let paused = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = others.block_on(NatsServer::start()).unwrap();
    let prefix = prefix();
    let other = others.block_on(replica(server.url(), &prefix));
    let one = paused.block_on(replica(server.url(), &prefix));
    let before = one.census().own;
    paused.block_on(until("both judge", || {
        [&one, &other].iter().all(|it| it.census().judging && it.census().counts(before))
    }));
    std::thread::sleep(Duration::from_millis(5200));
    others.block_on(until("nobody counts it", || !other.census().counts(before)));
    let after = one.census().own;
    assert_eq!(after, Incarnation { generation: 2, ..before });
    paused.block_on(until("it is back", || other.census().counts(after) && one.census().judging));
    assert_eq!(one.census().own, after);
}

/// A newcomer knows everybody long before the next regular heartbeat; one without NATS says so. On a busy machine the
/// answers of some may come late, so one of a few newcomers has to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_is_introduced() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let mut there = Vec::new();
    for _ in 0..3 {
        there.push(replica(server.url(), &prefix).await);
    }
    let mut knows_all = false;
    for _ in 0..5 {
        let newcomer = replica(server.url(), &prefix).await;
        assert!(newcomer.introduced(Duration::from_secs(10)).await);
        let census = newcomer.census();
        there.push(newcomer);
        knows_all = !census.judging && census.alive.len() == there.len();
        if knows_all {
            break;
        }
    }
    assert!(knows_all);

    let proxy = Proxy::start(server.address()).await.unwrap();
    let pool = Pool::connect(PoolConfig::new(vec![format!("nats://{}", proxy.address())])).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    proxy.stall();
    let alone = NatsReplicas::start(PoolLinks::new(pool), &prefix);
    assert!(!alone.introduced(Duration::from_millis(700)).await);
    assert!(alone.census().counts(alone.census().own) && !alone.census().judging);
}

#[test]
fn heartbeats_are_read_back_and_anything_else_is_not_one() {
    let beat = Beat { from: Incarnation { replica: u64::MAX - 1, generation: 7 }, counter: 1 << 40, resigned: true };
    let mut bytes = encode(beat);
    assert_eq!((bytes.len(), decode(&bytes)), (BEAT_BYTES, Some(beat)));
    assert_eq!(decode(&bytes[..20]), None);
    bytes.push(9);
    assert_eq!(decode(&bytes), Some(beat));
}
