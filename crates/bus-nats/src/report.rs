//! The resource report: one structure with what the pool, the log, the subscriptions and the workers of a process use, with
//! warnings against limits. For the internal port as JSON, and for the log.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use crate::log::{LogStats, NatsLog};
use crate::pool::{Pool, PoolStats};
use crate::publish::{Publisher, PublisherStats};
use crate::subscriber::{Subscription, SubscriptionStats};
use crate::workers::{Workers, WorkersStats};

/// Beyond these the report warns.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Resident memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Tasks that live.
    pub tasks: Option<usize>,
    /// Share of a queue's bound (default 0.8).
    pub queue_share: f64,
    /// Round trip of a connection in milliseconds (default 100).
    pub round_trip_ms: f64,
    /// 99th percentile of a worker pool's or a subscription's latency in milliseconds (default 1,000).
    pub p99_ms: f64,
    /// Age of a lease (default 1 min).
    pub lease: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_bytes: None,
            tasks: None,
            queue_share: 0.8,
            round_trip_ms: 100.0,
            p99_ms: 1000.0,
            lease: Duration::from_secs(60),
        }
    }
}

/// One part of the process and its numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part<T> {
    /// As registered.
    pub name: String,
    /// Messages a second since the report before, or since the registration; what was done, not what was tried.
    pub per_second: f64,
    /// The numbers.
    #[serde(flatten)]
    pub stats: T,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// When it was made, Unix milliseconds.
    pub time_ms: u64,
    /// Connection pools; messages sent and received count for the rate.
    pub pools: Vec<Part<PoolStats>>,
    /// Logs; publications appended and delivered count for the rate.
    pub logs: Vec<Part<LogStats>>,
    /// Publishers.
    pub publishers: Vec<Part<PublisherStats>>,
    /// Subscriptions.
    pub subscriptions: Vec<Part<SubscriptionStats>>,
    /// Worker pools.
    pub workers: Vec<Part<WorkersStats>>,
    /// Tasks that live in the runtime.
    pub tasks: usize,
    /// Resident memory in bytes; 0 where the kernel does not say.
    pub memory_bytes: u64,
    /// What is out of its limits, in words; stable in order.
    pub warnings: Vec<String>,
}

type Source<T> = Box<dyn Fn() -> Option<T> + Send + Sync>;

struct Registered<T> {
    name: String,
    source: Source<T>,
}

#[derive(Default)]
struct Sources {
    pools: Vec<Registered<PoolStats>>,
    logs: Vec<Registered<LogStats>>,
    publishers: Vec<Registered<PublisherStats>>,
    subscriptions: Vec<Registered<SubscriptionStats>>,
    workers: Vec<Registered<WorkersStats>>,
    before: HashMap<String, (Instant, u64)>,
}

/// Makes reports of the parts that were registered; a part that is gone is left out.
pub struct Reporter {
    limits: Limits,
    sources: Mutex<Sources>,
}

fn source<P: Send + Sync + 'static, T>(part: &Arc<P>, read: impl Fn(&P) -> T + Send + Sync + 'static) -> Source<T> {
    let part: Weak<P> = Arc::downgrade(part);
    Box::new(move || part.upgrade().map(|part| read(&part)))
}

impl Reporter {
    /// Warns by these limits.
    pub fn new(limits: Limits) -> Self {
        Reporter { limits, sources: Mutex::default() }
    }

    /// Adds a connection pool.
    pub fn add_pool(&self, name: impl Into<String>, pool: &Arc<Pool>) {
        self.sources.lock().pools.push(Registered { name: name.into(), source: source(pool, Pool::stats) });
    }

    /// Adds a log.
    pub fn add_log(&self, name: impl Into<String>, log: &Arc<NatsLog>) {
        self.sources.lock().logs.push(Registered { name: name.into(), source: source(log, NatsLog::stats) });
    }

    /// Adds a publisher.
    pub fn add_publisher(&self, name: impl Into<String>, publisher: &Arc<Publisher>) {
        let source = source(publisher, Publisher::stats);
        self.sources.lock().publishers.push(Registered { name: name.into(), source });
    }

