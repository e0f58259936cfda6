//! Memory and CPU time of connections on which nothing happens but pings.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::Context;
use crate::process::open_files_limit;
use crate::report::{Line, Target, number};
use crate::server::Server;
use crate::swarm::{Greeting, Quiet, Swarm};

/// How long memory may take to come to rest, and how long it must have been at rest.
const SETTLE_MOST: Duration = Duration::from_secs(40);
const SETTLE_LEAST: Duration = Duration::from_secs(12);
/// A change below this part of the whole in a second is rest.
const REST: f64 = 0.002;

/// What the connections subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Channels {
    /// One channel for all.
    One,
    /// A channel for each.
    Each,
}

/// Resident bytes and CPU time per idle connection with one subscription; pings are on and answered.
#[derive(Args, Clone, Debug)]
pub struct Idle {
    /// Connections.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=18_000))]
    pub connections: u64,
    /// One channel for all connections, or one for each.
    #[arg(long, value_enum, default_value_t = Channels::One)]
    pub channels: Channels,
    /// Seconds of CPU time to watch; whole ping intervals (25 s) give the fairest figure. 0: memory only.
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub seconds: u64,
}

impl Idle {
    /// The command that measures this.
    pub fn command(&self) -> String {
        let channels = match self.channels {
            Channels::One => "one",
            Channels::Each => "each",
        };
        let Self { connections, seconds, .. } = self;
        format!("plenum-bench idle --connections {connections} --channels {channels} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self, context: &Context<'_>) -> Result<Vec<Line>> {
        let needed = self.connections + 100;
        let limit = open_files_limit()?;
        ensure!(limit >= needed, "the limit of open files is {limit}; {needed} are needed (ulimit -n {needed})");
        let server = Server::start(context.binary)?;
        let alone = server.idle_cpu(Duration::from_secs(5), |time| {
            std::thread::sleep(time);
            Ok(())
        })?;
        let empty = server.memory()?;
        let mut swarm = Swarm::new(server.address())?;
        let count = usize::try_from(self.connections)?;
        let channels = self.channels;
        let channel = |index: usize| match channels {
            Channels::One => "bench".to_owned(),
            Channels::Each => format!("bench-{index:05}"),
        };
        let greetings: Result<Vec<_>> = (0..count).map(|index| Greeting::new("", Some(&channel(index)))).collect();
        let mut greetings = greetings?.into_iter();
        let fallback = Greeting::new("", None)?;
        let next = |_| greetings.next().unwrap_or_else(|| fallback.clone());
        swarm.open(count, 64, Duration::from_secs(120), next, &mut Quiet)?;
        let full = settle(&server, &mut swarm)?;
        let bytes = (full - empty as f64) / self.connections as f64;
        let each = match self.channels {
            Channels::One => "one channel",
            Channels::Each => "a channel each",
        };
        let connections = number(self.connections as f64);
        let name = format!("memory of an idle connection, {connections}, {each}");
        let notes = format!(
            "resident user memory (RssAnon): {} KB before, {} KB with all connected and at rest",
            number(empty as f64 / 1000.0),
            number(full / 1000.0)
        );
        let mut lines = vec![Line::new(name, bytes, "bytes", Some(Target::AtMost(2500.0))).notes(notes)];
        if self.seconds > 0 {
            let pings = swarm.tally().pings;
            let watch = Duration::from_secs(self.seconds);
            let cpu = server.idle_cpu(watch, |time| swarm.stay(time, &mut Quiet))?;
            let pings = swarm.tally().pings - pings;
            let name = format!("CPU of an idle connection, {connections}, {each}");
            let notes = format!(
                "over {} s with {} pings answered; server without connections: {} µs CPU a second in all",
                self.seconds,
                number(pings as f64),
                number(alone)
            );
            let value = cpu / self.connections as f64;
            lines.push(Line::new(name, value, "µs CPU/s", Some(Target::AtMost(1.0))).notes(notes));
        }
        Ok(lines)
    }
}

/// Waits until the server's memory is at rest, and gives it in bytes.
fn settle(server: &Server, swarm: &mut Swarm) -> Result<f64> {
    let start = Instant::now();
    let mut before = server.memory()? as f64;
    loop {
        swarm.stay(Duration::from_secs(1), &mut Quiet)?;
        let now = server.memory()? as f64;
        let resting = (now - before).abs() < now * REST && start.elapsed() >= SETTLE_LEAST;
        if resting || start.elapsed() >= SETTLE_MOST {
            return Ok(now);
        }
        before = now;
    }
}
