//! Redis as this process uses it: presence, sessions and what limits all replicas together; and what is known of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use plenum_channels::{Dependency, Replicas};
use plenum_sessions_redis::client::{self, Layout, RedisCollector, RedisConfig, RedisMetrics, Tls};
use plenum_sessions_redis::presence::{PresenceConfig, RedisPresence};
use plenum_sessions_redis::quotas::RedisQuotas;
use plenum_sessions_redis::{RedisCopies, RedisResults, RedisTails};
use plenum_telemetry::Metrics;

use crate::config::{self, RedisMode};

/// Counts that nobody renews are gone after this.
const QUOTA_LIFE: Duration = Duration::from_secs(3600);

/// One process's side of Redis.
pub struct Redis {
    client: Arc<client::Redis>,
    /// The port.
    pub presence: Arc<RedisPresence>,
    /// The port.
    pub quotas: Arc<RedisQuotas>,
    /// The port.
    pub results: Arc<RedisResults>,
    /// The port.
    pub tails: Arc<RedisTails>,
    /// The port.
    pub copies: Arc<RedisCopies>,
}

impl Redis {
    /// Opens the clients. No server needs to be there: what leans on Redis answers with a temporary error until one is. Fails on
    /// settings that can never work. Must be called within a tokio runtime.
    pub fn open(config: &config::Redis, replicas: Arc<dyn Replicas>, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let counts = RedisMetrics::new()?;
        metrics.register(Box::new(RedisCollector(counts.clone())))?;
        let client = client::Redis::open(settings(config)?, counts)?;
        let presence = RedisPresence::start(client.clone(), replicas.clone(), PresenceConfig::default());
        let quotas = RedisQuotas::start(client.clone(), replicas, QUOTA_LIFE);
        let (results, tails) = (RedisResults::new(&client), RedisTails::new(&client));
        let copies = RedisCopies::new(&client);
        Ok(Arc::new(Self { client, presence, quotas, results, tails, copies }))
    }
}

impl Dependency for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }
}

/// How this configuration reaches Redis.
pub fn settings(config: &config::Redis) -> anyhow::Result<RedisConfig> {
    let servers = config.servers.iter().map(|server| server.parse()).collect::<Result<Vec<_>, _>>();
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Ok(RedisConfig {
        layout: match config.mode {
            RedisMode::Cluster => Layout::Cluster,
            RedisMode::Standalone => Layout::Standalone,
        },
        username: given(&config.user),
        password: given(config.password.expose()).map(Into::into),
        tls: config.tls.enabled.then(|| tls(&config.tls)).transpose()?,
        prefix: config.prefix.clone(),
        key_secret: given(config.key_secret.expose()).map(Into::into),
        connect_timeout: config.connect_timeout,
        command_timeout: config.command_timeout,
        ..RedisConfig::cluster(servers.context("redis.servers")?)
    })
}

fn tls(config: &config::RedisTls) -> anyhow::Result<Tls> {
    let read =
        |key: &str, path: &str| std::fs::read(Path::new(path)).with_context(|| format!("redis.tls.{key} = {path:?}"));
    let roots = match config.server_ca_pem.as_str() {
        "" => system_roots().context("redis.tls.server_ca_pem is not set, and the system has no authorities")?,
        path => read("server_ca_pem", path)?,
    };
    let identity = match config.cert_pem.is_empty() {
        true => None,
        false => Some((read("cert_pem", &config.cert_pem)?, read("key_pem", &config.key_pem)?)),
    };
    let identity = identity.as_ref().map(|(chain, key)| (chain.as_slice(), key.as_slice()));
    Ok(Tls::from_pem(&roots, identity, None)?)
}

/// Where distributions keep the authorities that the system trusts.
fn system_roots() -> anyhow::Result<Vec<u8>> {
    const PLACES: [&str; 3] =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let found = PLACES.iter().find(|place| Path::new(place).exists());
    Ok(std::fs::read(found.context(PLACES.join(", "))?)?)
}

#[cfg(test)]
mod tests {
    use plenum_sessions_redis::keys::Keys;

    use super::*;

    #[test]
    fn the_secret_of_the_configuration_decides_about_slots() {
        let tag = |secret: &str| {
            let text = serde_json::json!({ "servers": ["a:1"], "key_secret": secret });
            let config: config::Redis = serde_json::from_value(text).unwrap();
            Keys::new(&settings(&config).unwrap()).tag(&["user"])
        };
        assert_ne!(tag("one secret"), tag("another secret"));
        assert_ne!(tag("one secret"), tag(""));
        assert_eq!(tag(""), tag("plenum"), "without one it is the prefix");
    }
}
