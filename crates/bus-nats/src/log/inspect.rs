//! What the streams are like, for operators: nothing is created or changed.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::Client;
use plenum_telemetry::{Finding, State};
use serde::Deserialize;
use serde_json::Value;

use super::bucket::Bucket;
use super::config::LogConfig;
use super::entry::parse_time_ms;
use super::jetstream::{RequestError, api, get_last};
use super::names::{self, ShardNames};
use super::settings::{Verified, stream_config, verify};
use super::setup::{Layout, ShardRecord, StreamInfo, merge_layout, record_key};

/// Replicas take a shard for doubtful after this time without a tick, milliseconds.
const DOUBTFUL_MS: u64 = 3_000;

/// After so many failures the rest is not looked at: each may have taken seconds.
const ENOUGH: usize = 4;

/// Most that a copy may lie behind without being worth a line.
const LAG: u64 = 1_000;

/// A copy that the leader has not heard of for so long is away, nanoseconds.
const SILENCE: u64 = 5_000_000_000;

/// What was found.
#[derive(Default)]
pub(crate) struct Inspected {
    pub findings: Vec<Finding>,
    /// How far ahead of this machine's clock each server's is, milliseconds.
    pub clocks: BTreeMap<String, i64>,
}

/// The part of `STREAM.INFO` that says how its copies are.
#[derive(Default, Deserialize)]
struct Copies {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    replicas: Vec<Copy>,
}

#[derive(Deserialize)]
struct Copy {
    name: String,
    #[serde(default)]
    current: bool,
    #[serde(default)]
    offline: bool,
    #[serde(default)]
    lag: u64,
    /// Nanoseconds since the leader heard of it; ticks make that a second at most.
    #[serde(default)]
    active: u64,
}

/// What all shards together come to.
#[derive(Default)]
struct Sum {
    streams: u32,
    bytes: u64,
    most: Option<u64>,
    leaders: BTreeMap<String, u32>,
    oldest_tick_ms: u64,
    regressed: u32,
}

/// Compares the cluster's record and every stream with the configuration.
pub(crate) async fn inspect(client: &Client, config: &LogConfig) -> Inspected {
    let mut inspected = Inspected::default();
    let findings = &mut inspected.findings;
    if let Err(error) = config.check() {
        findings.push(Finding::failed("settings of the log", error.to_string(), "correct the setting"));
        return inspected;
    }
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    let subject = format!("record {}", bucket.name);
    let layout = match bucket.get::<Layout>("layout").await {
        Ok(Some((layout, _))) => layout,
        Ok(None) => return nothing_yet(inspected, &subject, &config.prefix),
        Err(error) if error.code() == Some(10059) => return nothing_yet(inspected, &subject, &config.prefix),
        Err(error) => {
            let advice = "look at the NATS servers' logs and at the permissions of nats.user; without the record no replica starts";
            findings.push(Finding::failed(subject, error.to_string(), advice));
            return inspected;
        }
    };
    match merge_layout(&mut layout.clone(), config) {
        Ok(()) => findings.push(Finding::good(subject, "agrees with the configuration")),
        Err(error) => {
            let advice = "set the option back, or start with a new nats.prefix; replicas refuse to start like this";
            findings.push(Finding::failed(subject, error.to_string(), advice));
        }
    }
    let mut sum = Sum { most: Some(0), ..Sum::default() };
    let shards = config.groups.iter().enumerate().flat_map(|(index, group)| {
        let count = layout.groups.get(&group.name).copied().unwrap_or(0);
        (0..count).map(move |shard| (index, shard))
    });
    for place in shards {
        if inspected.findings.iter().filter(|finding| finding.state == State::Failed).count() >= ENOUGH {
            let found = "the others were not looked at, because so much failed";
            inspected.findings.push(Finding::skipped("streams", found, "mend what is named above first"));
            break;
        }
        look(&bucket, config, &layout.incarnation, place, &mut sum, &mut inspected).await;
    }
    let failed = inspected.findings.iter().any(|finding| finding.state == State::Failed);
    let summary = sum.text(config.replicas);
    if !failed && sum.oldest_tick_ms > DOUBTFUL_MS {
        let found = format!("{summary}; no tick for {:.1} s", sum.oldest_tick_ms as f64 / 1e3);
        let advice = "no replica reaches NATS, or none runs: without ticks every replica takes the log for doubtful";
        inspected.findings.push(Finding::failed("streams", found, advice));
    } else if !failed {
        inspected.findings.push(Finding::good("streams", summary));
    }
    inspected
}

fn nothing_yet(mut inspected: Inspected, subject: &str, prefix: &str) -> Inspected {
    let found = format!("nothing is kept under the prefix {prefix} yet");
    let advice = "the first replica creates it; if replicas run, nats.prefix or the account differs from theirs";
    inspected.findings.push(Finding::warning(subject, found, advice));
    inspected
}

