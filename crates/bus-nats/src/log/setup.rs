//! The streams: created, checked and widened at start, so that replicas that start together agree.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::config::{GroupConfig, LogConfig};
use super::jetstream::{RequestError, api, parse_api};
use super::names::{self, ShardNames};

/// Oldest server that has what the log needs: batched direct get and the checks on appends.
const MIN_SERVER: (i64, i64, i64) = (2, 12, 0);

/// How long the server remembers ids of appends.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How often a step is tried while the servers elect or another replica is faster.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(500);

/// A stream that was created is taken for lost after so many answers that there is none.
const MISSING: u32 = 5;

/// The new incarnation's first sequence stands this far above everything seen.
const SAFETY_DISTANCE: u64 = 1_000_000;

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A setting of this replica is impossible.
    #[error("setting {setting}: {reason}")]
    Configuration {
        /// Name of the setting.
        setting: String,
        /// What it must be.
        reason: String,
    },
    /// The server is too old.
    #[error("the NATS server is version {version}; {} or later is needed", min_server())]
    ServerTooOld {
        /// Its version.
        version: String,
    },
    /// The cluster was set up with another value, which cannot be changed under the same prefix.
    #[error(
        "setting {setting} is {wanted} here but {found} in the cluster; it cannot be changed where data is kept: \
         start with a new prefix, or set it back"
    )]
    Immutable {
        /// Name of the setting.
        setting: String,
        /// What this replica was given.
        wanted: String,
        /// What the cluster's record says.
        found: String,
    },
    /// A stream has a setting that breaks a promise; somebody else changed it.
    #[error("stream {stream}: setting {setting} is {found}, must be {wanted}")]
    Stream {
        /// Name of the stream.
        stream: String,
        /// Name of the setting in the stream's configuration.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// The servers gave no usable answer.
    #[error("{doing}: {reason}")]
    Unavailable {
        /// The step that failed.
        doing: String,
        /// Why.
        reason: String,
    },
}

fn min_server() -> String {
    format!("{}.{}.{}", MIN_SERVER.0, MIN_SERVER.1, MIN_SERVER.2)
}

/// What all replicas agree on. Values that stand here can never be changed, only new ones added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Layout {
    format: u32,
    incarnation: String,
    /// Number of shards by group.
    groups: BTreeMap<String, u32>,
    /// Group by namespace.
    namespaces: BTreeMap<String, String>,
}

/// What all replicas agree on about one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShardRecord {
    /// How often positions went back or a stream was lost.
    regress: u32,
    first_seq: u64,
    /// The stream was created; when it is missing from now on, it was lost.
    ready: bool,
}

impl ShardRecord {
    /// The next incarnation, with sequences above everything that was seen of this one.
    fn after(&self, seen: u64) -> Self {
        let first_seq = seen.max(self.first_seq) + SAFETY_DISTANCE;
        Self { regress: self.regress + 1, first_seq, ready: false }
    }
}

/// One incarnation of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incarnation {
    pub stream: String,
    pub epoch: String,
    pub regress: u32,
    pub first_seq: u64,
}

/// The part of `STREAM.INFO` that is used.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub config: Value,
    pub state: StreamState,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    #[serde(default)]
    pub first_seq: u64,
    #[serde(default)]
    pub last_seq: u64,
    #[serde(default)]
    pub num_deleted: u64,
}

/// Asks the stream's leader.
pub(super) async fn stream_info(client: &Client, stream: &str) -> Result<StreamInfo, RequestError> {
    api(client, &format!("STREAM.INFO.{stream}"), &()).await
}

/// What a replica works with once everything is set up.
pub(super) struct Ready {
    /// Incarnations by group and shard, as configured.
    pub incarnations: Vec<Vec<Incarnation>>,
}

/// Creates, checks and widens everything.
pub(super) async fn set_up(client: &Client, config: &LogConfig) -> Result<Ready, SetupError> {
    config.check()?;
    let (major, minor, patch) = MIN_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(SetupError::ServerTooOld { version: client.server_info().version.clone() });
    }
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    retry("creating the cluster's record", || bucket.create(config.replicas)).await?;
    let layout = agree_on_layout(&bucket, config).await?;
    let mut incarnations = Vec::new();
    for group in &config.groups {
        let mut shards = Vec::new();
        for shard in 0..group.shards {
            shards.push(set_up_shard(&bucket, config, &layout, group, shard).await?);
        }
        incarnations.push(shards);
    }
    Ok(Ready { incarnations })
}

/// Reads again what all replicas agree on about a shard, and sets up what is missing.
pub(super) async fn set_up_again(
    client: &Client,
    config: &LogConfig,
    group: usize,
    shard: u32,
) -> Result<Incarnation, SetupError> {
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    retry("creating the cluster's record", || bucket.create(config.replicas)).await?;
    let layout = agree_on_layout(&bucket, config).await?;
    set_up_shard(&bucket, config, &layout, &config.groups[group], shard).await
}

