use std::panic::Location;
use std::time::Duration;

/// Why a pool cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The configuration names no server.
    #[error("no NATS server is configured")]
    NoServers,
    /// A server address cannot be read.
    #[error("NATS server address {address:?}: {reason}")]
    Address {
        /// As configured.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A number is out of its bounds.
    #[error("NATS pool setting {setting} is {value}, it must be {expected}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What was given.
        value: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// A setting cannot change while the pool lives.
    #[error("NATS pool setting {setting} cannot change while the process runs")]
    Fixed {
        /// Which.
        setting: &'static str,
    },
    /// The TLS or credentials files cannot be used.
    #[error("{reason}")]
    Credentials {
        /// Which: `credentials`, `tls.ca_file`, `tls.certificate` or `tls.key`.
        setting: &'static str,
        /// Holds no secret.
        reason: String,
    },
    /// Not every connection was there in time.
    #[error("no contact with NATS within {waited:?}{}", reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// Why the last attempt of a connection failed, where that is known.
        reason: Option<String>,
    },
    /// The lease was held too long.
    #[error("the lease taken at {taken_at} was reclaimed")]
    LeaseReclaimed {
        /// Where it was taken.
        taken_at: &'static Location<'static>,
    },
    /// No connection has this number (any more).
    #[error("there is no connection {connection}")]
    NoSuchConnection {
        /// The number asked for.
        connection: usize,
    },
    /// The pool was closed.
    #[error("the pool is closed")]
    Closed,
}
