//! Leases: a connection for a series of requests, with a known holder and an end.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::{Pool, PoolError};

pub(super) struct Held {
    number: u64,
    taken_at: &'static Location<'static>,
    since: Instant,
    connection: Arc<Connection>,
    reclaimed: Arc<AtomicBool>,
}

#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<(u64, Vec<Held>)>,
    pub(super) reclaimed: std::sync::atomic::AtomicU64,
}

impl Leases {
    fn add(&self, connection: Arc<Connection>, taken_at: &'static Location<'static>) -> (u64, Arc<AtomicBool>) {
        let reclaimed = Arc::new(AtomicBool::new(false));
        let mut held = self.held.lock();
        held.0 += 1;
        let number = held.0;
        held.1.push(Held { number, taken_at, since: Instant::now(), connection, reclaimed: reclaimed.clone() });
        (number, reclaimed)
    }

    /// Removes a lease and frees its connection, once.
    fn remove(&self, number: u64) {
        let mut held = self.held.lock();
        if let Some(index) = held.1.iter().position(|lease| lease.number == number) {
            held.1.swap_remove(index).connection.release();
        }
    }

    /// Reports and takes back what is held longer than `limit`.
    pub(super) fn reclaim(&self, limit: Duration) {
        self.held.lock().1.retain(|lease| {
            let age = lease.since.elapsed();
            if age < limit {
                return true;
            }
            lease.reclaimed.store(true, Ordering::Release);
            lease.connection.release();
            self.reclaimed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(taken_at = %lease.taken_at, connection = lease.connection.id(), held_for = ?age,
                "a lease of a NATS connection was held too long and is reclaimed");
            false
        });
    }

    /// Leases out now, and the age of the oldest.
    pub(super) fn summary(&self) -> (usize, Option<Duration>) {
        let held = self.held.lock();
        (held.1.len(), held.1.iter().map(|lease| lease.since.elapsed()).max())
    }
}

/// A connection for a series of requests. Given back on drop; reclaimed, with a warning that names the place where it
/// was taken, after [`PoolConfig::lease_limit`](super::PoolConfig::lease_limit).
pub struct Lease {
    pool: Arc<Pool>,
    number: u64,
    connection: Arc<Connection>,
    reclaimed: Arc<AtomicBool>,
    taken_at: &'static Location<'static>,
}

impl Lease {
    /// `connection` was acquired for this lease.
    pub(super) fn new(pool: Arc<Pool>, connection: Arc<Connection>, taken_at: &'static Location<'static>) -> Self {
        let (number, reclaimed) = pool.leases.add(connection.clone(), taken_at);
        Lease { pool, number, connection, reclaimed, taken_at }
    }

    /// The connection, to be asked for before each request: a reclaimed lease gives it no more.
    pub fn client(&self) -> Result<&async_nats::Client, PoolError> {
        if self.reclaimed.load(Ordering::Acquire) {
            return Err(PoolError::LeaseReclaimed { taken_at: self.taken_at });
        }
        Ok(&self.connection.client)
    }

    /// Number of the connection.
    pub fn connection(&self) -> usize {
        self.connection.id()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.leases.remove(self.number);
    }
}