/// Notes that positions of incarnation `from` went back although everything through `seen` had existed. The next
/// [`set_up_again`] makes another stream. Whoever notes it first decides.
pub(super) async fn note_regress(
    client: &Client,
    config: &LogConfig,
    group: usize,
    shard: u32,
    from: u32,
    seen: u64,
) -> Result<(), RequestError> {
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    let key = record_key(&config.groups[group].name, shard);
    let Some((record, revision)) = bucket.get::<ShardRecord>(&key).await? else { return Ok(()) };
    if record.regress == from {
        bucket.put(&key, &record.after(seen), revision).await?;
    }
    Ok(())
}

fn record_key(group: &str, shard: u32) -> String {
    format!("shard.{group}.{shard}")
}

async fn agree_on_layout(bucket: &Bucket<'_>, config: &LogConfig) -> Result<Layout, SetupError> {
    for _ in 0..TRIES {
        let found: Option<(Layout, u64)> = retry("reading the layout", || bucket.get("layout")).await?;
        let (mut layout, revision) = match found {
            Some((layout, revision)) => (layout, revision),
            None => {
                let incarnation = format!("{:08x}", rand::random::<u32>());
                let empty = Layout { format: 1, incarnation, groups: BTreeMap::new(), namespaces: BTreeMap::new() };
                (empty, 0)
            }
        };
        let before = layout.clone();
        merge_layout(&mut layout, config)?;
        if layout == before && revision > 0 {
            return Ok(layout);
        }
        match bucket.put("layout", &layout, revision).await {
            Ok(_) => return Ok(layout),
            // Another replica was faster, or nobody knows: read again.
            Err(_) => tokio::time::sleep(PAUSE / 5).await,
        }
    }
    Err(unavailable("agreeing on the layout", "other replicas kept changing it"))
}

/// Adds what is new to the layout; refuses what would change it.
fn merge_layout(layout: &mut Layout, config: &LogConfig) -> Result<(), SetupError> {
    let immutable = |setting: String, wanted: String, found: String| SetupError::Immutable { setting, wanted, found };
    if layout.format != 1 {
        return Err(immutable("format".into(), "1".into(), layout.format.to_string()));
    }
    for group in &config.groups {
        let found = *layout.groups.entry(group.name.clone()).or_insert(group.shards);
        if found != group.shards {
            let setting = format!("shards of retention group {}", group.name);
            return Err(immutable(setting, group.shards.to_string(), found.to_string()));
        }
    }
    for (namespace, group) in &config.namespaces {
        let found = layout.namespaces.entry(namespace.clone()).or_insert_with(|| group.clone());
        if found != group {
            let setting = format!("retention group of namespace {namespace:?}");
            return Err(immutable(setting, group.clone(), found.clone()));
        }
    }
    Ok(())
}

