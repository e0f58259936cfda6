//! What is measured; each function starts a server of its own and ends it.

pub mod api;
pub mod deliveries;
pub mod floor;
pub mod handshakes;
pub mod idle;
pub mod nats;
pub mod sessions;

mod audience;

use std::path::Path;

use crate::report::Line;

/// What every measurement needs.
pub struct Context<'a> {
    /// The server's program.
    pub binary: &'a Path,
}

/// Lines that one command measured, each with that command.
pub fn with_command(mut lines: Vec<Line>, command: &str) -> Vec<Line> {
    for line in &mut lines {
        line.command = command.to_owned();
    }
    lines
}
