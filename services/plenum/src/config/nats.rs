//! `nats`: the log on JetStream, and which namespaces are kept how long there.

use std::time::Duration;

use plenum_channels::{ChannelSettings, duration};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Problem;
use super::secret::Secret;
use super::sections::Config;

/// Name of the retention group that is always there.
pub const DEFAULT_GROUP: &str = "default";

/// `nats`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    pub servers: Vec<String>,
    pub user: String,
    pub password: Secret,
    pub token: Secret,
    pub nkey_seed_file: String,
    pub creds_file: String,
    pub tls: NatsTls,
    pub prefix: String,
    pub replicas: u32,
    pub shards: u32,
    #[serde(with = "duration")]
    pub max_age: Duration,
    pub max_bytes: u64,
    pub retention_groups: Vec<RetentionGroup>,
    #[serde(with = "duration")]
    pub append_patience: Duration,
    pub append_lanes: usize,
    pub append_window: usize,
    pub append_queue: usize,
    pub delivery_workers: usize,
    pub pool: NatsPool,
    pub report: NatsReport,
}

/// `nats.tls`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsTls {
    pub enabled: bool,
    pub handshake_first: bool,
    pub server_ca_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
}

/// `nats.retention_groups[]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionGroup {
    pub name: String,
    pub shards: u32,
    #[serde(with = "duration")]
    pub max_age: Duration,
    pub max_bytes: u64,
}

/// `nats.pool`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsPool {
    pub publishing: usize,
    pub min_publishing: usize,
    pub max_publishing: usize,
    pub subscribing: usize,
    pub grow_above: usize,
    pub shrink_below: usize,
    #[serde(with = "duration")]
    pub recycle_after: Duration,
    #[serde(with = "duration")]
    pub probe_interval: Duration,
    #[serde(with = "duration")]
    pub probe_timeout: Duration,
    #[serde(with = "duration")]
    pub ping_interval: Duration,
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    #[serde(with = "duration")]
    pub backoff_min: Duration,
    #[serde(with = "duration")]
    pub backoff_max: Duration,
    #[serde(with = "duration")]
    pub lease_limit: Duration,
    pub window: usize,
    pub subscription_capacity: usize,
    pub discover_servers: bool,
}

/// `nats.report`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsReport {
    pub memory: u64,
    pub tasks: usize,
    pub queue_percent: u32,
    #[serde(with = "duration")]
    pub round_trip: Duration,
    #[serde(with = "duration")]
    pub latency_p99: Duration,
    #[serde(with = "duration")]
    pub lease_age: Duration,
}

impl Default for NatsReport {
    fn default() -> Self {
        Self {
            memory: 0,
            tasks: 0,
            queue_percent: 80,
            round_trip: Duration::from_millis(100),
            latency_p99: Duration::from_secs(1),
            lease_age: Duration::from_secs(60),
        }
    }
}

impl Default for Nats {
    fn default() -> Self {
        let group = RetentionGroup::default();
        Self {
            servers: Vec::new(),
            user: String::new(),
            password: Secret::default(),
            token: Secret::default(),
            nkey_seed_file: String::new(),
            creds_file: String::new(),
            tls: NatsTls::default(),
            prefix: "plenum".into(),
            replicas: 1,
            shards: group.shards,
            max_age: group.max_age,
            max_bytes: group.max_bytes,
            retention_groups: Vec::new(),
            append_patience: Duration::from_secs(20),
            append_lanes: 4,
            append_window: 1024,
            append_queue: 8192,
            delivery_workers: 256,
            pool: NatsPool::default(),
            report: NatsReport::default(),
        }
    }
}

impl Default for RetentionGroup {
    fn default() -> Self {
        Self { name: String::new(), shards: 4, max_age: Duration::from_secs(24 * 3600), max_bytes: 4 << 30 }
    }
}

impl Default for NatsPool {
    fn default() -> Self {
        Self {
            publishing: 2,
            min_publishing: 2,
            max_publishing: 4,
            subscribing: 1,
            grow_above: 768,
            shrink_below: 64,
            recycle_after: Duration::from_secs(3600),
            probe_interval: Duration::from_secs(30),
            probe_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            lease_limit: Duration::from_secs(300),
            window: 16_384,
            subscription_capacity: 65_536,
            discover_servers: true,
        }
    }
}

