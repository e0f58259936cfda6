//! Publishes through the server API.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::Context;
use super::audience::payload;
use crate::http::{Caller, load, request};
use crate::report::{Line, number};
use crate::server::{Server, WITH_HISTORY, micros};

/// Publishes per second through the API, over kept connections, into channels that nobody is subscribed to.
#[derive(Args, Clone, Debug)]
pub struct Api {
    /// Connections, each with one request under way and a channel of its own.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub concurrent: u64,
    /// Publishes in one request; more than 1 is a batch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub batch: u64,
    /// Publishes in all, rounded up to whole requests. Default: 100,000, in batches 2,000,000.
    #[arg(long)]
    pub publishes: Option<u64>,
    /// The channels keep history.
    #[arg(long)]
    pub history: bool,
}

impl Api {
    /// With so many connections and publishes in a request, everything else as it is by default.
    pub fn of(concurrent: u64, batch: u64) -> Self {
        Self { concurrent, batch, publishes: None, history: false }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let mut command = format!("plenum-bench api --concurrent {} --batch {}", self.concurrent, self.batch);
        if let Some(publishes) = self.publishes {
            command += &format!(" --publishes {publishes}");
        }
        if self.history {
            command += " --history";
        }
        command
    }

    /// Measures.
    pub fn measure(&self, context: &Context<'_>) -> Result<Vec<Line>> {
        let server = Server::start(context.binary)?;
        let publishes = self.publishes.unwrap_or(if self.batch == 1 { 100_000 } else { 2_000_000 });
        let requests = publishes.div_ceil(self.batch).max(self.concurrent);
        let each = || (0..self.concurrent).map(|index| self.request(&server, index)).collect::<Vec<_>>();
        Caller::new(server.address())?.send(&each()[0])?;
        let limit = Duration::from_secs(120);
        load(server.address(), each(), requests.div_ceil(10), limit)?;
        let before = server.cpu()?;
        let load = load(server.address(), each(), requests, limit)?;
        let cpu = micros(server.cpu()?.since(&before));
        ensure!(load.commands == requests * self.batch, "{} publishes carried out", load.commands);
        let count = load.commands as f64;
        let connections = if self.concurrent == 1 { "connection" } else { "connections" };
        let batches = if self.batch == 1 { String::new() } else { format!(", batches of {}", self.batch) };
        let how = format!("{} {connections}{batches}", self.concurrent);
        let history = if self.history { ", with history" } else { "" };
        let notes = format!("{} in {:.1} s, 128 bytes, no subscribers", number(count), load.time.as_secs_f64());
        Ok(vec![
            Line::new(format!("API publishes, {how}{history}"), count / load.time.as_secs_f64(), "/s", None)
                .notes(notes),
            Line::new(format!("API publish, {how}{history}"), cpu / count, "µs CPU", None),
        ])
    }

    fn request(&self, server: &Server, index: u64) -> Vec<u8> {
        let data = payload(index, 128);
        let data = String::from_utf8_lossy(&data);
        let namespace = if self.history { format!("{WITH_HISTORY}:") } else { String::new() };
        let publish = format!(r#"{{"channel":"{namespace}bench-{index}","data":{data}}}"#);
        if self.batch == 1 {
            return request(server.address(), "publish", &publish);
        }
        let commands = vec![format!(r#"{{"publish":{publish}}}"#); self.batch as usize];
        request(server.address(), "batch", &format!(r#"{{"commands":[{}]}}"#, commands.join(",")))
    }
}
