//! The log on real servers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod answers;
mod appending;
mod appending_elsewhere;
mod cluster;
mod cluster_faults;
mod conformance;
mod disturbances;
mod elections;
mod incarnations;
mod operations;
mod placement;
mod repair;
mod rules;
mod scale;
mod servers;
mod tails;
mod trimming;
mod went_back;
