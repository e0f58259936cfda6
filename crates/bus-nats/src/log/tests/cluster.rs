//! Three servers: slow routes, followers that lag, leaders that die.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plenum_channels::Log;

use super::servers::{Witness, config, faulty_at, pool_at, prefix, publish, replica, request, started_on};
use crate::log::faults::Faults;
use crate::log::{Held, Links, NatsLog, PoolLinks};
use crate::testing::NatsCluster;

const PATIENCE: Duration = Duration::from_secs(30);

/// What a slow route adds to the way of each message, at least.
const SLOW: Duration = Duration::from_millis(400);

/// How often a schedule is tried until it has come about with and without the rule.
const ATTEMPTS: usize = 80;

/// The interest of a new subscription travels to the leader's server more slowly than a publication from there: the first
/// message never comes live, and the tick brings it. Slow routes may make another server the leader, or have the read
/// answered beyond them, which gives the interest its time; then the attempt does not count and is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_right_after_joining_arrives() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let prefix = prefix();
    let probe = replica(cluster.urls(), config(&prefix, 3)).await;
    let client = async_nats::connect(cluster.servers[0].url()).await.unwrap();
    let stream = probe.shard("channel 0").current().stream.clone();
    let away = (cluster.leader_of(&client, &stream).await.unwrap() + 1) % 3;
    let (log, faults) = faulty_at(cluster.servers[away].url(), config(&prefix, 3)).await;
    let near: Vec<String> =
        (0..3).filter(|member| *member != away).map(|member| cluster.servers[member].url()).collect();
    let client = async_nats::ConnectOptions::new().ignore_discovered_servers().connect(&near).await.unwrap();
    let publisher = replica(near, config(&prefix, 3)).await;
    // Channels of the shard whose leader is known, with a publication each, so that joining needs no more than a read.
    let shard = probe.shard("channel 0").index;
    let mut channels = (0..).map(|n| format!("channel {n}")).filter(|channel| probe.shard(channel).index == shard);
    let mut prepared = Vec::new();
    for channel in channels.by_ref().take(ATTEMPTS) {
        publish(&probe, &channel, "before").await;
        prepared.push(channel);
    }
    // A follower knows an entry for stored when the next one comes; so the one that answers lags no more than its routes.
    let (traffic, others) = (publisher.clone(), channels.next().unwrap());
    let traffic = tokio::spawn(async move {
        loop {
            let _ = traffic.append(request(&others, "x")).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let slow_down = |delay| cluster.routes_of(away).for_each(|proxy| proxy.set_delay(delay));
    // Slower than a join on this machine, which must not need the slow way.
    let joining = Instant::now();
    Witness::on(&log, &channels.next().unwrap()).await;
    let slow = SLOW.max(joining.elapsed() * 4).min(SLOW * 4);
    slow_down(slow);
    // By rule: messages that did not come live, and of those the ones that came all the same.
    let mut lost = [0, 0];
    let mut found = [Vec::new(), Vec::new()];
    for channel in &prepared {
        let Some(rule) = lost.iter().position(|lost| *lost < 2) else { break };
        faults.ignore_ticks.store(rule == 0, Ordering::SeqCst);
        cluster.lead_elsewhere(&client, &stream, away).await.unwrap();
        let joining = Instant::now();
        // The elections that slow routes cause may keep a stream without a leader for long.
        let Ok(witness) = Witness::within(PATIENCE, &log, channel).await else {
            slow_down(Duration::ZERO);
            Witness::on(&log, channel).await;
            slow_down(slow);
            continue;
        };
        if joining.elapsed() > slow {
            continue;
        }
        let offset = publish(&publisher, channel, "first").await;
        let acknowledged = Instant::now();
        // What was on its way over the slow route has come by then.
        let live = witness.gets(offset, slow * 2 + Duration::from_millis(100)).await;
        let arrived = live || witness.gets(offset, if rule == 1 { PATIENCE } else { Duration::from_secs(3) }).await;
        assert!(arrived || rule == 0, "{channel}: the first message was lost");
        if !arrived || rule == 1 && !live {
            lost[rule] += 1;
        }
        if arrived {
            found[rule].push(acknowledged.elapsed());
        }
    }
    eprintln!(
        "published right after joining over slow routes: not live, without and with the rule: {lost:?}, {found:?}"
    );
    traffic.abort();
    assert!(lost[0] > 0, "without the rule nothing was lost in {ATTEMPTS} attempts");
    assert!(lost[1] > 0, "with the rule everything came live in {ATTEMPTS} attempts, so that it was not tried");
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

/// A replica that hears from the leader's server, and reads from another one.
struct Elsewhere {
    log: Arc<NatsLog>,
    faults: Arc<Faults>,
    client: async_nats::Client,
    stream: String,
    /// The server that answers reads.
    away: usize,
}

impl Elsewhere {
    async fn of(cluster: &NatsCluster) -> Self {
        let prefix = prefix();
        let probe = replica(cluster.urls(), config(&prefix, 3)).await;
        let client = async_nats::connect(cluster.servers[0].url()).await.unwrap();
        let stream = probe.shard("channel").current().stream.clone();
        let leader = cluster.leader_of(&client, &stream).await.unwrap();
        let away = (leader + 1) % 3;
        let links = Mixed {
            live: PoolLinks::new(pool_at(vec![cluster.servers[leader].url()]).await),
            reads: PoolLinks::new(pool_at(vec![cluster.servers[away].url()]).await),
        };
        let faults = Arc::new(Faults::default());
        let mut config = config(&prefix, 3);
        config.faults = faults.clone();
        let log = started_on(Arc::new(links), config).await;
        let url = cluster.servers[leader].url();
        let client = async_nats::ConnectOptions::new().ignore_discovered_servers().connect(url).await.unwrap();
        Self { log, faults, client, stream, away }
    }

    /// The channel's end. While servers elect or stand still reads are refused as temporary.
    async fn tail(&self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.log.tail("channel").await {
                Ok(tail) => return tail.position.offset,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    /// Whether a read without the rule is older than this publication; one with it must not be.
    async fn is_stale(&self, offset: u64) -> bool {
        self.faults.believe_stale.store(true, Ordering::SeqCst);
        let before = self.tail().await;
        self.faults.believe_stale.store(false, Ordering::SeqCst);
        let after = self.tail().await;
        assert!(after >= offset, "a read was older than what was delivered");
        before < offset
    }
}

/// A read that is answered by a server behind what this replica has delivered waits for a better answer. As above an
/// election may spoil an attempt, which then is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_never_older_than_what_was_delivered() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let stage = Elsewhere::of(&cluster).await;
    let witness = Witness::on(&stage.log, "channel").await;
    for proxy in cluster.routes_of(stage.away) {
        proxy.set_delay(Duration::from_millis(150));
    }
    let (mut stale, mut tried) = (0, 0);
    while tried < ATTEMPTS && (stale < 2 || tried < 5) {
        tried += 1;
        cluster.lead_elsewhere(&stage.client, &stage.stream, stage.away).await.unwrap();
        let offset = publish(&stage.log, "channel", "x").await;
        assert!(witness.gets(offset, PATIENCE).await);
        // The server that answers lagged a moment ago.
        stale += usize::from(stage.is_stale(offset).await);
    }
    eprintln!("stale reads without the rule: {stale}; with it none of {tried}");
    assert!(stale > 0, "without the rule nothing was stale in {ATTEMPTS} attempts");
}

/// The same with a follower that stood still, and answers before it has taken in what came meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_stood_still_is_not_believed() {
    let cluster = NatsCluster::start().await.unwrap();
    let stage = Elsewhere::of(&cluster).await;
    let witness = Witness::on(&stage.log, "channel").await;
    let mut stale = 0;
    for tried in 0..ATTEMPTS {
        if stale > 0 && tried >= 3 {
            break;
        }
        cluster.lead_elsewhere(&stage.client, &stage.stream, stage.away).await.unwrap();
        cluster.servers[stage.away].pause().unwrap();
        let calls: Vec<_> = (0..500).map(|_| stage.log.append(request("channel", vec![b'x'; 2000]))).collect();
        let last = futures_util::future::join_all(calls).await.pop().unwrap().unwrap().position.offset;
        assert!(witness.gets(last, PATIENCE).await);
        cluster.servers[stage.away].resume().unwrap();
        stale += usize::from(stage.is_stale(last).await);
    }
    assert!(stale > 0, "without the rule nothing was stale in {ATTEMPTS} attempts");
}
