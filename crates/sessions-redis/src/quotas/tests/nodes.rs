//! Limits of two nodes that share a real Redis.

use std::future::poll_fn;
use std::task::Poll;

use plenum_channels::memory::{MemoryControl, MemoryLedger, MemoryLog, MemoryPresence};
use plenum_channels::{
    ConnectionClaims, Fallback, Link, Node, Parts, Session, Settings, Shared, SubscriptionClaims, TokenError, Tokens,
    Work, rate,
};
use plenum_protocol::{Disconnect, Encoding};
use plenum_telemetry::{Limit, LimitOutcome, Metrics};
use serde_json::{Value, json};

use super::*;

struct NoTokens;

#[async_trait]
impl Tokens for NoTokens {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        Err(TokenError::Expired)
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        Err(TokenError::Expired)
    }
}

fn node(replicas: Arc<dyn Replicas>, quotas: Arc<RedisQuotas>, away: Fallback) -> Arc<Node> {
    let mut settings = Settings::default();
    settings.client.user_connection_limit = 2;
    settings.client.rate_limit.user.publish = rate::parse("10/1h");
    settings.client.on_unavailable.user_connections = away;
    settings.channel.without_namespace.subscriber_limit = 1;
    settings.channel.without_namespace.allow_subscribe_for_client = true;
    settings.channel.without_namespace.allow_publish_for_client = true;
    let parts = Parts {
        settings,
        log: MemoryLog::single(),
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(NoTokens),
        metrics: Metrics::new().unwrap(),
        name: "test".into(),
        version: "0".into(),
    };
    let node = Node::with_shared(
        parts,
        Shared { ledger: MemoryLedger::new(), replicas, quotas: Some(quotas), ..Shared::single() },
    );
    let node = node.unwrap();
    node.start();
    node
}

/// A connection without a socket, for one command at a time.
struct Peer(Session);

impl Peer {
    /// The error code or close code, if it was refused.
    async fn connect(node: &Arc<Node>, user: &str) -> Result<Self, u64> {
        let link = Link { encoding: Encoding::Json, user: Some(user.into()), address: None };
        let mut peer = Self(node.accept(link).unwrap());
        peer.call(json!({ "connect": {} })).await?;
        Ok(peer)
    }

    async fn subscribe(&mut self, channel: &str) -> Result<(), u64> {
        self.call(json!({ "subscribe": { "channel": channel } })).await
    }

    async fn publish(&mut self) -> Result<(), u64> {
        self.call(json!({ "publish": { "channel": "news", "data": 1 } })).await
    }

    async fn call(&mut self, mut command: Value) -> Result<(), u64> {
        command["id"] = json!(1);
        self.0.receive(command.to_string().as_bytes());
        let mut work = Work::default();
        loop {
            let turn = poll_fn(|cx| {
                self.0.poll(cx);
                let ready = self.0.outbox().clone().poll_work(cx, &mut work, 64, 65536).is_ready();
                if ready { Poll::Ready(()) } else { Poll::Pending }
            });
            tokio::time::timeout(Duration::from_secs(30), turn).await.unwrap();
            if std::mem::take(&mut work.timer) {
                self.0.on_timer();
            }
            let messages: Vec<_> = work.messages.drain(..).collect();
            self.0.outbox().written(messages.len(), messages.iter().map(|message| message.len()).sum());
            for line in messages.iter().flat_map(|message| message.split(|byte| *byte == b'\n')) {
                let message: Value = serde_json::from_slice(line).unwrap();
                if message["id"] == json!(1) {
                    return message["error"]["code"].as_u64().map_or(Ok(()), Err);
                }
            }
            if let Some(close) = work.close.take() {
                return Err(close.code.into());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_their_limits() {
    let server = RedisServer::start().await.unwrap();
    let (sides, quotas) = replicas(&server.config(), 2, HOUR).await;
    let one = node(sides[0].clone(), quotas[0].clone(), Fallback::Open);
    let two = node(sides[1].clone(), quotas[1].clone(), Fallback::Closed);
    let full = u64::from(Disconnect::CONNECTION_LIMIT.code);

    let mut here = Peer::connect(&one, "ann").await.ok().unwrap();
    let mut there = Peer::connect(&two, "ann").await.ok().unwrap();
    assert_eq!(Peer::connect(&one, "ann").await.err(), Some(full));
    assert_eq!(one.metrics().limits(Limit::UserConnections, LimitOutcome::Cluster).get(), 1);

    assert_eq!(here.subscribe("room").await, Ok(()));
    assert_eq!(there.subscribe("room").await, Err(106));
    assert_eq!(there.subscribe("other").await, Ok(()));

    for _ in 0..8 {
        assert_eq!(here.publish().await, Ok(()));
    }
    // The other replica hears of it within 200 ms of its own first publish, long before its own ten are used up.
    let mut published = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    while there.publish().await.is_ok() {
        published += 1;
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(1000)).await;
    }
    assert!(published <= 6, "{published} more than the eight");
    assert_eq!(there.publish().await, Err(111));

    drop(here);
    let deadline = Instant::now() + Duration::from_secs(60);
    while there.subscribe("room").await.is_err() {
        assert!(Instant::now() < deadline, "the place in the room is not free");
        sleep(Duration::from_millis(50)).await;
    }

    server.pause().unwrap();
    let held = Peer::connect(&one, "dora").await;
    assert!(held.is_ok(), "open: {:?}", held.err());
    assert_eq!(Peer::connect(&two, "dora").await.err(), Some(100), "closed, and temporary");
    assert_eq!(one.metrics().limits(Limit::UserConnections, LimitOutcome::LetIn).get(), 1);
    server.resume().unwrap();
    let mut second = None;
    let deadline = Instant::now() + Duration::from_secs(60);
    while second.is_none() {
        assert!(Instant::now() < deadline);
        second = Peer::connect(&two, "dora").await.ok();
    }
    until("who was let in counts", async || Peer::connect(&two, "dora").await.err() == Some(full)).await;
}
