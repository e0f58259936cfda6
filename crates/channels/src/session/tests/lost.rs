//! What the log cannot deliver any more is told, never passed over.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use plenum_protocol::{Disconnect, PushEvent};

use super::{Client, api_publish, node_with, settings, text};
use crate::memory::MemoryLog;
use crate::{Announcement, Append, AppendError, Appended, Live, LiveEvent, Log, Page, Position, Read, ReadError, Tail};

/// The in-process log, which can be made to lose.
struct Lossy {
    log: Arc<MemoryLog>,
    lives: Mutex<Vec<(String, Arc<dyn Live>)>>,
    /// Loses right after a subscription was made, before its session knows of it.
    early: bool,
}

impl Lossy {
    fn new(early: bool) -> Arc<Self> {
        Arc::new(Self { log: MemoryLog::single(), lives: Mutex::default(), early })
    }

    fn lose(&self, channel: &str, position: Position) {
        for (name, live) in self.lives.lock().iter() {
            if name == channel {
                live.deliver(&[LiveEvent::Lost { position: position.clone() }]);
            }
        }
    }
}

#[async_trait]
impl Log for Lossy {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.log.append(append)
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        if self.early {
            // Joins are announced between going live and the session's taking the subscription up.
            self.lose(channel, self.log.tail(channel).await.map(|tail| tail.position).unwrap_or_default());
        }
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.log.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.log.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.lives.lock().push((channel.to_owned(), live.clone()));
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
async fn positioned_subscribers_are_told_and_others_go_on() {
    let log = Lossy::new(false);
    let node = node_with(settings(), log.clone());
    let (mut by_server, _) = Client::connect_as(&node, "anna;subs=log:a").await;
    let mut by_client = Client::connect(&node).await;
    let mut unpositioned = Client::connect(&node).await;
    by_client.subscribe("log:a", None).await.unwrap();
    unpositioned.subscribe("live:a", None).await.unwrap();
    let top = api_publish(&node, "log:a", 1).await.position.unwrap();
    assert_eq!(text(&by_client.publication().await), "1");
    log.lose("log:a", top);
    log.lose("live:a", Position::default());
    assert_eq!(by_server.close().await, Disconnect::INSUFFICIENT_STATE);
    match by_client.push().await.event {
        PushEvent::Unsubscribe { code, .. } => assert_eq!(code, 2500),
        event => panic!("{event:?}"),
    }
    api_publish(&node, "log:a", 2).await;
    api_publish(&node, "live:a", 3).await;
    assert_eq!(text(&unpositioned.publication().await), "3");
    by_client.idle(1).await;
    assert!(by_client.inbox.is_empty(), "nothing after the loss");
    by_client.subscribe("log:a", None).await.unwrap();
    api_publish(&node, "log:a", 4).await;
    assert_eq!(text(&by_client.publication().await), "4");
}

#[tokio::test(start_paused = true)]
async fn a_loss_before_the_session_takes_the_subscription_up_is_told_too() {
    let node = node_with(settings(), Lossy::new(true));
    let mut client = Client::connect(&node).await;
    client.subscribe("room:a", None).await.unwrap();
    loop {
        match client.push().await.event {
            PushEvent::Unsubscribe { code, .. } => return assert_eq!(code, 2500),
            PushEvent::Join(_) => {}
            event => panic!("{event:?}"),
        }
    }
}
