//! What operators do and networks do: permissions, a replica that is cut off, subscriptions that fall behind.

use std::sync::Arc;
use std::time::Duration;

use plenum_channels::{Append, AppendError, Control, Live, LiveEvent, Log, Since};

use super::servers::{Witness, config, faulty, history, prefix, publish, replica, request, started_on};
use crate::control::NatsControl;
use crate::log::{GroupConfig, LogConfig, PoolLinks};
use crate::pool::{Credentials, Pool, PoolConfig};
use crate::testing::{NatsServer, Proxy, ServerOptions};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the manual lists is what the account in the tests has.
#[test]
fn the_manual_lists_the_permissions() {
    let manual = include_str!("../../../../../docs/log.md");
    let account = include_str!("../../../../../deploy/nats/plenum.conf");
    let listing = manual.split_once("## What a replica may do in NATS").unwrap().1.split("```").nth(1).unwrap();
    let listed = |part: &str| {
        let mut subjects: Vec<String> =
            part.split_whitespace().map(|subject| subject.replace("<prefix>", "plenum")).collect();
        subjects.sort();
        subjects
    };
    let allowed = |part: &str| {
        let block = part.split_once('[').unwrap().1.split_once(']').unwrap().0;
        let mut subjects: Vec<String> =
            block.lines().filter_map(|line| Some(line.split('"').nth(1)?.to_owned())).collect();
        subjects.sort();
        subjects
    };
    let (publish, subscribe) = listing.trim().strip_prefix("publish:").unwrap().split_once("subscribe:").unwrap();
    let (_, account) = account.split_once("publish {").unwrap();
    let (may_publish, may_subscribe) = account.split_once("subscribe {").unwrap();
    assert_eq!(listed(publish), allowed(may_publish));
    assert_eq!(listed(subscribe), allowed(may_subscribe));
}

/// The account of deploy/nats/plenum.conf, which docs/log.md lists, and nothing more, is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_suffice() {
    let account = include_str!("../../../../../deploy/nats/plenum.conf").replace("$PLENUM_NATS_PASSWORD", "secret");
    let options = ServerOptions { settings: account, ..ServerOptions::default() };
    let server = NatsServer::start_with(options).await.unwrap();
    let mut settings = PoolConfig::new(vec![server.url()]);
    settings.inbox_prefix = "_INBOX_plenum".into();
    settings.credentials = Credentials::UserPassword { user: "plenum".into(), password: "secret".into() };
    let pool = Pool::connect(settings).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let links = PoolLinks::new(pool.clone());
    let mut complaints = pool.events();
    let log = started_on(links.clone(), config("plenum", 1)).await;
    let control = NatsControl::start(links, "plenum").await.unwrap();
    let witness = Witness::on(&log, "channel").await;
    let offset = publish(&log, "channel", "1").await;
    assert!(witness.gets(offset, PATIENCE).await);
    let keyed = || Append {
        idempotency: Some(plenum_channels::IdempotencyKey { scope: "s".into(), key: "k".into() }),
        expected: Some(offset),
        ..request("channel", "2")
    };
    log.append(keyed()).await.unwrap();
    assert!(log.append(keyed()).await.unwrap().duplicate);
    assert_eq!(history(&log, "channel", Since::End).await.entries.len(), 2);
    log.remove("channel").await.unwrap();
    assert!(history(&log, "channel", Since::End).await.entries.is_empty());
    log.announce("channel", plenum_channels::Announcement::Join(Default::default())).await.unwrap();
    control.survey(plenum_channels::Question::Info).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    while let Ok(event) = complaints.try_recv() {
        let text = format!("{event:?}").to_lowercase();
        assert!(!text.contains("permission"), "{text}");
    }
}

