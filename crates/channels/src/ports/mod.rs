//! What the domain needs from the outside, with the guarantees it builds on.
//!
//! Each port has one conformance suite (feature `conformance`) that every implementation passes.

mod control;
mod log;
mod presence;
mod tokens;

pub use control::*;
pub use log::*;
pub use presence::*;
pub use tokens::*;
