//! CPU time of the server for each delivery of a publication to a subscriber.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use plenum_protocol::{PublishRequest, Request};
use serde_json::json;

use super::Context;
use super::audience::{Audience, SMALLEST_PAYLOAD, payload};
use crate::http::{Caller, request};
use crate::report::{Line, Samples, Target, number};
use crate::server::{Server, WITH_HISTORY, micros};
use crate::swarm::{Greeting, Swarm, commands};
use crate::websocket::text_frame;

/// How long a round may take until all have everything.
const ROUND: Duration = Duration::from_secs(10);
/// Equal parts of a run, each measured; the median counts.
const SAMPLES: u64 = 5;
/// How long the server is watched with all subscribers there and nothing published.
const IDLE: Duration = Duration::from_secs(3);

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Publisher {
    /// A client: a burst is one WebSocket frame of publish commands.
    Websocket,
    /// The server API: a burst is one batch.
    Api,
}

/// CPU µs per delivery: publish a burst, wait until every subscriber has all of it, publish the next.
#[derive(Args, Clone, Debug)]
pub struct Deliveries {
    /// Publications in one frame or batch.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub burst: u64,
    /// Who publishes.
    #[arg(long, value_enum, default_value_t = Publisher::Websocket)]
    pub publisher: Publisher,
    /// Subscribers of the channel.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=18_000))]
    pub subscribers: u64,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(SMALLEST_PAYLOAD as u64..=32_768))]
    pub size: u64,
    /// Publications in all, rounded up to five parts of whole bursts. Default: 1,000, and 4,000 in bursts.
    #[arg(long)]
    pub publications: Option<u64>,
    /// The channel keeps history.
    #[arg(long)]
    pub history: bool,
}

impl Deliveries {
    /// A burst of this size from this publisher, everything else as it is by default.
    pub fn of(burst: u64, publisher: Publisher) -> Self {
        Self { burst, publisher, subscribers: 1000, size: 128, publications: None, history: false }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let publisher = match self.publisher {
            Publisher::Websocket => "websocket",
            Publisher::Api => "api",
        };
        let mut command = format!("plenum-bench deliveries --burst {} --publisher {publisher}", self.burst);
        if self.subscribers != 1000 {
            command += &format!(" --subscribers {}", self.subscribers);
        }
        if self.size != 128 {
            command += &format!(" --size {}", self.size);
        }
        if let Some(publications) = self.publications {
            command += &format!(" --publications {publications}");
        }
        if self.history {
            command += " --history";
        }
        command
    }

    /// Measures.
    pub fn measure(&self, context: &Context<'_>) -> Result<Vec<Line>> {
        let server = Server::start(context.binary)?;
        let mut stage = Stage::new(self, &server)?;
        let rounds = self.publications.unwrap_or(if self.burst == 1 { 1000 } else { 4000 }).div_ceil(self.burst);
        for _ in 0..rounds.div_ceil(10) {
            stage.round()?;
        }
        let idle = server.idle_cpu(IDLE, |time| stage.swarm.stay(time, &mut stage.audience))?;
        let (delivered, tally) = (stage.audience.delivered, stage.swarm.tally());
        let (mut times, mut samples) = (Vec::new(), Vec::new());
        let start = Instant::now();
        for _ in 0..SAMPLES {
            let (before, behind) = (server.cpu()?, stage.audience.delivered);
            for _ in 0..rounds.div_ceil(SAMPLES) {
                times.push(stage.round()?);
            }
            samples.push(micros(server.cpu()?.since(&before)) / (stage.audience.delivered - behind) as f64);
        }
        let elapsed = start.elapsed();
        let count = stage.audience.delivered - delivered;
        ensure!(count == times.len() as u64 * self.burst * self.subscribers, "{count} deliveries instead of all");
        let samples = Samples::new(samples);
        times.sort_unstable();
        let percentile = |part: usize| number(micros(times[(times.len() - 1) * part / 100]) / 1000.0);
        let notes = format!(
            "{}; {} deliveries in {:.1} s, each checked; {} to a client's read; publish to last delivery p50 {} ms, p99 {} ms; \
             server without publications: {} µs CPU a second",
            samples.spread(),
            number(count as f64),
            elapsed.as_secs_f64(),
            number(count as f64 / (stage.swarm.tally().reads - tally.reads).max(1) as f64),
            percentile(50),
            percentile(99),
            number(idle),
        );
        Ok(vec![Line::new(self.name(), samples.median(), "µs CPU", self.target()).notes(notes)])
    }

