//! A stream whose front moves, and entries that do not count.

use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_channels::{Log, Position, Since};

use super::servers::{Witness, config, faulty, history, prefix, publish, until};
use crate::channel_token;
use crate::log::entry::Record;
use crate::log::names::ShardNames;
use crate::log::{GroupConfig, LogConfig, NatsLog};
use crate::testing::NatsServer;

const PATIENCE: Duration = Duration::from_secs(30);

/// One shard that holds a megabyte.
fn small(prefix: &str) -> LogConfig {
    let group = GroupConfig { shards: 1, max_bytes: Some(1 << 20), ..GroupConfig::default() };
    LogConfig { groups: vec![group], ..config(prefix, 1) }
}

/// Publishes until nothing from before is left in the stream.
async fn push_everything_out(log: &NatsLog) {
    for _ in 0..24 {
        publish(log, "ballast", vec![b'x'; 100_000]).await;
    }
}

/// The front took the message before; the next one says "none before" and is no duplicate. Who missed something is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trimmed_gap_is_told_and_delivery_goes_on() {
    let server = NatsServer::start().await.unwrap();
    let (log, faults) = faulty(vec![server.url()], small(&prefix())).await;
    let witness = Witness::on(&log, "channel").await;
    let first = publish(&log, "channel", "1").await;
    assert!(witness.gets(first, PATIENCE).await);
    // The second is lost, and gone before anybody could repair it.
    faults.ignore_ticks.store(true, Ordering::SeqCst);
    faults.lose_live.store(1000, Ordering::SeqCst);
    let second = publish(&log, "channel", "2").await;
    push_everything_out(&log).await;
    faults.lose_live.store(0, Ordering::SeqCst);
    let third = publish(&log, "channel", "3").await;
    assert!(witness.gets(third, PATIENCE).await, "taken for a duplicate");
    assert_eq!(witness.offsets(), [first, third]);
    let losses = witness.losses();
    assert!(losses.len() == 1 && losses[0].offset >= second && losses[0].offset < third, "{losses:?}");
    // Without the rule the next one after a trimmed front is dropped in silence.
    faults.trust_trimmed.store(true, Ordering::SeqCst);
    push_everything_out(&log).await;
    let fourth = publish(&log, "channel", "4").await;
    assert!(!witness.gets(fourth, Duration::from_secs(2)).await);
}

/// A quiet channel's subscriber missed nothing when the front passes its last publication, and is told nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_channel_survives_the_front() {
    let server = NatsServer::start().await.unwrap();
    let (log, _) = faulty(vec![server.url()], small(&prefix())).await;
    let witness = Witness::on(&log, "channel").await;
    let first = publish(&log, "channel", "1").await;
    assert!(witness.gets(first, PATIENCE).await);
    let epoch = log.tail("channel").await.unwrap().position.epoch;
    let early = Since::Position(Position { offset: 0, epoch: epoch.clone() });
    assert!(history(&log, "channel", early.clone()).await.complete);
    // Ticks go on between the pieces, so that what is verified stays ahead of the front.
    for n in 1..=24 {
        let offset = publish(&log, "ballast", vec![b'x'; 100_000]).await;
        if n % 5 == 0 {
            assert!(until(PATIENCE, || log.shard("channel").chain().through >= offset).await, "no ticks");
        }
    }
    let page = history(&log, "channel", early).await;
    assert!(!page.complete && page.entries.is_empty(), "the beginning is trimmed");
    assert!(page.top.offset >= first, "a position never goes back: {:?}", page.top);
    let top = Since::Position(page.top.clone());
    assert!(history(&log, "channel", top).await.complete, "who stands at the top has missed nothing");
    let second = publish(&log, "channel", "2").await;
    assert!(witness.gets(second, PATIENCE).await);
    assert_eq!((witness.offsets(), witness.losses()), (vec![first, second], vec![]));
}

/// Stored more than a minute after its first attempt: its publisher was told long ago that nobody knows, and may have
/// published again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_came_too_late_does_not_count() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let (log, _) = faulty(vec![server.url()], small(&prefix)).await;
    let witness = Witness::on(&log, "channel").await;
    let first = publish(&log, "channel", "1").await;
    let stored_ms = history(&log, "channel", Since::End).await.entries[0].stored_at_ms;
    let names = ShardNames::new(&prefix, "default", 0);
    let client = async_nats::connect(server.url()).await.unwrap();
    for (late_ms, text) in [(70_000, "late"), (50_000, "in time")] {
        let publication = plenum_protocol::Publication { data: text.into(), ..Default::default() };
        let record = Record { first_attempt_ms: stored_ms - late_ms, nonce: None, version: None, publication };
        client.request(names.publication("channel"), record.encode()).await.unwrap();
    }
    let last = publish(&log, "channel", "2").await;
    assert!(witness.gets(last, PATIENCE).await);
    assert!(until(PATIENCE, || witness.offsets().len() == 3).await);
    let page = history(&log, "channel", Since::End).await;
    let texts: Vec<_> = page.entries.iter().map(|entry| entry.publication.data.clone()).collect();
    assert_eq!(texts, ["1", "in time", "2"]);
    assert_eq!(witness.offsets(), page.entries.iter().map(|entry| entry.offset).collect::<Vec<_>>());
    assert_eq!(page.entries[0].offset, first);
    assert_ne!(channel_token::hash("channel"), 0);
}
