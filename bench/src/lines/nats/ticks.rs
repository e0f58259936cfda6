//! What ticks cost when many channels are active.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use plenum_bus_nats::log::{GroupConfig, LogConfig, NatsLog, PoolLinks};
use plenum_bus_nats::pool::{Pool, PoolConfig};
use plenum_channels::Log as _;
use serde::{Deserialize, Serialize};

use super::channels::{Count, channel, subscribe};
use super::load::{Replica, append};
use super::runtime;
use super::servers::Servers;
use crate::process::{CpuTime, resident_user_bytes};
use crate::report::{Line, number};

const PREFIX: &str = "bench-ticks";
/// Channels that the same rate goes to for comparison.
const FEW: u64 = 1000;
/// Publications unacknowledged at most.
const WINDOW: usize = 1024;
/// About the default. Much less than what can be written in two seconds has every channel's first publication looked up.
const SHARD_BYTES: u64 = 3 << 30;

/// CPU of the replica that writes the ticks, and of one with a local subscriber on every channel, when every channel is
/// active: beside the same rate on a thousand channels, and beside nothing. Four shards on one NATS server.
#[derive(Args, Clone, Debug)]
pub struct Ticks {
    /// Channels.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    pub channels: u64,
    /// Publications a second, over all channels in turn.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rate: u64,
    /// Seconds of each CPU figure; long enough that each channel has had its turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// What a process that this program started itself does.
    #[arg(long, hide = true)]
    part: Option<Part>,
    /// Its server.
    #[arg(long, hide = true)]
    url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Starts first, so that it writes the ticks; has no subscribers.
    Writer,
    /// Has all the subscribers.
    Subscriber,
}

impl Default for Ticks {
    fn default() -> Self {
        Self { channels: 100_000, rate: 10_000, seconds: 10, part: None, url: None }
    }
}

/// What a part says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// To subscribe to all channels.
    seconds: f64,
    /// Memory for that.
    bytes: u64,
}

/// A process of this program, ended with this value.
struct Process {
    child: Child,
    ready: Ready,
    /// It ends when this does.
    _input: Option<ChildStdin>,
    _output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU ms a second.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    writer: f64,
    subscriber: f64,
    nats: f64,
    rate: f64,
}

