//! Snapshots beside a log whose answers change; what holds for every store is in the conformance suite.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;
use crate::memory::MemorySessions;
use crate::{Announcement, Append, AppendError, Appended, Epoch, Live, Tail};

/// Answers reads with the ends that it was given, one after the other.
struct Told(Mutex<VecDeque<Position>>);

#[async_trait]
impl Log for Told {
    fn append(&self, _: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        unreachable!("nothing is written")
    }

    async fn announce(&self, _: &str, _: Announcement) -> Result<(), AppendError> {
        unreachable!("nothing is written")
    }

    async fn read(&self, _: &str, _: Read) -> Result<Page, ReadError> {
        let top = self.0.lock().pop_front().ok_or(ReadError::Unavailable { reason: "no more".into() })?;
        Ok(Page { entries: Vec::new(), top, complete: true, more: false })
    }

    async fn tail(&self, _: &str) -> Result<Tail, ReadError> {
        unreachable!("only read")
    }

    async fn subscribe(&self, _: &str, _: Arc<dyn Live>) -> Result<Position, ReadError> {
        unreachable!("only read")
    }

    fn unsubscribe(&self, _: &str) {}

    async fn remove(&self, _: &str) -> Result<Position, AppendError> {
        unreachable!("nothing is written")
    }
}

fn at(offset: u64, epoch: &str) -> Position {
    Position { offset, epoch: Epoch::from(epoch) }
}

/// The end is asked for first and the publication at the snapshot's position then, maybe of another server.
#[tokio::test]
async fn answers_that_do_not_agree_neither_confirm_nor_discard_by_mistake() {
    let retention = Retention { size: 10, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(60) };
    let sessions = MemorySessions::new();
    let snapshot = Snapshot { position: at(5, "e"), time: 7, state: "x".into() };
    let fitting = async |ends: [Position; 2]| {
        sessions.keep_snapshot("c", snapshot.clone(), Duration::from_secs(60)).await.unwrap();
        let log = Told(Mutex::new(ends.into()));
        (sessions.fitting_snapshot("c", &log, retention).await, sessions.snapshot("c").await.unwrap().is_some())
    };
    assert_eq!(fitting([at(9, "e"), at(9, "e")]).await, (Ok(Some(snapshot.clone())), true));
    let (found, kept) = fitting([at(9, "e"), at(4, "e")]).await;
    assert!(matches!(found, Err(SessionError::Unavailable { .. })), "a server that lags: {found:?}");
    assert!(kept);
    assert_eq!(fitting([at(9, "e"), at(9, "f")]).await, (Ok(None), false), "the log became another one meanwhile");
}
