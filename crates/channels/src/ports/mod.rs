//! What the domain needs from the outside, with the guarantees it builds on.
//!
//! Each port has one conformance suite (feature `conformance`) that every implementation passes.

mod control;
mod copies;
mod ledger;
mod log;
mod presence;
mod quotas;
mod replicas;
mod results;
mod sessions;
mod tails;
mod tokens;

pub use control::*;
pub use copies::*;
pub use ledger::*;
pub use log::*;
pub use presence::*;
pub use quotas::*;
pub use replicas::*;
pub use results::*;
pub use sessions::*;
pub use tails::*;
pub use tokens::*;
