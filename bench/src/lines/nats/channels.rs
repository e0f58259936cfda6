//! What many channels with local subscribers cost a replica.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use plenum_channels::{Live, LiveEvent, Log as _};
use serde::{Deserialize, Serialize};

use super::load::{Replica, append};
use super::runtime;
use super::servers::Servers;
use crate::process::{CpuTime, resident_user_bytes};
use crate::report::{Line, number};

const PREFIX: &str = "bench-channels";
/// Subscribes under way at once.
const AT_ONCE: usize = 512;
/// How long subscribing may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Memory, time to subscribe and CPU of a replica with many channels, each with a local subscriber, idle and with a
/// thousand of them active.
#[derive(Args, Clone, Debug)]
pub struct Channels {
    /// Channels.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    pub channels: u64,
    /// Channels among them with one publication a second each.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub active: u64,
    /// Seconds of each CPU figure.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// The measured replica's side; started by this program itself.
    #[arg(long, hide = true)]
    replica_of: Option<String>,
}

impl Default for Channels {
    fn default() -> Self {
        Self { channels: 100_000, active: 1000, seconds: 8, replica_of: None }
    }
}

/// What the replica says of itself, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// Publish now to the active channels, or stop it; answered with a line.
    Publish(bool),
    /// The end.
    Figures(Figures),
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Figures {
    subscribe_seconds: f64,
    bytes: u64,
    /// CPU µs a second: with the active channels only, idle and active; then with all, idle and active.
    few_idle: f64,
    few_active: f64,
    all_idle: f64,
    all_active: f64,
    delivered: u64,
}

