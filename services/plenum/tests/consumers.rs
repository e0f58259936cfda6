//! The built binary's workers: killed under load, every command's publication arrives once and in order; told to end, they
//! finish what they took.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Folder, Server, output};
use futures_util::{SinkExt, StreamExt};
use plenum_bus_nats::pool::{Pool, PoolConfig};
use plenum_bus_nats::publish::{Outgoing, Publisher, PublisherConfig};
use plenum_bus_nats::testing::NatsServer;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "key of this test only";
const CHANNELS: u64 = 10;
/// For what follows a kill, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn configuration(url: &str) -> Value {
    json!({
        "nats": { "servers": [url], "max_bytes": 0, "pool": { "backoff_max": "1s" } },
        "http_api": { "key": KEY },
        "client": { "allow_anonymous_connect_without_token": true },
        "shutdown": { "drain_time": "5s", "timeout": "20s" },
        "channel": { "namespaces": [{
            "name": "log", "history_size": 10_000, "history_ttl": "600s", "force_recovery": true,
            "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
        }]},
        "consumers": [{ "enabled": true, "name": "outbox", "type": "nats_jetstream", "nats_jetstream": {
            "stream_name": "COMMANDS", "subjects": ["commands.>"], "durable_consumer_name": "plenum",
        }}],
    })
}

/// What a client saw on each channel.
type Seen = Arc<Mutex<HashMap<String, Vec<u64>>>>;

fn count(seen: &Seen) -> usize {
    seen.lock().unwrap().values().map(Vec::len).sum()
}

