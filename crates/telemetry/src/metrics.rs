//! The registry. Every handle is resolved when the process starts; counting is one atomic addition.

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::process::ProcessCollector;
use crate::{
    ApiMethod, AppendFailure, CloseCode, Connect, Handshake, Label, Limit, LimitOutcome, Method, Recovery, ResultCode,
    Resume, Transport, WireEncoding,
};

/// Upper bounds in seconds: 100 µs to 10 s, for calls that end within a few milliseconds when all is well.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

/// Why the registry could not be made: a name is invalid or used twice, which is a mistake in this crate.
#[derive(Debug, thiserror::Error)]
#[error("metrics registry: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

/// All metrics of one process, on a registry of their own.
pub struct Metrics {
    registry: Registry,
    connections: Vec<IntGauge>,
    handshakes: Vec<IntCounter>,
    connects: Vec<IntCounter>,
    commands: Vec<IntCounter>,
    disconnects: Vec<IntCounter>,
    recoveries: Vec<IntCounter>,
    resumes: Vec<IntCounter>,
    limits: Vec<IntCounter>,
    append_failures: Vec<IntCounter>,
    api_requests: Vec<IntCounter>,
    api_durations: Vec<Histogram>,
    /// Publications that this replica got from the log, once per channel.
    pub publications_received: IntCounter,
    /// Publications put on the outboxes of subscribers.
    pub publications_delivered: IntCounter,
    /// Payload bytes read from clients.
    pub bytes_received: IntCounter,
    /// Bytes written to clients, frame headers included.
    pub bytes_sent: IntCounter,
    /// Writes to client sockets; deliveries divided by this say how well writes are coalesced.
    pub socket_writes: IntCounter,
    /// Subscriptions of all connections.
    pub subscriptions: IntGauge,
    /// Channels with at least one subscriber here.
    pub channels: IntGauge,
    /// Connections whose outbox reached its bound.
    pub outbox_overflows: IntCounter,
    /// Pings that a client left unanswered.
    pub missed_pongs: IntCounter,
    /// Connections that are still open while the replica drains.
    pub draining_connections: IntGauge,
    /// Share of the ledger's room that is taken.
    pub ledger_fill_percent: IntGauge,
    /// Seconds from an append to the log's acknowledgement.
    pub log_append_seconds: Histogram,
    /// Seconds that a read of the log took.
    pub log_read_seconds: Histogram,
    /// Seconds from the log's storing, by its clock in milliseconds, to the queues of subscribers; once per channel and burst.
    pub delivery_seconds: Histogram,
    /// API requests refused for a missing or wrong key.
    pub api_unauthorized: IntCounter,
}

