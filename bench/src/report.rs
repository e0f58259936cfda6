//! The table: results beside their targets.

use std::fmt::{self, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;

/// What a result should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(most) => value <= most,
            Target::AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Target::AtMost(most) => format!("≤ {}", number(most)),
            Target::AtLeast(least) => format!("≥ {}", number(least)),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What was measured.
    pub name: String,
    /// The result.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be; none for a figure to compare with.
    pub target: Option<Target>,
    /// Whether it is; none without a target.
    pub met: Option<bool>,
    /// What else is known about it.
    pub notes: String,
    /// The command that measures this line alone.
    pub command: String,
    /// Title of the part of the table that it belongs to; empty for the first part.
    pub section: &'static str,
}

impl Line {
    /// A result, judged against its target.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, target: Option<Target>) -> Self {
        let met = target.map(|target| target.met(value));
        Self { name: name.into(), value, unit, target, met, notes: String::new(), command: String::new(), section: "" }
    }

    /// Adds what else is known.
    pub fn notes(mut self, notes: impl Into<String>) -> Self {
        self.notes = notes.into();
        self
    }

    /// The result with its unit.
    pub fn result(&self) -> String {
        format!("{} {}", number(self.value), self.unit).trim_end().to_owned()
    }

    fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        }
    }
}

/// All lines of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// The results.
    pub lines: Vec<Line>,
    /// What this machine lacks something for.
    pub skipped: Vec<Skipped>,
}

/// A part of the table that could not be measured here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Title of the part.
    pub section: &'static str,
    /// What is missing.
    pub reason: String,
}

/// Something that a measurement needs is not on this machine.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

impl Report {
    /// The table for people: under each line its command and what else is known.
    pub fn table(&self) -> String {
        let cells = |line: &Line| {
            let target = line.target.map_or(String::new(), Target::text);
            [line.name.clone(), line.result(), target, line.verdict().to_owned()]
        };
        let rows: Vec<_> = self.lines.iter().map(cells).collect();
        let widths: [usize; 4] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        let mut text = self.machine.line() + "\n\n";
        let mut section = "";
        for (row, line) in rows.iter().zip(&self.lines) {
            if line.section != section {
                section = line.section;
                // Writing to a string cannot fail.
                let _ = writeln!(text, "\n{section}\n");
            }
            let [name, result, target, verdict] = row;
            let [w0, w1, w2, _] = widths;
            let first = format!("{name:<w0$}  {result:>w1$}  {target:<w2$}  {verdict}");
            let _ = writeln!(text, "{}\n    $ {}", first.trim_end(), line.command);
            if !line.notes.is_empty() {
                let _ = writeln!(text, "    {}", line.notes);
            }
        }
        for Skipped { section, reason } in &self.skipped {
            let _ = writeln!(text, "\n{section}: skipped, {reason}");
        }
        text
    }

    /// Writes everything as JSON.
    pub fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The same figure measured several times.
#[derive(Clone, Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// At least one value.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value in the middle; 0 without values.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// Smallest and largest value, for people.
    pub fn spread(&self) -> String {
        match self.0.as_slice() {
            [first, .., last] => format!("median of {}, {} to {}", self.0.len(), number(*first), number(*last)),
            _ => "one sample".to_owned(),
        }
    }
}

/// Three digits that matter, and all digits before the point.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 {
        let digits = format!("{magnitude:.0}");
        let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
        format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
    } else if magnitude >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases = [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.5, "1.5"),
            (6.999, "7"),
            (4.256, "4.26"),
            (42.16, "42.2"),
            (421.6, "422"),
            (8000.0, "8,000"),
            (1_234_567.0, "1,234,567"),
            (-2500.0, "-2,500"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn samples() {
        let samples = Samples::new(vec![3.0, 1.0, 2.5]);
        assert_eq!((samples.median(), samples.spread()), (2.5, "median of 3, 1 to 3".to_owned()));
    }

    #[test]
    fn the_table_aligns_and_judges() {
        let mut fast = Line::new("µs a delivery", 5.25, "µs", Some(Target::AtMost(6.0)));
        fast.command = "plenum-bench deliveries".into();
        let mut slow = Line::new("rate", 7000.0, "/s", Some(Target::AtLeast(8000.0))).notes("one round");
        slow.command = "plenum-bench handshakes".into();
        let machine = Machine { cores: 2, cpu: "X".into(), kernel: "6".into(), date: "2026-01-01".into() };
        let mut log = Line::new("log", 1.0, "×", None);
        (log.section, log.command) = ("On NATS", "plenum-bench nats".into());
        let skipped = vec![Skipped { section: "Elsewhere", reason: "no go".into() }];
        let table = Report { machine, lines: vec![fast, slow, log], skipped }.table();
        let expected = "µs a delivery  5.25 µs  ≤ 6      met\n    $ plenum-bench deliveries\n\
                        rate           7,000 /s  ≥ 8,000  missed\n    $ plenum-bench handshakes\n    one round\n\nOn NATS\n\n\
                        log                 1 ×\n    $ plenum-bench nats\n\nElsewhere: skipped, no go\n";
        let expected = expected.replace("  5.25 µs", "   5.25 µs");
        assert!(table.ends_with(&expected), "{table}");
    }
}
