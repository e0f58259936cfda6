//! Connections that come back: how many a second, what each costs the server, and how long one takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use plenum_tokens::{ConnectionTokenSpec, sign_connection};
use serde_json::{Value, json};

use super::{middle, percentiles, servers};
use crate::lines::nats::{Servers as NatsServers, runtime};
use crate::process::{open_files, open_files_limit};
use crate::report::{Line, Target, number};
use crate::server::{Server, TOKEN_SECRET, micros};
use crate::swarm::{Greeting, Listener, Swarm};

/// Connections to stores that the server opens when it first needs them.
const STORES: usize = 64;
/// How long a round may take.
const TIME: Duration = Duration::from_secs(120);
/// CPU of a handshake with token and session.
const TARGET: Target = Target::AtMost(200.0);
/// Connections that come back one after the other, for their latency.
const IN_TURN: usize = 500;

/// Handshakes with a connection token and the resume token of the connection before: TCP, upgrade, connect, subscribe.
#[derive(Args, Clone, Debug)]
pub struct Resume {
    /// Connections in each round.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(500..=18_000))]
    pub count: u64,
    /// Handshakes under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub concurrent: u64,
    /// Rounds after the first, in which everybody is new; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=20))]
    pub rounds: u64,
    /// On three NATS servers and a Redis Cluster, in a channel with presence; else all of it in the server's memory.
    #[arg(long)]
    pub shared: bool,
}

struct Round {
    rate: f64,
    cpu: f64,
}

impl Resume {
    /// As it is by default.
    pub fn of(shared: bool) -> Self {
        Self { count: if shared { 2000 } else { 5000 }, concurrent: 64, rounds: 3, shared }
    }

    /// The command that measures this, without `plenum-bench sessions`.
    pub fn command(&self) -> String {
        let Self { count, concurrent, rounds, .. } = self;
        let shared = if self.shared { " --shared" } else { "" };
        format!("resume --count {count} --concurrent {concurrent} --rounds {rounds}{shared}")
    }

    /// Measures.
    pub fn measure(&self, binary: &Path) -> Result<Vec<Line>> {
        let needed = self.count + 100;
        let limit = open_files_limit()?;
        ensure!(limit >= needed, "the limit of open files is {limit}; {needed} are needed (ulimit -n {needed})");
        if !self.shared {
            return self.measure_on(&Server::start(binary)?, "in memory");
        }
        let (nats, redis) = runtime()?
            .block_on(async { anyhow::Ok((NatsServers::start(3, "").await?, servers::Servers::start().await?)) })?;
        let nodes: Vec<String> = redis.config.servers.iter().map(ToString::to_string).collect();
        let settings = json!({ "servers": nats.urls, "replicas": 3, "max_bytes": 1_u64 << 30 });
        let server = Server::start_on_cluster(binary, settings, json!({ "servers": nodes }))?;
        self.measure_on(&server, "three NATS servers, presence in Redis")
    }