impl Metrics {
    /// Makes the registry and resolves every handle.
    pub fn new() -> Result<Arc<Self>, MetricsError> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::new()?))?;
        build_info(&registry)?;
        let r = &registry;
        Ok(Arc::new(Self {
            connections: connections(r)?,
            handshakes: counters::<Handshake>(r, "plenum_handshakes_total", "Handshakes by result.", "result")?,
            connects: counters::<Connect>(r, "plenum_connects_total", "Connect commands by result.", "result")?,
            commands: commands(r)?,
            disconnects: counters::<CloseCode>(r, "plenum_disconnects_total", "Ended connections by code.", "code")?,
            recoveries: counters::<Recovery>(r, "plenum_recoveries_total", "Recoveries by result.", "result")?,
            resumes: counters::<Resume>(
                r,
                "plenum_resumes_total",
                "Connects with a resume token by result.",
                "result",
            )?,
            limits: limits(r)?,
            append_failures: counters::<AppendFailure>(
                r,
                "plenum_log_append_failures_total",
                "Appends that the log did not acknowledge, by reason.",
                "reason",
            )?,
            api_requests: api_requests(r)?,
            api_durations: api_durations(r)?,
            publications_received: counter(
                r,
                "plenum_publications_received_total",
                "Publications received from the log, once per channel.",
            )?,
            publications_delivered: counter(
                r,
                "plenum_publications_delivered_total",
                "Publications queued for subscribers.",
            )?,
            bytes_received: counter(r, "plenum_received_bytes_total", "Payload bytes read from clients.")?,
            bytes_sent: counter(r, "plenum_sent_bytes_total", "Bytes written to clients.")?,
            socket_writes: counter(r, "plenum_socket_writes_total", "Writes to client sockets.")?,
            subscriptions: gauge(r, "plenum_subscriptions", "Subscriptions of all connections.")?,
            channels: gauge(r, "plenum_channels", "Channels with at least one subscriber.")?,
            outbox_overflows: counter(
                r,
                "plenum_outbox_overflows_total",
                "Connections closed because too much waited to be written.",
            )?,
            draining_connections: gauge(
                r,
                "plenum_draining_connections",
                "Connections still open while the replica drains; 0 otherwise.",
            )?,
            ledger_fill_percent: gauge(
                r,
                "plenum_ledger_fill_percent",
                "Share of the ledger's room that is taken; 0 where it has no bound.",
            )?,
            missed_pongs: counter(r, "plenum_missed_pongs_total", "Pings that a client left unanswered.")?,
            log_append_seconds: histogram(
                r,
                "plenum_log_append_duration_seconds",
                "Time from an append to the log's acknowledgement.",
            )?,
            log_read_seconds: histogram(r, "plenum_log_read_duration_seconds", "Time that a read of the log took.")?,
            delivery_seconds: histogram(
                r,
                "plenum_delivery_duration_seconds",
                "Time from the log's storing (its clock, milliseconds) to the queues of subscribers, per channel and burst.",
            )?,
            api_unauthorized: counter(
                r,
                "plenum_api_unauthorized_total",
                "API requests refused for a missing or wrong key.",
            )?,
            registry,
        }))
    }

    /// Open connections of a transport and an encoding.
    pub fn connections(&self, transport: Transport, encoding: WireEncoding) -> &IntGauge {
        &self.connections[transport.index() * WireEncoding::ALL.len() + encoding.index()]
    }

    /// Handshakes that ended so.
    pub fn handshakes(&self, result: Handshake) -> &IntCounter {
        &self.handshakes[result.index()]
    }

    /// Connect commands that ended so; none for clients that went before their answer.
    pub fn connects(&self, result: Connect) -> &IntCounter {
        &self.connects[result.index()]
    }

    /// Commands of a method that ended with `code`.
    pub fn commands(&self, method: Method, code: ResultCode) -> &IntCounter {
        &self.commands[method.index() * ResultCode::ALL.len() + code.index()]
    }

    /// Ended connections by code.
    pub fn disconnects(&self, code: CloseCode) -> &IntCounter {
        &self.disconnects[code.index()]
    }

    /// Connects with a resume token that ended so.
    pub fn resumes(&self, result: Resume) -> &IntCounter {
        &self.resumes[result.index()]
    }

    /// Recoveries that ended so.
    pub fn recoveries(&self, result: Recovery) -> &IntCounter {
        &self.recoveries[result.index()]
    }

    /// Times that a limit came to bear so.
    pub fn limits(&self, limit: Limit, outcome: LimitOutcome) -> &IntCounter {
        &self.limits[limit.index() * LimitOutcome::ALL.len() + outcome.index()]
    }

    /// Appends that were not acknowledged.
    pub fn append_failures(&self, reason: AppendFailure) -> &IntCounter {
        &self.append_failures[reason.index()]
    }

    /// API calls of a method that ended with `code`.
    pub fn api_requests(&self, method: ApiMethod, code: ResultCode) -> &IntCounter {
        &self.api_requests[method.index() * ResultCode::ALL.len() + code.index()]
    }

    /// Seconds that API calls of a method took.
    pub fn api_seconds(&self, method: ApiMethod) -> &Histogram {
        &self.api_durations[method.index()]
    }

    /// Adds what another part of the process collects at each scrape. Fails on a name that is used already.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), MetricsError> {
        Ok(self.registry.register(collector)?)
    }

    /// All metrics in Prometheus' text exposition format 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::with_capacity(32 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

