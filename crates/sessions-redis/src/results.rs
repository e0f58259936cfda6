//! Results of publications with an idempotency key: one string key each, the first one stays.
//!
//! No publication waits for a server that is away: once one did not answer, it is not asked again before a question beside
//! the publications had an answer.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hashbrown::HashSet;
use parking_lot::Mutex;
use plenum_channels::{Epoch, IdempotencyKey, Position, Results};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use crate::client::{Address, Call, CallError, Client, Purpose, Redis, RedisMetrics, Slots};
use crate::keys::{Key, Keys};
use crate::sessions::{millis, text};

/// How long results are kept unless the settings say otherwise.
pub const RESULT_TTL: Duration = Duration::from_secs(300);

/// Longest time that a publication waits for an answer about its key.
const RECALL_DEADLINE: Duration = Duration::from_millis(200);
/// How often a server that did not answer is tried beside the publications.
const TRIED_EVERY: Duration = Duration::from_millis(250);
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
    slots: watch::Receiver<Arc<Slots>>,
    silent: Arc<Silent>,
}

/// Servers that did not answer.
type Silent = Mutex<HashSet<Address>>;

impl RedisResults {
    /// On connections of its own. Must be called within a tokio runtime, where a task writes what is remembered.
    pub fn new(redis: &Redis) -> Arc<Self> {
        let client = redis.client(Purpose::Results);
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        tokio::spawn(write(queue, client.clone(), redis.metrics().clone()));
        Arc::new(RedisResults {
            client: client.with_deadline(RECALL_DEADLINE),
            keys: redis.keys().clone(),
            waiting,
            metrics: redis.metrics().clone(),
            slots: redis.watch_slots(),
            silent: Arc::default(),
        })
    }

    fn key(&self, channel: &str, key: &IdempotencyKey) -> Key {
        self.keys.key("r", &self.keys.tag(&["result", channel, &key.scope, &key.key]))
    }
}

#[async_trait]
impl Results for RedisResults {
    async fn recall(&self, channel: &str, key: &IdempotencyKey) -> Option<Position> {
        let key = self.key(channel, key);
        let server = self.slots.borrow().owner(key.slot()).map(|node| node.address.clone());
        let Some(server) = server.filter(|server| !self.silent.lock().contains(server)) else {
            self.metrics.recalls_skipped.inc();
            return None;
        };
        match self.client.call(question(&key)).await {
            Ok(answer) => parse(&answer.into_string()?),
            Err(CallError::Refused { .. }) => None,
            Err(_) => {
                if self.silent.lock().insert(server.clone()) {
                    let silent = Arc::downgrade(&self.silent);
                    tokio::spawn(until_heard(silent, server, key, self.client.clone(), self.slots.clone()));
                }
                None
            }
        }
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

fn question(key: &Key) -> Call {
    Call::command("GET", key, []).reading()
}

/// Tries a server until it answers, or another one serves the key.
async fn until_heard(
    silent: Weak<Silent>,
    server: Address,
    key: Key,
    client: Client,
    slots: watch::Receiver<Arc<Slots>>,
) {
    loop {
        tokio::time::sleep(TRIED_EVERY).await;
        let serves = slots.borrow().owner(key.slot()).is_some_and(|node| node.address == server);
        let heard = !serves || client.call(question(&key)).await.is_ok();
        let Some(silent) = silent.upgrade() else { return };
        if heard {
            silent.lock().remove(&server);
            return;
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
