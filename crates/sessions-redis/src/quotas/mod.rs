//! The port `Quotas` on Redis.
//!
//! Counts belong to incarnations of replicas, like presence: those that do not live do not count, and their keys expire. What
//! this replica counts is kept in its memory, and written again under each new incarnation and wherever Redis may have
//! lost it. Buckets are decided on here, by what is known of the cluster's use; see [`rates`].

mod held;
mod rates;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use plenum_channels::{Bucket, Incarnation, Quota, QuotaError, Quotas, Rate, Replicas, Token};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::held::{Held, Place};
use self::rates::Rates;
use crate::client::{Call, Client, Purpose, Redis, Value};
use crate::keys::Key;
use crate::presence::{Canaries, incarnation};
use crate::script::Script;

static ENTER: Script = Script::new("quota_enter/1", include_str!("enter.lua"));
static EXIT: Script = Script::new("quota_exit/1", include_str!("exit.lua"));
static HOLD: Script = Script::new("quota_hold/1", include_str!("hold.lua"));

#[cfg(test)]
pub(crate) static SCRIPTS: [&Script; 4] = [&ENTER, &EXIT, &HOLD, &rates::TAKE];

/// How often servers are looked at, and counts in doubt are written again.
const ROUND: Duration = Duration::from_secs(1);

/// Longest share of a round for writing counts again.
const SHARE: Duration = Duration::from_millis(1500);

/// Calls in one write.
const AT_ONCE: usize = 256;

/// Members in one call.
const MEMBERS_AT_ONCE: usize = 4000;

/// Quotas of one replica. Its tasks end when it is dropped.
pub struct RedisQuotas {
    inner: Arc<Inner>,
    tasks: [JoinHandle<()>; 3],
}

struct Inner {
    redis: Arc<Redis>,
    /// For what callers wait for, and the exits behind it.
    client: Client,
    background: Client,
    replicas: Arc<dyn Replicas>,
    /// Life of every key, renewed after a third of it.
    life: Duration,
    held: Mutex<Held>,
    leaving: Notify,
    rates: Rates,
}

impl RedisQuotas {
    /// `life` of what is counted here and not told again (1 h is a good one). Must be called within a tokio runtime.
    pub fn start(redis: Arc<Redis>, replicas: Arc<dyn Replicas>, life: Duration) -> Arc<Self> {
        let own = replicas.census().own;
        let inner = Arc::new(Inner {
            client: redis.client(Purpose::Quotas),
            background: redis.client(Purpose::Quotas),
            redis,
            replicas,
            life,
            held: Mutex::new(Held::new(own)),
            leaving: Notify::new(),
            rates: Rates::default(),
        });
        let tasks = [
            tokio::spawn(rounds(Arc::downgrade(&inner))),
            tokio::spawn(inner.clone().see_off()),
            tokio::spawn(flush(Arc::downgrade(&inner))),
        ];
        Arc::new(Self { inner, tasks })
    }

    /// Members counted here, and quotas whose count in Redis is in doubt.
    pub fn state(&self) -> (usize, usize) {
        self.inner.held.lock().state()
    }
}

impl Drop for RedisQuotas {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// An enter under way: who drops it does not learn whether it counted.
struct Unsure<'a> {
    held: &'a Mutex<Held>,
    place: Place,
    settled: bool,
}

impl<'a> Unsure<'a> {
    fn new(held: &'a Mutex<Held>, place: Place) -> Self {
        held.lock().will_enter(&place);
        Unsure { held, place, settled: false }
    }

