//! Streams that the servers cannot place, and appends that they cannot store, say why.

use std::time::{Duration, Instant};

use plenum_channels::{AppendError, Log};

use super::servers::{config, pool, prefix, replica, request};
use crate::log::{GroupConfig, NatsLog, PoolLinks};
use crate::testing::{ClusterOptions, NatsCluster, ServerOptions};

/// No server has room for the stream; the cluster goes on looking for one, and the error has its words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_place_is_refused_with_the_reason() {
    let cluster = NatsCluster::start().await.unwrap();
    let groups = vec![GroupConfig { max_bytes: Some(1 << 60), ..GroupConfig::default() }];
    let config = crate::log::LogConfig { groups, ..config(&prefix(), 3) };
    let links = PoolLinks::new(pool(cluster.urls()).await);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let refused = NatsLog::start(links.clone(), config.clone()).await.map(drop).unwrap_err().to_string();
        eprintln!("{refused}");
        if refused.contains("storage") || refused.contains("peers") {
            break;
        }
        // While the servers elect they say that instead.
        assert!(Instant::now() < deadline, "{refused}");
    }
}

/// Storage full: the leader says so once and gives the lead up, and then nobody is there. The publisher is told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_storage_is_named() {
    let server = ServerOptions { jetstream_settings: "max_mem: 16M\nmax_file: 4M".into(), ..ServerOptions::default() };
    let cluster = NatsCluster::start_with(ClusterOptions { server, ..ClusterOptions::default() }).await.unwrap();
    let log = replica(cluster.urls(), config(&prefix(), 3)).await;
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut stored = 0;
    loop {
        assert!(Instant::now() < deadline, "the storage is never full");
        match log.append(request("channel", vec![b'x'; 200_000])).await {
            Ok(_) => stored += 1,
            Err(AppendError::Unavailable { reason }) => {
                eprintln!("{reason}");
                if reason.contains("resources") || reason.contains("storage") {
                    break;
                }
                // There is room for 20, and before that an election on a busy machine may be the reason.
                assert!(stored < 15, "{reason}");
            }
            // An attempt without any answer.
            Err(_) => {}
        }
    }
}
