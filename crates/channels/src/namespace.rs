//! Namespaces: which rules hold for a channel, decided by its name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::codes::ErrorCode;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::ports::{MAX_CHANNEL_BYTES, Retention};
use crate::settings::{ChannelSettings, ClientSettings, MAX_PUBLICATION_BYTES, Settings, duration};

/// Options of the channels of one namespace (`channel.namespaces[]`), or of those without one
/// (`channel.without_namespace`). Names, defaults and meaning are Centrifugo v6's unless a field says "ours".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamespaceOptions {
    /// Name of the namespace: two or more of `a-z A-Z 0-9 - _ .`; empty in `channel.without_namespace`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Keeps who is subscribed. Default false.
    pub presence: bool,
    /// Tells subscribers who ask for it when others join and leave. Default false.
    pub join_leave: bool,
    /// Tells all subscribers, also those who did not ask. Default false.
    pub force_push_join_leave: bool,
    /// Newest publications of a channel that are visible. Default 0: no history; needs `history_ttl`.
    pub history_size: usize,
    /// The history is visible until this long after the newest publication; whole seconds. Default 0s: no history;
    /// needs `history_size`.
    #[serde(with = "duration")]
    pub history_ttl: Duration,
    /// How long the last position outlives the newest publication; whole seconds, at least `history_ttl`. Default 0s:
    /// as `channel.history_meta_ttl` says. After [`Settings::compile`] it is never zero.
    #[serde(with = "duration")]
    pub history_meta_ttl: Duration,
    /// Every subscription is positioned: its client is told when something could have been lost. Default false.
    pub force_positioning: bool,
    /// Subscriptions that ask for it are positioned. Default false.
    pub allow_positioning: bool,
    /// Every subscription is recoverable. Default false; needs history.
    pub force_recovery: bool,
    /// Subscriptions that ask for it are recoverable. Default false.
    pub allow_recovery: bool,
    /// How recoverable subscriptions recover. Default `stream`.
    pub force_recovery_mode: RecoveryMode,
    /// Anonymous users may subscribe, where `allow_subscribe_for_client` lets clients. Default false.
    pub allow_subscribe_for_anonymous: bool,
    /// Users may subscribe without a subscription token. Default false.
    pub allow_subscribe_for_client: bool,
    /// Anonymous users may publish, where another `allow_publish_…` lets them. Default false.
    pub allow_publish_for_anonymous: bool,
    /// Subscribers may publish. Default false.
    pub allow_publish_for_subscriber: bool,
    /// Any client may publish. Default false.
    pub allow_publish_for_client: bool,
    /// Anonymous users may read presence, where another `allow_presence_…` lets them. Default false.
    pub allow_presence_for_anonymous: bool,
    /// Subscribers may read presence. Default false.
    pub allow_presence_for_subscriber: bool,
    /// Any client may read presence. Default false.
    pub allow_presence_for_client: bool,
    /// Anonymous users may read history, where another `allow_history_…` lets them. Default false.
    pub allow_history_for_anonymous: bool,
    /// Subscribers may read history. Default false.
    pub allow_history_for_subscriber: bool,
    /// Any client may read history. Default false.
    pub allow_history_for_client: bool,
    /// Channel names may end in `#user1,user2`, who alone may subscribe. Default false: the boundary means nothing.
    pub allow_user_limited_channels: bool,
    /// What the name after the namespace must match (unanchored; the whole name without a namespace). Default empty:
    /// any ASCII name.
    pub channel_regex: String,
    /// Ours: what becomes of a publication. Default `log`.
    pub durability: Durability,
}

/// `force_recovery_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecoveryMode {
    /// Everything that was missed.
    #[default]
    #[serde(alias = "")]
    Stream,
    /// The latest publication only.
    Cache,
}

/// `durability`, ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Acknowledged by the log, then delivered exactly once and in order.
    #[default]
    Log,
    /// Delivered at most once to those who are there; no position, no history.
    None,
}

