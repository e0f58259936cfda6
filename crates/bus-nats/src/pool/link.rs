//! One connection's way to a server: which one, when, and with which credentials.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_nats::connection::State;
use async_nats::{ConnectOptions, Event, ReconnectToServer, Server, ServerAddr, ServerError};
use hashbrown::HashMap;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use super::{EventKind, PoolConfig, PoolError, PoolEvent, Role, auth};

/// A connection that lasted this long starts anew with short delays when it breaks.
const STABLE_AFTER: Duration = Duration::from_secs(5);

/// One event for all the messages that a full subscription drops in this time.
pub(crate) const SLOW_PAUSE: Duration = Duration::from_millis(50);

/// What the callbacks of the client library share with the pool.
pub(super) struct Link {
    pub(super) id: usize,
    pub(super) role: Role,
    /// The pool's present settings: credentials and delays follow a reload at the next connect.
    config: Arc<ArcSwap<PoolConfig>>,
    events: broadcast::Sender<PoolEvent>,
    pub(super) closed: CancellationToken,
    /// Attempts since the last stable connection.
    attempts: AtomicU32,
    /// Which server of the list comes next.
    next: AtomicUsize,
    /// The next attempt waits for nothing.
    at_once: AtomicBool,
    /// Ends the pause before the next attempt.
    roused: Notify,
    target: Mutex<Option<String>>,
    /// Why the last attempt failed; none after a contact.
    trouble: Mutex<Option<String>>,
    up_since: Mutex<Option<Instant>>,
    pub(super) connects: AtomicU64,
    pub(super) slow_consumers: AtomicU64,
    /// The slow consumers that were told of, and when.
    slow: Mutex<HashMap<u64, Instant>>,
    pub(super) lame_duck: AtomicBool,
}

impl Link {
    pub(super) fn new(
        id: usize,
        role: Role,
        spread: usize,
        config: Arc<ArcSwap<PoolConfig>>,
        events: broadcast::Sender<PoolEvent>,
    ) -> Arc<Self> {
        Arc::new(Link {
            id,
            role,
            config,
            events,
            closed: CancellationToken::new(),
            attempts: AtomicU32::new(0),
            next: AtomicUsize::new(spread),
            at_once: AtomicBool::new(false),
            roused: Notify::new(),
            target: Mutex::new(None),
            trouble: Mutex::new(None),
            up_since: Mutex::new(None),
            connects: AtomicU64::new(0),
            slow_consumers: AtomicU64::new(0),
            slow: Mutex::default(),
            lame_duck: AtomicBool::new(false),
        })
    }

