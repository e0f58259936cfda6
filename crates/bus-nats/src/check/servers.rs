//! Each NATS server by itself: over a connection of its own, and by what its monitoring port says.

use std::time::Duration;

use futures_util::future::join_all;
use plenum_telemetry::Finding;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::{CheckConfig, open};
use crate::log::{bytes, is_new_enough, min_server};
use crate::pool::PoolConfig;

/// Bytes that a message has beside its payload, at most: subject, headers, envelope.
const ENVELOPE: usize = 8_192;

/// Connects to each configured server, at the same time.
pub(super) async fn each(config: &CheckConfig) -> Vec<Finding> {
    join_all(config.pool.servers.iter().map(|server| one(config, server))).await
}

async fn one(config: &CheckConfig, server: &str) -> Finding {
    let subject = format!("server {server}");
    let alone = PoolConfig { servers: vec![server.to_owned()], discover_servers: false, ..config.pool.clone() };
    let started = Instant::now();
    let pool = match open(&alone, config.limit).await {
        Ok(pool) => pool,
        Err(error) => {
            let advice = "is it up, is the address right, and does it take nats.user, nats.tls and so on?";
            return Finding::failed(subject, error, advice);
        }
    };
    let took = started.elapsed();
    // A client counts as connected a moment before it has kept what the server said of itself.
    let known = async {
        loop {
            match pool.any().try_server_info() {
                Some(info) => return info,
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let info = timeout(config.limit, known).await.unwrap_or_default();
    pool.close(Duration::ZERO).await;
    let cluster = info.cluster.map_or("no cluster".to_owned(), |name| format!("cluster {name}"));
    let found = format!(
        "{} {}, {cluster}, connected in {} ms, messages of up to {}",
        info.server_name,
        info.version,
        took.as_millis(),
        bytes(info.max_payload as u64)
    );
    if !is_new_enough(&info.version) {
        return Finding::failed(subject, found, format!("NATS {} or later is needed", min_server()));
    }
    if !info.jetstream {
        return Finding::warning(subject, found, "JetStream is off there: another server has to have the log");
    }
    if info.max_payload < config.largest + ENVELOPE {
        let advice = "raise max_payload of the NATS servers, or lower channel.max_publication_size";
        return Finding::failed(subject, found, advice);
    }
    if info.lame_duck_mode {
        return Finding::warning(subject, found, "it is about to stop; replicas move elsewhere by themselves");
    }
    Finding::good(subject, found)
}

/// Why the answer of a monitoring port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("not the answer of a NATS server's /jsz: {reason}")]
pub struct MonitoringError {
    /// What is wrong with it.
    pub reason: String,
}

/// What `/jsz` of a server's monitoring port says of its disk and of what it promises.
pub fn monitoring(server: &str, jsz: &str) -> Result<Vec<Finding>, MonitoringError> {
    let wrong = |error: &dyn std::fmt::Display| MonitoringError { reason: error.to_string() };
    let jsz: Jsz = serde_json::from_str(jsz).map_err(|error| wrong(&error))?;
    let subject = format!("disk of {server}");
    if jsz.disabled {
        let advice = "JetStream is off there: another server has to have the log";
        return Ok(vec![Finding::warning(subject, "JetStream is disabled", advice)]);
    }
    let (most, used, reserved) = (jsz.config.max_storage, jsz.storage, jsz.reserved_storage);
    let text = format!("{} used, {} reserved of {}", bytes(used), bytes(reserved), bytes(most));
    let disk = if used > most / 10 * 9 {
        let advice = "give it more disk, or lower nats.max_bytes: appends fail when it is full";
        Finding::failed(&*subject, text, advice)
    } else if used > most / 10 * 7 {
        Finding::warning(&*subject, text, "give it more disk before it is full")
    } else {
        Finding::good(&*subject, text)
    };
    let subject = format!("sync of {server}");
    let sync = if jsz.config.sync_always {
        Finding::good(subject, "every message is on disk before it is acknowledged (sync_interval: always)")
    } else {
        let seconds = jsz.config.sync_interval as f64 / 1e9;
        let found = format!("acknowledged messages reach the disk within {seconds:.0} s");
        let advice =
            "a power failure of a majority of the servers loses them; sync_interval: always is the safe setting";
        Finding::warning(subject, found, advice)
    };
    Ok(vec![disk, sync])
}

#[derive(Deserialize)]
struct Jsz {
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    config: JszConfig,
    #[serde(default)]
    storage: u64,
    #[serde(default)]
    reserved_storage: u64,
}

#[derive(Default, Deserialize)]
struct JszConfig {
    #[serde(default)]
    max_storage: u64,
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}
