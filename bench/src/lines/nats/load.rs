//! The same work done by the log, by the bare client, and by the Go client.

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use plenum_bus_nats::log::{GroupConfig, LogConfig, NatsLog, PoolLinks};
use plenum_bus_nats::pool::{Pool, PoolConfig};
use plenum_channels::{Append, Entry, Live, LiveEvent, Log as _, Retention};
use plenum_protocol::Publication;
use serde::Deserialize;
use tokio::process::Command;

use super::servers::Servers;
use crate::process::CpuTime;
use crate::report::Unavailable;

/// Bytes of a message.
const BYTES: usize = 128;
/// Unacknowledged messages.
pub const WINDOW: usize = 1024;
/// Channels, or subjects, of one load.
const CHANNELS: usize = 64;
/// How long the last deliveries may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one load came to.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Outcome {
    /// Messages published, acknowledged and delivered.
    pub messages: u64,
    /// From the first publish until all of that.
    pub seconds: f64,
    /// CPU of the publishing and subscribing process.
    pub cpu_seconds: f64,
    /// From publish to delivery; 0 where it was not measured.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
}

impl Outcome {
    /// Messages a second.
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds
    }

    /// Microseconds of CPU per message.
    pub fn cpu(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.messages as f64
    }
}

/// How fast to publish, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages a second; `None`: as fast as the window allows.
    pub rate: Option<u64>,
    /// Until no more is published.
    pub time: Duration,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Our log, with this many streams.
    Log {
        /// Shards.
        shards: u32,
    },
    /// The client library alone; with a message id and the expected stream, as the log sends them, or without.
    Bare {
        /// With both headers.
        headers: bool,
    },
    /// The NATS project's Go client.
    Go,
}

/// What has arrived, and how long it took.
struct Arrived {
    count: AtomicU64,
    origin: Instant,
    /// Microseconds; kept only where a pace is given.
    times: Option<parking::Times>,
}

/// Latencies behind a lock that only the delivering task takes while the load runs.
mod parking {
    use std::sync::{Mutex, PoisonError};

    #[derive(Default)]
    pub struct Times(Mutex<Vec<u32>>);

    impl Times {
        pub fn add(&self, micros: u32) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(micros);
        }

        pub fn percentiles(&self) -> (f64, f64) {
            let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            times.sort_unstable();
            let at =
                |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |it| f64::from(*it) / 1e3);
            (at(0.5), at(0.99))
        }
    }
}

impl Arrived {
    fn new(pace: Pace) -> Arc<Self> {
        let times = pace.rate.is_some().then(parking::Times::default);
        Arc::new(Self { count: AtomicU64::new(0), origin: Instant::now(), times })
    }

    /// 128 bytes that begin with the present moment.
    fn payload(&self) -> Bytes {
        let mut data = format!("{:020}", self.origin.elapsed().as_micros()).into_bytes();
        data.resize(BYTES, b'x');
        data.into()
    }

    fn arrived(&self, payload: &[u8]) {
        if let Some(times) = &self.times {
            let sent = payload.get(..20).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
            let now = self.origin.elapsed().as_micros() as u64;
            times.add(u32::try_from(now.saturating_sub(sent.unwrap_or(0))).unwrap_or(u32::MAX));
        }
        self.count.fetch_add(1, Ordering::Release);
    }

