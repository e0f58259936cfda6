//! What an operator sets about limits. All of it is ours.

use serde::{Deserialize, Serialize};

use super::rate;
use crate::Bucket;

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
    /// `client.rate_limit.….connect`. Closed: a connect gets error 111. Default open.
    pub connect_rate: Fallback,
    /// `client.rate_limit.….publish`. Closed: a publish gets error 111. Default open.
    pub publish_rate: Fallback,
}

/// `client.rate_limit`: how often clients may do something. Who comes too often gets error 111 and may try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// All connections of one user together; anonymous users are not limited.
    pub user: CommandRates,
    /// All connections from one address together: an IPv4 address, or a /64 network of IPv6.
    pub address: CommandRates,
}

/// Rates of commands. Default: none is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandRates {
    /// Connects, to all replicas where these share counts.
    #[serde(with = "rate")]
    pub connect: Option<Bucket>,
    /// Subscribes, on one replica.
    #[serde(with = "rate")]
    pub subscribe: Option<Bucket>,
    /// Publishes, on all replicas where these share counts.
    #[serde(with = "rate")]
    pub publish: Option<Bucket>,
    /// RPC calls, on one replica.
    #[serde(with = "rate")]
    pub rpc: Option<Bucket>,
}
