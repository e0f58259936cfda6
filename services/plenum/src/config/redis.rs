//! `redis`: where sessions, presence and the cluster's limits are kept.

use std::time::Duration;

use plenum_channels::duration;
use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::secret::Secret;
use super::sections::Config;

/// Shortest `redis.key_secret`, in bytes.
const MIN_KEY_SECRET_BYTES: usize = 32;

/// `redis`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    pub servers: Vec<String>,
    pub mode: RedisMode,
    pub user: String,
    pub password: Secret,
    pub tls: RedisTls,
    pub prefix: String,
    pub key_secret: Secret,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    #[serde(with = "duration")]
    pub command_timeout: Duration,
}

/// `redis.mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    /// Redis Cluster; `servers` are some of its nodes.
    #[default]
    Cluster,
    /// One server.
    Standalone,
}

/// `redis.tls`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisTls {
    pub enabled: bool,
    pub server_ca_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            mode: RedisMode::default(),
            user: String::new(),
            password: Secret::default(),
            tls: RedisTls::default(),
            prefix: "plenum".into(),
            key_secret: Secret::default(),
            connect_timeout: Duration::from_millis(800),
            command_timeout: Duration::from_millis(500),
        }
    }
}

impl Redis {
    /// Whether Redis is used at all.
    pub fn enabled(&self) -> bool {
        !self.servers.is_empty()
    }
}

/// Reports everything in `redis` that cannot be used.
pub(super) fn check(config: &Config, warnings: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let redis = &config.redis;
    if redis.enabled() && redis.key_secret.is_empty() {
        warnings.push(
            "redis.key_secret is not set: whoever knows redis.prefix can choose ids whose keys lie on one Redis node"
                .into(),
        );
    }
    let mut report = |key: &str, value: Option<String>, text: &str| {
        problems.push(Problem { source: String::new(), key: key.to_owned(), value, text: text.to_owned() });
    };
    for (index, server) in redis.servers.iter().enumerate() {
        let key = format!("redis.servers[{index}]");
        if server.contains('@') {
            report(&key, None, "must not hold a user or password: use redis.user and redis.password");
        } else if !is_address(server) {
            report(&key, Some(format!("{server:?}")), "must be host:port");
        }
    }
    if redis.enabled() && !config.nats.enabled() {
        report("redis.servers", None, "needs nats.servers: replicas judge each other's leases by heartbeats over NATS");
    }
    if redis.mode == RedisMode::Standalone && redis.servers.len() > 1 {
        let value = Some(format!("{} servers", redis.servers.len()));
        report("redis.servers", value, "must be one server while redis.mode is standalone");
    }
    if !redis.user.is_empty() && redis.password.is_empty() {
        report("redis.user", None, "needs redis.password");
    }
    if !super::nats::is_name(&redis.prefix) {
        report("redis.prefix", Some(format!("{:?}", redis.prefix)), "must be 1 to 32 of a-z A-Z 0-9 - _");
    }
    let length = redis.key_secret.expose().len();
    if length != 0 && length < MIN_KEY_SECRET_BYTES {
        report("redis.key_secret", None, "must be at least 32 characters");
    }
    let (least, most) = (Duration::from_millis(50), Duration::from_millis(900));
    for (key, value) in
        [("redis.connect_timeout", redis.connect_timeout), ("redis.command_timeout", redis.command_timeout)]
    {
        if value < least || value > most {
            report(key, Some(duration::format(&value)), "must be from 50ms to 900ms: every call ends within a second");
        }
    }
    let tls = &redis.tls;
    for (key, path) in [
        ("redis.tls.server_ca_pem", &tls.server_ca_pem),
        ("redis.tls.cert_pem", &tls.cert_pem),
        ("redis.tls.key_pem", &tls.key_pem),
    ] {
        if path.contains("-----BEGIN") {
            report(key, None, "must be the path of a file, not its text");
        } else if !path.is_empty()
            && let Err(error) = std::fs::metadata(path)
        {
            report(key, Some(format!("{path:?}")), &format!("must be the path of a file: {error}"));
        }
    }
    if tls.cert_pem.is_empty() != tls.key_pem.is_empty() {
        report("redis.tls.cert_pem", None, "needs redis.tls.key_pem, and the other way round");
    }
}

fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '/', ' ']),
    };
    host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
}
