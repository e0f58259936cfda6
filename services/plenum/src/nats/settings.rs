//! From the configuration to the settings of the pool and of the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plenum_bus_nats::ledger::LedgerConfig;
use plenum_bus_nats::log::{GroupConfig, LogConfig};
use plenum_bus_nats::pool::{Credentials, PoolConfig, PoolError, Tls};
use plenum_bus_nats::report::Limits;
use plenum_bus_nats::workers::WorkersConfig;
use plenum_channels::ChannelSettings;

use crate::config::{Config, DEFAULT_GROUP, Nats};

/// Most bytes of fences, blocks and revocations; JetStream reserves them on its storage, unless `nats.max_bytes` is 0.
const LEDGER_BYTES: u64 = 128 << 20;

/// Settings of the pool.
pub fn pool(nats: &Nats, name: &str) -> PoolConfig {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let tls = Tls {
        required: nats.tls.enabled,
        first: nats.tls.handshake_first,
        ca_file: path(&nats.tls.server_ca_pem),
        client_files: path(&nats.tls.cert_pem).zip(path(&nats.tls.key_pem)),
    };
    let pool = &nats.pool;
    PoolConfig {
        servers: nats.servers.clone(),
        credentials: credentials(nats),
        tls,
        publishing: pool.publishing,
        min_publishing: pool.min_publishing,
        max_publishing: pool.max_publishing,
        subscribing: pool.subscribing,
        grow_above: pool.grow_above,
        shrink_below: pool.shrink_below,
        recycle_after: pool.recycle_after,
        probe_every: pool.probe_interval,
        probe_timeout: pool.probe_timeout,
        client_ping_every: pool.ping_interval,
        connect_timeout: pool.connect_timeout,
        backoff_min: pool.backoff_min,
        backoff_max: pool.backoff_max,
        lease_limit: pool.lease_limit,
        window: pool.window,
        subscription_capacity: pool.subscription_capacity,
        discover_servers: pool.discover_servers,
        probe_subject: format!("{}.probe", nats.prefix),
        // Replies to one cluster's replicas cannot be read by those of another.
        inbox_prefix: format!("_INBOX_{}", nats.prefix),
        name: name.to_owned(),
    }
}

/// Beyond what the resource report warns.
pub fn limits(nats: &Nats) -> Limits {
    let report = &nats.report;
    Limits {
        memory_bytes: (report.memory > 0).then_some(report.memory),
        tasks: (report.tasks > 0).then_some(report.tasks),
        queue_share: f64::from(report.queue_percent) / 100.0,
        round_trip_ms: report.round_trip.as_secs_f64() * 1e3,
        p99_ms: report.latency_p99.as_secs_f64() * 1e3,
        lease: report.lease_age,
    }
}

fn credentials(nats: &Nats) -> Credentials {
    if !nats.user.is_empty() {
        Credentials::UserPassword { user: nats.user.clone(), password: nats.password.expose().to_owned() }
    } else if !nats.token.is_empty() {
        Credentials::Token(nats.token.expose().to_owned())
    } else if !nats.nkey_seed_file.is_empty() {
        Credentials::NKeyFile(nats.nkey_seed_file.clone().into())
    } else if !nats.creds_file.is_empty() {
        Credentials::CredsFile(nats.creds_file.clone().into())
    } else {
        Credentials::None
    }
}

/// The options that say who we are.
fn login(nats: &Nats) -> &'static str {
    if !nats.user.is_empty() {
        "nats.user, nats.password"
    } else if !nats.token.is_empty() {
        "nats.token"
    } else if !nats.nkey_seed_file.is_empty() {
        "nats.nkey_seed_file"
    } else if !nats.creds_file.is_empty() {
        "nats.creds_file"
    } else {
        "none of nats.user, nats.token, nats.nkey_seed_file, nats.creds_file is set"
    }
}

/// The error with the option in whose value the cause is to be sought, where one is known.
pub fn explain(nats: &Nats, error: PoolError) -> anyhow::Error {
    let option = match &error {
        PoolError::Credentials { setting: "credentials", .. } => Some(login(nats)),
        PoolError::Credentials { setting: "tls.ca_file", .. } => Some("nats.tls.server_ca_pem"),
        PoolError::Credentials { setting: "tls.certificate", .. } => Some("nats.tls.cert_pem"),
        PoolError::Credentials { setting: "tls.key", .. } => Some("nats.tls.key_pem"),
        PoolError::NotReady { reason: Some(reason), .. } => suspect(nats, reason),
        _ => None,
    };
    match option {
        Some(option) => anyhow::Error::new(error).context(option),
        None => anyhow::Error::new(error),
    }
}