impl NamespaceOptions {
    /// The name; empty for channels without a namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What readers may see of a channel's past.
    pub fn retention(&self) -> Retention {
        Retention { size: self.history_size, ttl: self.history_ttl, meta_ttl: self.history_meta_ttl }
    }

    /// Whether readers can see any past publication.
    pub fn keeps_history(&self) -> bool {
        self.retention().keeps_history()
    }
}

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

/// Settings that were checked, ready for lookups.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// `client`.
    pub client: ClientSettings,
    /// `channel`; its namespaces have their final `history_meta_ttl`.
    pub channel: ChannelSettings,
    /// Settings that work but surely do not do what was meant, for the operator to read.
    pub warnings: Vec<String>,
    separator: Arc<str>,
    without_namespace: Rules,
    namespaces: HashMap<Box<str>, Rules>,
}

#[derive(Clone, Debug)]
struct Rules {
    options: Arc<NamespaceOptions>,
    regex: Option<Regex>,
}

/// What holds for one channel.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Options of its namespace.
    pub namespace: Arc<NamespaceOptions>,
    /// Who may subscribe by the name alone.
    pub kind: ChannelKind,
}

/// Who may subscribe to a channel, as far as its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelKind {
    /// Whoever the namespace's options let.
    Public,
    /// Only with a subscription token: the name starts with `channel.private_prefix`.
    Private,
    /// Without a subscription token only these users.
    UserLimited(AllowedUsers),
}

/// The users that a user-limited channel's name lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedUsers {
    list: Box<str>,
    separator: Arc<str>,
}

impl AllowedUsers {
    /// Whether the user is listed. The anonymous user (empty id) never is.
    pub fn contains(&self, user: &str) -> bool {
        if user.is_empty() {
            return false;
        }
        if self.separator.is_empty() {
            *self.list == *user
        } else {
            self.list.split(&*self.separator).any(|one| one == user)
        }
    }
}

impl Resolved {
    /// Whether the name lets the user subscribe without a subscription token; the namespace's options decide besides.
    pub fn allows_user(&self, user: &str) -> bool {
        match &self.kind {
            ChannelKind::Public => true,
            ChannelKind::Private => false,
            ChannelKind::UserLimited(users) => users.contains(user),
        }
    }
}

/// Why no rules hold for a channel name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such namespace is configured.
    #[error("channel namespace {name:?} is not configured")]
    UnknownNamespace {
        /// The part of the name before the boundary.
        name: String,
    },
    /// Longer than `channel.max_length`.
    #[error("channel name has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes in the name.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// The empty name. Centrifugo closes a client that subscribes to it with disconnect 3501.
    #[error("channel name is empty")]
    Empty,
    /// A name that is not ASCII, in a namespace without `channel_regex`.
    #[error("channel name must be ASCII unless its namespace has a channel_regex")]
    NotAscii,
    /// The name does not match the namespace's `channel_regex`.
    #[error("channel name does not match {regex:?}, the channel_regex of its namespace")]
    Regex {
        /// The expression.
        regex: String,
    },
}

impl ResolveError {
    /// The published error code: 102 (unknown channel) for a namespace that does not exist, 107 (bad request) for a
    /// name that is not allowed.
    pub fn code(&self) -> ErrorCode {
        match self {
            ResolveError::UnknownNamespace { .. } => ErrorCode::UNKNOWN_CHANNEL,
            ResolveError::TooLong { .. }
            | ResolveError::Empty
            | ResolveError::NotAscii
            | ResolveError::Regex { .. } => ErrorCode::BAD_REQUEST,
        }
    }
}

