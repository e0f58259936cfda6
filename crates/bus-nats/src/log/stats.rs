//! A log's numbers for the resource report.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::histogram::{Histogram, Latency};

/// One lane of appends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaneStats {
    /// Appends that the lane has not taken yet.
    pub waiting: usize,
    /// Bound of `waiting`; beyond it an append is refused at once.
    pub queue_bound: usize,
    /// Sent and without an answer.
    pub in_flight: usize,
    /// Bound of `in_flight`.
    pub window: usize,
}

/// Live delivery.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeliveryStats {
    /// Channels with a local subscription.
    pub channels: usize,
    /// Joins, reads of gaps and looks at channels' ends under way.
    pub reads: usize,
    /// Publications handed to subscribers.
    pub delivered: u64,
    /// Gaps that were read from the stream.
    pub gaps: u64,
    /// Times that a subscriber was told that something is gone for good.
    pub lost: u64,
    /// Times that live messages found no room in the queue of their keyed worker for as long as they may wait, which is
    /// read from the stream, or were lost in it, of which subscribers are told.
    pub missed: u64,
}

/// A log's numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogStats {
    /// Lanes of appends.
    pub lanes: Vec<LaneStats>,
    /// Live delivery.
    pub delivery: DeliveryStats,
    /// Appends that were acknowledged.
    pub acknowledged: u64,
    /// Appends that ended with an error.
    pub failed: u64,
    /// From the call of an append to its outcome.
    pub append_latency: Latency,
    /// Streams.
    pub shards: usize,
    /// Of these, streams without a sign of life for 3 s.
    pub doubtful: usize,
}

impl LogStats {
    /// Publications that this process appended or delivered.
    pub fn done(&self) -> u64 {
        self.acknowledged + self.delivery.delivered
    }
}

/// Outcomes of appends.
pub(super) struct Outcomes {
    latency: Histogram,
    failed: AtomicU64,
}

impl Outcomes {
    pub fn new() -> Self {
        Self { latency: Histogram::new(), failed: AtomicU64::new(0) }
    }

    pub fn count(&self, took: Duration, succeeded: bool) {
        self.latency.record(took);
        if !succeeded {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Those that failed, and the latency of all.
    pub fn read(&self) -> (u64, Latency) {
        (self.failed.load(Ordering::Relaxed), self.latency.latency())
    }
}