    async fn wait_for(&self, count: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.count.load(Ordering::Acquire) < count {
            ensure!(Instant::now() < deadline, "{:?} of {count} messages arrived", self.count);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    fn outcome(&self, messages: u64, started: Instant, before: &CpuTime) -> Result<Outcome> {
        let seconds = started.elapsed().as_secs_f64();
        let cpu_seconds = CpuTime::of(std::process::id())?.since(before).as_secs_f64();
        let (p50_ms, p99_ms) = self.times.as_ref().map_or((0.0, 0.0), parking::Times::percentiles);
        Ok(Outcome { messages, seconds, cpu_seconds, p50_ms, p99_ms })
    }
}

impl Live for Arrived {
    fn deliver(&self, events: &[LiveEvent]) {
        for event in events {
            if let LiveEvent::Publication(entry) = event {
                let entry: &Entry = entry;
                self.arrived(&entry.publication.data);
            }
        }
    }
}

/// One replica's log. Its tasks and connections end when it is dropped.
pub struct Replica {
    /// The log.
    pub log: Arc<NatsLog>,
}

impl Replica {
    /// Connects, and makes the streams where there are none.
    pub async fn start(urls: &[String], shards: u32, prefix: &str) -> Result<Self> {
        let pool = Pool::connect(PoolConfig::new(urls)).await?;
        pool.wait_ready(Duration::from_secs(10)).await?;
        let group = GroupConfig { shards, max_bytes: Some(1 << 30), ..GroupConfig::default() };
        let replicas = u32::try_from(urls.len())?;
        let config = LogConfig { prefix: prefix.into(), replicas, groups: vec![group], ..LogConfig::default() };
        Ok(Self { log: NatsLog::start(PoolLinks::new(pool), config).await? })
    }
}

/// An append without history limits, idempotency or conditions.
pub fn append(channel: &Arc<str>, data: Bytes) -> Append {
    let publication = Publication { data, ..Publication::default() };
    let retention = Retention { size: 100, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(600) };
    Append { channel: channel.clone(), publication, retention, idempotency: None, expected: None, version: None }
}

/// When the next message may go; sends what is due once in a millisecond.
struct Clock {
    pace: Pace,
    started: Instant,
    tick: tokio::time::Interval,
    due: u64,
    sent: u64,
}

impl Clock {
    fn start(pace: Pace) -> Self {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        Self { pace, started: Instant::now(), tick, due: 0, sent: 0 }
    }

    /// Whether one more is to be sent; waits until then.
    async fn next(&mut self) -> bool {
        while self.started.elapsed() < self.pace.time {
            match self.pace.rate {
                Some(rate) if self.sent >= self.due => {
                    self.tick.tick().await;
                    self.due = (self.started.elapsed().as_secs_f64() * rate as f64) as u64;
                }
                _ => {
                    self.sent += 1;
                    return true;
                }
            }
        }
        false
    }
}

/// Does the work once, on streams that are removed afterwards.
pub async fn load(who: Who, servers: &Servers, pace: Pace) -> Result<Outcome> {
    match who {
        Who::Log { shards } => through_the_log(servers, shards, pace).await,
        Who::Bare { headers } => bare(servers, headers, pace).await,
        Who::Go => go(servers, pace).await,
    }
}

/// With a pace the subscriber is another replica, with connections of its own.
async fn through_the_log(servers: &Servers, shards: u32, pace: Pace) -> Result<Outcome> {
    let prefix = unique();
    let publisher = Replica::start(&servers.urls, shards, &prefix).await?;
    let other = match pace.rate {
        Some(_) => Some(Replica::start(&servers.urls, shards, &prefix).await?),
        None => None,
    };
    let subscriber = other.as_ref().unwrap_or(&publisher);
    let arrived = Arrived::new(pace);
    let channels: Vec<Arc<str>> = (0..CHANNELS).map(|channel| format!("bench-{channel:02}").into()).collect();
    for channel in &channels {
        subscriber.log.subscribe(channel, arrived.clone()).await?;
    }
    let (log, counting) = (publisher.log.clone(), arrived.clone());
    let before = CpuTime::of(std::process::id())?;
    let started = Instant::now();
    let publishing = tokio::spawn(async move {
        let mut waiting = VecDeque::with_capacity(WINDOW);
        let mut clock = Clock::start(pace);
        while clock.next().await {
            if waiting.len() == WINDOW
                && let Some(first) = waiting.pop_front()
            {
                first.await?;
            }
            let channel = &channels[clock.sent as usize % CHANNELS];
            waiting.push_back(log.append(append(channel, counting.payload())));
        }
        for acknowledged in waiting {
            acknowledged.await?;
        }
        anyhow::Ok(clock.sent)
    });
    let messages = publishing.await??;
    arrived.wait_for(messages).await?;
    let outcome = arrived.outcome(messages, started, &before)?;
    drop((publisher, other));
    remove_streams(&servers.urls, &prefix).await?;
    Ok(outcome)
}

async fn bare(servers: &Servers, headers: bool, pace: Pace) -> Result<Outcome> {
    let name = unique();
    let context = jetstream::new(async_nats::connect(&servers.urls).await?);
    let republish = stream::Republish {
        source: format!("{name}.log.>"),
        destination: format!("{name}.live.>"),
        headers_only: false,
    };
    let config = stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.log.>")],
        num_replicas: servers.urls.len(),
        republish: Some(republish),
        allow_direct: true,
        ..stream::Config::default()
    };
    context.create_stream(config).await?;
    let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
    let subscribing = options.connect(&servers.urls).await?;
    let mut subscriber = subscribing.subscribe(format!("{name}.live.>")).await?;
    subscribing.flush().await?;
    let arrived = Arrived::new(pace);
    let counting = arrived.clone();
    let counter = tokio::spawn(async move {
        while let Some(message) = subscriber.next().await {
            counting.arrived(&message.payload);
        }
    });
    let (publisher, counting, stream) = (context.clone(), arrived.clone(), name.clone());
    let before = CpuTime::of(std::process::id())?;
    let started = Instant::now();
    let publishing = tokio::spawn(async move {
        let mut waiting: VecDeque<jetstream::context::PublishAckFuture> = VecDeque::with_capacity(WINDOW);
        let subjects: Vec<_> = (0..CHANNELS).map(|channel| format!("{stream}.log.c.bench-{channel:02}")).collect();
        let mut clock = Clock::start(pace);
        while clock.next().await {
            if waiting.len() == WINDOW
                && let Some(first) = waiting.pop_front()
            {
                first.into_future().await?;
            }
            let subject = subjects[clock.sent as usize % CHANNELS].clone();
            let sent = if headers {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("0123456789abcdef{:x}", clock.sent));
                headers.insert("Nats-Expected-Stream", stream.as_str());
                publisher.publish_with_headers(subject, headers, counting.payload()).await?
            } else {
                publisher.publish(subject, counting.payload()).await?
            };
            waiting.push_back(sent);
        }
        for acknowledged in waiting {
            acknowledged.into_future().await?;
        }
        anyhow::Ok(clock.sent)
    });
    let messages = publishing.await??;
    arrived.wait_for(messages).await?;
    let outcome = arrived.outcome(messages, started, &before)?;
    counter.abort();
    context.delete_stream(&name).await?;
    Ok(outcome)
}

