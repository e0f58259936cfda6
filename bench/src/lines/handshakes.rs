//! How many clients can connect and subscribe in a second, and what each costs the server.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use plenum_tokens::{ConnectionTokenSpec, sign_connection};

use super::Context;
use crate::process::{open_files, open_files_limit};
use crate::report::{Line, Samples, Target, number};
use crate::server::{Server, TOKEN_SECRET, micros};
use crate::swarm::{Greeting, Quiet, Swarm};

/// How connections say who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// They do not: the anonymous user.
    None,
    /// By a token signed with HS256, a user each.
    Hmac,
}

/// Handshakes per second: TCP, upgrade, connect and subscribe of each connection, which then stays open.
#[derive(Args, Clone, Debug)]
pub struct Handshakes {
    /// Connections in each round.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=18_000))]
    pub count: u64,
    /// Handshakes under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrent: u64,
    /// How connections say who they are.
    #[arg(long, value_enum, default_value_t = Auth::None)]
    pub auth: Auth,
    /// Rounds on the same server; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub rounds: u64,
}

struct Round {
    rate: f64,
    cpu: f64,
    closing: f64,
}

impl Handshakes {
    /// With this authentication, everything else as it is by default.
    pub fn of(auth: Auth) -> Self {
        Self { count: 10_000, concurrent: 64, auth, rounds: 5 }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let auth = match self.auth {
            Auth::None => "none",
            Auth::Hmac => "hmac",
        };
        let Self { count, concurrent, rounds, .. } = self;
        format!("plenum-bench handshakes --auth {auth} --count {count} --concurrent {concurrent} --rounds {rounds}")
    }

    /// Measures.
    pub fn measure(&self, context: &Context<'_>) -> Result<Vec<Line>> {
        let needed = self.count + 100;
        let limit = open_files_limit()?;
        ensure!(limit >= needed, "the limit of open files is {limit}; {needed} are needed (ulimit -n {needed})");
        let greetings: Result<Vec<_>> = (0..self.count).map(|index| self.greeting(index)).collect();
        let greetings = greetings?;
        let server = Server::start(context.binary)?;
        if self.auth == Auth::Hmac {
            refuses_forged_tokens(&server)?;
        }
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            rounds.push(self.round(&server, &greetings)?);
        }
        let samples = |value: fn(&Round) -> f64| Samples::new(rounds.iter().map(value).collect());
        let (rate, cpu, closing) = (samples(|round| round.rate), samples(|r| r.cpu), samples(|r| r.closing));
        let (with, target) = match self.auth {
            Auth::None => ("bare", Some(Target::AtLeast(8000.0))),
            Auth::Hmac => ("HMAC token", None),
        };
        let notes = format!(
            "{}; {} connections a round, {} at a time; an end costs the server {} µs CPU",
            rate.spread(),
            number(self.count as f64),
            self.concurrent,
            number(closing.median())
        );
        Ok(vec![
            Line::new(format!("handshakes, {with}"), rate.median(), "/s", target).notes(notes),
            Line::new(format!("handshake, {with}"), cpu.median(), "µs CPU", None).notes(cpu.spread()),
        ])
    }

    fn greeting(&self, index: u64) -> Result<Greeting> {
        let token = match self.auth {
            Auth::None => String::new(),
            Auth::Hmac => token(index, TOKEN_SECRET)?,
        };
        Greeting::new(&token, Some("bench"))
    }

    fn round(&self, server: &Server, greetings: &[Greeting]) -> Result<Round> {
        let count = self.count as f64;
        let files = open_files(server.pid())?;
        let mut swarm = Swarm::new(server.address())?;
        let (start, before) = (Instant::now(), server.cpu()?);
        let (concurrent, all) = (usize::try_from(self.concurrent)?, usize::try_from(self.count)?);
        swarm.open(all, concurrent, Duration::from_secs(120), |index| greetings[index].clone(), &mut Quiet)?;
        let (elapsed, opened) = (start.elapsed(), server.cpu()?);
        drop(swarm);
        let deadline = Instant::now() + Duration::from_secs(20);
        while open_files(server.pid())? > files {
            ensure!(Instant::now() < deadline, "the server keeps sockets that clients have closed");
            std::thread::sleep(Duration::from_millis(50));
        }
        let closed = server.cpu()?;
        Ok(Round {
            rate: count / elapsed.as_secs_f64(),
            cpu: micros(opened.since(&before)) / count,
            closing: micros(closed.since(&opened)) / count,
        })
    }
}

fn token(index: u64, secret: &str) -> Result<String> {
    let spec = ConnectionTokenSpec { user: format!("user-{index}"), ..ConnectionTokenSpec::default() };
    Ok(sign_connection(secret, &spec)?)
}

/// A server that does not look at tokens would be fast for nothing.
fn refuses_forged_tokens(server: &Server) -> Result<()> {
    let forged = Greeting::new(&token(0, &TOKEN_SECRET.to_uppercase())?, None)?;
    let mut swarm = Swarm::new(server.address())?;
    let outcome = swarm.open(1, 1, Duration::from_secs(5), |_| forged.clone(), &mut Quiet);
    ensure!(outcome.is_err(), "the server takes tokens with a wrong signature");
    Ok(())
}
