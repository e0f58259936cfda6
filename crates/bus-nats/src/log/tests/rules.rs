//! Each rule of docs/log.md that no other test switches off: its schedule on a real server, with the rule and without it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_channels::{Append, IdempotencyKey, Log, Page, Position, Since};

use super::servers::{Witness, config, faulty, history, pool, prefix, publish, replica, request, until};
use crate::channel_token;
use crate::log::faults::{FIRST_HEADER, Faults};
use crate::log::names::ShardNames;
use crate::log::{GroupConfig, LogConfig, NatsLog, PoolLinks, SetupError};
use crate::testing::{NatsServer, Proxy};

const PATIENCE: Duration = Duration::from_secs(20);

/// Long enough for what arrives to have arrived.
const NOTHING_COMES: Duration = Duration::from_secs(4);

/// One shard of at most a megabyte.
fn one_shard(prefix: &str) -> LogConfig {
    let group = GroupConfig { shards: 1, max_bytes: Some(1 << 20), ..GroupConfig::default() };
    LogConfig { groups: vec![group], ..config(prefix, 1) }
}

fn texts(page: &Page) -> Vec<String> {
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.publication.data).into_owned()).collect()
}

async fn position(log: &NatsLog, offset: u64) -> Since {
    Since::Position(Position { offset, epoch: log.tail("channel").await.unwrap().position.epoch })
}

/// A request of the JetStream API as an operator makes it.
async fn operate(server: &NatsServer, subject: String, body: Vec<u8>) -> serde_json::Value {
    let client = async_nats::connect(server.url()).await.unwrap();
    let answer = client.request(format!("$JS.API.{subject}"), body.into()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer.get("error").is_none(), "{answer}");
    answer
}

/// 1: an operator limits the messages of a subject, which deletes them from the middle at once: no front betrays it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_settings_end_the_promise_of_completeness() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.trust_settings.store(!rule, Ordering::SeqCst);
        publish(&log, "front", "stays").await;
        // Directly behind the client's position stands another channel's only message, which stays as well.
        let mut neighbours = 0;
        let at = loop {
            let at = publish(&log, "channel", "1").await;
            neighbours += 1;
            if publish(&log, &format!("neighbour {neighbours}"), "stays").await == at + 1 {
                break position(&log, at).await;
            }
        };
        let stream = log.shard("channel").current().stream.clone();
        let mut info = operate(&server, format!("STREAM.INFO.{stream}"), vec![]).await;
        info["config"]["max_msgs_per_subject"] = 1.into();
        let body = serde_json::to_vec(&info["config"]).unwrap();
        operate(&server, format!("STREAM.UPDATE.{stream}"), body).await;
        for text in ["2", "3", "4"] {
            publish(&log, "channel", text).await;
        }
        // They are looked at every 5 s.
        let look = if rule { PATIENCE } else { Duration::from_secs(8) };
        assert_eq!(until(look, || !log.broken().is_empty()).await, rule);
        let page = history(&log, "channel", at).await;
        assert_eq!(texts(&page), ["4"], "the server deleted the others");
        assert_eq!(page.complete, !rule, "rule {rule}");
    }
}

/// 2: one idempotency key on two channels of a shard. The server knows ids by stream, not by subject.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_on_two_channels_is_two_publications() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.bare_keys.store(!rule, Ordering::SeqCst);
        faults.trust_duplicates.store(!rule, Ordering::SeqCst);
        let key = IdempotencyKey { scope: "s".into(), key: "k".into() };
        for channel in ["one", "channel"] {
            let append = Append { idempotency: Some(key.clone()), ..request(channel, channel) };
            log.append(append).await.unwrap();
        }
        let stored = texts(&history(&log, "channel", Since::End).await);
        assert_eq!(stored.len(), usize::from(rule), "rule {rule}: acknowledged, and stored is {stored:?}");
    }
    // The key alone, with the entry read before the acknowledgement is believed: refused, not lost in silence.
    let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
    faults.bare_keys.store(true, Ordering::SeqCst);
    let append = |channel| {
        let idempotency = Some(IdempotencyKey { scope: "s".into(), key: "k".into() });
        log.append(Append { idempotency, ..request(channel, channel) })
    };
    append("one").await.unwrap();
    assert!(append("channel").await.is_err());
}

