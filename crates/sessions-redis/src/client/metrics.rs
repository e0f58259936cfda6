use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts};

use super::{CallError, Purpose};

const LATENCY_BUCKETS: [f64; 11] = [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0];
const RESULTS: [&str; 4] = ["ok", "unavailable", "indeterminate", "refused"];

struct PerPurpose {
    results: [IntCounter; 4],
    seconds: Histogram,
    connects: IntCounter,
    replaced: IntCounter,
}

/// Counts of all clients of one [`Redis`](super::Redis); every handle is resolved at the start.
pub struct RedisMetrics {
    families: Vec<Box<dyn Collector>>,
    purposes: Vec<PerPurpose>,
    /// Primaries that serve slots.
    pub(super) primaries: IntGauge,
    /// Slots whose primary is there, as far as is known; none while no server answers.
    pub(super) slots: IntGauge,
    /// Changes of the layout seen.
    pub(super) layout_changes: IntCounter,
    /// Sessions found behind a version that had been acknowledged.
    pub sessions_went_back: IntCounter,
    /// Results and tails that were not kept because too many waited or the server did not answer.
    pub memories_dropped: IntCounter,
    /// Publications that did not ask for an earlier result because the server did not answer.
    pub recalls_skipped: IntCounter,
}

impl RedisMetrics {
    /// All at zero.
    pub fn new() -> Result<Arc<Self>, prometheus::Error> {
        let calls = IntCounterVec::new(
            Opts::new("plenum_redis_calls_total", "Calls to Redis by purpose and result."),
            &["purpose", "result"],
        )?;
        let options = HistogramOpts::new("plenum_redis_call_duration_seconds", "Time of a call with its repetitions.");
        let seconds = HistogramVec::new(options.buckets(LATENCY_BUCKETS.to_vec()), &["purpose"])?;
        let per = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["purpose"]);
        let connects = per("plenum_redis_connects_total", "Connections made to Redis servers.")?;
        let replaced = per("plenum_redis_connections_replaced_total", "Connections given up because calls timed out.")?;
        let primaries = IntGauge::new("plenum_redis_primaries", "Redis servers that serve slots.")?;
        let slots = IntGauge::new(
            "plenum_redis_slots",
            "Slots whose primary is there, as far as is known; 16384 when all is well.",
        )?;
        let layout_changes = IntCounter::new("plenum_redis_layout_changes_total", "Changes of the cluster's layout.")?;
        let went_back = IntCounter::new(
            "plenum_sessions_went_back_total",
            "Sessions found behind a version that had been acknowledged (a failover lost writes).",
        )?;
        let dropped = IntCounter::new(
            "plenum_redis_memories_dropped_total",
            "Idempotency results and channel tails that were not kept.",
        )?;
        let skipped = IntCounter::new(
            "plenum_redis_recalls_skipped_total",
            "Idempotency keys that were not asked for because their server was away.",
        )?;
        let purposes = Purpose::ALL.iter().map(|purpose| PerPurpose {
            results: RESULTS.map(|result| calls.with_label_values(&[purpose.name(), result])),
            seconds: seconds.with_label_values(&[purpose.name()]),
            connects: connects.with_label_values(&[purpose.name()]),
            replaced: replaced.with_label_values(&[purpose.name()]),
        });
        let purposes = purposes.collect();
        let families: Vec<Box<dyn Collector>> = vec![
            Box::new(calls),
            Box::new(seconds),
            Box::new(connects),
            Box::new(replaced),
            Box::new(primaries.clone()),
            Box::new(slots.clone()),
            Box::new(layout_changes.clone()),
            Box::new(went_back.clone()),
            Box::new(dropped.clone()),
            Box::new(skipped.clone()),
        ];
        Ok(Arc::new(RedisMetrics {
            families,
            purposes,
            primaries,
            slots,
            layout_changes,
            sessions_went_back: went_back,
            memories_dropped: dropped,
            recalls_skipped: skipped,
        }))
    }

    fn of(&self, purpose: Purpose) -> &PerPurpose {
        &self.purposes[purpose as usize]
    }

    pub(super) fn called(&self, purpose: Purpose, error: Option<&CallError>, took: Duration) {
        let result = match error {
            None => 0,
            Some(CallError::Unavailable { .. }) => 1,
            Some(CallError::Indeterminate { .. }) => 2,
            Some(CallError::Refused { .. }) => 3,
        };
        self.of(purpose).results[result].inc();
        self.of(purpose).seconds.observe(took.as_secs_f64());
    }

    pub(super) fn connected(&self, purpose: Purpose) {
        self.of(purpose).connects.inc();
    }

    pub(super) fn replaced(&self, purpose: Purpose) {
        self.of(purpose).replaced.inc();
    }

    #[cfg(test)]
    pub(super) fn replacements(&self, purpose: Purpose) -> u64 {
        self.of(purpose).replaced.get()
    }

    /// Calls of a purpose by result: ok, unavailable, indeterminate, refused.
    pub fn calls(&self, purpose: Purpose) -> [u64; 4] {
        std::array::from_fn(|result| self.of(purpose).results[result].get())
    }

    /// Calls of a purpose that took at most about this long, by the histogram: sum of seconds and count.
    pub fn seconds(&self, purpose: Purpose) -> (f64, u64) {
        let seconds = &self.of(purpose).seconds;
        (seconds.get_sample_sum(), seconds.get_sample_count())
    }
}

/// Registers [`RedisMetrics`] with a registry.
pub struct RedisCollector(pub Arc<RedisMetrics>);

impl Collector for RedisCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.0.families.iter().flat_map(|family| family.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.families.iter().flat_map(|family| family.collect()).collect()
    }
}
