//! When channels have something to forget.

use std::collections::BTreeMap;

/// Deadlines further away than this are looked at again then: entries that became void do not pile up for longer.
const HORIZON_TICKS: u32 = 3600;

/// A coarse schedule of channel ids: one bucket a second, so that a sweep costs as much as what is due.
///
/// Deadlines are checked exactly whenever a channel is touched; the schedule only sees to it that memory is freed. An
/// entry is void when its channel was scheduled again since: the caller compares ticks.
#[derive(Default)]
pub(super) struct Expiry {
    buckets: BTreeMap<u32, Vec<u32>>,
}

impl Expiry {
    /// The tick (seconds since start, never 0) in which something that is due at `due_ms` is looked at.
    pub fn tick(due_ms: u64, now_ms: u64) -> u32 {
        let tick = |ms: u64| u32::try_from(ms / 1000 + 1).unwrap_or(u32::MAX);
        tick(due_ms).min(tick(now_ms).saturating_add(HORIZON_TICKS))
    }

    pub fn insert(&mut self, tick: u32, channel: u32) {
        self.buckets.entry(tick).or_default().push(channel);
    }

    /// When the next bucket is due, in milliseconds since start.
    pub fn next_ms(&self) -> Option<u64> {
        self.buckets.first_key_value().map(|(&tick, _)| u64::from(tick) * 1000)
    }

    /// Takes one due channel and the tick it was scheduled for.
    pub fn pop(&mut self, now_ms: u64) -> Option<(u32, u32)> {
        let mut bucket = self.buckets.first_entry()?;
        let tick = *bucket.key();
        if u64::from(tick) * 1000 > now_ms {
            return None;
        }
        match bucket.get_mut().pop() {
            Some(channel) => Some((tick, channel)),
            None => {
                bucket.remove();
                self.pop(now_ms)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_come_due_in_order_and_not_early() {
        let mut expiry = Expiry::default();
        for (due, channel) in [(2500, 1), (900, 2), (2100, 3), (86_400_000, 4)] {
            expiry.insert(Expiry::tick(due, 0), channel);
        }
        assert_eq!(expiry.next_ms(), Some(1000));
        assert_eq!(expiry.pop(999), None);
        assert_eq!(expiry.pop(1000), Some((1, 2)));
        assert_eq!(expiry.pop(2999), None);
        assert_eq!((expiry.pop(3000), expiry.pop(3000)), (Some((3, 3)), Some((3, 1))));
        assert_eq!(expiry.pop(3000), None);
        assert_eq!(expiry.pop(3_601_000), Some((3601, 4)), "beyond the horizon: looked at again after an hour");
    }
}