/// 3: what was delivered here was not received there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_starts_where_the_client_stands() {
    let server = NatsServer::start().await.unwrap();
    let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
    let witness = Witness::on(&log, "channel").await;
    let first = publish(&log, "channel", "1").await;
    publish(&log, "channel", "2").await;
    let last = publish(&log, "channel", "3").await;
    assert!(witness.gets(last, PATIENCE).await);
    for rule in [true, false] {
        faults.hold_positions.store(!rule, Ordering::SeqCst);
        let page = history(&log, "channel", position(&log, first).await).await;
        assert!(page.complete);
        assert_eq!(page.entries.len(), if rule { 2 } else { 0 });
    }
}

/// 5: the stream is as before, but empty: somebody restored it from a backup.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_went_back_is_another_epoch() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.ignore_regress.store(!rule, Ordering::SeqCst);
        faults.believe_old.store(!rule, Ordering::SeqCst);
        let witness = Witness::on(&log, "channel").await;
        for n in 0..50 {
            publish(&log, "channel", n.to_string()).await;
        }
        let before = log.append(request("channel", "last")).await.unwrap().position;
        assert!(witness.gets(before.offset, PATIENCE).await);
        let stream = log.shard("channel").current().stream.clone();
        let info = operate(&server, format!("STREAM.INFO.{stream}"), vec![]).await;
        operate(&server, format!("STREAM.DELETE.{stream}"), vec![]).await;
        let body = serde_json::to_vec(&info["config"]).unwrap();
        operate(&server, format!("STREAM.CREATE.{stream}"), body).await;
        let told = until(if rule { PATIENCE } else { Duration::from_secs(8) }, || !witness.losses().is_empty()).await;
        assert_eq!(told, rule, "rule {rule}");
        let known = witness.offsets().len();
        let deadline = std::time::Instant::now() + PATIENCE;
        let after = loop {
            match log.append(request("channel", "again")).await {
                Ok(appended) => break appended.position,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
        };
        assert_eq!(after.epoch != before.epoch, rule, "rule {rule}: {before:?} {after:?}");
        // Without the rule it stands at a position that was in use, and is taken for known.
        let patience = if rule { PATIENCE } else { NOTHING_COMES };
        let arrived = until(patience, || witness.offsets().len() > known).await;
        assert_eq!(arrived, rule, "rule {rule}: acknowledged {after:?}");
    }
}

/// 6: while a client's range is being read, the front passes its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_front_is_looked_at_after_the_range_was_read() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.front_first.store(!rule, Ordering::SeqCst);
        let ballast = || publish(&log, "ballast", vec![b'x'; 100_000]);
        let first = publish(&log, "channel", "1").await;
        publish(&log, "channel", "trimmed meanwhile").await;
        for _ in 0..6 {
            ballast().await;
        }
        publish(&log, "channel", "3").await;
        let since = position(&log, first).await;
        let gate = faults.before_part.write().await;
        let reading = {
            let log = log.clone();
            tokio::spawn(async move { history(&log, "channel", since).await })
        };
        // The reader has seen the channel's end, and the front before anything is trimmed.
        assert!(until(PATIENCE, || faults.parts.load(Ordering::SeqCst) == 1).await);
        for _ in 0..6 {
            ballast().await;
        }
        drop(gate);
        let page = reading.await.unwrap();
        assert_eq!(texts(&page), ["3"]);
        assert_eq!(page.complete, !rule, "rule {rule}");
    }
}

