//! A client that recovers very much, and what that does to live delivery on the same replica.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use plenum_protocol::{
    Encoding, PublishRequest, PushEvent, Reply, ReplyResult, Request, SubscribeRequest, SubscribeResult, replies,
};
use serde_json::json;

use super::runtime;
use super::servers::Servers;
use crate::http;
use crate::report::{Line, number};
use crate::server::{Server, WITH_HISTORY};
use crate::swarm::{Greeting, Listener, Swarm, commands};
use crate::websocket::text_frame;

/// Bytes of a live publication, and about those of a recovered one.
const BYTES: usize = 128;
/// Live channels, each with one subscriber.
const LIVE: usize = 50;
/// Publications in one request while history is made.
const BATCH: u64 = 100;
/// How long making history, and recovering it, may take.
const LIMIT: Duration = Duration::from_secs(280);

/// p99 of live delivery, with and without a client on the same replica that recovers a channel's whole history; and how
/// much the replica's memory grows meanwhile. `plenum serve` on one NATS server, WebSocket clients.
#[derive(Args, Clone, Debug)]
pub struct Recovery {
    /// Publications that the client recovers.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    pub publications: u64,
    /// Live publications a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub rate: u64,
    /// Seconds of live delivery without the recovery.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    pub seconds: u64,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { publications: 1_000_000, rate: 1000, seconds: 10 }
    }
}

/// What the recovering client saw.
struct Recovered {
    count: u64,
    time: Duration,
}

