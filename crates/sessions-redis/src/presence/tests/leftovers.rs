//! What is left of replicas that are gone, and of calls that were late.

use super::*;
use crate::testing::{RedisCluster, RedisServer};

const SOON: PresenceConfig =
    PresenceConfig { life: Duration::from_secs(3600), sweep_after: Duration::from_millis(1500) };

async fn keys(servers: &[RedisServer], wanted: &str) -> Vec<String> {
    let mut found = Vec::new();
    for server in servers {
        let keys = server.ask(&["KEYS", "*"]).await.unwrap();
        found.extend(keys.list().iter().map(|key| key.text().to_owned()).filter(|key| key.contains(wanted)));
    }
    found
}

/// Entries of a replica that died are gone from Redis soon after, read or not, where somebody else is in the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_replica_left_is_swept() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    let mut rig = Rig::new(cluster.patient(), SOON, 3).ready().await;
    for n in 0..1500 {
        rig.replicas[2].join("large", info(&n.to_string(), &n.to_string())).await.unwrap();
    }
    rig.replicas[0].join("large", info("0", "0")).await.unwrap();
    rig.replicas[1].join("unread", info("1", "ann")).await.unwrap();
    rig.replicas[2].join("unread", info("2", "ann")).await.unwrap();
    assert_eq!(rig.replicas[1].stats("large").await, counts(1500, 1500));
    let gone = incarnation(rig.sides[2].census().own);
    let before = keys(&cluster.servers[..3], &format!(":m:{gone}")).await.len();
    assert_eq!(before, 2);
    // Killed: neither heartbeats nor anything else.
    drop((rig.sides.pop(), rig.replicas.pop()));
    let (stalls, start) = (Stalls::watch(), Instant::now());
    // Each replica judges by itself.
    for replica in &rig.replicas {
        until("it does not count", async || replica.stats("large").await == counts(1, 1)).await;
    }
    let (took, stood) = (start.elapsed(), stalls.since(start));
    // A reader that itself stood still for 2 s listens for 4 s again before it judges.
    let again = if stalls.longest_since(start) < Duration::from_millis(1500) { 0 } else { 6 };
    assert!(took < Duration::from_secs(5 + again) + stood, "{took:?}, of which it stood still for {stood:?}");
    until("all is swept", async || {
        assert_eq!(rig.replicas[0].stats("large").await, counts(1, 1));
        keys(&cluster.servers[..3], &format!(":{gone}")).await.iter().all(|key| !key.contains(":p:"))
    })
    .await;
    assert_eq!(rig.replicas[0].stats("unread").await, counts(1, 1));
    rig.replicas[0].leave("large", "0").await.unwrap();
    rig.replicas[1].leave("unread", "1").await.unwrap();
    let left = keys(&cluster.servers[..3], ":p:").await;
    assert!(left.is_empty(), "{left:?}");
}

/// A replica that was cut off from one reader only comes to know that it was swept, and loses nobody for longer than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_swept_while_it_lived_is_told() {
    let server = RedisServer::start().await.unwrap();
    let rig = Rig::new(server.patient(), SOON, 2).ready().await;
    let replica = &rig.replicas[0];
    replica.join("c", info("1", "ann")).await.unwrap();
    assert_eq!(replica.renew().await, Ok(Lease::Held));
    let own = rig.sides[0].census().own;
    let fence = fence(replica.inner.redis.keys(), own);
    server.ask(&["SET", fence.as_str(), "1", "PX", "60000"]).await.unwrap();
    assert_eq!(replica.renew().await, Ok(Lease::Lapsed));
    assert_eq!(rig.sides[0].census().own.generation, own.generation + 1);
    assert_eq!(replica.renew().await, Ok(Lease::Held));
    replica.join("c", info("1", "ann")).await.unwrap();
    until("it counts for others", async || rig.replicas[1].stats("c").await == counts(1, 1)).await;
    until("the old entries are swept", async || keys(std::slice::from_ref(&server), ":m:").await.len() == 1).await;
    assert_eq!(clients(&rig.replicas[1], "c").await.unwrap(), ["1"]);
}