impl Nats {
    /// Whether the log is on NATS at all.
    pub fn enabled(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Every retention group, the default one first.
    pub fn groups(&self) -> Vec<RetentionGroup> {
        let default = RetentionGroup {
            name: DEFAULT_GROUP.into(),
            shards: self.shards,
            max_age: self.max_age,
            max_bytes: self.max_bytes,
        };
        std::iter::once(default).chain(self.retention_groups.iter().cloned()).collect()
    }
}

/// `retention_group` of each namespace. The domain does not know this option, so it is kept beside its settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetentionGroups {
    /// Of channels without a namespace; empty: the default group.
    pub without_namespace: String,
    /// In the order of `channel.namespaces`; missing at the end: the default group.
    pub namespaces: Vec<String>,
}

impl RetentionGroups {
    const KEY: &str = "retention_group";

    /// Takes the options out of the section `channel`.
    pub(super) fn take(channel: &mut Value, problems: &mut Vec<Problem>) -> Self {
        let mut text = |options: &mut Value, at: &str| match options.as_object_mut().and_then(|o| o.remove(Self::KEY)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(group)) => group,
            Some(other) => {
                let value = Some(super::unsupported::short(&other));
                let key = format!("{at}.{}", Self::KEY);
                problems.push(Problem { source: String::new(), key, value, text: "must be a string".into() });
                String::new()
            }
        };
        let without_namespace = channel
            .get_mut("without_namespace")
            .map_or_else(String::new, |options| text(options, "channel.without_namespace"));
        let namespaces = channel.get_mut("namespaces").and_then(Value::as_array_mut).into_iter().flatten();
        let namespaces = namespaces
            .enumerate()
            .map(|(index, options)| text(options, &format!("channel.namespaces[{index}]")))
            .collect();
        Self { without_namespace, namespaces }
    }

    /// Puts them back into the section `channel`, to be shown.
    pub(super) fn put(&self, channel: &mut Map<String, Value>) {
        if let Some(options) = channel.get_mut("without_namespace").and_then(Value::as_object_mut) {
            options.insert(Self::KEY.into(), self.without_namespace.clone().into());
        }
        let namespaces = channel.get_mut("namespaces").and_then(Value::as_array_mut).into_iter().flatten();
        for (index, options) in namespaces.enumerate() {
            if let Some(options) = options.as_object_mut() {
                options.insert(Self::KEY.into(), self.of(index).into());
            }
        }
    }

    fn of(&self, index: usize) -> &str {
        self.namespaces.get(index).map_or("", String::as_str)
    }

    /// Key, namespace and group of everything in the settings; an unset group is the default one.
    pub fn entries<'a>(&'a self, channel: &'a ChannelSettings) -> impl Iterator<Item = (String, &'a str, &'a str)> {
        let or_default = |group: &'a str| if group.is_empty() { DEFAULT_GROUP } else { group };
        let without = ("channel.without_namespace".to_owned(), "", or_default(&self.without_namespace));
        let namespaces = channel.namespaces.iter().enumerate().map(move |(index, namespace)| {
            (format!("channel.namespaces[{index}]"), namespace.name.as_str(), or_default(self.of(index)))
        });
        std::iter::once(without).chain(namespaces)
    }
}

/// Reports everything in `nats` that cannot be used.
pub(super) fn check(config: &Config, warnings: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let mut report = |key: &str, value: Option<String>, text: &str| {
        problems.push(Problem { source: String::new(), key: key.to_owned(), value, text: text.to_owned() });
    };
    check_contact(&config.nats, &mut report);
    check_log(&config.nats, &mut report);
    check_pool(&config.nats.pool, &mut report);
    let percent = config.nats.report.queue_percent;
    if !(1..=100).contains(&percent) {
        report("nats.report.queue_percent", Some(percent.to_string()), "must be from 1 to 100");
    }
    let groups = config.nats.groups();
    for (key, _, group) in config.retention_groups.entries(&config.channel) {
        if !groups.iter().any(|known| known.name == group) {
            let names: Vec<&str> = groups.iter().map(|known| known.name.as_str()).collect();
            let text = format!("there is no such group in nats.retention_groups; there are {}", names.join(", "));
            report(&format!("{key}.{}", RetentionGroups::KEY), Some(format!("{group:?}")), &text);
        }
    }
    if config.nats.enabled() {
        warn(config, &groups, warnings);
    }
}

