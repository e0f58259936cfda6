//! A map whose entries expire.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hash;

use hashbrown::HashMap;
use tokio::time::Instant;

/// Expired entries are there until [`Expiring::take_expired`] takes them. Dates that were replaced stay in the order until
/// they pass, or until there are more of them than entries.
pub(super) struct Expiring<K, V> {
    entries: HashMap<K, (V, Instant)>,
    order: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K, V> Default for Expiring<K, V>
where
    K: Ord,
{
    fn default() -> Self {
        Self { entries: HashMap::new(), order: BinaryHeap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, V> Expiring<K, V> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub fn insert(&mut self, key: K, value: V, until: Instant) {
        self.order.push(Reverse((until, key.clone())));
        self.entries.insert(key, (value, until));
        if self.order.len() > 2 * self.entries.len() + 64 {
            self.order = self.entries.iter().map(|(key, (_, until))| Reverse((*until, key.clone()))).collect();
        }
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.entries.remove(key).map(|(value, _)| value)
    }

    /// The entry that expires first is removed.
    pub fn remove_first(&mut self) {
        while let Some(Reverse((until, key))) = self.order.pop() {
            if self.entries.get(&key).is_some_and(|(_, current)| *current == until) {
                self.entries.remove(&key);
                return;
            }
        }
    }

    /// Removes and returns what expired; costs as much as there is.
    pub fn take_expired(&mut self, now: Instant) -> Vec<(K, V)> {
        let mut taken = Vec::new();
        while let Some(Reverse((until, _))) = self.order.peek()
            && *until <= now
        {
            let Some(Reverse((until, key))) = self.order.pop() else { break };
            if self.entries.get(&key).is_some_and(|(_, current)| *current == until)
                && let Some((value, _)) = self.entries.remove(&key)
            {
                taken.push((key, value));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_newest_date_counts() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut map = Expiring::default();
        map.insert("a", 1, now + second);
        map.insert("b", 2, now + 2 * second);
        map.insert("a", 3, now + 3 * second);
        assert_eq!(map.take_expired(now + 2 * second), [("b", 2)]);
        assert_eq!((map.get("a"), map.len()), (Some(&3), 1));
        for n in 0..1000 {
            map.insert("a", n, now + (n as u32 + 4) * second);
        }
        assert!(map.order.len() < 100, "replaced dates do not pile up");
        map.insert("c", 5, now + second);
        map.remove_first();
        assert_eq!((map.get("c"), map.get("a")), (None, Some(&999)));
        assert_eq!(map.remove("a"), Some(999));
        assert!(map.take_expired(now + 10_000 * second).is_empty());
    }
}
