//! A reading of what matters most, for those who compare two moments: rates, ratios, percentiles.

use std::time::{Duration, Instant};

use prometheus::core::Metric;

use crate::{Connect, Handshake, Label, Metrics, process};

/// Totals at one moment.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// The moment.
    pub at: Instant,
    /// CPU time used by the process.
    pub cpu: Duration,
    /// Resident memory in bytes; 0 where it cannot be read.
    pub memory: u64,
    /// Handshakes that were answered in any way.
    pub handshakes: u64,
    /// Handshakes that became connections.
    pub accepted: u64,
    /// Connect commands that were answered.
    pub connects: u64,
    /// Those of them that were accepted.
    pub connects_accepted: u64,
    /// Publications received from the log.
    pub received: u64,
    /// Publications queued for subscribers.
    pub delivered: u64,
    /// Bytes read from clients.
    pub bytes_received: u64,
    /// Bytes written to clients.
    pub bytes_sent: u64,
    /// Deliveries by latency: upper bound in seconds, and how many took at most that.
    latency: Vec<(f64, u64)>,
}

impl Metrics {
    /// Reads all of it now.
    pub fn vitals(&self) -> Vitals {
        let (cpu, memory) = process::usage();
        let handshakes = Handshake::ALL.iter().map(|result| self.handshakes(*result).get()).sum();
        let histogram = self.delivery_seconds.metric();
        let buckets = histogram.get_histogram().get_bucket();
        Vitals {
            at: Instant::now(),
            cpu,
            memory,
            handshakes,
            accepted: self.handshakes(Handshake::Accepted).get(),
            connects: Connect::ALL.iter().map(|result| self.connects(*result).get()).sum(),
            connects_accepted: self.connects(Connect::Accepted).get(),
            received: self.publications_received.get(),
            delivered: self.publications_delivered.get(),
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            latency: buckets.iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect(),
        }
    }
}

impl Vitals {
    /// Upper bound in seconds of the share `quantile` of the deliveries since `earlier`; `None` without any, infinite
    /// beyond the last bucket.
    pub fn latency_since(&self, earlier: &Vitals, quantile: f64) -> Option<f64> {
        let since =
            |index: usize, count: u64| count - earlier.latency.get(index).map_or(0, |(_, then)| *then).min(count);
        let all = self.latency.last().map_or(0, |(_, count)| since(self.latency.len() - 1, *count));
        if all == 0 {
            return None;
        }
        let wanted = (all as f64 * quantile).ceil() as u64;
        let found = self.latency.iter().enumerate().find(|(index, (_, count))| since(*index, *count) >= wanted);
        Some(found.map_or(f64::INFINITY, |(_, (bound, _))| *bound))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn percentiles_are_of_what_came_in_between() {
        let metrics = Metrics::new().unwrap();
        metrics.delivery_seconds.observe(9.0);
        let before = metrics.vitals();
        assert_eq!(metrics.vitals().latency_since(&before, 0.99), None);
        for _ in 0..98 {
            metrics.delivery_seconds.observe(0.0008);
        }
        metrics.delivery_seconds.observe(0.09);
        metrics.delivery_seconds.observe(0.09);
        let after = metrics.vitals();
        assert_eq!(after.latency_since(&before, 0.5), Some(0.001));
        assert_eq!(after.latency_since(&before, 0.98), Some(0.001));
        assert_eq!(after.latency_since(&before, 0.99), Some(0.1));
        metrics.handshakes(Handshake::Origin).inc();
        assert_eq!((metrics.vitals().handshakes, metrics.vitals().accepted), (1, 0));
        assert!(metrics.vitals().memory > 1 << 20, "a running process has memory");
    }
}