    fn measure_on(&self, server: &Server, how: &str) -> Result<Vec<Line>> {
        let mut people = People::new(usize::try_from(self.count)?)?;
        let (fresh, _) = self.round(server, &mut people)?;
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let (round, same) = self.round(server, &mut people)?;
            // On a busy machine a store may not answer in time; then a client is let in as somebody new.
            ensure!(same * 100 >= people.greetings.len() * 99, "only {same} came back as who they were");
            rounds.push(round);
        }
        let (p50, p99) = percentiles(in_turn(server, &mut people)?);
        let (rate, cpu) = (middle(&rounds, |round| round.rate), middle(&rounds, |round| round.cpu));
        let notes = format!(
            "{}; {} connections a round, {} at a time; as somebody new {} /s and {} µs",
            rate.spread(),
            number(self.count as f64),
            self.concurrent,
            number(fresh.rate),
            number(fresh.cpu)
        );
        Ok(vec![
            Line::new(format!("resumes, {how}"), rate.median(), "/s", None).notes(notes),
            Line::new(format!("handshake with token and resume, {how}"), cpu.median(), "µs CPU", Some(TARGET))
                .notes(cpu.spread()),
            Line::new(format!("resume, p50, one at a time, {how}"), p50, "ms", None)
                .notes("from the TCP handshake to the reply of subscribe"),
            Line::new(format!("resume, p99, one at a time, {how}"), p99, "ms", None),
        ])
    }

    /// Everybody connects, and goes without a word; how many were who they had been.
    fn round(&self, server: &Server, people: &mut People) -> Result<(Round, usize)> {
        let files = open_files(server.pid())?;
        let greetings = people.greetings.clone();
        let mut swarm = Swarm::new(server.address())?;
        let (begin, before) = (Instant::now(), server.cpu()?);
        let concurrent = usize::try_from(self.concurrent)?;
        swarm.open(greetings.len(), concurrent, TIME, |index| greetings[index].clone(), people)?;
        let (took, cpu) = (begin.elapsed(), server.cpu()?.since(&before));
        // The answers to the pings after a resume.
        swarm.stay(Duration::from_secs(1), people)?;
        drop(swarm);
        let deadline = Instant::now() + Duration::from_secs(20);
        while open_files(server.pid())? > files + STORES {
            ensure!(Instant::now() < deadline, "the server keeps sockets that clients have closed");
            std::thread::sleep(Duration::from_millis(50));
        }
        let count = greetings.len() as f64;
        let round = Round { rate: count / took.as_secs_f64(), cpu: micros(cpu) / count };
        Ok((round, people.learn()?))
    }
}

/// Some of them come back one after the other.
fn in_turn(server: &Server, people: &mut People) -> Result<Vec<Duration>> {
    let greetings = people.greetings.clone();
    let mut swarm = Swarm::new(server.address())?;
    let mut times = Vec::with_capacity(IN_TURN);
    for greeting in greetings.iter().take(IN_TURN) {
        let begin = Instant::now();
        swarm.open(1, 1, TIME, |_| greeting.clone(), people)?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

/// Who connects: what each says first, and the reply to it.
struct People {
    tokens: Vec<String>,
    greetings: Vec<Greeting>,
    ids: Vec<String>,
    replies: Vec<Vec<u8>>,
}

impl People {
    fn new(count: usize) -> Result<Self> {
        let token = |index| {
            let spec = ConnectionTokenSpec { user: format!("user-{index}"), ..ConnectionTokenSpec::default() };
            Ok(sign_connection(TOKEN_SECRET, &spec)?)
        };
        let tokens: Vec<String> = (0..count).map(token).collect::<Result<_>>()?;
        let greetings = tokens.iter().map(|token| Greeting::new(token, Some("bench"))).collect::<Result<_>>()?;
        Ok(Self { tokens, greetings, ids: vec![String::new(); count], replies: vec![Vec::new(); count] })
    }

    /// Everybody takes the token of the last reply along; how many had the client id of the time before.
    fn learn(&mut self) -> Result<usize> {
        let mut same = 0;
        for (index, reply) in self.replies.iter_mut().enumerate() {
            let reply: Value = serde_json::from_slice(&std::mem::take(reply)).context("the reply to a connect")?;
            let connect = &reply["connect"];
            let id = connect["client"].as_str().context("no client id")?;
            same += usize::from(self.ids[index] == id);
            id.clone_into(&mut self.ids[index]);
            ensure!(connect["data"]["plenum"]["resume"].is_string(), "no resume token in {reply}");
            let data = connect["data"].to_string();
            self.greetings[index] = Greeting::resuming(&self.tokens[index], data.into(), Some("bench"))?;
        }
        Ok(same)
    }
}

impl Listener for People {
    fn greeted(&mut self, connection: usize, line: &[u8]) {
        if line.starts_with(br#"{"id":1,"#) {
            self.replies[connection] = line.to_vec();
        }
    }

    fn line(&mut self, connection: usize, line: &[u8]) -> Result<()> {
        anyhow::bail!("connection {connection} got what nobody sent: {}", String::from_utf8_lossy(line))
    }
}
