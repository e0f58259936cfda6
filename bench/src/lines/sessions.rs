//! Sessions that belong to the cluster: the store, presence and shared rates on a Redis Cluster, and resuming.

pub mod presence;
pub mod rates;
pub mod resume;
pub mod store;

mod servers;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::report::{Line, Samples};
use presence::Presence;
use rates::Rates;
use resume::Resume;
use store::Store;

pub use servers::end_all;

/// Title of these lines' part of the table.
pub const SECTION: &str = "Sessions on Redis Cluster";

/// Sessions on a Redis Cluster of six nodes, started and ended by this program.
#[derive(Args, Clone, Debug)]
pub struct Sessions {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Clone, Debug, Subcommand)]
enum Part {
    Store(Store),
    Presence(Presence),
    Rates(Rates),
    Resume(Resume),
}

impl Sessions {
    /// Everything there is to measure, one part each.
    pub fn everything() -> Vec<Sessions> {
        let resume = [false, true].map(|shared| Part::Resume(Resume::of(shared)));
        let rest = [Part::Store(Store::default()), Part::Presence(Presence::default()), Part::Rates(Rates::default())];
        resume.into_iter().chain(rest).map(|part| Sessions { part: Some(part) }).collect()
    }

    /// Its parts, when none was chosen.
    pub fn parts(self) -> Vec<Sessions> {
        if self.part.is_some() { vec![self] } else { Self::everything() }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let part = match &self.part {
            Some(Part::Store(what)) => what.command(),
            Some(Part::Presence(what)) => what.command(),
            Some(Part::Rates(what)) => what.command(),
            Some(Part::Resume(what)) => what.command(),
            None => String::new(),
        };
        format!("plenum-bench sessions {part}").trim_end().to_owned()
    }

    /// Measures; `binary` is the server's program.
    pub fn measure(&self, binary: &Path) -> Result<Vec<Line>> {
        let mut lines = match &self.part {
            Some(Part::Store(what)) => what.measure()?,
            Some(Part::Presence(what)) => what.measure()?,
            Some(Part::Rates(what)) => what.measure()?,
            Some(Part::Resume(what)) => what.measure(binary)?,
            None => Vec::new(),
        };
        for line in &mut lines {
            line.section = SECTION;
        }
        Ok(lines)
    }
}

/// The middle and the 99th percentile of times, in milliseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: f64| {
        let place = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    (at(0.5), at(0.99))
}

/// The middle of a figure over several rounds.
fn middle<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> Samples {
    Samples::new(rounds.iter().map(figure).collect())
}
