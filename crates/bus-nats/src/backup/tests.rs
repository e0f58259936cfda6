use std::path::PathBuf;
use std::time::Duration;

use plenum_channels::{Append, Ledger, Log, Read, Retention, Since};
use plenum_protocol::Publication;

use super::{BackupError, backup, restore};
use crate::ledger::{LedgerConfig, NatsLedger};
use crate::log::{GroupConfig, LogConfig, NatsLog, PoolLinks};
use crate::pool::{Credentials, Pool, PoolConfig};
use crate::replicas::NatsReplicas;
use crate::testing::{NatsCluster, NatsServer, ServerOptions};

const KEEP: Retention = Retention { size: 1_000, ttl: Duration::from_secs(3600), meta_ttl: Duration::from_secs(3600) };
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("plenum-backup-{}", uuid::Uuid::new_v4().simple())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn log_config(replicas: u32) -> LogConfig {
    let groups = vec![GroupConfig { max_bytes: None, shards: 2, ..GroupConfig::default() }];
    LogConfig { prefix: "shop".into(), replicas, groups, ..LogConfig::default() }
}

fn pool_config(url: &str) -> PoolConfig {
    PoolConfig::new([url])
}

/// A replica, as far as a backup is concerned.
struct Replica {
    log: std::sync::Arc<NatsLog>,
    ledger: std::sync::Arc<NatsLedger>,
}

async fn replica(url: &str, replicas: u32) -> Replica {
    replica_with(pool_config(url), replicas).await
}

async fn replica_with(config: PoolConfig, replicas: u32) -> Replica {
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let links = PoolLinks::new(pool);
    let ledger = LedgerConfig { prefix: "shop".into(), replicas, max_bytes: None };
    let log = patiently(async || NatsLog::start(links.clone(), log_config(replicas)).await).await;
    Replica { log, ledger: patiently(async || NatsLedger::start(links.clone(), &ledger).await).await }
}

/// Asks again while servers elect or are silent.
async fn patiently<T, E: std::fmt::Display>(ask: impl AsyncFn() -> Result<T, E>) -> T {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
        }
    }
}

impl Replica {
    async fn publish(&self, channel: &str, data: &str) -> plenum_channels::Position {
        let publication = Publication { data: data.to_owned().into(), ..Publication::default() };
        let request = Append {
            channel: channel.into(),
            publication,
            retention: KEEP,
            idempotency: None,
            expected: None,
            version: None,
        };
        self.log.append(request).await.unwrap().position
    }

    /// The history, and whether it is proven complete from there. Until ticks have come reads are refused as temporary.
    async fn read(&self, channel: &str, since: Since) -> (Vec<String>, bool) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let read =
                Read { since: since.clone(), reverse: false, limit: 100, max_bytes: usize::MAX, retention: KEEP };
            match self.log.read(channel, read).await {
                Ok(page) => {
                    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
                    let entries = page.entries.iter().map(|entry| text(&entry.publication.data)).collect();
                    return (entries, page.complete);
                }
                Err(error) => assert!(std::time::Instant::now() < end, "{error}"),
            }
        }
    }
}

