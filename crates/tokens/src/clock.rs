//! Time as verification needs it: Unix seconds for claims, a monotonic instant for cached keys.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[derive(Clone, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    /// The system's time and so many seconds more, so that a test need not wait for an hour to pass.
    #[cfg(test)]
    Ahead(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// Whole seconds since the Unix epoch; 0 on a machine whose clock stands before it.
    pub(crate) fn unix(&self) -> u64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        match self {
            Self::System => system,
            #[cfg(test)]
            Self::Ahead(by) => system + by.load(std::sync::atomic::Ordering::SeqCst),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(test)]
            Self::Ahead(by) => {
                Instant::now() + std::time::Duration::from_secs(by.load(std::sync::atomic::Ordering::SeqCst))
            }
        }
    }
}
