//! Faults of a three-node cluster under load, checked by complete sequences.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plenum_channels::Log;
use tokio::task::JoinHandle;

use super::servers::{Witness, config, prefix, replica, request};
use crate::log::{LogConfig, NatsLog};
use crate::testing::NatsCluster;

const CHANNELS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

/// One publisher's acknowledged offsets, refusals with the time that they took, and longest append.
type Outcome = (Vec<u64>, Vec<(String, Duration)>, Duration);

/// A replica that publishes, one that delivers, and what came of it.
struct Load {
    publisher: Arc<NatsLog>,
    witnesses: Vec<Arc<Witness>>,
    publishers: Vec<JoinHandle<Outcome>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    async fn start(cluster: &NatsCluster) -> Self {
        let prefix = prefix();
        let publisher = replica(cluster.urls(), config(&prefix, 3)).await;
        let reader = replica(cluster.urls(), config(&prefix, 3)).await;
        let mut witnesses = Vec::new();
        for channel in 0..CHANNELS {
            witnesses.push(Witness::on(&reader, &format!("channel {channel}")).await);
        }
        // The reader lives as long as somebody watches it.
        std::mem::forget(reader);
        let stop = Arc::new(AtomicBool::new(false));
        let publish_on = |channel: usize| {
            let (log, stop) = (publisher.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut acknowledged, mut refused, mut longest) = (Vec::new(), Vec::new(), Duration::ZERO);
                while !stop.load(Ordering::SeqCst) {
                    let start = Instant::now();
                    let text = acknowledged.len().to_string();
                    match log.append(request(&format!("channel {channel}"), text)).await {
                        Ok(appended) => acknowledged.push(appended.position.offset),
                        Err(error) => refused.push((error.to_string(), start.elapsed())),
                    }
                    longest = longest.max(start.elapsed());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                (acknowledged, refused, longest)
            })
        };
        let publishers = (0..CHANNELS).map(publish_on).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        Self { publisher, witnesses, publishers, stop }
    }

    /// The member that leads the stream of the first channel.
    async fn leader(&self, cluster: &NatsCluster) -> usize {
        let stream = self.publisher.shard("channel 0").current().stream.clone();
        let client = async_nats::ConnectOptions::new().connect(cluster.urls()).await.unwrap();
        cluster.leader_of(&client, &stream).await.unwrap()
    }

    /// Everything that was acknowledged came once and in order. How many were refused before their 20 s were over.
    async fn finish(self, fault: &str) -> usize {
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.stop.store(true, Ordering::SeqCst);
        let (mut stall, mut total, mut failed) = (Duration::ZERO, 0, Vec::new());
        for (witness, publisher) in self.witnesses.iter().zip(self.publishers) {
            let (acknowledged, refused, longest) = publisher.await.unwrap();
            assert!(witness.gets(*acknowledged.last().unwrap(), PATIENCE).await, "{fault}: the last one never came");
            let got = witness.offsets();
            assert!(got.is_sorted_by(|a, b| a < b), "{fault}: doubled or out of order");
            let missing: Vec<_> = acknowledged.iter().filter(|offset| !got.contains(offset)).collect();
            assert!(missing.is_empty(), "{fault}: missing {missing:?}");
            assert!(witness.losses().is_empty(), "{fault}: told {:?}", witness.losses());
            (total, stall) = (total + acknowledged.len(), stall.max(longest));
            failed.extend(refused);
        }
        eprintln!("{fault}: {total} acknowledged, {} refused, longest append {stall:?}, nothing missing", failed.len());
        assert!(total > 100, "{fault}: {failed:?}");
        failed.iter().filter(|(_, after)| *after < LogConfig::default().append_patience).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_loses_nothing() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let load = Load::start(&cluster).await;
    let leader = load.leader(&cluster).await;
    cluster.kill(leader).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    cluster.restart(leader).await.unwrap();
    assert_eq!(load.finish("leader killed").await, 0, "retried under the same id until the election was over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_cleanly_loses_nothing() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let load = Load::start(&cluster).await;
    let leader = load.leader(&cluster).await;
    cluster.servers[leader].stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.restart(leader).await.unwrap();
    load.finish("leader stopped cleanly").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_loses_nothing() {
    let cluster = NatsCluster::start().await.unwrap();
    let load = Load::start(&cluster).await;
    let leader = load.leader(&cluster).await;
    cluster.servers[leader].pause().unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    cluster.servers[leader].resume().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    load.finish("leader frozen for 20 s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_killed_and_restarted_lose_nothing() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let load = Load::start(&cluster).await;
    for member in 0..3 {
        cluster.kill(member).unwrap();
    }
    for member in 0..3 {
        cluster.launch(member).unwrap();
    }
    cluster.ready(PATIENCE).await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    load.finish("all three killed and restarted").await;
}

/// The live messages and everything that was sent beside them are lost together, and no client notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_cut_for_a_second_lose_nothing() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let load = Load::start(&cluster).await;
    for member in 0..3 {
        for proxy in cluster.routes_of(member) {
            proxy.cut();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for proxy in cluster.routes_of(member) {
            proxy.restore();
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    load.finish("routes of each server cut for a second").await;
}
