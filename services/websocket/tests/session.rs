//! Real sessions over real sockets.
#![allow(clippy::unwrap_used)] // Functions that tests share say what they expect by unwrapping.

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
use futures_util::SinkExt;
use plenum_channels::{Bucket, Publish};
use plenum_protocol::Encoding;
use plenum_telemetry::{Handshake, Transport, WireEncoding};
use plenum_websocket::{TrustedProxies, WebsocketConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const CONNECT: &str = r#"{"id":1,"connect":{}}"#;

fn publish(channel: &str, data: impl Into<Bytes>) -> Publish {
    Publish {
        channel: channel.to_owned(),
        data: data.into(),
        tags: Default::default(),
        idempotency_key: String::new(),
        skip_history: false,
        version: 0,
        version_epoch: String::new(),
    }
}

#[tokio::test]
async fn a_client_subscribes_in_its_first_frame_and_gets_publications() {
    let node = node(|_| ());
    let rig = serve_node(&node, config());
    let mut client = rig.client().await;
    send(&mut client, &format!("{CONNECT}\n{}", r#"{"id":2,"subscribe":{"channel":"news"}}"#)).await;
    let mut replies = text(&mut client).await;
    if !replies.contains("\"id\":2") {
        replies += &text(&mut client).await;
    }
    assert!(replies.contains("\"id\":1") && replies.contains("\"id\":2"), "{replies}");
    node.publish(publish("news", r#"{"n":1}"#)).await.unwrap();
    assert!(text(&mut client).await.contains(r#"{"n":1}"#));
    assert_eq!(rig.metrics.connections(Transport::WebSocket, WireEncoding::Json).get(), 1);
    assert_eq!(rig.metrics.handshakes(Handshake::Accepted).get(), 1);
    client.close(None).await.unwrap();
    timeout(LONG, rig.websocket.closed()).await.unwrap();
    assert_eq!(rig.metrics.connections(Transport::WebSocket, WireEncoding::Json).get(), 0);
}

#[tokio::test]
async fn protobuf_is_chosen_by_subprotocol_or_query() {
    let node = node(|_| ());
    let rig = serve_node(&node, config());
    let mut by_header = rig.request("");
    by_header.headers_mut().insert("Sec-WebSocket-Protocol", "centrifuge-protobuf".parse().unwrap());
    for request in [by_header, rig.request("?cf_protocol=protobuf")] {
        let (mut client, _) = rig.open(request).await.unwrap();
        // Command { id: 1, connect: {} } behind its length.
        client.send(Message::binary(vec![4, 0x08, 1, 0x22, 0])).await.unwrap();
        let Some(Ok(Message::Binary(reply))) = next(&mut client).await else { panic!("no binary reply") };
        let replies: Vec<_> = plenum_protocol::replies(Encoding::Protobuf, &reply).collect();
        assert_eq!(replies.len(), 1);
        assert!(replies[0].is_ok(), "{replies:?}");
    }
}

#[tokio::test]
async fn what_comes_with_the_handshake_is_not_lost() {
    let node = node(|_| ());
    let rig = serve_node(&node, config());
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let mut bytes = b"GET /connection/websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    bytes.extend([0x81, 0x80 | CONNECT.len() as u8, 0, 0, 0, 0]);
    bytes.extend(CONNECT.as_bytes());
    stream.write_all(&bytes).await.unwrap();
    let mut answer = String::new();
    while !answer.contains("\"connect\"") {
        let mut buffer = [0; 1024];
        let read = timeout(LONG, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{answer}");
        answer += &String::from_utf8_lossy(&buffer[..read]);
    }
}

#[tokio::test]
async fn limits_by_address_hold_behind_trusted_proxies() {
    let node = node(|settings| {
        let connect = Some(Bucket { tokens: 2, period: Duration::from_secs(3600) });
        settings.client.rate_limit.address.connect = connect;
    });
    let trusted = TrustedProxies::new(&["127.0.0.0/8".to_owned()]).unwrap();
    let rig = serve_node(&node, WebsocketConfig { trusted_proxies: trusted, ..config() });
    for (address, code) in [
        ("192.0.2.1", None),
        ("192.0.2.1", None),
        ("192.0.2.1", Some(111)),
        ("192.0.2.2", None),
        ("192.0.2.2, 192.0.2.1", Some(111)),
    ] {
        let mut request = rig.request("");
        request.headers_mut().insert("x-forwarded-for", address.parse().unwrap());
        let (mut client, _) = rig.open(request).await.unwrap();
        send(&mut client, CONNECT).await;
        let reply = text(&mut client).await;
        let error = code.map_or("\"connect\"".to_owned(), |code| format!("\"code\":{code}"));
        assert!(reply.contains(&error), "{address}: {reply}");
    }
}

#[tokio::test]
async fn faults_close_with_their_code() {
    let node = node(|_| ());
    let rig = serve_node(&node, WebsocketConfig { message_size_limit: 1000, ..config() });
    let long = "x".repeat(1001);
    for (frame, code) in [("{", 3501), (r#"{"id":1,"subscribe":{"channel":"a"}}"#, 3501), (&long, 1009)] {
        let mut client = rig.client().await;
        send(&mut client, frame).await;
        assert_eq!(closed(&mut client).await.0, code, "{frame}");
    }
    timeout(LONG, rig.websocket.closed()).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_is_closed_with_its_code_and_nobody_else() {
    let node = node(|settings| settings.client.queue_max_size = 300_000);
    let rig = serve_node(&node, config());
    let mut quick = rig.client().await;
    let hello = format!("{CONNECT}\n{}", r#"{"id":2,"subscribe":{"channel":"flood"}}"#);
    send(&mut quick, &hello).await;
    let mut greeting = String::new();
    while !greeting.contains("\"id\":2") {
        greeting += &text(&mut quick).await;
    }
    let data = format!("\"{}\"", "x".repeat(30_000));
    for attempt in 0.. {
        let mut slow = rig.client().await;
        send(&mut slow, &hello).await;
        let (mut sent, mut begun) = (0, Instant::now());
        while node.metrics().outbox_overflows.get() == attempt {
            begun = Instant::now();
            node.publish(publish("flood", data.clone())).await.unwrap();
            sent += 1;
            assert!(sent < 10_000, "never too slow");
            let received = text(&mut quick).await;
            assert!(received.contains("xxx"));
        }
        // It reads what the kernel holds, the frame that was under way, and then learns why.
        if let Some(reason) = ended(&mut slow).await {
            assert_eq!(reason, (3008, "slow".to_owned()));
            break;
        }
        // The server waits for it for a second; where this process stood still meanwhile, that is over: then once more.
        assert!(attempt < 5 && begun.elapsed() > Duration::from_millis(500), "no close frame, {attempt}");
    }
    node.publish(publish("flood", "1")).await.unwrap();
    assert!(text(&mut quick).await.contains("\"data\":1"));
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_given_up() {
    let node = node(|settings| settings.client.queue_max_size = 1 << 30);
    let rig = serve_node(&node, WebsocketConfig { write_timeout: Duration::from_millis(200), ..config() });
    let mut dead = rig.client().await;
    send(&mut dead, &format!("{CONNECT}\n{}", r#"{"id":2,"subscribe":{"channel":"flood"}}"#)).await;
    let mut greeting = String::new();
    while !greeting.contains("\"id\":2") {
        greeting += &text(&mut dead).await;
    }
    let data = format!("\"{}\"", "x".repeat(60_000));
    // More than the kernel's buffers hold.
    for _ in 0..400 {
        node.publish(publish("flood", data.clone())).await.unwrap();
    }
    timeout(LONG, rig.websocket.closed()).await.expect("the connection is kept");
}

#[tokio::test]
async fn large_publications_arrive_whole_among_small_ones() {
    let node = node(|settings| settings.client.queue_max_size = 64 << 20);
    let rig = serve_node(&node, config());
    let mut client = rig.client().await;
    send(&mut client, &format!("{CONNECT}\n{}", r#"{"id":2,"subscribe":{"channel":"mixed"}}"#)).await;
    let mut greeting = String::new();
    while !greeting.contains("\"id\":2") {
        greeting += &text(&mut client).await;
    }
    let sizes: Vec<usize> = (0..120).map(|n| [10, 9_000, 100, 61_000][n % 4]).collect();
    for (n, size) in sizes.iter().enumerate() {
        node.publish(publish("mixed", format!("\"{n}-{}\"", "y".repeat(*size)))).await.unwrap();
    }
    let mut received = Vec::new();
    while received.len() < sizes.len() {
        received.extend(text(&mut client).await.lines().map(str::to_owned));
    }
    for (n, (message, size)) in received.iter().zip(&sizes).enumerate() {
        assert!(message.contains(&format!("\"{n}-{}\"", "y".repeat(*size))), "publication {n}");
    }
}

#[tokio::test]
async fn origins_are_checked() {
    let node = node(|_| ());
    let rig = serve_node(&node, config());
    let from = |origin: &str| {
        let mut request = rig.request("");
        request.headers_mut().insert("Origin", origin.parse().unwrap());
        request
    };
    assert_eq!(rig.refusal(from("https://evil.example.com")).await.status(), 403);
    assert_eq!(rig.metrics.handshakes(Handshake::Origin).get(), 1);
    assert!(rig.open(from("https://app.example.com")).await.is_ok());
}

#[tokio::test]
async fn a_full_or_draining_replica_refuses_before_the_upgrade() {
    let node = node(|settings| settings.client.connection_limit = 1);
    let rig = serve_node(&node, config());
    let mut client = rig.client().await;
    let full = rig.refusal(rig.request("")).await;
    assert_eq!(full.status(), 503);
    assert!(full.headers().contains_key("Retry-After"));
    assert_eq!(rig.metrics.handshakes(Handshake::ConnectionLimit).get(), 1);
    send(&mut client, CONNECT).await;
    text(&mut client).await;

    let stopping = tokio::spawn({
        let node = node.clone();
        async move { node.shutdown(LONG).await }
    });
    assert_eq!(closed(&mut client).await, (3001, "shutdown".to_owned()));
    assert_eq!(stopping.await.unwrap(), 0);
    assert_eq!(rig.refusal(rig.request("")).await.status(), 503);
    assert_eq!(rig.metrics.handshakes(Handshake::Draining).get(), 1);
    drop(client);
    timeout(LONG, rig.websocket.closed()).await.unwrap();
}

#[tokio::test]
async fn an_invalid_handshake_hears_why() {
    let node = node(|_| ());
    let rig = serve_node(&node, config());
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Upgrade: websocket"), "{answer}");
    assert_eq!(rig.metrics.handshakes(Handshake::Invalid).get(), 1);
}
