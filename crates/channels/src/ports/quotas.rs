//! Quotas: limits that hold for all replicas together.

use std::time::Duration;

use async_trait::async_trait;

/// What is counted across the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quota {
    /// Connections of one user.
    UserConnections,
    /// Subscribers of one channel (a session, where the namespace holds sessions).
    ChannelSubscribers,
}

/// What is limited per time across the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rate {
    /// Connects of a user.
    UserConnect,
    /// Connects from an address.
    AddressConnect,
    /// Publishes of a user.
    UserPublish,
    /// Publishes from an address.
    AddressPublish,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens added per `period`; also what fits in.
    pub tokens: u32,
    /// The period, 1 s to 1 h.
    pub period: Duration,
}

/// What becomes of the wish for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// It was taken.
    Given,
    /// There is none.
    Refused,
    /// The cluster is not reached: the settings say whether that lets the caller in.
    Unknown,
}

/// Why nothing could be counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// The limit is reached; nothing was counted.
    #[error("{found} are there, allowed are {max}")]
    Reached {
        /// How many there are, of all replicas that are alive.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// Temporary: the settings say whether that lets the caller in.
    #[error("the cluster's counts are unavailable: {reason}")]
    Unavailable {
        /// For operators.
        reason: String,
    },
}

/// Counts and buckets of the whole cluster, seen from one replica. What a replica counted ends with its lease.
#[async_trait]
pub trait Quotas: Send + Sync + 'static {
    /// Counts one (`member` makes a repetition harmless) unless `max` are there; of replicas that are alive only.
    async fn enter(&self, quota: Quota, key: &str, member: &str, max: u64) -> Result<(), QuotaError>;

    /// Counts one whatever the limit is, now or as soon as the cluster is reached; never waits.
    fn hold(&self, quota: Quota, key: &str, member: &str);

    /// Takes back what [`Quotas::enter`] or [`Quotas::hold`] counted; never fails, at worst it is swept later.
    fn exit(&self, quota: Quota, key: &str, member: &str);

    /// Takes a token. Never waits: what this replica took is told to the cluster every 200 ms, and what others took is
    /// known as late.
    fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> Token;
}
