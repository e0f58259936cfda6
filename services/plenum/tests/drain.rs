//! The built binary: it drains on SIGTERM and on request, and a second signal hurries it.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::time::{Duration, Instant};

use common::{Folder, Server, output};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

type Socket = WebSocketStream<TcpStream>;

const ANONYMOUS: &str = "client.allow_anonymous_connect_without_token=true";

async fn open(address: &str) -> Result<Socket, Error> {
    let stream = TcpStream::connect(address).await.map_err(Error::Io)?;
    Ok(client_async(format!("ws://{address}/connection/websocket"), stream).await?.0)
}

/// Connected clients that each tell when, and with which code, they were closed.
async fn clients(address: &str, count: usize) -> Vec<tokio::task::JoinHandle<(u16, Instant)>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut socket = open(address).await.unwrap();
        socket.send(Message::text(r#"{"id":1,"connect":{}}"#)).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap().to_string().contains("\"connect\""));
        clients.push(tokio::spawn(async move {
            loop {
                match socket.next().await.unwrap().unwrap() {
                    Message::Close(Some(frame)) => return (frame.code.into(), Instant::now()),
                    Message::Close(None) => panic!("closed without a code"),
                    _ => {}
                }
            }
        }));
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn termination_moves_connections_at_a_steady_pace_and_refuses_new_ones() {
    // Whoever stands still for seconds sees, or closes, many at once: then once more.
    let mut rushed = Vec::new();
    while rushed.len() < 3 {
        match terminated().await {
            Ok(()) => return,
            Err(rush) => rushed.push(rush),
        }
    }
    panic!("{rushed:?}");
}

/// What was not steady about the pace, if anything.
async fn terminated() -> Result<(), String> {
    let mut server = Server::start(&["--set", ANONYMOUS, "--set", "shutdown.drain_time=12s"]);
    let clients = clients(&server.address, 30).await;
    server.signal("TERM");
    server.until("/readyz", 503);
    match open(&server.address).await {
        Err(Error::Http(refused)) => {
            assert_eq!(refused.status(), 503);
            assert!(refused.headers().contains_key("retry-after"));
        }
        other => panic!("a draining server must refuse: {:?}", other.map(|_| "opened")),
    }
    assert!(server.get("/metrics").1.contains("\nplenum_draining_connections "), "progress is a metric");
    let mut closed = Vec::new();
    for client in clients {
        let (code, at) = client.await.unwrap();
        assert_eq!(code, 3001);
        closed.push(at);
    }
    closed.sort();
    let spread = closed[29] - closed[0];
    let most = closed.windows(10).map(|window| window[9] - window[0]).min().unwrap();
    assert_eq!(server.wait(), Some(0));
    server.logged("\"drained\"", |_| Some(()));
    if spread < Duration::from_secs(6) || most < Duration::from_millis(1500) {
        return Err(format!("all within {spread:?}, ten of thirty within {most:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_hurries() {
    let mut server = Server::start(&["--set", ANONYMOUS, "--set", "shutdown.drain_time=10m"]);
    let clients = clients(&server.address, 10).await;
    server.signal("TERM");
    server.until("/readyz", 503);
    let open = clients.iter().filter(|client| !client.is_finished()).count();
    assert!(open >= 8, "only {open} of 10 are open just after the first signal");
    server.signal("TERM");
    for client in clients {
        assert_eq!(client.await.unwrap().0, 3001);
    }
    assert_eq!(server.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_by_hand_does_the_same() {
    let folder = Folder::new();
    let text = "[http_server]\ninternal_port = \"0\"\n[shutdown]\ndrain_time = \"1s\"\n\
                [client]\nallow_anonymous_connect_without_token = true\n";
    let config = folder.write("plenum.toml", text);
    let mut server = Server::start(&["--config", &config]);
    let clients = clients(&server.address, 5).await;
    let path = "/drain";
    assert_eq!(server.get(path).0, 404, "the port for clients knows no such path");
    let port = server.logged("\"serving\"", |line| {
        let (_, rest) = line.split_once("\"internal\":\"Some(127.0.0.1:")?;
        Some(format!("http_server.internal_port={}", rest.split_once(')')?.0))
    });
    let address = "http_server.address=127.0.0.1";
    let (status, stdout, stderr) = output(&["drain", "--config", &config, "--set", address, "--set", &port]);
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    for client in clients {
        assert_eq!(client.await.unwrap().0, 3001);
    }
    assert_eq!(server.wait(), Some(0));
    let (status, _, stderr) = output(&["drain"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("http_server.internal_port"), "{stderr}");
}
