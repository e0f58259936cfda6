//! Streams that go away, go back or were set up otherwise.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_channels::{Log, Since};

use super::servers::{Witness, config, faulty, history, pool, prefix, publish, replica, request, until};
use crate::log::{GroupConfig, LogConfig, NatsLog, PoolLinks, SetupError};
use crate::testing::NatsServer;

const PATIENCE: Duration = Duration::from_secs(40);

async fn stream_of(log: &NatsLog, channel: &str) -> String {
    log.shard(channel).current().stream.clone()
}

/// Appends as soon as the log takes something again.
async fn publish_again(log: &NatsLog, channel: &str) -> plenum_channels::Position {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match log.append(request(channel, "again")).await {
            Ok(appended) => return appended.position,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    }
}

/// An operator deletes a stream: another one takes its place, with another epoch, and subscribers are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_stream_is_replaced_and_subscribers_are_told() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let log = replica(vec![server.url()], config(&prefix, 1)).await;
    let other = replica(vec![server.url()], config(&prefix, 1)).await;
    let witness = Witness::on(&other, "channel").await;
    let before = log.append(request("channel", "1")).await.unwrap().position;
    assert!(witness.gets(before.offset, PATIENCE).await);
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = stream_of(&log, "channel").await;
    client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await.unwrap();
    let after = publish_again(&log, "channel").await;
    assert!(after.epoch != before.epoch && after.offset > before.offset, "{before:?} {after:?}");
    assert!(until(PATIENCE, || !witness.losses().is_empty()).await, "nobody was told");
    assert_eq!(witness.losses()[0].epoch, after.epoch);
    let last = publish(&log, "channel", "2").await;
    assert!(witness.gets(last, PATIENCE).await);
    assert!(!history(&other, "channel", Since::Position(before)).await.complete);
}

/// A join has read where the channel stands when the shard becomes another stream: it begins anew, or it would take nothing of
/// the new one for its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_read_the_stream_before_begins_anew() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let (log, faults) = faulty(vec![server.url()], config(&prefix, 1)).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    for rule in [true, false] {
        faults.trust_joins.store(!rule, Ordering::SeqCst);
        let channel = format!("channel {rule}");
        let (before, joins) = (stream_of(&log, &channel).await, faults.joins.load(Ordering::SeqCst));
        let held = faults.before_joined.write().await;
        let witness = Arc::new(Witness::default());
        let joining = tokio::spawn({
            let (log, channel, witness) = (log.clone(), channel.clone(), witness.clone());
            async move { log.subscribe(&channel, witness).await }
        });
        assert!(until(PATIENCE, || faults.joins.load(Ordering::SeqCst) > joins).await, "nobody joined");
        client.request(format!("$JS.API.STREAM.DELETE.{before}"), "".into()).await.unwrap();
        assert!(until(PATIENCE, || log.shard(&channel).current().stream != before).await, "still the same stream");
        drop(held);
        joining.await.unwrap().unwrap();
        publish_again(&publisher, &channel).await;
        let patience = if rule { PATIENCE } else { Duration::from_secs(4) };
        assert_eq!(until(patience, || !witness.losses().is_empty()).await, rule, "told, rule {rule}");
        let offset = publish(&publisher, &channel, "x").await;
        assert_eq!(witness.gets(offset, patience).await, rule, "rule {rule}");
    }
}

/// A lost disk: the same names would come back with sequences from 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_is_another_epoch() {
    let mut server = NatsServer::start().await.unwrap();
    let log = replica(vec![server.url()], config(&prefix(), 1)).await;
    let witness = Witness::on(&log, "channel").await;
    let before = log.append(request("channel", "1")).await.unwrap().position;
    assert!(witness.gets(before.offset, PATIENCE).await);
    server.kill().unwrap();
    server.wipe_store().unwrap();
    server.restart().await.unwrap();
    let after = publish_again(&log, "channel").await;
    assert_ne!(after.epoch, before.epoch);
    assert!(until(PATIENCE, || !witness.losses().is_empty()).await, "nobody was told");
    assert!(witness.gets(publish(&log, "channel", "2").await, PATIENCE).await);
    assert!(!history(&log, "channel", Since::Position(before)).await.complete);
}

/// The stream's name and the record are the same, but positions went back: a stream restored from a backup by somebody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_that_went_back_are_another_epoch() {
    let server = NatsServer::start().await.unwrap();
    let log = replica(vec![server.url()], config(&prefix(), 1)).await;
    let witness = Witness::on(&log, "channel").await;
    for n in 0..50 {
        publish(&log, "channel", n.to_string()).await;
    }
    let before = log.append(request("channel", "last")).await.unwrap().position;
    assert!(witness.gets(before.offset, PATIENCE).await);
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = stream_of(&log, "channel").await;
    let info = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await.unwrap();
    let body = serde_json::to_vec(&info["config"]).unwrap();
    client.request(format!("$JS.API.STREAM.CREATE.{stream}"), body.into()).await.unwrap();
    assert!(
        until(PATIENCE, || witness.losses().iter().any(|lost| lost.epoch != before.epoch)).await,
        "nobody was told"
    );
    let after = publish_again(&log, "channel").await;
    assert!(after.epoch != before.epoch && after.offset > before.offset, "{before:?} {after:?}");
    assert!(witness.gets(after.offset, PATIENCE).await);
}