    /// Its outcome was taken in.
    fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Unsure<'_> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        held.entered(&self.place);
        if !self.settled {
            held.doubt(self.place.clone());
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

impl Inner {
    fn base(&self, place: &Place) -> Key {
        let kind = match place.0 {
            Quota::UserConnections => "user",
            Quota::ChannelSubscribers => "channel",
        };
        self.redis.keys().key("q", &self.redis.keys().tag(&[kind, &place.1]))
    }

    /// The present incarnation; under a new one everything is counted again.
    fn own(&self) -> Incarnation {
        let own = self.replicas.census().own;
        self.held.lock().begin(own);
        own
    }

    async fn enter(&self, place: Place, member: &str, max: u64) -> Result<(), QuotaError> {
        let own = self.own();
        let base = self.base(&place);
        let census = self.replicas.census();
        let alive = census.alive.iter();
        let alive = alive.map(|(replica, generation)| Incarnation { replica: *replica, generation: *generation });
        let (limit, life) = (max.min(i64::MAX as u64) as i64, self.life.as_millis() as i64);
        let head = [text(&incarnation(own)), text(member), Value::Integer(limit), Value::Integer(life)];
        let arguments = head.into_iter().chain(alive.map(|alive| text(&incarnation(alive))));
        let unsure = Unsure::new(&self.held, place.clone());
        let answer = self.client.call(Call::script(&ENTER, &[&base], arguments).repeatable()).await;
        match answer.map(|found| found.as_i64()) {
            Ok(Some(-1)) => {
                let mut held = self.held.lock();
                held.enter(&place, member, base.slot());
                if held.own() != own {
                    held.doubt(place);
                }
                drop(held);
                unsure.settle();
                Ok(())
            }
            Ok(found) => {
                unsure.settle();
                Err(QuotaError::Reached { found: found.and_then(|found| found.try_into().ok()).unwrap_or(max), max })
            }
            // It may have been counted nevertheless.
            Err(error) => Err(QuotaError::Unavailable { reason: error.reason() }),
        }
    }

    /// Tells Redis who left, in batches.
    async fn see_off(self: Arc<Self>) {
        loop {
            let leaving = self.held.lock().leaving(AT_ONCE);
            if leaving.is_empty() {
                self.leaving.notified().await;
                continue;
            }
            let own = incarnation(self.own());
            let exit = |(place, member): &(Place, Box<str>)| {
                Call::script(&EXIT, &[&self.base(place)], [text(&own), text(member)]).repeatable()
            };
            let answers = self.client.call_all(leaving.iter().map(exit).collect()).await;
            let mut held = self.held.lock();
            for ((place, member), answer) in leaving.into_iter().zip(answers) {
                match answer {
                    Ok(_) => held.told_exit(place, &member),
                    Err(_) => held.doubt(place),
                }
            }
        }
    }

    /// Writes what is held where it is in doubt, each quota once, until time is up.
    async fn write_again(&self, own: Incarnation, until: Instant) {
        let mut left = self.held.lock().state().1;
        while left > 0 && Instant::now() < until {
            let doubtful = self.held.lock().take_doubts(left.min(AT_ONCE));
            left = if doubtful.is_empty() { 0 } else { left - doubtful.len() };
            self.write_some(own, doubtful).await;
        }
    }

    /// The first piece of a quota replaces what is there and may be repeated: the next one is not sent before it was written.
    async fn write_some(&self, own: Incarnation, places: Vec<Place>) {
        let with_members = |place: Place| {
            let (version, members) = self.held.lock().members(&place);
            (place, version, members)
        };
        let mut writing: Vec<_> = places.into_iter().map(with_members).collect();
        for first in (0..).step_by(MEMBERS_AT_ONCE) {
            if writing.is_empty() {
                return;
            }
            let calls = writing.iter().map(|(place, _, members)| {
                let replaces = if first == 0 { "1" } else { "0" };
                let head = [text(&incarnation(own)), Value::Integer(self.life.as_millis() as i64), text(replaces)];
                let piece = members.iter().skip(first).take(MEMBERS_AT_ONCE);
                let arguments = head.into_iter().chain(piece.map(|member| text(member)));
                Call::script(&HOLD, &[&self.base(place)], arguments).repeatable()
            });
            let answers = self.background.call_all(calls.collect()).await;
            let mut held = self.held.lock();
            let answered = std::mem::take(&mut writing).into_iter().zip(answers);
            for ((place, version, members), answer) in answered {
                match answer {
                    Ok(_) if members.len() > first + MEMBERS_AT_ONCE => writing.push((place, version, members)),
                    Ok(_) => held.told_members(place, version),
                    Err(_) => held.doubt(place),
                }
            }
        }
    }
}

async fn rounds(inner: Weak<Inner>) {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut canaries: Option<Canaries> = None;
    loop {
        rounds.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let own = inner.own();
        // Members may have been counted before the first look, and lost before it too.
        let canaries = canaries.get_or_insert_with(|| Canaries::late(format!("quotas:{}", incarnation(own))));
        if let Some(changed) = canaries.look(&inner.redis, &inner.background).await {
            inner.held.lock().doubt_slots(|slot| changed[usize::from(slot)]);
        }
        inner.held.lock().doubt_old(inner.life / 3, AT_ONCE * 16);
        inner.write_again(own, Instant::now() + SHARE).await;
    }
}

async fn flush(inner: Weak<Inner>) {
    let mut ticks = interval(rates::FLUSH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        inner.rates.flush(inner.redis.keys(), &inner.background).await;
    }
}

#[async_trait]
impl Quotas for RedisQuotas {
    async fn enter(&self, quota: Quota, key: &str, member: &str, max: u64) -> Result<(), QuotaError> {
        self.inner.enter((quota, key.into()), member, max).await
    }

    fn hold(&self, quota: Quota, key: &str, member: &str) {
        let place: Place = (quota, key.into());
        let slot = self.inner.base(&place).slot();
        let mut held = self.inner.held.lock();
        held.enter(&place, member, slot);
        held.doubt(place);
    }

    fn exit(&self, quota: Quota, key: &str, member: &str) {
        if self.inner.held.lock().exit((quota, key.into()), member) {
            self.inner.leaving.notify_one();
        }
    }

    fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> Token {
        self.inner.rates.take(rate, key, bucket)
    }
}
