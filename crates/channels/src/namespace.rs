//! Namespaces: which rules hold for a channel, decided by its name.

mod check;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::codes::ErrorCode;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::ports::Retention;
use crate::settings::{ChannelSettings, ClientSettings, duration};

pub use check::SettingsError;

/// Subscribers of one channel where `session` is set and `subscriber_limit` is not.
pub const SESSION_SUBSCRIBERS: usize = 50;

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
    /// as `channel.history_meta_ttl` says. After [`crate::Settings::compile`] it is never zero.
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
    /// Ours: a channel is a session of people who meet, such as planning poker or a chat room. Default false.
    pub session: bool,
    /// Ours: most subscribers of one channel, on all replicas where these share counts, else on this one; a further one
    /// gets error 106. Server-side subscriptions count as well. Default 0: no bound, or
    /// [`SESSION_SUBSCRIBERS`] with `session`, as it then is after [`crate::Settings::compile`].
    pub subscriber_limit: usize,
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

#[cfg(test)]
mod tests;
