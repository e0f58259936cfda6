//! What an operator would look at on NATS: contact with each server, permissions, streams, storage, clocks.
//!
//! Nothing is created, changed or stored. `docs/doctor.md` lists the checks.

mod permissions;
mod servers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hashbrown::HashSet;
use plenum_telemetry::Finding;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::ledger::{LedgerConfig, inspect as inspect_ledger};
use crate::log::{ApiError, LogConfig, bytes, inspect, js_api};
use crate::pool::{Pool, PoolConfig};
use crate::replicas::decode;

pub use servers::{MonitoringError, monitoring};

/// Clocks that differ by more than this are worth a line, milliseconds.
const SKEW_WARNING: i64 = 1_000;
/// The log's margin for servers' clocks is a minute (docs/log.md, hole 6); half of it is left for what is not seen here.
const SKEW_LIMIT: i64 = 30_000;
/// Two heartbeats of each replica and some.
const LISTENING: Duration = Duration::from_millis(1_300);

/// What is checked.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// How replicas reach NATS.
    pub pool: PoolConfig,
    /// What their log should be.
    pub log: LogConfig,
    /// What their ledger should be.
    pub ledger: LedgerConfig,
    /// Largest payload that a replica publishes, bytes.
    pub largest: usize,
    /// Limit of each contact.
    pub limit: Duration,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Of NATS.
    pub nats: Vec<Finding>,
    /// Of the servers' clocks against this machine's.
    pub clocks: Vec<Finding>,
    /// Replicas whose heartbeats were heard; `None` without contact.
    pub replicas: Option<usize>,
}

/// Checks everything. Takes at most a few times the limit; with a server that answers, 2 to 4 s.
pub async fn check(config: &CheckConfig) -> Checked {
    let mut checked = Checked { nats: servers::each(config).await, ..Checked::default() };
    let pool = match open(&config.pool, config.limit).await {
        Ok(pool) => pool,
        Err(error) => {
            let advice = "nothing else of NATS can be looked at without a connection";
            checked.nats.push(Finding::failed("connection", error, advice));
            return checked;
        }
    };
    let prefix = &config.log.prefix;
    let permissions = permissions::check(&pool, prefix, config.limit).await;
    let denied = permissions.denied;
    checked.nats.extend(permissions.findings);
    let client = pool.any();
    let (mut inspected, ledger, account, replicas) = tokio::join!(
        inspect(&client, &config.log),
        inspect_ledger(&client, &config.ledger),
        account(&client, denied.contains("$JS.API.INFO")),
        listen(&pool, prefix),
    );
    checked.nats.append(&mut inspected.findings);
    checked.nats.push(ledger);
    checked.nats.push(account);
    checked.nats.push(heard(replicas));
    checked.clocks = inspected.clocks.into_iter().map(|(server, ahead)| clock(&server, ahead)).collect();
    checked.replicas = Some(replicas);
    drop(client);
    pool.close(Duration::from_millis(200)).await;
    checked
}

/// A pool of the least size, connected.
pub(crate) async fn open(config: &PoolConfig, limit: Duration) -> Result<Arc<Pool>, String> {
    let least = PoolConfig { publishing: 1, min_publishing: 1, max_publishing: 1, subscribing: 1, ..config.clone() };
    let pool = Pool::connect(least).await.map_err(|error| error.to_string())?;
    match pool.wait_ready(limit).await {
        Ok(()) => Ok(pool),
        Err(error) => {
            pool.close(Duration::ZERO).await;
            Err(error.to_string())
        }
    }
}

/// Replicas whose heartbeats arrive.
pub(crate) async fn listen(pool: &Arc<Pool>, prefix: &str) -> usize {
    let client = pool.subscribing(0);
    let subject = format!("{prefix}.control.beat");
    let Ok(Ok(mut beats)) = timeout(LISTENING, client.subscribe(subject)).await else { return 0 };
    let mut heard = HashSet::new();
    let end = Instant::now() + LISTENING;
    while let Ok(Some(message)) = timeout_at(end, beats.next()).await {
        if let Some(beat) = decode(&message.payload).filter(|beat| !beat.resigned) {
            heard.insert(beat.from.replica);
        }
    }
    heard.len()
}

fn heard(replicas: usize) -> Finding {
    match replicas {
        0 => Finding::warning(
            "replicas",
            "no heartbeat of any replica is heard",
            "start replicas; if some run, nats.prefix or the account differs from theirs",
        ),
        count => Finding::good("replicas", format!("heartbeats of {count} processes are heard")),
    }
}

/// The account's storage.
async fn account(client: &async_nats::Client, denied: bool) -> Finding {
    const SUBJECT: &str = "storage of the account";
    let advice = "allow the user to publish on $JS.API.INFO to see it, or use --nats-monitoring";
    if denied {
        return Finding::skipped(SUBJECT, "the user may not ask", advice);
    }
    let info = match js_api::<Value>(client, "INFO", &()).await {
        Ok(info) => info,
        Err(ApiError::Refused { code: 10039, description }) => {
            return Finding::failed(SUBJECT, description, "enable JetStream for the account");
        }
        Err(error) => return Finding::failed(SUBJECT, error.to_string(), "is JetStream on?"),
    };
    let (used, reserved) = (info["storage"].as_u64().unwrap_or(0), info["reserved_storage"].as_u64().unwrap_or(0));
    let text = format!("{} used, {} reserved", bytes(used), bytes(reserved));
    match info["limits"]["max_storage"].as_u64().filter(|most| *most > 0) {
        None => Finding::good(SUBJECT, format!("{text}, no limit of the account's own")),
        Some(most) if used > most / 10 * 9 => {
            let advice = "raise the account's limit, or lower nats.max_bytes: publishing fails when it is used up";
            Finding::failed(SUBJECT, format!("{text} of {}", bytes(most)), advice)
        }
        Some(most) => Finding::good(SUBJECT, format!("{text} of {}", bytes(most))),
    }
}

fn clock(server: &str, ahead: i64) -> Finding {
    let subject = format!("clock of NATS server {server}");
    skew(subject, ahead)
}

/// How a clock that is so many milliseconds ahead of this machine's is judged.
pub fn skew(subject: String, ahead: i64) -> Finding {
    let found = match ahead {
        -100..=100 => "within 0.1 s of this machine's".to_owned(),
        ahead if ahead > 0 => format!("{:.1} s ahead of this machine's", ahead as f64 / 1e3),
        behind => format!("{:.1} s behind this machine's", -behind as f64 / 1e3),
    };
    let advice = "synchronize the clocks (NTP): history, tokens and the log's proofs lean on them";
    match ahead.abs() {
        far if far > SKEW_LIMIT => Finding::failed(subject, found, advice),
        off if off > SKEW_WARNING => Finding::warning(subject, found, advice),
        _ => Finding::good(subject, found),
    }
}