/// A client that subscribes to every channel and notes what comes.
async fn subscriber(address: &str) -> Seen {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = client_async(format!("ws://{address}/connection/websocket"), stream).await.unwrap();
    socket.send(Message::text(r#"{"id":1,"connect":{}}"#)).await.unwrap();
    let subscribe = |index: u64| {
        let command = json!({ "id": index + 2, "subscribe": { "channel": format!("log:{index}") } });
        Message::text(command.to_string())
    };
    for index in 0..CHANNELS {
        socket.send(subscribe(index)).await.unwrap();
    }
    let (seen, mut answers) = (Seen::default(), 0);
    let (noted, subscribed) = (seen.clone(), Arc::new(tokio::sync::Notify::new()));
    let all = subscribed.clone();
    tokio::spawn(async move {
        while let Some(Ok(message)) = socket.next().await {
            let Message::Text(text) = message else { continue };
            for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
                if line["error"]["temporary"] == true {
                    // The first ticks have not come yet.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    socket.send(subscribe(line["id"].as_u64().unwrap() - 2)).await.unwrap();
                    continue;
                }
                assert!(line.get("error").is_none(), "{line}");
                if line == json!({}) {
                    socket.send(Message::text("{}")).await.unwrap();
                }
                answers += u64::from(line.get("subscribe").is_some());
                if answers == CHANNELS {
                    all.notify_one();
                }
                if let Some(number) = line["push"]["pub"]["data"].as_u64() {
                    let channel = line["push"]["channel"].as_str().unwrap().to_owned();
                    noted.lock().unwrap().entry(channel).or_default().push(number);
                }
            }
        }
    });
    tokio::time::timeout(PATIENCE, subscribed.notified()).await.unwrap();
    seen
}

/// How many commands were handed out and not settled, and how many were not handed out.
async fn left(pool: &Pool) -> (u64, u64) {
    let answer = pool.any().request("$JS.API.CONSUMER.INFO.COMMANDS.plenum", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    (info["num_ack_pending"].as_u64().unwrap(), info["num_pending"].as_u64().unwrap())
}

async fn until(what: &str, worker: &Server, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}:\n{}", worker.log.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_killed_under_load_and_every_publication_arrives_once_and_in_order() {
    const COMMANDS: u64 = 4_000;
    const ATTEMPTS: u64 = 5;
    let nats = NatsServer::start().await.unwrap();
    let folder = Folder::new();
    let config = folder.write("plenum.json", &configuration(&nats.url()).to_string());
    let replica = Server::start_as("websocket", &["--config", &config]);
    replica.until("/readyz", 200);
    let seen = subscriber(&replica.address).await;

    let pool = Pool::connect(PoolConfig::new([nats.url()])).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let stream = json!({ "name": "COMMANDS", "subjects": ["commands.>"], "storage": "file" }).to_string();
    pool.any().request("$JS.API.STREAM.CREATE.COMMANDS", stream.into()).await.unwrap();
    let backend = Publisher::new(pool.clone(), PublisherConfig::default(), |failed: _| panic!("{failed:?}"));
    let send = async |range: std::ops::Range<u64>| {
        for number in range {
            let channel = format!("log:{}", number % CHANNELS);
            let command = json!({ "method": "publish", "payload": { "channel": channel, "data": number } });
            backend.publish_async(Outgoing::new("commands.orders", command.to_string())).await.unwrap();
        }
        assert!(backend.settled(PATIENCE).await);
    };
    let mut sent = 0;
    // Where this process stands still, a worker may be done before it is killed: then the next one is.
    loop {
        send(sent..sent + COMMANDS).await;
        sent += COMMANDS;
        let begun = count(&seen);
        let mut first = Server::start_as("worker", &["--config", &config]);
        until("the first worker is at work", &first, || count(&seen) > begun + 300).await;
        first.signal("KILL");
        assert_eq!(first.wait(), None);
        let (taken, waiting) = left(&pool).await;
        if taken > 0 && waiting > 0 {
            break;
        }
        assert!(sent < ATTEMPTS * COMMANDS, "each was done before it was killed");
    }
    let (before, sent_before) = (count(&seen), sent as usize);
    let killed = Instant::now();
    let mut second = Server::start_as("worker", &["--config", &config]);
    until("the second worker goes on", &second, || count(&seen) >= (before + 300).min(sent_before)).await;
    eprintln!("killed after {before} publications, the next one goes on after {:?}", killed.elapsed());
    until("all arrive", &second, || count(&seen) >= sent_before).await;

    // What follows shows that nothing else came, and in which order.
    send(sent..sent + CHANNELS).await;
    let complete = || seen.lock().unwrap().values().filter(|all| all.last() >= Some(&sent)).count() as u64;
    until("the last ones arrive", &second, || complete() == CHANNELS).await;
    for index in 0..CHANNELS {
        let expected: Vec<u64> = (0..sent + CHANNELS).filter(|number| number % CHANNELS == index).collect();
        assert_eq!(seen.lock().unwrap()[&format!("log:{index}")], expected, "{index}");
    }
    let metrics = second.get("/metrics").1;
    let value = |series: &str| metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<u64>().ok());
    let redelivered = value("plenum_consumer_redelivered_total{consumer=\"outbox\"}").unwrap();
    assert!(redelivered > 0, "the first worker left nothing behind: {metrics}");
    assert_eq!(value("plenum_consumer_commands_total{consumer=\"outbox\",result=\"failed\"}"), Some(0));
    let done = value("plenum_consumer_commands_total{consumer=\"outbox\",result=\"done\"}").unwrap();
    let published = (before as u64 + done).saturating_sub(sent + CHANNELS);
    eprintln!("{redelivered} commands were left behind, at least {published} of them were published already");
    let report: Value = serde_json::from_str(&second.get("/report").1).unwrap();
    assert_eq!(report["subscriptions"][0]["name"], "outbox");
    assert!(report["workers"].as_array().unwrap().iter().any(|workers| workers["name"] == "keyed"), "{report}");
    second.signal("TERM");
    assert_eq!(second.wait(), Some(0));
    second.logged("\"stopped\"", |_| Some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_nats_consumes_as_well_and_outlives_nats() {
    let mut nats = NatsServer::start().await.unwrap();
    let folder = Folder::new();
    let config = folder.write("plenum.json", &configuration(&nats.url()).to_string());
    // Before there is a stream.
    let server = Server::start(&["--config", &config]);
    server.until("/readyz", 200);
    let pool = Pool::connect(PoolConfig { backoff_max: Duration::from_secs(1), ..PoolConfig::new([nats.url()]) }).await;
    let pool = pool.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let stream = json!({ "name": "COMMANDS", "subjects": ["commands.>"], "storage": "file" }).to_string();
    pool.any().request("$JS.API.STREAM.CREATE.COMMANDS", stream.into()).await.unwrap();
    let backend = Publisher::new(pool.clone(), PublisherConfig::default(), |_: _| {});
    let publish = async |number: u64| {
        let command = json!({ "method": "publish", "payload": { "channel": "log:0", "data": number } }).to_string();
        let message = Outgoing::new("commands.a", command).message_id(&number.to_string());
        let started = Instant::now();
        while backend.publish_sync(message.clone()).await.is_err() {
            assert!(started.elapsed() < PATIENCE);
        }
    };
    let history = || {
        let reply = server.api(KEY, "history", r#"{"channel": "log:0", "limit": 100}"#).1;
        let reply: Value = serde_json::from_str(&reply).unwrap();
        let all = reply["result"]["publications"].as_array().cloned().unwrap_or_default();
        all.iter().map(|one| one["data"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    publish(0).await;
    until("the first command is done", &server, || history() == [0]).await;
    nats.kill().unwrap();
    server.until("/health", 503);
    nats.restart().await.unwrap();
    publish(1).await;
    until("the second command is done", &server, || history() == [0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_has_the_time_of_the_drain_for_its_last_commands() {
    let mut nats = NatsServer::start().await.unwrap();
    let folder = Folder::new();
    let mut config = configuration(&nats.url());
    config["shutdown"] = json!({ "drain_time": "100s", "timeout": "1s" });
    let config = folder.write("plenum.json", &config.to_string());
    let pool = Pool::connect(PoolConfig { backoff_max: Duration::from_secs(1), ..PoolConfig::new([nats.url()]) }).await;
    let pool = pool.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let stream = json!({ "name": "COMMANDS", "subjects": ["commands.>"], "storage": "file" }).to_string();
    pool.any().request("$JS.API.STREAM.CREATE.COMMANDS", stream.into()).await.unwrap();
    let backend = Publisher::new(pool.clone(), PublisherConfig::default(), |_: _| {});
    let send = async || {
        for number in 0..4_000 {
            let channel = format!("log:{}", number % CHANNELS);
            let command = json!({ "method": "publish", "payload": { "channel": channel, "data": number } });
            backend.publish_async(Outgoing::new("commands.a", command.to_string())).await.unwrap();
        }
        assert!(backend.settled(PATIENCE).await);
    };
    send().await;
    let mut worker = Server::start_as("worker", &["--config", &config]);
    let value = |series: &str| {
        let metrics = worker.get("/metrics").1;
        metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    let done = || value("plenum_consumer_commands_total{consumer=\"outbox\",result=\"done\"}");
    // Where this process stands still, it may be done before NATS is away: then once more.
    for attempt in 1.. {
        let before = done();
        until("it is at work", &worker, || done() > before + 100).await;
        nats.kill().unwrap();
        // What it has taken cannot be done before NATS is back.
        let (killed, left) = (Instant::now(), || value("plenum_consumer_unsettled{consumer=\"outbox\"}") > 50);
        while !left() && killed.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if left() {
            break;
        }
        assert!(attempt < 5, "each time it was done before NATS was away");
        nats.restart().await.unwrap();
        pool.wait_ready(PATIENCE).await.unwrap();
        send().await;
    }
    worker.signal("TERM");
    let told = Instant::now();
    while told.elapsed() < Duration::from_secs(4) {
        let log = worker.log.lock().unwrap().clone();
        assert!(!log.contains("\"stopped\"") && !log.contains("were cut"), "{log}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    nats.restart().await.unwrap();
    until("it ends", &worker, || worker.log.lock().unwrap().contains("\"stopped\"")).await;
    assert_eq!(worker.wait(), Some(0));
    let log = worker.log.lock().unwrap().clone();
    assert!(!log.contains("were cut"), "{log}");
}

#[test]
fn a_consumer_that_cannot_run_is_named_by_the_check_and_ends_the_start() {
    let folder = Folder::new();
    let mut config = configuration("nats://127.0.0.1:1");
    config["consumers"][0]["nats_jetstream"]["max_ack_pending"] = json!(0);
    let path = folder.write("plenum.json", &config.to_string());
    for arguments in [&["config", "check", "--config", &path][..], &["worker", "--config", &path]] {
        let (code, _, error) = output(arguments);
        assert_ne!(code, Some(0));
        let told = "consumers[0].nats_jetstream.max_ack_pending = 0: must be from 1 to 10000";
        assert!(error.contains(told), "{error}");
    }
}