    fn name(&self) -> String {
        let from = match self.publisher {
            Publisher::Websocket => "client",
            Publisher::Api => "API",
        };
        let how = match self.burst {
            1 => "one at a time".to_owned(),
            burst => format!("bursts of {burst}"),
        };
        let history = if self.history { ", with history" } else { "" };
        format!("delivery to {} subscribers, {how}, from {from}{history}", number(self.subscribers as f64))
    }

    fn target(&self) -> Option<Target> {
        match (self.burst, self.subscribers, self.size) {
            (1, 1000, 128) => Some(Target::AtMost(6.0)),
            (8, 1000, 128) => Some(Target::AtMost(1.5)),
            _ => None,
        }
    }
}

/// A channel, its subscribers and a publisher.
struct Stage<'a> {
    deliveries: &'a Deliveries,
    server: &'a Server,
    swarm: Swarm,
    audience: Audience,
    channel: String,
    caller: Option<Caller>,
    published: u64,
}

impl<'a> Stage<'a> {
    fn new(deliveries: &'a Deliveries, server: &'a Server) -> Result<Self> {
        let subscribers = usize::try_from(deliveries.subscribers)?;
        let channel = if deliveries.history { format!("{WITH_HISTORY}:bench") } else { "bench".to_owned() };
        let mut audience = Audience::new(&channel, subscribers, usize::try_from(deliveries.size)?);
        let mut swarm = Swarm::new(server.address())?;
        let greeting = Greeting::new("", Some(&channel))?;
        let time = Duration::from_secs(30);
        swarm.open(subscribers, 64, time, |_| greeting.clone(), &mut audience)?;
        let caller = match deliveries.publisher {
            Publisher::Websocket => {
                let greeting = Greeting::new("", None)?;
                swarm.open(1, 1, time, |_| greeting.clone(), &mut audience)?;
                None
            }
            Publisher::Api => Some(Caller::new(server.address())?),
        };
        Ok(Self { deliveries, server, swarm, audience, channel, caller, published: 0 })
    }

    /// Publishes a burst and waits until everybody has it; how long that took.
    fn round(&mut self) -> Result<Duration> {
        let burst = self.deliveries.burst;
        self.audience.begin_round(self.published)?;
        let payloads: Vec<_> =
            (self.published..self.published + burst).map(|n| payload(n, self.deliveries.size as usize)).collect();
        let goal = self.audience.delivered + burst * self.deliveries.subscribers;
        let replies = self.audience.replies + if self.caller.is_some() { 0 } else { burst };
        let start = Instant::now();
        match &mut self.caller {
            Some(caller) => caller.send(&api_request(self.server, &self.channel, &payloads))?,
            None => {
                let publish = |data: &bytes::Bytes| {
                    let channel = self.channel.clone();
                    Request::Publish(PublishRequest { channel, data: data.clone(), ..PublishRequest::default() })
                };
                let requests: Vec<_> = payloads.iter().map(publish).collect();
                let frame = text_frame(&commands(self.published as u32 + 2, &requests)?);
                self.swarm.send(usize::try_from(self.deliveries.subscribers)?, &frame)?;
            }
        }
        self.published += burst;
        while self.audience.delivered < goal || self.audience.replies < replies {
            self.swarm.turn(Duration::from_millis(200), &mut self.audience)?;
            ensure!(start.elapsed() < ROUND, "{} deliveries missing after {ROUND:?}", goal - self.audience.delivered);
        }
        if let Some(caller) = &mut self.caller {
            let done = caller.receive()?;
            ensure!(done == burst, "the API carried out {done} of {burst} publishes");
        }
        Ok(start.elapsed())
    }
}

fn api_request(server: &Server, channel: &str, payloads: &[bytes::Bytes]) -> Vec<u8> {
    // Payloads are JSON of our own making.
    let data = |payload: &bytes::Bytes| String::from_utf8_lossy(payload).into_owned();
    let publish = |payload| format!(r#"{{"channel":{},"data":{}}}"#, json!(channel), data(payload));
    match payloads {
        [payload] => request(server.address(), "publish", &publish(payload)),
        payloads => {
            let commands: Vec<_> = payloads.iter().map(|p| format!(r#"{{"publish":{}}}"#, publish(p))).collect();
            request(server.address(), "batch", &format!(r#"{{"commands":[{}]}}"#, commands.join(",")))
        }
    }
}