type Report<'a> = &'a mut dyn FnMut(&str, Option<String>, &str);

fn check_contact(nats: &Nats, report: Report<'_>) {
    for (index, server) in nats.servers.iter().enumerate() {
        let key = format!("nats.servers[{index}]");
        if server.contains('@') {
            report(&key, None, "must not hold a user or password: use nats.user and nats.password");
            continue;
        }
        let host = server.split_once("://").map_or(server.as_str(), |(scheme, host)| match scheme {
            "nats" | "tls" => host,
            _ => "",
        });
        if host.is_empty() || host.contains(['/', ' ']) {
            report(&key, Some(format!("{server:?}")), "must be nats://host:port or tls://host:port");
        }
    }
    let ways = [
        ("nats.user", !nats.user.is_empty()),
        ("nats.token", !nats.token.is_empty()),
        ("nats.nkey_seed_file", !nats.nkey_seed_file.is_empty()),
        ("nats.creds_file", !nats.creds_file.is_empty()),
    ];
    let used: Vec<&str> = ways.iter().filter(|(_, used)| *used).map(|(key, _)| *key).collect();
    if let [first, second, ..] = used[..] {
        report(second, None, &format!("contradicts {first}: there is one way to log in"));
    }
    if nats.user.is_empty() && !nats.password.is_empty() {
        report("nats.password", None, "needs nats.user");
    }
    let tls = &nats.tls;
    for (key, path) in [
        ("nats.nkey_seed_file", &nats.nkey_seed_file),
        ("nats.creds_file", &nats.creds_file),
        ("nats.tls.server_ca_pem", &tls.server_ca_pem),
        ("nats.tls.cert_pem", &tls.cert_pem),
        ("nats.tls.key_pem", &tls.key_pem),
    ] {
        if path.contains("-----BEGIN") || path.contains('\n') {
            report(key, None, "must be the path of a file, not its text");
        } else if !path.is_empty()
            && let Err(error) = std::fs::metadata(path)
        {
            // A seed put where its file belongs must not be shown.
            let value = (key != "nats.nkey_seed_file").then(|| format!("{path:?}"));
            report(key, value, &format!("must be the path of a file: {error}"));
        }
    }
    if tls.cert_pem.is_empty() != tls.key_pem.is_empty() {
        report("nats.tls.cert_pem", None, "needs nats.tls.key_pem, and the other way round");
    }
}

fn check_log(nats: &Nats, report: Report<'_>) {
    const NAME: &str = "must be 1 to 32 of a-z A-Z 0-9 - _";
    if !is_name(&nats.prefix) {
        report("nats.prefix", Some(format!("{:?}", nats.prefix)), NAME);
    }
    if ![1, 3, 5].contains(&nats.replicas) {
        report("nats.replicas", Some(nats.replicas.to_string()), "must be 1, 3 or 5");
    }
    for (index, group) in nats.groups().iter().enumerate() {
        let at = if index == 0 { "nats".to_owned() } else { format!("nats.retention_groups[{}]", index - 1) };
        if index > 0 {
            let taken = nats.groups()[..index].iter().any(|other| other.name == group.name);
            if !is_name(&group.name) || taken {
                let text = format!("{NAME}, not {DEFAULT_GROUP}, and unique");
                report(&format!("{at}.name"), Some(format!("{:?}", group.name)), &text);
            }
        }
        if !(1..=64).contains(&group.shards) {
            report(&format!("{at}.shards"), Some(group.shards.to_string()), "must be from 1 to 64");
        }
        if group.max_age < Duration::from_secs(600) {
            report(&format!("{at}.max_age"), Some(duration::format(&group.max_age)), "must be at least 10m");
        }
        if group.max_bytes != 0 && group.max_bytes < 1 << 20 {
            report(&format!("{at}.max_bytes"), Some(group.max_bytes.to_string()), "must be 0 or at least 1048576");
        }
    }
    if !(15..45).contains(&nats.append_patience.as_secs()) {
        let value = Some(duration::format(&nats.append_patience));
        report("nats.append_patience", value, "must be at least 15s and below 45s");
    }
    for (key, value, most) in [
        ("nats.append_lanes", nats.append_lanes, 64),
        ("nats.append_window", nats.append_window, 65_536),
        ("nats.append_queue", nats.append_queue, 1_000_000),
        ("nats.delivery_workers", nats.delivery_workers, 4096),
    ] {
        if !(1..=most).contains(&value) {
            report(key, Some(value.to_string()), &format!("must be from 1 to {most}"));
        }
    }
}

