//! One conformance suite per port, for every implementation of it.
//!
//! A test of an implementation calls a suite with a function that makes replicas on a fresh broker or store. Cases
//! wait by polling with a deadline; where time itself matters they ask the fixture to let it pass, which is cheap for
//! an implementation under paused time and a real wait for others. A failed case panics; its name stands on the
//! standard error stream before.

#![allow(clippy::unwrap_used, reason = "a suite is a test: what it did not expect is its failure")]

use std::any::Any;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

mod control;
mod copies;
mod ledger;
mod log;
mod presence;
mod quotas;
mod recorder;
mod replicas;
mod results;
mod sessions;
mod stalls;
mod tails;

pub use control::control_suite;
pub use copies::copies_suite;
pub use ledger::ledger_suite;
pub use log::{append_suite, live_suite, log_suite, read_suite};
pub use presence::presence_suite;
pub use quotas::quotas_suite;
pub use recorder::Recorder;
pub use replicas::{Isolating, replicas_suite};
pub use results::results_suite;
pub use sessions::sessions_suite;
pub use stalls::Stalls;
pub use tails::tails_suite;

/// How long a case waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Replicas on one fresh broker or store that nothing else uses.
pub struct Fixture<P: ?Sized> {
    /// As many as asked for.
    pub replicas: Vec<std::sync::Arc<P>>,
    /// Lets this much time pass, as the implementation sees it.
    pub advance: Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>,
    /// Whatever must live as long as the replicas.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl<P: ?Sized> Fixture<P> {
    /// Replicas for which time passes as tokio has it: at once in a test with paused time.
    pub fn with_tokio_time(replicas: Vec<std::sync::Arc<P>>) -> Self {
        let advance = |by| -> BoxFuture<'static, ()> { Box::pin(tokio::time::sleep(by)) };
        Self { replicas, advance: Box::new(advance), guard: Box::new(()) }
    }

    async fn let_pass(&self, by: Duration) {
        (self.advance)(by).await;
    }
}

/// Runs cases one after the other, each on a fixture of its own.
macro_rules! run_cases {
    ($port:literal, $make:expr, $($case:path => $replicas:literal),+ $(,)?) => {
        $(
            eprintln!("conformance of {}: {}", $port, stringify!($case));
            $case(&$make($replicas).await).await;
        )+
    };
}
use run_cases;

/// The same for cases that hold bounds of time.
macro_rules! run_timed_cases {
    ($port:literal, $make:expr, $($case:path => $replicas:literal),+ $(,)?) => {
        $(
            eprintln!("conformance of {}: {}", $port, stringify!($case));
            super::undisturbed(async || $make($replicas).await, $case).await;
        )+
    };
}
use run_timed_cases;

/// Stalls from this length on can break a bound of time for which the implementation is not to blame.
const DISTURBED: Duration = Duration::from_millis(200);

/// Runs a case that holds bounds of time. One that failed while this process stood still proves nothing and is repeated on a
/// fresh fixture, up to five times; one that failed without is a failure at once.
async fn undisturbed<F>(make: impl AsyncFn() -> F, case: impl AsyncFn(&F)) {
    let stalls = Stalls::watch();
    for attempt in 1.. {
        let fixture = make().await;
        let start = Instant::now();
        let Err(failure) = AssertUnwindSafe(case(&fixture)).catch_unwind().await else { return };
        let stalled = stalls.longest_since(start);
        if stalled < DISTURBED || attempt == 5 {
            resume_unwind(failure);
        }
        eprintln!("attempt {attempt} stood still for {stalled:?}: once more");
    }
}
