//! A small pool of NATS connections for any number of channels. `docs/nats.md` describes it for operators.

#[cfg(test)]
mod access_tests;
mod auth;
mod config;
mod connection;
mod error;
mod events;
mod lease;
mod link;
mod metrics;
mod pins;
mod reload;
mod stats;
#[cfg(test)]
mod tests;
mod tls;
mod upkeep;

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

pub use config::{Credentials, PoolConfig, Tls};
pub use error::PoolError;
pub use events::{EventKind, PoolEvent, Role, subscription_id};
pub use lease::Lease;
pub use metrics::PoolCollector;
pub use reload::Reloaded;
pub use stats::{ConnectionStats, PoolStats};

use crate::publish::Window;
use connection::Connection;
use lease::Leases;
use link::Link;
pub(crate) use link::SLOW_PAUSE;
use pins::Pins;
pub(crate) use pins::spread;

/// Events that a slow receiver may lag behind before it loses the oldest.
const EVENTS: usize = 1024;

/// The pool. Losing NATS never ends it: each connection seeks contact for ever.
pub struct Pool {
    config: Arc<ArcSwap<PoolConfig>>,
    events: broadcast::Sender<PoolEvent>,
    publishing: ArcSwap<Vec<Arc<Connection>>>,
    subscribing: Vec<Arc<Connection>>,
    retiring: Mutex<Vec<Arc<Connection>>>,
    pins: Pins,
    leases: Leases,
    round: AtomicUsize,
    next_id: AtomicUsize,
    /// Where in the list of servers this pool begins, so that many pools spread over them.
    spread: usize,
    recycled: AtomicU64,
    resized: AtomicU64,
    /// Serializes changes of the set of publishing connections.
    changing: tokio::sync::Mutex<()>,
    upkeep: Mutex<Option<JoinHandle<()>>>,
}

impl Pool {
    /// Opens the pool. Connections are made in the background, so no server needs to answer now.
    ///
    /// Fails on settings that can never work: no server, an address that is none, a bound of zero.
    pub async fn connect(config: PoolConfig) -> Result<Arc<Self>, PoolError> {
        check(&config).await?;
        let (events, _) = broadcast::channel(EVENTS);
        let mut pool = Pool {
            publishing: ArcSwap::from_pointee(Vec::new()),
            subscribing: Vec::new(),
            retiring: Mutex::new(Vec::new()),
            pins: Pins::new(),
            leases: Leases::default(),
            round: AtomicUsize::new(0),
            next_id: AtomicUsize::new(0),
            spread: rand::random_range(0..config.servers.len()),
            recycled: AtomicU64::new(0),
            resized: AtomicU64::new(0),
            changing: tokio::sync::Mutex::new(()),
            upkeep: Mutex::new(None),
            config: Arc::new(ArcSwap::from_pointee(config.clone())),
            events,
        };
        for _ in 0..config.subscribing {
            let connection = pool.open(Role::Subscribing).await?;
            pool.subscribing.push(connection);
        }
        let mut publishing = Vec::with_capacity(config.publishing);
        for _ in 0..config.publishing {
            publishing.push(pool.open(Role::Publishing).await?);
        }
        pool.publishing.store(Arc::new(publishing));
        let pool = Arc::new(pool);
        *pool.upkeep.lock() = Some(tokio::spawn(upkeep::run(Arc::downgrade(&pool))));
        Ok(pool)
    }

