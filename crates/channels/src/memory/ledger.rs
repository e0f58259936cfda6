//! In-process ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{LEDGER_ERASED_SHOWS, Ledger, LedgerError, Record, check_ledger_sizes};

/// Most registers; a further one is refused as unavailable.
const MAX_REGISTERS: usize = 1 << 20;

/// Registers in this process's memory, shared by every replica of the process that holds it. They end with the process.
#[derive(Default)]
pub struct MemoryLedger(Mutex<Registers>);

#[derive(Default)]
struct Registers {
    last: u64,
    by_key: HashMap<Arc<str>, Register>,
    by_revision: BTreeMap<u64, Arc<str>>,
    ends: BTreeMap<(Instant, u64), Arc<str>>,
}

struct Register {
    value: Option<Bytes>,
    revision: u64,
    ends: Option<Instant>,
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

impl Registers {
    /// Forgets what has had its time.
    fn sweep(&mut self) {
        let now = Instant::now();
        while let Some((&(ends, revision), _)) = self.ends.first_key_value()
            && ends <= now
        {
            if let Some(key) = self.by_revision.remove(&revision) {
                self.by_key.remove(&key);
            }
            self.ends.remove(&(ends, revision));
        }
    }

    fn take(&mut self, key: &str) {
        let Some((_, old)) = self.by_key.remove_entry(key) else { return };
        self.by_revision.remove(&old.revision);
        if let Some(ends) = old.ends {
            self.ends.remove(&(ends, old.revision));
        }
    }

    fn record(&self, key: &Arc<str>) -> Option<Record> {
        let register = self.by_key.get(key)?;
        Some(Record { key: key.to_string(), value: register.value.clone(), revision: register.revision })
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        check_ledger_sizes(key, None)?;
        let mut registers = self.0.lock();
        registers.sweep();
        Ok(registers.by_key.get_key_value(key).filter(|(_, it)| it.value.is_some()).map(|(key, it)| Record {
            key: key.to_string(),
            value: it.value.clone(),
            revision: it.revision,
        }))
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        check_ledger_sizes(key, value.as_ref())?;
        let mut registers = self.0.lock();
        registers.sweep();
        let found = registers.by_key.get(key).filter(|it| it.value.is_some()).map_or(0, |it| it.revision);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(LedgerError::Conflict { expected, found });
        }
        if registers.by_key.len() >= MAX_REGISTERS && !registers.by_key.contains_key(key) {
            return Err(LedgerError::Unavailable { reason: format!("it holds {MAX_REGISTERS} registers, its bound") });
        }
        registers.take(key);
        registers.last += 1;
        let revision = registers.last;
        let ttl = if value.is_none() { Some(LEDGER_ERASED_SHOWS) } else { ttl };
        let ends = ttl.map(|ttl| Instant::now() + ttl.max(Duration::from_secs(1)));
        let key: Arc<str> = key.into();
        if let Some(ends) = ends {
            registers.ends.insert((ends, revision), key.clone());
        }
        registers.by_revision.insert(revision, key.clone());
        registers.by_key.insert(key, Register { value, revision, ends });
        Ok(revision)
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        let mut registers = self.0.lock();
        registers.sweep();
        if revision > registers.last {
            return Err(LedgerError::WentBack { known: revision, found: registers.last });
        }
        let later = registers.by_revision.range(revision + 1..).take(limit);
        Ok(later.filter_map(|(_, key)| registers.record(key)).collect())
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        Ok(self.0.lock().last)
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        let mut registers = self.0.lock();
        registers.sweep();
        Ok(registers.by_key.len() as f64 / MAX_REGISTERS as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Fixture, ledger_suite};

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        ledger_suite(async |count| {
            let ledger = MemoryLedger::new();
            Fixture::with_tokio_time((0..count).map(|_| ledger.clone() as Arc<dyn Ledger>).collect())
        })
        .await;
    }

    #[tokio::test]
    async fn an_end_behind_a_known_revision_is_told() {
        let ledger = MemoryLedger::new();
        ledger.put("a", Some("1".into()), None, None).await.unwrap();
        assert_eq!(ledger.changes(7, 10).await, Err(LedgerError::WentBack { known: 7, found: 1 }));
    }
}
