use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::{ClusterOptions, NatsCluster, NatsServer, ServerOptions};

const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes on one client until a message comes out of the other's subscription.
async fn flows(from: &async_nats::Client, to: &async_nats::Client, within: Duration) -> bool {
    let mut subscription = to.subscribe("probe").await.unwrap();
    to.flush().await.unwrap();
    let started = Instant::now();
    while started.elapsed() < within {
        from.publish("probe", "x".into()).await.unwrap();
        if tokio::time::timeout(Duration::from_millis(50), subscription.next()).await.is_ok() {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn proxied_routes_are_the_only_ones() {
    let server = ServerOptions { jetstream: false, ..ServerOptions::default() };
    let options = ClusterOptions { proxied_routes: true, server, ..ClusterOptions::default() };
    let cluster = NatsCluster::start_with(options).await.unwrap();
    let connect = |member: usize| {
        async_nats::ConnectOptions::new().ignore_discovered_servers().connect(cluster.servers[member].url())
    };
    let (first, last) = (connect(0).await.unwrap(), connect(2).await.unwrap());
    assert!(flows(&first, &last, PATIENCE).await);
    for proxy in cluster.routes_of(2) {
        proxy.cut();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!flows(&first, &last, Duration::from_secs(3)).await, "no route leads around the proxies");
    assert!(flows(&first, &connect(1).await.unwrap(), PATIENCE).await, "the others still have theirs");
    for proxy in cluster.routes_of(2) {
        proxy.restore();
    }
    assert!(flows(&first, &last, PATIENCE).await);
    cluster.route(0, 2).unwrap().set_delay(Duration::from_millis(300));
    let mut subscription = last.subscribe("late").await.unwrap();
    last.flush().await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let sent = Instant::now();
    first.publish("late", "x".into()).await.unwrap();
    subscription.next().await.unwrap();
    assert!(sent.elapsed() >= Duration::from_millis(300), "{:?}", sent.elapsed());
}

#[tokio::test]
async fn a_member_that_is_killed_or_wiped_comes_back() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let client = async_nats::connect(cluster.urls()).await.unwrap();
    let context = async_nats::jetstream::new(client.clone());
    let config = async_nats::jetstream::stream::Config { name: "T".into(), num_replicas: 3, ..Default::default() };
    NatsCluster::make_stream(&client, config, "T").await.unwrap();
    context.publish("T", "one".into()).await.unwrap().await.unwrap();
    let leader = cluster.leader_of(&client, "T").await.unwrap();
    cluster.kill(leader).unwrap();
    cluster.servers[leader].wipe_store().unwrap();
    let started = Instant::now();
    let next = loop {
        assert!(started.elapsed() < PATIENCE, "another leader is elected");
        match cluster.stream_leader(&client, "T").await {
            Some(next) if next != leader => break next,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    cluster.restart(leader).await.unwrap();
    cluster.servers[next].stop().await.unwrap();
    cluster.servers[next].restart().await.unwrap();
    cluster.ready(PATIENCE).await.unwrap();
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "the stream has its message");
        if let Ok(stream) = context.get_stream("T").await
            && stream.get_raw_message(1).await.is_ok_and(|message| &message.payload[..] == b"one")
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_ends_with_its_test() {
    let server = NatsServer::start().await.unwrap();
    let (pid, store) = (server.pid().unwrap(), server.store());
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists() && store.exists());
    assert!(server.wipe_store().is_err(), "not while it runs");
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!store.exists());
}
