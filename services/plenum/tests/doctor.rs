//! `plenum doctor`, `plenum backup` and `plenum restore` of the built binary.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::time::{Duration, Instant};

use common::{Folder, Server, output};
use futures_util::{SinkExt, StreamExt};
use plenum_bus_nats::testing::NatsServer;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const KEY: &str = "key-of-this-test-only";
const SECRET: &str = "secret-of-this-test-only";
const PATIENCE: Duration = Duration::from_secs(60);

fn settings(nats: &str) -> String {
    format!(
        r#"
[client]
allow_anonymous_connect_without_token = true
[client.token]
hmac_secret_key = "{SECRET}"
[http_api]
key = "{KEY}"
[nats]
servers = [{nats}]
max_bytes = 0
[[channel.namespaces]]
name = "chat"
history_size = 100
history_ttl = "1h"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
"#
    )
}

/// Exit status and report.
fn doctor(config: &str, more: &[&str]) -> (Option<i32>, Value) {
    let mut arguments = vec!["doctor", "--config", config, "--json", "--timeout", "60s"];
    arguments.extend(more);
    let (status, stdout, stderr) = output(&arguments);
    for secret in [KEY, SECRET] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret), "{stdout}{stderr}");
    }
    (status, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
}

/// Subject and found of the findings of a check in a state.
fn found<'a>(report: &'a Value, check: &str, state: &str) -> Vec<(&'a str, &'a str)> {
    let findings = report["findings"].as_array().unwrap().iter();
    let wanted = findings.filter(|finding| finding["check"] == check && finding["state"] == state);
    wanted.map(|finding| (finding["subject"].as_str().unwrap(), finding["found"].as_str().unwrap())).collect()
}

#[test]
fn a_server_that_is_well_is_told_from_one_that_is_not() {
    let folder = Folder::new();
    let config = folder.write("plenum.toml", &settings(""));
    let server = Server::start(&["--config", &config]);
    let (url, api) =
        (format!("ws://{}/connection/websocket", server.address), format!("http://{}/api", server.address));
    let (status, report) = doctor(&config, &["--url", &url, "--url", &url, "--api", &api]);
    assert_eq!((status, &report["ok"]), (Some(0), &json!(true)), "{report:#}");
    assert_eq!(found(&report, "websocket", "ok").len(), 2, "{report:#}");
    let message = found(&report, "message", "ok");
    let reached = message.iter().filter(|(_, found)| found.starts_with("reached 6 of 6 connections")).count();
    assert_eq!((reached, message.len()), (3, 5), "API, client, large, versions, spread: {report:#}");
    assert!(found(&report, "files", "ok").len() + found(&report, "files", "warning").len() > 1, "{report:#}");
    assert!(!found(&report, "clocks", "ok").is_empty(), "{report:#}");

    let wrong = format!("ws://{}/nowhere", server.address);
    let (status, report) = doctor(&config, &["--url", &url, "--url", &wrong, "--only", "websocket"]);
    assert_eq!((status, &report["ok"]), (Some(1), &json!(false)), "{report:#}");
    assert_eq!(found(&report, "websocket", "failed"), [(&*wrong, "HTTP error: 404 Not Found")]);
    let (status, report) = doctor(&config, &["--api", "http://127.0.0.1:1/api", "--only", "message"]);
    assert_eq!((status, found(&report, "message", "failed").len()), (Some(1), 1), "{report:#}");
    let other = folder.write("other.toml", &settings("").replace(KEY, "another-key"));
    let (status, report) = doctor(&other, &["--url", &url, "--api", &api, "--only", "message"]);
    assert_eq!((status, found(&report, "message", "failed").len()), (Some(1), 2), "{report:#}");

    let broken =
        folder.write("broken.toml", "[client]\nchannel_limit = 0\nno_such_key = 1\n[http_api]\nkeey = \"hidden\"\n");
    let (status, report) = doctor(&broken, &["--only", "nats"]);
    assert_eq!(status, Some(1));
    assert!(found(&report, "config", "failed").len() >= 2 && !report.to_string().contains("hidden"), "{report:#}");
    assert_eq!(output(&["doctor", "--only", "nothing"]).0, Some(2));
}

/// Whoever ends TLS is looked at as clients see it; whom nobody vouches for is refused.
#[test]
fn certificates_are_looked_at_on_the_way_and_in_files() {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
    let path = folder.write("cert.pem", &certificate.pem());
    let tls = format!(
        "[http_server.tls]\nenabled = true\ncert_pem = {path:?}\nkey_pem = {:?}\n",
        folder.write("key.pem", &key.serialize_pem())
    );
    let config = folder.write("plenum.toml", &(settings("") + &tls));
    let server = Server::start(&["--config", &config]);
    let url = format!("wss://{}/connection/websocket", server.address);
    let (status, report) = doctor(&config, &["--url", &url, "--ca", &path]);
    assert_eq!(status, Some(0), "{report:#}");
    assert_eq!(found(&report, "certificates", "ok").len(), 3, "the setting's, --ca's and the shown one: {report:#}");
    assert_eq!(found(&report, "websocket", "ok").len(), 1, "{report:#}");
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let other = folder.write("other.pem", &stranger.cert.pem());
    let (status, report) = doctor(&config, &["--url", &url, "--ca", &other, "--only", "websocket"]);
    assert_eq!(status, Some(1), "{report:#}");
    assert!(report["findings"][0]["advice"].as_str().unwrap().contains("--ca"), "{report:#}");
}