/// What the client library says of a failed attempt, read for the option that is wrong.
fn suspect(nats: &Nats, reason: &str) -> Option<&'static str> {
    let says = |text: &str| reason.contains(text);
    if says("uthorization") || says("uthentication") || says("signing nonce") {
        Some(login(nats))
    } else if says("CertificateRequired") {
        Some("nats.tls.cert_pem, nats.tls.key_pem")
    } else if says("NotValidForName") || says("not valid for name") {
        Some("nats.servers")
    } else if says("UnknownIssuer") {
        Some("nats.tls.server_ca_pem")
    } else if says("received fatal alert") {
        Some("nats.tls.cert_pem")
    } else {
        None
    }
}

/// Settings of the log.
pub fn log(config: &Config) -> LogConfig {
    let nats = &config.nats;
    let groups = nats.groups();
    let groups = groups.into_iter().map(|group| GroupConfig {
        name: group.name,
        shards: group.shards,
        max_age: group.max_age,
        max_bytes: (group.max_bytes > 0).then_some(group.max_bytes),
    });
    let entries = config.retention_groups.entries(&config.channel);
    let namespaces: BTreeMap<String, String> =
        entries.map(|(_, namespace, group)| (namespace.to_owned(), group.to_owned())).collect();
    let placement = Placement::new(config);
    LogConfig {
        prefix: nats.prefix.clone(),
        replicas: nats.replicas,
        groups: groups.collect(),
        namespaces,
        placement: Arc::new(move |channel| placement.group(channel)),
        append_lanes: nats.append_lanes,
        append_window: nats.append_window,
        append_queue: nats.append_queue,
        append_patience: nats.append_patience,
        workers: None,
        tails: None,
    }
}

/// Settings of the process's keyed workers.
pub fn workers(nats: &Nats) -> WorkersConfig {
    WorkersConfig { workers: nats.delivery_workers, ..WorkersConfig::default() }
}

/// Settings of the ledger.
pub fn ledger(config: &Config) -> LedgerConfig {
    ledger_of(&log(config))
}

/// Settings of the ledger beside a log: where that reserves no storage, the ledger does not either.
pub fn ledger_of(log: &LogConfig) -> LedgerConfig {
    let reserves = log.groups.iter().any(|group| group.max_bytes.is_some());
    LedgerConfig { prefix: log.prefix.clone(), replicas: log.replicas, max_bytes: reserves.then_some(LEDGER_BYTES) }
}

/// How long last positions are remembered: as long as the longest `history_meta_ttl` of all namespaces.
pub fn tails_ttl(channel: &ChannelSettings) -> Duration {
    let namespaces = std::iter::once(&channel.without_namespace).chain(&channel.namespaces);
    let longest = namespaces.map(|namespace| namespace.history_meta_ttl).max().unwrap_or_default();
    longest.max(channel.history_meta_ttl)
}

/// Which retention group a channel belongs to: fixed while the process runs, because a channel that moved would leave
/// its publications behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    private_prefix: String,
    boundary: String,
    /// Group by namespace, where it is not the default one.
    moved: BTreeMap<String, usize>,
}

impl Placement {
    /// What the configuration says.
    pub fn new(config: &Config) -> Self {
        let groups = config.nats.groups();
        let moved: BTreeMap<String, usize> = config
            .retention_groups
            .entries(&config.channel)
            .filter(|(_, _, group)| *group != DEFAULT_GROUP)
            .filter_map(|(_, namespace, name)| {
                let index = groups.iter().position(|group| group.name == name)?;
                Some((namespace.to_owned(), index))
            })
            .collect();
        // Where every channel is in one group, how names are cut does not matter and may change.
        let ChannelSettings { private_prefix, namespace_boundary, .. } = &config.channel;
        let cut = |text: &String| if moved.is_empty() { String::new() } else { text.clone() };
        Self { private_prefix: cut(private_prefix), boundary: cut(namespace_boundary), moved }
    }

