use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::follow::follow;
use super::{Client, ConfigError, Layout, Purpose, RedisConfig, RedisMetrics, Slots};
use crate::keys::{Keys, SLOTS};

/// Silence of all servers after which Redis is away. They are asked once a second, and wait half a second for an answer.
const AWAY_AFTER: Duration = Duration::from_secs(3);

/// What all clients share: configuration, layout, metrics.
pub(super) struct Shared {
    pub config: Arc<RedisConfig>,
    pub keys: Keys,
    pub slots: watch::Sender<Arc<Slots>>,
    /// Somebody met a server that does not serve what it should.
    pub wanted: Notify,
    /// When a server last answered the question for the layout, or the ping to a standalone one.
    pub answered: Mutex<Option<Instant>>,
    pub metrics: Arc<RedisMetrics>,
}

/// Redis, standalone or a cluster. Opening never waits and never fails for a Redis that is away: calls do, until it is
/// there.
pub struct Redis {
    shared: Arc<Shared>,
    follower: JoinHandle<()>,
}

impl Redis {
    /// Must be called within a tokio runtime; a task there asks for the cluster's layout, or whether the server
    /// is there, until this is dropped.
    pub fn open(config: RedisConfig, metrics: Arc<RedisMetrics>) -> Result<Arc<Self>, ConfigError> {
        config.check()?;
        let standalone = config.layout == Layout::Standalone;
        let slots = if standalone { Slots::standalone(config.servers[0].clone()) } else { Slots::unknown() };
        metrics.primaries.set(slots.primaries().len() as i64);
        metrics.slots.set(0);
        let shared = Arc::new(Shared {
            keys: Keys::new(&config),
            config: Arc::new(config),
            slots: watch::channel(Arc::new(slots)).0,
            wanted: Notify::new(),
            answered: Mutex::new(None),
            metrics,
        });
        let follower = tokio::spawn(follow(Arc::downgrade(&shared)));
        Ok(Arc::new(Redis { shared, follower }))
    }

    /// A client with connections of its own, made when they are first needed. Make one per purpose and keep it.
    pub fn client(&self, purpose: Purpose) -> Client {
        Client::new(self.shared.clone(), purpose)
    }

    /// Names keys under the configuration.
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// Counts of all clients.
    pub fn metrics(&self) -> &Arc<RedisMetrics> {
        &self.shared.metrics
    }

    /// Who serves what, as last heard; costs a pointer's copy.
    pub fn slots(&self) -> Arc<Slots> {
        self.shared.slots.borrow().clone()
    }

    /// What is wrong, as far as is known: no server answered for 3 s, or slots have no primary that the cluster takes for
    /// alive.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Tells each change of the layout.
    pub fn watch_slots(&self) -> watch::Receiver<Arc<Slots>> {
        self.shared.slots.subscribe()
    }
}

impl Shared {
    /// Slots that are served; none while no server answers.
    pub fn served(&self) -> usize {
        let answered = self.answered.lock().is_some_and(|at| at.elapsed() < AWAY_AFTER);
        if answered { self.slots.borrow().served() } else { 0 }
    }

    fn trouble(&self) -> Option<String> {
        let all = usize::from(SLOTS);
        match (self.served(), *self.answered.lock()) {
            (served, _) if served == all => None,
            (_, None) => Some("no contact".into()),
            (_, Some(at)) if at.elapsed() >= AWAY_AFTER => Some(format!("no answer for {} s", at.elapsed().as_secs())),
            (served, _) => Some(format!("{} of {SLOTS} slots have no primary", all - served)),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.follower.abort();
    }
}