impl Recovery {
    /// The command that measures this, without `plenum-bench nats`.
    pub fn command(&self) -> String {
        let Self { publications, rate, seconds } = self;
        format!("recovery --publications {publications} --rate {rate} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self, binary: &Path) -> Result<Vec<Line>> {
        let servers = runtime()?.block_on(Servers::start(1, ""))?;
        let nats = json!({ "servers": servers.urls, "replicas": 1, "max_bytes": 2_u64 << 30 });
        let server = Server::start_on_nats(binary, nats, self.publications * 2)?;
        let channel = format!("{WITH_HISTORY}:past");
        let begin = position(&server, &channel)?;
        self.make_history(&server, &channel)?;

        let mut live = Live::new(&server, self.rate)?;
        live.run(Duration::from_secs(2), &AtomicBool::new(false))?;
        live.times.clear();
        live.run(Duration::from_secs(self.seconds), &AtomicBool::new(false))?;
        let without = live.take();

        let before = server.memory()?;
        let (over, most) = (AtomicBool::new(false), AtomicU64::new(before));
        let recovered = std::thread::scope(|scope| {
            let recovering = scope.spawn(|| {
                let result = recover(&server, &channel, &begin, self.publications);
                over.store(true, Ordering::SeqCst);
                result
            });
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    most.fetch_max(server.memory().unwrap_or(0), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let ran = live.run(LIMIT, &over);
            let recovered = recovering.join().map_err(|_| anyhow::anyhow!("the recovering client panicked"))??;
            ran?;
            anyhow::Ok(recovered)
        })?;
        let during = live.take();
        let grown = most.load(Ordering::SeqCst).saturating_sub(before);
        Ok(self.lines(&without, &during, &recovered, before, grown))
    }

    fn lines(&self, without: &Times, during: &Times, recovered: &Recovered, before: u64, grown: u64) -> Vec<Line> {
        let what = format!("{} publications recovered on the same replica", number(self.publications as f64));
        let live = |times: &Times| {
            let Times { p50_ms, longest_ms, count, .. } = times;
            format!(
                "p50 {} ms, longest {} ms, {} at {} /s",
                number(*p50_ms),
                number(*longest_ms),
                number(*count as f64),
                number(self.rate as f64)
            )
        };
        let seconds = recovered.time.as_secs_f64();
        let count = recovered.count as f64;
        vec![
            Line::new("live delivery on one replica, p99, nothing else", without.p99_ms, "ms", None)
                .notes(live(without)),
            Line::new(format!("the same while {what}, p99"), during.p99_ms, "ms", None).notes(live(during)),
            Line::new(format!("growth of the replica's memory while {what}"), grown as f64 / 1024.0, "KiB", None)
                .notes(format!("from {} KiB; the largest of samples 10 ms apart", number(before as f64 / 1024.0))),
            Line::new(format!("recovery of {}", number(count)), seconds, "s", None).notes(format!(
                "{} publications a second to one client, in order, none missing",
                number(count / seconds)
            )),
        ]
    }

    fn make_history(&self, server: &Server, channel: &str) -> Result<()> {
        let data = json!({ "n": 0, "pad": "x".repeat(BYTES - 17) });
        let publish = json!({ "publish": { "channel": channel, "data": data } });
        let body = json!({ "commands": vec![publish; BATCH as usize] }).to_string();
        let request = http::request(server.address(), "batch", &body);
        let requests = self.publications.div_ceil(BATCH);
        let load = http::load(server.address(), vec![request; 8], requests, LIMIT).context("while history was made")?;
        eprintln!("history of {} publications made in {:.0} s", load.commands, load.time.as_secs_f64());
        Ok(())
    }
}

/// Where the channel stands, as a subscriber is told.
fn position(server: &Server, channel: &str) -> Result<Box<SubscribeResult>> {
    let mut swarm = Swarm::new(server.address())?;
    let mut history = History::default();
    let subscribe = SubscribeRequest { channel: channel.to_owned(), recoverable: true, ..Default::default() };
    open_and_subscribe(&mut swarm, subscribe, &mut history)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        swarm.turn(Duration::from_millis(100), &mut history)?;
        if let Some(answer) = history.answer.take() {
            ensure!(answer.recoverable, "the channel cannot be recovered");
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "no answer to subscribe");
    }
}

fn open_and_subscribe(swarm: &mut Swarm, subscribe: SubscribeRequest, history: &mut History) -> Result<()> {
    let greeting = Greeting::new("", None)?;
    swarm.open(1, 1, Duration::from_secs(10), |_| greeting.clone(), history)?;
    swarm.send(0, &text_frame(&commands(2, &[Request::Subscribe(Box::new(subscribe))])?))
}

/// Recovers everything after `begin`, and checks that it is all there, once and in order.
fn recover(server: &Server, channel: &str, begin: &SubscribeResult, publications: u64) -> Result<Recovered> {
    let mut swarm = Swarm::new(server.address())?;
    let mut history = History { last: begin.offset, ..History::default() };
    let (epoch, offset) = (begin.epoch.clone(), begin.offset);
    let subscribe =
        SubscribeRequest { channel: channel.to_owned(), recover: true, epoch, offset, ..Default::default() };
    let started = Instant::now();
    open_and_subscribe(&mut swarm, subscribe, &mut history)?;
    while history.count < publications {
        swarm.turn(Duration::from_millis(100), &mut history)?;
        ensure!(history.answer.as_ref().is_none_or(|answer| answer.recovered), "it was not recovered");
        ensure!(started.elapsed() < LIMIT, "{} of {publications} recovered after {LIMIT:?}", history.count);
    }
    Ok(Recovered { count: history.count, time: started.elapsed() })
}

/// A subscriber of one channel who counts.
#[derive(Default)]
struct History {
    answer: Option<Box<SubscribeResult>>,
    count: u64,
    last: u64,
}

impl History {
    fn take(&mut self, offset: u64) -> Result<()> {
        ensure!(offset > self.last, "offset {offset} after {}", self.last);
        self.last = offset;
        self.count += 1;
        Ok(())
    }
}

impl Listener for History {
    fn line(&mut self, _: usize, line: &[u8]) -> Result<()> {
        for reply in replies(Encoding::Json, line) {
            match reply? {
                Reply::Result { result: ReplyResult::Subscribe(mut answer), .. } => {
                    for publication in std::mem::take(&mut answer.publications) {
                        self.take(publication.offset)?;
                    }
                    self.answer = Some(answer);
                }
                Reply::Push(push) => match push.event {
                    PushEvent::Publication(publication) => self.take(publication.offset)?,
                    other => bail!("unexpected {other:?}"),
                },
                other => bail!("unexpected {other:?}"),
            }
        }
        Ok(())
    }
}

/// Publication to delivery, milliseconds.
struct Times {
    p50_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
    count: u64,
}

/// Subscribers of live channels, and as many connections that publish to them: one alone would send commands faster than
/// the server takes them from a client.
struct Live {
    swarm: Swarm,
    times: Clocked,
    rate: u64,
    sent: u64,
}

/// Takes the times out of what arrives.
struct Clocked {
    origin: Instant,
    micros: Vec<u64>,
}

impl Clocked {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn clear(&mut self) {
        self.micros.clear();
    }
}

impl Listener for Clocked {
    fn line(&mut self, connection: usize, line: &[u8]) -> Result<()> {
        if connection >= LIVE {
            ensure!(!line.windows(8).any(|part| part == b"\"error\":"), "{}", String::from_utf8_lossy(line));
            return Ok(());
        }
        const MARK: &[u8] = b"\"t\":";
        let text = String::from_utf8_lossy(line);
        let at = line.windows(MARK.len()).position(|part| part == MARK);
        let digits = at.map(|at| &text[at + MARK.len()..]).with_context(|| format!("unexpected {text}"))?;
        let end = digits.find(|character: char| !character.is_ascii_digit()).unwrap_or(digits.len());
        let sent: u64 = digits[..end].parse()?;
        self.micros.push(self.now().saturating_sub(sent));
        Ok(())
    }
}

impl Live {
    fn new(server: &Server, rate: u64) -> Result<Self> {
        let mut swarm = Swarm::new(server.address())?;
        let mut times = Clocked { origin: Instant::now(), micros: Vec::new() };
        let subscribing: Vec<_> =
            (0..LIVE).map(|index| Greeting::new("", Some(&channel(index)))).collect::<Result<_>>()?;
        let time = Duration::from_secs(20);
        swarm.open(LIVE, 16, time, |index| subscribing[index].clone(), &mut times)?;
        let publishing = Greeting::new("", None)?;
        swarm.open(LIVE, 16, time, |_| publishing.clone(), &mut times)?;
        Ok(Self { swarm, times, rate, sent: 0 })
    }

