//! Backup and restore of what is durable: every shard's stream and the ledger, by JetStream's own snapshots.
//!
//! A backup is a folder: a snapshot per stream, and `manifest.json`, written last, with the digest of each. Each stream is as
//! it was at one moment, and a channel lies in one stream; between two streams some time passes. Restored streams are another
//! incarnation of the log: their history is there, and positions from before are told apart by their epoch. `docs/backup.md` is
//! the manual.

mod folder;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::folder::Folder;
use crate::check::{listen, open};
use crate::ledger;
use crate::log::{ApiError, Contents, contents, format_time_ms, js_api, record_stream, unix_ms};
use crate::pool::{Pool, PoolConfig};

/// Of manifests; another one is refused.
const FORMAT: u32 = 1;
/// Snapshots under way at once.
const AT_ONCE: usize = 4;
/// How long contact may take.
const CONTACT: Duration = Duration::from_secs(10);

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A backup goes into a folder of its own.
    #[error("{} is not empty: a backup goes into a folder of its own", path.display())]
    FolderInUse {
        /// Which.
        path: PathBuf,
    },
    /// NATS cannot be reached.
    #[error("no contact with NATS: {reason}")]
    Contact {
        /// Why.
        reason: String,
    },
    /// No replica ever kept anything under this prefix.
    #[error("there is no log under the prefix {prefix}: nothing to back up")]
    Nothing {
        /// `nats.prefix`.
        prefix: String,
    },
    /// JetStream refused something, or gave no answer.
    #[error("{doing}: {reason}")]
    Request {
        /// The step that failed.
        doing: String,
        /// Why.
        reason: String,
    },
    /// The folder holds no backup that this version understands.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Subjects hold the prefix, so it cannot change.
    #[error("the backup is of the prefix {found}, and nats.prefix is {wanted}: a log keeps its prefix")]
    Prefix {
        /// The backup's.
        found: String,
        /// The configuration's.
        wanted: String,
    },
    /// A file is not what was written.
    #[error("{} differs from what the manifest says: the backup is damaged", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// Replicas would make a log of their own meanwhile.
    #[error("{count} replicas run on this NATS under the same prefix: stop them first")]
    ReplicasRun {
        /// How many are heard.
        count: usize,
    },
    /// Nothing is overwritten.
    #[error("stream {stream} exists already: restore where there is none, or delete what is there first")]
    Occupied {
        /// The first that was found.
        stream: String,
    },
}

/// What a backup is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    prefix: String,
    /// RFC 3339.
    made_at: String,
    nats_version: String,
    contents: Contents,
    /// Of `contents`, in the same order.
    shards: Vec<Saved>,
    ledger: Option<Saved>,
}

/// The snapshot of a stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    stream: String,
    file: String,
    bytes: u64,
    sha256: String,
    config: Value,
    state: Value,
}

/// What was saved or restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// When the backup was made, RFC 3339.
    pub made_at: String,
    /// Streams of the log.
    pub streams: usize,
    /// Their entries: publications, markers and ticks.
    pub entries: u64,
    /// Whether the ledger (blocks, revocations, fences) is part of it.
    pub ledger: bool,
    /// Bytes of all snapshots.
    pub bytes: u64,
}

impl Manifest {
    fn summary(&self) -> Summary {
        Summary {
            made_at: self.made_at.clone(),
            streams: self.shards.len(),
            entries: self.shards.iter().filter_map(|saved| saved.state["messages"].as_u64()).sum(),
            ledger: self.ledger.is_some(),
            bytes: self.shards.iter().chain(&self.ledger).map(|saved| saved.bytes).sum(),
        }
    }
}

/// Saves everything under a prefix into a new or empty folder, while replicas go on. The folder is readable for its owner only:
/// it holds every publication.
pub async fn backup(pool: &PoolConfig, prefix: &str, to: &Path) -> Result<Summary, BackupError> {
    let folder = Folder::create(to).await?;
    let pool = contact(pool).await?;
    let done = save(&pool.any(), prefix, &folder).await;
    pool.close(Duration::from_secs(1)).await;
    done
}

