//! What tests break on purpose, and rules that they switch off.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Nothing is broken by default.
#[derive(Default)]
pub(crate) struct Faults {
    /// Share of live messages that are lost before they are looked at, in thousandths.
    pub lose_live: AtomicU32,
    /// Live messages lost so far.
    pub lost: AtomicU32,
    /// Ticks lead to nothing.
    pub ignore_ticks: AtomicBool,
    /// Ticks are signs of life and nothing more: what they cover stays unknown.
    pub hold_ticks: AtomicBool,
    /// A new leader leads to nothing.
    pub ignore_elections: AtomicBool,
    /// Reads take the first answer for fresh.
    pub believe_stale: AtomicBool,
    /// A message that names no known predecessor is taken for a duplicate when it names an older one.
    pub trust_trimmed: AtomicBool,
    /// So many of the next acknowledgements are not heard.
    pub deafen: AtomicU32,
    /// So many of the next appends find nobody: 503.
    pub misroute: AtomicU32,
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
    /// No server is left because it takes no appends.
    pub stay: AtomicBool,
