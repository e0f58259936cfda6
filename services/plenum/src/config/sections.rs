//! The sections of the configuration. Names, types, defaults and meaning are Centrifugo v6's unless [`super::table`]
//! marks a key as ours; that table says what each key means.

use std::time::Duration;

use plenum_channels::{ChannelSettings, ClientSettings, Settings, duration};
use plenum_tokens::TokenConfig;
use serde::{Deserialize, Serialize};

use super::consumers::Consumer;
use super::nats::{Nats, RetentionGroups};
use super::redis::Redis;
use super::secret::Secret;

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `http_server`
    pub http_server: HttpServer,
    /// `log`
    pub log: Log,
    /// `client`, what the domain needs of it.
    pub client: ClientSettings,
    /// `client`, the rest: who may connect.
    pub access: Access,
    /// `client.subscription_token`
    pub subscription_token: SubscriptionToken,
    /// `channel`
    pub channel: ChannelSettings,
    /// `retention_group` of the namespaces in `channel`.
    pub retention_groups: RetentionGroups,
    /// `nats`
    pub nats: Nats,
    /// `redis`
    pub redis: Redis,
    /// `consumers`
    pub consumers: Vec<Consumer>,
    /// `http_api`
    pub http_api: HttpApi,
    /// `websocket`
    pub websocket: WebSocket,
    /// `prometheus`
    pub prometheus: Endpoint<Metrics>,
    /// `health`
    pub health: Endpoint<Health>,
    /// `node`
    pub node: NodeSection,
    /// `shutdown`
    pub shutdown: Shutdown,
}

impl Config {
    /// What the domain is set up with.
    pub fn settings(&self) -> Settings {
        Settings { client: self.client.clone(), channel: self.channel.clone() }
    }
}

/// `http_server`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpServer {
    pub address: String,
    pub port: u16,
    pub internal_address: String,
    pub internal_port: String,
    pub tls: TlsSection,
    pub tls_external: bool,
    pub internal_tls: TlsSection,
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    #[serde(with = "duration")]
    pub handshake_timeout: Duration,
    pub trusted_proxies: Vec<String>,
    pub max_header_size: usize,
    pub max_http_connections: usize,
}

impl Default for HttpServer {
    fn default() -> Self {
        Self {
            address: String::new(),
            port: 8000,
            internal_address: String::new(),
            internal_port: String::new(),
            tls: TlsSection::default(),
            tls_external: false,
            internal_tls: TlsSection::default(),
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            trusted_proxies: Vec::new(),
            max_header_size: 16_384,
            max_http_connections: 8192,
        }
    }
}

impl HttpServer {
    /// The internal port, unless everything is served on one port.
    pub fn internal_port(&self) -> Result<Option<u16>, std::num::ParseIntError> {
        let text = self.internal_port.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let port = text.parse()?;
        let same_address = self.internal_address.is_empty() || self.internal_address == self.address;
        Ok((port != self.port || port == 0 || !same_address).then_some(port))
    }
}

/// `http_server.tls`, `http_server.internal_tls`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSection {
    pub enabled: bool,
    pub cert_pem: String,
    pub key_pem: String,
}

/// `log`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: String,
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Json }
    }
}

impl Log {
    /// The level as the log filter takes it; the error says what is allowed.
    pub fn directives(&self) -> Result<String, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let level = |text: &str| match text.trim().to_ascii_lowercase().as_str() {
            "none" => Ok("off".to_owned()),
            "fatal" => Ok("error".to_owned()),
            known if LEVELS.contains(&known) => Ok(known.to_owned()),
            _ => Err("must be none, error, warn, info, debug or trace, or a list of target=level".to_owned()),
        };
        let parts = self.level.split(',').map(|part| match part.split_once('=') {
            Some((target, name)) => Ok(format!("{}={}", target.trim(), level(name)?)),
            None => level(part),
        });
        parts.collect::<Result<Vec<_>, _>>().map(|parts| parts.join(","))
    }
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
    Pretty,
}

/// The part of `client` that says who may connect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    pub allowed_origins: Vec<String>,
    pub token: TokenConfig,
    pub insecure_public: bool,
}

/// `client.subscription_token`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscriptionToken {
    pub enabled: bool,
    pub token: TokenConfig,
}

/// `http_api`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpApi {
    pub disabled: bool,
    pub handler_prefix: String,
    pub key: Secret,
    pub error_mode: ErrorMode,
    pub external: bool,
    pub insecure: bool,
}

impl Default for HttpApi {
    fn default() -> Self {
        Self {
            disabled: false,
            handler_prefix: "/api".into(),
            key: Secret::default(),
            error_mode: ErrorMode::Body,
            external: false,
            insecure: false,
        }
    }
}

/// `http_api.error_mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorMode {
    #[default]
    #[serde(rename = "")]
    Body,
    #[serde(rename = "transport")]
    Transport,
}

/// `websocket`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocket {
    pub disabled: bool,
    pub handler_prefix: String,
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    pub message_size_limit: usize,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            disabled: false,
            handler_prefix: "/connection/websocket".into(),
            write_timeout: Duration::from_secs(5),
            message_size_limit: 65_536,
        }
    }
}

/// An endpoint that is on unless it is switched off; `K` names its path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, bound = "K: Path")]
pub struct Endpoint<K: Path> {
    pub enabled: bool,
    pub handler_prefix: String,
    #[serde(skip)]
    kind: std::marker::PhantomData<K>,
}

/// Where an [`Endpoint`] is by default.
pub trait Path {
    /// The path.
    const PATH: &'static str;
}

/// `prometheus`
#[derive(Clone, Debug, PartialEq)]
pub enum Metrics {}

impl Path for Metrics {
    const PATH: &'static str = "/metrics";
}

/// `health`
#[derive(Clone, Debug, PartialEq)]
pub enum Health {}

impl Path for Health {
    const PATH: &'static str = "/health";
}

impl<K: Path> Default for Endpoint<K> {
    fn default() -> Self {
        Self { enabled: true, handler_prefix: K::PATH.into(), kind: std::marker::PhantomData }
    }
}

/// `node`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    pub name: String,
}

/// `shutdown`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    #[serde(with = "duration")]
    pub timeout: Duration,
    #[serde(with = "duration")]
    pub drain_time: Duration,
    #[serde(with = "duration")]
    pub grace_period: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), drain_time: Duration::from_secs(60), grace_period: Duration::ZERO }
    }
}

impl Shutdown {
    /// How long connections are asked to move, and how long what is left has to end: both end within the grace period.
    pub fn times(&self) -> (Duration, Duration) {
        if self.grace_period.is_zero() {
            return (self.drain_time, self.timeout);
        }
        let rest = self.timeout.min(self.grace_period / 4);
        (self.drain_time.min(self.grace_period - rest), rest)
    }
}
