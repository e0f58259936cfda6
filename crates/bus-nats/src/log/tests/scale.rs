//! Many channels on one replica: how long it takes to subscribe them, what they cost, and that ticks stay cheap.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use plenum_channels::Log;

use super::servers::{Witness, config, prefix, publish, replica, until};
use crate::testing::NatsServer;

const CHANNELS: usize = 5_000;

const PATIENCE: Duration = Duration::from_secs(60);

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_channels_with_local_subscribers() {
    let server = NatsServer::start().await.unwrap();
    let log = replica(vec![server.url()], config(&prefix(), 1)).await;
    let witness = Arc::new(Witness::default());
    let (before, start) = (resident_bytes(), Instant::now());
    let mut joining = FuturesUnordered::new();
    for channel in 0..CHANNELS {
        if joining.len() >= 256 {
            joining.next().await.unwrap();
        }
        let (log, witness) = (log.clone(), witness.clone());
        joining.push(async move {
            while let Err(error) = log.subscribe(&format!("channel {channel}"), witness.clone()).await {
                assert!(start.elapsed() < PATIENCE, "{error}");
            }
        });
    }
    while joining.next().await.is_some() {}
    let took = start.elapsed();
    let each = resident_bytes().saturating_sub(before) / CHANNELS as u64;
    eprintln!("{CHANNELS} channels subscribed in {took:?}, {each} bytes of memory each");
    let offset = publish(&log, &format!("channel {}", CHANNELS - 1), "x").await;
    assert!(witness.gets(offset, PATIENCE).await);
    assert!(until(Duration::from_secs(30), || log.doubtful().is_empty()).await, "ticks keep coming");
}
