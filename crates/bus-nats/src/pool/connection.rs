//! One connection of the pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::link::{self, Link};
use super::{PoolConfig, PoolError};
use crate::publish::Window;

/// In the in-flight count: nobody may take the connection any more.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// How long a command may wait behind what the server does not take; client pings end such a connection soon.
const COMMAND_LIMIT: Duration = Duration::from_secs(1);
/// Failed probes in a row after which the connection is made anew.
const PROBES_TO_RECONNECT: u32 = 2;

pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    pub(super) client: async_nats::Client,
    pub(super) window: Arc<Window>,
    in_flight: AtomicUsize,
    /// Requests in flight beyond one for each use.
    carried: AtomicUsize,
    rtt_us: AtomicU64,
    pub(super) failed_probes: AtomicU64,
    pub(super) opened_at: Instant,
    /// Age at which it is replaced.
    pub(super) recycle_after: Duration,
    prober: Mutex<Option<JoinHandle<()>>>,
}

impl Connection {
    pub(super) async fn open(link: Arc<Link>, config: &PoolConfig) -> Result<Arc<Self>, PoolError> {
        let client = link.connect().await?;
        let window = Window::open(client.clone(), config.window).await.map_err(|_| PoolError::Closed)?;
        let connection = Arc::new(Connection {
            link,
            client,
            window,
            in_flight: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
            rtt_us: AtomicU64::new(0),
            failed_probes: AtomicU64::new(0),
            opened_at: Instant::now(),
            recycle_after: config.recycle_after.mul_f64(rand::random_range(0.95..1.05)),
            prober: Mutex::new(None),
        });
        let prober = tokio::spawn(probe(
            Arc::downgrade(&connection),
            format!("{}.{}", config.probe_subject, uuid::Uuid::new_v4().simple()),
            config.probe_every,
            config.probe_timeout,
        ));
        *connection.prober.lock() = Some(prober);
        Ok(connection)
    }

    pub(super) fn id(&self) -> usize {
        self.link.id
    }

    pub(super) fn is_up(&self) -> bool {
        link::is_up(&self.client)
    }

    /// Counts one more use; false when the connection is closed for good.
    pub(super) fn acquire(&self) -> bool {
        let mut current = self.in_flight.load(Ordering::Acquire);
        while current & CLOSED == 0 {
            match self.in_flight.compare_exchange_weak(current, current + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => current = now,
            }
        }
        false
    }

    /// Counts one more use of a connection that is in use already, or closed with the whole pool.
    pub(super) fn join(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// Requests of all uses at this moment, at least one for each.
    pub(super) fn in_flight(&self) -> usize {
        (self.in_flight.load(Ordering::Acquire) & !CLOSED) + self.carried.load(Ordering::Relaxed)
    }

    /// A use that counted as `before` requests beyond its first carries this many now.
    pub(super) fn carry(&self, before: &AtomicUsize, requests: usize) {
        let now = requests.saturating_sub(1);
        let before = before.swap(now, Ordering::Relaxed);
        // Each use takes away no more than it has added.
        match now.checked_sub(before) {
            Some(0) => 0,
            Some(more) => self.carried.fetch_add(more, Ordering::Relaxed),
            None => self.carried.fetch_sub(before - now, Ordering::Relaxed),
        };
    }

    /// Closes it for new uses if it has none now.
    pub(super) fn close_if_unused(&self) -> bool {
        self.in_flight.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Closes it for new uses, whoever has it.
    pub(super) fn close_to_users(&self) {
        self.in_flight.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Last measured round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// Moves to another server at once. What was sent and not yet acknowledged may be lost.
    pub(super) async fn reconnect(&self) -> Result<(), PoolError> {
        self.link.hurry();
        if !self.is_up() {
            // It seeks contact already; the command would end the next contact.
            return Ok(());
        }
        match tokio::time::timeout(COMMAND_LIMIT, self.client.force_reconnect()).await {
            Ok(sent) => sent.map_err(|_| PoolError::Closed),
            Err(_) => Err(PoolError::NotReady { waited: COMMAND_LIMIT, reason: None }),
        }
    }

    /// Ends the tasks; sends what was queued first when there is contact. Bounded by `deadline`.
    pub(super) async fn shut(&self, deadline: Duration) {
        self.close_to_users();
        self.link.closed.cancel();
        let prober = self.prober.lock().take();
        if let Some(prober) = prober {
            prober.abort();
            // Aborted: the result says nothing.
            let _ = prober.await;
        }
        self.window.close().await;
        if self.is_up() {
            // Nothing to do when it fails: the connection is given up.
            let _ = tokio::time::timeout(deadline, self.client.drain()).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(prober) = self.prober.get_mut().take() {
            prober.abort();
        }
        self.link.closed.cancel();
    }
}

/// Measures the round trip to the server and back by a message to ourselves; ends with the connection.
async fn probe(connection: std::sync::Weak<Connection>, subject: String, every: Duration, timeout: Duration) {
    let Some(client) = connection.upgrade().map(|connection| connection.client.clone()) else { return };
    let Ok(mut echo) = client.subscribe(subject.clone()).await else { return };
    let mut missed = 0;
    let mut answered_once = false;
    let mut number = 0u64;
    // The first one soon, so that the connection with the lowest round trip is known from the start.
    let mut pause = Duration::from_millis(50);
    loop {
        tokio::time::sleep(pause).await;
        if !link::is_up(&client) {
            pause = Duration::from_millis(250).min(every);
            continue;
        }
        let sent = Instant::now();
        number += 1;
        let answer = tokio::time::timeout(timeout, async {
            let mark = bytes::Bytes::copy_from_slice(&number.to_be_bytes());
            client.publish(subject.clone(), mark.clone()).await.ok()?;
            // A late answer to an earlier probe is not this one's.
            while echo.next().await?.payload != mark {}
            Some(())
        })
        .await;
        let Some(connection) = connection.upgrade() else { return };
        if let Ok(Some(())) = answer {
            (missed, answered_once) = (0, true);
            let us = sent.elapsed().as_micros().max(1) as u64;
            connection.rtt_us.store(us, Ordering::Relaxed);
            pause = every;
            continue;
        }
        connection.failed_probes.fetch_add(1, Ordering::Relaxed);
        missed += 1;
        let id = connection.id();
        tracing::warn!(connection = id, missed, "NATS round-trip probe without an answer");
        pause = timeout.min(every);
        // Without a single answer the account may lack the permission: reconnecting would not help.
        if answered_once && missed >= PROBES_TO_RECONNECT {
            missed = 0;
            // A closed connection needs none.
            let _ = connection.reconnect().await;
        }
    }
}
