//! What operators and their machines ask: is it alive, is it ready, does it deliver, and how much.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Request, StatusCode};
use plenum_channels::{Log, Node};
use plenum_telemetry::{Label, Transport, WireEncoding};
use schemars::JsonSchema;
use serde::Serialize;

use crate::canary::{Beat, Canary};
use crate::http_reply::{HttpReply, TEXT, json, reply, unless_get};

/// Prometheus' text exposition format.
const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Which paths are served, all of them by default.
#[derive(Clone, Debug)]
pub struct OperationsConfig {
    /// `/livez`, `/readyz`, and this path for the readable report (`health.handler_prefix`); `None` for none of them.
    pub health: Option<String>,
    /// Path of the metrics (`prometheus.handler_prefix`); `None` for none.
    pub metrics: Option<String>,
}

impl Default for OperationsConfig {
    fn default() -> Self {
        Self { health: Some("/health".into()), metrics: Some("/metrics".into()) }
    }
}

/// What the answers come from.
pub struct OperationsParts {
    /// The replica.
    pub node: Arc<Node>,
    /// Its log.
    pub log: Arc<dyn Log>,
}

/// What is known of the broker that the log is on, for logs that are on one.
pub trait Broker: Send + Sync + 'static {
    /// At this moment, without waiting.
    fn state(&self) -> BrokerState;

    /// Its metrics in Prometheus' text exposition format.
    fn metrics(&self) -> String;
}

/// A broker at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BrokerState {
    /// There was contact, and the log is usable since; until then the process is not ready.
    pub started: bool,
    /// Connections that have contact.
    pub connected: usize,
    /// Connections to it.
    pub connections: usize,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answers `/livez`, `/readyz`, `/health` and `/metrics`; no key is needed.
pub struct Operations {
    config: OperationsConfig,
    node: Arc<Node>,
    canary: Canary,
    broker: Option<Arc<dyn Broker>>,
    blocked: Option<Blocked>,
    started: Instant,
}

/// Whether connections cannot be accepted at this moment; must not block.
pub type Blocked = Box<dyn Fn() -> bool + Send + Sync>;

/// The answer of `/health`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HealthReport {
    /// `ok`; `draining` while the process is about to stop; `failing` (status 503) when publications are not delivered.
    pub status: &'static str,
    /// Whether a publication sent through the log came back.
    pub delivery: Delivery,
    /// The broker that the log is on, where it is on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerState>,
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since start.
    pub uptime_seconds: u64,
    /// Open client connections.
    pub connections: i64,
    /// Subscriptions of all connections.
    pub subscriptions: i64,
    /// Channels with a subscriber on this node.
    pub channels: i64,
}

/// What became of the newest canary publication, at most a second ago.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Delivery {
    /// It came back in time.
    pub ok: bool,
    /// Milliseconds from sending to receiving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Operations {
    /// Answers for the replica in `parts`.
    pub fn new(config: OperationsConfig, parts: OperationsParts) -> Self {
        let (canary, started) = (Canary::new(parts.log), Instant::now());
        Self { config, canary, node: parts.node, broker: None, blocked: None, started }
    }

    /// Tells of this broker, too; not ready until it [`started`](BrokerState::started), healthy only without an error of
    /// it.
    pub fn with_broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// Not ready while this says that connections cannot be accepted.
    pub fn with_blocked(mut self, blocked: Blocked) -> Self {
        self.blocked = Some(blocked);
        self
    }

    /// Whether the path is one of these.
    pub fn owns(&self, path: &str) -> bool {
        self.question(path).is_some()
    }

    /// Answers one request.
    pub async fn route<B>(&self, request: Request<B>) -> HttpReply {
        if let Some(refused) = unless_get(request.method()) {
            return refused;
        }
        match self.question(request.uri().path()) {
            Some(Question::Alive) => reply(StatusCode::OK, TEXT, "ok\n"),
            Some(Question::Ready) => match self.unready() {
                None => reply(StatusCode::OK, TEXT, "ready\n"),
                Some(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, reason),
            },
            Some(Question::Health) => self.health().await,
            Some(Question::Metrics) => {
                let broker = self.broker.as_ref().map_or_else(String::new, |broker| broker.metrics());
                reply(StatusCode::OK, EXPOSITION, self.node.metrics().render() + &broker)
            }
            None => reply(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }

    fn question(&self, path: &str) -> Option<Question> {
        let health = self.config.health.as_deref();
        match path {
            _ if Some(path) == self.config.metrics.as_deref() => Some(Question::Metrics),
            _ if Some(path) == health => Some(Question::Health),
            "/livez" if health.is_some() => Some(Question::Alive),
            "/readyz" if health.is_some() => Some(Question::Ready),
            _ => None,
        }
    }

    /// Why no new clients should come. A broker that is lost later is no reason: all replicas would be without clients
    /// at once, and gain nothing.
    fn unready(&self) -> Option<&'static str> {
        if !self.node.is_accepting() {
            return Some("draining\n");
        }
        if self.blocked.as_ref().is_some_and(|blocked| blocked()) {
            return Some("cannot accept connections: see the log\n");
        }
        let started = self.broker.as_ref().is_none_or(|broker| broker.state().started);
        (!started).then_some("waiting for the broker\n")
    }

    async fn health(&self) -> HttpReply {
        let broker = self.broker.as_ref().map(|broker| broker.state());
        let beat = match broker.as_ref().and_then(|state| state.error.clone()) {
            // Known at once; a canary would take its time to die.
            Some(error) => Beat::Dead(error),
            None => self.canary.beat().await,
        };
        let (delivery, http_status) = match beat {
            Beat::Delivered(after) => {
                let latency_ms = Some((after.as_secs_f64() * 1e6).round() / 1e3);
                (Delivery { ok: true, latency_ms, error: None }, StatusCode::OK)
            }
            Beat::Dead(reason) => {
                (Delivery { ok: false, latency_ms: None, error: Some(reason) }, StatusCode::SERVICE_UNAVAILABLE)
            }
        };
        let status = match (delivery.ok, self.node.is_accepting()) {
            (false, _) => "failing",
            (true, false) => "draining",
            (true, true) => "ok",
        };
        let metrics = self.node.metrics();
        let pairs = Transport::ALL.iter().flat_map(|t| WireEncoding::ALL.iter().map(move |e| (*t, *e)));
        let report = HealthReport {
            status,
            delivery,
            broker,
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            connections: pairs.map(|(transport, encoding)| metrics.connections(transport, encoding).get()).sum(),
            subscriptions: metrics.subscriptions.get(),
            channels: metrics.channels.get(),
        };
        json(http_status, &report)
    }
}

enum Question {
    Alive,
    Ready,
    Health,
    Metrics,
}
