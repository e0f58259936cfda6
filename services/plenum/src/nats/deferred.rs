//! The ports before the first contact with NATS: everything is unavailable, and says so.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use plenum_channels::{
    Announcement, Answer, Append, AppendError, Appended, Control, ControlError, Ledger, LedgerError, Live, Log, Order,
    Page, Position, Question, Read, ReadError, Record, Replica, Tail,
};

const REASON: &str = "there was no contact with NATS yet";

/// A log that is there later.
#[derive(Default)]
pub struct DeferredLog(OnceLock<Arc<dyn Log>>);

impl DeferredLog {
    /// Puts the log in place, once.
    pub fn set(&self, log: Arc<dyn Log>) {
        let _ = self.0.set(log);
    }

    fn write(&self) -> Result<&Arc<dyn Log>, AppendError> {
        self.0.get().ok_or_else(|| AppendError::Unavailable { reason: REASON.into() })
    }

    fn read(&self) -> Result<&Arc<dyn Log>, ReadError> {
        self.0.get().ok_or_else(|| ReadError::Unavailable { reason: REASON.into() })
    }
}

#[async_trait]
impl Log for DeferredLog {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        match self.write() {
            Ok(log) => log.append(append),
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.write()?.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        DeferredLog::read(self)?.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        DeferredLog::read(self)?.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        DeferredLog::read(self)?.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        if let Some(log) = self.0.get() {
            log.unsubscribe(channel);
        }
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.write()?.remove(channel).await
    }
}

/// A ledger that is there later.
#[derive(Default)]
pub struct DeferredLedger(OnceLock<Arc<dyn Ledger>>);

impl DeferredLedger {
    /// Puts the ledger in place, once.
    pub fn set(&self, ledger: Arc<dyn Ledger>) {
        let _ = self.0.set(ledger);
    }

    fn inner(&self) -> Result<&Arc<dyn Ledger>, LedgerError> {
        self.0.get().ok_or_else(|| LedgerError::Unavailable { reason: REASON.into() })
    }
}

#[async_trait]
impl Ledger for DeferredLedger {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        self.inner()?.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        life: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        self.inner()?.put(key, value, expected, life).await
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        self.inner()?.changes(revision, limit).await
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        self.inner()?.end().await
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        self.inner()?.fill().await
    }
}

/// A control bus that is there later.
#[derive(Default)]
pub struct DeferredControl {
    replica: OnceLock<Arc<dyn Replica>>,
    control: OnceLock<Arc<dyn Control>>,
}

impl DeferredControl {
    /// Puts the bus in place, once, after the replica was attached.
    pub fn set(&self, control: Arc<dyn Control>) {
        if let Some(replica) = self.replica.get() {
            control.attach(replica.clone());
        }
        let _ = self.control.set(control);
    }

    fn get(&self) -> Result<&Arc<dyn Control>, ControlError> {
        self.control.get().ok_or_else(|| ControlError::Unavailable { reason: REASON.into() })
    }
}

#[async_trait]
impl Control for DeferredControl {
    fn attach(&self, replica: Arc<dyn Replica>) {
        let _ = self.replica.set(replica);
    }

    async fn broadcast(&self, order: Order) -> Result<(), ControlError> {
        self.get()?.broadcast(order).await
    }

    async fn survey(&self, question: Question) -> Result<Vec<Answer>, ControlError> {
        self.get()?.survey(question).await
    }
}

#[cfg(test)]
mod tests {
    use plenum_channels::memory::{MemoryControl, MemoryLog};

    use super::*;

    #[tokio::test]
    async fn everything_is_unavailable_until_the_log_is_there() {
        let log = DeferredLog::default();
        assert!(matches!(log.tail("a").await, Err(ReadError::Unavailable { .. })));
        assert!(matches!(log.remove("a").await, Err(AppendError::Unavailable { .. })));
        log.unsubscribe("a");
        log.set(MemoryLog::single());
        assert_eq!(log.tail("a").await.unwrap().position.offset, 0);
    }

    struct Nobody;

    #[async_trait]
    impl Replica for Nobody {
        async fn execute(&self, _: Order) {}

        async fn answer(&self, _: Question) -> Answer {
            Answer::Info(Box::default())
        }
    }

    #[tokio::test]
    async fn the_replica_is_attached_to_a_bus_that_comes_later() {
        let control = DeferredControl::default();
        control.attach(Arc::new(Nobody));
        assert!(control.survey(Question::Info).await.is_err());
        control.set(MemoryControl::single());
        assert_eq!(control.survey(Question::Info).await.unwrap().len(), 1);
    }
}
