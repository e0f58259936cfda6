//! Real Redis servers for tests, on free loopback ports, ended with the test.

mod admin;
mod cluster;
mod server;
#[cfg(test)]
mod tests;

pub use admin::Reply;
pub use cluster::{ClusterOptions, RedisCluster};
pub use server::{RedisServer, ServerOptions, TestTls};

use std::collections::BTreeSet;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;

use crate::client::RedisConfig;

/// The server binary: `PLENUM_TEST_REDIS_SERVER`, else what `deploy/tools/install redis` unpacked, else the PATH's.
fn binary() -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("PLENUM_TEST_REDIS_SERVER") {
        return Ok(path.into());
    }
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/redis/bin/redis-server"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("redis-server"));
    std::iter::once(installed).chain(on_path).find(|candidate| candidate.is_file()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no redis-server: run `deploy/tools/install redis` or set PLENUM_TEST_REDIS_SERVER",
        )
    })
}

fn patient(config: RedisConfig) -> RedisConfig {
    let seconds = Duration::from_secs;
    RedisConfig { connect_timeout: seconds(5), command_timeout: seconds(10), deadline: seconds(20), ..config }
}

/// Ports that were given out: a server may not listen on its one yet.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that was free a moment ago, below the range of outgoing connections, which could take it before the server.
fn free_port() -> io::Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(10_000..32_000);
        if GIVEN.lock().insert(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
}