/// 6: a range has several parts, and what lies between them is trimmed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_trimmed_between_its_parts_is_not_complete() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let mut came_about = false;
        for _ in 0..5 {
            // A part without an answer in time is asked for again, with the read from its beginning.
            if let Some((page, 2)) = trimmed_between(&server, rule).await {
                came_about = true;
                assert!(page.entries.len() < COUNT - 1, "nothing was trimmed");
                assert_eq!(page.complete, !rule, "rule {rule}");
                break;
            }
        }
        assert!(came_about, "rule {rule}");
    }
}

/// Publications in the range.
const COUNT: usize = 1500;

/// A read of a range whose middle is trimmed between its two parts, and how many parts it had; `None` if it got no answer.
async fn trimmed_between(server: &NatsServer, rule: bool) -> Option<(Page, u32)> {
    let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
    faults.trust_parts.store(!rule, Ordering::SeqCst);
    let first = publish(&log, "channel", "0").await;
    let others = (1..COUNT).map(|n| log.append(request("channel", n.to_string())));
    for appended in futures_util::future::join_all(others).await {
        appended.unwrap();
    }
    let since = position(&log, first).await;
    let gate = faults.before_part.write().await;
    let reading = {
        let log = log.clone();
        tokio::spawn(async move { history(&log, "channel", since).await })
    };
    let parts = || faults.parts.load(Ordering::SeqCst);
    assert!(until(PATIENCE, || parts() >= 1).await);
    drop(gate);
    // Who waits first goes first: the reader for its first part.
    let gate = faults.before_part.write().await;
    assert!(until(PATIENCE, || parts() >= 2).await);
    for _ in 0..12 {
        publish(&log, "ballast", vec![b'x'; 100_000]).await;
    }
    publish(&log, "channel", "behind what was lost").await;
    drop(gate);
    reading.await.ok().map(|page| (page, parts()))
}

/// 7: two replicas with another number of shards append and listen past each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_shards_is_refused() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let log = replica(vec![server.url()], config(&prefix, 1)).await;
    let faults = Arc::new(Faults::default());
    let other = async || {
        let mut config = config(&prefix, 1);
        config.groups[0].shards = 2;
        config.faults = faults.clone();
        NatsLog::start(PoolLinks::new(pool(vec![server.url()]).await), config).await
    };
    let refused = other().await.err();
    assert!(matches!(refused, Some(SetupError::Immutable { .. })), "{refused:?}");
    faults.ignore_layout.store(true, Ordering::SeqCst);
    let other = other().await.unwrap();
    let elsewhere = |channel: &String| channel_token::hash(channel) % 4 != channel_token::hash(channel) % 2;
    let channel = (0..).map(|n| format!("channel {n}")).find(elsewhere).unwrap();
    let witness = Witness::on(&log, &channel).await;
    let offset = publish(&other, &channel, "x").await;
    assert!(!witness.gets(offset, NOTHING_COMES).await, "acknowledged, and arrived by chance");
}

/// 9: a publisher is held up on its way to the server while its client publishes the same elsewhere. When the first attempt
/// arrives, the server no longer knows the id. (Both times are shorter than in production.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_arrives_after_the_window_does_not_count() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let proxy = Proxy::start(server.address()).await.unwrap();
        let faults = Arc::new(Faults::default());
        *faults.duplicate_window.lock() = Some(Duration::from_secs(1));
        faults.void_after_ms.store(3_000, Ordering::SeqCst);
        faults.count_late.store(!rule, Ordering::SeqCst);
        let settings = LogConfig { faults: faults.clone(), ..one_shard(&prefix()) };
        let log = replica(vec![server.url()], settings.clone()).await;
        let slow = replica(vec![format!("nats://{}", proxy.address())], settings).await;
        let witness = Witness::on(&log, "channel").await;
        let last = publish(&slow, "channel", "before").await;
        assert!(witness.gets(last, PATIENCE).await);
        let keyed = || {
            let key = IdempotencyKey { scope: "s".into(), key: "k".into() };
            Append { idempotency: Some(key), ..request("channel", "once") }
        };
        proxy.stall();
        let held_up = tokio::spawn(slow.append(keyed()));
        // It is on its way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let elsewhere = log.append(keyed()).await.unwrap();
        assert!(witness.gets(elsewhere.position.offset, PATIENCE).await);
        tokio::time::sleep(Duration::from_secs(4)).await;
        proxy.restore();
        // However the call ends: there are two entries now, at least.
        let _ = held_up.await.unwrap();
        let last = publish(&log, "channel", "last").await;
        assert!(witness.gets(last, PATIENCE).await);
        let page = texts(&history(&log, "channel", Since::End).await);
        let once = page.iter().filter(|text| *text == "once").count();
        // Without the rule a repeated attempt may count as well.
        assert!(if rule { once == 1 } else { once > 1 }, "rule {rule}: {page:?}");
        assert_eq!(witness.offsets().len(), once + 2, "rule {rule}");
    }
}

