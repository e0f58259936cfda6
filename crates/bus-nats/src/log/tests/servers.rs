//! NATS servers and replicas for the tests of the log.

use std::sync::Arc;
use std::time::Duration;

use crate::log::{GroupConfig, LogConfig, NatsLog, PoolLinks};
use crate::pool::{Pool, PoolConfig};

/// A prefix that no other test on the same servers has.
pub fn prefix() -> String {
    format!("t{:08x}", rand::random::<u32>())
}

pub fn config(prefix: &str, copies: u32) -> LogConfig {
    // A server refuses a stream whose bytes it could not hold; tests hold little.
    let groups = vec![GroupConfig { max_bytes: None, ..GroupConfig::default() }];
    LogConfig { prefix: prefix.into(), replicas: copies, groups, ..LogConfig::default() }
}

pub async fn pool(urls: Vec<String>) -> Arc<Pool> {
    let pool = Pool::connect(PoolConfig::new(urls)).await.unwrap();
    pool.wait_ready(Duration::from_secs(20)).await.unwrap();
    pool
}

/// One replica.
pub async fn replica(urls: Vec<String>, config: LogConfig) -> Arc<NatsLog> {
    NatsLog::start(PoolLinks::new(pool(urls).await), config).await.unwrap()
}

/// Replicas of one log under a prefix of its own.
pub async fn replicas(urls: &[String], count: usize, copies: u32) -> Vec<Arc<NatsLog>> {
    let prefix = prefix();
    let mut logs = Vec::new();
    for _ in 0..count {
        logs.push(replica(urls.to_vec(), config(&prefix, copies)).await);
    }
    logs
}
