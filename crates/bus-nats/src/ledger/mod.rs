//! The port `Ledger` on a key-value bucket of JetStream.
//!
//! A write is acknowledged by a majority of the copies. A read may be answered by any copy, also by one that lags or by a
//! leader that was cut off and does not know it. So each read begins with a write of its own, the barrier: whatever was
//! acknowledged before lies below its sequence, and an answer counts only if the server that gave it had come as far.

mod requests;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, HeaderMap};
use async_trait::async_trait;
use bytes::Bytes;
use plenum_channels::{LEDGER_ERASED_SHOWS, LEDGER_FULL, Ledger, LedgerError, Record, check_ledger_sizes};
use plenum_telemetry::Finding;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use self::requests::{Found, Get, PAUSE, RequestError, Written};
use crate::channel_token;
use crate::log::Links;

/// How long a read is tried; with the last attempt a call ends within 3 s.
const PATIENCE: Duration = Duration::from_millis(2_200);
/// Most registers of one answer.
const MAX_CHANGES: usize = 1_000;

/// Settings of the ledger. Every replica of a cluster must be started with the same ones.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// Part of the bucket's name, as in [`crate::log::LogConfig::prefix`].
    pub prefix: String,
    /// Copies: 1, 3 or 5.
    pub replicas: u32,
    /// Most bytes that all registers take; beyond it writes are refused as unavailable. `None`: no bound.
    pub max_bytes: Option<u64>,
}

/// One replica's side of the ledger.
pub struct NatsLedger {
    links: Arc<dyn Links>,
    stream: String,
    subject: String,
    /// The highest sequence that was acknowledged to this replica.
    known: AtomicU64,
}

impl NatsLedger {
    /// Makes the bucket if it is missing and checks it if it is there. Waits up to 3 s until it takes writes: the servers
    /// learn of a new one after each other.
    pub async fn start(links: Arc<dyn Links>, config: &LedgerConfig) -> Result<Arc<Self>, LedgerError> {
        let name = format!("{}-ledger", config.prefix);
        let ledger =
            Self { links, stream: stream(&config.prefix), subject: format!("$KV.{name}"), known: AtomicU64::new(0) };
        ledger.create(config).await?;
        let deadline = Instant::now() + PATIENCE;
        while ledger.barrier().await.is_err() && Instant::now() < deadline {
            sleep(PAUSE).await;
        }
        Ok(Arc::new(ledger))
    }

