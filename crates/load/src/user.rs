//! One user: connects, subscribes, publishes, listens, and comes back.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hashbrown::HashMap;
use plenum_protocol::{
    Command, ConnectRequest, Encoding, Publication, PublishRequest, Push, PushEvent, Reply, ReplyResult, Request,
    SubscribeRequest, encode_command, replies,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::book::Book;
use crate::socket::Stream;
use crate::{MIN_SIZE, Phase, Shared};

type Socket = WebSocketStream<Stream>;

/// Limit of the replies to connect and subscribe.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before connecting again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a publication says.
#[derive(Serialize, Deserialize)]
struct Body<'a> {
    /// Publisher.
    u: u32,
    /// Its number among the publisher's.
    n: u32,
    /// Microseconds since the test began.
    t: u64,
    /// Fills the size.
    #[serde(borrow)]
    p: &'a str,
}

pub(crate) struct User {
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
    book: Book,
    channel: String,
    /// Offset and epoch to recover from.
    position: Option<(u64, String)>,
    next: u32,
    commands: u32,
    /// Publications that were sent and not answered, by command.
    unanswered: HashMap<u32, u32>,
    /// What came in one frame with the answer to a call, and behind it.
    behind: Vec<Reply>,
    padding: String,
}

impl User {
    pub(crate) fn new(shared: Arc<Shared>, number: usize) -> Self {
        let channel = format!("{}{}", shared.plan.channel, shared.session_of(number));
        let padding = "x".repeat(shared.plan.size.saturating_sub(MIN_SIZE));
        Self {
            phase: shared.phase.clone(),
            shared,
            book: Book::new(number),
            channel,
            position: None,
            next: 0,
            commands: 0,
            unanswered: HashMap::new(),
            behind: Vec::new(),
            padding,
        }
    }