    /// Starts the client, which connects in the background and for ever.
    pub(super) async fn connect(self: &Arc<Self>) -> Result<async_nats::Client, PoolError> {
        let config = self.config.load_full();
        let servers = parse_servers(&config.servers)?;
        let mut options = ConnectOptions::with_auth_callback({
            let link = self.clone();
            move |nonce| {
                let config = link.config.load_full();
                async move { auth::authenticate(&config.credentials, &nonce).await }
            }
        })
        .name(format!("{}-{}-{}", config.name, self.role.name(), self.id))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .connection_timeout(config.connect_timeout)
        .ping_interval(config.client_ping_every)
        .subscription_capacity(config.subscription_capacity)
        .custom_inbox_prefix(&config.inbox_prefix)
        .require_tls(config.tls.required)
        // The pool's own callers set a deadline on each wait.
        .request_timeout(Some(Duration::from_secs(10)))
        .reconnect_to_server_callback({
            let link = self.clone();
            move |servers, _| link.clone().choose(servers)
        })
        .event_callback({
            let link = self.clone();
            move |event| {
                link.observe(event);
                std::future::ready(())
            }
        });
        if !config.discover_servers {
            options = options.ignore_discovered_servers();
        }
        if config.tls.first {
            options = options.tls_first();
        }
        if let Some(ca) = &config.tls.ca_file {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((certificate, key)) = &config.tls.client_files {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        options
            .connect(servers)
            .await
            .map_err(|error| PoolError::Address { address: config.servers.join(","), reason: error.to_string() })
    }

    /// The server of the next attempt, after the delay that is due.
    ///
    /// The client library retries for ever and cannot be told to stop; unwinding out of this callback ends its task.
    async fn choose(self: Arc<Self>, servers: Vec<Server>) -> Option<ReconnectToServer> {
        if servers.is_empty() {
            return None;
        }
        self.note_trouble(&servers);
        let mut delay = self.delay(servers.len());
        loop {
            tokio::select! {
                () = tokio::time::sleep(delay) => break,
                () = self.roused.notified() => delay = self.delay(servers.len()),
                () = self.closed.cancelled() => std::panic::resume_unwind(Box::new("the connection was closed")),
            }
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed) % servers.len();
        let addr = servers[index].addr.clone();
        *self.target.lock() = Some(name(&addr));
        Some(ReconnectToServer { addr, delay: Some(Duration::ZERO) })
    }

    /// Full jitter below a bound that doubles with each round over the servers; nothing in the very first round.
    fn delay(&self, servers: usize) -> Duration {
        let stable = self.up_since.lock().take().is_some_and(|since| since.elapsed() >= STABLE_AFTER);
        if stable {
            self.attempts.store(0, Ordering::Relaxed);
        }
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        if self.connects.load(Ordering::Relaxed) == 0 && (attempt as usize) < servers {
            return Duration::ZERO;
        }
        if self.at_once.swap(false, Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let config = self.config.load();
        let bound = backoff_bound(config.backoff_min, config.backoff_max, attempt / servers.max(1) as u32);
        rand::rng().random_range(Duration::ZERO..=bound)
    }

    /// Keeps why the server that was tried last could not be had.
    fn note_trouble(&self, servers: &[Server]) {
        let Some(target) = self.target.lock().clone() else { return };
        let tried = servers.iter().find(|server| name(&server.addr) == target);
        if let Some(error) = tried.and_then(|server| server.last_error.as_ref()) {
            *self.trouble.lock() = Some(format!("{target}: {error}"));
        }
    }

    /// Why there is no contact, as far as that is known.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Begins anew with short pauses, the present one included: something has changed.
    pub(super) fn rouse(&self) {
        self.attempts.store(0, Ordering::Relaxed);
        self.roused.notify_one();
    }

    /// The next attempt follows at once, to the next server.
    pub(super) fn hurry(&self) {
        self.at_once.store(true, Ordering::Relaxed);
    }

    pub(super) fn server(&self) -> String {
        self.target.lock().clone().unwrap_or_default()
    }

    fn observe(&self, event: Event) {
        let kind = match event {
            Event::Connected => {
                *self.up_since.lock() = Some(Instant::now());
                self.at_once.store(false, Ordering::Relaxed);
                self.lame_duck.store(false, Ordering::Relaxed);
                *self.trouble.lock() = None;
                let server = self.server();
                match self.connects.fetch_add(1, Ordering::Relaxed) {
                    0 => EventKind::Connected { server },
                    _ => EventKind::Reconnected { server },
                }
            }
            Event::Disconnected => EventKind::Disconnected,
            Event::LameDuckMode => {
                self.lame_duck.store(true, Ordering::Relaxed);
                EventKind::LameDuck
            }
            Event::SlowConsumer(subscription) | Event::ServerError(ServerError::SlowConsumer(subscription)) => {
                self.slow_consumers.fetch_add(1, Ordering::Relaxed);
                if !self.is_news(subscription) {
                    return;
                }
                EventKind::SlowConsumer { subscription }
            }
            Event::ServerError(error) => EventKind::Error { message: error.to_string() },
            Event::ClientError(error) => EventKind::Error { message: error.to_string() },
            Event::Draining | Event::Closed => return,
        };
        let (connection, role) = (self.id, self.role.name());
        match &kind {
            EventKind::Connected { server } | EventKind::Reconnected { server } => {
                tracing::info!(connection, role, server, "NATS connection is up");
            }
            // A retired connection goes by our own will.
            EventKind::Disconnected if self.closed.is_cancelled() => {}
            other => tracing::warn!(connection, role, event = ?other, "NATS connection"),
        }
        // Nobody may be listening.
        let _ = self.events.send(PoolEvent { connection, role: self.role, kind });
    }
}

impl Link {
    /// The library tells of each dropped message; once in [`SLOW_PAUSE`] is enough, and keeps room for other events.
    fn is_news(&self, subscription: u64) -> bool {
        let (mut slow, now) = (self.slow.lock(), Instant::now());
        slow.retain(|_, told| now.duration_since(*told) < SLOW_PAUSE);
        slow.try_insert(subscription, now).is_ok()
    }
}

fn name(addr: &ServerAddr) -> String {
    format!("{}:{}", addr.host(), addr.port())
}

/// `min × 2^round`, at most `max`.
fn backoff_bound(min: Duration, max: Duration, round: u32) -> Duration {
    min.saturating_mul(1u32.checked_shl(round).unwrap_or(u32::MAX)).min(max)
}

pub(super) fn parse_servers(servers: &[String]) -> Result<Vec<ServerAddr>, PoolError> {
    if servers.is_empty() {
        return Err(PoolError::NoServers);
    }
    servers
        .iter()
        .map(|address| {
            address.parse().map_err(|error: std::io::Error| PoolError::Address {
                address: address.clone(),
                reason: error.to_string(),
            })
        })
        .collect()
}

/// Whether the client has a connection now.
pub(super) fn is_up(client: &async_nats::Client) -> bool {
    client.connection_state() == State::Connected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_bound() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(30));
        let bounds: Vec<u64> = (0..7).map(|round| backoff_bound(min, max, round).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(backoff_bound(min, max, 40), max);
    }
}
