//! What a pool does by itself once a second: leases, replacement by age, size by load, farewell to retired connections.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::{ConnectionStats, Pool, PoolConfig, PoolError, Role};

const TICK: Duration = Duration::from_secs(1);
/// How long a new connection may take before the old one is kept instead.
const MAKE_LIMIT: Duration = Duration::from_secs(10);
/// Pause after a replacement that found no server.
const MAKE_PAUSE: Duration = Duration::from_secs(30);
pub(super) const SHUT_LIMIT: Duration = Duration::from_secs(2);
/// Ticks above or below the bound of load before the pool grows or shrinks.
const GROW_TICKS: u32 = 5;
const SHRINK_TICKS: u32 = 60;

/// Runs until the pool is dropped or closed.
pub(super) async fn run(pool: Weak<Pool>) {
    let mut load = Load::default();
    let mut not_before = Instant::now();
    loop {
        tokio::time::sleep(TICK).await;
        let Some(pool) = pool.upgrade() else { return };
        let config = pool.config();
        pool.leases.reclaim(config.lease_limit);
        pool.bury_retired().await;
        if Instant::now() < not_before {
            continue;
        }
        let changed = match pool.due_for_replacement() {
            Some(index) => pool.replace(index).await,
            None => match load.judge(&config, &pool) {
                Change::Grow => pool.resize_to(pool.publishing.load().len() + 1).await,
                Change::Shrink => pool.resize_to(pool.publishing.load().len() - 1).await,
                Change::Stay => Ok(()),
            },
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "no new NATS connection could be made; the present ones stay");
            not_before = Instant::now() + MAKE_PAUSE;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Grow,
    Shrink,
    Stay,
}

/// How long the load has been out of its bounds.
#[derive(Default)]
struct Load {
    high: u32,
    low: u32,
}

impl Load {
    fn judge(&mut self, config: &PoolConfig, pool: &Pool) -> Change {
        let set = pool.publishing.load();
        let in_flight = set.iter().map(|connection| connection.in_flight()).sum();
        self.count(config, set.len(), in_flight)
    }

    fn count(&mut self, config: &PoolConfig, connections: usize, in_flight: usize) -> Change {
        let mean = in_flight / connections.max(1);
        self.high = if mean > config.grow_above && connections < config.max_publishing { self.high + 1 } else { 0 };
        self.low = if mean < config.shrink_below && connections > config.min_publishing { self.low + 1 } else { 0 };
        if self.high >= GROW_TICKS {
            *self = Load::default();
            Change::Grow
        } else if self.low >= SHRINK_TICKS {
            *self = Load::default();
            Change::Shrink
        } else {
            Change::Stay
        }
    }
}

impl Pool {
    /// The connection whose server is about to stop, else the oldest one that is too old.
    fn due_for_replacement(&self) -> Option<usize> {
        let set = self.publishing.load();
        let leaving = |connection: &Connection| connection.link.lame_duck.load(Ordering::Relaxed);
        let due = set.iter().enumerate().filter(|(_, one)| leaving(one) || one.opened_at.elapsed() > one.recycle_after);
        due.max_by_key(|(_, one)| (leaving(one), one.opened_at.elapsed())).map(|(index, _)| index)
    }

    /// A new publishing connection with contact.
    pub(super) async fn make(&self) -> Result<Arc<Connection>, PoolError> {
        let connection = self.open(Role::Publishing).await?;
        let started = Instant::now();
        while !connection.is_up() {
            if started.elapsed() > MAKE_LIMIT {
                connection.shut(SHUT_LIMIT).await;
                return Err(PoolError::NotReady { waited: MAKE_LIMIT, reason: connection.link.trouble() });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(connection)
    }

    /// Puts a new connection in the place of one of the set; the old one retires.
    async fn replace(&self, index: usize) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        let new = self.make().await?;
        let mut set = Vec::clone(&self.publishing.load());
        let Some(place) = set.get_mut(index) else { return Ok(()) };
        let old = std::mem::replace(place, new);
        self.retiring.lock().push(old);
        self.publishing.store(Arc::new(set));
        self.recycled.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Grows or shrinks the publishing set.
    async fn resize_to(&self, connections: usize) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        let mut set = Vec::clone(&self.publishing.load());
        while set.len() < connections {
            set.push(self.make().await?);
            self.resized.fetch_add(1, Ordering::Relaxed);
        }
        while set.len() > connections.max(1) {
            self.retiring.lock().extend(set.pop());
            self.resized.fetch_add(1, Ordering::Relaxed);
        }
        tracing::info!(connections = set.len(), "NATS pool resized");
        self.publishing.store(Arc::new(set));
        Ok(())
    }

    /// Closes the retired connections that nobody uses any more.
    async fn bury_retired(&self) {
        let unused: Vec<_> = self.retiring.lock().extract_if(.., |connection| connection.close_if_unused()).collect();
        for connection in unused {
            connection.shut(SHUT_LIMIT).await;
        }
    }

    /// Ends the pool: waits for the uses that are under way, at most for `deadline`, then closes every connection. What
    /// is asked of it afterwards fails. Leaves no task behind.
    pub async fn close(&self, deadline: Duration) {
        let upkeep = self.upkeep.lock().take();
        if let Some(upkeep) = upkeep {
            upkeep.abort();
            // Aborted: the result says nothing.
            let _ = upkeep.await;
        }
        let started = Instant::now();
        let all = self.all();
        for connection in &all {
            while connection.in_flight() > 0 && started.elapsed() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for connection in &all {
            connection.shut(SHUT_LIMIT).await;
        }
    }
}

pub(super) fn measure(connection: &Connection, retiring: bool) -> ConnectionStats {
    let link = &connection.link;
    let traffic = connection.client.statistics();
    ConnectionStats {
        connection: connection.id(),
        role: link.role,
        server: link.server(),
        healthy: connection.is_up(),
        error: (!connection.is_up()).then(|| link.trouble()).flatten(),
        retiring,
        reconnects: link.connects.load(Ordering::Relaxed).saturating_sub(1),
        age_seconds: connection.opened_at.elapsed().as_secs_f64(),
        round_trip_ms: connection.round_trip().map(|time| time.as_secs_f64() * 1e3),
        failed_probes: connection.failed_probes.load(Ordering::Relaxed),
        in_flight: connection.in_flight(),
        unacknowledged: connection.window.waiting(),
        slow_consumer_events: link.slow_consumers.load(Ordering::Relaxed),
        messages: (traffic.out_messages.load(Ordering::Relaxed), traffic.in_messages.load(Ordering::Relaxed)),
        bytes: (traffic.out_bytes.load(Ordering::Relaxed), traffic.in_bytes.load(Ordering::Relaxed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_out_of_bounds_must_last() {
        let config = PoolConfig::new(["localhost"]);
        let mut load = Load::default();
        for _ in 1..GROW_TICKS {
            assert_eq!(load.count(&config, 2, 10_000), Change::Stay);
        }
        assert_eq!(load.count(&config, 2, 10_000), Change::Grow);
        assert_eq!(load.count(&config, config.max_publishing, 1_000_000), Change::Stay, "never above the maximum");
        for _ in 1..SHRINK_TICKS {
            assert_eq!(load.count(&config, 3, 10), Change::Stay);
        }
        assert_eq!(load.count(&config, 3, 10), Change::Shrink);
        for _ in 0..2 * SHRINK_TICKS {
            assert_eq!(load.count(&config, 2, 0), Change::Stay, "never below the minimum");
        }
    }
}
