//! What is known of NATS at a moment: for `/health`, for metrics, for the log.

use std::fmt::Write as _;
use std::time::Duration;

use plenum_api::{Broker, BrokerState};
use plenum_bus_nats::pool::{ConnectionStats, PoolStats, Role};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::Nats;

/// How often the state is looked at when no connection says anything.
const LOOK: Duration = Duration::from_secs(1);

impl Broker for Nats {
    fn state(&self) -> BrokerState {
        let stats = self.pool.stats();
        let (connected, connections) = stats.healthy();
        let deaf =
            stats.connections.iter().any(|connection| connection.role == Role::Subscribing && !connection.healthy);
        let parts = self.parts.get();
        let doubtful = parts.map_or_else(Vec::new, |parts| parts.log.doubtful());
        let error = match (parts.is_some(), connected) {
            (false, _) => Some(self.trouble.load().as_ref().clone().unwrap_or_else(|| "no contact yet".into())),
            (true, 0) => Some("contact with NATS is lost".into()),
            (true, _) if deaf => Some("a connection that carries subscriptions has no contact with NATS".into()),
            (true, _) if !doubtful.is_empty() => Some(format!("no tick for 3 s: {}", doubtful.join(", "))),
            (true, _) => None,
        };
        BrokerState { started: parts.is_some(), connected, connections, error }
    }

    fn metrics(&self) -> String {
        let mut text = render(&self.pool.stats());
        let parts = self.parts.get();
        let doubtful = parts.map_or(0, |parts| parts.log.doubtful().len());
        let members = parts.map_or(0, |parts| parts.control.members());
        gauge(&mut text, "plenum_nats_log_ready", "Whether the log on NATS was set up.", i32::from(parts.is_some()));
        gauge(&mut text, "plenum_nats_doubtful_shards", "Shards of the log without a tick for 3 s.", doubtful);
        gauge(&mut text, "plenum_nats_members", "Replicas that showed a sign of life, this one among them.", members);
        text
    }
}

impl Nats {
    /// Logs when contact with NATS, or with a shard of the log, goes and comes back. Does not end.
    pub(super) async fn watch(&self) {
        let mut events = self.pool.events();
        let mut known = None;
        loop {
            // Whatever happened: the state now is what counts.
            if let Ok(Err(RecvError::Closed)) = timeout(LOOK, events.recv()).await {
                return std::future::pending().await;
            }
            let state = self.state();
            if !state.started || known == state.error {
                continue;
            }
            match &state.error {
                Some(error) => tracing::error!(error, connected = state.connected, "NATS: delivery is in doubt"),
                None => tracing::info!(connected = state.connected, "NATS: delivery is in order"),
            }
            known = state.error;
        }
    }
}

fn gauge(text: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
}

/// The pool in Prometheus' text format. A connection is named by its role and its place among those of the role, so
/// that replacing connections makes no new series.
fn render(stats: &PoolStats) -> String {
    let mut text = String::new();
    let retiring = stats.connections.iter().filter(|connection| connection.retiring).count();
    gauge(&mut text, "plenum_nats_retiring_connections", "Replaced connections that are still in use.", retiring);
    gauge(&mut text, "plenum_nats_leases", "Connections lent for series of requests.", stats.leases);
    counter(&mut text, "plenum_nats_recycled_total", "Connections replaced.", stats.recycled);
    counter(&mut text, "plenum_nats_resized_total", "Connections added and removed by load.", stats.resized);
    counter(&mut text, "plenum_nats_leases_reclaimed_total", "Leases taken back.", stats.leases_reclaimed);
    type Value = fn(&ConnectionStats) -> f64;
    let families: [(&str, &str, Value); 7] = [
        ("plenum_nats_connection_up", "Whether the connection has contact.", |c| f64::from(u8::from(c.healthy))),
        ("plenum_nats_connection_reconnects", "Contacts after the first.", |c| c.reconnects as f64),
        ("plenum_nats_connection_age_seconds", "Time since it was opened.", |c| c.age_seconds),
        ("plenum_nats_connection_round_trip_seconds", "Last measured round trip.", |c| {
            c.round_trip_ms.map_or(f64::NAN, |ms| ms / 1e3)
        }),
        ("plenum_nats_connection_in_flight", "Uses at this moment.", |c| c.in_flight as f64),
        ("plenum_nats_connection_slow_consumers", "Times that a subscription's buffer was full.", |c| {
            c.slow_consumer_events as f64
        }),
        ("plenum_nats_connection_failed_probes", "Probes without an answer in time.", |c| c.failed_probes as f64),
    ];
    for (name, help, value) in families {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        let mut places = [0, 0];
        for connection in stats.connections.iter().filter(|connection| !connection.retiring) {
            let role = connection.role.name();
            let place = &mut places[usize::from(role == "subscribing")];
            let _ = writeln!(text, "{name}{{role=\"{role}\",place=\"{place}\"}} {}", value(connection));
            *place += 1;
        }
    }
    text
}

fn counter(text: &mut String, name: &str, help: &str, value: u64) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(number: usize, role: Role, retiring: bool) -> ConnectionStats {
        ConnectionStats {
            connection: number,
            role,
            server: "127.0.0.1:4222".into(),
            healthy: !retiring,
            retiring,
            reconnects: 2,
            age_seconds: 1.5,
            round_trip_ms: Some(0.25),
            failed_probes: 0,
            in_flight: 7,
            unacknowledged: 0,
            slow_consumer_events: 0,
            messages: (0, 0),
            bytes: (0, 0),
        }
    }

    #[test]
    fn connections_keep_their_series_when_they_are_replaced() {
        let stats = PoolStats {
            connections: vec![
                connection(0, Role::Subscribing, false),
                connection(9, Role::Publishing, false),
                connection(8, Role::Publishing, false),
                connection(1, Role::Publishing, true),
            ],
            recycled: 3,
            resized: 0,
            leases: 0,
            oldest_lease_seconds: None,
            leases_reclaimed: 0,
        };
        let text = render(&stats);
        for line in [
            "plenum_nats_connection_up{role=\"subscribing\",place=\"0\"} 1",
            "plenum_nats_connection_in_flight{role=\"publishing\",place=\"1\"} 7",
            "plenum_nats_connection_round_trip_seconds{role=\"publishing\",place=\"0\"} 0.00025",
            "plenum_nats_recycled_total 3",
            "plenum_nats_retiring_connections 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("place=\"2\""), "those that retire are only counted");
    }
}
