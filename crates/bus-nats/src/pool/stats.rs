//! What a pool says of itself.

use serde::Serialize;

use super::Role;

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionStats {
    /// Its number; never used twice in one pool.
    pub connection: usize,
    /// What it is for.
    pub role: Role,
    /// Address of the server it has or seeks.
    pub server: String,
    /// It has contact.
    pub healthy: bool,
    /// Why the last attempt to have contact failed, while there is none.
    pub error: Option<String>,
    /// It was replaced and waits for its last user.
    pub retiring: bool,
    /// Contacts after the first.
    pub reconnects: u64,
    /// Seconds since it was opened.
    pub age_seconds: f64,
    /// Last measured round trip in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Probes that got no answer in time.
    pub failed_probes: u64,
    /// Requests in flight, at least one for each use.
    pub in_flight: usize,
    /// Publishes that wait for an acknowledgement.
    pub unacknowledged: usize,
    /// Times that a subscription's buffer was full.
    pub slow_consumer_events: u64,
    /// Messages sent and received.
    pub messages: (u64, u64),
    /// Payload bytes sent and received.
    pub bytes: (u64, u64),
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolStats {
    /// Its connections, those that retire included.
    pub connections: Vec<ConnectionStats>,
    /// Connections replaced because of age, settings or a stopping server.
    pub recycled: u64,
    /// Connections added and removed by load.
    pub resized: u64,
    /// Leases out now.
    pub leases: usize,
    /// Age of the oldest lease in seconds.
    pub oldest_lease_seconds: Option<f64>,
    /// Leases reclaimed from their holders.
    pub leases_reclaimed: u64,
}

impl PoolStats {
    /// Connections in use that have contact, and all of them.
    pub fn healthy(&self) -> (usize, usize) {
        let used = || self.connections.iter().filter(|connection| !connection.retiring);
        (used().filter(|connection| connection.healthy).count(), used().count())
    }
}
