//! What is known of NATS at a moment: for `/health`, for metrics, for the log.

use std::fmt::Write as _;
use std::time::Duration;

use plenum_api::{Broker, BrokerState};
use plenum_bus_nats::pool::Role;
use plenum_channels::Dependency;
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
        let broken = parts.map_or_else(Vec::new, |parts| parts.log.broken());
        let error = match (parts.is_some(), connected) {
            (false, _) => Some(self.trouble.load().as_ref().clone().unwrap_or_else(|| "no contact yet".into())),
            (true, 0) => Some("contact with NATS is lost".into()),
            (true, _) if deaf => Some("a connection that carries subscriptions has no contact with NATS".into()),
            (true, _) if !doubtful.is_empty() => Some(format!("no tick for 3 s: {}", doubtful.join(", "))),
            (true, _) if !broken.is_empty() => Some(broken.join(", ")),
            (true, _) => None,
        };
        BrokerState { started: parts.is_some(), connected, connections, error }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let parts = self.parts.get();
        let doubtful = parts.map_or(0, |parts| parts.log.doubtful().len());
        let members = parts.map_or(0, |parts| parts.control.members());
        gauge(&mut text, "plenum_nats_log_ready", "Whether the log on NATS was set up.", i32::from(parts.is_some()));
        gauge(&mut text, "plenum_nats_doubtful_shards", "Shards of the log without a tick for 3 s.", doubtful);
        gauge(&mut text, "plenum_nats_members", "Replicas that showed a sign of life, this one among them.", members);
        text
    }
}

impl Dependency for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn trouble(&self) -> Option<String> {
        self.state().error
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
