//! A drain moves connections at a steady pace, each after what it had under way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use plenum_protocol::{Disconnect, Encoding, PublishRequest, Request};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Client, node, node_with, settings};
use crate::memory::MemoryLog;
use crate::{
    AcceptError, Announcement, Append, AppendError, Appended, Link, Live, Log, Node, Page, Position, Read, ReadError,
    Tail,
};

/// A log whose acknowledgements wait for a sign.
struct Held {
    log: Arc<MemoryLog>,
    go: Arc<Notify>,
}

#[async_trait]
impl Log for Held {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let (appending, go) = (self.log.append(append), self.go.clone());
        async move {
            let appended = appending.await;
            go.notified().await;
            appended
        }
        .boxed()
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.log.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.log.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.log.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        self.log.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.log.remove(channel).await
    }
}

fn drain(node: &Arc<Node>, seconds: u64) -> tokio::task::JoinHandle<()> {
    let node = node.clone();
    tokio::spawn(async move { node.drain(Duration::from_secs(seconds)).await })
}

#[tokio::test(start_paused = true)]
async fn connections_leave_one_after_the_other_and_nobody_new_comes() {
    let node = node(settings());
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::connect(&node).await);
    }
    let begin = Instant::now();
    let drained = drain(&node, 20);
    let leaving = clients.into_iter().map(|mut client| {
        tokio::spawn(async move {
            let close = client.close().await;
            (close, begin.elapsed())
        })
    });
    let mut at = Vec::new();
    for left in leaving.collect::<Vec<_>>() {
        let (close, when) = left.await.unwrap();
        assert_eq!(close, Disconnect::SHUTDOWN);
        at.push(when);
    }
    drained.await.unwrap();
    at.sort();
    let gaps = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis());
    assert!(gaps.clone().all(|gap| (500..=1500).contains(&gap)), "{:?}", gaps.collect::<Vec<_>>());
    assert!(at[19] <= Duration::from_secs(20) && begin.elapsed() <= Duration::from_secs(21), "{:?}", at[19]);
    let refused = node.accept(Link { encoding: Encoding::Json, user: None, address: None }).unwrap_err();
    assert_eq!(refused, AcceptError::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_publish_under_way_is_answered_before_the_close_and_nothing_more_is_read() {
    let go = Arc::new(Notify::new());
    let node = node_with(settings(), Arc::new(Held { log: MemoryLog::single(), go: go.clone() }));
    let mut client = Client::connect(&node).await;
    let publish = PublishRequest { channel: "log:a".into(), data: "1".into(), ..PublishRequest::default() };
    let id = client.send(Request::Publish(publish));
    let drained = drain(&node, 5);
    client.idle(2).await;
    assert!(!client.session.wants_frames(), "a draining session must not read");
    assert!(client.closed.is_none(), "closed before the publish was answered");
    go.notify_one();
    client.answer(id).await.expect("the publish was acknowledged");
    assert_eq!(client.close().await, Disconnect::SHUTDOWN);
    drop(client);
    drained.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_connections_is_over_at_once() {
    let node = node(settings());
    let begin = Instant::now();
    node.drain(Duration::from_secs(60)).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
}