/// Looks at one stream.
async fn look(
    bucket: &Bucket<'_>,
    config: &LogConfig,
    incarnation: &str,
    (index, shard): (usize, u32),
    sum: &mut Sum,
    inspected: &mut Inspected,
) {
    let group = &config.groups[index];
    let findings = &mut inspected.findings;
    let subject = format!("shard {shard} of group {}", group.name);
    let record = match bucket.get::<ShardRecord>(&record_key(&group.name, shard)).await {
        Ok(Some((record, _))) => record,
        Ok(None) => {
            findings.push(Finding::warning(subject, "it has no record yet", "start a replica, which creates it"));
            return;
        }
        Err(error) => {
            findings.push(Finding::failed(subject, error.to_string(), "look at the NATS servers' logs"));
            return;
        }
    };
    let stream = names::stream(&config.prefix, &group.name, shard, incarnation, record.regress);
    let subject = format!("stream {stream}");
    let asked = unix_ms();
    let value = match api::<Value>(bucket.client, &format!("STREAM.INFO.{stream}"), &()).await {
        Ok(value) => value,
        Err(error) => {
            findings.push(Finding::failed(subject, error.to_string(), advice_for(&error)));
            return;
        }
    };
    let names = ShardNames::new(&config.prefix, &group.name, shard);
    let wanted = stream_config(&stream, &names, config, group, record.first_seq);
    let copies: Copies = serde_json::from_value(value["cluster"].clone()).unwrap_or_default();
    let now = value["ts"].as_str().and_then(parse_time_ms);
    if let Some(now) = now {
        let middle = asked.midpoint(unix_ms());
        inspected.clocks.insert(copies.leader.clone(), now as i64 - middle as i64);
    }
    match serde_json::from_value::<StreamInfo>(value.clone()) {
        Ok(info) => match verify(&stream, &wanted, &info) {
            Ok(Verified::AsWanted) => {}
            Ok(Verified::Widen(_)) => {
                let found = "keeps less than nats.max_age or nats.max_bytes say";
                findings.push(Finding::warning(&*subject, found, "restart one replica, which widens it"));
            }
            Err(error) => {
                let advice =
                    "set it back with the nats command line tool; replicas prove nothing on a stream like this";
                findings.push(Finding::failed(&*subject, error.to_string(), advice));
            }
        },
        Err(error) => findings.push(Finding::failed(&*subject, error.to_string(), "is the NATS server too new?")),
    }
    findings.extend(copies.findings(&subject, config.replicas));
    sum.add(&value["state"], &value["config"], &copies, record.regress);
    match (get_last(bucket.client, &stream, vec![names.tick()], 0).await, now) {
        (Ok(answer), Some(now)) => {
            let tick = answer.messages.first().map_or(0, |tick| tick.time_ms);
            sum.oldest_tick_ms = sum.oldest_tick_ms.max(now.saturating_sub(tick));
        }
        (Ok(_), None) => {}
        (Err(RequestError::NotFound), _) => sum.oldest_tick_ms = u64::MAX,
        (Err(error), _) => findings.push(Finding::failed(subject, error.to_string(), advice_for(&error))),
    }
}

impl Copies {
    fn findings(&self, subject: &str, wanted: u32) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.leader.is_empty() {
            let advice = "appends wait: are a majority of the NATS servers up, and do they reach each other?";
            findings.push(Finding::failed(subject, "it has no leader", advice));
        }
        for copy in &self.replicas {
            // A leader that was elected after it had gone never heard of it: no time is told then.
            let unheard = !copy.current && copy.active == 0;
            if copy.offline || copy.active > SILENCE || unheard {
                let since = match unheard {
                    true => "since the leader was elected".to_owned(),
                    false => format!("for {} s", copy.active / 1_000_000_000),
                };
                let found = format!("the copy on {} is silent {since}", copy.name);
                let advice = "bring that server back: with one more away the stream stops";
                findings.push(Finding::failed(subject, found, advice));
            } else if !copy.current && copy.lag > LAG {
                let found = format!("the copy on {} is {} entries behind", copy.name, copy.lag);
                findings.push(Finding::warning(subject, found, "look at that server's disk and network"));
            }
        }
        let found = self.replicas.len() as u32 + 1;
        if found < wanted {
            let advice = "are there as many NATS servers as nats.replicas says?";
            findings.push(Finding::failed(subject, format!("{found} copies of {wanted}"), advice));
        }
        findings
    }
}

impl Sum {
    fn add(&mut self, state: &Value, config: &Value, copies: &Copies, regress: u32) {
        self.streams += 1;
        self.bytes += state["bytes"].as_u64().unwrap_or(0);
        let most = config["max_bytes"].as_i64().filter(|most| *most > 0);
        self.most = self.most.zip(most).map(|(sum, most)| sum + most as u64);
        *self.leaders.entry(copies.leader.clone()).or_default() += 1;
        self.regressed = self.regressed.max(regress);
    }

    fn text(&self, copies: u32) -> String {
        let leaders: Vec<String> = self.leaders.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let most = self.most.map_or("without a limit".to_owned(), |most| format!("of at most {}", bytes(most)));
        let mut text = format!(
            "{} with {copies} copies each, leaders {}, {} {most}",
            self.streams,
            leaders.join(", "),
            bytes(self.bytes)
        );
        if self.regressed > 0 {
            text += &format!("; positions went back {} times so far", self.regressed);
        }
        text
    }
}

fn advice_for(error: &RequestError) -> &'static str {
    match error {
        RequestError::Refused { code: 10059, .. } => {
            "the stream is gone: a replica replaces it by an empty one within seconds, and tells its clients"
        }
        RequestError::Unavailable(_) => "are a majority of the NATS servers up, and is JetStream on?",
        _ => "look at the NATS servers' logs",
    }
}

/// As people read it.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (count.max(1).ilog2() / 10).min(4);
    match power {
        0 => format!("{count} B"),
        _ => format!("{:.1} {}", count as f64 / (1u64 << (10 * power)) as f64, units[power as usize]),
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