    async fn create(&self, config: &LedgerConfig) -> Result<(), LedgerError> {
        let wanted = settings(config);
        let client = self.links.any();
        let made = requests::api::<Value>(&client, &format!("STREAM.CREATE.{}", self.stream), &wanted).await;
        match made {
            Ok(_) => return Ok(()),
            Err(RequestError::Refused { code: 10058, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // It is there with other settings: those that promises stand on must be right.
        let subject = format!("STREAM.INFO.{}", self.stream);
        let found = requests::api::<Value>(&client, &subject, &Value::Null).await?;
        wrong(&self.stream, &found["config"], &wanted).map_or(Ok(()), |reason| Err(LedgerError::Unavailable { reason }))
    }

    fn register(&self, key: &str) -> String {
        format!("{}.k.{}", self.subject, channel_token::encode(key))
    }

    fn barrier_subject(&self) -> String {
        format!("{}.barrier", self.subject)
    }

    /// A sequence above everything that was acknowledged before.
    async fn barrier(&self) -> Result<u64, LedgerError> {
        let client = self.links.any();
        let written = requests::write(&client, self.barrier_subject(), HeaderMap::new(), Bytes::new()).await;
        let seq = match written {
            Ok(Written { seq }) => seq,
            Err(error) => return Err(error.into()),
        };
        let known = self.known.fetch_max(seq, Ordering::AcqRel);
        if seq <= known && known - seq > MAX_OVERTAKING {
            self.known.store(seq, Ordering::Release);
            return Err(LedgerError::WentBack { known, found: seq });
        }
        Ok(seq)
    }

    /// Asks until an answer reaches the barrier.
    async fn proven(&self, request: &Get, barrier: u64) -> Result<Found, LedgerError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = requests::get(&self.links.any(), &self.stream, request).await;
            match answer {
                Ok(found) if found.reaches(barrier) => return Ok(found),
                Ok(_) | Err(RequestError::NotFound | RequestError::Unavailable(_)) if Instant::now() < deadline => {
                    sleep(PAUSE).await;
                }
                Ok(_) => {
                    let reason = "no copy proved that it has everything".into();
                    return Err(LedgerError::Unavailable { reason });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The newest entries of these registers, erased ones included.
    async fn newest(&self, subjects: Vec<String>, barrier: u64) -> Result<Vec<Record>, LedgerError> {
        let multi_last = subjects.into_iter().chain([self.barrier_subject()]).collect();
        let found = self.proven(&Get { multi_last, ..Get::default() }, barrier).await?;
        Ok(self.records(found))
    }

    fn records(&self, found: Found) -> Vec<Record> {
        let registers = format!("{}.k.", self.subject);
        let record = |entry: requests::Entry| {
            let key = channel_token::decode(entry.subject.strip_prefix(&registers)?)?;
            Some(Record { key, value: (!entry.erased).then_some(entry.value), revision: entry.seq })
        };
        found.entries.into_iter().filter_map(record).collect()
    }

    /// The register as it is now, also when it was erased.
    async fn look(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        let barrier = self.barrier().await?;
        Ok(self.newest(vec![self.register(key)], barrier).await?.into_iter().next())
    }

    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, RequestError> {
        let mut headers = HeaderMap::new();
        if let Some(expected) = expected {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        }
        let ttl = if value.is_none() { Some(LEDGER_ERASED_SHOWS) } else { ttl };
        if let Some(ttl) = ttl {
            headers.insert("Nats-TTL", format!("{}s", ttl.as_secs().max(1)));
        }
        if value.is_none() {
            headers.insert("KV-Operation", "DEL");
        }
        let written =
            requests::write(&self.links.any(), self.register(key), headers, value.unwrap_or_default()).await?;
        self.known.fetch_max(written.seq, Ordering::AcqRel);
        Ok(written.seq)
    }
}

/// The stream of the bucket.
pub(crate) fn stream(prefix: &str) -> String {
    format!("KV_{prefix}-ledger")
}

/// The settings of the stream.
fn settings(config: &LedgerConfig) -> Value {
    json!({
        "name": stream(&config.prefix),
        "subjects": [format!("$KV.{}-ledger.>", config.prefix)],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": config.replicas,
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": config.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        "max_msgs_per_subject": 1,
        "max_consumers": -1,
        "max_msg_size": -1,
        "deny_delete": true,
        "deny_purge": true,
        "allow_direct": true,
        "allow_msg_ttl": true,
    })
}

/// The first setting that a promise stands on and that differs, in words.
fn wrong(stream: &str, found: &Value, wanted: &Value) -> Option<String> {
    let setting = ["max_msgs_per_subject", "max_age", "num_replicas", "allow_direct", "allow_msg_ttl", "storage"]
        .into_iter()
        .find(|&setting| found[setting] != wanted[setting])?;
    let (found, wanted) = (&found[setting], &wanted[setting]);
    Some(format!("stream {stream}: setting {setting} is {found}, must be {wanted}"))
}

/// Share of the bucket's bytes that are taken, 0 without a bound.
fn filled(info: &Value) -> f64 {
    let max = info["config"]["max_bytes"].as_f64().filter(|max| *max > 0.0);
    max.map_or(0.0, |max| info["state"]["bytes"].as_f64().unwrap_or(0.0) / max)
}

/// What the bucket is like, for operators; nothing is created.
pub(crate) async fn inspect(client: &Client, config: &LedgerConfig) -> Finding {
    const SUBJECT: &str = "ledger";
    let stream = stream(&config.prefix);
    match requests::api::<Value>(client, &format!("STREAM.INFO.{stream}"), &Value::Null).await {
        Ok(info) => match wrong(&stream, &info["config"], &settings(config)) {
            None => {
                let count = info["state"]["num_subjects"].as_u64().unwrap_or(0);
                let bytes = info["state"]["bytes"].as_u64().unwrap_or(0);
                let found = format!("{count} registers, {}", crate::log::bytes(bytes));
                let share = filled(&info);
                if share < LEDGER_FULL {
                    return Finding::good(SUBJECT, found);
                }
                let found = format!("{found}, {:.0} % of what it may take", 100.0 * share);
                let advice = "clients that come back for the first time get a new client id; raise the bucket's max_bytes, or lower client.resume.ttl";
                Finding::warning(SUBJECT, found, advice)
            }
            Some(reason) => Finding::failed(SUBJECT, reason, "set it back: no replica starts like this"),
        },
        Err(RequestError::Refused { code: 10059, .. }) => {
            let advice = "the first replica creates it; where there was one, blocks and revocations are gone with it";
            Finding::warning(SUBJECT, "there is none", advice)
        }
        Err(error) => Finding::failed(SUBJECT, error.to_string(), "look at the NATS servers' logs"),
    }
}

/// Acknowledgements of one replica arrive in another order than they were given, by at most so many.
const MAX_OVERTAKING: u64 = 1 << 16;

#[async_trait]
impl Ledger for NatsLedger {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        check_ledger_sizes(key, None)?;
        Ok(self.look(key).await?.filter(|record| record.value.is_some()))
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        check_ledger_sizes(key, value.as_ref())?;
        match self.write(key, value.clone(), expected, ttl).await {
            Ok(revision) => return Ok(revision),
            Err(RequestError::Refused { code: 10071, .. }) => {}
            Err(RequestError::Silent) => return Err(LedgerError::Indeterminate),
            Err(error) => return Err(error.into()),
        }
        let expected = expected.unwrap_or_default();
        match self.look(key).await? {
            Some(Record { value: Some(_), revision, .. }) => {
                return Err(LedgerError::Conflict { expected, found: revision });
            }
            // An erased register counts as none; its entry has a revision all the same.
            Some(erased) if expected == 0 => match self.write(key, value, Some(erased.revision), ttl).await {
                Ok(revision) => return Ok(revision),
                Err(RequestError::Refused { code: 10071, .. }) => {}
                Err(RequestError::Silent) => return Err(LedgerError::Indeterminate),
                Err(error) => return Err(error.into()),
            },
            _ => {}
        }
        let found = match self.look(key).await? {
            Some(Record { value: Some(_), revision, .. }) => revision,
            _ => 0,
        };
        Err(LedgerError::Conflict { expected, found })
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        let limit = limit.clamp(1, MAX_CHANGES);
        let barrier = self.barrier().await?;
        if barrier <= revision {
            return Err(LedgerError::WentBack { known: revision, found: barrier });
        }
        let mut after = revision;
        loop {
            let request = Get {
                seq: after + 1,
                next_by_subj: Some(format!("{}.>", self.subject)),
                batch: limit + 1,
                ..Get::default()
            };
            // A full page says nothing about the server that gave it, other than how far it had come at least.
            let deadline = Instant::now() + PATIENCE;
            let page = loop {
                let found = self.page(&request, deadline).await?;
                if found.reaches(barrier) || found.entries.len() > limit {
                    break found;
                }
                if Instant::now() > deadline {
                    let reason = "no copy proved that it has everything".into();
                    return Err(LedgerError::Unavailable { reason });
                }
                sleep(PAUSE).await;
            };
            let (whole, last) = (page.reaches(barrier), page.entries.last().map_or(barrier, |entry| entry.seq));
            let mut records = self.records(page);
            if !whole {
                let subjects = records.iter().map(|record| self.register(&record.key)).take(MAX_CHANGES).collect();
                let newest = self.newest(subjects, barrier).await?;
                records.retain(|record| newest.iter().any(|one| one.revision == record.revision));
            }
            records.truncate(limit);
            if whole || !records.is_empty() {
                return Ok(records);
            }
            after = last;
        }
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        self.barrier().await
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        let subject = format!("STREAM.INFO.{}", self.stream);
        Ok(filled(&requests::api::<Value>(&self.links.any(), &subject, &Value::Null).await?))
    }
}

impl NatsLedger {
    async fn page(&self, request: &Get, deadline: Instant) -> Result<Found, LedgerError> {
        loop {
            match requests::get(&self.links.any(), &self.stream, request).await {
                Ok(found) => return Ok(found),
                // The barrier lies ahead of every question: who finds nothing lags.
                Err(RequestError::NotFound | RequestError::Unavailable(_)) if Instant::now() < deadline => {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<RequestError> for LedgerError {
    fn from(error: RequestError) -> Self {
        LedgerError::Unavailable { reason: error.to_string() }
    }
}
