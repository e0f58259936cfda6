//! Sessions against the in-process log, presence and control, without a socket.

mod access;
mod bounds;
mod commands;
mod control;
mod copies;
mod draining;
mod following;
mod joining;
mod ledger;
mod limits;
mod lost;
mod recovery;
mod refusing;
mod resuming;
mod server_side;
mod slow;

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plenum_protocol::{
    ClientInfo, Command, ConnectRequest, ConnectResult, Disconnect, Encoding, ErrorReply, Publication, PublishRequest,
    Push, PushEvent, Reply, ReplyResult, Request, SubscribeRequest, SubscribeResult, encode_command, replies,
};
use plenum_telemetry::Metrics;

use crate::memory::{
    ControlBus, MemoryBroker, MemoryControl, MemoryLedger, MemoryLog, MemoryPresence, PresenceStore, QuotaStore,
    ReplicaBus,
};
use crate::{
    ConnectionClaims, Copies, Lease, Ledger, Link, Log, NamespaceOptions, Node, Parts, Presence, PresenceError,
    PresenceStats, Session, Settings, Shared, SubscribeOptions, SubscriptionClaims, TokenError, Tokens, Work,
};

/// Grants what a token spells out: `user[;exp=unix seconds][;channel=name][;client=id][;info=json][;subs=name,name]`. The signed
/// kind is tested where it is made.
struct Spelled;

impl Spelled {
    fn fields(token: &str) -> Result<(String, BTreeMap<&str, &str>), TokenError> {
        let mut parts = token.split(';');
        let user = parts.next().unwrap_or_default().to_owned();
        if user == "bad" {
            return Err(TokenError::Invalid { reason: "spelled so".into() });
        }
        if user == "late" {
            return Err(TokenError::Expired);
        }
        Ok((user, parts.filter_map(|part| part.split_once('=')).collect()))
    }
}

#[async_trait]
impl Tokens for Spelled {
    async fn connection(&self, token: &str) -> Result<ConnectionClaims, TokenError> {
        let (user, fields) = Self::fields(token)?;
        let expire_at = fields.get("exp").and_then(|exp| exp.parse().ok()).unwrap_or(0);
        let subscriptions = fields
            .get("subs")
            .map(|names| names.split(',').map(|name| (name.to_owned(), SubscribeOptions::default())).collect())
            .unwrap_or_default();
        let token_id = fields.get("jti").copied().unwrap_or_default().to_owned();
        let issued_at = fields.get("iat").and_then(|iat| iat.parse().ok()).unwrap_or(0);
        Ok(ConnectionClaims { user, expire_at, subscriptions, token_id, issued_at, ..ConnectionClaims::default() })
    }

    async fn subscription(&self, token: &str) -> Result<SubscriptionClaims, TokenError> {
        let (user, fields) = Self::fields(token)?;
        let field = |name| fields.get(name).map(|value| (*value).to_owned()).unwrap_or_default();
        let expire_at = field("exp").parse().unwrap_or(0);
        let options = SubscribeOptions { expire_at, info: field("info").into(), ..SubscribeOptions::default() };
        Ok(SubscriptionClaims {
            user,
            channel: field("channel"),
            client: field("client"),
            options,
            ..SubscriptionClaims::default()
        })
    }
}