/// What was published before the backup is there, with an epoch of its own; what came after it is gone, and whoever has seen
/// it is told. New publications take their place in the restored log.
async fn comes_back_as_another_incarnation(old: &str, new: &str, copies: (u32, u32)) {
    let folder = Folder::new();
    let before = replica(old, copies.0).await;
    for n in 0..40 {
        before.publish(&format!("channel-{}", n % 4), &n.to_string()).await;
    }
    patiently(async || before.ledger.put("block:u1", Some("reason".into()), None, None).await).await;
    let saved = backup(&pool_config(old), "shop", &folder.0).await.unwrap();
    assert_eq!((saved.streams, saved.ledger), (2, true));
    assert!(saved.entries >= 40, "{saved:?}");
    let position = before.publish("channel-1", "after the backup").await;

    let restored = restore(&pool_config(new), "shop", copies.1, &folder.0).await.unwrap();
    assert_eq!(restored, saved);
    let after = replica(new, copies.1).await;
    let (history, _) = after.read("channel-1", Since::End).await;
    let wanted: Vec<String> = (0..40).filter(|n| n % 4 == 1).map(|n: u32| n.to_string()).collect();
    assert_eq!(history, wanted);
    let (_, complete) = after.read("channel-1", Since::Position(position.clone())).await;
    assert!(!complete, "a position from before must not be recovered");
    let fresh = after.publish("channel-1", "new").await;
    assert_ne!(fresh.epoch, position.epoch);
    let (history, complete) = after.read("channel-1", Since::Position(fresh.clone())).await;
    assert!(history.is_empty() && complete);
    let block = patiently(async || after.ledger.get("block:u1").await).await.unwrap();
    assert_eq!(block.value.as_deref(), Some(b"reason".as_slice()));
    let again = restore(&pool_config(new), "shop", copies.1, &folder.0).await;
    assert!(matches!(again, Err(BackupError::Occupied { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_comes_back_as_another_incarnation() {
    let (old, mut new) = (NatsServer::start().await.unwrap(), NatsServer::start().await.unwrap());
    comes_back_as_another_incarnation(&old.url(), &new.url(), (1, 1)).await;
    // The renamed streams are whole on disk, too: nothing of the old name is needed to read them.
    new.kill().unwrap();
    new.restart().await.unwrap();
    let after = replica(&new.url(), 1).await;
    let (history, _) = after.read("channel-1", Since::End).await;
    assert_eq!(history.last().map(String::as_str), Some("new"));
    assert_eq!(history.len(), 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_one_server_comes_back_on_a_cluster() {
    let (old, new) = (NatsServer::start().await.unwrap(), NatsCluster::start().await.unwrap());
    comes_back_as_another_incarnation(&old.url(), &new.servers[0].url(), (1, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused_before_anything_is_made() {
    let (old, new) = (NatsServer::start().await.unwrap(), NatsServer::start().await.unwrap());
    let folder = Folder::new();
    let nothing = backup(&pool_config(&old.url()), "shop", &folder.0).await;
    assert!(matches!(nothing, Err(BackupError::Nothing { .. })), "{nothing:?}");
    let before = replica(&old.url(), 1).await;
    before.publish("channel", "1").await;
    backup(&pool_config(&old.url()), "shop", &folder.0).await.unwrap();
    let twice = backup(&pool_config(&old.url()), "shop", &folder.0).await;
    assert!(matches!(twice, Err(BackupError::FolderInUse { .. })), "{twice:?}");

    let target = pool_config(&new.url());
    let prefix = restore(&target, "other", 1, &folder.0).await;
    assert!(matches!(prefix, Err(BackupError::Prefix { .. })), "{prefix:?}");
    let pool = Pool::connect(target.clone()).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let running = NatsReplicas::start(PoolLinks::new(pool), "shop");
    assert!(running.introduced(PATIENCE).await);
    let beside = restore(&target, "shop", 1, &folder.0).await;
    assert!(matches!(beside, Err(BackupError::ReplicasRun { count: 1 })), "{beside:?}");
    drop(running);
    let file = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().path());
    let file = file.filter(|path| path.extension().is_some_and(|it| it == "snapshot")).min().unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = restore(&target, "shop", 1, &folder.0).await;
    assert!(matches!(damaged, Err(BackupError::Damaged { .. })), "{damaged:?}");
    assert!(new.monitor("/jsz").await.unwrap().contains("\"streams\": 0"));
}

/// The user of deploy/nats/backup.conf, beside that of the replicas, may do all that is needed and is told of nothing it lacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_suffice() {
    let user = include_str!("../../../../deploy/nats/backup.conf");
    let account = include_str!("../../../../deploy/nats/plenum.conf").replace("users: [", &format!("users: [\n{user}"));
    let settings = account.replace("$PLENUM_NATS_PASSWORD", "one").replace("$PLENUM_NATS_BACKUP_PASSWORD", "two");
    let options = ServerOptions { settings: settings.replace("plenum", "shop"), ..ServerOptions::default() };
    let (old, new) =
        (NatsServer::start_with(options.clone()).await.unwrap(), NatsServer::start_with(options).await.unwrap());
    let config = |url: String, user: &str, password: &str| PoolConfig {
        credentials: Credentials::UserPassword { user: user.into(), password: password.into() },
        inbox_prefix: "_INBOX_shop".into(),
        probe_subject: "shop.probe".into(),
        ..PoolConfig::new([url])
    };
    let before = replica_with(config(old.url(), "shop", "one"), 1).await;
    before.publish("channel", "1").await;
    let folder = Folder::new();
    // What is denied is not answered: that would take as long as a server may be silent.
    let refused = folder.0.join("refused");
    let replicas_user = config(old.url(), "shop", "one");
    let refused = backup(&replicas_user, "shop", &refused);
    assert!(!matches!(tokio::time::timeout(Duration::from_secs(3), refused).await, Ok(Ok(_))));
    let there = folder.0.join("taken");
    backup(&config(old.url(), "backup", "two"), "shop", &there).await.unwrap();
    restore(&config(new.url(), "backup", "two"), "shop", 1, &there).await.unwrap();
    let after = replica_with(config(new.url(), "shop", "one"), 1).await;
    assert_eq!(after.read("channel", Since::End).await.0, ["1"]);
}
