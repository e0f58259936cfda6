//! What the whole server is doing: per replica, and summed.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use plenum_telemetry::{Metrics, Vitals};
use serde::{Deserialize, Serialize};

/// How often vitals are read.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Rates, ratios and percentiles are over at most so many readings back: a minute.
const SAMPLES: usize = 12;

/// Something that a replica leans on.
pub trait Dependency: Send + Sync + 'static {
    /// Its name, such as `nats`.
    fn name(&self) -> &'static str;

    /// Why it is of no use now; `None` while all is well. For operators; holds no secret.
    fn trouble(&self) -> Option<String>;
}

/// What one replica says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStats {
    /// Unique id of this run of the replica.
    pub uid: String,
    /// Configured or host-derived name.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since start.
    pub uptime: u32,
    /// Counts and rates.
    #[serde(flatten)]
    pub load: Load,
    /// Milliseconds from the log's storing to subscribers' queues, over the last minute, as upper bounds.
    pub delivery_latency_ms: Percentiles,
    /// State of what the replica leans on.
    pub dependencies: Vec<DependencyState>,
}

/// What can be summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Connections, those not yet authenticated included.
    pub connections: u64,
    /// Distinct client ids of authenticated connections; in a sum, one that moves counts twice while the old connection ends.
    pub sessions: u64,
    /// Distinct users of a replica; in a sum, a user on two replicas counts twice.
    pub users: u64,
    /// Channels with a subscriber; in a sum, a channel on two replicas counts twice.
    pub channels: u64,
    /// Subscriptions.
    pub subscriptions: u64,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Processor cores in use, over the last minute.
    pub cpu: f64,
    /// Handshakes per second.
    pub handshakes_per_second: f64,
    /// Publications received from the log per second.
    pub publications_per_second: f64,
    /// Publications queued for subscribers per second.
    pub deliveries_per_second: f64,
    /// Bytes from clients per second.
    pub bytes_in_per_second: f64,
    /// Bytes to clients per second.
    pub bytes_out_per_second: f64,
    /// Handshakes over the last minute, and those of them that became connections.
    pub handshakes: u64,
    /// See [`Load::handshakes`].
    pub handshakes_accepted: u64,
    /// Connect commands that were answered over the last minute, and those of them that were accepted: not refused for their
    /// token, a limit, or something that was away.
    #[serde(default)]
    pub connects: u64,
    /// See [`Load::connects`].
    #[serde(default)]
    pub connects_accepted: u64,
}

/// Upper bounds in milliseconds; absent without deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half take at most this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p50: Option<f64>,
    /// 95 % take at most this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p95: Option<f64>,
    /// 99 % take at most this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub p99: Option<f64>,
}

/// State of something that a replica leans on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DependencyState {
    /// Its name.
    pub name: String,
    /// Whether it is of use.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
}

/// All replicas that answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterStats {
    /// Sums over the replicas.
    pub total: Load,
    /// Share of the connect commands that were accepted over the last minute; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_success: Option<f64>,
    /// The slowest replica's percentiles.
    pub delivery_latency_ms: Percentiles,
    /// Each replica.
    pub nodes: Vec<NodeStats>,
}

impl ClusterStats {
    /// Sums what replicas said.
    pub fn new(mut nodes: Vec<NodeStats>) -> Self {
        nodes.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.uid.cmp(&b.uid)));
        let mut total = Load::default();
        let mut worst = Percentiles::default();
        for node in &nodes {
            total.add(&node.load);
            let latency = &node.delivery_latency_ms;
            worst.p50 = slower(worst.p50, latency.p50);
            worst.p95 = slower(worst.p95, latency.p95);
            worst.p99 = slower(worst.p99, latency.p99);
        }
        let connect_success = (total.connects > 0).then(|| total.connects_accepted as f64 / total.connects as f64);
        Self { total, connect_success, delivery_latency_ms: worst, nodes }
    }
}

