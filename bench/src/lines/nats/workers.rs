//! The keyed worker pool.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Deserialize;

use crate::report::{Line, Target, number};

/// Nanoseconds and allocations of one message through the keyed worker pool, 256 workers on one thread.
#[derive(Args, Clone, Debug)]
pub struct Workers {}

#[derive(Deserialize)]
struct Outcome {
    messages: u64,
    ns: f64,
    allocations: u64,
}

impl Workers {
    /// Runs the program that counts allocations; it stands beside this one.
    pub fn measure(&self) -> Result<Vec<Line>> {
        let program = std::env::current_exe()?.with_file_name("plenum-bench-workers");
        let output = Command::new(&program).output().with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(output.status.success(), "{} ended with {}", program.display(), output.status);
        let Outcome { messages, ns, allocations } = serde_json::from_slice(&output.stdout)?;
        let each = allocations as f64 / messages as f64;
        Ok(vec![
            Line::new("message through the keyed worker pool", ns, "ns", Some(Target::AtMost(1000.0)))
                .notes(format!("{} messages, 256 workers on one thread", number(messages as f64))),
            Line::new("allocations of a message in the keyed worker pool", each, "", Some(Target::AtMost(0.0005)))
                .notes(format!("{allocations} in all, the runtime's own included")),
        ])
    }
}
