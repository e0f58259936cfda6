//! NATS servers for one measurement, ended with it or by a signal.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use plenum_bus_nats::testing::{ClusterOptions, NatsCluster, NatsServer, ServerOptions};

use crate::report::Unavailable;

/// The servers that run now; here, so that a signal can end them too.
static RUNNING: Mutex<Vec<NatsServer>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<NatsServer>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends whatever runs.
pub fn end_all() {
    running().clear();
}

/// One server or a cluster, with file storage in the folder for temporary files. Dropping it ends them.
pub struct Servers {
    /// Addresses for clients.
    pub urls: Vec<String>,
    /// Processes.
    pub pids: Vec<u32>,
}

impl Servers {
    /// As many as there are to be copies of a stream.
    pub async fn start(replicas: usize, sync: &str) -> Result<Self> {
        let server = ServerOptions {
            jetstream_settings: format!("max_mem: 128M\nmax_file: 16G\n{sync}"),
            ..ServerOptions::default()
        };
        let started = if replicas == 1 {
            NatsServer::start_with(server).await.map(|server| vec![server])
        } else {
            let options = ClusterOptions { size: replicas, server, ..ClusterOptions::default() };
            NatsCluster::start_with(options).await.map(|cluster| cluster.servers)
        };
        let servers = match started {
            Ok(servers) => servers,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unavailable(error.to_string()).into()),
            Err(error) => return Err(error).context("cannot start nats-server"),
        };
        let urls = servers.iter().map(NatsServer::url).collect();
        let pids = servers.iter().filter_map(NatsServer::pid).collect();
        *running() = servers;
        Ok(Self { urls, pids })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        end_all();
    }
}
