//! Running a server: signals, reloading, the way down.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use plenum_channels::Node;
use plenum_websocket::Websocket;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::compose::{App, Services};
use crate::config::{self, Config, Sources};

/// Signals that the server listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    End,
    Reload,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
        }
    }

    async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}

/// Serves until SIGTERM or SIGINT, then ends within `shutdown.timeout`; a second one ends it at once. SIGHUP reads the
/// configuration again.
pub async fn run(app: App, mut config: Config, sources: &Sources) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let running = Running::start(app, config.shutdown.timeout);
    while signals.next().await == Told::Reload {
        reload(&running, &mut config, sources);
    }
    tracing::info!(timeout = ?config.shutdown.timeout, "stopping");
    tokio::select! {
        () = running.stop(config.shutdown.timeout) => tracing::info!("stopped"),
        () = signals.end() => tracing::warn!("stopped at once by a second signal"),
    }
    Ok(())
}

/// A server at work.
struct Running {
    node: Arc<Node>,
    websocket: Arc<Websocket<Arc<Node>>>,
    services: Arc<Services>,
    /// Ends the port for clients, then the internal one.
    public: CancellationToken,
    internal: CancellationToken,
    servers: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(app: App, grace: Duration) -> Self {
        let App { node, websocket, services, public: server, internal: internal_server } = app;
        let (public, internal) = (CancellationToken::new(), CancellationToken::new());
        let mut servers = vec![tokio::spawn(server.run(services.public_router(), public.clone(), grace))];
        if let Some(server) = internal_server {
            servers.push(tokio::spawn(server.run(services.internal_router(), internal.clone(), grace)));
        }
        // Timers and leases; ends with the node.
        node.start();
        Self { node, websocket, services, public, internal, servers }
    }

    /// Takes no new connections, closes those that are open so that their clients come back, and waits for the rest.
    async fn stop(self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.node.stop_accepting();
        self.public.cancel();
        let left = self.node.shutdown(grace).await;
        // The last bytes and close frames leave after the sessions have ended.
        if timeout_at(deadline, self.websocket.closed()).await.is_err() {
            tracing::warn!(sessions = left, sockets = self.websocket.open(), "the time is over: the rest is cut");
        }
        self.internal.cancel();
        for server in self.servers {
            if timeout_at(deadline, server).await.is_err() {
                tracing::warn!("requests under way are cut");
            }
        }
    }
}

/// Settings that take effect without a restart; every other one does not.
const HOT: [&str; 5] = ["client.", "channel.", "http_api.key", "http_api.insecure", "http_api.error_mode"];
const COLD: [&str; 2] = ["client.allowed_origins", "client.user_id_http_header"];

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

/// Reads the configuration again. What is wrong with it is logged, and everything stays as it was.
fn reload(running: &Running, config: &mut Config, sources: &Sources) {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => return tracing::error!(%error, "configuration not reloaded, the old one stays"),
    };
    let effective = effective(config, &loaded.config);
    if config::exposed(&effective) {
        let address = &effective.http_server.address;
        let error =
            format!("client.insecure = true contradicts http_server.address = {address:?}, which stays in force");
        return tracing::error!(error, "configuration not reloaded, the old one stays");
    }
    if let Err(error) = running.services.reload(&effective) {
        return tracing::error!(error = format!("{error:#}"), "configuration not reloaded, the old one stays");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let changed = config::changed(config, &loaded.config);
    let cold: Vec<&str> = changed.iter().map(String::as_str).filter(|key| !is_hot(key)).collect();
    if !cold.is_empty() {
        tracing::warn!(settings = cold.join(", "), "changed settings that take effect after a restart");
    }
    // What is cold stays in the running configuration, so that the next reload names it again.
    config.client = loaded.config.client;
    config.channel = loaded.config.channel;
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
        for hot in ["client.channel_limit", "client.token.hmac_secret_key", "channel.namespaces", "http_api.key"] {
            assert!(is_hot(hot), "{hot}");
        }
        for cold in ["client.allowed_origins", "http_server.port", "http_api.handler_prefix", "websocket.disabled"] {
            assert!(!is_hot(cold), "{cold}");
        }
    }
}
