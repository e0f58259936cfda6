//! The log and the control bus on pooled NATS JetStream.
//!
//! The reusable part: [`pool`] (connections), [`publish`] (three ways to publish), [`subscriber`] (queue and durable
//! subscriptions), [`workers`] (keyed worker pool), [`report`] (what all of them use). `docs/nats.md` is its manual.

pub mod backup;
mod channel_token;
pub mod check;
pub mod control;
mod histogram;
pub mod ledger;
pub mod log;
mod parcel;
pub mod pool;
pub mod publish;
pub mod replicas;
pub mod report;
pub mod subscriber;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod workers;

pub use parcel::Parcel;
