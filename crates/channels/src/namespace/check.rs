//! Checks of the settings, and what is wrong with them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::{Compiled, Durability, NamespaceOptions, Rules, SESSION_SUBSCRIBERS};
use crate::ports::MAX_CHANNEL_BYTES;
use crate::settings::{ChannelSettings, ClientSettings, MAX_PUBLICATION_BYTES, Settings, duration};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A setting that cannot be used. `key` is the path in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A value outside of its bounds.
    #[error("{key} = {value}: must be {allowed}")]
    OutOfBounds {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// A namespace's name is not one.
    #[error("{key} = {value:?}: must be two or more of a-z A-Z 0-9 - _ . (^[-a-zA-Z0-9_.]{{2,}}$)")]
    Name {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
    },
    /// `channel.without_namespace` has a name.
    #[error("{key} = {value:?}: must be absent; options for a name belong in channel.namespaces")]
    NameNotAllowed {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
    },
    /// Two namespaces have one name.
    #[error("{key} = {value:?}: must differ from the name of {first}")]
    Duplicate {
        /// Path of the second one's name.
        key: String,
        /// The name.
        value: String,
        /// Path of the first one.
        first: String,
    },
    /// Not a regular expression.
    #[error("{key} = {value:?}: must be a regular expression: {reason}")]
    Regex {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two settings that exclude each other.
    #[error("{key} = {value}: contradicts {other}; {allowed}")]
    Contradiction {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
        /// The other setting, with its value.
        other: String,
        /// What would be allowed.
        allowed: String,
    },
    /// A namespace is named that does not exist.
    #[error("{key} = {value:?}: must be the name of one of channel.namespaces")]
    UnknownNamespace {
        /// Path of the setting.
        key: String,
        /// What it is.
        value: String,
    },
}

impl SettingsError {
    /// Path of the setting that is wrong.
    pub fn key(&self) -> &str {
        match self {
            SettingsError::OutOfBounds { key, .. }
            | SettingsError::Name { key, .. }
            | SettingsError::NameNotAllowed { key, .. }
            | SettingsError::Duplicate { key, .. }
            | SettingsError::Regex { key, .. }
            | SettingsError::Contradiction { key, .. }
            | SettingsError::UnknownNamespace { key, .. } => key,
        }
    }
}

impl Settings {
    /// Checks everything and prepares it for lookups.
    pub fn compile(self) -> Result<Compiled, SettingsError> {
        let Settings { client, mut channel } = self;
        check_client(&client)?;
        check_channel(&channel)?;
        let mut warnings = Vec::new();
        let meta_ttl = channel.history_meta_ttl;

        let key = "channel.without_namespace";
        if !channel.without_namespace.name.is_empty() {
            let value = channel.without_namespace.name.clone();
            return Err(SettingsError::NameNotAllowed { key: format!("{key}.name"), value });
        }
        let without_namespace = compile_options(&mut channel.without_namespace, key, meta_ttl, &mut warnings)?;

        let mut namespaces: HashMap<Box<str>, Rules> = HashMap::with_capacity(channel.namespaces.len());
        for index in 0..channel.namespaces.len() {
            let key = format!("channel.namespaces[{index}]");
            let name = channel.namespaces[index].name.clone();
            if !is_namespace_name(&name) {
                return Err(SettingsError::Name { key: format!("{key}.name"), value: name });
            }
            if let Some(first) = channel.namespaces[..index].iter().position(|earlier| earlier.name == name) {
                let first = format!("channel.namespaces[{first}]");
                return Err(SettingsError::Duplicate { key: format!("{key}.name"), value: name, first });
            }
            let rules = compile_options(&mut channel.namespaces[index], &key, meta_ttl, &mut warnings)?;
            namespaces.insert(name.into_boxed_str(), rules);
        }

        let personal = &client.subscribe_to_user_personal_channel;
        let namespace = personal.personal_channel_namespace.as_str();
        if personal.enabled && !namespace.is_empty() && !namespaces.contains_key(namespace) {
            let key = "client.subscribe_to_user_personal_channel.personal_channel_namespace".into();
            return Err(SettingsError::UnknownNamespace { key, value: namespace.to_owned() });
        }
        let separator = Arc::from(channel.user_separator.as_str());
        Ok(Compiled { client, channel, warnings, separator, without_namespace, namespaces })
    }
}

fn is_namespace_name(name: &str) -> bool {
    name.len() >= 2 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn out_of_bounds(key: &str, value: impl ToString, allowed: &str) -> SettingsError {
    SettingsError::OutOfBounds { key: key.to_owned(), value: value.to_string(), allowed: allowed.to_owned() }
}

fn contradiction(key: String, value: impl ToString, other: String, allowed: &str) -> SettingsError {
    SettingsError::Contradiction { key, value: value.to_string(), other, allowed: allowed.to_owned() }
}

fn check_client(client: &ClientSettings) -> Result<(), SettingsError> {
    for (key, value) in
        [("client.ping_interval", client.ping_interval), ("client.stale_close_delay", client.stale_close_delay)]
    {
        if value < SECOND || value > HOUR {
            return Err(out_of_bounds(key, duration::format(&value), "from 1s to 1h"));
        }
    }
    for (key, value) in [
        ("client.expired_close_delay", client.expired_close_delay),
        ("client.expired_sub_close_delay", client.expired_sub_close_delay),
    ] {
        if value > HOUR {
            return Err(out_of_bounds(key, duration::format(&value), "at most 1h"));
        }
    }
    if client.pong_timeout.is_zero() || client.pong_timeout >= client.ping_interval {
        let allowed = "longer than 0s and shorter than client.ping_interval";
        return Err(out_of_bounds("client.pong_timeout", duration::format(&client.pong_timeout), allowed));
    }
    if client.missed_pongs == 0 || client.missed_pongs > 100 {
        return Err(out_of_bounds("client.missed_pongs", client.missed_pongs, "from 1 to 100"));
    }
    for (key, value, least, most) in [
        ("client.queue_max_size", client.queue_max_size, 65_536, 1 << 30),
        ("client.channel_limit", client.channel_limit, 1, 1_000_000),
        ("client.max_in_flight_commands", client.max_in_flight_commands, 1, 65_536),
        ("client.history_max_publication_limit", client.history_max_publication_limit, 1, 1_000_000),
        ("client.recovery_max_publication_limit", client.recovery_max_publication_limit, 1, 1_000_000),
        ("client.recovery_max_bytes", client.recovery_max_bytes, 1_024, 512 * 1024),
    ] {
        if !(least..=most).contains(&value) {
            return Err(out_of_bounds(key, value, &format!("from {least} to {most}")));
        }
    }
    if client.presence_grace > Duration::from_secs(60) {
        let value = duration::format(&client.presence_grace);
        return Err(out_of_bounds("client.presence_grace", value, "at most 60s"));
    }
    let (ttl, secret) = (client.resume.ttl, client.resume.secret.expose().len());
    if ttl < 60 * SECOND || ttl > 30 * 24 * HOUR {
        return Err(out_of_bounds("client.resume.ttl", duration::format(&ttl), "from 1m to 720h"));
    }
    if (1..32).contains(&secret) {
        let value = format!("a text of {secret} characters");
        return Err(out_of_bounds("client.resume.secret", value, "at least 32 characters, or empty"));
    }
    let header = client.user_id_http_header.as_str();
    if !header.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&b)) {
        return Err(out_of_bounds("client.user_id_http_header", format!("{header:?}"), "the name of an HTTP header"));
    }
    Ok(())
}

