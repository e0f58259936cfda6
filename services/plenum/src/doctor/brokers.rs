//! NATS and Redis as this configuration reaches them.

use std::time::Duration;

use plenum_bus_nats::check::{self as nats_check, CheckConfig, monitoring};
use plenum_load::HttpTarget;
use plenum_sessions_redis::check as redis_check;
use plenum_telemetry::Finding;

use crate::cli::Doctor;
use crate::config::Config;
use crate::nats;
use crate::redis;

/// NATS, and what the named monitoring ports say.
pub async fn nats(arguments: &Doctor, config: &Config, limit: Duration) -> nats_check::Checked {
    if !config.nats.enabled() {
        let advice = "a single process needs none; for several name the configuration with --config";
        let skipped = Finding::skipped("servers", "nats.servers is not set", advice);
        return nats_check::Checked { nats: vec![skipped], ..Default::default() };
    }
    let check = CheckConfig {
        pool: nats::pool(&config.nats, "plenum-doctor"),
        log: nats::log(config),
        ledger: nats::ledger(config),
        largest: config.channel.max_publication_size,
        limit,
    };
    let mut checked = nats_check::check(&check).await;
    for url in &arguments.nats_monitoring {
        checked.nats.extend(monitored(url, limit).await);
    }
    if arguments.nats_monitoring.is_empty() {
        let advice = "name each server's monitoring port with --nats-monitoring http://HOST:8222";
        checked.nats.push(Finding::skipped("disks and sync settings", "only the monitoring ports tell them", advice));
    }
    checked
}

async fn monitored(url: &str, limit: Duration) -> Vec<Finding> {
    let advice = "is http_port set on that server, and may it be reached from here?";
    let failed = |reason: String| vec![Finding::failed(format!("monitoring {url}"), reason, advice)];
    let target = match HttpTarget::new(url, None) {
        Ok(target) => target.at("/jsz"),
        Err(error) => return failed(error.to_string()),
    };
    match target.get(limit).await {
        Ok(answer) => {
            let host = url.split_once("://").map_or(url, |(_, host)| host);
            let text = String::from_utf8_lossy(&answer.body);
            monitoring(host.trim_end_matches('/'), &text).unwrap_or_else(|error| failed(error.to_string()))
        }
        Err(error) => failed(error),
    }
}

/// Redis.
pub async fn redis(config: &Config, limit: Duration) -> redis_check::Checked {
    let only = |finding| redis_check::Checked { redis: vec![finding], ..Default::default() };
    if !config.redis.enabled() {
        let advice = "without it presence is each replica's own";
        return only(Finding::skipped("servers", "redis.servers is not set", advice));
    }
    match redis::settings(&config.redis) {
        Ok(settings) => redis_check::check(settings, limit).await,
        Err(error) => only(Finding::failed("settings", format!("{error:#}"), "correct the setting")),
    }
}
