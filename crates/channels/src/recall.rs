//! First results of idempotency keys beyond the log's own window, asked for before an append without giving up its place.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{self, Shared};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{IdempotencyKey, Position, Results};

/// Resolves when whoever stands ahead has begun to append or given up, which drops the sender.
type Ahead = Shared<oneshot::Receiver<Infallible>>;

/// What was published before under a key, and the order of those who ask.
pub(crate) struct Recall {
    store: Option<Arc<dyn Results>>,
    line: Arc<Mutex<HashMap<Arc<str>, Last>>>,
}

/// The last of those who wait to append to one channel.
struct Last {
    number: u64,
    ahead: Ahead,
}

/// A place in line, left when dropped; those behind append only then.
pub(crate) struct Place {
    ahead: Option<Ahead>,
    channel: Arc<str>,
    number: u64,
    line: Arc<Mutex<HashMap<Arc<str>, Last>>>,
    _held: oneshot::Sender<Infallible>,
}

impl Recall {
    pub(crate) fn new(store: Option<Arc<dyn Results>>) -> Self {
        Self { store, line: Arc::default() }
    }

    /// A place among the publications of the API to this channel; `None` where the call itself fixes the order: nothing
    /// is to be asked, and nobody ahead asks.
    pub(crate) fn queue(&self, channel: &Arc<str>, key: Option<&IdempotencyKey>) -> Option<Place> {
        self.store.as_ref()?;
        let mut line = self.line.lock();
        let last = line.get(channel);
        if last.is_none() && key.is_none() {
            return None;
        }
        let (number, ahead) = last.map_or((0, None), |last| (last.number + 1, Some(last.ahead.clone())));
        let (held, left) = oneshot::channel();
        line.insert(channel.clone(), Last { number, ahead: left.shared() });
        Some(Place { ahead, channel: channel.clone(), number, line: self.line.clone(), _held: held })
    }

    /// The first result of the key, once it is this place's turn. All in line ask at once, so a store that does not
    /// answer costs each of them no more than its deadline.
    pub(crate) async fn turn(&self, place: &Place, key: Option<&IdempotencyKey>) -> Option<Position> {
        let ahead = async {
            if let Some(ahead) = place.ahead.clone() {
                let _ = ahead.await;
            }
        };
        future::join(self.first(&place.channel, key), ahead).await.0
    }

    /// The first result of the key.
    pub(crate) async fn first(&self, channel: &str, key: Option<&IdempotencyKey>) -> Option<Position> {
        self.store.as_ref()?.recall(channel, key?).await
    }

    /// Remembers a result for `ttl`.
    pub(crate) fn keep(&self, channel: &str, key: Option<&IdempotencyKey>, position: &Position, ttl: Duration) {
        if let (Some(store), Some(key)) = (&self.store, key) {
            store.remember(channel, key, position.clone(), ttl);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut line = self.line.lock();
        if line.get(&self.channel).is_some_and(|last| last.number == self.number) {
            line.remove(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use plenum_telemetry::Metrics;
    use tokio::sync::Notify;

    use super::*;
    use crate::memory::{MemoryControl, MemoryLog, MemoryPresence, MemoryResults};
    use crate::{
        ConnectionClaims, HistoryQuery, NamespaceOptions, Node, Parts, Publish, Settings, Shared, SubscriptionClaims,
        TokenError, Tokens,
    };

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

    /// Answers only once it is let go.
    struct Slow {
        results: Arc<MemoryResults>,
        held: AtomicBool,
        released: Notify,
    }

    impl Slow {
        fn new(held: bool) -> Arc<Self> {
            Arc::new(Self { results: MemoryResults::new(1000), held: held.into(), released: Notify::new() })
        }

        fn release(&self) {
            self.held.store(false, Ordering::SeqCst);
            self.released.notify_waiters();
        }
    }

    #[async_trait]
    impl Results for Slow {
        async fn recall(&self, channel: &str, key: &IdempotencyKey) -> Option<Position> {
            let released = self.released.notified();
            if self.held.load(Ordering::SeqCst) {
                released.await;
            }
            self.results.recall(channel, key).await
        }

        fn remember(&self, channel: &str, key: &IdempotencyKey, position: Position, ttl: Duration) {
            self.results.remember(channel, key, position, ttl);
        }
    }

    /// A replica with a log of its own, which therefore knows no key of another.
    fn replica(results: &Arc<Slow>) -> Arc<Node> {
        let mut settings = Settings::default();
        settings.channel.namespaces = vec![NamespaceOptions {
            name: "log".into(),
            history_size: 100,
            history_ttl: Duration::from_secs(600),
            ..NamespaceOptions::default()
        }];
        let parts = Parts {
            settings,
            log: MemoryLog::single(),
            presence: MemoryPresence::single(),
            control: MemoryControl::single(),
            tokens: Arc::new(NoTokens),
            metrics: Metrics::new().unwrap(),
            name: "test".into(),
            version: "test".into(),
        };
        Node::with_shared(parts, Shared { results: Some(results.clone()), ..Shared::single() }).unwrap()
    }

    fn publish(data: &str, key: &str) -> Publish {
        Publish {
            channel: "log:a".into(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            idempotency_key: key.into(),
            ..Publish::default()
        }
    }

    async fn history(node: &Arc<Node>) -> Vec<Bytes> {
        let query = HistoryQuery { limit: 100, ..HistoryQuery::default() };
        node.history("log:a", query).await.unwrap().publications.into_iter().map(|it| it.data).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_known_elsewhere_returns_the_first_result_and_appends_nothing() {
        let results = Slow::new(false);
        let (one, two) = (replica(&results), replica(&results));
        let first = one.publish(publish("1", "k")).await.unwrap();
        assert!(first.position.is_some());
        assert_eq!(two.publish(publish("2", "k")).await.unwrap(), first);
        let versioned = Publish { version: 7, ..publish("3", "k") };
        assert_eq!(two.publish(versioned).await.unwrap(), first);
        assert!(history(&two).await.is_empty());

        tokio::time::advance(Duration::from_secs(301)).await;
        assert_ne!(two.publish(publish("2", "k")).await.unwrap(), first, "forgotten after its time");
        assert_eq!(history(&two).await, ["2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn publications_keep_their_order_while_keys_are_asked_for() {
        let results = Slow::new(true);
        let node = replica(&results);
        let given = [("1", "a"), ("2", ""), ("3", "b"), ("4", "a"), ("5", "")];
        let calls = given.map(|(data, key)| node.start_publish("api", publish(data, key), None));
        // The last is polled first: the order of the calls counts.
        let calls = calls.into_iter().rev().map(tokio::spawn).collect::<Vec<_>>();
        tokio::task::yield_now().await;
        assert!(history(&node).await.is_empty());
        results.release();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(history(&node).await, ["1", "2", "3", "5"], "the fourth repeats the first's key");
        assert!(node.recall.line.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_given_up_holds_up_nobody() {
        let results = Slow::new(true);
        let node = replica(&results);
        let calls = [("1", "a"), ("2", "")].map(|(data, key)| node.start_publish("api", publish(data, key), None));
        let [first, second] = calls;
        drop(first);
        second.await.unwrap();
        assert_eq!(history(&node).await, ["2"]);
        assert!(node.recall.line.lock().is_empty());
    }
}
