//! The command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::lines::api::Api;
use crate::lines::deliveries::{Deliveries, Publisher};
use crate::lines::floor::Floor;
use crate::lines::handshakes::{Auth, Handshakes};
use crate::lines::idle::{Channels, Idle};
use crate::lines::nats::Nats;
use crate::lines::sessions::Sessions;
use crate::lines::{Context, nats, sessions, with_command};
use crate::machine::Machine;
use crate::report::{Line, Report, Skipped, Unavailable};

/// Measures `plenum serve` from outside, on loopback: CPU, memory and rates, each beside its target.
#[derive(Debug, Parser)]
#[command(name = "plenum-bench")]
pub struct Arguments {
    /// The server's program. Default: `plenum` beside this one.
    #[arg(long, global = true)]
    server: Option<PathBuf>,
    /// Also writes the results to this file.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

/// What to measure; without a word, everything.
#[derive(Clone, Debug, Subcommand)]
enum What {
    Deliveries(Deliveries),
    Idle(Idle),
    Handshakes(Handshakes),
    Api(Api),
    Floor(Floor),
    Nats(Nats),
    Sessions(Sessions),
}

impl What {
    fn everything() -> Vec<What> {
        let bursts = [1, 8, 32];
        let floor = bursts.map(|burst| What::Floor(Floor::of(burst)));
        let deliveries = [Publisher::Websocket, Publisher::Api]
            .into_iter()
            .flat_map(|publisher| bursts.map(|burst| What::Deliveries(Deliveries::of(burst, publisher))));
        let history = bursts
            .map(|burst| What::Deliveries(Deliveries { history: true, ..Deliveries::of(burst, Publisher::Websocket) }));
        let idle = [Channels::One, Channels::Each]
            .map(|channels| What::Idle(Idle { connections: 10_000, channels, seconds: 75 }));
        let handshakes = [Auth::None, Auth::Hmac].map(|auth| What::Handshakes(Handshakes::of(auth)));
        let api = [(1, 1), (8, 1), (64, 1), (8, 100)].map(|(concurrent, batch)| What::Api(Api::of(concurrent, batch)));
        let nats = Nats::everything().into_iter().map(What::Nats);
        let sessions = Sessions::everything().into_iter().map(What::Sessions);
        floor
            .into_iter()
            .chain(deliveries)
            .chain(history)
            .chain(idle)
            .chain(handshakes)
            .chain(api)
            .chain(nats)
            .chain(sessions)
            .collect()
    }

    /// The part of the table that is left out where something is missing for it.
    fn section(&self) -> &'static str {
        match self {
            What::Nats(_) => nats::SECTION,
            What::Sessions(_) => sessions::SECTION,
            _ => "",
        }
    }

    fn measure(&self, context: &Context<'_>) -> Result<Vec<Line>> {
        let (lines, command) = match self {
            What::Deliveries(what) => (what.measure(context), what.command()),
            What::Idle(what) => (what.measure(context), what.command()),
            What::Handshakes(what) => (what.measure(context), what.command()),
            What::Api(what) => (what.measure(context), what.command()),
            What::Floor(what) => (what.measure(), what.command()),
            What::Nats(what) => (what.measure(context.binary), what.command()),
            What::Sessions(what) => (what.measure(context.binary), what.command()),
        };
        Ok(with_command(lines.with_context(|| command.clone())?, &command))
    }
}

impl Arguments {
    /// Measures what is asked for and prints the table. Progress goes to standard error.
    ///
    /// # Errors
    /// Something could not be measured; what could be is printed all the same.
    pub fn run(self) -> Result<()> {
        let binary = match self.server {
            Some(path) => path,
            None => std::env::current_exe()?.with_file_name("plenum"),
        };
        let context = Context { binary: &binary };
        let work = match self.what {
            None => What::everything(),
            Some(What::Nats(nats)) => nats.parts().into_iter().map(What::Nats).collect(),
            Some(What::Sessions(sessions)) => sessions.parts().into_iter().map(What::Sessions).collect(),
            Some(what) => vec![what],
        };
        let mut report = Report { machine: Machine::here(), lines: Vec::new(), skipped: Vec::new() };
        let mut failures = 0;
        for what in &work {
            match what.measure(&context) {
                Ok(lines) => {
                    for line in &lines {
                        eprintln!("{}: {}", line.name, line.result());
                    }
                    report.lines.extend(lines);
                }
                Err(error) if error.is::<Unavailable>() => {
                    eprintln!("skipped: {error:#}");
                    let skipped = Skipped { section: what.section(), reason: error.root_cause().to_string() };
                    if !report.skipped.contains(&skipped) {
                        report.skipped.push(skipped);
                    }
                }
                Err(error) => {
                    failures += 1;
                    eprintln!("{error:#}");
                }
            }
        }
        if report.lines.is_empty() && report.skipped.is_empty() && failures == 0 {
            // The part of a measurement that this program started itself.
            return Ok(());
        }
        eprintln!();
        print!("{}", report.table());
        if let Some(file) = &self.json {
            report.write_json(file)?;
        }
        ensure!(failures == 0, "{failures} of {} measurements failed", work.len());
        Ok(())
    }
}
