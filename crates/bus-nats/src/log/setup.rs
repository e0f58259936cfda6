//! The streams: created, checked and widened at start, so that replicas that start together agree.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bucket::Bucket;
use super::config::{GroupConfig, LogConfig};
use super::jetstream::{RequestError, api};
use super::names::{self, ShardNames};
use super::settings::{Verified, stream_config, verify};

/// Oldest server that has what the log needs: batched direct get and the checks on appends.
const MIN_SERVER: (i64, i64, i64) = (2, 12, 0);

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

/// The oldest version that will do, as text.
pub(crate) fn min_server() -> String {
    format!("{}.{}.{}", MIN_SERVER.0, MIN_SERVER.1, MIN_SERVER.2)
}

/// What all replicas agree on. Values that stand here can never be changed, only new ones added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub format: u32,
    pub incarnation: String,
    /// Number of shards by group.
    pub groups: BTreeMap<String, u32>,
    /// Group by namespace.
    pub namespaces: BTreeMap<String, String>,
}

/// What all replicas agree on about one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    /// How often positions went back or a stream was lost.
    pub regress: u32,
    pub first_seq: u64,
    /// The stream was created; when it is missing from now on, it was lost.
    pub ready: bool,
    /// The stream had reached this sequence: if it ends below it, it went back while no replica ran.
    #[serde(default)]
    pub high: u64,
}

impl ShardRecord {
    /// The next incarnation, with sequences above everything that was seen of this one.
    fn after(&self, seen: u64) -> Self {
        let first_seq = seen.max(self.first_seq) + SAFETY_DISTANCE;
        Self { regress: self.regress + 1, first_seq, ready: false, high: 0 }
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
    #[serde(default)]
    pub cluster: Option<StreamCluster>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamCluster {
    /// Name of the server that leads the stream; none while there is no leader.
    #[serde(default)]
    pub leader: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    #[serde(default)]
    pub first_seq: u64,
    #[serde(default)]
    pub last_seq: u64,
    #[serde(default)]
    pub num_deleted: u64,
    /// What the server could not read back from its disk.
    #[serde(default)]
    pub lost: Option<LostData>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct LostData {
    /// Sequences.
    #[serde(default)]
    pub msgs: Option<Vec<u64>>,
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
    let version = server_version(client).await?;
    if !is_new_enough(&version) {
        return Err(SetupError::ServerTooOld { version });
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

/// Adds namespaces to what all replicas agree on; refuses one that stands there with another group.
pub(super) async fn record_namespaces(
    client: &Client,
    config: &LogConfig,
    namespaces: BTreeMap<String, String>,
) -> Result<(), SetupError> {
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    agree_on_layout(&bucket, &LogConfig { namespaces, ..config.clone() }).await.map(drop)
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

/// Notes how far a shard's stream had come some time ago, so that a loss is seen even if no replica runs when it happens.
pub(super) async fn note_high(
    client: &Client,
    config: &LogConfig,
    group: usize,
    shard: u32,
    regress: u32,
    high: u64,
) -> Result<(), RequestError> {
    let bucket = Bucket { client, name: names::bucket(&config.prefix) };
    let key = record_key(&config.groups[group].name, shard);
    match bucket.get::<ShardRecord>(&key).await? {
        Some((record, revision)) if record.ready && record.regress == regress && record.high < high => {
            bucket.put(&key, &ShardRecord { high, ..record }, revision).await.map(drop)
        }
        _ => Ok(()),
    }
}

pub(super) fn record_key(group: &str, shard: u32) -> String {
    format!("shard.{group}.{shard}")
}

/// The version of the server, once there is contact.
async fn server_version(client: &Client) -> Result<String, SetupError> {
    for _ in 0..TRIES {
        let version = client.server_info().version.clone();
        if !version.is_empty() {
            return Ok(version);
        }
        tokio::time::sleep(PAUSE / 2).await;
    }
    Err(unavailable("asking for the server's version", "there is no contact"))
}

/// Whether a server of this version has what the log needs.
pub(crate) fn is_new_enough(version: &str) -> bool {
    parse_version(version).is_some_and(|version| version >= MIN_SERVER)
}

/// `major.minor.patch`; what follows the numbers (`-RC.1`) does not count.
fn parse_version(version: &str) -> Option<(i64, i64, i64)> {
    let mut parts = version.trim_start_matches('v').splitn(3, '.');
    let mut number = || {
        let part = parts.next()?;
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    };
    Some((number()?, number()?, number()?))
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
pub(super) fn merge_layout(layout: &mut Layout, config: &LogConfig) -> Result<(), SetupError> {
    let immutable = |setting: String, wanted: String, found: String| SetupError::Immutable { setting, wanted, found };
    #[cfg(test)]
    if !layout.groups.is_empty() && super::faults::Faults::on(&config.faults.ignore_layout) {
        return Ok(());
    }
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
    let mut trouble = String::from("no usable answer");
    for _ in 0..TRIES {
        let found: Option<(ShardRecord, u64)> = retry("reading a shard's record", || bucket.get(&key)).await?;
        let Some((record, revision)) = found else {
            let record = ShardRecord { regress: 0, first_seq: 1, ready: false, high: 0 };
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
                    Err(error) => {
                        pause_after(&format!("creating stream {stream}"), &error, &mut trouble).await;
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
            Err(error) => {
                pause_after(&format!("asking for stream {stream}"), &error, &mut trouble).await;
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
        if record.ready && info.state.last_seq < record.high {
            tracing::error!(stream, ends_at = info.state.last_seq, had = record.high, "the stream went back");
            let _ = bucket.put(&key, &record.after(record.high), revision).await;
            continue;
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
    Err(unavailable(&format!("setting up shard {shard} of {}", group.name), &trouble))
}

/// Waits before the next attempt. What the server said is kept for the error, and told in the log when it is new.
async fn pause_after(doing: &str, error: &RequestError, trouble: &mut String) {
    let said = format!("{doing}: {error}");
    if said != *trouble {
        tracing::warn!(doing, %error, "NATS does not do it yet; trying again");
        *trouble = said;
    }
    tokio::time::sleep(PAUSE).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, enough) in [
            ("2.12.0", true),
            ("2.15.2", true),
            ("3.0.0-RC.1", true),
            ("2.11.9", false),
            ("2.9.24", false),
            ("", false),
        ] {
            let parsed = parse_version(version);
            assert_eq!(parsed.is_some_and(|version| version >= MIN_SERVER), enough, "{version} {parsed:?}");
        }
    }
}
