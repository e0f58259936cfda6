//! Settings of a [`Pool`](super::Pool).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a pool proves who it is; read again at every connect, so a change takes effect at the next one.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing is sent.
    #[default]
    None,
    /// User and password.
    UserPassword {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// One shared token.
    Token(String),
    /// Path of a file with the seed of an nkey (`SU…`), with which the server's nonce is signed; read again at every
    /// connect.
    NKeyFile(PathBuf),
    /// Path of a `.creds` file (JWT and nkey seed); read again at every connect.
    CredsFile(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::None => f.write_str("None"),
            Credentials::UserPassword { user, .. } => write!(f, "UserPassword {{ user: {user:?}, .. }}"),
            Credentials::Token(_) => f.write_str("Token(..)"),
            Credentials::NKeyFile(path) => write!(f, "NKeyFile({path:?})"),
            Credentials::CredsFile(path) => write!(f, "CredsFile({path:?})"),
        }
    }
}

/// TLS towards NATS; the files are read again at every connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Refuse servers without TLS. Servers that require it, and `tls://` addresses, get it anyway.
    pub required: bool,
    /// TLS before the server's first line, for servers with `handshake_first`.
    pub first: bool,
    /// PEM file of the CA to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the client's certificate chain and of its key.
    pub client_files: Option<(PathBuf, PathBuf)>,
}

/// Settings of a pool. [`PoolConfig::new`] gives the defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// Server addresses (`nats://host:port`, `tls://host:port` or `host:port`); at least one.
    pub servers: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// TLS.
    pub tls: Tls,
    /// Connections for publishing and requests at start (default 2).
    pub publishing: usize,
    /// Fewest publishing connections when resized by load (default 2).
    pub min_publishing: usize,
    /// Most publishing connections when resized by load (default 4).
    pub max_publishing: usize,
    /// Connections that carry subscriptions; fixed for the life of the pool (default 1).
    pub subscribing: usize,
    /// One connection more when the mean in flight per publishing connection stays above this for 5 s (default 1,536).
    pub grow_above: usize,
    /// One connection less when it stays below this for 60 s (default 64).
    pub shrink_below: usize,
    /// Age at which a publishing connection is replaced (default 1 h; spread by 10 %).
    pub recycle_after: Duration,
    /// Time between two round-trip probes of a connection (default 30 s).
    pub probe_every: Duration,
    /// A probe without an answer for this long has failed; two in a row reconnect (default 5 s).
    pub probe_timeout: Duration,
    /// Time between protocol pings; the third one unanswered ends the connection (default 2 s).
    pub client_ping_every: Duration,
    /// Limit of one connection attempt (default 5 s).
    pub connect_timeout: Duration,
    /// Upper bound of the first reconnect delay (default 1 s); doubles with each round over the servers.
    pub backoff_min: Duration,
    /// Upper bound of every reconnect delay (default 30 s).
    pub backoff_max: Duration,
    /// A lease held longer than this is reported and reclaimed (default 5 min).
    pub lease_limit: Duration,
    /// Publishes of one connection that wait for JetStream's acknowledgement, at most (default 16,384).
    pub window: usize,
    /// Messages that a subscription buffers before the client drops some and reports a slow consumer (default 65,536).
    pub subscription_capacity: usize,
    /// Use servers that the configured ones advertise, too (default true).
    pub discover_servers: bool,
    /// First part of the probe subjects; needs publish and subscribe permission on `<probe_subject>.*`.
    pub probe_subject: String,
    /// First part of reply subjects (default `_INBOX`).
    pub inbox_prefix: String,
    /// Name of the connections as `nats` tools show it; a number is appended.
    pub name: String,
}

impl Default for PoolConfig {
    /// The defaults without a server, which has to be added.
    fn default() -> Self {
        PoolConfig::new(Vec::<String>::new())
    }
}

impl PoolConfig {
    /// The defaults for these servers.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        PoolConfig {
            servers: servers.into_iter().map(Into::into).collect(),
            credentials: Credentials::None,
            tls: Tls::default(),
            publishing: 2,
            min_publishing: 2,
            max_publishing: 4,
            subscribing: 1,
            grow_above: 768,
            shrink_below: 64,
            recycle_after: Duration::from_secs(3600),
            probe_every: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(5),
            client_ping_every: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            lease_limit: Duration::from_secs(300),
            window: 16_384,
            subscription_capacity: 65_536,
            discover_servers: true,
            probe_subject: "plenum.probe".into(),
            inbox_prefix: "_INBOX".into(),
            name: "plenum".into(),
        }
    }

    /// Whether a connection made under `other` has to be replaced to follow `self`.
    pub(super) fn needs_new_connections(&self, other: &PoolConfig) -> bool {
        let PoolConfig { servers, credentials, tls, client_ping_every, connect_timeout, .. } = self;
        servers != &other.servers
            || credentials != &other.credentials
            || tls != &other.tls
            || client_ping_every != &other.client_ping_every
            || connect_timeout != &other.connect_timeout
            || (&self.probe_subject, self.window, self.discover_servers)
                != (&other.probe_subject, other.window, other.discover_servers)
    }
}