    /// Publishes at its rate until `over` or the time has passed, then waits for what is under way.
    fn run(&mut self, time: Duration, over: &AtomicBool) -> Result<()> {
        let (started, begin, arrived) = (Instant::now(), self.sent, self.times.micros.len() as u64);
        while started.elapsed() < time && !over.load(Ordering::SeqCst) {
            let due = begin + (started.elapsed().as_secs_f64() * self.rate as f64) as u64;
            while self.sent < due {
                self.publish()?;
            }
            self.swarm.turn(Duration::from_millis(1), &mut self.times)?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let expected = arrived + self.sent - begin;
        while (self.times.micros.len() as u64) < expected {
            self.swarm.turn(Duration::from_millis(10), &mut self.times)?;
            let missing = expected - self.times.micros.len() as u64;
            ensure!(Instant::now() < deadline, "{missing} live deliveries missing");
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<()> {
        let index = self.sent as usize % LIVE;
        let data = json!({ "t": self.times.now(), "pad": "x".repeat(BYTES - 32) }).to_string();
        let request = PublishRequest { channel: channel(index), data: data.into(), ..PublishRequest::default() };
        self.sent += 1;
        let id = u32::try_from(self.sent + 1)?;
        self.swarm.send(LIVE + index, &text_frame(&commands(id, &[Request::Publish(request)])?))
    }

    fn take(&mut self) -> Times {
        let mut micros = std::mem::take(&mut self.times.micros);
        micros.sort_unstable();
        let at = |share: f64| {
            let place = ((micros.len() as f64 * share) as usize).min(micros.len().saturating_sub(1));
            micros.get(place).map_or(0.0, |micros| *micros as f64 / 1e3)
        };
        Times { p50_ms: at(0.5), p99_ms: at(0.99), longest_ms: at(1.0), count: micros.len() as u64 }
    }
}

fn channel(index: usize) -> String {
    format!("{WITH_HISTORY}:live-{index}")
}