/// 10: stored, but the acknowledgement was lost. One server refuses the retry, because its own first attempt has made the
/// condition false.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_retry_may_have_been_stored() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.believe_refusals.store(!rule, Ordering::SeqCst);
        let first = publish(&log, "channel", "1").await;
        faults.deafen.store(1, Ordering::SeqCst);
        let appended = log.append(Append { expected: Some(first), ..request("channel", "2") }).await;
        assert_eq!(texts(&history(&log, "channel", Since::End).await), ["1", "2"], "stored with or without the rule");
        assert_eq!(appended.is_ok(), rule, "rule {rule}: {appended:?}");
    }
}

/// 11: nothing is left of a channel, so the server takes "never published" for true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_published_is_not_believed_of_a_trimmed_channel() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
        faults.believe_empty.store(!rule, Ordering::SeqCst);
        publish(&log, "channel", "state of a session").await;
        for _ in 0..24 {
            publish(&log, "ballast", vec![b'x'; 100_000]).await;
        }
        let created = log.append(Append { expected: Some(0), ..request("channel", "created again") }).await;
        assert_eq!(created.is_err(), rule, "rule {rule}: {created:?}");
    }
}

/// 13: a publisher that is no replica writes the server's headers itself; its own stand first in the republished message.
/// One thread, because the rule is switched off by the thread.
#[tokio::test]
async fn headers_of_publishers_do_not_count() {
    let server = NatsServer::start().await.unwrap();
    for rule in [true, false] {
        FIRST_HEADER.set(false);
        let prefix = prefix();
        let (log, _) = faulty(vec![server.url()], one_shard(&prefix)).await;
        let witness = Witness::on(&log, "channel").await;
        let first = publish(&log, "channel", "1").await;
        assert!(witness.gets(first, PATIENCE).await);
        FIRST_HEADER.set(!rule);
        let client = async_nats::connect(server.url()).await.unwrap();
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Sequence", "1000000");
        headers.insert("Nats-Last-Sequence", first.to_string());
        let subject = ShardNames::new(&prefix, "default", 0).publication("channel");
        client.request_with_headers(subject, headers, "forged".into()).await.unwrap();
        let next = publish(&log, "channel", "2").await;
        let arrived = witness.gets(next, if rule { PATIENCE } else { NOTHING_COMES }).await;
        assert_eq!(arrived, rule, "rule {rule}: {:?}", witness.offsets());
    }
    FIRST_HEADER.set(false);
}

/// 14: the marker stands behind what it hides and is read first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_removed_is_not_read() {
    let server = NatsServer::start().await.unwrap();
    let (log, faults) = faulty(vec![server.url()], one_shard(&prefix())).await;
    let first = publish(&log, "channel", "removed").await;
    publish(&log, "channel", "removed, too").await;
    log.remove("channel").await.unwrap();
    publish(&log, "channel", "kept").await;
    for rule in [true, false] {
        faults.ignore_markers.store(!rule, Ordering::SeqCst);
        assert_eq!(history(&log, "channel", Since::End).await.entries.len(), if rule { 1 } else { 3 });
        let page = history(&log, "channel", position(&log, first).await).await;
        assert_eq!((page.complete, page.entries.len()), (!rule, if rule { 1 } else { 2 }));
    }
}