/// A namespace in which everything is allowed and recovered.
fn open_namespace(name: &str, history_size: usize) -> NamespaceOptions {
    NamespaceOptions {
        name: name.into(),
        presence: true,
        history_size,
        history_ttl: Duration::from_secs(600),
        force_recovery: true,
        allow_subscribe_for_client: true,
        allow_subscribe_for_anonymous: true,
        allow_publish_for_client: true,
        allow_publish_for_anonymous: true,
        allow_presence_for_client: true,
        allow_presence_for_anonymous: true,
        allow_history_for_client: true,
        allow_history_for_anonymous: true,
        ..NamespaceOptions::default()
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.client.allow_anonymous_connect_without_token = true;
    settings.client.max_frames_per_second = 0;
    settings.channel.namespaces = vec![
        open_namespace("log", 1000),
        NamespaceOptions {
            history_size: 0,
            history_ttl: Duration::ZERO,
            force_recovery: false,
            ..open_namespace("live", 0)
        },
        NamespaceOptions { join_leave: true, force_push_join_leave: true, ..open_namespace("room", 10) },
        NamespaceOptions { name: "closed".into(), ..NamespaceOptions::default() },
    ];
    settings
}

/// Replicas of one cluster in one process.
struct Cluster {
    ledger: Arc<dyn Ledger>,
    replicas: Arc<ReplicaBus>,
    broker: Arc<MemoryBroker>,
    presence: Arc<PresenceStore>,
    quotas: Arc<QuotaStore>,
    control: Arc<ControlBus>,
    /// In place of the broker's.
    log: Option<Arc<dyn Log>>,
    /// Where replicas that start find blocks and revocations.
    copies: Option<Arc<dyn Copies>>,
    /// While true nobody can enter presence.
    away: Arc<AtomicBool>,
    /// Milliseconds before an entry is made.
    join_ms: Arc<AtomicU64>,
    started: u32,
}

/// Presence whose store may be away, or slow.
struct Faltering {
    presence: Arc<dyn Presence>,
    away: Arc<AtomicBool>,
    join_ms: Arc<AtomicU64>,
}

#[async_trait]
impl Presence for Faltering {
    async fn join(&self, channel: &str, member: Arc<ClientInfo>) -> Result<(), PresenceError> {
        if self.away.load(Ordering::Relaxed) {
            // As long as the other replicas need to say what they know of the client.
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Err(PresenceError::Unavailable { reason: "away".into() });
        }
        tokio::time::sleep(Duration::from_millis(self.join_ms.load(Ordering::Relaxed))).await;
        self.presence.join(channel, member).await
    }

    async fn leave(&self, channel: &str, client: &str) -> Result<(), PresenceError> {
        self.presence.leave(channel, client).await
    }

    async fn members(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, PresenceError> {
        self.presence.members(channel).await
    }

    async fn stats(&self, channel: &str) -> Result<PresenceStats, PresenceError> {
        self.presence.stats(channel).await
    }

    async fn renew(&self) -> Result<Lease, PresenceError> {
        self.presence.renew().await
    }

    async fn resign(&self) -> Result<(), PresenceError> {
        self.presence.resign().await
    }
}

impl Cluster {
    fn new() -> Self {
        Self::on(MemoryLedger::new())
    }

    fn on(ledger: Arc<dyn Ledger>) -> Self {
        Self {
            ledger,
            replicas: ReplicaBus::new(),
            broker: MemoryBroker::new(crate::memory::MemoryConfig::default()),
            presence: PresenceStore::new(),
            quotas: QuotaStore::new(),
            control: ControlBus::new(),
            log: None,
            copies: None,
            away: Arc::default(),
            join_ms: Arc::default(),
            started: 0,
        }
    }

    fn replica(&mut self, settings: Settings) -> Arc<Node> {
        self.started += 1;
        let name = format!("replica {}", self.started);
        let parts = Parts {
            settings,
            log: self.log.clone().unwrap_or_else(|| self.broker.replica()),
            presence: Arc::new(Faltering {
                presence: self.presence.replica(&name),
                away: self.away.clone(),
                join_ms: self.join_ms.clone(),
            }),
            control: self.control.side(),
            tokens: Arc::new(Spelled),
            metrics: Metrics::new().unwrap(),
            name,
            version: "0".into(),
        };
        let replicas = self.replicas.side();
        let quotas = self.quotas.replica(replicas.clone());
        let (ledger, copies) = (self.ledger.clone(), self.copies.clone());
        let shared = Shared { ledger, replicas, quotas: Some(quotas), copies, ..Shared::single() };
        let node = Node::with_shared(parts, shared).unwrap();
        node.start();
        node
    }
}

fn node_with(settings: Settings, log: Arc<dyn Log>) -> Arc<Node> {
    let node = Node::new(Parts {
        settings,
        log,
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(Spelled),
        metrics: Metrics::new().unwrap(),
        name: "test".into(),
        version: "0".into(),
    })
    .unwrap();
    node.start();
    node
}

fn node(settings: Settings) -> Arc<Node> {
    node_with(settings, MemoryLog::single())
}

/// What a transport and an SDK would be, around a real session.
struct Client {
    session: Session,
    encoding: Encoding,
    inbox: VecDeque<Reply>,
    closed: Option<Disconnect>,
    next_id: u32,
    /// While true the client takes nothing from the outbox, as a peer that does not read.
    stalled: bool,
}

impl Client {
    fn attach(node: &Arc<Node>, encoding: Encoding) -> Self {
        Self::around(node.accept(Link { encoding, user: None, address: None }).unwrap(), encoding)
    }

    fn around(session: Session, encoding: Encoding) -> Self {
        Self { session, encoding, inbox: VecDeque::new(), closed: None, next_id: 0, stalled: false }
    }

    async fn connect(node: &Arc<Node>) -> Self {
        Self::connect_as(node, "").await.0
    }

    async fn connect_as(node: &Arc<Node>, token: &str) -> (Self, ConnectResult) {
        let mut client = Self::attach(node, Encoding::Json);
        let request = ConnectRequest { token: token.into(), ..ConnectRequest::default() };
        match client.call(Request::Connect(Box::new(request))).await {
            Ok(ReplyResult::Connect(result)) => (client, *result),
            other => panic!("not connected: {other:?}"),
        }
    }

    /// Connects with what an SDK carries in `data`; also the pass of the reply.
    async fn connect_with(node: &Arc<Node>, token: &str, pass: &str) -> (Self, ConnectResult, String) {
        let mut client = Client::attach(node, Encoding::Json);
        let data = match pass {
            "" => Bytes::new(),
            pass => serde_json::json!({ "plenum": { "resume": pass } }).to_string().into(),
        };
        let request = ConnectRequest { token: token.into(), data, ..ConnectRequest::default() };
        match client.call(Request::Connect(Box::new(request))).await {
            Ok(ReplyResult::Connect(result)) => {
                let pass = Self::pass(&result);
                (client, *result, pass)
            }
            other => panic!("not connected: {other:?}"),
        }
    }

    fn pass(result: &ConnectResult) -> String {
        let data: serde_json::Value = serde_json::from_slice(&result.data).unwrap();
        data["plenum"]["resume"].as_str().unwrap().to_owned()
    }

    /// The pass in the reply to the connect `id`.
    async fn connected(&mut self, id: u32) -> String {
        match self.answer(id).await {
            Ok(ReplyResult::Connect(result)) => Self::pass(&result),
            other => panic!("not connected: {other:?}"),
        }
    }

    /// Ends as a transport would have it.
    fn end(self, reason: Disconnect) {
        self.session.end(reason);
    }

    fn send(&mut self, request: Request) -> u32 {
        self.next_id += 1;
        let id = self.next_id;
        let mut frame = Vec::new();
        encode_command(self.encoding, &Command { id, request }, &mut frame).unwrap();
        self.session.receive(&frame);
        id
    }

    async fn call(&mut self, request: Request) -> Result<ReplyResult, ErrorReply> {
        let id = self.send(request);
        self.answer(id).await
    }

    /// The reply to command `id`; pushes stay in the inbox.
    async fn answer(&mut self, id: u32) -> Result<ReplyResult, ErrorReply> {
        let mut seen = 0;
        loop {
            while seen < self.inbox.len() {
                match &self.inbox[seen] {
                    Reply::Result { id: of, .. } | Reply::Error { id: of, .. } if *of == id => {
                        return match self.inbox.remove(seen) {
                            Some(Reply::Result { result, .. }) => Ok(result),
                            Some(Reply::Error { error, .. }) => Err(error),
                            other => panic!("{other:?}"),
                        };
                    }
                    _ => seen += 1,
                }
            }
            assert!(self.more().await, "closed with {:?} before the reply to {id}", self.closed);
        }
    }

    async fn subscribe(&mut self, channel: &str, since: Option<(u64, &str)>) -> Result<SubscribeResult, ErrorReply> {
        let (offset, epoch) = since.unwrap_or_default();
        let request = SubscribeRequest {
            channel: channel.into(),
            recover: since.is_some(),
            offset,
            epoch: epoch.into(),
            ..SubscribeRequest::default()
        };
        match self.call(Request::Subscribe(Box::new(request))).await? {
            ReplyResult::Subscribe(result) => Ok(*result),
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&mut self, channel: &str, data: &str) -> Result<(), ErrorReply> {
        let request =
            PublishRequest { channel: channel.into(), data: data.to_owned().into(), ..PublishRequest::default() };
        self.call(Request::Publish(request)).await.map(|_| ())
    }

    /// Waits until something came in; false once closed.
    async fn more(&mut self) -> bool {
        poll_fn(|cx| {
            loop {
                self.session.poll(cx);
                let limit = if self.stalled { 0 } else { 64 };
                let mut work = Work::default();
                let polled = self.session.outbox().poll_work(cx, &mut work, limit, 64 * 1024);
                if work.timer {
                    self.session.on_timer();
                }
                let bytes = work.messages.iter().map(Bytes::len).sum();
                for message in &work.messages {
                    self.inbox.extend(replies(self.encoding, message).map(|reply| reply.unwrap()));
                }
                if !work.messages.is_empty() && self.session.outbox().written(work.messages.len(), bytes) {
                    self.session.on_flushed();
                }
                if let Some(disconnect) = work.close {
                    self.closed = Some(disconnect);
                    return Poll::Ready(!work.messages.is_empty());
                }
                if !work.messages.is_empty() {
                    return Poll::Ready(true);
                }
                if polled.is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Lets the session work until `seconds` of test time are over.
    async fn idle(&mut self, seconds: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        while let Ok(true) = tokio::time::timeout_at(deadline, self.more()).await {}
    }

    async fn push(&mut self) -> Push {
        loop {
            if let Some(index) = self.inbox.iter().position(|reply| matches!(reply, Reply::Push(_))) {
                match self.inbox.remove(index) {
                    Some(Reply::Push(push)) => return push,
                    other => panic!("{other:?}"),
                }
            }
            assert!(self.more().await, "closed with {:?} before a push", self.closed);
        }
    }

    async fn publication(&mut self) -> Publication {
        match self.push().await.event {
            PushEvent::Publication(publication) => publication,
            other => panic!("{other:?}"),
        }
    }

    /// How the server closed the connection.
    async fn close(&mut self) -> Disconnect {
        while self.closed.is_none() {
            if !self.more().await {
                break;
            }
        }
        self.closed.clone().expect("closed")
    }
}

fn text(publication: &Publication) -> &str {
    std::str::from_utf8(&publication.data).unwrap()
}

async fn api_publish(node: &Arc<Node>, channel: &str, data: impl ToString) -> crate::Published {
    let publish = crate::Publish { channel: channel.into(), data: data.to_string().into(), ..Default::default() };
    node.publish(publish).await.unwrap()
}
