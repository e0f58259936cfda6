//! In-process implementations of the ports, shared by several replicas of one process where a test wants that.

mod control;
mod copies;
mod expiring;
mod expiry;
mod ledger;
mod log;
mod presence;
mod quotas;
mod replicas;
mod results;
mod room;
mod sessions;
mod shard;
mod slab;
mod store;
mod tails;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use control::{ControlBus, MemoryControl};
pub use copies::MemoryCopies;
pub use ledger::MemoryLedger;
pub use log::{MemoryBroker, MemoryConfig, MemoryLog};
pub use presence::{MemoryPresence, PresenceStore};
pub use quotas::{MemoryQuotas, QuotaStore};
pub use replicas::{MemoryReplicas, ReplicaBus, SoleReplica};
pub use results::MemoryResults;
pub use sessions::MemorySessions;
pub use tails::MemoryTails;