fn check_channel(channel: &ChannelSettings) -> Result<(), SettingsError> {
    if !(1..=MAX_CHANNEL_BYTES).contains(&channel.max_length) {
        let allowed = format!("from 1 to {MAX_CHANNEL_BYTES}");
        return Err(out_of_bounds("channel.max_length", channel.max_length, &allowed));
    }
    if !(1..=MAX_PUBLICATION_BYTES).contains(&channel.max_publication_size) {
        let allowed = format!("from 1 to {MAX_PUBLICATION_BYTES}");
        return Err(out_of_bounds("channel.max_publication_size", channel.max_publication_size, &allowed));
    }
    let ttl = channel.idempotent_result_ttl;
    if !(SECOND..=24 * HOUR).contains(&ttl) {
        return Err(out_of_bounds("channel.idempotent_result_ttl", duration::format(&ttl), "from 1s to 24h"));
    }
    if channel.history_meta_ttl.is_zero() || channel.history_meta_ttl.subsec_nanos() != 0 {
        let value = duration::format(&channel.history_meta_ttl);
        return Err(out_of_bounds("channel.history_meta_ttl", value, "whole seconds, at least 1s"));
    }
    Ok(())
}

/// Checks one namespace's options, fills in what they take from the channel settings and compiles its expression.
fn compile_options(
    options: &mut NamespaceOptions,
    key: &str,
    meta_ttl: Duration,
    warnings: &mut Vec<String>,
) -> Result<Rules, SettingsError> {
    for (name, value) in [("history_ttl", options.history_ttl), ("history_meta_ttl", options.history_meta_ttl)] {
        if value.subsec_nanos() != 0 {
            return Err(out_of_bounds(&format!("{key}.{name}"), duration::format(&value), "whole seconds"));
        }
    }
    if options.history_meta_ttl.is_zero() {
        options.history_meta_ttl = meta_ttl;
    }
    if options.session && options.subscriber_limit == 0 {
        options.subscriber_limit = SESSION_SUBSCRIBERS;
    }
    check_history(options, key)?;
    warn(options, key, warnings);
    let regex = match options.channel_regex.as_str() {
        "" => None,
        text => Some(Regex::new(text).map_err(|error| SettingsError::Regex {
            key: format!("{key}.channel_regex"),
            value: text.to_owned(),
            reason: error.to_string(),
        })?),
    };
    Ok(Rules { options: Arc::new(options.clone()), regex })
}

