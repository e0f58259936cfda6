//! Whether this process stood still: paused, or starved of CPU for seconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Longest time between two beats of a process that runs.
const STILL: Duration = Duration::from_secs(2);
/// What was missed meanwhile is known so long after it: the ledger is followed each half second.
const CATCHING_UP: Duration = Duration::from_secs(3);

/// Beaten by one task once a tick.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    /// Milliseconds after the start.
    beaten: AtomicU64,
    /// The same, when it went on after it had stood still; 0: it never did.
    woken: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), beaten: AtomicU64::new(0), woken: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    pub(crate) fn beat(&self) {
        let now = self.now();
        if now.saturating_sub(self.beaten.swap(now, Ordering::Relaxed)) > STILL.as_millis() as u64 {
            self.wake();
        }
    }

    /// It stood still until now.
    pub(crate) fn wake(&self) {
        self.woken.store(self.now().max(1), Ordering::Relaxed);
    }

    /// Whether it stood still until a moment ago: the others may have decided without it.
    pub(crate) fn stood_still(&self) -> bool {
        let (now, woken) = (self.now(), self.woken.load(Ordering::Relaxed));
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        since(self.beaten.load(Ordering::Relaxed)) > STILL || (woken > 0 && since(woken) < CATCHING_UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_knows_it_until_it_has_caught_up() {
        let pulse = Pulse::new();
        for _ in 0..100 {
            tokio::time::advance(Duration::from_millis(100)).await;
            pulse.beat();
            assert!(!pulse.stood_still());
        }
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(pulse.stood_still(), "before the first beat");
        pulse.beat();
        assert!(pulse.stood_still());
        for _ in 0..31 {
            tokio::time::advance(Duration::from_millis(100)).await;
            pulse.beat();
        }
        assert!(!pulse.stood_still());
    }
}
