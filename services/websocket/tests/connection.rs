//! The task of a connection against a double of the session.
#![allow(clippy::unwrap_used)] // Functions that tests share say what they expect by unwrapping.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Context;

use bytes::Bytes;
use common::*;
use futures_util::SinkExt;
use futures_util::task::AtomicWaker;
use plenum_channels::{AcceptError, Link, Outbox, OutboxLimits};
use plenum_protocol::{Disconnect, Encoding};
use plenum_telemetry::Metrics;
use plenum_websocket::{Door, Endpoint, Kind};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// What the double saw, in order.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Frame(Kind, String),
    Timer,
    Flushed,
    End(u16),
}

/// The test's side of the double.
struct Control {
    outbox: Arc<Outbox>,
    held: AtomicBool,
    waker: AtomicWaker,
    polls: AtomicUsize,
}

impl Control {
    fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        self.waker.wake();
    }
}

struct Double {
    control: Arc<Control>,
    seen: UnboundedSender<Seen>,
}

impl Endpoint for Double {
    fn outbox(&self) -> &Arc<Outbox> {
        &self.control.outbox
    }

    fn receive(&mut self, kind: Kind, payload: &[u8]) {
        self.seen.send(Seen::Frame(kind, String::from_utf8_lossy(payload).into_owned())).unwrap();
    }

    fn wants_frames(&self) -> bool {
        !self.control.held.load(Ordering::SeqCst)
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        self.control.polls.fetch_add(1, Ordering::SeqCst);
        self.control.waker.register(cx.waker());
    }

    fn on_timer(&mut self) {
        self.seen.send(Seen::Timer).unwrap();
    }

    fn on_flushed(&mut self) {
        self.seen.send(Seen::Flushed).unwrap();
    }

    fn end(self, reason: Disconnect) {
        self.seen.send(Seen::End(reason.code)).unwrap();
    }
}

struct Doubles(UnboundedSender<(Arc<Control>, UnboundedReceiver<Seen>)>);

impl Door for Doubles {
    type Endpoint = Double;

    fn accept(&self, link: Link) -> Result<Double, AcceptError> {
        let outbox = Arc::new(Outbox::new(link.encoding, OutboxLimits { max_bytes: 1 << 20 }));
        let control = Arc::new(Control {
            outbox,
            held: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            polls: AtomicUsize::new(0),
        });
        let (seen, sees) = unbounded_channel();
        self.0.send((control.clone(), sees)).unwrap();
        Ok(Double { control, seen })
    }
}

struct Bench {
    rig: Rig<Doubles>,
    client: Client,
    control: Arc<Control>,
    sees: UnboundedReceiver<Seen>,
}

async fn bench(query: &str) -> Bench {
    let (doubles, mut made) = unbounded_channel();
    let rig = serve(Doubles(doubles), config(), Metrics::new().unwrap());
    let (client, _) = rig.open(rig.request(query)).await.unwrap();
    let (control, sees) = made.recv().await.unwrap();
    Bench { rig, client, control, sees }
}

impl Bench {
    async fn seen(&mut self) -> Seen {
        timeout(LONG, self.sees.recv()).await.expect("nothing seen").expect("the double is gone")
    }
}

fn frame(text: &str) -> Seen {
    Seen::Frame(Kind::Text, text.to_owned())
}

