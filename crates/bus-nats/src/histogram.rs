//! Latencies, counted without a lock and without an allocation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Steps per power of two: a percentile is at most 1/8 above the truth.
const STEPS: usize = 8;
const BUCKETS: usize = 40 * STEPS;

/// Durations from 1 µs to days.
pub(crate) struct Histogram([AtomicU64; BUCKETS]);

/// Percentiles of a latency in milliseconds, upper bounds; zero when nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Durations counted.
    pub count: u64,
    /// Half of them are below this.
    pub p50_ms: f64,
    /// 99 % of them are below this.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(crate) fn record(&self, duration: Duration) {
        self.0[bucket(duration.as_micros() as u64)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, other: &Histogram) {
        for (mine, theirs) in self.0.iter().zip(&other.0) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    pub(crate) fn latency(&self) -> Latency {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let count: u64 = counts.iter().sum();
        let at = |share: f64| {
            let rank = ((count as f64 * share).ceil() as u64).max(1);
            let mut below = 0;
            let found = counts.iter().position(|here| {
                below += here;
                below >= rank
            });
            found.map_or(0.0, |index| upper(index) as f64 / 1e3)
        };
        Latency { count, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

fn bucket(us: u64) -> usize {
    if us < STEPS as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize;
    let step = (us >> (power - 3)) as usize & (STEPS - 1);
    ((power - 2) * STEPS + step).min(BUCKETS - 1)
}

/// The first microsecond that is above the bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64 + 1;
    }
    let (power, step) = (bucket / STEPS + 2, bucket % STEPS);
    (STEPS as u64 + step as u64 + 1) << (power - 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for us in 0..100_000u64 {
            let index = bucket(us);
            assert!(us < upper(index), "{us} in {index}");
            assert!(index == 0 || us >= upper(index - 1), "{us} in {index}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles() {
        let histogram = Histogram::new();
        assert_eq!(histogram.latency(), Latency::default());
        for ms in 1..=100 {
            histogram.record(Duration::from_millis(ms));
        }
        let Latency { count, p50_ms, p99_ms, max_ms } = histogram.latency();
        assert_eq!(count, 100);
        assert!((50.0..57.0).contains(&p50_ms) && (99.0..112.0).contains(&p99_ms) && max_ms >= 100.0);
    }
}