type Made<T> = Result<T, prometheus::Error>;

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Made<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Made<IntCounter> {
    registered(registry, IntCounter::new(name, help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Made<IntGauge> {
    registered(registry, IntGauge::new(name, help)?)
}

fn histogram(registry: &Registry, name: &str, help: &str) -> Made<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
    registered(registry, Histogram::with_opts(options)?)
}

fn counters<L: Label>(registry: &Registry, name: &str, help: &str, label: &str) -> Made<Vec<IntCounter>> {
    let family = registered(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)?;
    L::ALL.iter().map(|value| family.get_metric_with_label_values(&[value.name()])).collect()
}

fn connections(registry: &Registry) -> Made<Vec<IntGauge>> {
    let options = Opts::new("plenum_connections", "Open connections.");
    let family = registered(registry, IntGaugeVec::new(options, &["transport", "encoding"])?)?;
    let pairs = Transport::ALL.iter().flat_map(|t| WireEncoding::ALL.iter().map(move |e| (t, e)));
    pairs.map(|(t, e)| family.get_metric_with_label_values(&[t.name(), e.name()])).collect()
}

fn limits(registry: &Registry) -> Made<Vec<IntCounter>> {
    let options = Opts::new("plenum_limits_total", "Times that a limit refused somebody, or could not be asked.");
    let family = registered(registry, IntCounterVec::new(options, &["limit", "outcome"])?)?;
    let pairs = Limit::ALL.iter().flat_map(|l| LimitOutcome::ALL.iter().map(move |o| (l, o)));
    pairs.map(|(l, o)| family.get_metric_with_label_values(&[l.name(), o.name()])).collect()
}

fn by_method_and_code<M: Label>(registry: &Registry, name: &str, help: &str) -> Made<Vec<IntCounter>> {
    let family = registered(registry, IntCounterVec::new(Opts::new(name, help), &["method", "code"])?)?;
    let pairs = M::ALL.iter().flat_map(|m| ResultCode::ALL.iter().map(move |c| (m, c)));
    pairs.map(|(m, c)| family.get_metric_with_label_values(&[m.name(), c.name()])).collect()
}

fn commands(registry: &Registry) -> Made<Vec<IntCounter>> {
    by_method_and_code::<Method>(
        registry,
        "plenum_commands_total",
        "Client commands by method and result (0: success).",
    )
}

fn api_requests(registry: &Registry) -> Made<Vec<IntCounter>> {
    let help = "Server API calls by method and result (0: success).";
    by_method_and_code::<ApiMethod>(registry, "plenum_api_requests_total", help)
}

fn api_durations(registry: &Registry) -> Made<Vec<Histogram>> {
    let options = HistogramOpts::new("plenum_api_request_duration_seconds", "Time that a server API call took.")
        .buckets(LATENCY_BUCKETS.to_vec());
    let family = registered(registry, HistogramVec::new(options, &["method"])?)?;
    ApiMethod::ALL.iter().map(|method| family.get_metric_with_label_values(&[method.name()])).collect()
}

fn build_info(registry: &Registry) -> Made<()> {
    let options = Opts::new("plenum_build_info", "Always 1; labels say what was built.");
    let family = registered(registry, IntGaugeVec::new(options, &["version"])?)?;
    family.get_metric_with_label_values(&[env!("CARGO_PKG_VERSION")])?.set(1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_count_into_their_own_series() {
        let metrics = Metrics::new().unwrap();
        metrics.commands(Method::Publish, ResultCode::new(107)).inc_by(3);
        metrics.connections(Transport::WebSocket, WireEncoding::Protobuf).set(5);
        metrics.disconnects(CloseCode::new(3008)).inc();
        metrics.recoveries(Recovery::NotRecovered).inc();
        metrics.api_requests(ApiMethod::Batch, ResultCode::new(0)).inc_by(2);
        metrics.log_append_seconds.observe(0.003);
        metrics.publications_delivered.inc_by(9);
        let text = metrics.render();
        for line in [
            r#"plenum_commands_total{code="107",method="publish"} 3"#,
            r#"plenum_connections{encoding="protobuf",transport="websocket"} 5"#,
            r#"plenum_disconnects_total{code="3008"} 1"#,
            r#"plenum_recoveries_total{result="not_recovered"} 1"#,
            r#"plenum_api_requests_total{code="0",method="batch"} 2"#,
            r#"plenum_log_append_duration_seconds_bucket{le="0.005"} 1"#,
            r#"plenum_log_append_duration_seconds_bucket{le="0.0025"} 0"#,
            "plenum_publications_delivered_total 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new().unwrap();
        for family in metrics.registry.gather() {
            let name = family.name();
            assert!(name.starts_with("plenum_") || name.starts_with("process_"), "{name}");
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(name.ends_with("_total"), counter, "{name}");
        }
    }

    #[test]
    fn two_registries_are_independent() {
        let (one, two) = (Metrics::new().unwrap(), Metrics::new().unwrap());
        one.outbox_overflows.inc();
        assert_eq!(two.outbox_overflows.get(), 0);
    }
}