    /// Adds a subscription.
    pub fn add_subscription(&self, name: impl Into<String>, subscription: &Arc<Subscription>) {
        let source = source(subscription, Subscription::stats);
        self.sources.lock().subscriptions.push(Registered { name: name.into(), source });
    }

    /// Adds a worker pool.
    pub fn add_workers<M: Send + 'static>(&self, name: impl Into<String>, workers: &Arc<Workers<M>>) {
        let source = source(workers, Workers::stats);
        self.sources.lock().workers.push(Registered { name: name.into(), source });
    }

    /// The report at this moment. To be called within the runtime whose tasks count.
    pub fn report(&self) -> Report {
        let mut sources = self.sources.lock();
        let Sources { pools, logs, publishers, subscriptions, workers, before } = &mut *sources;
        let traffic = |pool: &PoolStats| {
            let sums = pool.connections.iter().map(|connection| connection.messages.0 + connection.messages.1);
            sums.sum()
        };
        let mut report = Report {
            time_ms: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            pools: read("pool", pools, before, traffic),
            logs: read("log", logs, before, LogStats::done),
            publishers: read("publisher", publishers, before, |publisher| publisher.acknowledged),
            subscriptions: read("subscription", subscriptions, before, |subscription| subscription.processed),
            workers: read("workers", workers, before, |workers| workers.done),
            tasks: tokio::runtime::Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks()),
            memory_bytes: resident_bytes(),
            warnings: Vec::new(),
        };
        report.warnings = self.warnings(&report);
        report
    }

    /// Writes the report to the log, and a warning for each of its warnings.
    pub fn log(&self) {
        let report = self.report();
        for warning in &report.warnings {
            tracing::warn!(warning, "resource report");
        }
        match serde_json::to_string(&report) {
            Ok(text) => tracing::info!(report = text, "resource report"),
            Err(error) => tracing::error!(%error, "the resource report could not be written"),
        }
    }

    fn warnings(&self, report: &Report) -> Vec<String> {
        let limits = &self.limits;
        let mut warnings = Vec::new();
        for Part { name, stats, .. } in &report.pools {
            pool_warnings(name, stats, limits, &mut warnings);
        }
        for Part { name, stats, .. } in &report.logs {
            for lane in &stats.lanes {
                queue_warning(name, lane.waiting, lane.queue_bound, limits, &mut warnings);
            }
            latency_warning(name, stats.append_latency.p99_ms, limits, &mut warnings);
            if stats.doubtful > 0 {
                let (doubtful, all) = (stats.doubtful, stats.shards);
                warnings.push(format!("{name}: {doubtful} of {all} streams show no sign of life"));
            }
        }
        for Part { name, stats, .. } in &report.subscriptions {
            queue_warning(name, stats.pending, stats.max_pending, limits, &mut warnings);
            if stats.pending_bytes as f64 > stats.max_pending_bytes as f64 * limits.queue_share {
                let (bytes, most) = (stats.pending_bytes, stats.max_pending_bytes);
                warnings.push(format!("{name}: {bytes} of {most} bytes of a queue are taken"));
            }
            latency_warning(name, stats.latency.p99_ms, limits, &mut warnings);
        }
        for Part { name, stats, .. } in &report.workers {
            queue_warning(name, stats.longest_queue, stats.queue_bound, limits, &mut warnings);
            let (waiting, most) = (stats.most_waiting, stats.queue_bound);
            if waiting as f64 > most as f64 * limits.queue_share {
                warnings.push(format!("{name}: {waiting} of {most} places of what waits are taken with one worker"));
            }
            latency_warning(name, stats.latency.p99_ms, limits, &mut warnings);
        }
        if let Some(limit) = limits.memory_bytes.filter(|limit| report.memory_bytes > *limit) {
            warnings.push(format!("{} bytes of memory are above the limit of {limit}", report.memory_bytes));
        }
        if let Some(limit) = limits.tasks.filter(|limit| report.tasks > *limit) {
            warnings.push(format!("{} tasks are above the limit of {limit}", report.tasks));
        }
        warnings
    }
}