type Socket = WebSocketStream<TcpStream>;

async fn open(address: &str) -> Socket {
    let stream = TcpStream::connect(address).await.unwrap();
    client_async(format!("ws://{address}/connection/websocket"), stream).await.unwrap().0
}

/// Sends a command and gives its reply.
async fn command(socket: &mut Socket, command: Value) -> Value {
    socket.send(Message::text(command.to_string())).await.unwrap();
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let text = message.into_text().unwrap();
        let reply = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        if let Some(reply) = reply.into_iter().find(|reply| reply["id"] == command["id"]) {
            return reply;
        }
    }
}

/// Subscribes, from a position if there is one; tried until the first ticks have come.
async fn subscribe(address: &str, position: Option<(u64, &str)>) -> Value {
    let mut socket = open(address).await;
    command(&mut socket, json!({"id": 1, "connect": {}})).await;
    let mut request = json!({"channel": "chat:room", "recoverable": true});
    if let Some((offset, epoch)) = position {
        request["recover"] = json!(true);
        request["offset"] = json!(offset);
        request["epoch"] = json!(epoch);
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let reply = command(&mut socket, json!({"id": 2, "subscribe": request})).await;
        if reply["subscribe"].is_object() {
            return reply["subscribe"].clone();
        }
        assert!(Instant::now() < end, "{reply}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The stack is lost and made anew from a backup: clients that come back are told that their position is gone, the history of
/// before is there, blocked users stay blocked, and the doctor finds everything well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_that_a_backup_was_restored() {
    let folder = Folder::new();
    let backup = folder.path("backup");
    let (old, new) = (NatsServer::start().await.unwrap(), NatsServer::start().await.unwrap());
    let before = folder.write("old.toml", &settings(&format!("{:?}", old.url())));
    let server = Server::start(&["--config", &before]);
    server.until("/readyz", 200);
    for n in 0..5 {
        let (_, reply) = server.api(KEY, "publish", &json!({"channel": "chat:room", "data": n}).to_string());
        assert!(reply.contains("\"offset\""), "{reply}");
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, reply) = server.api(KEY, "block_user", r#"{"user": "mallory"}"#);
        if reply == r#"{"result":{}}"# {
            break;
        }
        assert!(Instant::now() < end && reply.contains("\"temporary\":true"), "{reply}");
    }
    let (status, stdout, stderr) = output(&["backup", "--config", &before, "--to", &backup]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("4 streams with") && stdout.contains("and the ledger"), "{stdout}");
    server.api(KEY, "publish", r#"{"channel": "chat:room", "data": "after the backup"}"#);
    let joined = subscribe(&server.address, None).await;
    let position = (joined["offset"].as_u64().unwrap(), joined["epoch"].as_str().unwrap());
    let same = subscribe(&server.address, Some(position)).await;
    assert_eq!(same["recovered"], json!(true), "{same}");
    drop(server);

    let after = folder.write("new.toml", &settings(&format!("{:?}", new.url())));
    let (status, _, stderr) = output(&["restore", "--config", &after, "--from", &backup]);
    assert_eq!(status, Some(0), "{stderr}");
    let server = Server::start(&["--config", &after]);
    server.until("/readyz", 200);
    let back = subscribe(&server.address, Some(position)).await;
    assert!(back["recovered"] != json!(true) && back["epoch"] != joined["epoch"], "{back}");
    let (_, history) = server.api(KEY, "history", r#"{"channel": "chat:room", "limit": 100}"#);
    let history: Value = serde_json::from_str(&history).unwrap();
    let data: Vec<&Value> =
        history["result"]["publications"].as_array().unwrap().iter().map(|it| &it["data"]).collect();
    assert_eq!(json!(data), json!([0, 1, 2, 3, 4]), "{history}");
    let (_, token, _) = output(&["token", "make", "--config", &after, "--user", "mallory"]);
    let mut socket = open(&server.address).await;
    socket.send(Message::text(json!({"id": 1, "connect": {"token": token.trim()}}).to_string())).await.unwrap();
    let refused = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(refused.is_close(), "a blocked user got in: {refused}");

    let end = Instant::now() + PATIENCE;
    loop {
        let beside = output(&["restore", "--config", &after, "--from", &backup]);
        assert_eq!(beside.0, Some(1), "{beside:?}");
        if beside.2.contains("1 replicas run on this NATS") {
            break;
        }
        // Whoever stands still has no heartbeat; what is there is in the way all the same.
        assert!(Instant::now() < end, "{beside:?}");
    }
    let url = format!("ws://{}/connection/websocket", server.address);
    let api = format!("http://{}/api", server.address);
    let end = Instant::now() + PATIENCE;
    loop {
        let (status, report) = doctor(&after, &["--url", &url, "--api", &api]);
        if status == Some(0) && found(&report, "nats", "warning").is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{report:#}");
    }
}
