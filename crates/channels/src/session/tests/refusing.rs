//! Attempts that come to nothing end, and are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use plenum_protocol::{Encoding, Request, SubscribeRequest};
use plenum_telemetry::AppendFailure;

use super::{Client, node_with, open_namespace, settings};
use crate::memory::MemoryLog;
use crate::{
    Announcement, Append, AppendError, Appended, Live, Log, NamespaceOptions, OperationError, Page, Position, Publish,
    Read, ReadError, RecoveryMode, Tail,
};

/// Far more than any bound on attempts.
const ENDLESS: usize = 10_000;

/// A log that takes no publication, and always tells of another epoch than the one it delivers in, so that nobody who
/// relies on positions goes live.
struct Refusing {
    log: Arc<MemoryLog>,
    error: AppendError,
    appends: AtomicUsize,
    reads: AtomicUsize,
}

impl Refusing {
    fn new(error: AppendError) -> Arc<Self> {
        let (appends, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { log: MemoryLog::single(), error, appends, reads })
    }

    fn elsewhere(&self) -> Position {
        assert!(self.reads.fetch_add(1, Ordering::Relaxed) < ENDLESS, "tried without end");
        Position { offset: 0, epoch: "elsewhere".into() }
    }

    fn refuse(&self) -> AppendError {
        assert!(self.appends.fetch_add(1, Ordering::Relaxed) < ENDLESS, "tried without end");
        self.error.clone()
    }
}

#[async_trait]
impl Log for Refusing {
    fn append(&self, _: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        Box::pin(std::future::ready(Err(self.refuse())))
    }

    async fn announce(&self, _: &str, _: Announcement) -> Result<(), AppendError> {
        Err(self.refuse())
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        Ok(Page { top: self.elsewhere(), ..self.log.read(channel, read).await? })
    }

    async fn tail(&self, _: &str) -> Result<Tail, ReadError> {
        Ok(Tail { position: self.elsewhere(), version: None })
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

fn conflict() -> AppendError {
    AppendError::Conflict { expected: 0, last: 1 }
}

#[tokio::test(start_paused = true)]
async fn a_version_that_others_always_come_before_is_given_up() {
    let log = Refusing::new(conflict());
    let node = node_with(settings(), log.clone());
    let publish = Publish { channel: "log:a".into(), data: "1".into(), version: 1, ..Publish::default() };
    let outcome = node.publish(publish).await;
    assert!(matches!(outcome, Err(OperationError::Contended)), "{outcome:?}");
    assert_eq!(log.appends.load(Ordering::Relaxed), 16);
    assert_eq!(node.metrics().append_failures(AppendFailure::Conflict).get(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_subscribe_that_never_meets_the_live_stream_is_given_up() {
    for force_recovery_mode in [RecoveryMode::Stream, RecoveryMode::Cache] {
        let mut settings = settings();
        settings.channel.namespaces.push(NamespaceOptions { force_recovery_mode, ..open_namespace("apart", 10) });
        let log = Refusing::new(conflict());
        let node = node_with(settings, log.clone());
        let mut client = Client::attach(&node, Encoding::Json);
        client.call(Request::Connect(Box::default())).await.unwrap();
        let request = SubscribeRequest {
            channel: "apart:a".into(),
            recover: force_recovery_mode == RecoveryMode::Cache,
            epoch: "elsewhere".into(),
            ..SubscribeRequest::default()
        };
        let error = client.call(Request::Subscribe(Box::new(request))).await.unwrap_err();
        assert_eq!(error.code, 100);
        assert_eq!(log.reads.load(Ordering::Relaxed), 100, "{force_recovery_mode:?}");
        assert!(node.metrics().subscriptions.get() == 0, "nobody is left behind");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_by_their_reason_and_use_no_key_up() {
    let unavailable = AppendError::Unavailable { reason: "so".into() };
    let failures = [
        (conflict(), AppendFailure::Conflict),
        (AppendError::TooLarge { size: 2, max: 1 }, AppendFailure::TooLarge),
        (unavailable, AppendFailure::Unavailable),
        (AppendError::Indeterminate, AppendFailure::Indeterminate),
    ];
    for (error, reason) in &failures {
        let node = node_with(settings(), Refusing::new(error.clone()));
        // The second time a key that was used up would answer.
        for (skip_history, counted) in [(false, 1), (false, 2), (true, 3), (true, 4)] {
            let publish = Publish {
                channel: "log:a".into(),
                data: "1".into(),
                idempotency_key: "key".into(),
                skip_history,
                ..Publish::default()
            };
            let outcome = node.publish(publish).await;
            assert!(matches!(&outcome, Err(OperationError::Append(told)) if told == error), "{outcome:?}");
            for (_, other) in &failures {
                let expected = if other == reason { counted } else { 0 };
                assert_eq!(node.metrics().append_failures(*other).get(), expected, "{reason:?} {other:?}");
            }
        }
    }
}