/// A replica that was paused is another one before its next join: that one counts, and nothing from before does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_replica_joins_as_another_generation() {
    let server = RedisServer::start().await.unwrap();
    let rig = Rig::new(server.patient(), SOON, 2).ready().await;
    for n in 0..20 {
        rig.replicas[0].join(&n.to_string(), info("old", "ann")).await.unwrap();
    }
    rig.sides[0].cut(true);
    sleep(Duration::from_millis(5200)).await;
    until("it does not count", async || rig.replicas[1].stats("1").await == counts(0, 0)).await;
    rig.sides[0].cut(false);
    rig.replicas[0].join("1", info("new", "bob")).await.unwrap();
    assert_eq!(clients(&rig.replicas[0], "1").await.unwrap(), ["new"]);
    assert_eq!(rig.replicas[0].renew().await, Ok(Lease::Lapsed));
    until("it counts for others", async || clients(&rig.replicas[1], "1").await.unwrap() == ["new"]).await;
    until("what was before is swept", async || keys(std::slice::from_ref(&server), ":m:").await.len() == 1).await;
    assert_eq!(rig.replicas[1].stats("1").await, counts(1, 1));
}

/// Calls that come late change nothing that is newer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_calls_change_nothing_newer() {
    let server = RedisServer::start().await.unwrap();
    let rig = Rig::new(server.patient(), PresenceConfig::default(), 1).ready().await;
    let inner = &rig.replicas[0].inner;
    let (base, own, life) = (inner.base("c"), inner.own(), inner.config.life);
    let number = async |call| inner.client.call(call).await.unwrap().as_i64().unwrap();
    let shown = async || {
        let members = rig.replicas[0].members("c").await.unwrap();
        members.iter().map(|member| member.user.clone()).collect::<Vec<_>>()
    };
    assert_eq!(number(calls::join(&base, own, 10, &info("1", "ann"), life)).await, 1);
    assert_eq!(number(calls::join(&base, own, 9, &info("1", "old"), life)).await, 0);
    assert_eq!(number(calls::leave(&base, own, "1", 9)).await, 0);
    assert_eq!((shown().await, rig.replicas[0].stats("c").await), (vec!["ann".into()], counts(1, 1)));
    // The same call once more, as after an answer that was lost.
    assert_eq!(number(calls::join(&base, own, 10, &info("1", "ann"), life)).await, 1);
    assert_eq!(rig.replicas[0].stats("c").await, counts(1, 1));
    let other = Incarnation { replica: 1, generation: 1 };
    assert_eq!(number(calls::leave(&base, other, "1", 99)).await, 0, "another's entry");
    assert_eq!(number(calls::leave(&base, own, "1", 10)).await, 1);
    assert_eq!(number(calls::leave(&base, own, "1", 10)).await, 0);
    assert_eq!(rig.replicas[0].stats("c").await, counts(0, 0));
    assert!(keys(std::slice::from_ref(&server), ":p:").await.is_empty());
}

/// Keys live as long as their owner touches them; one that is missing nevertheless is written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_touched_while_somebody_owns_them() {
    let server = RedisServer::start().await.unwrap();
    let config = PresenceConfig { life: Duration::from_secs(12), ..PresenceConfig::default() };
    let mut rig = Rig::new(server.patient(), config, 2).ready().await;
    for replica in &rig.replicas {
        replica.join("c", info("1", "ann")).await.unwrap();
        replica.join("c", info("2", "bob")).await.unwrap();
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        assert_eq!(rig.replicas[1].stats("c").await, counts(2, 2), "{:?}", start.elapsed());
        sleep(Duration::from_millis(200)).await;
    }
    for key in keys(std::slice::from_ref(&server), ":p:").await {
        server.ask(&["DEL", &key]).await.unwrap();
    }
    until("both are written again", async || rig.replicas[1].stats("c").await == counts(2, 2)).await;
    until("by both", async || keys(std::slice::from_ref(&server), ":m:").await.len() == 2).await;
    drop((rig.replicas.drain(..), rig.sides.drain(..)));
    until("nothing is left", async || keys(std::slice::from_ref(&server), ":p:").await.is_empty()).await;
}
