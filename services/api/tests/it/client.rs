//! A connected client without a socket.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use plenum_channels::{Link, Node, Work};
use plenum_protocol::{Disconnect, Encoding};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// Long enough for any machine; reached only when something is broken.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Client {
    /// Its client id.
    pub id: String,
    frames: mpsc::UnboundedSender<String>,
    events: mpsc::UnboundedReceiver<Event>,
}

enum Event {
    Message(Value),
    Closed(Disconnect),
}

impl Client {
    /// Connects `user`, as a proxy in front would vouch for it.
    pub async fn connect(node: &Arc<Node>, user: &str) -> Self {
        let mut session =
            node.accept(Link { encoding: Encoding::Json, user: Some(user.into()), address: None }).unwrap();
        let (frames, mut outgoing) = mpsc::unbounded_channel::<String>();
        let (arrived, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut work = Work::default();
            loop {
                let finished = poll_fn(|cx| {
                    let mut ready = false;
                    while session.wants_frames() {
                        match outgoing.poll_recv(cx) {
                            Poll::Ready(Some(frame)) => session.receive(frame.as_bytes()),
                            Poll::Ready(None) => return Poll::Ready(true),
                            Poll::Pending => break,
                        }
                        ready = true;
                    }
                    session.poll(cx);
                    ready |= session.outbox().clone().poll_work(cx, &mut work, 64, 65536).is_ready();
                    if ready { Poll::Ready(false) } else { Poll::Pending }
                })
                .await;
                if std::mem::take(&mut work.timer) {
                    session.on_timer();
                }
                let bytes = work.messages.iter().map(|message| message.len()).sum();
                let count = work.messages.len();
                for message in work.messages.drain(..) {
                    for line in message.split(|byte| *byte == b'\n') {
                        let _ = arrived.send(Event::Message(serde_json::from_slice(line).unwrap()));
                    }
                }
                if session.outbox().written(count, bytes) {
                    session.on_flushed();
                }
                if let Some(close) = work.close.take() {
                    let _ = arrived.send(Event::Closed(close.clone()));
                    return session.end(close);
                }
                if finished {
                    return session.end(Disconnect::CONNECTION_CLOSED);
                }
            }
        });
        let mut client = Self { id: String::new(), frames, events };
        client.send(json!({ "id": 1, "connect": {} }));
        let reply = client.message().await;
        client.id = reply["connect"]["client"].as_str().unwrap_or_else(|| panic!("{reply}")).to_owned();
        client
    }

    pub async fn subscribe(&mut self, channel: &str) {
        self.send(json!({ "id": 2, "subscribe": { "channel": channel } }));
        let reply = self.message().await;
        assert!(reply["subscribe"].is_object(), "{reply}");
    }

    fn send(&self, command: Value) {
        self.frames.send(command.to_string()).unwrap();
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(DEADLINE, self.events.recv()).await.expect("nothing came").expect("the session ended")
    }

    /// The next message, server pings left out.
    pub async fn message(&mut self) -> Value {
        loop {
            match self.event().await {
                Event::Message(message) if message == json!({}) => {}
                Event::Message(message) => return message,
                Event::Closed(close) => panic!("closed: {close}"),
            }
        }
    }

    /// The push that comes next.
    pub async fn push(&mut self) -> Value {
        let mut message = self.message().await;
        assert!(message["push"].is_object(), "{message}");
        message["push"].take()
    }

    /// Waits for the connection to be closed.
    pub async fn closed(&mut self) -> Disconnect {
        loop {
            if let Event::Closed(close) = self.event().await {
                return close;
            }
        }
    }
}
