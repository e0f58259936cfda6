//! The load test of operators: users in sessions, through every proxy that real users pass.
//!
//! Each user is one WebSocket connection that speaks the Centrifuge protocol, publishes into its session's channel and gets
//! what all of the session publish. It comes back like an SDK when it is closed, with recovery. At the end what was
//! acknowledged is compared with what each user got: lost, doubled and reordered are counted, latency is measured from just
//! before the publish to the arrival at each user.

mod book;
mod http_request;
mod probe;
mod report;
mod socket;
mod user;

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use plenum_protocol::Encoding;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

pub use http_request::{HttpAnswer, HttpTarget};
pub use probe::{Handshake, Probe};
pub use report::{Latency, Report, Thresholds};
pub use socket::{Target, TargetError};

use book::Book;
use user::User;

/// Makes a connection token for a user.
pub type TokenMaker = Box<dyn Fn(&str) -> String + Send + Sync>;

/// What to do.
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// How messages are encoded.
    pub encoding: Encoding,
    /// Connections.
    pub users: usize,
    /// Channels that they are spread over, at most as many as users.
    pub sessions: usize,
    /// How long they publish.
    pub duration: Duration,
    /// Time between two publications of one user.
    pub interval: Duration,
    /// Bytes of a publication, at least [`MIN_SIZE`].
    pub size: usize,
    /// The sessions' channels are this and a number.
    pub channel: String,
    /// Connections opened per second.
    pub ramp: u32,
    /// How long connecting may take in all, and how long the last messages are waited for.
    pub patience: Duration,
    /// None: anonymous.
    pub token: Option<TokenMaker>,
}

/// Smallest publication, in bytes: it names its publisher, number and time.
pub const MIN_SIZE: usize = 64;

/// How far the test is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Seconds since the start.
    pub elapsed: Duration,
    /// Users that are connected and subscribed.
    pub ready: usize,
    /// Publications that were acknowledged.
    pub acknowledged: u64,
    /// Publications that arrived, of all users.
    pub received: u64,
    /// Longest latency of 99 % so far.
    pub p99: Duration,
}

/// What a user may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Connect.
    Ramp,
    /// Publish.
    Run,
    /// Only listen.
    Settle,
    /// Leave.
    End,
}

/// What all users share.
pub(crate) struct Shared {
    plan: Plan,
    begin: Instant,
    phase: watch::Receiver<Phase>,
    counts: Mutex<Counts>,
}

/// Counted while the test runs.
pub(crate) struct Counts {
    attempts: u64,
    connected: u64,
    reconnects: u64,
    unrecovered: u64,
    ready: usize,
    sent: u64,
    acknowledged: u64,
    refused: u64,
    received: u64,
    latency: Histogram<u64>,
    /// The first failure of a connection, in words.
    trouble: Option<String>,
}

impl Counts {
    fn new() -> Self {
        // Microseconds up to 100 s; longer ones are counted as that.
        let latency = Histogram::new_with_bounds(1, 100_000_000, 3).expect("the bounds are constants that fit");
        Self {
            attempts: 0,
            connected: 0,
            reconnects: 0,
            unrecovered: 0,
            ready: 0,
            sent: 0,
            acknowledged: 0,
            refused: 0,
            received: 0,
            latency,
            trouble: None,
        }
    }
}

/// Runs the test; `progress` is called once a second. Ends by itself: after the ramp (at most `patience`), the duration, and
/// at most `patience` for what is still on its way. When `enough` is done, nothing more is published and the rest follows.
pub async fn run(plan: Plan, enough: impl Future<Output = ()>, mut progress: impl FnMut(Progress)) -> Report {
    let (phases, phase) = watch::channel(Phase::Ramp);
    let begin = Instant::now();
    let shared = Arc::new(Shared { plan, begin, phase, counts: Mutex::new(Counts::new()) });
    let plan = &shared.plan;
    let mut users = Vec::with_capacity(plan.users);
    let mut shown = begin;
    let mut show = |now: Instant| {
        if now.duration_since(shown) >= Duration::from_secs(1) {
            shown = now;
            progress(shared.progress());
        }
    };
    for number in 0..plan.users {
        sleep_until(begin + Duration::from_secs_f64(number as f64 / f64::from(plan.ramp.max(1)))).await;
        users.push(tokio::spawn(User::new(shared.clone(), number).live()));
        show(Instant::now());
    }
    let connected = Instant::now() + plan.patience;
    while shared.counts.lock().ready < plan.users && Instant::now() < connected {
        sleep(STEP).await;
        show(Instant::now());
    }
    let started = Instant::now();
    let _ = phases.send(Phase::Run);
    let mut enough = std::pin::pin!(enough);
    while started.elapsed() < plan.duration {
        tokio::select! {
            () = sleep(STEP.min(plan.duration.saturating_sub(started.elapsed()))) => show(Instant::now()),
            () = &mut enough => break,
        }
    }
    let ran = started.elapsed();
    let _ = phases.send(Phase::Settle);
    settle(&shared, &mut show).await;
    let _ = phases.send(Phase::End);
    let mut books = Vec::with_capacity(users.len());
    for user in users {
        books.push(user.await.unwrap_or_else(|_| Book::new(0)));
    }
    Report::new(&shared, &books, ran)
}

const STEP: Duration = Duration::from_millis(50);
/// Time without news after which nothing more comes, where it cannot be counted what has to.
const UNSURE: Duration = Duration::from_secs(10);

/// Waits until everything that was acknowledged has arrived everywhere, or nothing has arrived for the patience.
async fn settle(shared: &Shared, show: &mut impl FnMut(Instant)) {
    let plan = &shared.plan;
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let (received, expected, answered) = {
            let counts = shared.counts.lock();
            let each = (plan.users / plan.sessions.max(1)) as u64;
            (counts.received, counts.acknowledged * each, counts.sent == counts.acknowledged + counts.refused)
        };
        if received != last {
            (last, since) = (received, Instant::now());
        }
        let quiet = since.elapsed();
        // Sessions may differ by one user: a second without news is enough then. What had no answer may have arrived all the
        // same, in place of something that is still on its way.
        let enough = if answered { Duration::from_secs(1) } else { UNSURE };
        if (received >= expected && quiet > enough) || quiet > plan.patience {
            return;
        }
        sleep(STEP).await;
        show(Instant::now());
    }
}

impl Shared {
    fn progress(&self) -> Progress {
        let counts = self.counts.lock();
        Progress {
            elapsed: self.begin.elapsed(),
            ready: counts.ready,
            acknowledged: counts.acknowledged,
            received: counts.received,
            p99: Duration::from_micros(counts.latency.value_at_quantile(0.99)),
        }
    }

    fn session_of(&self, user: usize) -> usize {
        user % self.plan.sessions.max(1)
    }
}