impl Channels {
    /// The command that measures this, without `plenum-bench nats`.
    pub fn command(&self) -> String {
        let Self { channels, active, seconds, .. } = self;
        format!("channels --channels {channels} --active {active} --seconds {seconds}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        let runtime = runtime()?;
        if let Some(url) = &self.replica_of {
            let figures = runtime.block_on(self.replica(url))?;
            say(&Said::Figures(figures))?;
            return Ok(Vec::new());
        }
        let servers = runtime.block_on(Servers::start(1, ""))?;
        let nats_before = resident_user_bytes(servers.pids[0])?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["nats", "channels", "--replica-of", &servers.urls[0]])
            .args(["--channels", &self.channels.to_string(), "--active", &self.active.to_string()])
            .args(["--seconds", &self.seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let figures = self.attend(&mut child, &runtime, &servers);
        // After its figures it has nothing left to do.
        let _ = child.kill();
        let _ = child.wait();
        let nats = resident_user_bytes(servers.pids[0])?.saturating_sub(nats_before);
        Ok(self.lines(&figures?, nats))
    }

    /// Publishes when the replica asks for it, until its figures come.
    fn attend(&self, child: &mut Child, runtime: &tokio::runtime::Runtime, servers: &Servers) -> Result<Figures> {
        let output = child.stdout.take().context("no output")?;
        let mut input = child.stdin.take().context("no input")?;
        let publishing = Arc::new(AtomicBool::new(false));
        let mut publisher = None;
        for line in BufReader::new(output).lines() {
            match serde_json::from_str(&line?)? {
                Said::Figures(figures) => return Ok(figures),
                Said::Publish(on) => {
                    publishing.store(on, Ordering::SeqCst);
                    if on {
                        let (urls, on, active) = (servers.urls.clone(), publishing.clone(), self.active);
                        publisher = Some(runtime.spawn(publish(urls, on, active)));
                    } else if let Some(publisher) = publisher.take() {
                        runtime.block_on(publisher)??;
                    }
                    writeln!(input)?;
                }
            }
        }
        bail!("the measured replica ended early");
    }

    /// The measured process.
    async fn replica(&self, url: &str) -> Result<Figures> {
        // First here, so that this replica writes the ticks: the dearer part.
        let replica = Replica::start(&[url.to_owned()], 4, PREFIX).await?;
        let count = Arc::new(Count::default());
        let mut figures = Figures::default();
        subscribe(&replica, 0..self.active, &count).await?;
        figures.few_idle = self.cpu().await?;
        figures.few_active = self.cpu_while_active().await?;
        let before = resident_user_bytes(std::process::id())?;
        let started = Instant::now();
        subscribe(&replica, self.active..self.channels, &count).await?;
        figures.subscribe_seconds = started.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_secs(3)).await;
        figures.bytes = resident_user_bytes(std::process::id())?.saturating_sub(before);
        figures.all_idle = self.cpu().await?;
        figures.all_active = self.cpu_while_active().await?;
        figures.delivered = count.0.load(Ordering::Relaxed);
        Ok(figures)
    }

    async fn cpu(&self) -> Result<f64> {
        let (before, started) = (CpuTime::of(std::process::id())?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        let spent = CpuTime::of(std::process::id())?.since(&before);
        Ok(spent.as_secs_f64() * 1e6 / started.elapsed().as_secs_f64())
    }

    async fn cpu_while_active(&self) -> Result<f64> {
        ask(true).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let cpu = self.cpu().await?;
        ask(false).await?;
        Ok(cpu)
    }

    fn lines(&self, figures: &Figures, nats: u64) -> Vec<Line> {
        let added = (self.channels - self.active) as f64;
        let what = format!("{} subscribed channels on one replica", number(self.channels as f64));
        let active = number(self.active as f64);
        let nats = format!("nats-server takes {} bytes for each", number(nats as f64 / added));
        let few = |idle: f64| format!("with {active} channels only: {} µs/s", number(idle));
        vec![
            Line::new(format!("memory of a channel, {what}"), figures.bytes as f64 / added, "bytes", None).notes(nats),
            Line::new(format!("time to subscribe, {what}"), figures.subscribe_seconds, "s", None)
                .notes(format!("{} a second, {AT_ONCE} at once", number(added / figures.subscribe_seconds))),
            Line::new(format!("CPU with nothing published, {what}"), figures.all_idle, "µs/s", None)
                .notes(format!("{}; it writes the ticks of four shards", few(figures.few_idle))),
            Line::new(format!("CPU with {active} active channels, {what}"), figures.all_active, "µs/s", None)
                .notes(format!("one publication a second each, from another process; {}", few(figures.few_active))),
        ]
    }
}

/// Counts deliveries.
#[derive(Default)]
pub(super) struct Count(AtomicU64);

impl Live for Count {
    fn deliver(&self, events: &[LiveEvent]) {
        self.0.fetch_add(events.len() as u64, Ordering::Relaxed);
    }
}

/// Name of a channel.
pub(super) fn channel(number: u64) -> Arc<str> {
    format!("bench-{number:06}").into()
}

/// Subscribes to many channels.
pub(super) async fn subscribe(replica: &Replica, numbers: std::ops::Range<u64>, count: &Arc<Count>) -> Result<()> {
    let started = Instant::now();
    let mut under_way = FuturesUnordered::new();
    for number in numbers {
        if under_way.len() >= AT_ONCE
            && let Some(result) = under_way.next().await
        {
            let _: plenum_channels::Position = result?;
            ensure!(started.elapsed() < LIMIT, "{number} channels after {LIMIT:?}");
        }
        let (log, count) = (replica.log.clone(), count.clone());
        under_way.push(async move { log.subscribe(&channel(number), count).await });
    }
    while let Some(result) = under_way.next().await {
        result?;
    }
    Ok(())
}

/// One publication a second to each active channel, spread over the second.
async fn publish(urls: Vec<String>, on: Arc<AtomicBool>, active: u64) -> Result<()> {
    let replica = Replica::start(&urls, 4, PREFIX).await?;
    let channels: Vec<_> = (0..active).map(channel).collect();
    let data = bytes::Bytes::from_static(&[b'x'; 128]);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let (started, mut sent) = (Instant::now(), 0);
    let mut under_way = FuturesUnordered::new();
    while on.load(Ordering::SeqCst) {
        tick.tick().await;
        let due = (started.elapsed().as_secs_f64() * active as f64) as usize;
        for number in sent..due {
            under_way.push(replica.log.append(append(&channels[number % channels.len()], data.clone())));
        }
        sent = due;
        while let Some(result) = under_way.next().await {
            result?;
        }
    }
    Ok(())
}

fn say(said: &Said) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}", serde_json::to_string(said)?)?;
    Ok(output.flush()?)
}

/// Has the other process publish or stop, and waits until it does.
async fn ask(publish: bool) -> Result<()> {
    say(&Said::Publish(publish))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)
    });
    // Nobody is left to measure for when the input ends.
    ensure!(answer.await?? > 0, "the bench has ended");
    Ok(())
}
