//! Calls to Redis: one [`Client`] per purpose, each with a connection of its own to each primary, so that neither a dead
//! server nor another purpose's load holds up a call. Every call ends within its deadline, with a named outcome.

mod call;
mod caller;
mod config;
mod error;
mod follow;
mod layout;
mod link;
mod metrics;
mod redis;
#[cfg(test)]
mod tests;

pub use call::Call;
pub use caller::{Client, ServerState};
pub use config::{Address, ConfigError, Layout, RedisConfig, Secret, Tls};
pub use error::CallError;
pub use fred::types::Value;
pub use layout::{Node, Slots};
pub use metrics::{RedisCollector, RedisMetrics};
pub use redis::Redis;

/// What a client is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The cluster's layout.
    Layout,
    /// Sessions and snapshots.
    Sessions,
    /// Presence.
    Presence,
    /// Quotas and shared rate limits.
    Quotas,
    /// Idempotency results.
    Results,
    /// Channel tails.
    Tails,
}

impl Purpose {
    /// All of them, in order.
    pub const ALL: [Purpose; 6] =
        [Purpose::Layout, Purpose::Sessions, Purpose::Presence, Purpose::Quotas, Purpose::Results, Purpose::Tails];

    /// As metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Layout => "layout",
            Purpose::Sessions => "sessions",
            Purpose::Presence => "presence",
            Purpose::Quotas => "quotas",
            Purpose::Results => "results",
            Purpose::Tails => "tails",
        }
    }
}
