use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::follow::follow;
use super::{Client, ConfigError, Layout, Purpose, RedisConfig, RedisMetrics, Slots};
use crate::keys::Keys;

/// What all clients share: configuration, layout, metrics.
pub(super) struct Shared {
    pub config: Arc<RedisConfig>,
    pub keys: Keys,
    pub slots: watch::Sender<Arc<Slots>>,
    /// Somebody met a server that does not serve what it should.
    pub wanted: Notify,
    pub metrics: Arc<RedisMetrics>,
}

/// Redis, standalone or a cluster. Opening never waits and never fails for a Redis that is away: calls do, until it is
/// there.
pub struct Redis {
    shared: Arc<Shared>,
    follower: Option<JoinHandle<()>>,
}

impl Redis {
    /// Must be called within a tokio runtime; a task there follows the cluster's layout until this is dropped.
    pub fn open(config: RedisConfig, metrics: Arc<RedisMetrics>) -> Result<Arc<Self>, ConfigError> {
        config.check()?;
        let standalone = config.layout == Layout::Standalone;
        let slots = if standalone { Slots::standalone(config.servers[0].clone()) } else { Slots::unknown() };
        metrics.primaries.set(slots.primaries().len() as i64);
        metrics.slots.set(slots.covered() as i64);
        let shared = Arc::new(Shared {
            keys: Keys::new(&config),
            config: Arc::new(config),
            slots: watch::channel(Arc::new(slots)).0,
            wanted: Notify::new(),
            metrics,
        });
        let follower = (!standalone).then(|| tokio::spawn(follow(Arc::downgrade(&shared))));
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

    /// Tells each change of the layout.
    pub fn watch_slots(&self) -> watch::Receiver<Arc<Slots>> {
        self.shared.slots.subscribe()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}