/// The same while no replica runs: the cluster's record remembers how far the stream had come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_that_went_back_while_nobody_ran_are_another_epoch() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let log = replica(vec![server.url()], config(&prefix, 1)).await;
    for n in 0..50 {
        publish(&log, "channel", n.to_string()).await;
    }
    let before = log.append(request("channel", "last")).await.unwrap().position;
    let shard = log.shard("channel").number;
    let stream = stream_of(&log, "channel").await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let noted = async || {
        let request = format!(r#"{{"last_by_subj":"$KV.{prefix}-cluster.shard.default.{shard}"}}"#);
        let subject = format!("$JS.API.STREAM.MSG.GET.KV_{prefix}-cluster");
        let answer = client.request(subject, request.into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        let data =
            base64::Engine::decode(&base64::prelude::BASE64_STANDARD, answer["message"]["data"].as_str().unwrap());
        let record: serde_json::Value = serde_json::from_slice(&data.unwrap()).unwrap();
        record["high"].as_u64().unwrap_or(0)
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while noted().await < before.offset {
        assert!(std::time::Instant::now() < deadline, "how far it came was not noted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(log);
    let info = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    client.request(format!("$JS.API.STREAM.DELETE.{stream}"), "".into()).await.unwrap();
    let body = serde_json::to_vec(&info["config"]).unwrap();
    client.request(format!("$JS.API.STREAM.CREATE.{stream}"), body.into()).await.unwrap();
    let log = replica(vec![server.url()], config(&prefix, 1)).await;
    let after = log.append(request("channel", "again")).await.unwrap().position;
    assert!(after.epoch != before.epoch && after.offset > before.offset, "{before:?} {after:?}");
}

async fn start(server: &NatsServer, config: LogConfig) -> Result<(), SetupError> {
    NatsLog::start(PoolLinks::new(pool(vec![server.url()]).await), config).await.map(drop)
}

/// A namespace that a reload adds is fixed like those of the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_added_later_is_recorded() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let base = |namespaces: &[(&str, &str)]| {
        let mut config = config(&prefix, 1);
        config.groups.push(GroupConfig { name: "long".into(), shards: 1, max_bytes: None, ..GroupConfig::default() });
        config.namespaces = namespaces.iter().map(|(name, group)| ((*name).to_owned(), (*group).to_owned())).collect();
        config
    };
    let log = replica(vec![server.url()], base(&[("chat", "default")])).await;
    let added = base(&[("chat", "default"), ("audit", "long")]);
    log.record_namespaces(added.namespaces.clone()).await.unwrap();
    let refused = start(&server, base(&[("audit", "default")])).await;
    assert!(matches!(&refused, Err(SetupError::Immutable { setting, .. }) if setting.contains("audit")), "{refused:?}");
    let refused = log.record_namespaces(base(&[("audit", "default")]).namespaces).await;
    assert!(matches!(&refused, Err(SetupError::Immutable { setting, .. }) if setting.contains("audit")), "{refused:?}");
    start(&server, added).await.unwrap();
}

/// Settings that cannot change are refused by name, by the record or by the stream; a longer retention is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_break_a_promise_are_refused() {
    let server = NatsServer::start().await.unwrap();
    let base = || LogConfig { namespaces: [("chat".to_owned(), "default".to_owned())].into(), ..config("settings", 1) };
    let with_group = |change: fn(&mut GroupConfig)| {
        let mut config = base();
        change(&mut config.groups[0]);
        config
    };
    // Two at once agree.
    let (one, two) = tokio::join!(start(&server, base()), start(&server, base()));
    one.unwrap();
    two.unwrap();
    let refused = start(&server, with_group(|group| group.shards = 8)).await;
    assert!(
        matches!(&refused, Err(SetupError::Immutable { setting, .. }) if setting.contains("shards")),
        "{refused:?}"
    );
    let mut moved = base();
    moved.groups.push(GroupConfig { name: "long".into(), shards: 1, max_bytes: None, ..GroupConfig::default() });
    moved.namespaces.insert("chat".into(), "long".into());
    let refused = start(&server, moved).await;
    assert!(matches!(&refused, Err(SetupError::Immutable { setting, .. }) if setting.contains("chat")), "{refused:?}");
    start(&server, with_group(|group| group.max_age = Duration::from_secs(48 * 3600))).await.unwrap();
    let refused = start(&server, base()).await;
    assert!(matches!(&refused, Err(SetupError::Stream { setting: "max_age", .. })), "{refused:?}");
    // Somebody limits the messages of a subject, which deletes history at once.
    let long = || with_group(|group| group.max_age = Duration::from_secs(48 * 3600));
    let client = async_nats::connect(server.url()).await.unwrap();
    let names =
        client.request("$JS.API.STREAM.NAMES", r#"{"subject":"settings.log.default.2.>"}"#.into()).await.unwrap();
    let names: serde_json::Value = serde_json::from_slice(&names.payload).unwrap();
    let stream = names["streams"][0].as_str().unwrap();
    let info = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await.unwrap();
    let mut info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    info["config"]["max_msgs_per_subject"] = 1.into();
    let body = serde_json::to_vec(&info["config"]).unwrap();
    client.request(format!("$JS.API.STREAM.UPDATE.{stream}"), body.into()).await.unwrap();
    let refused = start(&server, long()).await;
    assert!(matches!(&refused, Err(SetupError::Stream { setting: "max_msgs_per_subject", .. })), "{refused:?}");
}