    /// Waits until every connection in use has had contact, at most for `deadline`.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<(), PoolError> {
        let mut events = self.events.subscribe();
        let ready =
            || self.subscribing.iter().chain(self.publishing.load().iter()).all(|connection| connection.is_up());
        let wait = async {
            while !ready() {
                // The event may come a moment before the client's own state changes.
                let _ = tokio::time::timeout(Duration::from_millis(20), events.recv()).await;
            }
        };
        tokio::time::timeout(deadline, wait).await.map_err(|_| {
            let mut all = self.subscribing.iter().chain(self.publishing.load().iter()).cloned().collect::<Vec<_>>();
            all.retain(|connection| !connection.is_up());
            PoolError::NotReady {
                waited: deadline,
                reason: all.iter().find_map(|connection| connection.link.trouble()),
            }
        })
    }

    /// The connection of a key whose order matters (a channel): the same one while anything of it is in flight, that
    /// is, while a [`Pinned`] of it lives. Keep the guard until the acknowledgement. A request that was given up may
    /// still leave later, from the connection that it was given to.
    pub fn pinned(self: &Arc<Self>, hash: u64) -> Pinned {
        let (pin, connection) = self.pins.take(hash, |key| {
            let set = self.publishing.load();
            let first = pins::bucket(key, set.len());
            // Nothing of the key is in flight: a connection with contact is as good.
            let up = (0..set.len()).map(|step| &set[(first + step) % set.len()]).find(|connection| connection.is_up());
            up.unwrap_or(&set[first]).clone()
        });
        Pinned { pool: self.clone(), pin, connection, extra: AtomicUsize::new(0) }
    }

    /// The connection at this place among those for publishing, counted round, or the next one with contact; and whether it
    /// is the one at that place. For holders that spread evenly over the connections.
    pub fn placed(&self, place: usize) -> (InUse, bool) {
        let mut own = true;
        let connection = self.acquire(|set| {
            let turn = (0..set.len()).map(|step| (place + step) % set.len());
            let chosen = turn.clone().find(|index| set[*index].is_up()).or(turn.clone().next())?;
            own = Some(chosen) == turn.clone().next();
            set.get(chosen)
        });
        (InUse { connection, extra: AtomicUsize::new(0) }, own)
    }

    /// How many connections there are for publishing.
    pub fn publishing(&self) -> usize {
        self.publishing.load().len()
    }

    /// A connection for one request: the lowest product of measured round trip and uses among those with contact;
    /// in turn where that is equal.
    pub fn any(&self) -> InUse {
        InUse { connection: self.lightest(), extra: AtomicUsize::new(0) }
    }

    fn lightest(&self) -> Arc<Connection> {
        self.acquire(|set| {
            let first = self.round.fetch_add(1, Ordering::Relaxed);
            let weight = |connection: &&Arc<Connection>| {
                let round_trip = connection.round_trip().unwrap_or(Duration::from_millis(1)).as_micros() as u64;
                // Coarse, so that noise does not send everything one way.
                (!connection.is_up(), (round_trip / 256 + 1) * (connection.in_flight() as u64 + 1))
            };
            let turn = (0..set.len()).map(|step| &set[(first + step) % set.len()]);
            turn.min_by_key(weight)
        })
    }

    /// The connection that `choose` finds among those for publishing, in use from now on.
    fn acquire(&self, mut choose: impl FnMut(&[Arc<Connection>]) -> Option<&Arc<Connection>>) -> Arc<Connection> {
        loop {
            let set = self.publishing.load();
            let Some(connection) = choose(&set) else { continue };
            if connection.acquire() {
                return connection.clone();
            }
            // Replaced just now, unless the whole pool is closed: then its requests fail by themselves.
            if connection.link.closed.is_cancelled() {
                connection.join();
                return connection.clone();
            }
        }
    }

    /// The connection that carries the subscriptions of a key; the same for the life of the pool.
    pub fn subscribing(&self, hash: u64) -> async_nats::Client {
        self.subscribing[self.subscribing_index(hash)].client.clone()
    }

    /// The number of that connection, as events name it: `0..PoolConfig::subscribing`.
    pub fn subscribing_index(&self, hash: u64) -> usize {
        (pins::spread(hash) % self.subscribing.len() as u64) as usize
    }

    /// A connection for a series of requests (paging, exports); see [`Lease`].
    #[track_caller]
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.lease_at(Location::caller())
    }

    /// As [`Pool::lease`], for a holder that names the place itself.
    pub fn lease_at(self: &Arc<Self>, taken_at: &'static Location<'static>) -> Lease {
        Lease::new(self.clone(), self.lightest(), taken_at)
    }

    /// Events of all connections from now on. A receiver that lags more than 1,024 events behind is told by
    /// [`RecvError::Lagged`](broadcast::error::RecvError::Lagged) and must verify everything.
    pub fn events(&self) -> broadcast::Receiver<PoolEvent> {
        self.events.subscribe()
    }

    /// Leaves the server of this connection and takes the next one at once. For a connection that is alive while
    /// requests on it keep failing.
    pub async fn force_reconnect(&self, connection: usize) -> Result<(), PoolError> {
        let found = self.all().into_iter().find(|candidate| candidate.id() == connection);
        found.ok_or(PoolError::NoSuchConnection { connection })?.reconnect().await
    }

    /// Numbers at this moment.
    pub fn stats(&self) -> PoolStats {
        let retiring: Vec<usize> = self.retiring.lock().iter().map(|connection| connection.id()).collect();
        let (leases, oldest) = self.leases.summary();
        PoolStats {
            connections: self.all().iter().map(|one| upkeep::measure(one, retiring.contains(&one.id()))).collect(),
            recycled: self.recycled.load(Ordering::Relaxed),
            resized: self.resized.load(Ordering::Relaxed),
            leases,
            oldest_lease_seconds: oldest.map(|age| age.as_secs_f64()),
            leases_reclaimed: self.leases.reclaimed.load(Ordering::Relaxed),
        }
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<PoolConfig> {
        self.config.load_full()
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        let publishing = self.publishing.load();
        let retiring = self.retiring.lock();
        self.subscribing.iter().chain(publishing.iter()).chain(retiring.iter()).cloned().collect()
    }

    async fn open(&self, role: Role) -> Result<Arc<Connection>, PoolError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let link = Link::new(id, role, self.spread + id, self.config.clone(), self.events.clone());
        Connection::open(link, &self.config.load()).await
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(upkeep) = self.upkeep.get_mut().take() {
            upkeep.abort();
        }
    }
}

