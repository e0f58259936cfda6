use plenum_channels::conformance::{Isolating, presence_suite};

use super::*;
use crate::testing::{RedisCluster, RedisServer};

async fn suite(config: RedisConfig) {
    presence_suite(async |count| {
        let rig = Rig::new(config.clone(), PresenceConfig::default(), count);
        // Connected, and introduced to each other; judging the others takes longer, and is the cases' business.
        for replica in &rig.replicas {
            for n in 0..64 {
                until("presence answers", async || replica.stats(&format!("{n}")).await.is_ok()).await;
            }
        }
        until("all know all", async || rig.sides.iter().all(|side| side.census().alive.len() == count)).await;
        let replicas = rig.replicas.iter().map(|replica| replica.clone() as Arc<dyn Presence>).collect();
        let slack = Duration::from_secs(20);
        Isolating { slack, ..Isolating::with_tokio_time(replicas, move |index, cut| rig.sides[index].cut(cut)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_conforms_on_a_cluster() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    suite(cluster.patient()).await;
    for server in &cluster.servers {
        assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_conforms_on_a_single_server() {
    let server = RedisServer::start().await.unwrap();
    suite(server.patient()).await;
    assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
}
