//! A ledger that may be away, full or slow, and counts what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::access::Entry;
use crate::memory::MemoryLedger;
use crate::resume::FENCES;
use crate::{Ledger, LedgerError, Record};

/// The in-process ledger, as a replica sees one that is far away.
#[derive(Default)]
pub(super) struct FarLedger {
    inner: Mutex<Arc<MemoryLedger>>,
    away: AtomicBool,
    /// Milliseconds for a page of changes.
    pub(super) page_ms: AtomicU64,
    /// Fences that others write while a page is read.
    pub(super) fences: AtomicU64,
    /// Of its room.
    pub(super) percent: AtomicU64,
    looks: AtomicUsize,
    shown: AtomicUsize,
}

impl FarLedger {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// While true nothing is answered.
    pub(super) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// What replicas see for which it is not away.
    pub(super) fn inner(&self) -> Arc<MemoryLedger> {
        self.inner.lock().clone()
    }

    /// It is lost; another one is in its place.
    pub(super) fn begin_anew(&self) {
        *self.inner.lock() = MemoryLedger::new();
    }

    /// How often a fence was looked at.
    pub(super) fn looks(&self) -> usize {
        self.looks.load(Ordering::Relaxed)
    }

    /// How many changes were read since the last call.
    pub(super) fn take_shown(&self) -> usize {
        self.shown.swap(0, Ordering::Relaxed)
    }

    /// Another replica blocks a user.
    pub(super) async fn block(&self, user: &str) {
        let entry = Entry::Block { user: user.to_owned(), expire_at: 0 };
        let value = serde_json::to_vec(&entry).unwrap();
        self.inner().put(&entry.key(), Some(value.into()), None, None).await.unwrap();
    }

    /// Clients come back at other replicas.
    pub(super) async fn resumes(&self, count: u64) {
        let inner = self.inner();
        for _ in 0..count {
            let fence = format!("{FENCES}{}", Uuid::new_v4().simple());
            inner.put(&fence, Some("1".into()), Some(0), Some(Duration::from_secs(60))).await.unwrap();
        }
    }

    fn answer(&self) -> Result<Arc<MemoryLedger>, LedgerError> {
        let away = self.away.load(Ordering::Relaxed);
        if away { Err(LedgerError::Unavailable { reason: "away".into() }) } else { Ok(self.inner()) }
    }
}

#[async_trait]
impl Ledger for FarLedger {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        let inner = self.answer()?;
        self.looks.fetch_add(usize::from(key.starts_with(FENCES)), Ordering::Relaxed);
        inner.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        self.answer()?.put(key, value, expected, ttl).await
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        let inner = self.answer()?;
        self.resumes(self.fences.load(Ordering::Relaxed)).await;
        tokio::time::sleep(Duration::from_millis(self.page_ms.load(Ordering::Relaxed))).await;
        let changes = inner.changes(revision, limit).await?;
        self.shown.fetch_add(changes.len(), Ordering::Relaxed);
        Ok(changes)
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        self.answer()?.end().await
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        self.answer().map(|_| self.percent.load(Ordering::Relaxed) as f64 / 100.0)
    }
}
