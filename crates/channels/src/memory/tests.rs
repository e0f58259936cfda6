//! The in-process implementations pass the suites.

use std::sync::Arc;

use crate::conformance::{self, Fixture};
use crate::{Control, Log, Presence, Quotas, Replicas};

use super::{ControlBus, MemoryBroker, MemoryConfig, PresenceStore, QuotaStore, ReplicaBus};

async fn logs(replicas: usize) -> Fixture<dyn Log> {
    let broker = MemoryBroker::new(MemoryConfig::default());
    Fixture::with_tokio_time((0..replicas).map(|_| broker.replica() as Arc<dyn Log>).collect())
}

/// One shard with room for two live events: everything waits in line all the time.
async fn cramped_logs(replicas: usize) -> Fixture<dyn Log> {
    let broker = MemoryBroker::new(MemoryConfig { shards: 1, queue_events: 2, ..MemoryConfig::default() });
    Fixture::with_tokio_time((0..replicas).map(|_| broker.replica() as Arc<dyn Log>).collect())
}

#[tokio::test(start_paused = true)]
async fn the_log_conforms() {
    conformance::log_suite(logs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_conforms_on_several_threads() {
    conformance::append_suite(logs).await;
    conformance::live_suite(logs).await;
}

#[tokio::test(start_paused = true)]
async fn the_log_conforms_while_appends_wait_in_line() {
    conformance::log_suite(cramped_logs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_conforms_on_several_threads_while_appends_wait_in_line() {
    conformance::append_suite(cramped_logs).await;
    conformance::live_suite(cramped_logs).await;
}

#[tokio::test(start_paused = true)]
async fn presence_conforms() {
    conformance::presence_suite(async |replicas| {
        let store = PresenceStore::new();
        let replica = |n: usize| store.replica(&n.to_string()) as Arc<dyn Presence>;
        // Nobody renews a lease that the suite does not renew.
        conformance::Isolating::with_tokio_time((0..replicas).map(replica).collect(), |_, _| {})
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn control_conforms() {
    conformance::control_suite(async |replicas| {
        let bus = ControlBus::new();
        Fixture::with_tokio_time((0..replicas).map(|_| bus.side() as Arc<dyn Control>).collect())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_conform() {
    conformance::replicas_suite(async |replicas| {
        let bus = ReplicaBus::new();
        let sides: Vec<_> = (0..replicas).map(|_| bus.side()).collect();
        let replicas = sides.iter().map(|side| side.clone() as Arc<dyn Replicas>).collect();
        conformance::Isolating::with_tokio_time(replicas, move |index, cut| sides[index].cut(cut))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn quotas_conform() {
    conformance::quotas_suite(async |replicas| {
        let (bus, store) = (ReplicaBus::new(), QuotaStore::new());
        let sides: Vec<_> = (0..replicas).map(|_| bus.side()).collect();
        // Introduced to each other.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let replicas = sides.iter().map(|side| store.replica(side.clone()) as Arc<dyn Quotas>).collect();
        conformance::Isolating::with_tokio_time(replicas, move |index, cut| sides[index].cut(cut))
    })
    .await;
}
