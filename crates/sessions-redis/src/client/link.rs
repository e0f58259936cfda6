//! One server for one purpose: a fred client of its own. fred's cluster client has one task for all servers, which waits
//! while it reconnects to one of them; with a client per server only the calls to that one wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use fred::clients::Client as Fred;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, ConnectionConfig, Options, PerformanceConfig, ReconnectPolicy, Server, ServerConfig, TcpConfig,
    TlsConnector, UnresponsiveConfig,
};
use fred::types::{ClusterHash, ConnectHandle, CustomCommand, RespVersion, Value};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::error::{Failure, Reply};
use super::{Address, Purpose, RedisConfig, RedisMetrics};

/// Attempts without an answer, one after the other, after which the connection is replaced: it may hang in a write. They must
/// span some time: a server that was held up for a moment leaves all calls without an answer that were under way.
const TIMEOUTS_UNTIL_REPLACED: u32 = 3;
const SILENCE_UNTIL_REPLACED: Duration = Duration::from_secs(1);
/// Silence after the last write of a connection that ends it; the system would try a lost host for a quarter of an hour.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// Wait between attempts to connect, plus up to as much jitter.
const RECONNECT_DELAY_MS: u32 = 100;

/// One command as it goes out.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub name: &'static str,
    pub arguments: Vec<Value>,
}

/// fred's client and the task that drives it; dropping it closes the connection.
struct Driven {
    client: Fred,
    driver: ConnectHandle,
    events: JoinHandle<()>,
    /// Why the last attempt to connect failed; empty while connected.
    trouble: Arc<Mutex<String>>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.driver.abort();
        self.events.abort();
    }
}

pub(super) struct Link {
    address: Address,
    purpose: Purpose,
    config: Arc<RedisConfig>,
    metrics: Arc<RedisMetrics>,
    driven: ArcSwap<Driven>,
    timeouts: AtomicU32,
    /// When the first of them ended.
    silent_since: Mutex<Instant>,
    room: Arc<Semaphore>,
}

impl Link {
    /// Begins to connect, and goes on for as long as the link exists.
    pub fn open(
        address: Address,
        purpose: Purpose,
        config: &Arc<RedisConfig>,
        metrics: &Arc<RedisMetrics>,
    ) -> Arc<Self> {
        let driven = drive(&address, purpose, config, metrics);
        Arc::new(Link {
            address,
            purpose,
            config: config.clone(),
            metrics: metrics.clone(),
            driven: ArcSwap::from_pointee(driven),
            timeouts: AtomicU32::new(0),
            silent_since: Mutex::new(Instant::now()),
            room: Arc::new(Semaphore::new(config.max_in_flight)),
        })
    }

    /// A place among the calls for this server; `None` at the bound.
    pub fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().try_acquire_owned().ok()
    }

    pub fn is_connected(&self) -> bool {
        self.driven.load().client.is_connected()
    }

    /// Sends one command, or with `asking` the two that a moving slot needs; sends nothing when `limit` is nothing.
    pub async fn send(&self, command: Wire, asking: bool, limit: Duration) -> Result<Value, Failure> {
        let driven = self.ready(limit)?;
        let result = if asking {
            let asking = Wire { name: "ASKING", arguments: Vec::new() };
            let mut answers = pipelined(&driven.client, vec![asking, command], limit).await;
            answers.pop().unwrap_or_else(|| Err(Error::new(ErrorKind::Protocol, "no answer")))
        } else {
            let options =
                Options { timeout: Some(limit), max_attempts: Some(1), fail_fast: true, ..Options::default() };
            driven.client.with_options(&options).custom(custom(command.name), command.arguments).await
        };
        self.judge(&driven, &result);
        result.map_err(|error| self.failure(&error))
    }

    /// Sends commands in one write; one answer for each. Sends nothing when `limit` is nothing.
    pub async fn send_all(&self, commands: Vec<Wire>, limit: Duration) -> Vec<Result<Value, Failure>> {
        let count = commands.len();
        let driven = match self.ready(limit) {
            Ok(driven) => driven,
            Err(failure) => return vec![Err(failure); count],
        };
        let mut answers = pipelined(&driven.client, commands, limit).await;
        if answers.len() != count {
            // A failed pipeline answers once for all.
            let error = answers.pop().and_then(Result::err);
            let error = error.unwrap_or_else(|| Error::new(ErrorKind::Protocol, "answers are missing"));
            answers = vec![Err(error); count];
        }
        if let Some(last) = answers.last() {
            self.judge(&driven, last);
        }
        answers.into_iter().map(|answer| answer.map_err(|error| self.failure(&error))).collect()
    }

    fn ready(&self, limit: Duration) -> Result<Arc<Driven>, Failure> {
        // fred takes a limit of nothing for none, and waits for ever.
        if limit.is_zero() {
            return Err(Failure::NotSent(format!("no time was left for {}", self.address)));
        }
        let driven = self.driven.load_full();
        if driven.driver.is_finished() {
            self.replace(&driven);
        } else if driven.client.is_connected() {
            return Ok(driven);
        }
        let trouble = driven.trouble.lock();
        let colon = if trouble.is_empty() { "" } else { ": " };
        Err(Failure::NotSent(format!("no connection to {}{colon}{trouble}", self.address)))
    }

    /// Counts timeouts in a row, and replaces a connection on which nothing is answered any more.
    fn judge(&self, driven: &Arc<Driven>, result: &Result<Value, Error>) {
        let timed_out = matches!(result, Err(error) if *error.kind() == ErrorKind::Timeout);
        if !timed_out {
            self.timeouts.store(0, Ordering::Relaxed);
            return;
        }
        let count = self.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
        let mut since = self.silent_since.lock();
        if count == 1 {
            *since = Instant::now();
        }
        let long = since.elapsed() >= SILENCE_UNTIL_REPLACED;
        drop(since);
        if count >= TIMEOUTS_UNTIL_REPLACED && long {
            self.replace(driven);
        }
    }

    fn replace(&self, driven: &Arc<Driven>) {
        let current = self.driven.load_full();
        if !Arc::ptr_eq(&current, driven) {
            return;
        }
        let fresh = Arc::new(drive(&self.address, self.purpose, &self.config, &self.metrics));
        if Arc::ptr_eq(&self.driven.compare_and_swap(&current, fresh), &current) {
            // Calls that still hold the old one must not keep its task.
            current.driver.abort();
            self.timeouts.store(0, Ordering::Relaxed);
            self.metrics.replaced(self.purpose);
            tracing::warn!(server = %self.address, purpose = self.purpose.name(), "connection to Redis replaced");
        }
    }

    fn failure(&self, error: &Error) -> Failure {
        let words = || format!("{}: {error}", self.address);
        match error.kind() {
            ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::IO | ErrorKind::Tls => Failure::Unknown(words()),
            ErrorKind::Backpressure | ErrorKind::Routing => Failure::NotSent(words()),
            // fred reports this one for every command under way on the connection, which it closes then.
            ErrorKind::Cluster if error.details().starts_with("CLUSTERDOWN") => Failure::Unknown(words()),
            ErrorKind::Unknown if error.details() == "Failed to route command." => Failure::NotSent(words()),
            ErrorKind::Unknown if error.details() == "Too many failed write attempts." => Failure::Unknown(words()),
            // The connection was replaced while the command was under way.
            ErrorKind::Unknown if error.details() == "channel closed" => Failure::Unknown(words()),
            _ => Failure::Reply(Reply::parse(error.details(), &self.address)),
        }
    }
}

fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// fred's own limit for a pipeline is that of the configuration, whatever the call still has.
async fn pipelined(client: &Fred, commands: Vec<Wire>, limit: Duration) -> Vec<Result<Value, Error>> {
    let pipeline = client.pipeline();
    for command in commands {
        if let Err(error) = pipeline.custom::<Value, _>(custom(command.name), command.arguments).await {
            return vec![Err(error)];
        }
    }
    match timeout(limit, pipeline.try_all()).await {
        Ok(answers) => answers,
        Err(_) => vec![Err(Error::new(ErrorKind::Timeout, "Request timed out."))],
    }
}

fn drive(address: &Address, purpose: Purpose, config: &RedisConfig, metrics: &Arc<RedisMetrics>) -> Driven {
    let name = config.tls.as_ref().and_then(|tls| tls.server_name.clone());
    let fred = Config {
        fail_fast: false,
        username: config.username.clone(),
        password: config.password.as_ref().map(|password| password.expose().to_owned()),
        server: ServerConfig::Centralized { server: Server::new_with_tls(address.host.as_str(), address.port, name) },
        version: RespVersion::RESP2,
        tls: config.tls.as_ref().map(|tls| TlsConnector::from((*tls.client).clone()).into()),
        ..Config::default()
    };
    let performance =
        PerformanceConfig { default_command_timeout: config.command_timeout, ..PerformanceConfig::default() };
    let connection = ConnectionConfig {
        connection_timeout: config.connect_timeout,
        internal_command_timeout: config.connect_timeout,
        // A command that left once is never sent again behind our back: it may have been executed.
        max_command_attempts: 1,
        max_command_buffer_len: config.max_in_flight.saturating_mul(2).max(64),
        disable_cluster_health_check: true,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        // Where calls are rare, three of them without an answer would take long.
        unresponsive: UnresponsiveConfig { max_timeout: Some(SILENT_FOR), interval: SILENT_FOR / 3 },
        ..ConnectionConfig::default()
    };
    let mut policy = ReconnectPolicy::new_constant(0, RECONNECT_DELAY_MS);
    policy.set_jitter(RECONNECT_DELAY_MS);
    let client = Fred::new(fred, Some(performance), Some(connection), Some(policy));
    let (connects, errors) = (client.reconnect_rx(), client.error_rx());
    let driver = client.connect();
    let trouble = Arc::new(Mutex::new(String::new()));
    let events = tokio::spawn(note_events(connects, errors, trouble.clone(), metrics.clone(), purpose));
    Driven { client, driver, events, trouble }
}

async fn note_events(
    mut connects: broadcast::Receiver<Server>,
    mut errors: broadcast::Receiver<(Error, Option<Server>)>,
    trouble: Arc<Mutex<String>>,
    metrics: Arc<RedisMetrics>,
    purpose: Purpose,
) {
    loop {
        tokio::select! {
            event = connects.recv() => match event {
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Ok(_) => {
                    metrics.connected(purpose);
                    trouble.lock().clear();
                }
            },
            event = errors.recv() => match event {
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Ok((error, _)) => *trouble.lock() = error.to_string(),
            },
        }
    }
}
