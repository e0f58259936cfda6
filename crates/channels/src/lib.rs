//! The domain of Plenum: channels, the hub that fans publications out, sessions of connected clients,
//! and the ports that brokers and stores plug into.
//!
//! This crate names no broker, no HTTP and no WebSocket library. A transport feeds frames into a
//! [`Session`] and writes what its [`Outbox`] holds; a broker implements [`Log`], [`Presence`] and
//! [`Control`]; the in-process implementations are in [`memory`].

mod namespace;
mod outbox;
mod ports;
mod position;
mod settings;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;

pub use namespace::*;
pub use outbox::{Outbox, OutboxLimits, Work};
pub use ports::*;
pub use position::{Epoch, Position};
pub use settings::*;
