//! Token buckets of one replica, in a table of fixed size.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Bucket;

/// Buckets that share a lock, and are searched one by one.
const WAYS: usize = 8;

/// Times [`WAYS`] is the number of buckets, 1 MiB in all. Of more, the fullest of those that share a lock is forgotten.
const SETS: usize = 8192;

/// Buckets of one size, by hash. Two keys with one hash share a bucket.
pub(super) struct Buckets {
    bucket: Bucket,
    /// Nanoseconds that one token takes to fill in.
    token: u64,
    /// Nanoseconds in which an empty bucket fills.
    whole: u64,
    start: Instant,
    sets: Box<[Mutex<[Slot; WAYS]>]>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    hash: u64,
    /// When the bucket is full again, in nanoseconds since the start; it is full where that is over.
    full_at: u64,
}

impl Buckets {
    pub fn new(bucket: Bucket) -> Self {
        let whole = nanos(bucket.period.max(Duration::from_millis(1)));
        Self {
            bucket,
            token: (whole / u64::from(bucket.tokens.max(1))).max(1),
            whole,
            start: Instant::now(),
            sets: (0..SETS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Their size.
    pub fn bucket(&self) -> Bucket {
        self.bucket
    }

    /// Takes a token if there is one.
    pub fn take(&self, hash: u64) -> bool {
        let now = nanos(self.start.elapsed());
        let mut slots = self.sets[(hash >> 32) as usize % SETS].lock();
        let found = slots.iter().position(|slot| slot.hash == hash);
        let fullest = || (0..WAYS).min_by_key(|index| slots[*index].full_at).unwrap_or(0);
        let index = found.unwrap_or_else(fullest);
        let missing = if found.is_some() { slots[index].full_at.saturating_sub(now) } else { 0 };
        if missing + self.token > self.whole {
            return false;
        }
        slots[index] = Slot { hash, full_at: now + missing + self.token };
        true
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn buckets(tokens: u32, seconds: u64) -> Buckets {
        Buckets::new(Bucket { tokens, period: Duration::from_secs(seconds) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills() {
        let buckets = buckets(10, 2);
        let take = |hash| (0..40).filter(|_| buckets.take(hash)).count();
        assert_eq!((take(1), take(2)), (10, 10), "each key has its own");
        assert_eq!(take(1), 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(take(1), 5);
        advance(Duration::from_secs(60)).await;
        assert_eq!(take(1), 10, "never more than fit in");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_push_out_the_fullest_only() {
        let buckets = buckets(2, 10);
        // All in one set.
        let key = |n: u64| (7 << 32) | n;
        assert!(buckets.take(key(0)) && buckets.take(key(0)) && !buckets.take(key(0)));
        for stranger in 1..1000 {
            assert!(buckets.take(key(stranger)), "nobody is refused for want of room");
            assert!(!buckets.take(key(0)), "who came too often is remembered");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn uneven_rates_give_no_more_than_asked() {
        for tokens in [1, 3, 7, 1_000_000] {
            let buckets = buckets(tokens, 3600);
            let taken = (0..tokens + 10).filter(|_| buckets.take(5)).count();
            assert_eq!(taken, tokens as usize);
        }
    }
}
