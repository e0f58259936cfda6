//! The log on NATS, beside the bare client and the NATS project's Go client.

pub mod channels;
pub mod latency;
pub mod publish;
pub mod recovery;
pub mod ticks;
pub mod workers;

mod load;
mod servers;

use std::path::Path;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::report::{Line, Samples};
use channels::Channels;
use latency::Latency;
use publish::{Publish, Sync};
use recovery::Recovery;
use ticks::Ticks;
use workers::Workers;

pub use servers::{Servers, end_all};

/// Title of these lines' part of the table.
pub const SECTION: &str = "On NATS JetStream";

/// The log on NATS: servers are started and ended by this program.
#[derive(Args, Clone, Debug)]
pub struct Nats {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Clone, Debug, Subcommand)]
enum Part {
    Publish(Publish),
    Latency(Latency),
    Channels(Channels),
    Recovery(Recovery),
    Ticks(Ticks),
    Workers(Workers),
}

impl Nats {
    /// Everything there is to measure, one part each.
    pub fn everything() -> Vec<Nats> {
        let publish = [1, 3].map(|replicas| Part::Publish(Publish::of(replicas, Sync::Default)));
        let synced = [1, 3].map(|replicas| Part::Publish(Publish::of(replicas, Sync::Always)));
        let latency = [1, 3].map(|replicas| Part::Latency(Latency::of(replicas)));
        let rest = [
            Part::Channels(Channels::default()),
            Part::Ticks(Ticks::default()),
            Part::Recovery(Recovery::default()),
            Part::Workers(Workers {}),
        ];
        let parts = publish.into_iter().chain(synced).chain(latency).chain(rest);
        parts.map(|part| Nats { part: Some(part) }).collect()
    }

    /// Its parts, when none was chosen.
    pub fn parts(self) -> Vec<Nats> {
        if self.part.is_some() { vec![self] } else { Self::everything() }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let part = match &self.part {
            Some(Part::Publish(what)) => what.command(),
            Some(Part::Latency(what)) => what.command(),
            Some(Part::Channels(what)) => what.command(),
            Some(Part::Recovery(what)) => what.command(),
            Some(Part::Ticks(what)) => what.command(),
            Some(Part::Workers(_)) => "workers".to_owned(),
            None => String::new(),
        };
        format!("plenum-bench nats {part}").trim_end().to_owned()
    }

    /// Measures; `binary` is the server's program.
    pub fn measure(&self, binary: &Path) -> Result<Vec<Line>> {
        let mut lines = match &self.part {
            Some(Part::Publish(what)) => what.measure()?,
            Some(Part::Latency(what)) => what.measure()?,
            Some(Part::Channels(what)) => what.measure()?,
            Some(Part::Recovery(what)) => what.measure(binary)?,
            Some(Part::Ticks(what)) => what.measure()?,
            Some(Part::Workers(what)) => what.measure()?,
            None => Vec::new(),
        };
        for line in &mut lines {
            line.section = SECTION;
        }
        Ok(lines)
    }
}

/// A runtime as the server has it: a thread for each CPU.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// The middle of a figure over several outcomes.
fn middle<T>(outcomes: &[T], figure: impl Fn(&T) -> f64) -> Samples {
    Samples::new(outcomes.iter().map(figure).collect())
}