fn check_history(options: &NamespaceOptions, key: &str) -> Result<(), SettingsError> {
    let (size, ttl) = (options.history_size, duration::format(&options.history_ttl));
    let history_size = || format!("{key}.history_size");
    if size > 0 && options.history_ttl.is_zero() {
        let allowed = "history needs both, or neither";
        return Err(contradiction(history_size(), size, format!("{key}.history_ttl = 0s"), allowed));
    }
    if size == 0 && !options.history_ttl.is_zero() {
        let allowed = "history needs both, or neither";
        return Err(contradiction(format!("{key}.history_ttl"), ttl, format!("{} = 0", history_size()), allowed));
    }
    if options.history_ttl > options.history_meta_ttl {
        let meta = duration::format(&options.history_meta_ttl);
        let other = format!("the history_meta_ttl of {meta} that holds for it");
        return Err(contradiction(format!("{key}.history_ttl"), ttl, other, "it must not be longer"));
    }
    if options.durability == Durability::None {
        let positioned = [
            ("history_size", size > 0),
            ("force_positioning", options.force_positioning),
            ("allow_positioning", options.allow_positioning),
            ("force_recovery", options.force_recovery),
            ("allow_recovery", options.allow_recovery),
        ];
        if let Some((name, _)) = positioned.into_iter().find(|(_, set)| *set) {
            let allowed = "without a log there are no positions and no history";
            return Err(contradiction(format!("{key}.durability"), "\"none\"", format!("{key}.{name}"), allowed));
        }
    }
    if options.force_recovery && size == 0 {
        let allowed = "recovery needs history_size and history_ttl";
        return Err(contradiction(format!("{key}.force_recovery"), true, format!("{} = 0", history_size()), allowed));
    }
    Ok(())
}

/// Combinations that Centrifugo starts with as well, and that do nothing.
fn warn(options: &NamespaceOptions, key: &str, warnings: &mut Vec<String>) {
    let presence = options.allow_presence_for_client || options.allow_presence_for_subscriber;
    let history = options.allow_history_for_client || options.allow_history_for_subscriber;
    let cases = [
        (
            options.force_push_join_leave && !options.join_leave,
            "force_push_join_leave has no effect without join_leave",
        ),
        (presence && !options.presence, "allow_presence_for_… has no effect without presence"),
        (history && options.history_size == 0, "allow_history_for_… has no effect without history_size"),
        (options.allow_recovery && options.history_size == 0, "allow_recovery has no effect without history_size"),
        (
            options.allow_subscribe_for_anonymous && !options.allow_subscribe_for_client,
            "allow_subscribe_for_anonymous has no effect without allow_subscribe_for_client",
        ),
    ];
    warnings.extend(cases.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| format!("{key}: {text}")));
}
