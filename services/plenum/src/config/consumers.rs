//! `consumers`: commands of the server API that come through JetStream. Names are Centrifugo's, whose consumers have a
//! connection each; here they use that of `nats`.

use plenum_channels::duration;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

use super::error::Problem;
use super::nats::is_name;
use super::sections::Config;

/// The only type there is.
const TYPE: &str = "nats_jetstream";
/// Longest name of a stream or a durable consumer, in bytes.
const MAX_NAME: usize = 128;

/// `consumers[]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Consumer {
    pub enabled: bool,
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub nats_jetstream: NatsJetStream,
}

/// `consumers[].nats_jetstream`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsJetStream {
    pub stream_name: String,
    pub subjects: Vec<String>,
    pub durable_consumer_name: String,
    pub deliver_policy: String,
    pub max_ack_pending: usize,
    pub tries: u32,
    #[serde(with = "duration")]
    pub retry_delay: Duration,
    pub max_message_size: usize,
    pub method_header: String,
    pub publication_data_mode: PublicationDataMode,
}

/// `consumers[].nats_jetstream.publication_data_mode`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublicationDataMode {
    pub enabled: bool,
    pub channels_header: String,
    pub idempotency_key_header: String,
    pub delta_header: String,
    pub version_header: String,
    pub version_epoch_header: String,
    pub tags_header_prefix: String,
}

impl Default for NatsJetStream {
    fn default() -> Self {
        Self {
            stream_name: String::new(),
            subjects: Vec::new(),
            durable_consumer_name: String::new(),
            deliver_policy: "all".into(),
            max_ack_pending: 1000,
            tries: 5,
            retry_delay: Duration::from_secs(1),
            max_message_size: 1 << 20,
            method_header: String::new(),
            publication_data_mode: PublicationDataMode::default(),
        }
    }
}

impl Default for PublicationDataMode {
    fn default() -> Self {
        Self {
            enabled: false,
            channels_header: "centrifugo-channels".into(),
            idempotency_key_header: "centrifugo-idempotency-key".into(),
            delta_header: "centrifugo-delta".into(),
            version_header: "centrifugo-version".into(),
            version_epoch_header: "centrifugo-version-epoch".into(),
            tags_header_prefix: "centrifugo-tag-".into(),
        }
    }
}

/// A consumer that is off may be of any type and hold anything: only that it is off is kept of it. One that is on and of
/// another type is reported, without a word on the options of that type.
pub(super) fn take_others(tree: &mut Map<String, Value>, problems: &mut Vec<Problem>) {
    let list = tree.get_mut("consumers").and_then(Value::as_array_mut);
    for (index, consumer) in list.into_iter().flatten().enumerate() {
        let Some(consumer) = consumer.as_object_mut() else { continue };
        let on = consumer.get("enabled").is_some_and(is_on);
        let kind = consumer.get("type").cloned().unwrap_or_default();
        if on && kind != TYPE {
            let (key, value) = (format!("consumers[{index}].type"), Some(super::unsupported::short(&kind)));
            let text = format!("must be {TYPE}; no other queue is supported");
            problems.push(Problem { source: String::new(), key, value, text });
        }
        if !on || kind != TYPE {
            consumer.retain(|key, _| key == "name");
        }
    }
}

/// What is not surely off counts as on, so that what is wrong with it is said.
fn is_on(enabled: &Value) -> bool {
    match enabled {
        Value::String(text) => !["", "0", "f", "false"].contains(&text.to_ascii_lowercase().as_str()),
        Value::Number(number) => number.as_u64() != Some(0),
        other => *other != Value::Bool(false) && !other.is_null(),
    }
}

