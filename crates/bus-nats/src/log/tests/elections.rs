//! New leaders: what was lost with the old one is found at once, not by the next tick only.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::servers::{Witness, config, faulty_at, prefix, publish, replica, until};
use crate::log::NatsLog;
use crate::log::faults::Faults;
use crate::testing::NatsCluster;

const PATIENCE: Duration = Duration::from_secs(60);

/// A publisher, and a replica on a server that does not lead the channel's stream. That replica loses every live message
/// and takes ticks for signs of life only.
struct Stage {
    cluster: NatsCluster,
    client: async_nats::Client,
    stream: String,
    away: usize,
    publisher: Arc<NatsLog>,
    reader: Arc<NatsLog>,
    faults: Arc<Faults>,
}

impl Stage {
    async fn set() -> Self {
        let cluster = NatsCluster::start().await.unwrap();
        let prefix = prefix();
        let publisher = replica(cluster.urls(), config(&prefix, 3)).await;
        publish(&publisher, "channel", "before").await;
        let stream = publisher.shard("channel").current().stream.clone();
        let client = async_nats::connect(cluster.urls()).await.unwrap();
        let leader = cluster.leader_of(&client, &stream).await.unwrap();
        let away = (leader + 1) % 3;
        let (reader, faults) = faulty_at(cluster.servers[away].url(), config(&prefix, 3)).await;
        Self { cluster, client, stream, away, publisher, reader, faults }
    }

    async fn leader(&self) -> usize {
        self.cluster.leader_of(&self.client, &self.stream).await.unwrap()
    }

    /// Publishes what does not come live, and nothing but an election betrays; and who leads. Servers of a busy machine elect
    /// by themselves: then once more.
    async fn lose_one(&self, witness: &Witness, quiet: Duration) -> (u64, usize) {
        self.faults.hold_ticks.store(true, Ordering::SeqCst);
        self.faults.lose_live.store(1000, Ordering::SeqCst);
        for _ in 0..5 {
            let leader = self.cluster.lead_elsewhere(&self.client, &self.stream, self.away).await.unwrap();
            let before = self.faults.lost.load(Ordering::SeqCst);
            let offset = publish(&self.publisher, "channel", "x").await;
            assert!(until(PATIENCE, || self.faults.lost.load(Ordering::SeqCst) > before).await);
            if !witness.gets(offset, quiet).await && self.leader().await == leader {
                return (offset, leader);
            }
        }
        panic!("something else than an election found it");
    }

    /// Has another server lead the stream, cleanly.
    async fn step_down(&self) {
        let before = self.leader().await;
        let deadline = Instant::now() + PATIENCE;
        while self.leader().await == before {
            assert!(Instant::now() < deadline, "the leader stays");
            let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{}", self.stream);
            // Without a leader nobody answers; the leader's name says whether it happened.
            let _ = tokio::time::timeout(Duration::from_secs(3), self.client.request(subject, "".into())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_leads_to_a_look_up() {
    let stage = Stage::set().await;
    let witness = Witness::on(&stage.reader, "channel").await;
    let (lost, _) = stage.lose_one(&witness, Duration::from_secs(3)).await;
    stage.step_down().await;
    let start = Instant::now();
    assert!(witness.gets(lost, PATIENCE).await, "the new leader led to no look-up");
    eprintln!("found {:?} after the new leader was known", start.elapsed());
    // Without the rule it stays lost.
    stage.faults.ignore_elections.store(true, Ordering::SeqCst);
    let (lost, _) = stage.lose_one(&witness, Duration::ZERO).await;
    stage.step_down().await;
    assert!(!witness.gets(lost, Duration::from_secs(8)).await, "something else than an election found it");
}

/// The same with the leader killed; the replica's own server lives on, so that no reconnect leads to the look-up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_leads_to_a_look_up() {
    let mut stage = Stage::set().await;
    let witness = Witness::on(&stage.reader, "channel").await;
    let (lost, leader) = stage.lose_one(&witness, Duration::ZERO).await;
    stage.cluster.kill(leader).unwrap();
    assert!(witness.gets(lost, PATIENCE).await, "the new leader led to no look-up");
}
