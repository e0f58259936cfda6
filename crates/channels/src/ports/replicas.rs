//! Which replicas are alive, as this one judges by its own monotonic clock.

use std::sync::Arc;

use hashbrown::HashMap;

/// One life of a replica: a pause that others must have taken for its death begins another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation {
    /// Random number of the process's run.
    pub replica: u64,
    /// Counts up from 1.
    pub generation: u32,
}

/// What this replica knows of all.
#[derive(Clone, Debug)]
pub struct Census {
    /// This replica.
    pub own: Incarnation,
    /// Generation of every replica whose heartbeat changed within the last 4 s, as far as this one heard itself; those
    /// that counted when it became deaf stay. This one included until it resigns.
    pub alive: Arc<HashMap<u64, u32>>,
    /// False while this replica hears not even itself, or has listened for less than 4 s: it must not take anybody for gone.
    pub judging: bool,
}

impl Census {
    /// Whether entries of this incarnation count.
    pub fn counts(&self, incarnation: Incarnation) -> bool {
        self.alive.get(&incarnation.replica) == Some(&incarnation.generation)
    }
}

/// Heartbeats: each replica sends (replica, generation, counter) twice a second, and each reader judges by its own
/// monotonic clock. A replica that did not hear itself for 3 s takes a new generation before it acts again.
pub trait Replicas: Send + Sync + 'static {
    /// The newest view; costs a pointer's copy.
    fn census(&self) -> Arc<Census>;

    /// Takes another generation: others gave up what this replica made under the present one.
    fn begin_anew(&self);

    /// Says that this replica leaves: others stop counting it at once.
    fn resign(&self);
}
