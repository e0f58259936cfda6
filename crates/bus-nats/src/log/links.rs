//! The connections that the log uses.

use std::ops::Deref;
use std::panic::Location;
use std::sync::Arc;

use async_nats::Client;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::pool::{EventKind, InUse, Lease, Pinned, Pool, PoolEvent, Role, SLOW_PAUSE};

/// Which connection serves what.
pub trait Links: Send + Sync + 'static {
    /// For one request or a few, which need no order.
    fn any(&self) -> Held;

    /// For a series of requests such as the pages of a read; a holder that keeps it for minutes is reported with `place`.
    fn series(&self, place: &'static Location<'static>) -> Held {
        let _ = place;
        self.any()
    }

    /// For everything that is sent in order under this number, as long as it is held.
    fn pinned(&self, number: u64) -> Held;

    /// For one of several lanes, and whether it is the lane's own one and not a stand-in: lanes whose numbers are the same
    /// modulo [`Links::connections`] share one.
    fn lane(&self, number: usize) -> (Held, bool) {
        (self.pinned(number as u64), true)
    }

    /// Among how many connections the lanes are spread.
    fn connections(&self) -> usize {
        1
    }

    /// For subscriptions of this number.
    fn subscribing(&self, number: u64) -> Client;

    /// Has a connection leave its server; called when it lives and answers nothing useful.
    fn leave(&self, connection: usize);

    /// Has every connection leave its server.
    fn leave_all(&self);

    /// Changes whenever subscriptions may have missed something: a reconnect, a slow consumer.
    fn disturbed(&self) -> watch::Receiver<u64>;
}

/// A connection, kept from being closed until this is dropped.
pub struct Held {
    client: Client,
    connection: usize,
    guard: Guard,
}

enum Guard {
    Any(InUse),
    Pinned(Pinned),
    Lease(#[expect(dead_code, reason = "held for its drop")] Lease),
}

impl Held {
    /// Its number, for [`Links::leave`].
    pub fn connection(&self) -> usize {
        self.connection
    }

    /// Says how many requests are in flight under it, for the load by which the pool is resized.
    pub fn carries(&self, requests: usize) {
        match &self.guard {
            Guard::Any(guard) => guard.carries(requests),
            Guard::Pinned(guard) => guard.carries(requests),
            Guard::Lease(_) => {}
        }
    }
}

impl Deref for Held {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The connections of a [`Pool`].
pub struct PoolLinks {
    pool: Arc<Pool>,
    disturbed: watch::Receiver<u64>,
    watcher: JoinHandle<()>,
}

impl PoolLinks {
    /// Must be called within a tokio runtime.
    pub fn new(pool: Arc<Pool>) -> Arc<Self> {
        let (sender, disturbed) = watch::channel(0);
        let events = pool.events();
        Arc::new(Self { pool, disturbed, watcher: tokio::spawn(watch_events(events, sender)) })
    }
}

impl Drop for PoolLinks {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn watch_events(mut events: broadcast::Receiver<PoolEvent>, disturbed: watch::Sender<u64>) {
    // Of many dropped messages the pool tells the first; those behind it are due when the next would be told.
    let mut again: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                again = None;
                disturbed.send_modify(|count| *count += 1);
                continue;
            }
        };
        let disturbs = match event {
            Ok(PoolEvent { role: Role::Subscribing, kind, .. }) => {
                if let EventKind::SlowConsumer { .. } = kind {
                    again = Some(Instant::now() + SLOW_PAUSE);
                }
                matches!(kind, EventKind::Reconnected { .. } | EventKind::SlowConsumer { .. })
            }
            Ok(_) => false,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                again = Some(Instant::now() + SLOW_PAUSE);
                true
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if disturbs {
            disturbed.send_modify(|count| *count += 1);
        }
    }
}

impl Links for PoolLinks {
    fn any(&self) -> Held {
        let guard = self.pool.any();
        Held { client: guard.client().clone(), connection: guard.connection(), guard: Guard::Any(guard) }
    }

    fn series(&self, place: &'static Location<'static>) -> Held {
        let lease = self.pool.lease_at(place);
        let Ok(client) = lease.client().cloned() else { return self.any() };
        Held { client, connection: lease.connection(), guard: Guard::Lease(lease) }
    }

    fn pinned(&self, number: u64) -> Held {
        let guard = self.pool.pinned(number);
        Held { client: guard.client().clone(), connection: guard.connection(), guard: Guard::Pinned(guard) }
    }

    fn lane(&self, number: usize) -> (Held, bool) {
        let (guard, own) = self.pool.placed(number);
        let held = Held { client: guard.client().clone(), connection: guard.connection(), guard: Guard::Any(guard) };
        (held, own)
    }

    fn connections(&self) -> usize {
        self.pool.publishing()
    }

    fn subscribing(&self, number: u64) -> Client {
        self.pool.subscribing(number)
    }

    fn leave(&self, connection: usize) {
        let pool = self.pool.clone();
        tokio::spawn(async move { pool.force_reconnect(connection).await });
    }

    fn leave_all(&self) {
        for connection in self.pool.stats().connections {
            self.leave(connection.connection);
        }
    }

    fn disturbed(&self) -> watch::Receiver<u64> {
        self.disturbed.clone()
    }
}
