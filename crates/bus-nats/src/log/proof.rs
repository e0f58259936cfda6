//! What a fresh read of a channel's end proves, as pure functions.

use std::time::Duration;

use plenum_channels::Retention;

use super::shard::CLOCK_MARGIN_MS;

/// A channel's end as one fresh answer shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Sequence of the last publication; `None` when the stream holds none of the channel.
    pub last: Option<u64>,
    /// When that was stored.
    pub newest_ms: u64,
    /// Everything below this sequence was removed by a marker; 0 for none.
    pub hidden: u64,
    /// Highest trimmed sequence of the stream; only known when `last` is `None`.
    pub front: u64,
    /// Last sequence of the stream at the server that answered.
    pub stream_last: u64,
    /// The stream's time; 0 for unknown.
    pub now_ms: u64,
}

impl End {
    /// The channel's last position. Where nothing is left of the channel it is the front: what was there is not
    /// beyond it.
    pub fn top(&self) -> u64 {
        self.last.unwrap_or(self.front)
    }

    /// Whether a position is complete with nothing behind it (`Some(true)`), is none of this channel
    /// (`Some(false)`), or must be read on from (`None`).
    pub fn settles(&self, position: u64) -> Option<bool> {
        match self.last {
            Some(last) if position == last => Some(true),
            Some(last) if position > last => Some(false),
            Some(_) => None,
            // Whatever the channel had lies at or before the front; or before that of another server, whose clock is ahead,
            // which the reader has to exclude.
            None => Some(position >= self.front && position <= self.stream_last),
        }
    }

    /// Whether readers with this retention see anything at all.
    pub fn shows(&self, retention: &Retention) -> bool {
        let Some(last) = self.last else { return false };
        let expired = self.now_ms >= self.newest_ms.saturating_add(millis(retention.ttl));
        retention.keeps_history() && !expired && last > self.hidden
    }
}

/// Whether no server can have trimmed an entry of this age yet. Servers trim by their own clocks: what is about to go on one
/// may be gone on the one that answered.
pub(super) fn is_out_of_reach(age_ms: u64, max_age_ms: u64) -> bool {
    age_ms.saturating_add(CLOCK_MARGIN_MS) < max_age_ms
}

/// Rounded up, so that a short time is not none.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_positions_up_to_the_top_are_complete() {
        let end = End { last: Some(50), front: 0, stream_last: 60, ..End::default() };
        assert_eq!(
            [0, 49, 50, 51, 60, u64::MAX].map(|position| end.settles(position)),
            [None, None, Some(true), Some(false), Some(false), Some(false)]
        );
    }

    #[test]
    fn nothing_left_proves_something_only_behind_the_front() {
        let end = End { last: None, front: 30, stream_last: 60, ..End::default() };
        for (position, complete) in [(0, false), (29, false), (30, true), (60, true), (61, false)] {
            assert_eq!(end.settles(position), Some(complete), "{position}");
        }
        assert_eq!(end.top(), 30);
        let fresh = End { last: None, front: 0, stream_last: 1, ..End::default() };
        assert_eq!((fresh.settles(0), fresh.top()), (Some(true), 0));
    }

    /// The server that was asked for a range is ahead of the one that says where the front is, and has trimmed what that
    /// one still has.
    #[test]
    fn clocks_that_differ_by_a_minute_hide_no_loss() {
        const MAX_AGE_MS: u64 = 600_000;
        const NOW_MS: u64 = 1_790_000_000_000;
        let (mut believed_without_the_margin, mut proven) = (0, 0);
        for ahead_ms in (0..=CLOCK_MARGIN_MS).step_by(1_000) {
            for age_ms in (0..=MAX_AGE_MS).step_by(1_000) {
                let stored_ms = NOW_MS - age_ms;
                let still_here = NOW_MS - stored_ms < MAX_AGE_MS;
                let gone_there = NOW_MS + ahead_ms - stored_ms >= MAX_AGE_MS;
                let hidden = still_here && gone_there;
                believed_without_the_margin += usize::from(hidden);
                assert!(!(hidden && is_out_of_reach(age_ms, MAX_AGE_MS)), "{ahead_ms} ahead, {age_ms} old");
                proven += usize::from(is_out_of_reach(age_ms, MAX_AGE_MS));
            }
        }
        assert!(believed_without_the_margin > 1_000 && proven > 10_000);
        assert!(!is_out_of_reach(u64::MAX, MAX_AGE_MS));
    }

    #[test]
    fn expired_removed_and_unkept_history_is_not_shown() {
        let keep = Retention { size: 10, ttl: Duration::from_millis(100), meta_ttl: Duration::from_secs(1) };
        let end = End { last: Some(50), newest_ms: 1000, now_ms: 1099, ..End::default() };
        assert!(end.shows(&keep));
        assert!(!End { now_ms: 1100, ..end.clone() }.shows(&keep));
        assert!(!End { hidden: 51, ..end.clone() }.shows(&keep));
        assert!(End { hidden: 49, ..end.clone() }.shows(&keep));
        assert!(!End { last: None, ..end.clone() }.shows(&keep));
        assert!(!end.shows(&Retention::NONE));
    }
}
