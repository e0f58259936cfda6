//! Results of publications with an idempotency key: one string key each, the first one stays.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use plenum_channels::{Epoch, IdempotencyKey, Position, Results};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::client::{Call, Client, Purpose, Redis, RedisMetrics};
use crate::keys::{Key, Keys};
use crate::sessions::{millis, text};

/// How long results are kept unless the settings say otherwise.
pub const RESULT_TTL: Duration = Duration::from_secs(300);

/// Longest time that a publication waits for an answer about its key.
const RECALL_DEADLINE: Duration = Duration::from_millis(200);
/// Results that wait to be written; beyond it the newest is not kept.
const MAX_WAITING: usize = 8192;
/// Results written together.
const BATCH: usize = 256;

/// Results on Redis.
pub struct RedisResults {
    client: Client,
    keys: Keys,
    waiting: mpsc::Sender<Call>,
    metrics: Arc<RedisMetrics>,
}

impl RedisResults {
    /// On connections of its own. Must be called within a tokio runtime, where a task writes what is remembered.
    pub fn new(redis: &Redis) -> Arc<Self> {
        let client = redis.client(Purpose::Results);
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        tokio::spawn(write(queue, client.clone(), redis.metrics().clone()));
        let (client, keys) = (client.with_deadline(RECALL_DEADLINE), redis.keys().clone());
        Arc::new(RedisResults { client, keys, waiting, metrics: redis.metrics().clone() })
    }

    fn key(&self, channel: &str, key: &IdempotencyKey) -> Key {
        self.keys.key("r", &self.keys.tag(&["result", channel, &key.scope, &key.key]))
    }
}

#[async_trait]
impl Results for RedisResults {
    async fn recall(&self, channel: &str, key: &IdempotencyKey) -> Option<Position> {
        let answer = self.client.call(Call::command("GET", &self.key(channel, key), []).reading()).await.ok()?;
        parse(&answer.into_string()?)
    }

    fn remember(&self, channel: &str, key: &IdempotencyKey, position: Position, ttl: Duration) {
        let value = text(&format!("{} {}", position.offset, position.epoch));
        let arguments = [value, text("NX"), text("PX"), millis(ttl)];
        let call = Call::command("SET", &self.key(channel, key), arguments).repeatable();
        if let Err(TrySendError::Full(_)) = self.waiting.try_send(call) {
            self.metrics.memories_dropped.inc();
        }
    }
}

/// Writes what waits, in batches, until nobody can add to it.
async fn write(mut queue: mpsc::Receiver<Call>, client: Client, metrics: Arc<RedisMetrics>) {
    let mut batch: Vec<Call> = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let failed = client.call_all(std::mem::take(&mut batch)).await.iter().filter(|answer| answer.is_err()).count();
        metrics.memories_dropped.inc_by(failed as u64);
    }
}

fn parse(text: &str) -> Option<Position> {
    let (offset, epoch) = text.split_once(' ')?;
    Some(Position { offset: offset.parse().ok()?, epoch: Epoch::from(epoch) })
}

#[cfg(test)]
mod tests;