async fn set_up_shard(
    bucket: &Bucket<'_>,
    config: &LogConfig,
    layout: &Layout,
    group: &GroupConfig,
    shard: u32,
) -> Result<Incarnation, SetupError> {
    let key = record_key(&group.name, shard);
    let names = ShardNames::new(&config.prefix, &group.name, shard);
    let incarnation_id = &layout.incarnation;
    let mut missing = 0;
    for _ in 0..TRIES {
        let found: Option<(ShardRecord, u64)> = retry("reading a shard's record", || bucket.get(&key)).await?;
        let Some((record, revision)) = found else {
            let record = ShardRecord { regress: 0, first_seq: 1, ready: false };
            let _ = bucket.put(&key, &record, 0).await;
            continue;
        };
        let stream = names::stream(&config.prefix, &group.name, shard, incarnation_id, record.regress);
        let wanted = stream_config(&stream, &names, config, group, record.first_seq);
        let info = match stream_info(bucket.client, &stream).await {
            Ok(info) => info,
            Err(error) if error.code() == Some(10059) && !record.ready => {
                match api::<StreamInfo>(bucket.client, &format!("STREAM.CREATE.{stream}"), &wanted).await {
                    Ok(info) => info,
                    // The incarnation before this one still has the subjects.
                    Err(RequestError::Refused { code: 10065, .. }) => {
                        retire_others(bucket.client, config, group, shard, &stream, &names).await?;
                        continue;
                    }
                    Err(RequestError::Refused { code, description }) if !is_passing(code) => {
                        return Err(unavailable(&format!("creating stream {stream}"), &description));
                    }
                    Err(_) => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            // Servers that have just started may not know yet what they have.
            Err(error) if error.code() == Some(10059) && missing < MISSING => {
                missing += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) if error.code() == Some(10059) => {
                // The stream is gone, and with it every position: the next one has another name and epoch.
                let next = record.after(0);
                tracing::error!(stream, "the stream is gone; a new one takes its place");
                let _ = bucket.put(&key, &next, revision).await;
                continue;
            }
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match verify(&stream, &wanted, &info)? {
            Verified::AsWanted => {}
            Verified::Widen(update) => {
                let update = api::<StreamInfo>(bucket.client, &format!("STREAM.UPDATE.{stream}"), &update).await;
                update.map_err(|error| unavailable(&format!("widening stream {stream}"), &error.to_string()))?;
            }
        }
        if !record.ready {
            let _ = bucket.put(&key, &ShardRecord { ready: true, ..record.clone() }, revision).await;
        }
        let epoch = match record.regress {
            0 => incarnation_id.clone(),
            regress => format!("{incarnation_id}.{regress}"),
        };
        return Ok(Incarnation { stream, epoch, regress: record.regress, first_seq: record.first_seq });
    }
    Err(unavailable(&format!("setting up shard {shard} of {}", group.name), "no usable answer"))
}

/// Takes the shard's subjects from earlier incarnations. What they hold stays, for operators.
async fn retire_others(
    client: &Client,
    config: &LogConfig,
    group: &GroupConfig,
    shard: u32,
    stream: &str,
    names: &ShardNames,
) -> Result<(), SetupError> {
    #[derive(Deserialize)]
    struct Found {
        #[serde(default)]
        streams: Option<Vec<String>>,
    }
    let refuse = |error: RequestError| unavailable("retiring an earlier incarnation", &error.to_string());
    let found: Found = api(client, "STREAM.NAMES", &json!({ "subject": names.all() })).await.map_err(refuse)?;
    let ours = format!("{}-{}-{shard}-", config.prefix, group.name);
    for other in found.streams.into_iter().flatten().filter(|other| other != stream) {
        if !other.starts_with(&ours) {
            let reason = format!("stream {other}, which is not ours, has the subjects {}", names.all());
            return Err(unavailable(&format!("creating stream {stream}"), &reason));
        }
        tracing::error!(stream = other, "an earlier incarnation of a stream gives its subjects up");
        let mut update = stream_info(client, &other).await.map_err(refuse)?.config;
        update["subjects"] = json!([format!("{}.retired.{other}", config.prefix)]);
        if let Some(update) = update.as_object_mut() {
            update.remove("republish");
        }
        api::<Value>(client, &format!("STREAM.UPDATE.{other}"), &update).await.map_err(refuse)?;
    }
    Ok(())
}

fn is_passing(code: u64) -> bool {
    matches!(code, 10008 | 10009 | 10005 | 10023)
}

fn stream_config(stream: &str, names: &ShardNames, config: &LogConfig, group: &GroupConfig, first_seq: u64) -> Value {
    json!({
        "name": stream,
        "subjects": [names.all()],
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": config.replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_bytes": group.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(-1)),
        "max_age": u64::try_from(group.max_age.as_nanos()).unwrap_or(u64::MAX),
        "duplicate_window": DUPLICATE_WINDOW.as_nanos() as u64,
        "deny_delete": true,
        "deny_purge": true,
        "allow_rollup_hdrs": false,
        "allow_direct": true,
        "republish": { "src": names.all(), "dest": names.republished() },
        "first_seq": first_seq,
    })
}

enum Verified {
    AsWanted,
    Widen(Value),
}

/// Whether a running stream still keeps its promises; somebody may have changed it.
pub(super) fn check_running(
    stream: &str,
    names: &ShardNames,
    config: &LogConfig,
    group: usize,
    info: &StreamInfo,
) -> Result<(), SetupError> {
    verify(stream, &stream_config(stream, names, config, &config.groups[group], 0), info).map(drop)
}

/// Compares what a stream is with what it must be. Only a longer retention is applied by ourselves.
fn verify(stream: &str, wanted: &Value, info: &StreamInfo) -> Result<Verified, SetupError> {
    let refuse = |setting: &'static str, found: &Value, wanted: &Value| SetupError::Stream {
        stream: stream.into(),
        setting,
        found: found.to_string(),
        wanted: wanted.to_string(),
    };
    let exact = [
        "subjects",
        "retention",
        "storage",
        "discard",
        "max_msgs",
        "max_msgs_per_subject",
        "max_msg_size",
        "duplicate_window",
        "deny_delete",
        "deny_purge",
        "allow_direct",
    ];
    for setting in exact {
        if info.config[setting] != wanted[setting] {
            return Err(refuse(setting, &info.config[setting], &wanted[setting]));
        }
    }
    // What must not be on may be missing altogether.
    let off = [
        "allow_rollup_hdrs",
        "allow_msg_ttl",
        "sealed",
        "no_ack",
        "discard_new_per_subject",
        "mirror_direct",
        "allow_msg_counter",
        "allow_msg_schedules",
        "mirror",
        "sources",
        "subject_transform",
    ];
    for setting in off {
        let found = &info.config[setting];
        if !matches!(found, Value::Null | Value::Bool(false)) {
            return Err(refuse(setting, found, &Value::Bool(false)));
        }
    }
    for part in ["src", "dest"] {
        if info.config["republish"][part] != wanted["republish"][part] {
            return Err(refuse("republish", &info.config["republish"], &wanted["republish"]));
        }
    }
    if info.config["republish"]["headers_only"] == Value::Bool(true) {
        return Err(refuse("republish", &info.config["republish"], &wanted["republish"]));
    }
    if info.config["num_replicas"].as_u64() < wanted["num_replicas"].as_u64() {
        return Err(refuse("num_replicas", &info.config["num_replicas"], &wanted["num_replicas"]));
    }
    if info.state.num_deleted > 0 {
        return Err(refuse("state.num_deleted", &Value::from(info.state.num_deleted), &Value::from(0)));
    }
    let mut update = info.config.clone();
    let mut widen = false;
    for setting in ["max_age", "max_bytes"] {
        // Below 1 means without limit.
        let limit = |value: &Value| value.as_i64().filter(|limit| *limit > 0).unwrap_or(i64::MAX);
        let (found, want) = (limit(&info.config[setting]), limit(&wanted[setting]));
        if want < found {
            return Err(refuse(setting, &info.config[setting], &wanted[setting]));
        }
        if want > found {
            update[setting] = wanted[setting].clone();
            widen = true;
        }
    }
    Ok(if widen { Verified::Widen(update) } else { Verified::AsWanted })
}

fn unavailable(doing: &str, reason: &str) -> SetupError {
    SetupError::Unavailable { doing: doing.into(), reason: reason.into() }
}

/// Tries a request until it succeeds or is refused for good.
async fn retry<T, F: Future<Output = Result<T, RequestError>>>(
    doing: &str,
    mut request: impl FnMut() -> F,
) -> Result<T, SetupError> {
    let mut last = String::new();
    for _ in 0..TRIES {
        match request().await {
            Ok(value) => return Ok(value),
            Err(RequestError::Refused { code, description }) if !is_passing(code) => {
                return Err(unavailable(doing, &format!("{description} ({code})")));
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(unavailable(doing, &last))
}

/// A key-value bucket, written by compare-and-set and read from its leader.
struct Bucket<'a> {
    client: &'a Client,
    name: String,
}

impl Bucket<'_> {
    async fn create(&self, replicas: u32) -> Result<(), RequestError> {
        let config = json!({
            "name": format!("KV_{}", self.name),
            "subjects": [format!("$KV.{}.>", self.name)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": replicas,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msgs_per_subject": 8,
            "max_msg_size": -1,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        match api::<Value>(self.client, &format!("STREAM.CREATE.KV_{}", self.name), &config).await {
            Ok(_) => Ok(()),
            // There already, perhaps with more copies.
            Err(error) if error.code() == Some(10058) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The value and its revision.
    async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, RequestError> {
        #[derive(Deserialize)]
        struct Found {
            message: FoundMessage,
        }
        #[derive(Deserialize)]
        struct FoundMessage {
            seq: u64,
            #[serde(default)]
            data: String,
        }
        let malformed = |error: &dyn std::fmt::Display| RequestError::Malformed(error.to_string());
        let request = json!({ "last_by_subj": format!("$KV.{}.{key}", self.name) });
        match api::<Found>(self.client, &format!("STREAM.MSG.GET.KV_{}", self.name), &request).await {
            Ok(found) => {
                let data = BASE64_STANDARD.decode(&found.message.data).map_err(|error| malformed(&error))?;
                let value = serde_json::from_slice(&data).map_err(|error| malformed(&error))?;
                Ok(Some((value, found.message.seq)))
            }
            // No message found.
            Err(error) if error.code() == Some(10037) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes if the key's revision is `expected` (0: there is none). Returns the new revision.
    async fn put(&self, key: &str, value: &impl Serialize, expected: u64) -> Result<u64, RequestError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let body = serde_json::to_vec(value).map_err(|error| RequestError::Malformed(error.to_string()))?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let request = self.client.request_with_headers(format!("$KV.{}.{key}", self.name), headers, body.into());
        let answer = tokio::time::timeout(super::jetstream::REQUEST_TIMEOUT, request).await;
        match answer {
            Ok(Ok(answer)) => parse_api::<Ack>(&answer.payload).map(|ack| ack.seq),
            _ => Err(RequestError::Unavailable("the write was not acknowledged")),
        }
    }
}