impl Ticks {
    /// The command that measures this, without `plenum-bench nats`.
    pub fn command(&self) -> String {
        let Self { channels, rate, seconds, .. } = self;
        format!("ticks --channels {channels} --rate {rate} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        let runtime = runtime()?;
        if let (Some(part), Some(url)) = (self.part, &self.url) {
            runtime.block_on(self.play(part, url))?;
            return Ok(Vec::new());
        }
        let servers = runtime.block_on(Servers::start(1, ""))?;
        let writer = self.start(Part::Writer, &servers.urls[0])?;
        let subscriber = self.start(Part::Subscriber, &servers.urls[0])?;
        let pids = [writer.child.id(), subscriber.child.id(), servers.pids[0]];
        let publisher = runtime.block_on(replica(&servers.urls))?;
        let idle = runtime.block_on(self.spend(&publisher, pids, None))?;
        let few = runtime.block_on(self.spend(&publisher, pids, Some(FEW)))?;
        let many = runtime.block_on(self.spend(&publisher, pids, Some(self.channels)))?;
        Ok(self.lines(&subscriber.ready, idle, few, many))
    }

    fn start(&self, part: Part, url: &str) -> Result<Process> {
        let name = part.to_possible_value().context("no name")?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["nats", "ticks", "--part", name.get_name(), "--url", url])
            .args(["--channels", &self.channels.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            let _ = child.kill();
            bail!("the {} ended: {}", name.get_name(), child.wait()?);
        }
        Ok(Process { child, ready: serde_json::from_str(&line)?, _input: input, _output: output })
    }

    /// Until the other process closes this one's input.
    async fn play(&self, part: Part, url: &str) -> Result<()> {
        let replica = replica(&[url.to_owned()]).await?;
        let count = Arc::new(Count::default());
        let before = resident_user_bytes(std::process::id())?;
        let started = Instant::now();
        if part == Part::Subscriber {
            subscribe(&replica, 0..self.channels, &count).await?;
        }
        let seconds = started.elapsed().as_secs_f64();
        // What was taken for a moment is given back, and the ticks have begun.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let bytes = resident_user_bytes(std::process::id())?.saturating_sub(before);
        let mut output = std::io::stdout();
        writeln!(output, "{}", serde_json::to_string(&Ready { seconds, bytes })?)?;
        output.flush()?;
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        end.await??;
        Ok(())
    }

    /// What is spent while so many channels get publications in turn, or none.
    async fn spend(&self, publisher: &Replica, pids: [u32; 3], active: Option<u64>) -> Result<Spent> {
        let channels: Vec<_> = (0..active.unwrap_or(0)).map(channel).collect();
        let data = bytes::Bytes::from_static(&[b'x'; 128]);
        // Each channel has its first publication before.
        let settle = Duration::from_secs(3 + channels.len() as u64 / self.rate);
        let time = Duration::from_secs(self.seconds);
        let mut step = tokio::time::interval(Duration::from_millis(5));
        step.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (started, mut sent, mut before) = (Instant::now(), 0_u64, None);
        let mut under_way = FuturesUnordered::new();
        loop {
            step.tick().await;
            if started.elapsed() >= settle && before.is_none() {
                before = Some((Instant::now(), sent, cpu(pids)?));
            }
            if let Some((begin, sent_before, cpu_before)) = &before
                && begin.elapsed() >= time
            {
                let seconds = begin.elapsed().as_secs_f64();
                let now = cpu(pids)?;
                let share = |which: usize| now[which].since(&cpu_before[which]).as_secs_f64() * 1e3 / seconds;
                let rate = (sent - sent_before) as f64 / seconds;
                while let Some(result) = under_way.next().await {
                    let _: plenum_channels::Appended = result?;
                }
                return Ok(Spent { writer: share(0), subscriber: share(1), nats: share(2), rate });
            }
            let due = (started.elapsed().as_secs_f64() * self.rate as f64) as u64;
            while !channels.is_empty() && sent < due {
                let channel = &channels[(sent % channels.len() as u64) as usize];
                under_way.push(publisher.log.append(append(channel, data.clone())));
                sent += 1;
                if under_way.len() >= WINDOW
                    && let Some(result) = under_way.next().await
                {
                    result?;
                }
            }
            ensure!(started.elapsed() < (settle + time) * 4, "publishing does not keep up");
        }
    }

    fn lines(&self, ready: &Ready, idle: Spent, few: Spent, many: Spent) -> Vec<Line> {
        let channels = number(self.channels as f64);
        let rate = number(many.rate);
        let beside = |whose: fn(&Spent) -> f64| {
            format!(
                "on {} channels at {} /s {} ms/s, with nothing published {} ms/s",
                number(FEW as f64),
                number(few.rate),
                number(whose(&few)),
                number(whose(&idle))
            )
        };
        let what = format!("{channels} active channels, {rate} publications a second");
        vec![
            Line::new(format!("CPU of the replica that writes the ticks, {what}"), many.writer, "ms/s", None)
                .notes(format!("it has no subscribers and reads the shards; {}", beside(|spent| spent.writer))),
            Line::new(format!("CPU of a replica with a subscriber on each, {what}"), many.subscriber, "ms/s", None)
                .notes(beside(|spent| spent.subscriber)),
            Line::new(format!("CPU of nats-server, {what}"), many.nats, "ms/s", None).notes(beside(|spent| spent.nats)),
            Line::new(format!("time to subscribe to {channels} channels, memory"), ready.seconds, "s", None)
                .notes(format!("{} bytes a channel", number(ready.bytes as f64 / self.channels as f64))),
        ]
    }
}

async fn replica(urls: &[String]) -> Result<Replica> {
    let pool = Pool::connect(PoolConfig::new(urls)).await?;
    pool.wait_ready(Duration::from_secs(10)).await?;
    let group = GroupConfig { shards: 4, max_bytes: Some(SHARD_BYTES), ..GroupConfig::default() };
    let config = LogConfig { prefix: PREFIX.into(), replicas: 1, groups: vec![group], ..LogConfig::default() };
    Ok(Replica { log: NatsLog::start(PoolLinks::new(pool), config).await? })
}

fn cpu(pids: [u32; 3]) -> Result<[CpuTime; 3]> {
    let [first, second, third] = pids.map(CpuTime::of);
    Ok([first?, second?, third?])
}
