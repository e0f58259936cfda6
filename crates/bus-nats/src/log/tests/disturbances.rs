//! Reconnects, slow consumers and cut routes: what was lost meanwhile is found although nothing follows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use plenum_channels::{Live, LiveEvent, Log};
use tokio::sync::broadcast;

use super::servers::{Witness, config, faulty, prefix, publish, replica, request, started, until};
use crate::log::faults::Faults;
use crate::log::{LogConfig, NatsLog};
use crate::pool::{EventKind, Pool, PoolConfig, PoolEvent};
use crate::testing::{NatsCluster, NatsServer};
use crate::workers::{Workers, WorkersConfig};

const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than what would find it, were the rule not switched off.
const NEVER: Duration = Duration::from_secs(4);

/// A message is lost; ticks say nothing of it, only the reconnect does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_leads_to_a_look_up() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let (log, faults) = faulty(vec![server.url()], config(&prefix, 1)).await;
    let witness = Witness::on(&log, "channel").await;
    faults.hold_ticks.store(true, Ordering::SeqCst);
    faults.lose_live.store(1000, Ordering::SeqCst);
    for rule in [true, false] {
        faults.ignore_disturbances.store(!rule, Ordering::SeqCst);
        let before = faults.lost.load(Ordering::SeqCst);
        let offset = publish(&publisher, "channel", "x").await;
        assert!(until(PATIENCE, || faults.lost.load(Ordering::SeqCst) > before).await, "not lost");
        assert!(witness.arrival(offset).is_none(), "something else than a reconnect found it");
        log.links.leave_all();
        assert_eq!(witness.gets(offset, if rule { PATIENCE } else { NEVER }).await, rule, "rule {rule}");
    }
}

/// A subscriber that holds up its worker until it is told to go on.
#[derive(Default)]
struct Slow {
    witness: Witness,
    goes_on: AtomicBool,
}

impl Live for Slow {
    fn deliver(&self, events: &[LiveEvent]) {
        while !self.goes_on.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.witness.deliver(events);
    }
}

/// Waits until a subscription was too slow for what came.
async fn slow_consumer(events: &mut broadcast::Receiver<PoolEvent>) {
    let named = async {
        loop {
            match events.recv().await {
                Ok(PoolEvent { kind: EventKind::SlowConsumer { .. }, .. }) => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(closed) => panic!("{closed}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, named).await.expect("nothing was dropped");
}

/// More comes than the client library keeps (less than by default here, more than answers to a read) while a worker is held up: the rest, of which nothing else tells, is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_consumer_leads_to_a_look_up() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    for rule in [true, false] {
        let mut found = !rule;
        // Where a busy machine spreads what comes, what follows a loss betrays it; then once more.
        for attempt in 0..5 {
            let channel = format!("channel {rule} {attempt}");
            found = is_found_behind_a_slow_consumer(server.url(), &prefix, &publisher, &channel, rule).await;
            if found == rule {
                break;
            }
            assert!(!rule, "what was dropped is not read");
        }
        assert_eq!(found, rule, "rule {rule}");
    }
}

/// Whether the last one of those that were dropped comes.
async fn is_found_behind_a_slow_consumer(
    url: String,
    prefix: &str,
    publisher: &NatsLog,
    channel: &str,
    rule: bool,
) -> bool {
    let pool = Pool::connect(PoolConfig { subscription_capacity: 512, ..PoolConfig::new(vec![url]) }).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let faults = Arc::new(Faults::default());
    faults.ignore_disturbances.store(!rule, Ordering::SeqCst);
    let mut events = pool.events();
    let log = started(pool, LogConfig { faults: faults.clone(), ..config(prefix, 1) }).await;
    Witness::on(&log, channel).await;
    faults.hold_ticks.store(true, Ordering::SeqCst);
    let slow = Arc::new(Slow::default());
    log.subscribe(channel, slow.clone()).await.unwrap();
    let calls: Vec<_> = (0..2000).map(|n| publisher.append(request(channel, n.to_string()))).collect();
    let last = join_all(calls).await.pop().unwrap().unwrap().position.offset;
    slow_consumer(&mut events).await;
    slow.goes_on.store(true, Ordering::SeqCst);
    slow.witness.gets(last, if rule { PATIENCE } else { NEVER }).await
}

/// The only keyed worker is held up, and its queue has room for one: what finds none is read, and nobody else waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_finds_no_room_with_its_worker_is_read() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let workers = Some(Workers::start(WorkersConfig { workers: 1, queue: 1, wait: Duration::from_millis(50) }));
    let log = replica(vec![server.url()], LogConfig { workers, ..config(&prefix, 1) }).await;
    let channels: Vec<String> = (0..6).map(|n| format!("channel {n}")).collect();
    let mut witnesses = Vec::new();
    for channel in &channels {
        witnesses.push(Witness::on(&log, channel).await);
    }
    Witness::on(&log, "slow").await;
    let slow = Arc::new(Slow::default());
    log.subscribe("slow", slow.clone()).await.unwrap();
    let held_up = publish(&publisher, "slow", "x").await;
    let mut published = vec![Vec::new(); channels.len()];
    for n in 0..5 {
        for (channel, published) in channels.iter().zip(&mut published) {
            published.push(publish(&publisher, channel, n.to_string()).await);
        }
    }
    let missed = until(PATIENCE, || log.stats().delivery.missed > 0).await;
    slow.goes_on.store(true, Ordering::SeqCst);
    assert!(missed, "everything found room");
    for (witness, published) in witnesses.iter().zip(&published) {
        assert!(witness.gets(published[4], PATIENCE).await, "never came");
        assert_eq!(witness.offsets(), *published);
        assert_eq!(witness.losses(), []);
    }
    assert!(slow.witness.gets(held_up, PATIENCE).await);
}

/// The route between two servers is cut for a second. A subscriber on the one, whom no event tells, misses a message that
/// the other one's stream took meanwhile; the tick brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_message_behind_a_cut_route_is_found_by_the_tick() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    let client = async_nats::connect(cluster.urls()).await.unwrap();
    let probe = replica(cluster.urls(), config(&prefix, 3)).await;
    let stream = probe.shard("channel").current().stream.clone();
    let leader = cluster.leader_of(&client, &stream).await.unwrap();
    let away = (leader + 1) % 3;
    let publisher = super::servers::faulty_at(cluster.servers[leader].url(), config(&prefix, 3)).await.0;
    let (log, faults) = super::servers::faulty_at(cluster.servers[away].url(), config(&prefix, 3)).await;
    let witness = Witness::on(&log, "channel").await;
    let mut lost = [0, 0];
    for attempt in 0..20 {
        let Some(rule) = lost.iter().position(|lost| *lost < 1) else { break };
        faults.ignore_ticks.store(rule == 0, Ordering::SeqCst);
        // Servers of a busy machine elect by themselves.
        let leader = cluster.lead_elsewhere(&client, &stream, away).await.unwrap();
        let route = cluster.route(leader, away).unwrap();
        let cut = Instant::now();
        route.cut();
        let offset = publish(&publisher, "channel", attempt.to_string()).await;
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(cut.elapsed())).await;
        // It was faster than the cut.
        let live = witness.arrival(offset).is_some();
        route.restore();
        let restored = Instant::now();
        let found = witness.gets(offset, if rule == 1 { PATIENCE } else { NEVER }).await;
        assert!(found || rule == 0, "lost behind a cut route");
        lost[rule] += usize::from(!live && found == (rule == 1));
        if rule == 1 && !live {
            eprintln!("found {:?} after the route was there again", restored.elapsed());
        }
    }
    assert_eq!(lost, [1, 1], "without and with the rule");
}