    /// The index of the channel's group; names are cut as the domain cuts them.
    fn group(&self, channel: &str) -> usize {
        if self.moved.is_empty() {
            return 0;
        }
        let unprefixed = match self.private_prefix.as_str() {
            "" => channel,
            prefix => channel.strip_prefix(prefix).unwrap_or(channel),
        };
        let namespace = match self.boundary.as_str() {
            "" => "",
            boundary => unprefixed.split_once(boundary).map_or("", |(namespace, _)| namespace),
        };
        self.moved.get(namespace).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use plenum_channels::NamespaceOptions;

    use super::*;
    use crate::config::Config;

    fn config() -> Config {
        let mut config = Config::default();
        let namespace = |name: &str| NamespaceOptions { name: name.into(), ..NamespaceOptions::default() };
        config.channel.namespaces = vec![namespace("chat"), namespace("audit")];
        config.retention_groups.namespaces = vec![String::new(), "long".into()];
        let mut group = config.nats.groups().remove(0);
        group.name = "long".into();
        config.nats.retention_groups = vec![group];
        config
    }

    #[test]
    fn channels_go_where_their_namespace_is_kept() {
        let log = log(&config());
        for (channel, group) in
            [("audit:x", 1), ("$audit:x", 1), ("chat:audit:", 0), ("audit", 0), ("", 0), ("nobody:x", 0)]
        {
            assert_eq!((log.placement)(channel), group, "{channel}");
        }
        let groups: Vec<&str> = log.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(groups, ["default", "long"]);
        assert_eq!(log.namespaces["audit"], "long");
        assert_eq!((log.namespaces["chat"].as_str(), log.namespaces[""].as_str()), ("default", "default"));
    }

    #[test]
    fn the_placement_agrees_with_the_domain() {
        let config = config();
        let placement = Placement::new(&config);
        let compiled = config.settings().compile().unwrap();
        for channel in ["audit:x", "$audit:x", "chat:x", "chat:audit:x", "x", ":audit", "$x", "audit:"] {
            let Ok(resolved) = compiled.resolve(channel) else { continue };
            assert_eq!(placement.group(channel) == 1, resolved.namespace.name() == "audit", "{channel}");
        }
    }

    #[test]
    fn only_what_moves_a_channel_is_another_placement() {
        let (old, mut new) = (config(), config());
        new.channel.namespaces.push(NamespaceOptions { name: "more".into(), ..NamespaceOptions::default() });
        assert_eq!(Placement::new(&old), Placement::new(&new));
        new.channel.namespace_boundary = "/".into();
        assert_ne!(Placement::new(&old), Placement::new(&new));
        new = config();
        new.retention_groups.namespaces.clear();
        assert_ne!(Placement::new(&old), Placement::new(&new));
    }

    #[test]
    fn what_the_pool_gets() {
        let mut config = config();
        config.nats.servers = vec!["nats://a".into()];
        config.nats.user = "u".into();
        config.nats.tls.enabled = true;
        let pool = pool(&config.nats, "me");
        let defaults = PoolConfig::new(["nats://a"]);
        assert_eq!(pool.credentials, Credentials::UserPassword { user: "u".into(), password: String::new() });
        assert!(pool.tls.required && pool.tls.client_files.is_none());
        assert_eq!(
            PoolConfig {
                credentials: Credentials::None,
                tls: Tls::default(),
                inbox_prefix: defaults.inbox_prefix.clone(),
                name: defaults.name.clone(),
                ..pool
            },
            defaults,
            "the documented defaults are the pool's"
        );
    }

    #[test]
    fn the_default_limits_of_the_report_are_those_of_its_crate() {
        let mut nats = Config::default().nats;
        assert_eq!(limits(&nats), Limits::default());
        (nats.report.memory, nats.report.tasks) = (1, 2);
        assert_eq!((limits(&nats).memory_bytes, limits(&nats).tasks), (Some(1), Some(2)));
    }

    #[test]
    fn the_defaults_of_the_log_are_those_of_its_crate() {
        let (ours, theirs) = (log(&Config::default()), LogConfig::default());
        assert_eq!(ours.groups, theirs.groups);
        assert_eq!((ours.prefix, ours.replicas), (theirs.prefix, theirs.replicas));
        assert_eq!(
            (ours.append_lanes, ours.append_window, ours.append_queue, ours.append_patience),
            (theirs.append_lanes, theirs.append_window, theirs.append_queue, theirs.append_patience)
        );
        assert_eq!(workers(&Config::default().nats), WorkersConfig::default());
    }
}
