//! The limit of open files: raised at the start, kept free of clients, and told of when it is reached.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::Server;

const PATIENCE: Duration = Duration::from_secs(60);

/// The head of the answer to one request, on a connection that stays open.
fn head(stream: &TcpStream, request: &str) -> String {
    let mut stream = BufReader::new(stream);
    stream.get_mut().set_read_timeout(Some(PATIENCE)).unwrap();
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let (mut head, mut line) = (String::new(), String::new());
    while line != "\r\n" {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "closed after {head:?}");
        head.push_str(&line);
    }
    let length =
        head.to_lowercase().split_once("content-length: ").map(|(_, rest)| rest.lines().next().unwrap().to_owned());
    let length = length.map_or(0, |length| length.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).unwrap();
    head
}

/// Opens WebSocket connections until one is refused, at most `most`; gives them and the refusal.
fn websockets(address: &str, most: usize) -> (Vec<TcpStream>, Option<String>) {
    let request = "GET /connection/websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut open = Vec::new();
    while open.len() < most {
        let stream = TcpStream::connect(address).unwrap();
        let head = head(&stream, request);
        if !head.starts_with("HTTP/1.1 101") {
            return (open, Some(head));
        }
        open.push(stream);
    }
    (open, None)
}

#[test]
fn a_low_soft_limit_is_raised() {
    let server = Server::start_under("ulimit -Sn 256", &["--set", "client.stale_close_delay=2m"]);
    server.logged("\"open files\"", |line| line.contains("\"was\":256").then_some(()));
    let (open, refused) = websockets(&server.address, 300);
    assert_eq!((open.len(), refused), (300, None));
}

#[test]
fn a_hard_limit_bounds_connections_and_one_that_is_reached_is_told() {
    let settings = ["client.connection_limit=20000", "client.stale_close_delay=2m", "http_server.header_timeout=2m"];
    let settings: Vec<&str> = settings.iter().flat_map(|one| ["--set", one]).collect();
    let server = Server::start_under("ulimit -n 256", &settings);
    server.logged("at most 192 connections are taken", |_| Some(()));
    let (open, refused) = websockets(&server.address, 300);
    let refused = refused.expect("the limit refuses").to_lowercase();
    assert!(open.len() == 192 && refused.starts_with("http/1.1 503") && refused.contains("retry-after: "), "{refused}");

    let ready = TcpStream::connect(&server.address).unwrap();
    let ask = || head(&ready, "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")[9..12].to_owned();
    assert_eq!(ask(), "200");
    // Connections without a request yet have no other bound here.
    let flood: Vec<_> = (0..100).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let until = |status: &str| {
        let end = Instant::now() + PATIENCE;
        while ask() != status {
            assert!(Instant::now() < end, "not {status}:\n{}", server.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until("503");
    server.logged("cannot accept connections", |_| Some(()));
    drop((flood, open));
    // Without another connection being needed.
    until("200");
}
