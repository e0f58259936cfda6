//! The port `Presence` on Redis.
//!
//! Entries belong to an incarnation of the replica that made them, and count while the heartbeats of that incarnation are
//! heard ([`Replicas`]): Redis judges nobody. What this replica joined is kept in its memory, and Redis is brought into
//! line with it again whenever the two may differ: a call without an answer, a primary that was replaced, restarted or
//! flushed, slots that moved, a key that expired. `docs/redis.md` has the keys and the costs.

mod calls;
mod canary;
mod entry;
mod roster;
mod sweep;
#[cfg(test)]
mod tests;
mod told;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::{Census, Incarnation, Lease, Presence, PresenceError, PresenceStats, Replicas};
use plenum_protocol::ClientInfo;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

#[cfg(test)]
pub(crate) use self::calls::SCRIPTS;
use self::calls::fence;
use self::entry::parse_incarnation;
use self::roster::Roster;
use self::sweep::Sweeps;
use self::told::Told;
use self::upkeep::Doubts;
use crate::client::{Call, CallError, Client, Purpose, Redis, Value};
use crate::keys::{Key, SLOTS};

pub(crate) use self::canary::Canaries;
pub(crate) use self::entry::incarnation;

/// Joins and leaves under way for one part of the slots; more wait, so that everybody can be announced again at once.
const UNDER_WAY: usize = 64;

/// Parts of the slots: a primary that does not answer holds up those that it serves.
const PARTS: u16 = 16;

/// Longest wait for a place among them.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// A channel's counts for which more users and clients than this were looked at one by one are good for half a second.
const MANY_LOST: u32 = 200;
const CORRECTED_FOR: Duration = Duration::from_millis(500);

/// Channels with corrected counts that are remembered.
const MAX_CORRECTED: usize = 1024;

/// Times of presence in Redis.
#[derive(Clone, Copy, Debug)]
pub struct PresenceConfig {
    /// Life of every key, renewed after a third of it (default 1 h): entries that nobody owns and nobody reads are gone then.
    pub life: Duration,
    /// How long an incarnation must not have counted before its entries are removed (default 10 s).
    pub sweep_after: Duration,
}

impl Default for PresenceConfig {
    fn default() -> Self {
        Self { life: Duration::from_secs(3600), sweep_after: Duration::from_secs(10) }
    }
}

/// What a replica has in presence, and what it still has to do there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceState {
    /// Channels in which this replica has somebody.
    pub channels: usize,
    /// Its entries.
    pub entries: usize,
    /// Channels that may differ in Redis and are brought into line.
    pub doubtful: usize,
    /// Leftovers of incarnations that are gone, not removed yet.
    pub leftovers: usize,
}

/// Presence of one replica. Its task ends when it is dropped.
pub struct RedisPresence {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

struct Inner {
    redis: Arc<Redis>,
    /// For what callers wait for.
    client: Client,
    /// For what runs beside it.
    background: Client,
    replicas: Arc<dyn Replicas>,
    config: PresenceConfig,
    roster: Mutex<Roster>,
    doubts: Mutex<Doubts>,
    sweeps: Mutex<Sweeps>,
    corrected: Mutex<HashMap<Box<str>, (Instant, PresenceStats)>>,
    under_way: Vec<Semaphore>,
    told: Mutex<Told>,
    /// Somebody met a primary that lacks entries: it is looked at at once.
    look: Arc<Notify>,
}

impl RedisPresence {
    /// Must be called within a tokio runtime.
    pub fn start(redis: Arc<Redis>, replicas: Arc<dyn Replicas>, config: PresenceConfig) -> Arc<Self> {
        let own = replicas.census().own;
        let inner = Arc::new(Inner {
            client: redis.client(Purpose::Presence),
            background: redis.client(Purpose::Presence),
            redis,
            replicas,
            config,
            roster: Mutex::new(Roster::new(own)),
            doubts: Mutex::default(),
            sweeps: Mutex::new(Sweeps::new(config.sweep_after)),
            corrected: Mutex::default(),
            under_way: (0..PARTS).map(|_| Semaphore::new(UNDER_WAY)).collect(),
            told: Mutex::default(),
            look: Arc::default(),
        });
        let task = tokio::spawn(upkeep::run(Arc::downgrade(&inner)));
        Arc::new(Self { inner, task })
    }

