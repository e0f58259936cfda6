//! A Redis Cluster for one measurement, ended with it or by a signal.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use plenum_sessions_redis::client::{Redis, RedisConfig, RedisMetrics};
use plenum_sessions_redis::testing::{RedisCluster, RedisServer};

use crate::process::CpuTime;
use crate::report::Unavailable;

/// The servers that run now; here, so that a signal can end them too.
static RUNNING: Mutex<Vec<RedisServer>> = Mutex::new(Vec::new());

/// How long a client may take to find the cluster.
const FOUND: Duration = Duration::from_secs(10);

fn running() -> MutexGuard<'static, Vec<RedisServer>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends whatever runs.
pub fn end_all() {
    running().clear();
}

/// Three primaries, each with a replica, nothing on disk. Dropping it ends them.
pub struct Servers {
    /// How clients find them.
    pub config: RedisConfig,
    pids: Vec<u32>,
}

impl Servers {
    /// Waits until all slots are served.
    pub async fn start() -> Result<Self> {
        let cluster = match RedisCluster::start().await {
            Ok(cluster) => cluster,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unavailable(error.to_string()).into()),
            Err(error) => return Err(error).context("cannot start a Redis Cluster"),
        };
        let config = cluster.config();
        let pids = cluster.servers.iter().filter_map(RedisServer::pid).collect();
        *running() = cluster.servers;
        Ok(Self { config, pids })
    }

    /// A client that knows who serves what.
    pub async fn client(&self) -> Result<Arc<Redis>> {
        let redis = Redis::open(self.config.clone(), RedisMetrics::new()?)?;
        let deadline = Instant::now() + FOUND;
        while redis.slots().covered() < 16_384 {
            ensure!(Instant::now() < deadline, "the cluster is not found within {FOUND:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(redis)
    }

    /// CPU time of all servers since `before`, which [`Servers::cpu`] gave.
    pub fn cpu_since(&self, before: &[CpuTime]) -> Result<Duration> {
        let now = self.cpu()?;
        Ok(now.iter().zip(before).map(|(now, before)| now.since(before)).sum())
    }

    /// CPU time of each server so far.
    pub fn cpu(&self) -> Result<Vec<CpuTime>> {
        self.pids.iter().map(|pid| CpuTime::of(*pid)).collect()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        end_all();
    }
}
