//! Buckets that all replicas share, without a round trip for each token.
//!
//! A replica decides by what Redis last said of a bucket and by what it took itself since then. Each 200 ms it tells Redis
//! what it took, and hears what is missing in all. So replicas together take, beyond what the bucket holds, at most what
//! each of the others takes in one such interval; what is missing may be more than the bucket holds and is filled up first,
//! so that the rate in the long run is exact.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::{Bucket, Rate, Token};
use tokio::time::Instant;

use crate::client::{Call, Client, Value};
use crate::keys::Keys;
use crate::script::Script;

pub(super) static TAKE: Script = Script::new("rate_take/1", include_str!("take.lua"));

/// How often Redis is told.
pub(super) const FLUSH: Duration = Duration::from_millis(200);

/// Locks over the buckets.
const SHARDS: usize = 16;

/// Buckets kept for each lock. Of more, full ones are forgotten, then ones of which Redis knows all; tokens of those that
/// still have no place are given without counting.
const BUCKETS: usize = 4096;

/// Buckets told at once; the others follow 200 ms later.
const TOLD_AT_ONCE: usize = 8192;

/// Calls in one write.
const AT_ONCE: usize = 512;

/// How often all buckets are looked at for full ones.
const CLEARED_EVERY: Duration = Duration::from_secs(1);

/// Buckets looked at for one to forget.
const LOOKED_AT: usize = 64;

type Name = (Rate, Box<str>);

/// All buckets that this replica takes from.
pub(super) struct Rates {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    buckets: HashMap<Name, Local>,
    /// Buckets from which was taken since Redis was told.
    used: Vec<Name>,
    /// When full buckets were forgotten.
    cleared: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Local {
    bucket: Bucket,
    /// What was missing at that time, of all replicas.
    missing: f64,
    at: Instant,
    /// Taken here since then: told and not answered, and not told.
    told: u32,
    untold: u32,
    /// Redis did not answer the last time: nobody knows what is missing.
    alone: bool,
}

impl Local {
    fn new(bucket: Bucket, now: Instant) -> Self {
        Self { bucket, missing: 0.0, at: now, told: 0, untold: 0, alone: false }
    }

    fn missing(&self, now: Instant) -> f64 {
        let period = self.bucket.period.max(Duration::from_millis(1)).as_secs_f64();
        let filled = f64::from(self.bucket.tokens) / period * now.saturating_duration_since(self.at).as_secs_f64();
        (self.missing - filled).max(0.0) + f64::from(self.told) + f64::from(self.untold)
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }
}

impl Rates {
    fn shard(&self, rate: Rate, key: &str) -> &Mutex<Shard> {
        &self.shards[self.hasher.hash_one((rate, key)) as usize % SHARDS]
    }

    pub fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> Token {
        let now = Instant::now();
        let mut shard = self.shard(rate, key).lock();
        let name: Name = (rate, key.into());
        if !shard.buckets.contains_key(&name) && !shard.make_room(now) {
            return Token::Given;
        }
        let Shard { buckets, used, .. } = &mut *shard;
        let local = buckets.entry(name).or_insert_with_key(|_| Local::new(bucket, now));
        local.bucket = bucket;
        let room = local.missing(now) + 1.0 <= f64::from(bucket.tokens);
        if !room && !local.alone {
            return Token::Refused;
        }
        if local.untold == 0 {
            used.push((rate, key.into()));
        }
        // What was taken while Redis was away is told up to what a bucket holds.
        local.untold = (local.untold + 1).min(bucket.tokens.max(1));
        if local.alone { Token::Unknown } else { Token::Given }
    }

    /// Tells Redis what was taken, and learns what is missing.
    pub async fn flush(&self, keys: &Keys, client: &Client) {
        let mut told: Vec<(Name, u32, Bucket)> = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let count = shard.used.len().min(TOLD_AT_ONCE / SHARDS);
            let used: Vec<Name> = shard.used.drain(..count).collect();
            for name in used {
                let Some(local) = shard.buckets.get_mut(&name) else {
                    continue;
                };
                let taken = std::mem::take(&mut local.untold);
                local.told = taken;
                told.push((name, taken, local.bucket));
            }
        }
        for some in told.chunks(AT_ONCE) {
            let answers = client.call_all(some.iter().map(|told| take_call(keys, told)).collect()).await;
            for ((name, taken, bucket), answer) in some.iter().zip(answers) {
                let mut shard = self.shard(name.0, &name.1).lock();
                let Shard { buckets, used, .. } = &mut *shard;
                let Some(local) = buckets.get_mut(name) else { continue };
                local.told = 0;
                local.alone = answer.is_err();
                match answer.ok().and_then(|missing| missing.as_i64()) {
                    Some(missing) => (local.missing, local.at) = (missing as f64 / 1000.0, Instant::now()),
                    None => {
                        if local.untold == 0 {
                            used.push(name.clone());
                        }
                        local.untold = (local.untold + taken).min(bucket.tokens.max(1));
                    }
                }
            }
        }
    }

    /// Buckets that are kept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().buckets.len()).sum()
    }
}

fn take_call(keys: &Keys, (name, taken, bucket): &(Name, u32, Bucket)) -> Call {
    let kind = match name.0 {
        Rate::UserConnect => "user connect",
        Rate::AddressConnect => "address connect",
        Rate::UserPublish => "user publish",
        Rate::AddressPublish => "address publish",
    };
    let key = keys.key("b", &keys.tag(&[kind, &name.1]));
    let period = bucket.period.as_millis().max(1) as i64;
    let numbers = [i64::from(*taken), i64::from(bucket.tokens.max(1)), period];
    // Not repeatable: it would be taken twice.
    Call::script(&TAKE, &[&key], numbers.map(Value::Integer))
}

impl Shard {
    fn make_room(&mut self, now: Instant) -> bool {
        if self.buckets.len() < BUCKETS {
            return true;
        }
        if self.cleared.is_none_or(|at| now.saturating_duration_since(at) >= CLEARED_EVERY) {
            self.cleared = Some(now);
            self.buckets.retain(|_, local| local.missing(now) > 0.0);
            if self.buckets.len() < BUCKETS {
                return true;
            }
        }
        let known = |(_, local): &(&Name, &Local)| local.untold == 0 && local.told == 0;
        let name = self.buckets.iter().take(LOOKED_AT).find(known).map(|(name, _)| name.clone());
        name.is_some_and(|name| self.buckets.remove(&name).is_some())
    }
}