impl Compiled {
    /// Finds what holds for a channel.
    pub fn resolve(&self, channel: &str) -> Result<Resolved, ResolveError> {
        if channel.is_empty() {
            return Err(ResolveError::Empty);
        }
        if channel.len() > self.channel.max_length {
            return Err(ResolveError::TooLong { len: channel.len(), max: self.channel.max_length });
        }
        let prefix = self.channel.private_prefix.as_str();
        let unprefixed = if prefix.is_empty() { None } else { channel.strip_prefix(prefix) };
        let private = unprefixed.is_some();
        let boundary = self.channel.namespace_boundary.as_str();
        let parts = if boundary.is_empty() { None } else { unprefixed.unwrap_or(channel).split_once(boundary) };
        // An empty namespace (":name") means none, and the expression then sees what follows the boundary.
        let (name, rest) = parts.unwrap_or(("", channel));
        let rules = if name.is_empty() {
            &self.without_namespace
        } else {
            self.namespaces.get(name).ok_or_else(|| ResolveError::UnknownNamespace { name: name.to_owned() })?
        };
        match &rules.regex {
            Some(regex) if !regex.is_match(rest) => {
                return Err(ResolveError::Regex { regex: regex.as_str().to_owned() });
            }
            None if !channel.is_ascii() => return Err(ResolveError::NotAscii),
            _ => {}
        }
        let kind = if private { ChannelKind::Private } else { self.kind(channel, &rules.options) };
        Ok(Resolved { namespace: rules.options.clone(), kind })
    }

    fn kind(&self, channel: &str, options: &NamespaceOptions) -> ChannelKind {
        let boundary = self.channel.user_boundary.as_str();
        if !options.allow_user_limited_channels || boundary.is_empty() {
            return ChannelKind::Public;
        }
        match channel.rsplit_once(boundary) {
            Some((_, list)) => {
                ChannelKind::UserLimited(AllowedUsers { list: list.into(), separator: self.separator.clone() })
            }
            None => ChannelKind::Public,
        }
    }

    /// The user's personal channel, where `client.subscribe_to_user_personal_channel` is enabled and the user is not
    /// anonymous.
    pub fn personal_channel(&self, user: &str) -> Option<String> {
        let personal = &self.client.subscribe_to_user_personal_channel;
        if !personal.enabled || user.is_empty() {
            return None;
        }
        let namespace = &personal.personal_channel_namespace;
        let boundary = if namespace.is_empty() { "" } else { self.channel.namespace_boundary.as_str() };
        Some(format!("{namespace}{boundary}{}{user}", self.channel.user_boundary))
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
    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
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
        ("client.recovery_max_bytes", client.recovery_max_bytes, 1_024, 1 << 20),
    ] {
        if !(least..=most).contains(&value) {
            return Err(out_of_bounds(key, value, &format!("from {least} to {most}")));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).unwrap()
    }

    fn compiled(json: &str) -> Compiled {
        settings(json).compile().unwrap()
    }