    /// What there is and what there is to do.
    pub fn state(&self) -> PresenceState {
        let (channels, entries) = {
            let roster = self.inner.roster.lock();
            (roster.channels(), roster.entries())
        };
        let (doubtful, leftovers) = (self.inner.doubts.lock().len(), self.inner.sweeps.lock().len());
        PresenceState { channels, entries, doubtful, leftovers }
    }
}

impl Drop for RedisPresence {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn unavailable(reason: impl Into<String>) -> PresenceError {
    PresenceError::Unavailable { reason: reason.into() }
}

fn failed(error: CallError) -> PresenceError {
    unavailable(error.reason())
}

impl Inner {
    fn base(&self, channel: &str) -> Key {
        calls::base(self.redis.keys(), channel)
    }

    /// The present incarnation; when it is another than before, what the one before had is forgotten and swept.
    fn own(&self) -> Incarnation {
        let own = self.replicas.census().own;
        let mut roster = self.roster.lock();
        if roster.own < own {
            let (before, channels) = roster.begin(own);
            drop(roster);
            self.doubts.lock().clear();
            let mut sweeps = self.sweeps.lock();
            channels.into_iter().for_each(|channel| sweeps.push(channel, before));
        }
        own
    }

    /// Writes an entry of the roster or removes one; whatever fails is in doubt.
    async fn write(&self, channel: &str, client: &str, slot: u16, call: Call) -> Result<(), PresenceError> {
        let places = &self.under_way[usize::from(slot / (SLOTS / PARTS)) % self.under_way.len()];
        let result = match timeout(LONGEST_WAIT, places.acquire()).await {
            Ok(_place) => self.client.call(call).await.map(drop).map_err(failed),
            Err(_) => Err(unavailable("too many joins and leaves are under way")),
        };
        if result.is_err() {
            self.doubts.lock().client(channel, client);
        }
        result
    }

    /// Whose entries the channel holds, of those that count; the others are noted.
    fn counting(&self, channel: &str, census: &Census, found: &[Value]) -> Vec<Incarnation> {
        let found = found.iter().filter_map(|name| parse_incarnation(&name.as_str()?));
        let (counting, gone): (Vec<_>, Vec<_>) = found.partition(|one| census.counts(*one));
        if !gone.is_empty() {
            self.sweeps.lock().found(channel, &gone, census);
        }
        counting
    }

    async fn stats(&self, channel: &str) -> Result<PresenceStats, PresenceError> {
        let known = self.corrected.lock().get(channel).copied();
        if let Some((at, stats)) = known
            && at.elapsed() < CORRECTED_FOR
        {
            return Ok(stats);
        }
        let census = self.replicas.census();
        let base = self.base(channel);
        let read = vec![calls::stats(&base, &census)];
        let answer = self.read(self.client.deadline(), base.slot(), &census, read).await?.pop();
        let answer = answer.map(Value::into_array).unwrap_or_default();
        let [clients, users, Value::Array(found), looked_at] = &answer[..] else {
            return Err(unavailable("an answer that no script of ours gives"));
        };
        let count = |value: &Value| value.as_i64().and_then(|count| count.try_into().ok()).unwrap_or_default();
        let stats = PresenceStats { clients: count(clients), users: count(users) };
        self.counting(channel, &census, found);
        let mut corrected = self.corrected.lock();
        if count(looked_at) > MANY_LOST {
            if corrected.len() >= MAX_CORRECTED {
                corrected.clear();
            }
            corrected.insert(channel.into(), (Instant::now(), stats));
        } else if known.is_some() {
            corrected.remove(channel);
        }
        Ok(stats)
    }

