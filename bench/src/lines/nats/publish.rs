//! Acknowledged publishes a second.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::load::{Outcome, Pace, WINDOW, Who, load};
use super::servers::Servers;
use super::{middle, runtime};
use crate::process::CpuTime;
use crate::report::{Line, Target, Unavailable, number};

/// When the servers write to the disk for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sync {
    /// As nats-server does by default: every two minutes.
    Default,
    /// Before each acknowledgement (`sync_interval: always`).
    Always,
}

/// Acknowledged publishes a second of 128 bytes, 1,024 in flight, into a file stream with RePublish, all delivered to
/// one subscriber: through the log, by the bare client library, and by the Go client, in turn.
#[derive(Args, Clone, Debug)]
pub struct Publish {
    /// Copies of the stream: a single server, or a cluster of three on this machine.
    #[arg(long, default_value_t = 1, value_parser = one_or_three)]
    pub replicas: u64,
    /// When the servers write to the disk for good.
    #[arg(long, value_enum, default_value_t = Sync::Default)]
    pub sync: Sync,
    /// Rounds; in each all have their turn, and the first is another one than in the round before.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=50))]
    pub rounds: u64,
    /// Seconds of publishing in each turn.
    #[arg(long, default_value_t = 1.5)]
    pub seconds: f64,
    /// Only the log of one stream has turns, for a look at it with a profiler; nothing is compared.
    #[arg(long)]
    pub log_only: bool,
}

/// One or three.
pub fn one_or_three(text: &str) -> Result<u64, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".into()),
    }
}

const LOG: usize = 0;
const LOG_OF_FOUR: usize = 1;
const BARE: usize = 2;
const BARE_WITH_HEADERS: usize = 3;
const GO: usize = 4;
const ALL: [Who; 5] = [
    Who::Log { shards: 1 },
    Who::Log { shards: 4 },
    Who::Bare { headers: false },
    Who::Bare { headers: true },
    Who::Go,
];

/// One turn.
#[derive(Default)]
struct Turn {
    outcome: Outcome,
    /// CPU of all servers.
    servers: Duration,
}

impl Publish {
    /// With the usual rounds; one round where every write waits for the disk.
    pub fn of(replicas: u64, sync: Sync) -> Self {
        Self { replicas, sync, rounds: if sync == Sync::Always { 1 } else { 5 }, seconds: 1.5, log_only: false }
    }

    /// The command that measures this, without `plenum-bench nats`.
    pub fn command(&self) -> String {
        let Self { replicas, sync, rounds, seconds, log_only } = self;
        let only = if *log_only { " --log-only" } else { "" };
        let sync = if *sync == Sync::Always { "always" } else { "default" };
        format!("publish --replicas {replicas} --sync {sync} --rounds {rounds} --seconds {seconds}{only}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        let (turns, missing) = runtime()?.block_on(self.rounds())?;
        let synced = if self.sync == Sync::Always { ", sync_interval always" } else { "" };
        let how = format!("R{}{synced}", self.replicas);
        let line = |who: usize, name: &str| {
            let rates = middle(&turns[who], |turn| turn.outcome.rate());
            let cpu = middle(&turns[who], |turn| turn.outcome.cpu()).median();
            let servers = middle(&turns[who], |turn| turn.servers.as_secs_f64() * 1e6 / turn.outcome.messages as f64);
            let cpu = format!("CPU of a message: client {} µs, NATS {} µs", number(cpu), number(servers.median()));
            Line::new(format!("{name}, {how}"), rates.median(), "/s", None).notes(format!("{}; {cpu}", rates.spread()))
        };
        if self.log_only {
            return Ok(vec![line(LOG, "acknowledged publishes, log of one stream")]);
        }
        let ratio = |one: usize, other: usize| {
            let pairs: Vec<_> = turns[one].iter().zip(&turns[other]).collect();
            middle(&pairs, |(one, other)| one.outcome.rate() / other.outcome.rate())
        };
        let mut lines = vec![
            line(LOG, "acknowledged publishes, log of one stream"),
            line(LOG_OF_FOUR, "acknowledged publishes, log of four streams (default)"),
            line(BARE, "acknowledged publishes, bare async-nats"),
            line(BARE_WITH_HEADERS, "acknowledged publishes, bare async-nats with message ids"),
        ];
        let target = (self.sync == Sync::Default).then_some(Target::AtLeast(0.9));
        let compared = ratio(LOG, BARE);
        let mut notes = format!(
            "{WINDOW} in flight, 128 bytes, one subscriber; {}; with message ids in both: {}",
            compared.spread(),
            number(ratio(LOG, BARE_WITH_HEADERS).median())
        );
        match missing {
            None => {
                lines.push(line(GO, "acknowledged publishes, Go client"));
                notes += &format!("; log / Go client: {}", number(ratio(LOG, GO).median()));
            }
            Some(reason) => notes += &format!("; {reason}"),
        }
        lines.push(
            Line::new(format!("log / bare async-nats, one stream each, {how}"), compared.median(), "×", target)
                .notes(notes),
        );
        Ok(lines)
    }

    /// Turns of each, and why there are none of the Go client.
    async fn rounds(&self) -> Result<([Vec<Turn>; 5], Option<String>)> {
        let sync = if self.sync == Sync::Always { "sync_interval: always" } else { "" };
        let servers = Servers::start(usize::try_from(self.replicas)?, sync).await?;
        let pace = Pace { rate: None, time: Duration::from_secs_f64(self.seconds.clamp(0.1, 60.0)) };
        let (mut turns, mut missing): ([Vec<Turn>; 5], Option<String>) = Default::default();
        // The first load of each kind finds cold servers; it does not count.
        load(Who::Bare { headers: false }, &servers, Pace { time: Duration::from_millis(500), ..pace }).await?;
        for round in 0..usize::try_from(self.rounds)? {
            for place in 0..ALL.len() {
                let who = (round + place) % ALL.len();
                if who == GO && missing.is_some() || self.log_only && who != LOG {
                    continue;
                }
                let before = cpu(&servers)?;
                match load(ALL[who], &servers, pace).await {
                    Ok(outcome) => {
                        let spent = cpu(&servers)?.iter().zip(&before).map(|(now, before)| now.since(before)).sum();
                        turns[who].push(Turn { outcome, servers: spent });
                    }
                    Err(error) if error.is::<Unavailable>() => missing = Some(error.to_string()),
                    Err(error) => return Err(error).with_context(|| format!("{:?}", ALL[who])),
                }
            }
        }
        Ok((turns, missing))
    }
}

fn cpu(servers: &Servers) -> Result<Vec<CpuTime>> {
    servers.pids.iter().map(|pid| CpuTime::of(*pid)).collect()
}
