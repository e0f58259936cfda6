//! The domain of Plenum: channels, the hub that fans publications out, sessions of connected clients,
//! and the ports that brokers and stores plug into.
//!
//! This crate names no broker, no HTTP and no WebSocket library. A transport feeds frames into a
//! [`Session`] and writes what its [`Outbox`] holds; a broker implements [`Log`], [`Presence`] and
//! [`Control`]; the in-process implementations are in [`memory`].

mod access;
mod burst;
mod channel;
mod drain;
mod error;
mod hub;
mod idempotency;
mod limits;
mod namespace;
mod node;
mod operations;
mod outbox;
mod pattern;
mod ports;
mod position;
mod pulse;
mod recall;
mod registry;
mod resume;
mod session;
mod settings;
mod stats;
pub mod vigil;
mod wheel;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;

pub use access::{ConnectionInfo, TokenInfo};
pub use error::OperationError;
pub use limits::{CommandRates, Fallback, OnUnavailable, RateLimits, rate};
pub use namespace::*;
pub use node::{AcceptError, Link, Node, Parts, Shared};
pub use operations::{History, HistoryQuery, Publish, Published};
pub use outbox::{Outbox, OutboxLimits, Work};
pub use ports::*;
pub use position::{Epoch, Position};
pub use session::{CLOSED_BY_CLIENT, SUPERSEDED, Session};
pub use settings::*;
pub use stats::*;
