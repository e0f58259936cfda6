//! What the shared rate limit costs a message.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use plenum_channels::memory::ReplicaBus;
use plenum_channels::{Bucket, Quotas as _, Rate, Token};
use plenum_sessions_redis::quotas::RedisQuotas;

use super::servers::Servers;
use crate::lines::nats::runtime;
use crate::process::CpuTime;
use crate::report::{Line, number};

const LIFE: Duration = Duration::from_secs(3600);
/// Large enough that nobody is refused.
const BUCKET: Bucket = Bucket { tokens: 1_000_000, period: Duration::from_secs(1) };
/// How often messages come, all of the users together.
const BURST_EVERY: Duration = Duration::from_millis(10);

/// Tokens of shared buckets, taken by messages of many users at a steady rate.
#[derive(Args, Clone, Debug)]
pub struct Rates {
    /// Users, a bucket each.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub users: u64,
    /// Messages a second of all users.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    pub rate: u64,
    /// Seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub seconds: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { users: 1000, rate: 20_000, seconds: 5 }
    }
}

impl Rates {
    /// The command that measures this, without `plenum-bench sessions`.
    pub fn command(&self) -> String {
        let Self { users, rate, seconds } = self;
        format!("rates --users {users} --rate {rate} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        runtime()?.block_on(async {
            let servers = Servers::start().await?;
            let quotas = RedisQuotas::start(servers.client().await?, ReplicaBus::new().side(), LIFE);
            let users: Vec<String> = (0..self.users).map(|n| format!("user-{n}")).collect();
            for user in &users {
                quotas.take(Rate::UserPublish, user, BUCKET);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;

            let own = std::process::id();
            let (before, of_servers) = (CpuTime::of(own)?, servers.cpu()?);
            let (begin, time) = (Instant::now(), Duration::from_secs(self.seconds));
            let (mut taken, mut inside) = (0u64, Duration::ZERO);
            while begin.elapsed() < time {
                tokio::time::sleep(BURST_EVERY).await;
                let due = (begin.elapsed().as_secs_f64() * self.rate as f64) as u64;
                let start = Instant::now();
                while taken < due {
                    let user = &users[usize::try_from(taken % self.users)?];
                    let token = quotas.take(Rate::UserPublish, user, BUCKET);
                    ensure!(token == Token::Given, "a bucket of a million gave {token:?}");
                    taken += 1;
                }
                inside += start.elapsed();
            }
            let each = |time: Duration| time.as_secs_f64() * 1e6 / taken.max(1) as f64;
            let cpu = each(CpuTime::of(own)?.since(&before));
            let notes = format!(
                "{} µs of it before the message goes on; {} µs in the six servers, their own cost at rest included; {} users, {} /s",
                number(each(inside)),
                number(each(servers.cpu_since(&of_servers)?)),
                number(self.users as f64),
                number(taken as f64 / begin.elapsed().as_secs_f64()),
            );
            Ok(vec![Line::new("shared rate limit, a message", cpu, "µs CPU", None).notes(notes)])
        })
    }
}