async fn go(servers: &Servers, pace: Pace) -> Result<Outcome> {
    let output = Command::new(go_program().await?)
        .args(["-servers", &servers.urls.join(",")])
        .args(["-replicas", &servers.urls.len().to_string()])
        .args(["-window", &WINDOW.to_string()])
        .args(["-subjects", &CHANNELS.to_string()])
        .args(["-bytes", &BYTES.to_string()])
        .args(["-rate", &pace.rate.unwrap_or(0).to_string()])
        .args(["-seconds", &pace.time.as_secs_f64().to_string()])
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(pace.time + 2 * PATIENCE, output).await.context("the Go client does not end")??;
    ensure!(output.status.success(), "the Go client ended with {}", output.status);
    serde_json::from_slice(&output.stdout).context("the Go client's output")
}

/// Builds the Go client's program beside this one, once.
async fn go_program() -> Result<PathBuf> {
    static BUILT: tokio::sync::OnceCell<PathBuf> = tokio::sync::OnceCell::const_new();
    let program = BUILT.get_or_try_init(|| async {
        let program = std::env::current_exe()?.with_file_name("plenum-bench-go");
        let proxy = Command::new("go").args(["env", "GOPROXY"]).output().await;
        let Ok(proxy) = proxy else {
            return Err(Unavailable("the Go client needs the program go, which is missing".into()).into());
        };
        // Modules come from a proxy only, never from the places where they are developed.
        let proxy = String::from_utf8(proxy.stdout)?.trim().replace(",direct", "");
        let status = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/go-bench"))
            .envs([("GOPROXY", proxy.as_str()), ("GOFLAGS", "-mod=readonly -buildvcs=false")])
            .stdout(std::process::Stdio::from(std::io::stderr()))
            .status()
            .await?;
        ensure!(status.success(), "the Go client cannot be built");
        anyhow::Ok(program)
    });
    program.await.cloned()
}

/// A prefix that no other load has.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("bench{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn remove_streams(urls: &[String], prefix: &str) -> Result<()> {
    let context = jetstream::new(async_nats::connect(urls).await?);
    let mut names = context.stream_names();
    let mut ours = Vec::new();
    while let Some(name) = names.next().await {
        ours.extend(
            name.ok()
                .filter(|name| name.starts_with(&format!("{prefix}-")) || name.starts_with(&format!("KV_{prefix}-"))),
        );
    }
    for name in ours {
        context.delete_stream(name).await?;
    }
    Ok(())
}
