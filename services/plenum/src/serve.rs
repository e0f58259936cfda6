//! Running a server: signals, reloading, the way down.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use plenum_bus_nats::log::SetupError;
use plenum_channels::Node;
use plenum_websocket::Websocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::compose::{App, Services};
use crate::config::{self, Config, Sources};
use crate::consumers::Consuming;
use crate::nats::Nats;
use crate::open_files;
use crate::role::Role;

/// Signals that the server listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Move everybody elsewhere, then end.
    Drain,
    /// End now.
    End,
    Reload,
    Report,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            user: on(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Drain,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
            _ = self.user.recv() => Told::Report,
        }
    }

    /// Waits until somebody asks for the end, in one way or the other.
    async fn ending(&mut self) -> Told {
        loop {
            let told = self.next().await;
            if matches!(told, Told::Drain | Told::End) {
                return told;
            }
        }
    }
}

/// Serves until it is told to end. SIGTERM, and a request on the internal port, drain first; SIGINT, or a second signal
/// while it drains, ends it within `shutdown.timeout`; one more, at once. SIGHUP reads the configuration again, SIGUSR1
/// writes a report to the log. Losing NATS is no end; contradicting what a NATS cluster holds is one, with an error.
pub async fn run(app: App, mut config: Config, role: Role, sources: &Sources) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut refused = app.nats.as_ref().map(|nats| nats.start(&config));
    let consuming = app.nats.as_ref().filter(|_| matches!(role, Role::All | Role::Worker));
    let consuming = consuming.and_then(|nats| Consuming::start(&config, nats, &app.node));
    let mut running = Running::start(app, consuming, config.shutdown.timeout);
    let last = loop {
        tokio::select! {
            told = signals.next() => match told {
                // Reaching new servers may take its time; the end does not wait for it.
                Told::Reload => tokio::select! {
                    () = reload(&running, &mut config, role, sources) => {}
                    last = signals.ending() => break last,
                },
                Told::Report => running.report(),
                last => break last,
            },
            () = running.services.drain_asked() => break Told::Drain,
            error = ended(&mut refused) => {
                running.stop(config.shutdown.timeout).await;
                return Err(error.context("nats"));
            }
        }
    };
    let (drain, mut timeout) = config.shutdown.times();
    if last == Told::Drain {
        running.drain_consumers(drain + timeout);
        let node = running.node.clone();
        let drained = async { tokio::join!(node.drain(drain), time::timeout(drain, running.commands_done())) };
        tokio::select! {
            _ = drained => {}
            _ = signals.ending() => {
                tracing::warn!("a second signal hurries the drain");
                running.drain_consumers(timeout);
            }
        }
    } else {
        timeout = config.shutdown.timeout;
    }
    tracing::info!(?timeout, "stopping");
    tokio::select! {
        () = running.stop(timeout) => tracing::info!("stopped"),
        _ = signals.ending() => tracing::warn!("stopped at once by a further signal"),
    }
    Ok(())
}

/// Why the log on NATS cannot be used, ever; does not end without NATS.
async fn ended(refused: &mut Option<JoinHandle<SetupError>>) -> anyhow::Error {
    match refused {
        Some(task) => task.await.map_or_else(anyhow::Error::new, anyhow::Error::new),
        None => std::future::pending().await,
    }
}

/// What requests on the internal port may take when commands ended last.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// A server at work.
struct Running {
    node: Arc<Node>,
    websocket: Arc<Websocket<Arc<Node>>>,
    services: Arc<Services>,
    nats: Option<Arc<Nats>>,
    /// Ends the port for clients, then the internal one.
    public: CancellationToken,
    internal: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    consuming: Option<Consuming>,
    /// Commands at work are being finished, until then.
    draining: Option<(JoinHandle<()>, watch::Sender<Instant>)>,
}

impl Running {
    fn start(app: App, consuming: Option<Consuming>, grace: Duration) -> Self {
        let App { node, websocket, services, nats, public: server, internal: internal_server } = app;
        let (public, internal) = (CancellationToken::new(), CancellationToken::new());
        let mut servers = vec![tokio::spawn(server.run(services.public_router(), public.clone(), grace))];
        if let Some(server) = internal_server {
            servers.push(tokio::spawn(server.run(services.internal_router(), internal.clone(), grace)));
        }
        // Timers and leases; ends with the node.
        node.start();
        Self { node, websocket, services, nats, public, internal, servers, consuming, draining: None }
    }

    /// Has consumers end within `time`, beside everything else that does; whoever asks again sets another time.
    fn drain_consumers(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        if let Some(consuming) = self.consuming.take() {
            let (sender, receiver) = watch::channel(deadline);
            self.draining = Some((tokio::spawn(consuming.drain(receiver)), sender));
        } else if let Some((_, sender)) = &self.draining {
            sender.send_replace(deadline);
        }
    }

    /// Waits until consumers that were told to end have.
    async fn commands_done(&mut self) {
        if let Some((draining, _)) = &mut self.draining {
            let _ = draining.await;
            self.draining = None;
        }
    }

    /// Writes to the log what the connections to NATS use.
    fn report(&self) {
        match &self.nats {
            Some(nats) => nats.log_report(),
            None => tracing::info!("there is no report without NATS: see the metrics"),
        }
    }