/// Refuses settings that can never work.
async fn check(config: &PoolConfig) -> Result<(), PoolError> {
    link::parse_servers(&config.servers)?;
    let bounds = [
        ("publishing", config.publishing),
        ("min_publishing", config.min_publishing),
        ("subscribing", config.subscribing),
        ("window", config.window),
    ];
    for (setting, value) in bounds {
        if value == 0 {
            return Err(PoolError::Setting { setting, value, expected: "at least 1" });
        }
    }
    if config.max_publishing < config.publishing || config.min_publishing > config.publishing {
        let expected = "between min_publishing and max_publishing";
        return Err(PoolError::Setting { setting: "publishing", value: config.publishing, expected });
    }
    auth::authenticate(&config.credentials, b"check")
        .await
        .map_err(|error| PoolError::Credentials { setting: "credentials", reason: error.to_string() })?;
    tls::check(&config.tls).await
}

/// The connection of a pinned key, counted as in flight until dropped.
pub struct Pinned {
    pool: Arc<Pool>,
    pin: usize,
    connection: Arc<Connection>,
    extra: AtomicUsize,
}

impl Pinned {
    /// The client. Do not keep a clone beyond the guard: the connection may be closed after it.
    pub fn client(&self) -> &async_nats::Client {
        &self.connection.client
    }

    /// The connection's number, for [`Pool::force_reconnect`].
    pub fn connection(&self) -> usize {
        self.connection.id()
    }

    /// Says how many requests are in flight under this guard, for the load by which the pool is resized; one until then.
    pub fn carries(&self, requests: usize) {
        self.connection.carry(&self.extra, requests);
    }

    /// The connection's window of publishes that wait for JetStream's acknowledgement.
    pub fn window(&self) -> &Arc<Window> {
        &self.connection.window
    }
}

impl std::ops::Deref for Pinned {
    type Target = async_nats::Client;

    fn deref(&self) -> &async_nats::Client {
        &self.connection.client
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pool.pins.give_back(self.pin);
        self.connection.carry(&self.extra, 0);
        self.connection.release();
    }
}

/// A connection for one request, counted as in flight until dropped.
pub struct InUse {
    connection: Arc<Connection>,
    extra: AtomicUsize,
}

impl InUse {
    /// The client. Do not keep a clone beyond the guard: the connection may be closed after it.
    pub fn client(&self) -> &async_nats::Client {
        &self.connection.client
    }

    /// The connection's number, for [`Pool::force_reconnect`].
    pub fn connection(&self) -> usize {
        self.connection.id()
    }

    /// Says how many requests are in flight under this guard, for the load by which the pool is resized; one until then.
    pub fn carries(&self, requests: usize) {
        self.connection.carry(&self.extra, requests);
    }

    /// The connection's window of publishes that wait for JetStream's acknowledgement.
    pub fn window(&self) -> &Arc<Window> {
        &self.connection.window
    }
}

impl std::ops::Deref for InUse {
    type Target = async_nats::Client;

    fn deref(&self) -> &async_nats::Client {
        &self.connection.client
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.connection.carry(&self.extra, 0);
        self.connection.release();
    }
}