/// Nothing reaches a replica for 30 s and no connection breaks. It says so, and has everything when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_catches_up() {
    let server = NatsServer::start().await.unwrap();
    let proxy = Proxy::start(server.address()).await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let away = replica(vec![format!("nats://{}", proxy.address())], config(&prefix, 1)).await;
    let witness = Witness::on(&away, "channel").await;
    let mut offsets = vec![publish(&publisher, "channel", "0").await];
    assert!(witness.gets(offsets[0], PATIENCE).await);
    proxy.stall();
    for n in 1..100 {
        offsets.push(publish(&publisher, "channel", n.to_string()).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        if n == 20 {
            assert!(!away.doubtful().is_empty(), "a replica that gets no ticks must not look healthy");
        }
    }
    proxy.restore();
    offsets.push(publish(&publisher, "channel", "last").await);
    let back = std::time::Instant::now();
    assert!(witness.gets(offsets[offsets.len() - 1], Duration::from_secs(45)).await, "it never came back");
    eprintln!("cut off for 30 s: caught up {:?} after the network was back", back.elapsed());
    assert_eq!((witness.offsets(), witness.losses()), (offsets, vec![]));
}

/// A position that the front has passed: accepted where nothing followed it; "never published" is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expectations_survive_the_front() {
    let server = NatsServer::start().await.unwrap();
    let group = GroupConfig { shards: 1, max_bytes: Some(1 << 20), ..GroupConfig::default() };
    let small = LogConfig { groups: vec![group], ..config(&prefix(), 1) };
    let (log, _) = faulty(vec![server.url()], small).await;
    let expecting = |expected| Append { expected: Some(expected), ..request("channel", "x") };
    let last = publish(&log, "channel", "1").await;
    for _ in 0..24 {
        publish(&log, "ballast", vec![b'x'; 100_000]).await;
    }
    let tail = log.tail("channel").await.unwrap().position.offset;
    assert!(tail >= last, "a position never goes back");
    let create = log.append(expecting(0)).await;
    assert!(
        matches!(create, Err(AppendError::Conflict { expected: 0, .. })),
        "overwrites what was trimmed: {create:?}"
    );
    let next = log.append(expecting(tail)).await.unwrap().position.offset;
    let stale = log.append(expecting(tail)).await;
    assert_eq!(stale, Err(AppendError::Conflict { expected: tail, last: next }));
}

/// Blocks its worker until it is told to go on.
struct Slow(Arc<parking_lot::Mutex<()>>, Arc<Witness>);

impl Live for Slow {
    fn deliver(&self, events: &[LiveEvent]) {
        drop(self.0.lock());
        self.1.deliver(events);
    }
}

/// More messages than the client library keeps for a subscription: what it drops is read from the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_subscription_that_falls_behind_is_repaired() {
    const COUNT: usize = 70_000;
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let reader = replica(vec![server.url()], config(&prefix, 1)).await;
    let (gate, witness) = (Arc::new(parking_lot::Mutex::new(())), Arc::new(Witness::default()));
    reader.subscribe("channel", Arc::new(Slow(gate.clone(), witness.clone()))).await.unwrap();
    let mut offsets = Vec::new();
    {
        let ((sender, receiver), gate) = (std::sync::mpsc::channel::<()>(), gate.clone());
        let holder = std::thread::spawn(move || {
            let _held = gate.lock();
            let _ = receiver.recv();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        // So few at once that a slow machine stores them long before an append gives up.
        for part in (0..COUNT).collect::<Vec<_>>().chunks(1_000) {
            let calls = part.iter().map(|n| publisher.append(request("channel", n.to_string())));
            let done = futures_util::future::join_all(calls).await;
            offsets.extend(done.into_iter().map(|appended| appended.unwrap().position.offset));
        }
        sender.send(()).unwrap();
        tokio::task::spawn_blocking(move || holder.join().unwrap()).await.unwrap();
    }
    assert!(witness.gets(offsets[COUNT - 1], Duration::from_secs(120)).await, "the last one never came");
    assert!(witness.losses().is_empty());
    assert!(witness.offsets() == offsets, "{} of {COUNT} came", witness.offsets().len());
}
