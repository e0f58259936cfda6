use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// From its parts.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Address { host: host.into(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brackets = self.host.contains(':');
        if brackets { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl FromStr for Address {
    type Err = ConfigError;

    /// `host:port` or `[address]:port`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::Address { text: text.into() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Address::new(host, port.parse().map_err(|_| wrong())?))
    }
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What the servers are to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One server with all keys.
    Standalone,
    /// A Redis Cluster; the configured servers are where it is looked for.
    #[default]
    Cluster,
}

/// TLS towards the servers.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Roots and, where the servers ask for one, the client's certificate.
    pub client: Arc<rustls::ClientConfig>,
    /// Name that certificates are checked against; `None`: the host that is connected to (a cluster's nodes are known by
    /// the host name they announce, else by address).
    pub server_name: Option<String>,
}

impl Tls {
    /// From PEM: `roots` are the authorities trusted, `identity` the client's chain and private key.
    pub fn from_pem(
        roots: &[u8],
        identity: Option<(&[u8], &[u8])>,
        server_name: Option<String>,
    ) -> Result<Self, ConfigError> {
        let wrong = |error: &dyn fmt::Display| ConfigError::Tls { reason: error.to_string() };
        let mut store = rustls::RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            store.add(root.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
        if store.is_empty() {
            return Err(ConfigError::Tls { reason: "no certificate of an authority".into() });
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_root_certificates(store);
        let client = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
                builder.with_client_auth_cert(chain.map_err(|error| wrong(&error))?, key).map_err(|e| wrong(&e))?
            }
        };
        Ok(Tls { client: Arc::new(client), server_name })
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not `host:port`.
    #[error("{text:?} is not host:port")]
    Address {
        /// What was given.
        text: String,
    },
    /// No server, or several without a cluster.
    #[error("{count} servers are configured; a standalone Redis has one, a cluster at least one")]
    Servers {
        /// How many were given.
        count: usize,
    },
    /// Braces would move the hash tag; control characters and blanks make keys unreadable.
    #[error("the key prefix {prefix:?} is not allowed: 1 to 64 letters, digits, '.', '_', '-' and ':'")]
    Prefix {
        /// What was given.
        prefix: String,
    },
    /// A certificate or key cannot be used.
    #[error("TLS of Redis: {reason}")]
    Tls {
        /// What is wrong with it.
        reason: String,
    },
}

/// How Redis is reached, and every bound on the way.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Where to begin; a cluster's other nodes are found.
    pub servers: Vec<Address>,
    /// What they are to each other.
    pub layout: Layout,
    /// User of the access control list; `None`: the default user.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// `None`: plain TCP.
    pub tls: Option<Tls>,
    /// Begins every key (default `plenum`).
    pub prefix: String,
    /// Keys are named by a hash of the ids under this secret, the same on every replica; without one the prefix takes its
    /// place, and whoever knows it can look for ids whose keys lie in one slot.
    pub key_secret: Option<Secret>,
    /// Longest connect with its handshake, and longest wait for a server's answer to it (default 0.8 s).
    pub connect_timeout: Duration,
    /// Longest wait for the answer to one attempt (default 0.5 s).
    pub command_timeout: Duration,
    /// Longest call with its repetitions (default 0.9 s).
    pub deadline: Duration,
    /// Calls under way for one server and purpose; beyond them a call fails at once (default 4,096).
    pub max_in_flight: usize,
    /// How often the cluster is asked for its layout; after a failed call at once (default 1 s).
    pub refresh_every: Duration,
}

impl RedisConfig {
    /// A cluster that is found at these servers.
    pub fn cluster(servers: Vec<Address>) -> Self {
        RedisConfig {
            servers,
            layout: Layout::Cluster,
            username: None,
            password: None,
            tls: None,
            prefix: "plenum".into(),
            key_secret: None,
            connect_timeout: Duration::from_millis(800),
            command_timeout: Duration::from_millis(500),
            deadline: Duration::from_millis(900),
            max_in_flight: 4096,
            refresh_every: Duration::from_secs(1),
        }
    }

    /// One server with all keys.
    pub fn standalone(server: Address) -> Self {
        RedisConfig { layout: Layout::Standalone, ..RedisConfig::cluster(vec![server]) }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let count = self.servers.len();
        if count == 0 || (count > 1 && self.layout == Layout::Standalone) {
            return Err(ConfigError::Servers { count });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        if self.prefix.is_empty() || self.prefix.len() > 64 || !self.prefix.chars().all(allowed) {
            return Err(ConfigError::Prefix { prefix: self.prefix.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_prefixes() {
        assert_eq!("redis-0.redis:6379".parse(), Ok(Address::new("redis-0.redis", 6379)));
        let six: Address = "[::1]:7000".parse().unwrap();
        assert_eq!((six.host.as_str(), six.to_string().as_str()), ("::1", "[::1]:7000"));
        for wrong in ["", "host", ":6379", "host:", "host:70000", "::1:7000", "[::1:7000"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        let config = |prefix: &str| RedisConfig { prefix: prefix.into(), ..RedisConfig::standalone(six.clone()) };
        assert_eq!(config("shop:eu-1").check(), Ok(()));
        for wrong in ["", "a{b", "a b", "a\n", &"x".repeat(65)] {
            assert!(config(wrong).check().is_err(), "{wrong}");
        }
        let two = RedisConfig { servers: vec![six.clone(), six.clone()], ..config("p") };
        assert_eq!(two.check(), Err(ConfigError::Servers { count: 2 }));
    }

    #[test]
    fn secrets_are_not_shown() {
        let server = Address::new("h", 1);
        let config = RedisConfig { password: Some("hunter2".into()), ..RedisConfig::standalone(server) };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
