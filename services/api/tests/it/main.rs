//! The API on a real node with the in-process log, presence and control.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]

mod batch;
mod body;
mod client;
mod control;
mod fixture;
mod health;
mod methods;
mod orders;
mod queued;
mod server;
mod stats;