    /// Lives until the test ends.
    pub(crate) async fn live(mut self) -> Book {
        let mut pause = FIRST_PAUSE;
        while *self.phase.borrow() < Phase::End {
            self.shared.counts.lock().attempts += 1;
            match self.join().await {
                Ok(mut socket) => {
                    pause = FIRST_PAUSE;
                    self.ready();
                    let ended = self.take_part(&mut socket).await;
                    self.unanswered.clear();
                    self.shared.counts.lock().ready -= 1;
                    match ended {
                        ControlFlow::Break(()) => {
                            let _ = timeout(PATIENCE, socket.close(None)).await;
                            break;
                        }
                        ControlFlow::Continue(()) => self.shared.counts.lock().reconnects += 1,
                    }
                }
                Err(reason) => {
                    self.shared.counts.lock().trouble.get_or_insert(reason);
                }
            }
            let mut phase = self.phase.clone();
            tokio::select! {
                () = sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                _ = phase.wait_for(|phase| *phase == Phase::End) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.book
    }

    fn ready(&mut self) {
        self.book.joined = true;
        let mut counts = self.shared.counts.lock();
        counts.connected += 1;
        counts.ready += 1;
    }

    /// Connects and subscribes.
    async fn join(&mut self) -> Result<Socket, String> {
        self.behind.clear();
        let plan = &self.shared.plan;
        let mut socket = plan.target.open(plan.encoding).await?;
        let name = format!("load-{}", self.book.user);
        let token = plan.token.as_ref().map(|token| token(&name)).unwrap_or_default();
        let connect = ConnectRequest { token, name: "plenum-load".into(), ..ConnectRequest::default() };
        self.call(&mut socket, Request::Connect(Box::new(connect))).await?;
        let (offset, epoch) = self.position.clone().unwrap_or_default();
        let recover = self.position.is_some();
        // Asked for also where the namespace only allows it: without it, what comes during a reconnect is gone.
        let recoverable = true;
        let channel = self.channel.clone();
        let request = SubscribeRequest { channel, recoverable, recover, offset, epoch, ..SubscribeRequest::default() };
        match self.call(&mut socket, Request::Subscribe(Box::new(request))).await? {
            ReplyResult::Subscribe(result) => {
                if recover && !result.recovered {
                    self.shared.counts.lock().unrecovered += 1;
                }
                self.position = result.recoverable.then(|| (result.offset, result.epoch.clone()));
                for publication in &result.publications {
                    self.take(publication);
                }
            }
            other => return Err(format!("subscribe was answered with {other:?}")),
        }
        // Only now: what was published meanwhile comes after what was recovered.
        for reply in std::mem::take(&mut self.behind) {
            self.other(&mut socket, reply).await?;
        }
        Ok(socket)
    }

    async fn call(&mut self, socket: &mut Socket, request: Request) -> Result<ReplyResult, String> {
        let id = self.send(socket, request).await?;
        let answer = async {
            loop {
                let frame = self.frame(socket).await?;
                let mut answer = None;
                for reply in replies(self.shared.plan.encoding, &frame) {
                    match reply.map_err(|error| error.to_string())? {
                        Reply::Result { id: of, result } if of == id => answer = Some(Ok(result)),
                        Reply::Error { id: of, error } if of == id => {
                            answer = Some(Err(format!("error {}: {}", error.code, error.message)));
                        }
                        other if answer.is_some() => self.behind.push(other),
                        other => self.other(socket, other).await?,
                    }
                }
                if let Some(answer) = answer {
                    return answer;
                }
            }
        };
        timeout(PATIENCE, answer).await.map_err(|_| "no reply within 10 s".to_owned())?
    }

    async fn send(&mut self, socket: &mut Socket, request: Request) -> Result<u32, String> {
        self.commands += 1;
        let id = if matches!(request, Request::Pong) { 0 } else { self.commands };
        let encoding = self.shared.plan.encoding;
        let mut frame = Vec::new();
        encode_command(encoding, &Command { id, request }, &mut frame).map_err(|error| error.to_string())?;
        let message = match encoding {
            Encoding::Json => Message::text(String::from_utf8(frame).map_err(|error| error.to_string())?),
            Encoding::Protobuf => Message::binary(frame),
        };
        socket.send(message).await.map_err(|error| error.to_string())?;
        Ok(id)
    }

    /// The next frame with messages; an error when the socket is closed.
    async fn frame(&self, socket: &mut Socket) -> Result<Bytes, String> {
        loop {
            return match socket.next().await {
                Some(Ok(Message::Text(text))) => Ok(text.into()),
                Some(Ok(Message::Binary(bytes))) => Ok(bytes),
                Some(Ok(Message::Close(Some(frame)))) => Err(format!("closed with {}: {}", frame.code, frame.reason)),
                Some(Ok(Message::Close(None))) | None => Err("closed".into()),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Err(error.to_string()),
            };
        }
    }

    /// Publishes and listens; breaks when the test ends, continues when the connection did.
    async fn take_part(&mut self, socket: &mut Socket) -> ControlFlow<()> {
        let mut phase = self.phase.clone();
        let mut beats = self.beats();
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::End {
                return ControlFlow::Break(());
            }
            tokio::select! {
                changed = phase.changed() => {
                    if changed.is_err() {
                        return ControlFlow::Break(());
                    }
                    // Beats that came due while others connected would all be made up for at once, and again after each interval.
                    beats = self.beats();
                }
                _ = beats.tick(), if now == Phase::Run => {
                    if self.publish(socket).await.is_err() {
                        return ControlFlow::Continue(());
                    }
                }
                frame = self.frame(socket) => {
                    let Ok(frame) = frame else { return ControlFlow::Continue(()) };
                    for reply in replies(self.shared.plan.encoding, &frame) {
                        let Ok(reply) = reply else { return ControlFlow::Continue(()) };
                        if self.other(socket, reply).await.is_err() {
                            return ControlFlow::Continue(());
                        }
                    }
                }
            }
        }
    }

    /// Users publish at different moments of the interval.
    fn beats(&self) -> Interval {
        let interval = self.shared.plan.interval;
        let mut beats = interval_at(Instant::now() + interval.mul_f64(rand::random()), interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats
    }

    async fn publish(&mut self, socket: &mut Socket) -> Result<(), String> {
        let number = self.next;
        self.next += 1;
        let t = self.shared.begin.elapsed().as_micros() as u64;
        let body = Body { u: self.book.user as u32, n: number, t, p: &self.padding };
        let data = serde_json::to_vec(&body).map_err(|error| error.to_string())?;
        let request = PublishRequest { channel: self.channel.clone(), data: data.into(), ..PublishRequest::default() };
        self.shared.counts.lock().sent += 1;
        let id = self.send(socket, Request::Publish(request)).await?;
        self.unanswered.insert(id, number);
        Ok(())
    }

    /// Everything that is not the answer to a call.
    async fn other(&mut self, socket: &mut Socket, reply: Reply) -> Result<(), String> {
        match reply {
            Reply::Ping => {
                self.send(socket, Request::Pong).await?;
            }
            Reply::Result { id, result: ReplyResult::Publish } => {
                if let Some(number) = self.unanswered.remove(&id) {
                    self.book.acknowledged.insert(number);
                    self.shared.counts.lock().acknowledged += 1;
                }
            }
            Reply::Error { id, error } if self.unanswered.remove(&id).is_some() => {
                let mut counts = self.shared.counts.lock();
                counts.refused += 1;
                counts.trouble.get_or_insert_with(|| format!("publish: error {}: {}", error.code, error.message));
            }
            Reply::Push(Push { channel, event }) if channel == self.channel => match event {
                PushEvent::Publication(publication) => self.take(&publication),
                PushEvent::Unsubscribe { code, reason } => return Err(format!("unsubscribed with {code}: {reason}")),
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn take(&mut self, publication: &Publication) {
        if let Some((offset, _)) = &mut self.position
            && publication.offset > 0
        {
            *offset = publication.offset;
        }
        let Ok(body) = serde_json::from_slice::<Body<'_>>(&publication.data) else { return };
        let now = self.shared.begin.elapsed().as_micros() as u64;
        self.book.enter(body.u, body.n);
        let mut counts = self.shared.counts.lock();
        counts.received += 1;
        counts.latency.saturating_record(now.saturating_sub(body.t).max(1));
    }
}
