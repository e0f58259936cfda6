//! How long this process could not run.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What the watching thread sleeps between two looks at the clock.
const STEP: Duration = Duration::from_millis(10);

/// Shorter oversleeping is how timers are, not a stall.
const LEAST: Duration = Duration::from_millis(2);

/// Notes how long this process was not scheduled, so that a test can hold a bound of the product strictly also on a busy
/// machine: `elapsed < bound` becomes `elapsed < bound + stalls.since(start)`.
///
/// A thread sleeps in steps of 10 ms and notes by how much it overslept. It sees pauses of this process and of the whole
/// machine; it does not see a server that alone is slow. Watching ends when this is dropped.
pub struct Stalls(Arc<Mutex<Noted>>);

struct Noted {
    /// When each stall ended, and its length.
    stalls: Vec<(Instant, Duration)>,
    /// When the thread looked last.
    looked: Instant,
}

impl Stalls {
    /// Begins to watch.
    #[allow(clippy::new_without_default, reason = "a thread is no default")]
    pub fn watch() -> Self {
        let noted = Arc::new(Mutex::new(Noted { stalls: Vec::new(), looked: Instant::now() }));
        let watched = Arc::downgrade(&noted);
        thread::spawn(move || look(&watched));
        Self(noted)
    }

    /// How long the process stood still since then, a stall that goes on included. An instant of tokio's clock does too;
    /// while that clock is paused and has run ahead nothing counts, and the bound is exact.
    pub fn since(&self, start: impl Into<Instant>) -> Duration {
        let start = start.into();
        self.stalls().into_iter().map(|(end, length)| length.min(end.saturating_duration_since(start))).sum()
    }

    /// The longest single stall since then; zero without one.
    pub fn longest_since(&self, start: impl Into<Instant>) -> Duration {
        let start = start.into();
        let inside = |(end, length): (Instant, Duration)| length.min(end.saturating_duration_since(start));
        self.stalls().into_iter().map(inside).max().unwrap_or_default()
    }

    fn stalls(&self) -> Vec<(Instant, Duration)> {
        let noted = self.0.lock();
        let mut stalls = noted.stalls.clone();
        stalls.extend(stall(noted.looked));
        stalls
    }
}

/// The stall between the last look and now.
fn stall(looked: Instant) -> Option<(Instant, Duration)> {
    let now = Instant::now();
    let over = now.saturating_duration_since(looked + STEP);
    (over >= LEAST).then_some((now, over))
}

fn look(noted: &Weak<Mutex<Noted>>) {
    while let Some(noted) = noted.upgrade() {
        let mut noted = noted.lock();
        let stalled = stall(noted.looked);
        noted.stalls.extend(stalled);
        noted.looked = Instant::now();
        drop(noted);
        thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stalled(stalls: &[(Instant, Duration)], looked: Instant) -> Stalls {
        Stalls(Arc::new(Mutex::new(Noted { stalls: stalls.to_vec(), looked })))
    }

    #[test]
    fn stalls_count_as_far_as_they_lie_after_the_start() {
        let start = Instant::now();
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis);
        // One before, one across the start, two after it; the last look was just now.
        let noted =
            [(start - second, second), (start + ms(300), second), (start + ms(500), ms(50)), (start + second, ms(70))];
        let stalls = stalled(&noted, start + Duration::from_secs(60));
        assert_eq!(stalls.since(start), ms(420));
        assert_eq!(stalls.longest_since(start), ms(300));
        assert_eq!(stalls.since(start + ms(400)), ms(120));
        assert_eq!(
            (stalls.since(start + second), stalls.longest_since(start + second)),
            (Duration::ZERO, Duration::ZERO)
        );
    }

    #[test]
    fn a_stall_that_goes_on_counts() {
        let looked = Instant::now() - Duration::from_secs(5);
        let stalls = stalled(&[], looked);
        let since = stalls.since(looked);
        assert!(since >= Duration::from_millis(4_990) && since < Duration::from_secs(60), "{since:?}");
    }

    #[test]
    fn the_thread_looks_and_ends() {
        let stalls = Stalls::watch();
        let (noted, start) = (Arc::downgrade(&stalls.0), stalls.0.lock().looked);
        let until = |what: &dyn Fn() -> bool| {
            let begun = Instant::now();
            while !what() {
                assert!(begun.elapsed() < Duration::from_secs(20));
                thread::yield_now();
            }
        };
        until(&|| stalls.0.lock().looked > start + STEP);
        drop(stalls);
        until(&|| noted.upgrade().is_none());
    }
}