fn check_pool(pool: &NatsPool, report: Report<'_>) {
    for (name, value, least, most) in [
        ("publishing", pool.publishing, 1, 64),
        ("min_publishing", pool.min_publishing, 1, pool.publishing),
        ("max_publishing", pool.max_publishing, pool.publishing, 64),
        ("subscribing", pool.subscribing, 1, 64),
        ("grow_above", pool.grow_above, 1, 1_000_000),
        ("shrink_below", pool.shrink_below, 0, pool.grow_above),
        ("window", pool.window, 1, 1_000_000),
        ("subscription_capacity", pool.subscription_capacity, 256, 1_000_000),
    ] {
        if !(least..=most).contains(&value) {
            report(&format!("nats.pool.{name}"), Some(value.to_string()), &format!("must be from {least} to {most}"));
        }
    }
    let (millis, minute) = (Duration::from_millis, Duration::from_secs(60));
    for (name, value, least, most) in [
        ("recycle_after", pool.recycle_after, minute, 168 * 60 * minute),
        ("probe_interval", pool.probe_interval, millis(1000), 10 * minute),
        ("probe_timeout", pool.probe_timeout, millis(100), minute),
        ("ping_interval", pool.ping_interval, millis(500), minute),
        ("connect_timeout", pool.connect_timeout, millis(100), minute),
        ("backoff_min", pool.backoff_min, millis(10), minute),
        ("backoff_max", pool.backoff_max, pool.backoff_min, 10 * minute),
        ("lease_limit", pool.lease_limit, millis(1000), 60 * minute),
    ] {
        if value < least || value > most {
            let text = format!("must be from {} to {}", duration::format(&least), duration::format(&most));
            report(&format!("nats.pool.{name}"), Some(duration::format(&value)), &text);
        }
    }
}

/// Whether it may be part of a subject, of a stream's name and of a key.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=32).contains(&name.len()) && name.bytes().all(allowed)
}

fn warn(config: &Config, groups: &[RetentionGroup], warnings: &mut Vec<String>) {
    if config.nats.replicas == 1 && config.nats.servers.len() > 1 {
        warnings.push("nats.replicas = 1: a NATS server that is lost takes acknowledged publications with it".into());
    }
    let options = std::iter::once(&config.channel.without_namespace).chain(&config.channel.namespaces);
    let options: Vec<_> = options.collect();
    for ((key, _, group), options) in config.retention_groups.entries(&config.channel).zip(&options) {
        let Some(group) = groups.iter().find(|known| known.name == group) else { continue };
        if options.history_ttl > group.max_age {
            warnings.push(format!(
                "{key}.history_ttl = {} is longer than max_age = {} of retention group {}: older publications are gone",
                duration::format(&options.history_ttl),
                duration::format(&group.max_age),
                group.name
            ));
        }
    }
    if !config.redis.enabled() && options.iter().any(|options| options.presence || options.join_leave) {
        warnings.push(
            "presence is each replica's own without redis.servers: presence, presence_stats and the leave of a replica \
             that died say only what the asked replica knows"
                .into(),
        );
    }
}