#[tokio::test]
async fn queued_messages_leave_in_one_frame_and_one_write() {
    let mut bench = bench("").await;
    bench.control.outbox.push_all((1..20).map(|n| Bytes::from(n.to_string())));
    bench.control.outbox.open(Bytes::from_static(b"0"));
    let lines: Vec<String> = text(&mut bench.client).await.lines().map(str::to_owned).collect();
    assert_eq!(lines, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(bench.seen().await, Seen::Flushed);
    assert_eq!(bench.rig.metrics.socket_writes.get(), 1);
    assert_eq!(bench.control.outbox.pending_bytes(), 0);
}

#[tokio::test]
async fn protobuf_messages_stand_one_behind_the_other() {
    let mut bench = bench("?cf_protocol=protobuf").await;
    assert_eq!(bench.control.outbox.encoding(), Encoding::Protobuf);
    bench.control.outbox.push_all([Bytes::from_static(b"b"), Bytes::from_static(b"c")]);
    bench.control.outbox.open(Bytes::from_static(b"a"));
    assert!(matches!(next(&mut bench.client).await, Some(Ok(Message::Binary(data))) if &data[..] == b"abc"));
}

#[tokio::test]
async fn joined_frames_are_bounded() {
    let mut bench = bench("").await;
    let sized = |length: usize| Bytes::from("m".repeat(length));
    bench.control.outbox.push_all([sized(25_535), sized(40_000), sized(25_536)]);
    bench.control.outbox.open(sized(40_000));
    let mut lengths = Vec::new();
    while lengths.iter().sum::<usize>() < 131_072 {
        lengths.push(text(&mut bench.client).await.len());
    }
    // A line feed takes a byte: two messages of 65,536 bytes in all do not share a frame.
    assert_eq!(lengths, [65_536, 40_000, 25_536]);
}

#[tokio::test]
async fn an_endpoint_that_wants_nothing_is_not_given_anything() {
    let mut bench = bench("").await;
    bench.control.hold(true);
    for n in 0..100 {
        send(&mut bench.client, &n.to_string()).await;
    }
    // The task is polled again and still reads nothing.
    let polls = bench.control.polls.load(Ordering::SeqCst);
    bench.control.waker.wake();
    until("polled", || bench.control.polls.load(Ordering::SeqCst) > polls).await;
    assert!(bench.sees.is_empty());
    bench.control.hold(false);
    for n in 0..100 {
        assert_eq!(bench.seen().await, frame(&n.to_string()));
    }
}

#[tokio::test]
async fn timers_and_pings_are_answered() {
    let mut bench = bench("").await;
    bench.control.outbox.fire_timer();
    assert_eq!(bench.seen().await, Seen::Timer);
    bench.client.send(Message::Ping(Bytes::from_static(b"hi"))).await.unwrap();
    assert!(matches!(next(&mut bench.client).await, Some(Ok(Message::Pong(data))) if &data[..] == b"hi"));
}

#[tokio::test]
async fn an_ordered_close_comes_behind_what_was_queued() {
    let mut bench = bench("").await;
    bench.control.outbox.open(Bytes::from_static(b"last words"));
    bench.control.outbox.close(Disconnect::custom(4000, "ö".repeat(100)));
    assert_eq!(text(&mut bench.client).await, "last words");
    let (code, reason) = closed(&mut bench.client).await;
    assert_eq!(code, 4000);
    assert_eq!(reason, "ö".repeat(61));
    assert_eq!(bench.seen().await, Seen::Flushed);
    assert_eq!(bench.seen().await, Seen::End(4000));
    drop(bench.client);
    timeout(LONG, bench.rig.websocket.closed()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_answers_the_close_is_not_waited_for() {
    let mut bench = bench("").await;
    bench.control.outbox.close(Disconnect::SHUTDOWN);
    assert_eq!(bench.seen().await, Seen::End(3001));
    // The client's socket stays open, unread.
    timeout(LONG, bench.rig.websocket.closed()).await.unwrap();
    drop(bench.client);
}

#[tokio::test]
async fn a_clients_close_is_answered_with_its_code() {
    let mut bench = bench("").await;
    let frame = CloseFrame { code: 4321.into(), reason: "bye".into() };
    bench.client.close(Some(frame)).await.unwrap();
    assert_eq!(closed(&mut bench.client).await.0, 4321);
    assert_eq!(bench.seen().await, Seen::End(3000));
    assert!(bench.sees.recv().await.is_none());
}

#[tokio::test]
async fn a_lost_client_ends_the_session() {
    let mut bench = bench("").await;
    send(&mut bench.client, "before").await;
    bench.client.get_mut().shutdown().await.unwrap();
    assert_eq!(bench.seen().await, frame("before"));
    assert_eq!(bench.seen().await, Seen::End(3000));
    timeout(LONG, bench.rig.websocket.closed()).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_not_polled() {
    let mut bench = bench("").await;
    send(&mut bench.client, "x").await;
    assert_eq!(bench.seen().await, frame("x"));
    let polls = bench.control.polls.load(Ordering::SeqCst);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(bench.control.polls.load(Ordering::SeqCst) <= polls + 1);
}
