//! From publish to the subscriber on another replica.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

use super::load::{Outcome, Pace, Who, load};
use super::publish::one_or_three;
use super::servers::Servers;
use super::{middle, runtime};
use crate::report::{Line, Target, Unavailable, number};

/// Time from publish to delivery on another replica at 1,000 messages a second and at half of what the log can, beside
/// the Go client's at the same rates.
#[derive(Args, Clone, Debug)]
pub struct Latency {
    /// Copies of the stream: a single server, or a cluster of three on this machine.
    #[arg(long, default_value_t = 1, value_parser = one_or_three)]
    pub replicas: u64,
    /// Rounds, in each both have their turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=50))]
    pub rounds: u64,
    /// Seconds of publishing in each turn.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

impl Latency {
    /// With the usual rounds.
    pub fn of(replicas: u64) -> Self {
        Self { replicas, rounds: 3, seconds: 3.0 }
    }

    /// The command that measures this, without `plenum-bench nats`.
    pub fn command(&self) -> String {
        let Self { replicas, rounds, seconds } = self;
        format!("latency --replicas {replicas} --rounds {rounds} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        runtime()?.block_on(async {
            let servers = Servers::start(usize::try_from(self.replicas)?, "").await?;
            let time = Duration::from_secs_f64(self.seconds.clamp(0.1, 60.0));
            let most =
                load(Who::Log { shards: 1 }, &servers, Pace { rate: None, time: Duration::from_secs(2) }).await?;
            let mut lines = self.at("1,000 /s", 1000, time, &servers).await?;
            let half = (most.rate() / 2.0) as u64;
            lines.extend(self.at("half of the maximum", half, time, &servers).await?);
            Ok(lines)
        })
    }

    async fn at(&self, name: &str, rate: u64, time: Duration, servers: &Servers) -> Result<Vec<Line>> {
        let pace = Pace { rate: Some(rate), time };
        let (mut log, mut go): (Vec<Outcome>, Vec<Outcome>) = Default::default();
        let mut missing = None;
        for round in 0..self.rounds {
            let turns = [Who::Log { shards: 1 }, Who::Go];
            for who in if round % 2 == 0 { turns } else { [turns[1], turns[0]] } {
                match load(who, servers, pace).await {
                    Ok(outcome) if who == Who::Go => go.push(outcome),
                    Ok(outcome) => log.push(outcome),
                    Err(error) if error.is::<Unavailable>() => missing = Some(error.to_string()),
                    Err(error) => return Err(error).with_context(|| format!("{who:?}")),
                }
            }
        }
        let how = format!("{name}, R{}", self.replicas);
        let line = |outcomes: &[Outcome], whose: &str| {
            let p99 = middle(outcomes, |outcome| outcome.p99_ms);
            let p50 = middle(outcomes, |outcome| outcome.p50_ms).median();
            let rate = middle(outcomes, Outcome::rate).median();
            let notes = format!("{}; p50 {} ms; {} /s", p99.spread(), number(p50), number(rate));
            Line::new(format!("publish to delivery, p99, {whose}, {how}"), p99.median(), "ms", None).notes(notes)
        };
        let mut lines = vec![line(&log, "log, another replica")];
        if let Some(reason) = missing {
            lines[0].notes += &format!("; {reason}");
        } else {
            lines.push(line(&go, "Go client"));
            let ratio = lines[0].value / lines[1].value;
            let name = format!("log / Go client, p99 of publish to delivery, {how}");
            lines.push(Line::new(name, ratio, "×", Some(Target::AtMost(1.3))));
        }
        Ok(lines)
    }
}