fn slower(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

impl Load {
    fn add(&mut self, other: &Load) {
        self.connections += other.connections;
        self.sessions += other.sessions;
        self.users += other.users;
        self.channels += other.channels;
        self.subscriptions += other.subscriptions;
        self.memory += other.memory;
        self.cpu += other.cpu;
        self.handshakes_per_second += other.handshakes_per_second;
        self.publications_per_second += other.publications_per_second;
        self.deliveries_per_second += other.deliveries_per_second;
        self.bytes_in_per_second += other.bytes_in_per_second;
        self.bytes_out_per_second += other.bytes_out_per_second;
        self.handshakes += other.handshakes;
        self.handshakes_accepted += other.handshakes_accepted;
        self.connects += other.connects;
        self.connects_accepted += other.connects_accepted;
    }
}

/// The last minute of a replica.
#[derive(Default)]
pub(crate) struct History {
    samples: Mutex<VecDeque<Vitals>>,
    dependencies: OnceLock<Vec<std::sync::Arc<dyn Dependency>>>,
}

impl History {
    /// Says what the replica leans on; the first call counts.
    pub(crate) fn lean_on(&self, dependencies: Vec<std::sync::Arc<dyn Dependency>>) {
        let _ = self.dependencies.set(dependencies);
    }

    /// Keeps a reading; to be called every [`SAMPLE_EVERY`].
    pub(crate) fn sample(&self, metrics: &Metrics) {
        let mut samples = self.samples.lock();
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(metrics.vitals());
    }

    pub(crate) fn dependencies(&self) -> Vec<DependencyState> {
        let state = |dependency: &std::sync::Arc<dyn Dependency>| {
            let error = dependency.trouble();
            DependencyState { name: dependency.name().to_owned(), ok: error.is_none(), error }
        };
        self.dependencies.get().into_iter().flatten().map(state).collect()
    }

    /// Fills in rates, memory and processor time since the oldest reading.
    pub(crate) fn fill(&self, metrics: &Metrics, load: &mut Load) -> Percentiles {
        let now = metrics.vitals();
        load.memory = now.memory;
        let Some(then) = self.samples.lock().front().cloned() else { return Percentiles::default() };
        let seconds = now.at.duration_since(then.at).as_secs_f64().max(0.001);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        load.cpu = now.cpu.saturating_sub(then.cpu).as_secs_f64() / seconds;
        load.handshakes_per_second = rate(now.handshakes, then.handshakes);
        load.publications_per_second = rate(now.received, then.received);
        load.deliveries_per_second = rate(now.delivered, then.delivered);
        load.bytes_in_per_second = rate(now.bytes_received, then.bytes_received);
        load.bytes_out_per_second = rate(now.bytes_sent, then.bytes_sent);
        load.handshakes = now.handshakes.saturating_sub(then.handshakes);
        load.handshakes_accepted = now.accepted.saturating_sub(then.accepted);
        load.connects = now.connects.saturating_sub(then.connects);
        load.connects_accepted = now.connects_accepted.saturating_sub(then.connects_accepted);
        // Infinity is no JSON: beyond the last bucket its bound stands.
        let bound = |quantile| now.latency_since(&then, quantile).map(|seconds| (seconds * 1000.0).min(10_000.0));
        Percentiles { p50: bound(0.5), p95: bound(0.95), p99: bound(0.99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_the_slowest_replica() {
        let node = |name: &str, connections, cpu, connects, accepted, p99| NodeStats {
            name: name.into(),
            load: Load { connections, cpu, connects, connects_accepted: accepted, ..Load::default() },
            delivery_latency_ms: Percentiles { p99, ..Percentiles::default() },
            ..NodeStats::default()
        };
        let stats = ClusterStats::new(vec![
            node("b", 3, 0.5, 10, 9, Some(5.0)),
            node("a", 4, 0.25, 0, 0, None),
            node("c", 0, 0.0, 10, 10, Some(2.5)),
        ]);
        assert_eq!((stats.total.connections, stats.total.cpu), (7, 0.75));
        assert_eq!(stats.connect_success, Some(0.95));
        assert_eq!((stats.delivery_latency_ms.p99, stats.delivery_latency_ms.p50), (Some(5.0), None));
        assert_eq!(stats.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(ClusterStats::new(Vec::new()).connect_success, None);
    }

    #[test]
    fn rates_are_since_the_oldest_reading() {
        let metrics = Metrics::new().unwrap();
        let history = History::default();
        let mut load = Load::default();
        assert_eq!(history.fill(&metrics, &mut load), Percentiles::default());
        history.sample(&metrics);
        metrics.publications_received.inc_by(50);
        metrics.delivery_seconds.observe(0.002);
        let percentiles = history.fill(&metrics, &mut load);
        assert!(load.publications_per_second > 0.0 && load.deliveries_per_second == 0.0);
        assert_eq!(percentiles.p99, Some(2.5));
    }
}
