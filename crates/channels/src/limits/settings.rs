//! What an operator sets about limits of the whole cluster. All of it is ours.

use serde::{Deserialize, Serialize};

/// Which way a limit of the whole cluster fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Who keeps the replica's own limit is let in, and counted in the cluster once it is reached.
    #[default]
    Open,
    /// Nobody is let in: a temporary error.
    Closed,
}

/// `client.on_unavailable`: what becomes of limits of the whole cluster while its counts cannot be reached. The
/// replica's own count holds in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnUnavailable {
    /// `client.user_connection_limit`. Closed: a connect gets the temporary error 100. Default open.
    pub user_connections: Fallback,
    /// `subscriber_limit` of namespaces. Closed: a subscribe gets the temporary error 100. Default open.
    pub subscribers: Fallback,
}
