//! Tails of channels: one string key each, which only goes forward within an epoch.
//!
//! What is recalled may be stale: the write of a newer tail may have been lost, or never made. It says only that nothing
//! followed up to [`RememberedTail::through`]; a reader that cannot see the stream from there on must not call anything
//! complete.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use plenum_channels::{Epoch, Position, RememberedTail, Tails};

use crate::client::{Call, Client, Purpose, Redis, RedisMetrics};
use crate::keys::{Key, Keys};
use crate::script::Script;
use crate::sessions::{millis, text};

/// Longest time that a reader waits for a remembered tail.
const RECALL_DEADLINE: Duration = Duration::from_millis(200);

/// Keeps a tail unless a newer one of the same epoch is there; the same one keeps its key alive. Numbers are 20 decimal
/// digits: their order does not depend on the server's language, and none loses digits. KEYS: tail.
/// ARGV: offset and through, epoch, ttl in ms.
static KEEP: Script = Script::new(
    "tail_keep/1",
    "local t = redis.call('GET', KEYS[1])
if t and string.sub(t, 41) == ARGV[2] and string.sub(t, 1, 40) > ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'PX', ARGV[3])
return 1",
);

#[cfg(test)]
pub(crate) static SCRIPTS: [&Script; 1] = [&KEEP];

/// Tails on Redis.
pub struct RedisTails {
    writing: Client,
    reading: Client,
    keys: Keys,
    metrics: Arc<RedisMetrics>,
}

impl RedisTails {
    /// On connections of its own.
    pub fn new(redis: &Redis) -> Arc<Self> {
        let (writing, keys) = (redis.client(Purpose::Tails), redis.keys().clone());
        let reading = writing.with_deadline(RECALL_DEADLINE);
        Arc::new(RedisTails { writing, reading, keys, metrics: redis.metrics().clone() })
    }

    fn key(&self, channel: &str) -> Key {
        self.keys.key("t", &self.keys.tag(&["tail", channel]))
    }
}

#[async_trait]
impl Tails for RedisTails {
    async fn remember(&self, tails: &[(String, RememberedTail)], ttl: Duration) {
        let call = |(channel, tail): &(String, RememberedTail)| {
            let numbers = format!("{:020}{:020}", tail.position.offset, tail.through);
            let arguments = [text(&numbers), text(tail.position.epoch.as_str()), millis(ttl)];
            Call::script(&KEEP, &[&self.key(channel)], arguments).repeatable()
        };
        let answers = self.writing.call_all(tails.iter().map(call).collect()).await;
        self.metrics.memories_dropped.inc_by(answers.iter().filter(|answer| answer.is_err()).count() as u64);
    }

    async fn recall(&self, channel: &str) -> Option<RememberedTail> {
        let answer = self.reading.call(Call::command("GET", &self.key(channel), []).reading()).await.ok()?;
        parse(&answer.into_string()?)
    }
}

fn parse(text: &str) -> Option<RememberedTail> {
    let (offset, through, epoch) = (text.get(..20)?, text.get(20..40)?, text.get(40..)?);
    let position = Position { offset: offset.parse().ok()?, epoch: Epoch::from(epoch) };
    Some(RememberedTail { position, through: through.parse().ok()? })
}

#[cfg(test)]
mod tests;
