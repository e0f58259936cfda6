//! Measures `plenum serve` from outside and prints a table: what, result, target, and the command for that line alone.
//!
//! The server runs in its own process; CPU time and memory are the kernel's figures for that process. Clients are
//! sockets of this process on loopback, driven by one thread.

mod cli;
mod http;
mod lines;
mod machine;
mod process;
mod report;
mod server;
mod swarm;
mod websocket;

use clap::Parser;

/// As in the server, whose log runs in this process when it is compared.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    server::stop_on_signals()?;
    cli::Arguments::parse().run()
}
