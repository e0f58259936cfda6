//! A log that takes longer than clients wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use plenum_protocol::{ConnectRequest, Encoding, PushEvent, Request};
use tokio::time::Instant;

use super::{Client, Cluster, node_with, settings};
use crate::memory::MemoryLog;
use crate::{
    Announcement, Append, AppendError, Appended, ConnectionClaims, Live, Log, Page, Position, Read, ReadError,
    SubscriptionClaims, Tail, TokenError, Tokens,
};

/// Longest time that a client of the released SDKs waits for a reply.
const SDK: Duration = Duration::from_secs(5);

/// The in-process log, whose answers come late.
struct Slow {
    log: Arc<dyn Log>,
    /// Milliseconds that a subscription takes.
    subscribe_ms: AtomicU64,
    /// Milliseconds that finding an end takes.
    tail_ms: AtomicU64,
    /// Subscriptions asked for.
    subscribes: AtomicUsize,
}

impl Slow {
    fn new(log: Arc<dyn Log>) -> Arc<Self> {
        Arc::new(Slow {
            log,
            subscribe_ms: AtomicU64::new(0),
            tail_ms: AtomicU64::new(0),
            subscribes: AtomicUsize::new(0),
        })
    }
}

async fn takes(ms: &AtomicU64) {
    tokio::time::sleep(Duration::from_millis(ms.load(Ordering::Relaxed))).await;
}

#[async_trait]
impl Log for Slow {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.log.append(append)
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        takes(&self.tail_ms).await;
        self.log.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        takes(&self.tail_ms).await;
        self.log.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.subscribes.fetch_add(1, Ordering::Relaxed);
        takes(&self.subscribe_ms).await;
        self.log.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        self.log.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.log.remove(channel).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscribe_that_takes_too_long_fails_for_the_moment_before_the_client_gives_up() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    let mut client = Client::connect(&node).await;
    log.tail_ms.store(3_600_000, Ordering::Relaxed);
    let began = Instant::now();
    let error = client.subscribe("room:a", None).await.unwrap_err();
    assert!(began.elapsed() < SDK, "{:?}", began.elapsed());
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.presence("room:a").await.unwrap().len(), 0, "what was made is taken back");
    log.tail_ms.store(0, Ordering::Relaxed);
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(node.presence("room:a").await.unwrap().len(), 1);
}

/// Keys that never come.
struct Silent;

#[async_trait]
impl Tokens for Silent {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        std::future::pending().await
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        std::future::pending().await
    }
}

/// Without an answer its connection would be closed as stale after a while, from which no client comes back.
#[tokio::test(start_paused = true)]
async fn a_connect_that_takes_too_long_fails_for_the_moment() {
    let node = node_with(settings(), MemoryLog::single());
    node.replace_tokens(Arc::new(Silent));
    let mut client = Client::attach(&node, Encoding::Json);
    let began = Instant::now();
    let request = ConnectRequest { token: "anna".into(), ..ConnectRequest::default() };
    let error = client.call(Request::Connect(Box::new(request))).await.unwrap_err();
    assert!(began.elapsed() < SDK, "{:?}", began.elapsed());
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
}

/// Each attempt is given up before the log has answered, and yet the work is not begun anew each time.
#[tokio::test(start_paused = true)]
async fn a_channel_that_takes_longer_than_its_clients_wait_is_there_in_the_end() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    log.subscribe_ms.store(6_000, Ordering::Relaxed);
    let (mut client, began) = (Client::connect(&node).await, Instant::now());
    while client.subscribe("log:a", None).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "never");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert_eq!(log.subscribes.load(Ordering::Relaxed), 1);
}

/// Who was lost and came back is neither announced again nor told to have left because its subscribe needed two attempts.
#[tokio::test(start_paused = true)]
async fn a_resumed_client_whose_subscribe_takes_too_long_stays_for_the_others() {
    let mut cluster = Cluster::new();
    let log = Slow::new(cluster.broker.replica());
    cluster.log = Some(log.clone());
    let node = cluster.replica(settings());
    let (mut watch, _) = Client::connect_as(&node, "watch").await;
    watch.subscribe("room:a", None).await.unwrap();
    let (mut client, connected, pass) = Client::connect_with(&node, "anna", "").await;
    client.subscribe("room:a", None).await.unwrap();
    while !matches!(watch.push().await.event, PushEvent::Join(info) if info.client == connected.client) {}
    client.end(plenum_protocol::Disconnect::SLOW);
    let (mut back, resumed, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(resumed.client, connected.client);
    log.tail_ms.store(3_600_000, Ordering::Relaxed);
    assert_eq!(back.subscribe("room:a", None).await.unwrap_err().code, 100);
    log.tail_ms.store(0, Ordering::Relaxed);
    back.subscribe("room:a", None).await.unwrap();
    watch.idle(10).await;
    assert!(watch.inbox.is_empty(), "{:?}", watch.inbox);
    assert_eq!(node.presence("room:a").await.unwrap().len(), 2);
}