    async fn members(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, PresenceError> {
        let census = self.replicas.census();
        let deadline = self.client.deadline();
        let base = self.base(channel);
        let found = self.read(deadline, base.slot(), &census, vec![calls::incarnations(&base)]).await?.pop();
        let counting = self.counting(channel, &census, &found.map(Value::into_array).unwrap_or_default());
        let reads: Vec<_> = counting.iter().map(|one| calls::entries(self.redis.keys(), channel, *one)).collect();
        let mut members: HashMap<String, (u64, ClientInfo)> = HashMap::new();
        if reads.is_empty() {
            return Ok(Vec::new());
        }
        for answer in self.read(deadline, base.slot(), &census, reads).await? {
            for (client, entry) in pairs(answer) {
                let Some((stamp, member)) = entry::decode(client, &entry) else {
                    continue;
                };
                if members.get(&member.client).is_none_or(|(known, _)| *known < stamp) {
                    members.insert(member.client.clone(), (stamp, member));
                }
            }
        }
        Ok(members.into_values().map(|(_, member)| Arc::new(member)).collect())
    }
}

/// Fields and values of a hash.
fn pairs(answer: Value) -> Vec<(String, Bytes)> {
    let list = match answer {
        Value::Map(map) => {
            let pair = |(key, value): (fred::types::Key, Value)| Some((key.into_string()?, value.into_bytes()?));
            return map.inner().into_iter().filter_map(pair).collect();
        }
        other => other.into_array(),
    };
    let mut list = list.into_iter();
    let mut pairs = Vec::with_capacity(list.len() / 2);
    while let (Some(field), Some(value)) = (list.next(), list.next()) {
        if let (Some(field), Some(value)) = (field.into_string(), value.into_bytes()) {
            pairs.push((field, value));
        }
    }
    pairs
}

#[async_trait]
impl Presence for RedisPresence {
    /// A join that failed may still be made later, until the client leaves.
    async fn join(&self, channel: &str, member: Arc<ClientInfo>) -> Result<(), PresenceError> {
        let inner = &self.inner;
        let mut own = inner.own();
        loop {
            let base = inner.base(channel);
            let stamp = inner.roster.lock().join(channel, || base.slot(), member.clone());
            let call = calls::join(&base, own, stamp, &member, inner.config.life);
            inner.write(channel, &member.client, base.slot(), call).await?;
            let now = inner.own();
            if now == own {
                return Ok(());
            }
            own = now;
        }
    }

    /// Never fails: a leave without an answer is repeated until there is one.
    async fn leave(&self, channel: &str, client: &str) -> Result<(), PresenceError> {
        let inner = &self.inner;
        let own = inner.own();
        let Some(stamp) = inner.roster.lock().leave(channel, client) else {
            return Ok(());
        };
        let base = inner.base(channel);
        let call = calls::leave(&base, own, client, stamp);
        if let Err(error) = inner.write(channel, client, base.slot(), call).await {
            tracing::debug!(%error, "a leave is repeated");
        }
        Ok(())
    }

    async fn members(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, PresenceError> {
        self.inner.members(channel).await
    }

    async fn stats(&self, channel: &str) -> Result<PresenceStats, PresenceError> {
        self.inner.stats(channel).await
    }

    async fn renew(&self) -> Result<Lease, PresenceError> {
        let inner = &self.inner;
        let own = inner.own();
        if std::mem::take(&mut inner.roster.lock().lapsed) {
            return Ok(Lease::Lapsed);
        }
        let fence = Call::command("EXISTS", &fence(inner.redis.keys(), own), []).reading();
        if inner.client.call(fence).await.map_err(failed)?.as_i64() == Some(0) {
            return Ok(Lease::Held);
        }
        tracing::warn!("others took this replica for gone and removed its presence entries");
        inner.replicas.begin_anew();
        inner.own();
        inner.roster.lock().lapsed = false;
        Ok(Lease::Lapsed)
    }

    async fn resign(&self) -> Result<(), PresenceError> {
        self.inner.replicas.resign();
        Ok(())
    }
}
