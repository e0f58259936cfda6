use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::{Credentials, EventKind, Pool, PoolConfig, PoolError, PoolEvent, Role, subscription_id};
use crate::publish::{Outgoing, Publisher, PublisherConfig};
use crate::testing::{ClusterOptions, NatsCluster, NatsServer, ServerOptions};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn core() -> ServerOptions {
    ServerOptions { jetstream: false, ..ServerOptions::default() }
}

pub(super) async fn open(config: PoolConfig) -> Arc<Pool> {
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    pool
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn next(
    events: &mut tokio::sync::broadcast::Receiver<PoolEvent>,
    wanted: impl Fn(&PoolEvent) -> bool,
) -> PoolEvent {
    let wait = async {
        loop {
            let event = events.recv().await.unwrap();
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the event comes")
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let none = Pool::connect(PoolConfig::new(Vec::<String>::new())).await;
    assert!(matches!(none, Err(PoolError::NoServers)));
    let address = Pool::connect(PoolConfig::new(["nats://[broken"])).await;
    assert!(matches!(address, Err(PoolError::Address { .. })));
    let zero = Pool::connect(PoolConfig { subscribing: 0, ..PoolConfig::new(["localhost"]) }).await;
    assert!(matches!(zero, Err(PoolError::Setting { setting: "subscribing", .. })));
    let file = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    for credentials in [Credentials::NKeyFile(file.clone()), Credentials::CredsFile(file.clone())] {
        let seed = PoolConfig { credentials, ..PoolConfig::new(["localhost"]) };
        assert!(matches!(Pool::connect(seed).await, Err(PoolError::Credentials { setting: "credentials", .. })));
    }
}

#[tokio::test]
async fn connects_in_the_background_and_again_after_a_loss() {
    let mut server = NatsServer::start_with(core()).await.unwrap();
    server.kill().unwrap();
    let config = PoolConfig { backoff_max: Duration::from_secs(1), ..PoolConfig::new([server.url()]) };
    let pool = Pool::connect(config).await.unwrap();
    let mut events = pool.events();
    assert!(matches!(pool.wait_ready(Duration::from_millis(300)).await, Err(PoolError::NotReady { .. })));
    server.restart().await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let first = next(&mut events, |event| matches!(event.kind, EventKind::Connected { .. })).await;
    assert_eq!(first.kind, EventKind::Connected { server: server.address() });

    let mut subscription = pool.subscribing(7).subscribe("again").await.unwrap();
    server.kill().unwrap();
    next(&mut events, |event| event.kind == EventKind::Disconnected && event.role == Role::Subscribing).await;
    server.restart().await.unwrap();
    next(&mut events, |event| matches!(event.kind, EventKind::Reconnected { .. }) && event.role == Role::Subscribing)
        .await;
    pool.wait_ready(PATIENCE).await.unwrap();
    let message = async {
        // The subscription stands again when the connection does, after what was queued before it.
        loop {
            pool.any().publish("again", "x".into()).await.unwrap();
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(100), subscription.next()).await {
                break message;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, message).await.unwrap().is_some());
    assert!(pool.stats().connections.iter().all(|connection| connection.healthy && connection.reconnects == 1));
}

#[tokio::test]
async fn a_pinned_key_moves_only_when_nothing_of_it_is_in_flight() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let pool = open(PoolConfig { recycle_after: Duration::from_millis(500), ..PoolConfig::new([server.url()]) }).await;
    let held = pool.pinned(42);
    let id = held.connection();
    until("both connections are replaced", || {
        pool.stats()
            .connections
            .iter()
            .filter(|one| one.role == Role::Publishing && !one.retiring)
            .all(|one| one.connection > 2)
    })
    .await;
    assert_eq!(pool.pinned(42).connection(), id, "the key is in flight on the old connection");
    assert!(pool.stats().connections.iter().any(|one| one.connection == id && one.retiring && one.in_flight == 1));
    held.flush().await.unwrap();
    drop(held);
    assert_ne!(pool.pinned(42).connection(), id);
    until("the old connection is closed", || pool.stats().connections.iter().all(|one| one.connection != id)).await;
}

#[tokio::test]
async fn recycling_and_reloading_under_load_lose_no_message_and_no_order() {
    let server = NatsServer::start().await.unwrap();
    let pool = open(PoolConfig { recycle_after: Duration::from_millis(300), ..PoolConfig::new([server.url()]) }).await;
    let context = async_nats::jetstream::new(pool.subscribing(0));
    let config = async_nats::jetstream::stream::Config {
        name: "LOAD".into(),
        subjects: vec!["load.*".into()],
        ..Default::default()
    };
    let stream = context.create_stream(config).await.unwrap();
    let failures = Arc::new(AtomicBool::new(false));
    let sink = failures.clone();
    let publisher = Arc::new(Publisher::new(pool.clone(), PublisherConfig::default(), move |_| {
        sink.store(true, Ordering::Relaxed)
    }));
    let reload = {
        let (pool, old) = (pool.clone(), pool.config());
        let config = PoolConfig { connect_timeout: Duration::from_secs(4), publishing: 3, ..PoolConfig::clone(&old) };
        tokio::spawn(async move { pool.reload(config).await })
    };
    let started = Instant::now();
    let mut count = 0u64;
    while started.elapsed() < Duration::from_secs(4) || pool.stats().recycled < 2 {
        assert!(started.elapsed() < PATIENCE, "{:?}", pool.stats().recycled);
        for channel in 0..8u64 {
            let message = Outgoing::new(format!("load.{channel}"), count.to_string());
            publisher.publish_async(message).await.unwrap();
        }
        count += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(publisher.settled(PATIENCE).await);
    reload.await.unwrap().unwrap();
    assert!(!failures.load(Ordering::Relaxed));
    let mut seen = [0u64; 8];
    let consumer = stream
        .create_consumer(async_nats::jetstream::consumer::pull::Config {
            ack_policy: async_nats::jetstream::consumer::AckPolicy::None,
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap().take(8 * count as usize);
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let channel: usize = message.subject.as_str()["load.".len()..].parse().unwrap();
        let number: u64 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
        assert_eq!(number, seen[channel], "channel {channel} is in order");
        seen[channel] += 1;
    }
    assert_eq!(seen, [count; 8]);
}

#[tokio::test]
async fn connections_spread_over_the_servers_and_move_on_command() {
    let options = ClusterOptions { server: core(), ..ClusterOptions::default() };
    let cluster = NatsCluster::start_with(options).await.unwrap();
    // With a delay a new connection would not come in time.
    let delay = Duration::from_secs(60);
    let pool = open(PoolConfig { backoff_min: delay, backoff_max: delay, ..PoolConfig::new(cluster.urls()) }).await;
    let servers: BTreeSet<String> = pool.stats().connections.iter().map(|one| one.server.clone()).collect();
    assert_eq!(servers.len(), 3, "{servers:?}");
    let before = pool.stats().connections[1].server.clone();
    let mut events = pool.events();
    pool.force_reconnect(1).await.unwrap();
    let event = next(&mut events, |event| matches!(event.kind, EventKind::Reconnected { .. })).await;
    assert_eq!(event.connection, 1);
    assert_ne!(event.kind, EventKind::Reconnected { server: before });
    assert!(matches!(pool.force_reconnect(99).await, Err(PoolError::NoSuchConnection { connection: 99 })));
}

#[tokio::test]
async fn a_server_that_is_about_to_stop_is_left_before_it_does() {
    let options = ClusterOptions { server: core(), size: 2, ..ClusterOptions::default() };
    let cluster = NatsCluster::start_with(options).await.unwrap();
    let pool = open(PoolConfig::new(cluster.urls())).await;
    cluster.servers[0].lame_duck().unwrap();
    until("publishing connections have left the server", || {
        let gone = cluster.servers[0].address();
        pool.stats().connections.iter().all(|one| one.role == Role::Subscribing || one.server != gone)
    })
    .await;
    assert!(pool.stats().recycled >= 1);
}

#[tokio::test]
async fn a_frozen_server_is_noticed_by_client_pings() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let config = PoolConfig { client_ping_every: Duration::from_millis(300), ..PoolConfig::new([server.url()]) };
    let pool = open(config).await;
    let mut events = pool.events();
    server.pause().unwrap();
    let started = Instant::now();
    next(&mut events, |event| event.kind == EventKind::Disconnected).await;
    // By default it takes longer, with a ping every 2 s.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    server.resume().unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn probes_measure_the_round_trip() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let proxy = crate::testing::Proxy::start(server.address()).await.unwrap();
    let config = PoolConfig {
        probe_every: Duration::from_millis(50),
        probe_timeout: Duration::from_millis(300),
        discover_servers: false,
        // Only the probe notices here.
        client_ping_every: Duration::from_secs(600),
        ..PoolConfig::new([proxy.address()])
    };
    let pool = open(config).await;
    until("round trips are known", || pool.stats().connections.iter().all(|one| one.round_trip_ms.is_some())).await;
    proxy.set_delay(Duration::from_millis(40));
    until("the delay is seen", || pool.stats().connections.iter().all(|one| one.round_trip_ms >= Some(79.0))).await;
    let mut events = pool.events();
    proxy.stall();
    next(&mut events, |event| event.kind == EventKind::Disconnected).await;
    proxy.restore();
    until("probes have failed and contact is back", || {
        let stats = pool.stats();
        stats.healthy() == (3, 3) && stats.connections.iter().any(|one| one.failed_probes > 0)
    })
    .await;
}

#[tokio::test]
async fn a_full_subscription_is_named() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let pool = open(PoolConfig { subscription_capacity: 16, ..PoolConfig::new([server.url()]) }).await;
    let mut events = pool.events();
    let client = pool.subscribing(0);
    let fine = client.subscribe("fine").await.unwrap();
    let slow = client.subscribe("slow").await.unwrap();
    assert_ne!(subscription_id(&fine).unwrap(), subscription_id(&slow).unwrap());
    client.flush().await.unwrap();
    for _ in 0..64 {
        client.publish("slow", "x".into()).await.unwrap();
    }
    let event = next(&mut events, |event| matches!(event.kind, EventKind::SlowConsumer { .. })).await;
    assert_eq!(event.kind, EventKind::SlowConsumer { subscription: subscription_id(&slow).unwrap() });
    assert_eq!(event.connection, pool.subscribing_index(0));
}

#[tokio::test]
async fn a_lease_held_too_long_is_reclaimed() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let pool = open(PoolConfig { lease_limit: Duration::from_secs(2), ..PoolConfig::new([server.url()]) }).await;
    let lease = pool.lease();
    lease.client().unwrap().flush().await.unwrap();
    let stats = pool.stats();
    assert_eq!(stats.leases as u64 + stats.leases_reclaimed, 1);
    until("the lease is reclaimed", || pool.stats().leases_reclaimed == 1).await;
    let Err(PoolError::LeaseReclaimed { taken_at }) = lease.client() else { panic!("the lease still holds") };
    assert!(taken_at.file().ends_with("tests.rs"));
    assert!(pool.stats().connections.iter().all(|one| one.in_flight == 0));
    drop(lease);
    assert!(pool.stats().connections.iter().all(|one| one.in_flight == 0), "given back once");
}

#[tokio::test]
async fn the_pool_grows_with_the_load() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let pool = open(PoolConfig { grow_above: 8, max_publishing: 3, ..PoolConfig::new([server.url()]) }).await;
    let load: Vec<_> = (0..64).map(|key| pool.pinned(key)).collect();
    until("one more connection", || pool.stats().resized == 1).await;
    assert_eq!(pool.stats().connections.len(), 4);
    drop(load);
}

