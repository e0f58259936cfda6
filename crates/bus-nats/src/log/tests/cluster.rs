//! Three servers: slow routes, followers that lag, leaders that die.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plenum_channels::Log;

use super::servers::{Witness, config, faulty, pool, prefix, publish, replica};
use crate::log::faults::Faults;
use crate::log::{Held, Links, NatsLog, PoolLinks};
use crate::testing::NatsCluster;

const PATIENCE: Duration = Duration::from_secs(30);

/// The interest of a new subscription travels to the leader's server more slowly than a publication from there: the first
/// message never comes live, and the tick brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_right_after_joining_arrives() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    let probe = replica(cluster.urls(), config(&prefix, 3)).await;
    let client = async_nats::connect(cluster.servers[0].url()).await.unwrap();
    let leader = cluster.stream_leader(&client, &probe.shard("channel 0").current().stream).await.unwrap();
    let away = (leader + 1) % 3;
    let publisher = replica(vec![cluster.servers[leader].url()], config(&prefix, 3)).await;
    let (log, faults) = faulty(vec![cluster.servers[away].url()], config(&prefix, 3)).await;
    // Channels of the shard whose leader is known, with a publication each, so that joining needs no more than a read.
    let shard = probe.shard("channel 0").index;
    let channels: Vec<String> = (0..128)
        .map(|n| format!("channel {n}"))
        .filter(|channel| probe.shard(channel).index == shard)
        .take(20)
        .collect();
    for channel in &channels {
        publish(&publisher, channel, "before").await;
    }
    for proxy in cluster.routes_of(away) {
        proxy.set_delay(Duration::from_millis(400));
    }
    let (mut times, mut lost) = (Vec::new(), 0);
    for (n, channel) in channels.iter().enumerate() {
        if lost > 0 {
            break;
        }
        let rule = n < 4;
        faults.ignore_ticks.store(!rule, Ordering::SeqCst);
        let witness = Witness::on(&log, channel).await;
        let offset = publish(&publisher, channel, "first").await;
        let acknowledged = Instant::now();
        let arrived = witness.gets(offset, Duration::from_secs(if rule { 8 } else { 4 })).await;
        match rule {
            true => assert!(arrived, "{channel}: the first message was lost"),
            false => lost += usize::from(!arrived),
        }
        if arrived {
            times.push(acknowledged.elapsed());
        }
    }
    eprintln!("published right after joining over slow routes: arrived after {times:?}; without the rule {lost} lost");
    // Where the slow routes make another server the leader, interest no longer has far to travel.
    if lost == 0 {
        eprintln!("without the rule nothing was lost this time: the schedule did not come about");
    }
}

/// Live messages come from one server, answers to reads from another one that lags.
struct Mixed {
    live: Arc<PoolLinks>,
    reads: Arc<PoolLinks>,
}

impl Links for Mixed {
    fn any(&self) -> Held {
        self.reads.any()
    }

    fn pinned(&self, number: u64) -> Held {
        self.live.pinned(number)
    }

    fn subscribing(&self, number: u64) -> async_nats::Client {
        self.live.subscribing(number)
    }

    fn leave(&self, _: usize) {}

    fn leave_all(&self) {}

    fn disturbed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.live.disturbed()
    }
}

/// A read that is answered by a server behind what this replica has delivered waits for a better answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_never_older_than_what_was_delivered() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    let probe = replica(cluster.urls(), config(&prefix, 3)).await;
    let client = async_nats::connect(cluster.servers[0].url()).await.unwrap();
    let leader = cluster.stream_leader(&client, &probe.shard("channel").current().stream).await.unwrap();
    let away = (leader + 1) % 3;
    let links = Mixed {
        live: PoolLinks::new(pool(vec![cluster.servers[leader].url()]).await),
        reads: PoolLinks::new(pool(vec![cluster.servers[away].url()]).await),
    };
    let faults = Arc::new(Faults::default());
    let mut config = config(&prefix, 3);
    config.faults = faults.clone();
    let log = NatsLog::start(Arc::new(links), config).await.unwrap();
    let witness = Witness::on(&log, "channel").await;
    for proxy in cluster.routes_of(away) {
        proxy.set_delay(Duration::from_millis(150));
    }
    let mut stale = [0, 0];
    for round in 0..10 {
        let rule = round % 2;
        faults.believe_stale.store(rule == 0, Ordering::SeqCst);
        let offset = publish(&log, "channel", "x").await;
        assert!(witness.gets(offset, PATIENCE).await);
        let tail = log.tail("channel").await.unwrap().position.offset;
        stale[rule] += usize::from(tail < offset);
    }
    eprintln!("stale reads of 5: {} without the rule, {} with it", stale[0], stale[1]);
    assert_eq!(stale[1], 0);
    if stale[0] == 0 {
        eprintln!("without the rule nothing was stale this time: the schedule did not come about");
    }
}