/// Reports everything in `consumers` that cannot be used.
pub(super) fn check(config: &Config, problems: &mut Vec<Problem>) {
    let on: Vec<(usize, &Consumer)> =
        config.consumers.iter().enumerate().filter(|(_, consumer)| consumer.enabled).collect();
    for &(index, consumer) in &on {
        let mut report = |key: &str, value: Option<String>, text: &str| {
            let key = format!("consumers[{index}].{key}");
            problems.push(Problem { source: String::new(), key, value, text: text.to_owned() });
        };
        let earlier = || on.iter().filter(move |(other, _)| *other < index).map(|(_, other)| *other);
        if !is_name(&consumer.name) || earlier().any(|other| other.name == consumer.name) {
            let text = "must be 1 to 32 of a-z A-Z 0-9 - _, and unique";
            report("name", Some(format!("{:?}", consumer.name)), text);
        }
        if !config.nats.enabled() {
            report("enabled", Some("true".into()), "needs nats.servers, where its stream is");
        }
        let source = &consumer.nats_jetstream;
        let twin = earlier().any(|other| {
            let other = &other.nats_jetstream;
            (&other.stream_name, &other.durable_consumer_name) == (&source.stream_name, &source.durable_consumer_name)
        });
        if twin {
            let value = Some(format!("{:?}", source.durable_consumer_name));
            report("nats_jetstream.durable_consumer_name", value, "must be unique for its stream");
        }
        check_source(source, &mut report);
    }
}

fn check_source(source: &NatsJetStream, report: &mut dyn FnMut(&str, Option<String>, &str)) {
    let report = &mut |key: &str, value: Option<String>, text: &str| {
        report(&format!("nats_jetstream.{key}"), value, text);
    };
    for (key, name) in [("stream_name", &source.stream_name), ("durable_consumer_name", &source.durable_consumer_name)]
    {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
        if !(1..=MAX_NAME).contains(&name.len()) || !name.bytes().all(allowed) {
            let text = "must be 1 to 128 visible ASCII characters without . * > / \\";
            report(key, Some(format!("{name:?}")), text);
        }
    }
    for (index, subject) in source.subjects.iter().enumerate() {
        let tokens: Vec<&str> = subject.split('.').collect();
        let well_formed = |(place, token): (usize, &&str)| match *token {
            "*" => true,
            ">" => place + 1 == tokens.len(),
            token => !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic() && !b"*>".contains(&byte)),
        };
        if !tokens.iter().enumerate().all(well_formed) {
            let value = Some(format!("{subject:?}"));
            report(&format!("subjects[{index}]"), value, "must be a subject of NATS; * and > stand for tokens");
        }
    }
    if !["all", "new"].contains(&source.deliver_policy.as_str()) {
        report("deliver_policy", Some(format!("{:?}", source.deliver_policy)), "must be all or new");
    }
    for (key, value, least, most) in [
        ("max_ack_pending", source.max_ack_pending, 1, 10_000),
        ("tries", source.tries as usize, 1, 100),
        ("max_message_size", source.max_message_size, 1024, 8 << 20),
    ] {
        if !(least..=most).contains(&value) {
            report(key, Some(value.to_string()), &format!("must be from {least} to {most}"));
        }
    }
    if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&source.retry_delay) {
        report("retry_delay", Some(duration::format(&source.retry_delay)), "must be from 10ms to 1m");
    }
    let mode = &source.publication_data_mode;
    if mode.enabled && mode.channels_header.is_empty() {
        report("publication_data_mode.channels_header", Some("\"\"".into()), "must name a header: it says where to");
    }
    if mode.enabled && !source.method_header.is_empty() {
        let value = Some(format!("{:?}", source.method_header));
        report("method_header", value, "contradicts publication_data_mode.enabled: there are no methods in that mode");
    }
    for (key, name) in [
        ("method_header", &source.method_header),
        ("publication_data_mode.channels_header", &mode.channels_header),
        ("publication_data_mode.idempotency_key_header", &mode.idempotency_key_header),
        ("publication_data_mode.delta_header", &mode.delta_header),
        ("publication_data_mode.version_header", &mode.version_header),
        ("publication_data_mode.version_epoch_header", &mode.version_epoch_header),
        ("publication_data_mode.tags_header_prefix", &mode.tags_header_prefix),
    ] {
        if name.len() > MAX_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            report(
                key,
                Some(format!("{name:?}")),
                "must be the name of a header: at most 128 visible ASCII characters",
            );
        }
    }
}