#[tokio::test]
async fn one_use_may_carry_the_load_of_many() {
    let server = NatsServer::start_with(core()).await.unwrap();
    let pool = open(PoolConfig { grow_above: 8, max_publishing: 3, ..PoolConfig::new([server.url()]) }).await;
    let (pinned, any) = (pool.pinned(1), pool.any());
    pinned.carries(100);
    any.carries(7);
    any.carries(3);
    let in_flight = || pool.stats().connections.iter().map(|one| one.in_flight).sum::<usize>();
    assert_eq!(in_flight(), 103);
    until("one more connection", || pool.stats().resized == 1).await;
    pinned.carries(0);
    assert_eq!(in_flight(), 4, "a use counts");
    drop((pinned, any));
    assert_eq!(in_flight(), 0);
}

#[tokio::test]
async fn settings_are_reloaded_without_a_break() {
    let users = "authorization { users: [{user: one, password: first}, {user: two, password: second}] }";
    let server = NatsServer::start_with(ServerOptions { settings: users.into(), ..core() }).await.unwrap();
    let user = |user: &str, password: &str| Credentials::UserPassword { user: user.into(), password: password.into() };
    let config = PoolConfig { credentials: user("one", "first"), ..PoolConfig::new([server.url()]) };
    let pool = open(config.clone()).await;
    let wrong = PoolConfig { subscribing: 2, ..config.clone() };
    assert!(matches!(pool.reload(wrong).await, Err(PoolError::Fixed { setting: "subscribing" })));
    let held = pool.pinned(1);
    pool.reload(PoolConfig { credentials: user("two", "second"), publishing: 3, ..config }).await.unwrap();
    held.flush().await.unwrap();
    drop(held);
    let fresh =
        pool.stats().connections.iter().filter(|one| one.healthy && !one.retiring && one.connection > 2).count();
    assert_eq!(fresh, 3);
    // The first user goes; only the subscribing connection still has it, and comes back as the second.
    server.edit_config(|text| text.replace("{user: one, password: first}, ", "")).unwrap();
    let mut events = pool.events();
    server.reload().unwrap();
    next(&mut events, |event| event.role == Role::Subscribing && matches!(event.kind, EventKind::Reconnected { .. }))
        .await;
    pool.wait_ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn requests_go_where_the_round_trip_is_short_until_it_is_busy() {
    let servers = [NatsServer::start_with(core()).await.unwrap(), NatsServer::start_with(core()).await.unwrap()];
    let slow = crate::testing::Proxy::start(servers[0].address()).await.unwrap();
    slow.set_delay(Duration::from_millis(10));
    let urls = [slow.address(), servers[1].address()];
    let config =
        PoolConfig { discover_servers: false, probe_every: Duration::from_millis(20), ..PoolConfig::new(urls) };
    let pool = open(config).await;
    let near = |one: &&super::ConnectionStats| one.role == Role::Publishing && one.server == servers[1].address();
    let far = |one: &&super::ConnectionStats| one.role == Role::Publishing && one.server != servers[1].address();
    let fast = pool.stats().connections.iter().find(near).expect("one connection goes there").connection;
    // A round trip on a busy machine may be anything for once.
    until("the near one is preferred", || {
        let stats = pool.stats();
        let [near, far] = [stats.connections.iter().find(near), stats.connections.iter().find(far)]
            .map(|one| one.expect("one to each").round_trip_ms);
        near.is_some() && near.map(|near| near * 4.0) < far && (0..20).all(|_| pool.any().connection() == fast)
    })
    .await;
    let busy: Vec<_> = (0..2_000).map(|_| pool.any()).collect();
    let elsewhere = busy.iter().filter(|one| one.connection() != fast).count();
    assert!((1..1_000).contains(&elsewhere), "{elsewhere} of 2,000 go the long way");
}

#[tokio::test]
async fn closing_leaves_no_task_behind() {
    let mut server = NatsServer::start_with(core()).await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let pool = open(PoolConfig::new([server.url()])).await;
    assert!(tasks() > before);
    pool.close(Duration::from_secs(1)).await;
    until("tasks of a closed pool end", || tasks() == before).await;
    assert!(pool.any().publish("gone", "x".into()).await.is_err());

    // The same without contact, where the client library itself would try for ever.
    server.kill().unwrap();
    let pool = Pool::connect(PoolConfig::new([server.url()])).await.unwrap();
    until("an attempt has failed", || pool.stats().connections.iter().all(|one| !one.server.is_empty())).await;
    pool.close(Duration::from_secs(1)).await;
    until("tasks of a pool without contact end", || tasks() == before).await;
    drop(Pool::connect(PoolConfig::new([server.url()])).await.unwrap());
    until("tasks of a dropped pool end", || tasks() == before).await;
}
