//! What tests break on purpose, and rules that they switch off.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::RwLock;

thread_local! {
    /// The first value of a header counts instead of the last. Counts on one thread, so a test that uses it has a
    /// runtime of one thread.
    pub(crate) static FIRST_HEADER: Cell<bool> = const { Cell::new(false) };
    /// An answer of many messages is taken for whole although some are missing; by thread likewise.
    pub(crate) static BELIEVE_PARTS: Cell<bool> = const { Cell::new(false) };
}

/// Nothing is broken by default.
#[derive(Default)]
pub(crate) struct Faults {
    /// Share of live messages that are lost before they are looked at, in thousandths.
    pub lose_live: AtomicU32,
    /// Live messages lost so far.
    pub lost: AtomicU32,
    /// What a join read counts also when the shard is another stream by then.
    pub trust_joins: AtomicBool,
    /// Joins wait with what they have read while a test holds this.
    pub before_joined: RwLock<()>,
    /// Joins that came so far.
    pub joins: AtomicU32,
    /// Ticks lead to nothing.
    pub ignore_ticks: AtomicBool,
    /// Ticks are signs of life and nothing more: what they cover stays unknown.
    pub hold_ticks: AtomicBool,
    /// What a live tick says has always been read before, as over a slow connection.
    pub read_ticks_first: AtomicBool,
    /// A remembered tail is believed without a look at what the stream still holds.
    pub trust_tails: AtomicBool,
    /// A new leader leads to nothing.
    pub ignore_elections: AtomicBool,
    /// A reconnect and a slow consumer lead to nothing.
    pub ignore_disturbances: AtomicBool,
    /// Changed settings of streams are overlooked.
    pub trust_settings: AtomicBool,
    /// What the cluster's record says about shards and namespaces is overlooked.
    pub ignore_layout: AtomicBool,
    /// The stream that goes back is taken for the same.
    pub ignore_regress: AtomicBool,
    /// Recovery starts behind what this replica delivered last, whatever the client says.
    pub hold_positions: AtomicBool,
    /// The front is looked at before a range is read, not after it.
    pub front_first: AtomicBool,
    /// Reads of a part of a range wait while a test holds this.
    pub before_part: RwLock<()>,
    /// Parts that were read, or wait for that.
    pub parts: AtomicU32,
    /// A part of a range that does not begin with what it follows is taken for complete.
    pub trust_parts: AtomicBool,
    /// Entries count however late they were stored.
    pub count_late: AtomicBool,
    /// Entries are void this many milliseconds after their first attempt; 0 for as long as in production.
    pub void_after_ms: AtomicU64,
    /// For new streams, how long they remember ids.
    pub duplicate_window: Mutex<Option<Duration>>,
    /// Markers of removed histories are not read.
    pub ignore_markers: AtomicBool,
    /// Idempotency keys are used as they are, without their channel.
    pub bare_keys: AtomicBool,
    /// "Duplicate" is taken for an acknowledgement without a look at the entry.
    pub trust_duplicates: AtomicBool,
    /// A refused condition is taken for a conflict without a look at what made it false.
    pub believe_refusals: AtomicBool,
    /// "Never published" is believed of a channel of which nothing is left.
    pub believe_empty: AtomicBool,
    /// Reads take the first answer for fresh.
    pub believe_stale: AtomicBool,
    /// A message that names no known predecessor is taken for a duplicate when it names an older one.
    pub trust_trimmed: AtomicBool,
    /// So many of the next acknowledgements are not heard.
    pub deafen: AtomicU32,
    /// So many of the next appends find nobody: 503.
    pub misroute: AtomicU32,
    /// Acknowledgements of sequences that were given out before count.
    pub believe_old: AtomicBool,
    /// No server is left because it takes no appends or brings no ticks.
    pub stay: AtomicBool,
    /// An append that was overtaken is tried again like any other.
    pub retry_overtaken: AtomicBool,
}

impl Faults {
    pub fn loses_this(&self) -> bool {
        let loses = rand::random_range(0..1000) < self.lose_live.load(Ordering::SeqCst);
        self.lost.fetch_add(u32::from(loses), Ordering::SeqCst);
        loses
    }

    /// Takes one of a number of faults, if there is one left.
    pub fn take(count: &AtomicU32) -> bool {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
    }

    pub fn on(switch: &AtomicBool) -> bool {
        switch.load(Ordering::SeqCst)
    }
}
