//! Which idempotency keys were seen, and what became of them.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashMap;

use crate::IdempotencyKey;

/// A key of one channel as two independent, secretly keyed 64-bit hashes: nobody can make two keys meet, and chance
/// needs about 2^64 keys within one window.
pub(crate) type KeyId = (u64, u64);

/// First results by key, for a window of time and a number of keys.
pub(crate) struct Idempotency {
    hashers: (RandomState, RandomState),
    offsets: HashMap<KeyId, u64>,
    order: VecDeque<(u64, KeyId)>,
    window_ms: u64,
    max: usize,
}

impl Idempotency {
    /// Remembers keys for `window_ms`, at most `max` of them: beyond that the oldest are forgotten early.
    pub fn new(window_ms: u64, max: usize) -> Self {
        let hashers = (RandomState::new(), RandomState::new());
        Self { hashers, offsets: HashMap::new(), order: VecDeque::new(), window_ms, max: max.max(1) }
    }

    pub fn id(&self, channel: &str, key: &IdempotencyKey) -> KeyId {
        let hash = |hasher: &RandomState| {
            hasher.hash_one(HashedKey { channel, scope: key.scope.as_str(), key: key.key.as_str() })
        };
        (hash(&self.hashers.0), hash(&self.hashers.1))
    }

    /// The offset of the first append with this key.
    pub fn get(&mut self, id: KeyId, now_ms: u64) -> Option<u64> {
        self.forget_old(now_ms);
        self.offsets.get(&id).copied()
    }

    pub fn insert(&mut self, id: KeyId, offset: u64, now_ms: u64) {
        if self.order.len() >= self.max
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.offsets.remove(&oldest);
        }
        self.offsets.insert(id, offset);
        self.order.push_back((now_ms + self.window_ms, id));
    }

    /// Forgets a key whose publication did not happen.
    pub fn remove(&mut self, id: KeyId) {
        self.offsets.remove(&id);
        self.order.retain(|(_, known)| *known != id);
    }

    /// Frees what is older than the window; costs as much as there is to free.
    pub fn forget_old(&mut self, now_ms: u64) {
        while let Some(&(until, id)) = self.order.front()
            && until <= now_ms
        {
            self.order.pop_front();
            self.offsets.remove(&id);
        }
    }

    /// When the oldest key leaves the window, rounded up to a second.
    pub fn next_ms(&self) -> Option<u64> {
        self.order.front().map(|(until, _)| until.next_multiple_of(1000))
    }
}

/// Strings hash with a terminator each, so their boundaries count.
#[derive(Hash)]
struct HashedKey<'a> {
    channel: &'a str,
    scope: &'a str,
    key: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(scope: &str, key: &str) -> IdempotencyKey {
        IdempotencyKey { scope: scope.into(), key: key.into() }
    }

    #[test]
    fn scope_channel_and_key_are_kept_apart() {
        let seen = Idempotency::new(1000, 10);
        let id = seen.id("news", &key("api", "k1"));
        assert_eq!(id, seen.id("news", &key("api", "k1")));
        for other in
            [seen.id("new", &key("sapi", "k1")), seen.id("news", &key("apik", "1")), seen.id("n", &key("", ""))]
        {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn keys_leave_with_the_window_and_at_the_bound() {
        let mut seen = Idempotency::new(1000, 2);
        seen.insert((1, 1), 5, 0);
        assert_eq!((seen.get((1, 1), 999), seen.get((1, 1), 1000)), (Some(5), None));
        for n in 2..5 {
            seen.insert((n, n), n, 2000);
        }
        assert_eq!((seen.get((2, 2), 2000), seen.get((3, 3), 2000), seen.get((4, 4), 2000)), (None, Some(3), Some(4)));
        assert_eq!(seen.offsets.len(), 2);
    }
}