    /// Takes no new connections, closes those that are open so that their clients come back, and waits for the rest.
    async fn stop(mut self, grace: Duration) {
        let mut deadline = Instant::now() + grace;
        if self.draining.is_none() {
            self.drain_consumers(grace);
        }
        self.node.stop_accepting();
        self.public.cancel();
        let left = self.node.shutdown(grace).await;
        // The last bytes and close frames leave after the sessions have ended.
        if timeout_at(deadline, self.websocket.closed()).await.is_err() {
            tracing::warn!(sessions = left, sockets = self.websocket.open(), "the time is over: the rest is cut");
        }
        if self.draining.is_some() {
            // They have a deadline of their own, at about the same time, and end before NATS is left.
            self.commands_done().await;
            deadline = deadline.max(Instant::now() + LAST_REQUESTS);
        }
        self.internal.cancel();
        for server in self.servers {
            if timeout_at(deadline, server).await.is_err() {
                tracing::warn!("requests under way are cut");
            }
        }
        if let Some(nats) = self.nats {
            nats.close().await;
        }
    }
}

/// Settings that take effect without a restart; every other one does not.
const HOT: [&str; 12] = [
    "client.",
    "channel.",
    "http_api.key",
    "http_api.insecure",
    "http_api.error_mode",
    "nats.servers",
    "nats.user",
    "nats.password",
    "nats.token",
    "nats.nkey_seed_file",
    "nats.creds_file",
    "nats.pool.",
];
const COLD: [&str; 4] =
    ["client.allowed_origins", "client.user_id_http_header", "nats.pool.subscribing", "nats.pool.discover_servers"];

fn is_hot(key: &str) -> bool {
    HOT.iter().any(|hot| key.starts_with(hot)) && !COLD.contains(&key)
}

/// The new configuration as far as it takes effect: ports, addresses and paths stay as they are.
fn effective(running: &Config, new: &Config) -> Config {
    let mut effective = new.clone();
    effective.http_server = running.http_server.clone();
    effective.http_api.handler_prefix = running.http_api.handler_prefix.clone();
    effective
}

/// What of new settings is in force after a reload.
fn with_cold(running: &config::Nats, new: &config::Nats) -> config::Nats {
    let mut nats = running.clone();
    nats.servers.clone_from(&new.servers);
    nats.user.clone_from(&new.user);
    nats.password = new.password.clone();
    nats.token = new.token.clone();
    nats.nkey_seed_file.clone_from(&new.nkey_seed_file);
    nats.creds_file.clone_from(&new.creds_file);
    let (subscribing, discover_servers) = (nats.pool.subscribing, nats.pool.discover_servers);
    nats.pool = config::NatsPool { subscribing, discover_servers, ..new.pool.clone() };
    nats
}

/// Reads the configuration again. What is wrong with it is logged, and everything stays as it was.
async fn reload(running: &Running, config: &mut Config, role: Role, sources: &Sources) {
    let mut loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => return tracing::error!(%error, "configuration not reloaded, the old one stays"),
    };
    role.apply(&mut loaded.config);
    loaded.warnings.extend(open_files::fit(&mut loaded.config));
    let effective = effective(config, &loaded.config);
    if config::exposed(&effective) {
        let address = &effective.http_server.address;
        let error =
            format!("client.insecure = true contradicts http_server.address = {address:?}, which stays in force");
        return tracing::error!(error, "configuration not reloaded, the old one stays");
    }
    let changed = config::changed(config, &loaded.config);
    let nats = running.nats.as_ref();
    if nats.is_some_and(|nats| !nats.keeps_places(&effective)) {
        let error = "retention_group, or how names are cut into namespaces, changed: that needs a restart";
        return tracing::error!(error, "configuration not reloaded, the old one stays");
    }
    if let Some(nats) = nats
        && let Err(error) = nats.record_places(&effective).await
    {
        return tracing::error!(%error, "configuration not reloaded, the old one stays");
    }
    if let Err(error) = running.services.reload(&effective) {
        return tracing::error!(error = format!("{error:#}"), "configuration not reloaded, the old one stays");
    }
    // All that does not lean on servers is in force by now.
    if let Some(nats) = nats.filter(|_| effective.nats.enabled()) {
        match nats.reload(&effective).await {
            Ok(()) => config.nats = with_cold(&config.nats, &effective.nats),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the settings of NATS connections stay as they were");
            }
        }
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let cold: Vec<&str> = changed.iter().map(String::as_str).filter(|key| !is_hot(key)).collect();
    if !cold.is_empty() {
        tracing::warn!(settings = cold.join(", "), "changed settings that take effect after a restart");
    }
    // What is cold stays in the running configuration, so that the next reload names it again.
    config.client = loaded.config.client;
    config.channel = loaded.config.channel;
    config.retention_groups = loaded.config.retention_groups;
    tracing::info!("configuration reloaded");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_address_is_not_in_force_for_what_needs_it() {
        let running = Config::default();
        let mut new = Config::default();
        new.http_server.address = "127.0.0.1".into();
        new.http_api.handler_prefix = "/other".into();
        new.client.insecure = true;
        assert!(!config::exposed(&new));
        let effective = effective(&running, &new);
        assert!(config::exposed(&effective), "the port that is bound is open to all");
        assert_eq!(effective.http_api.handler_prefix, running.http_api.handler_prefix);
    }

    #[test]
    fn keys_are_hot_or_cold() {
        for hot in ["client.channel_limit", "client.token.hmac_secret_key", "nats.pool.window", "http_api.key"] {
            assert!(is_hot(hot), "{hot}");
        }
        for cold in ["client.allowed_origins", "http_server.port", "nats.pool.subscribing", "nats.prefix"] {
            assert!(!is_hot(cold), "{cold}");
        }
    }
}