fn read<T>(
    kind: &str,
    registered: &mut Vec<Registered<T>>,
    before: &mut HashMap<String, (Instant, u64)>,
    done: impl Fn(&T) -> u64,
) -> Vec<Part<T>> {
    let mut parts = Vec::with_capacity(registered.len());
    registered.retain(|one| {
        let key = format!("{kind} {}", one.name);
        let Some(stats) = (one.source)() else {
            before.remove(&key);
            return false;
        };
        let (now, count) = (Instant::now(), done(&stats));
        let per_second = before
            .insert(key, (now, count))
            .map_or(0.0, |(then, earlier)| count.saturating_sub(earlier) as f64 / (now - then).as_secs_f64().max(1e-3));
        parts.push(Part { name: one.name.clone(), per_second, stats });
        true
    });
    parts
}

fn pool_warnings(name: &str, stats: &PoolStats, limits: &Limits, warnings: &mut Vec<String>) {
    let (healthy, all) = stats.healthy();
    if healthy < all {
        warnings.push(format!("pool {name}: {} of {all} connections have no contact", all - healthy));
    }
    for connection in &stats.connections {
        if let Some(ms) = connection.round_trip_ms.filter(|ms| *ms > limits.round_trip_ms) {
            let id = connection.connection;
            warnings.push(format!("pool {name}: round trip of connection {id} is {ms:.1} ms"));
        }
    }
    if let Some(seconds) = stats.oldest_lease_seconds.filter(|seconds| *seconds > limits.lease.as_secs_f64()) {
        warnings.push(format!("pool {name}: a lease is held for {seconds:.0} s"));
    }
}

fn queue_warning(name: &str, length: usize, bound: usize, limits: &Limits, warnings: &mut Vec<String>) {
    // A durable's inbox is full whenever it has work: only queues that drop at their bound count.
    if bound > 64 && length as f64 > bound as f64 * limits.queue_share {
        warnings.push(format!("{name}: {length} of {bound} places of a queue are taken"));
    }
}

fn latency_warning(name: &str, p99_ms: f64, limits: &Limits, warnings: &mut Vec<String>) {
    if p99_ms > limits.p99_ms {
        warnings.push(format!("{name}: the 99th percentile of the latency is {p99_ms:.0} ms"));
    }
}

/// `VmRSS` of proc(5).
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::PoolConfig;
    use crate::workers::{Step, Terms, Work, WorkersConfig};

    struct Slow;

    impl Work<u32> for Slow {
        fn run(self: Arc<Self>, _: u64, _: u32) -> Step {
            Step::Later(Box::pin(tokio::time::sleep(Duration::from_secs(60))))
        }

        fn terms(&self) -> Terms {
            Terms { waits: true, ..Terms::default() }
        }
    }

    #[tokio::test]
    async fn the_report_names_what_is_out_of_its_limits() {
        let pool = Pool::connect(PoolConfig::new(["127.0.0.1:1"])).await.unwrap();
        let workers = Workers::start(WorkersConfig { workers: 1, queue: 100, ..WorkersConfig::default() });
        let work: Arc<dyn Work<u32>> = Arc::new(Slow);
        for number in 0..90 {
            workers.try_submit(0, &work, number).unwrap();
        }
        let reporter = Reporter::new(Limits { tasks: Some(1), memory_bytes: Some(1), ..Limits::default() });
        reporter.add_pool("main", &pool);
        reporter.add_workers("live", &workers);
        let report = reporter.report();
        assert_eq!(report.warnings.len(), 5, "{:?}", report.warnings);
        assert_eq!(report.warnings[0], "pool main: 3 of 3 connections have no contact");
        assert_eq!(report.warnings[1], "live: 90 of 100 places of a queue are taken");
        assert_eq!(report.warnings[2], "live: 90 of 100 places of what waits are taken with one worker");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["workers"][0]["queued"], 90);
        assert_eq!(json["pools"][0]["connections"].as_array().unwrap().len(), 3);
        reporter.log();
        drop(pool);
        assert!(reporter.report().pools.is_empty());
    }
}
