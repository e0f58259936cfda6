//! The ledger on real servers: conformance, and a leader that is killed or cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plenum_channels::conformance::{Fixture, ledger_suite};
use plenum_channels::{LEDGER_FULL, Ledger, LedgerError, Record};
use plenum_telemetry::State;

use super::{LedgerConfig, NatsLedger};
use crate::log::PoolLinks;
use crate::pool::{Credentials, Pool, PoolConfig};
use crate::testing::{ClusterOptions, NatsCluster, NatsServer, ServerOptions};

fn prefix() -> String {
    format!("t{:08x}", rand::random::<u32>())
}

async fn ledger(urls: Vec<String>, prefix: &str, replicas: u32) -> Arc<NatsLedger> {
    let pool = Pool::connect(PoolConfig::new(urls)).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    started(pool, &LedgerConfig { prefix: prefix.into(), replicas, max_bytes: None }).await
}

async fn started(pool: Arc<Pool>, config: &LedgerConfig) -> Arc<NatsLedger> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match NatsLedger::start(PoolLinks::new(pool.clone()), config).await {
            Ok(ledger) => return ledger,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

async fn leader(cluster: &NatsCluster, client: &async_nats::Client, stream: &str) -> usize {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(leader) = cluster.stream_leader(client, stream).await {
            return leader;
        }
        assert!(Instant::now() < deadline, "nobody leads {stream}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks again while the bucket still elects or is silent.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, LedgerError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Writes without an expectation, perhaps more than once.
async fn write(ledger: &NatsLedger, key: &str, value: &'static str) {
    patiently(async || ledger.put(key, Some(value.into()), None, None).await).await;
}

async fn read(ledger: &NatsLedger, key: &str) -> Record {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match ledger.get(key).await {
            Ok(Some(record)) => return record,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

async fn conforms(urls: Vec<String>, copies: u32) {
    ledger_suite(async |count| {
        let prefix = prefix();
        let mut replicas: Vec<Arc<dyn Ledger>> = Vec::new();
        for _ in 0..count {
            replicas.push(ledger(urls.clone(), &prefix, copies).await);
        }
        Fixture::with_tokio_time(replicas)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_one_server() {
    let server = NatsServer::start().await.unwrap();
    conforms(vec![server.url()], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_three_servers() {
    let cluster = NatsCluster::start().await.unwrap();
    conforms(cluster.urls(), 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_with_other_settings_is_refused() {
    let server = NatsServer::start().await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    let body = r#"{"name":"KV_x-ledger","subjects":["$KV.x-ledger.>"],"max_age":60000000000,"num_replicas":1}"#;
    client.request("$JS.API.STREAM.CREATE.KV_x-ledger", body.into()).await.unwrap();
    let pool = Pool::connect(PoolConfig::new(vec![server.url()])).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    let config = LedgerConfig { prefix: "x".into(), replicas: 1, max_bytes: None };
    let refused = NatsLedger::start(PoolLinks::new(pool), &config).await;
    let Err(LedgerError::Unavailable { reason }) = refused.map(|_| ()) else { panic!("taken") };
    assert!(reason.contains("max_msgs_per_subject"), "{reason}");
}

/// The account of deploy/nats/plenum.conf is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_suffice() {
    let account = include_str!("../../../../deploy/nats/plenum.conf").replace("$PLENUM_NATS_PASSWORD", "secret");
    let server = NatsServer::start_with(ServerOptions { settings: account, ..ServerOptions::default() }).await.unwrap();
    let mut settings = PoolConfig::new(vec![server.url()]);
    settings.inbox_prefix = "_INBOX_plenum".into();
    settings.credentials = Credentials::UserPassword { user: "plenum".into(), password: "secret".into() };
    let pool = Pool::connect(settings).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    let config = LedgerConfig { prefix: "plenum".into(), replicas: 1, max_bytes: None };
    let ledger = started(pool, &config).await;
    patiently(async || ledger.put("a", Some("1".into()), None, Some(Duration::from_secs(60))).await).await;
    let revision = read(&ledger, "a").await.revision;
    patiently(async || match ledger.put("a", None, Some(revision), None).await {
        // An attempt without an answer did it.
        Err(LedgerError::Conflict { found, .. }) if found > revision => Ok(found),
        result => result,
    })
    .await;
    assert_eq!(patiently(async || ledger.changes(revision, 10).await).await.len(), 1);
}

/// More registers than one answer takes, half of them written again: every one shows once, with its newest value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_come_page_by_page() {
    let server = NatsServer::start().await.unwrap();
    let ledger = ledger(vec![server.url()], &prefix(), 1).await;
    for n in (0..300).chain(0..150) {
        write(&ledger, &format!("key {n}"), "x").await;
    }
    let (mut seen, mut keys) = (0, Vec::new());
    loop {
        let page = patiently(async || ledger.changes(seen, 40).await).await;
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 40 && page[0].revision > seen);
        seen = last.revision;
        keys.extend(page.into_iter().map(|record| record.key));
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((keys.len(), seen >= 450), (300, true));
}

/// Writers go on while the leader of the bucket is killed, three times. No read, whoever answers it, is older than what
/// was acknowledged before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_forgotten_when_the_leader_is_killed() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let prefix = prefix();
    let writer = ledger(cluster.urls(), &prefix, 3).await;
    let reader = ledger(cluster.urls(), &prefix, 3).await;
    let client = async_nats::ConnectOptions::new().connect(cluster.urls()).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (stop, writer, reader) = (stop.clone(), writer.clone(), reader.clone());
        tokio::spawn(async move { count_up(&stop, &writer, &reader).await })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let leader = leader(&cluster, &client, &format!("KV_{prefix}-ledger")).await;
        cluster.kill(leader).unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        cluster.restart(leader).await.unwrap();
        cluster.ready(Duration::from_secs(60)).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let (written, read, refused, revision) = load.await.unwrap();
    eprintln!("leader killed 3 times: {written} writes and {read} reads, {refused} calls refused, none stale");
    assert!(written > 50 && read > 50);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match reader.get("counter").await {
            Ok(record) => break assert!(record.unwrap().revision >= revision),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

/// Counts a register up by compare-and-set and reads it on another replica; whatever is read must not be older.
async fn count_up(stop: &AtomicBool, writer: &NatsLedger, reader: &NatsLedger) -> (u32, u32, u32, u64) {
    let (mut written, mut read, mut refused, mut revision) = (0, 0, 0, 0);
    while !stop.load(Ordering::SeqCst) {
        match writer.put("counter", Some(written.to_string().into()), Some(revision), None).await {
            Ok(new) => {
                assert!(new > revision);
                (written, revision) = (written + 1, new);
            }
            // A write without an answer may have taken place.
            Err(LedgerError::Conflict { found, .. }) => {
                assert!(found > revision, "went back from {revision} to {found}");
                revision = found;
            }
            Err(_) => refused += 1,
        }
        match reader.get("counter").await {
            Ok(Some(record)) => {
                assert!(record.revision >= revision, "read {} after {revision} was acknowledged", record.revision);
                read += 1;
            }
            Ok(None) => assert_eq!(revision, 0, "an acknowledged register is gone"),
            Err(_) => refused += 1,
        }
        match reader.changes(revision.saturating_sub(1), 10).await {
            Ok(changes) => {
                let newest = changes.last().map_or(0, |record| record.revision);
                assert!(newest >= revision, "changes end at {newest}, {revision} was acknowledged");
            }
            Err(_) => refused += 1,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (written, read, refused, revision)
}

/// The leader is cut off from its peers and does not know it for seconds; a replica that is connected to it gets no answer
/// rather than an old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_cut_off_answers_nothing_old() {
    let cluster = NatsCluster::start_with(ClusterOptions {
        proxied_routes: true,
        advertise_clients: false,
        ..ClusterOptions::default()
    })
    .await
    .unwrap();
    let prefix = prefix();
    let first = ledger(cluster.urls(), &prefix, 3).await;
    write(&first, "a", "old").await;
    let before = read(&first, "a").await.revision;
    let client = async_nats::connect(cluster.urls()[0].clone()).await.unwrap();
    let stream = format!("KV_{prefix}-ledger");
    let leader = leader(&cluster, &client, &stream).await;
    let others: Vec<String> = (0..3).filter(|n| *n != leader).map(|n| cluster.urls()[n].clone()).collect();
    let there = ledger(vec![cluster.urls()[leader].clone()], &prefix, 3).await;
    let here = ledger(others, &prefix, 3).await;
    assert_eq!(read(&there, "a").await.revision, before);
    for proxy in cluster.routes_of(leader) {
        proxy.stall();
    }
    let deadline = Instant::now() + Duration::from_secs(40);
    let after = loop {
        match here.put("a", Some("new".into()), Some(before), None).await {
            Ok(revision) => break revision,
            // An attempt without an answer may have been stored.
            Err(LedgerError::Conflict { found, .. }) if found > before => break found,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let mut answers = 0;
    for _ in 0..5 {
        if let Ok(found) = there.get("a").await {
            assert_eq!(found.unwrap().revision, after, "an old answer");
            answers += 1;
        }
        if let Ok(changes) = there.changes(before, 10).await {
            assert!(changes.iter().any(|record| record.revision == after), "old changes: {changes:?}");
            answers += 1;
        }
    }
    eprintln!("cut off: {answers} of 10 questions were answered, none with the past");
    for proxy in cluster.routes_of(leader) {
        proxy.restore();
    }
    let deadline = Instant::now() + Duration::from_secs(40);
    while there.get("a").await.map(|found| found.unwrap().revision) != Ok(after) {
        assert!(Instant::now() < deadline, "it never came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The ledger says how full it is, and the doctor does; what is above its bound is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_fills_is_told() {
    let server = NatsServer::start().await.unwrap();
    let pool = Pool::connect(PoolConfig::new(vec![server.url()])).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    let config = LedgerConfig { prefix: prefix(), replicas: 1, max_bytes: Some(20_000) };
    let ledger = started(pool, &config).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    assert!(patiently(async || ledger.fill().await).await < 0.1);
    assert_eq!(super::inspect(&client, &config).await.state, State::Good);
    let (mut written, mut told) = (0, 0.0);
    loop {
        let put = ledger.put(&format!("key {written}"), Some(vec![b'x'; 1000].into()), None, None).await;
        written += 1;
        assert!(written < 100, "there is no bound");
        match put {
            Err(LedgerError::Unavailable { reason }) if reason.contains("maximum bytes") => break,
            // On a busy machine the server may be silent for once; then the write may have taken place.
            Ok(_) | Err(LedgerError::Unavailable { .. } | LedgerError::Indeterminate) => {}
            Err(error) => panic!("{error}"),
        }
        told = patiently(async || ledger.fill().await).await;
        assert_eq!(super::inspect(&client, &config).await.state == State::Warning, told >= LEDGER_FULL);
    }
    assert!((0.9..=1.0).contains(&told), "{told} after {written} registers");
}
