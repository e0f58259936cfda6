//! What the log is set up with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::names;
use super::setup::SetupError;
use super::tails::TailStore;
use crate::workers::Workers;

/// Says which retention group a channel belongs to, as an index into [`LogConfig::groups`].
pub type Placement = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// Settings of the log. Every replica of a cluster must be started with the same ones.
#[derive(Clone)]
pub struct LogConfig {
    /// First token of every subject and part of every stream's name: letters, digits, `-`, `_`, at most 32.
    pub prefix: String,
    /// Copies of each stream: 1, 3 or 5.
    pub replicas: u32,
    /// Retention groups; at least one.
    pub groups: Vec<GroupConfig>,
    /// Group of each namespace, by name; kept in the cluster's record, so that no namespace moves unnoticed.
    pub namespaces: BTreeMap<String, String>,
    /// Group of each channel; must agree with `namespaces`.
    pub placement: Placement,
    /// The keyed workers of the process, which deliver live messages; what finds no room there for as long as it may wait is
    /// read from the stream. `None`: workers of its own, with the default settings.
    pub workers: Option<Arc<Workers>>,
    /// Tasks that append, spread over the publishing connections; a channel belongs to one of them.
    pub append_lanes: usize,
    /// Unacknowledged appends of one connection, shared evenly by the lanes on it.
    pub append_window: usize,
    /// Appends that wait in one lane besides those; beyond it an append fails as unavailable at once.
    pub append_queue: usize,
    /// How long an append is tried: at least 15 s, below 45 s.
    pub append_patience: Duration,
    /// Where last positions of channels outlive their data; `None`: nowhere.
    pub tails: Option<TailStore>,
    /// What a test breaks.
    #[cfg(test)]
    pub(crate) faults: Arc<super::faults::Faults>,
}

/// Channels that are kept equally long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Part of subjects and stream names, like [`LogConfig::prefix`].
    pub name: String,
    /// Streams of this group, 1 to 64. Can never be changed under the same prefix.
    pub shards: u32,
    /// Entries older than this are trimmed from the front; at least 10 minutes.
    pub max_age: Duration,
    /// Bytes of one shard; beyond them the oldest entries are trimmed from the front. `None`: what the disk holds.
    pub max_bytes: Option<u64>,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self { name: "default".into(), shards: 4, max_age: Duration::from_secs(24 * 3600), max_bytes: Some(4 << 30) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            prefix: "plenum".into(),
            replicas: 1,
            groups: vec![GroupConfig::default()],
            namespaces: BTreeMap::new(),
            placement: Arc::new(|_| 0),
            workers: None,
            append_lanes: 4,
            append_window: 1024,
            append_queue: 8192,
            append_patience: Duration::from_secs(20),
            tails: None,
            #[cfg(test)]
            faults: Arc::default(),
        }
    }
}

impl fmt::Debug for LogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogConfig")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

impl LogConfig {
    pub(super) fn check(&self) -> Result<(), SetupError> {
        let refuse = |setting: &str, reason: &str| {
            Err(SetupError::Configuration { setting: setting.into(), reason: reason.into() })
        };
        if !names::is_valid(&self.prefix) {
            return refuse("prefix", "must be 1 to 32 letters, digits, - or _");
        }
        if !matches!(self.replicas, 1 | 3 | 5) {
            return refuse("replicas", "must be 1, 3 or 5");
        }
        if self.groups.is_empty() {
            return refuse("groups", "there must be one");
        }
        for (index, group) in self.groups.iter().enumerate() {
            if !names::is_valid(&group.name) || self.groups[..index].iter().any(|other| other.name == group.name) {
                return refuse("groups.name", "must be 1 to 32 letters, digits, - or _, and unique");
            }
            if !(1..=64).contains(&group.shards) {
                return refuse("groups.shards", "must be 1 to 64");
            }
            if group.max_age < Duration::from_secs(600) {
                return refuse("groups.max_age", "must be at least 10 minutes");
            }
            if group.max_bytes.is_some_and(|bytes| bytes < 1 << 20) {
                return refuse("groups.max_bytes", "must be at least 1 MiB");
            }
        }
        if !(15..45).contains(&self.append_patience.as_secs()) {
            return refuse("append_patience", "must be at least 15 s and below 45 s");
        }
        Ok(())
    }
}
