//! Names of streams and subjects.

use crate::channel_token;

/// What a stored message is, as its subject says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A publication on this channel.
    Publication(String),
    /// Hides everything before it on this channel.
    Marker(String),
    /// A tick.
    Tick,
}

/// The subjects of one shard of one retention group.
#[derive(Clone, Debug)]
pub(super) struct ShardNames {
    log: String,
    live: String,
}

impl ShardNames {
    pub fn new(prefix: &str, group: &str, shard: u32) -> Self {
        Self { log: format!("{prefix}.log.{group}.{shard}."), live: format!("{prefix}.live.{group}.{shard}.") }
    }

    /// Every subject of the shard's stream.
    pub fn all(&self) -> String {
        format!("{}>", self.log)
    }

    /// Where the stream republishes.
    pub fn republished(&self) -> String {
        format!("{}>", self.live)
    }

    pub fn publication(&self, channel: &str) -> String {
        format!("{}c.{}", self.log, channel_token::encode(channel))
    }

    pub fn marker(&self, channel: &str) -> String {
        format!("{}m.{}", self.log, channel_token::encode(channel))
    }

    pub fn tick(&self) -> String {
        format!("{}t", self.log)
    }

    /// Where publications of a channel arrive live, and its announcements.
    pub fn live(&self, channel: &str) -> String {
        format!("{}c.{}", self.live, channel_token::encode(channel))
    }

    pub fn live_tick(&self) -> String {
        format!("{}t", self.live)
    }

    /// What is stored on a subject of the log; `None` for subjects that nobody of ours uses.
    pub fn kind(&self, subject: &str) -> Option<Kind> {
        let rest = subject.strip_prefix(&self.log)?;
        match rest.split_once('.') {
            None if rest == "t" => Some(Kind::Tick),
            Some(("c", token)) => channel_token::decode(token).map(Kind::Publication),
            Some(("m", token)) => channel_token::decode(token).map(Kind::Marker),
            _ => None,
        }
    }
}

/// The stream of a shard. The incarnation stands in the name, so that every message carries it.
pub(super) fn stream(prefix: &str, group: &str, shard: u32, incarnation: &str, regress: u32) -> String {
    format!("{prefix}-{group}-{shard}-{incarnation}-{regress}")
}

/// The bucket that holds what all replicas agree on.
pub(super) fn bucket(prefix: &str) -> String {
    format!("{prefix}-cluster")
}

/// Whether a prefix or a group can stand in names of streams, buckets and subjects.
pub(super) fn is_valid(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_say_what_they_hold() {
        let names = ShardNames::new("p", "g", 3);
        for channel in ["a", "a.b", "*", ">", "t", "\0", ""] {
            assert_eq!(names.kind(&names.publication(channel)), Some(Kind::Publication(channel.into())));
            assert_eq!(names.kind(&names.marker(channel)), Some(Kind::Marker(channel.into())));
            assert_eq!(names.publication(channel).split('.').count(), 6);
        }
        assert_eq!(names.kind(&names.tick()), Some(Kind::Tick));
        for foreign in ["p.log.g.3.x", "p.log.g.3.c", "p.log.g.3.c.a.b", "p.log.g.30.t", "p.live.g.3.t", ""] {
            assert_eq!(names.kind(foreign), None, "{foreign}");
        }
        assert_eq!(names.live("x"), names.publication("x").replace(".log.", ".live."));
        assert!(is_valid("plenum") && !is_valid("a.b") && !is_valid("") && !is_valid("a b") && !is_valid(">"));
    }
}