    const ROOMS: &str = r##"{"channel": {
        "without_namespace": {"allow_user_limited_channels": true},
        "namespaces": [
            {"name": "chat", "presence": true},
            {"name": "private.v2", "allow_user_limited_channels": true},
            {"name": "digits", "channel_regex": "^[0-9]+$"},
            {"name": "words", "channel_regex": "^\\w+$"}
        ]}}"##;

    #[test]
    fn names_find_their_namespace() {
        let compiled = compiled(ROOMS);
        // Channel, namespace or error code, whether the name alone lets user 42 in.
        let cases: &[(&str, Result<&str, u32>, bool)] = &[
            ("news", Ok(""), true),
            ("chat:index", Ok("chat"), true),
            ("chat:a:b", Ok("chat"), true),
            ("chat:", Ok("chat"), true),
            (":index", Ok(""), true),
            ("chat", Ok(""), true),
            ("$chat:index", Ok("chat"), false),
            ("$news", Ok(""), false),
            ("$chat:a#42", Ok("chat"), false),
            ("chat:a#7", Ok("chat"), true),
            ("dialog#42", Ok(""), true),
            ("dialog#7,42", Ok(""), true),
            ("dialog#7,421", Ok(""), false),
            ("dialog#42#7", Ok(""), false),
            ("dialog#", Ok(""), false),
            ("private.v2:x#42", Ok("private.v2"), true),
            ("private.v2:x#7", Ok("private.v2"), false),
            ("private.v2:x", Ok("private.v2"), true),
            ("digits:123", Ok("digits"), true),
            ("digits:12a", Err(107), false),
            ("$digits:12", Ok("digits"), false),
            ("words:größe", Ok("words"), true),
            ("chat:größe", Err(107), false),
            ("größe", Err(107), false),
            ("nowhere:x", Err(102), false),
            ("$nowhere:x", Err(102), false),
            ("Chat:x", Err(102), false),
            ("", Err(107), false),
        ];
        for (channel, namespace, allowed) in cases {
            let resolved = compiled.resolve(channel);
            let name = resolved.as_ref().map(|resolved| resolved.namespace.name()).map_err(|error| error.code().code);
            assert_eq!(name, *namespace, "{channel}");
            assert_eq!(resolved.is_ok_and(|resolved| resolved.allows_user("42")), *allowed, "{channel}");
        }
        assert!(!compiled.resolve("dialog#,42").unwrap().allows_user(""), "nobody is listed as the anonymous user");
        let longest = "x".repeat(255);
        assert!(compiled.resolve(&longest).is_ok());
        assert_eq!(compiled.resolve(&(longest + "x")).unwrap_err(), ResolveError::TooLong { len: 256, max: 255 });
    }

    #[test]
    fn empty_separators_switch_their_feature_off() {
        let compiled = compiled(
            r#"{"channel": {"private_prefix": "", "namespace_boundary": "", "user_boundary": "",
                "without_namespace": {"allow_user_limited_channels": true}}}"#,
        );
        for channel in ["$x", "chat:x", "x#7"] {
            let resolved = compiled.resolve(channel).unwrap();
            assert_eq!((resolved.namespace.name(), &resolved.kind), ("", &ChannelKind::Public), "{channel}");
        }
    }

    #[test]
    fn one_user_without_a_separator() {
        let compiled = compiled(
            r#"{"channel": {"user_separator": "", "without_namespace": {"allow_user_limited_channels": true}}}"#,
        );
        assert!(compiled.resolve("x#a,b").unwrap().allows_user("a,b"));
        assert!(!compiled.resolve("x#a,b").unwrap().allows_user("a"));
    }

    #[test]
    fn retention_takes_the_channel_wide_meta_ttl() {
        let compiled = compiled(
            r#"{"channel": {"history_meta_ttl": "48h", "namespaces": [
                {"name": "own", "history_size": 5, "history_ttl": "60s", "history_meta_ttl": "2m"},
                {"name": "wide", "history_size": 5, "history_ttl": "1h"}]}}"#,
        );
        let own = compiled.resolve("own:x").unwrap().namespace.retention();
        assert_eq!(own, Retention { size: 5, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(120) });
        let wide = compiled.resolve("wide:x").unwrap().namespace.retention();
        assert_eq!(wide.meta_ttl, Duration::from_secs(48 * 3600));
        assert!(!compiled.resolve("x").unwrap().namespace.keeps_history());
    }

    #[test]
    fn bad_settings_name_key_value_and_what_is_allowed() {
        // Settings, then what the error must say.
        let cases: &[(&str, &[&str])] = &[
            (r#"{"client": {"ping_interval": "0s"}}"#, &["client.ping_interval", "0s", "from 1s to 1h"]),
            (r#"{"client": {"pong_timeout": "25s"}}"#, &["client.pong_timeout", "25s", "client.ping_interval"]),
            (r#"{"client": {"missed_pongs": 0}}"#, &["client.missed_pongs", "0", "from 1"]),
            (r#"{"client": {"queue_max_size": 10}}"#, &["client.queue_max_size", "10", "65536"]),
            (r#"{"client": {"user_id_http_header": "a b"}}"#, &["client.user_id_http_header", "a b", "HTTP header"]),
            (r#"{"channel": {"max_length": 256}}"#, &["channel.max_length", "256", "from 1 to 255"]),
            (r#"{"channel": {"max_publication_size": 9999999}}"#, &["max_publication_size", "9999999", "983040"]),
            (
                r#"{"channel": {"history_meta_ttl": "1500ms"}}"#,
                &["channel.history_meta_ttl", "1500ms", "whole seconds"],
            ),
            (
                r#"{"channel": {"without_namespace": {"name": "x"}}}"#,
                &["channel.without_namespace.name", "x", "channel.namespaces"],
            ),
            (
                r#"{"channel": {"namespaces": [{"name": "a"}]}}"#,
                &["channel.namespaces[0].name", "\"a\"", "^[-a-zA-Z0-9_.]{2,}$"],
            ),
            (
                r#"{"channel": {"namespaces": [{"name": "ab"}, {"name": "cd"}, {"name": "ab"}]}}"#,
                &["channel.namespaces[2].name", "\"ab\"", "channel.namespaces[0]"],
            ),
            (
                r#"{"channel": {"without_namespace": {"history_size": 5}}}"#,
                &["channel.without_namespace.history_size = 5", "history_ttl = 0s", "needs both"],
            ),
            (
                r#"{"channel": {"without_namespace": {"history_ttl": "5s"}}}"#,
                &["channel.without_namespace.history_ttl = 5s", "history_size = 0", "needs both"],
            ),
            (
                r#"{"channel": {"without_namespace": {"history_size": 1, "history_ttl": "721h"}}}"#,
                &["channel.without_namespace.history_ttl = 721h", "720h"],
            ),
            (
                r#"{"channel": {"without_namespace": {"force_recovery": true}}}"#,
                &["channel.without_namespace.force_recovery = true", "history_size"],
            ),
            (
                r#"{"channel": {"without_namespace": {"durability": "none", "history_size": 1, "history_ttl": "5s"}}}"#,
                &["channel.without_namespace.durability", "none", "history_size"],
            ),
            (
                r#"{"channel": {"namespaces": [{"name": "ab", "channel_regex": "["}]}}"#,
                &["channel.namespaces[0].channel_regex", "\"[\"", "regular expression"],
            ),
            (
                r#"{"client": {"subscribe_to_user_personal_channel":
                    {"enabled": true, "personal_channel_namespace": "me"}}}"#,
                &["personal_channel_namespace", "\"me\"", "channel.namespaces"],
            ),
        ];
        for (json, parts) in cases {
            let error = settings(json).compile().unwrap_err().to_string();
            for part in *parts {
                assert!(error.contains(part), "{json}\n  gave: {error}\n  without: {part}");
            }
        }
    }

    #[test]
    fn what_does_nothing_is_a_warning() {
        assert_eq!(compiled("{}").warnings, Vec::<String>::new());
        let warnings = compiled(
            r#"{"channel": {"namespaces": [{"name": "ab", "force_push_join_leave": true, "allow_recovery": true}]}}"#,
        )
        .warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings.iter().all(|text| text.starts_with("channel.namespaces[0]: ")), "{warnings:?}");
    }

    #[test]
    fn personal_channels() {
        assert_eq!(compiled("{}").personal_channel("42"), None);
        let on = r#"{"client": {"subscribe_to_user_personal_channel": {"enabled": true}}}"#;
        assert_eq!(compiled(on).personal_channel("42").as_deref(), Some("#42"));
        assert_eq!(compiled(on).personal_channel(""), None);
        let named = r#"{"channel": {"namespaces": [{"name": "me"}]}, "client": {"subscribe_to_user_personal_channel":
            {"enabled": true, "personal_channel_namespace": "me"}}}"#;
        assert_eq!(compiled(named).personal_channel("42").as_deref(), Some("me:#42"));
    }
}
