//! The measured server, in its own process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::process::{CpuTime, resident_user_bytes};

/// The API key of measured servers, which listen on loopback only.
pub const API_KEY: &str = "bench-key";
/// The secret that tokens are signed with.
pub const TOKEN_SECRET: &str = "bench-secret-of-at-least-32-bytes-0123456789";
/// Channels of this namespace keep history.
pub const WITH_HISTORY: &str = "kept";

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);

/// The server that runs now. One at a time; here, so that a signal can end it too.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

/// A process and the file that it was started with, both gone when this is dropped.
struct Running {
    child: Child,
    config: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.config);
    }
}

fn running() -> MutexGuard<'static, Option<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the servers, then this process, on SIGINT, SIGTERM and SIGHUP.
pub fn stop_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _guard = runtime.enter();
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]
    };
    std::thread::spawn(move || {
        let [interrupt, terminate, hangup] = &mut signals;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        drop(running().take());
        crate::lines::nats::end_all();
        crate::lines::sessions::end_all();
        std::process::exit(130);
    });
    Ok(())
}

/// A running server; dropping it kills the process.
pub struct Server {
    pid: u32,
    address: SocketAddr,
}

impl Server {
    /// Starts `binary serve --config FILE` on a free port and waits until it listens.
    ///
    /// # Errors
    /// The process ended, or did not listen in time.
    pub fn start(binary: &Path) -> Result<Self> {
        let address = free_address()?;
        Self::start_with(binary, address, &settings(address))
    }

    /// The same on NATS with these settings, and with so much history in the namespace that keeps any; waits until it
    /// is ready.
    ///
    /// # Errors
    /// The process ended, or was not ready in time.
    pub fn start_on_nats(binary: &Path, nats: serde_json::Value, history: u64) -> Result<Self> {
        let address = free_address()?;
        let mut settings = settings(address);
        settings["nats"] = nats;
        let kept = &mut settings["channel"]["namespaces"][0];
        kept["history_size"] = json!(history);
        kept["history_ttl"] = json!("1h");
        kept["force_recovery"] = json!(true);
        Self::start_ready(binary, address, &settings)
    }

    /// On NATS and Redis with these settings, with presence in channels without a namespace; waits until it is ready.
    ///
    /// # Errors
    /// The process ended, or was not ready in time.
    pub fn start_on_cluster(binary: &Path, nats: serde_json::Value, redis: serde_json::Value) -> Result<Self> {
        let address = free_address()?;
        let mut settings = settings(address);
        settings["nats"] = nats;
        settings["redis"] = redis;
        settings["channel"]["without_namespace"]["presence"] = json!(true);
        Self::start_ready(binary, address, &settings)
    }

    fn start_ready(binary: &Path, address: SocketAddr, settings: &serde_json::Value) -> Result<Self> {
        let server = Self::start_with(binary, address, settings)?;
        let deadline = Instant::now() + START;
        while !crate::http::is_ready(address)? {
            if Instant::now() > deadline {
                bail!("the server is not ready after {START:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn start_with(binary: &Path, address: SocketAddr, settings: &serde_json::Value) -> Result<Self> {
        let config = std::env::temp_dir().join(format!("plenum-bench-{}-{}.json", std::process::id(), address.port()));
        fs::write(&config, settings.to_string()).with_context(|| format!("cannot write {}", config.display()))?;
        let child = Command::new(binary)
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::from(std::io::stderr()))
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_file(&config);
                return Err(error).with_context(|| format!("cannot start {}", binary.display()));
            }
        };
        let server = Self { pid: child.id(), address };
        *running() = Some(Running { child, config });
        server.wait_until_it_listens()?;
        Ok(server)
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = running().as_mut().map(|running| running.child.try_wait()).transpose()?.flatten() {
                bail!("the server ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("the server does not listen on {} after {START:?}", self.address);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time so far.
    pub fn cpu(&self) -> Result<CpuTime> {
        CpuTime::of(self.pid)
    }

    /// Resident user memory, bytes.
    pub fn memory(&self) -> Result<u64> {
        resident_user_bytes(self.pid)
    }

    /// CPU microseconds a second that it uses while nothing but `during` goes on.
    pub fn idle_cpu(&self, time: Duration, during: impl FnOnce(Duration) -> Result<()>) -> Result<f64> {
        let (start, before) = (Instant::now(), self.cpu()?);
        during(time)?;
        Ok(micros(self.cpu()?.since(&before)) / start.elapsed().as_secs_f64())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(running().take());
    }
}

/// The port is free again when the listener is dropped at the end of the statement.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Microseconds.
pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Defaults, and permissions for anonymous clients.
fn settings(address: SocketAddr) -> serde_json::Value {
    let permissions = json!({
        "allow_subscribe_for_client": true,
        "allow_subscribe_for_anonymous": true,
        "allow_publish_for_client": true,
        "allow_publish_for_anonymous": true,
    });
    let mut with_history = permissions.clone();
    with_history["name"] = json!(WITH_HISTORY);
    with_history["history_size"] = json!(100);
    with_history["history_ttl"] = json!("60s");
    json!({
        "http_server": { "address": address.ip(), "port": address.port() },
        "log": { "level": "error" },
        "client": {
            "allow_anonymous_connect_without_token": true,
            "token": { "hmac_secret_key": TOKEN_SECRET },
        },
        "channel": { "without_namespace": permissions, "namespaces": [with_history] },
        "http_api": { "key": API_KEY },
    })
}
