//! One client that is looked at closely.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{DATE, SERVER, VIA};
use plenum_protocol::{
    Command, ConnectRequest, ConnectResult, Encoding, PublishRequest, PushEvent, Reply, ReplyResult, Request,
    SubscribeRequest, encode_command, replies,
};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::socket::{Stream, Target};

/// How the way to the server looked.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// From the first packet to the answer.
    pub took: Duration,
    /// The headers `Server` and `Via`: who answered, as far as they say.
    pub servers: Vec<String>,
    /// The header `Date`; empty when there is none.
    pub date: String,
    /// Certificates of whoever ended TLS, in DER, its own first.
    pub certificates: Vec<Vec<u8>>,
}

/// A connection over WebSocket, in JSON. Every call ends within the limit that it was opened with.
pub struct Probe {
    socket: WebSocketStream<Stream>,
    limit: Duration,
    commands: u32,
    /// Publications that arrived before they were asked for.
    arrived: Vec<(String, Bytes)>,
    /// Pings of the server so far.
    pings: u64,
}

impl Target {
    /// Opens a WebSocket and tells how.
    pub async fn probe(&self, limit: Duration) -> Result<(Probe, Handshake), String> {
        let started = Instant::now();
        let late = |_| format!("no answer within {limit:?}");
        let (socket, answer) = timeout(limit, self.handshake(Encoding::Json)).await.map_err(late)??;
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let handshake = Handshake {
            took: started.elapsed(),
            servers: [header(SERVER), header(VIA)].into_iter().flatten().collect(),
            date: header(DATE).unwrap_or_default(),
            certificates: socket.get_ref().certificates(),
        };
        Ok((Probe { socket, limit, commands: 0, arrived: Vec::new(), pings: 0 }, handshake))
    }
}

impl Probe {
    /// Says who we are; an empty token is anonymous.
    pub async fn connect(&mut self, token: &str) -> Result<ConnectResult, String> {
        let connect =
            ConnectRequest { token: token.to_owned(), name: "plenum-doctor".into(), ..ConnectRequest::default() };
        match self.call(Request::Connect(Box::new(connect))).await? {
            ReplyResult::Connect(result) => Ok(*result),
            other => Err(format!("connect was answered with {other:?}")),
        }
    }

    /// Subscribes to a channel.
    pub async fn subscribe(&mut self, channel: &str) -> Result<(), String> {
        let request = SubscribeRequest { channel: channel.to_owned(), ..SubscribeRequest::default() };
        self.call(Request::Subscribe(Box::new(request))).await.map(drop)
    }

    /// Publishes JSON; returns when it is acknowledged.
    pub async fn publish(&mut self, channel: &str, data: &str) -> Result<(), String> {
        let request =
            PublishRequest { channel: channel.to_owned(), data: data.to_owned().into(), ..PublishRequest::default() };
        self.call(Request::Publish(request)).await.map(drop)
    }

    /// Waits until this publication arrives.
    pub async fn expect(&mut self, channel: &str, data: &str) -> Result<(), String> {
        let deadline = Instant::now() + self.limit;
        let arrived =
            |arrived: &[(String, Bytes)]| arrived.iter().any(|(of, bytes)| of == channel && bytes == data.as_bytes());
        while !arrived(&self.arrived) {
            let limit = self.limit;
            let late = |_| format!("it did not arrive within {limit:?}");
            timeout_at(deadline, self.take(None)).await.map_err(late)??;
        }
        Ok(())
    }

    /// Stays for this long and answers pings. Returns how many came.
    pub async fn idle(&mut self, time: Duration) -> Result<u64, String> {
        let end = Instant::now() + time;
        let before = self.pings;
        while let Ok(taken) = timeout_at(end, self.take(None)).await {
            taken?;
        }
        Ok(self.pings - before)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // Whoever does not answer is left.
        let _ = timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    async fn call(&mut self, request: Request) -> Result<ReplyResult, String> {
        self.commands += 1;
        let id = self.commands;
        self.send(id, request).await?;
        let deadline = Instant::now() + self.limit;
        let limit = self.limit;
        let late = |_| format!("no reply within {limit:?}");
        loop {
            if let Some(answer) = timeout_at(deadline, self.take(Some(id))).await.map_err(late)?? {
                return answer;
            }
        }
    }

    async fn send(&mut self, id: u32, request: Request) -> Result<(), String> {
        let mut frame = Vec::new();
        encode_command(Encoding::Json, &Command { id, request }, &mut frame).map_err(|error| error.to_string())?;
        let text = String::from_utf8(frame).map_err(|error| error.to_string())?;
        self.socket.send(Message::text(text)).await.map_err(|error| error.to_string())
    }

    /// Takes one message in. Returns the answer to the command, if it was among it.
    async fn take(&mut self, wanted: Option<u32>) -> Result<Option<Result<ReplyResult, String>>, String> {
        let frame: Bytes = match self.socket.next().await {
            Some(Ok(Message::Text(text))) => text.into(),
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Close(Some(frame)))) => {
                return Err(format!("closed with {}: {}", frame.code, frame.reason));
            }
            Some(Ok(Message::Close(None))) | None => return Err("closed".into()),
            Some(Ok(_)) => return Ok(None),
            Some(Err(error)) => return Err(error.to_string()),
        };
        let mut answer = None;
        for reply in replies(Encoding::Json, &frame) {
            match reply.map_err(|error| error.to_string())? {
                Reply::Ping => {
                    self.pings += 1;
                    self.send(0, Request::Pong).await?;
                }
                Reply::Result { id, result } if Some(id) == wanted => answer = Some(Ok(result)),
                Reply::Error { id, error } if Some(id) == wanted => {
                    answer = Some(Err(format!("error {}: {}", error.code, error.message)));
                }
                Reply::Push(push) => match push.event {
                    PushEvent::Publication(publication) => self.arrived.push((push.channel, publication.data)),
                    PushEvent::Unsubscribe { code, reason } => {
                        return Err(format!("unsubscribed with {code}: {reason}"));
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        Ok(answer)
    }
}