async fn save(client: &Client, prefix: &str, folder: &Folder) -> Result<Summary, BackupError> {
    let found = contents(client, prefix).await.map_err(refused("reading the cluster's record"))?;
    let contents = found.ok_or_else(|| BackupError::Nothing { prefix: prefix.to_owned() })?;
    let made_at = format_time_ms(unix_ms());
    let names: Vec<String> = contents.shards.iter().map(|shard| shard.stream.clone()).collect();
    let ledger = ledger::stream(prefix);
    let ledger = exists(client, &ledger).await?.then_some(ledger);
    // In order: the summary of the log, then the ledger.
    let all = names.iter().chain(&ledger).map(|stream| transfer::save(client, stream, folder));
    let mut shards: Vec<Saved> = stream::iter(all).buffered(AT_ONCE).try_collect().await?;
    let ledger = if ledger.is_some() { shards.pop() } else { None };
    let nats_version = client.server_info().version.clone();
    let manifest =
        Manifest { format: FORMAT, prefix: prefix.to_owned(), made_at, nats_version, contents, shards, ledger };
    folder.write_manifest(&manifest).await?;
    Ok(manifest.summary())
}

/// Restores a backup into a NATS that has nothing under its prefix yet, before any replica is started there. Each stream gets
/// `replicas` copies. What is wrong with the backup is found before anything is created; what was created before a failure is
/// deleted again.
pub async fn restore(pool: &PoolConfig, prefix: &str, replicas: u32, from: &Path) -> Result<Summary, BackupError> {
    let folder = Folder::open(from);
    let manifest = folder.read_manifest().await?;
    if manifest.prefix != prefix {
        return Err(BackupError::Prefix { found: manifest.prefix, wanted: prefix.to_owned() });
    }
    for saved in manifest.shards.iter().chain(&manifest.ledger) {
        folder.verify(saved).await?;
    }
    let pool = contact(pool).await?;
    let count = listen(&pool, prefix).await;
    let done = match count {
        0 => put_back(&pool.any(), &manifest, replicas, &folder).await,
        count => Err(BackupError::ReplicasRun { count }),
    };
    pool.close(Duration::from_secs(1)).await;
    done
}

async fn put_back(
    client: &Client,
    manifest: &Manifest,
    replicas: u32,
    folder: &Folder,
) -> Result<Summary, BackupError> {
    let prefix = &manifest.prefix;
    let anew = manifest.contents.anew(prefix).map_err(refused("reading the manifest"))?;
    nothing_there(client, prefix).await?;
    let mut made = Vec::new();
    let done = async {
        let mut ends = Vec::new();
        for (saved, shard) in manifest.shards.iter().zip(&anew.shards) {
            made.push(shard.stream.clone());
            ends.push(transfer::restore(client, saved, &shard.stream, replicas, folder).await?);
        }
        if let Some(saved) = &manifest.ledger {
            made.push(saved.stream.clone());
            transfer::restore(client, saved, &saved.stream, replicas, folder).await?;
        }
        made.push(record_stream(prefix));
        anew.adopt(client, prefix, replicas, &ends).await.map_err(refused("writing the cluster's record"))
    }
    .await;
    if let Err(error) = done {
        for stream in made {
            // What remains is named by the next attempt.
            let _ = js_api::<Value>(client, &format!("STREAM.DELETE.{stream}"), &()).await;
        }
        return Err(error);
    }
    Ok(manifest.summary())
}

/// Refuses where anything is kept under the prefix.
async fn nothing_there(client: &Client, prefix: &str) -> Result<(), BackupError> {
    for stream in [record_stream(prefix), ledger::stream(prefix)] {
        if exists(client, &stream).await? {
            return Err(BackupError::Occupied { stream });
        }
    }
    let filter = json!({ "subject": format!("{prefix}.log.>") });
    let found: Value =
        js_api(client, "STREAM.NAMES", &filter).await.map_err(refused("asking for the streams' names"))?;
    match found["streams"][0].as_str() {
        Some(stream) => Err(BackupError::Occupied { stream: stream.to_owned() }),
        None => Ok(()),
    }
}

async fn exists(client: &Client, stream: &str) -> Result<bool, BackupError> {
    match js_api::<Value>(client, &format!("STREAM.INFO.{stream}"), &()).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(10059) => Ok(false),
        Err(error) => Err(refused(&format!("asking for stream {stream}"))(error)),
    }
}

async fn contact(pool: &PoolConfig) -> Result<Arc<Pool>, BackupError> {
    open(pool, CONTACT).await.map_err(|reason| BackupError::Contact { reason })
}

fn refused(doing: &str) -> impl FnOnce(ApiError) -> BackupError {
    let doing = doing.to_owned();
    move |error| BackupError::Request { doing, reason: error.to_string() }
}
