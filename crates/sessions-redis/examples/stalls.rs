//! How long calls stall when one of three primaries is killed or frozen: with this crate's client, and with fred's own
//! cluster client under the same time-outs and a watchdog that calls `sync_cluster()`.
//!
//! `cargo run -p plenum-sessions-redis --features testing --example stalls`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fred::prelude::*;
use fred::types::{ClusterHash, CustomCommand};
use futures_util::future::BoxFuture;
use plenum_sessions_redis::client::{Call, Purpose, Redis, RedisMetrics};
use plenum_sessions_redis::keys::Key;
use plenum_sessions_redis::testing::{ClusterOptions, RedisCluster};

const RUN: Duration = Duration::from_secs(15);
const CALLERS_OF_THE_DEAD: usize = 32;

type Probe = Arc<dyn Fn(Key) -> BoxFuture<'static, bool> + Send + Sync>;
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Calls every 5 ms; resolves to the longest time without a success and the longest single call, in ms.
async fn watch(probe: Probe, key: Key, ends: Instant) -> (u128, u128) {
    let (mut last, mut gap, mut longest) = (Instant::now(), Duration::ZERO, Duration::ZERO);
    while Instant::now() < ends {
        let started = Instant::now();
        let ok = probe(key.clone()).await;
        longest = longest.max(started.elapsed());
        if ok {
            gap = gap.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (gap.max(last.elapsed()).as_millis(), longest.as_millis())
}

fn ours(redis: &Arc<Redis>, purpose: Purpose) -> Probe {
    let client = redis.client(purpose);
    Arc::new(move |key| {
        let client = client.clone();
        Box::pin(async move { client.call(Call::command("GET", &key, []).reading()).await.is_ok() })
    })
}

async fn freds(cluster: &RedisCluster) -> Outcome<Probe> {
    let hosts = cluster.addresses().into_iter().map(|address| (address.host, address.port)).collect();
    let config = Config { server: ServerConfig::new_clustered(hosts), ..Config::default() };
    let mut builder = Builder::from_config(config);
    builder.with_connection_config(|connection| {
        connection.connection_timeout = Duration::from_millis(800);
        connection.internal_command_timeout = Duration::from_millis(800);
        connection.max_command_attempts = 1;
        connection.max_command_buffer_len = 8192;
    });
    builder.with_performance_config(|performance| performance.default_command_timeout = Duration::from_millis(500));
    builder.set_policy(ReconnectPolicy::new_constant(0, 100));
    let client = builder.build()?;
    client.init().await?;
    let timeouts = Arc::new(AtomicU32::new(0));
    let (watched, counted) = (client.clone(), timeouts.clone());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if counted.swap(0, Ordering::Relaxed) >= 3 {
                let _ = watched.sync_cluster().await;
            }
        }
    });
    Ok(Arc::new(move |key: Key| {
        let (client, timeouts) = (client.clone(), timeouts.clone());
        Box::pin(async move {
            let command = CustomCommand::new_static("GET", ClusterHash::FirstKey, false);
            let result = client.custom::<Value, _>(command, vec![key.as_str().to_owned()]).await;
            if result.as_ref().is_err_and(|error| *error.kind() == ErrorKind::Timeout) {
                timeouts.fetch_add(1, Ordering::Relaxed);
            }
            result.is_ok()
        })
    }))
}

async fn measure(frozen: bool, fred: bool) -> Outcome<()> {
    let options = ClusterOptions { node_timeout: Duration::from_secs(2), ..ClusterOptions::default() };
    let mut cluster = RedisCluster::start_with(&options).await?;
    let redis = Redis::open(cluster.config(), RedisMetrics::new()?)?;
    redis.watch_slots().wait_for(|slots| slots.covered() == 16_384).await?;
    let key_of = |server: usize| {
        let address = cluster.servers[server].address();
        let tag = redis.keys().tag_in(|slot| redis.slots().owner(slot).is_some_and(|node| node.address == address));
        tag.map(|tag| redis.keys().key("stall", &tag)).ok_or("no slot")
    };
    let (healthy, dead) = (key_of(1)?, key_of(0)?);
    let (same, other) = match fred {
        true => (freds(&cluster).await?, freds(&cluster).await?),
        false => (ours(&redis, Purpose::Presence), ours(&redis, Purpose::Sessions)),
    };
    for probe in [&same, &other] {
        while !(probe(healthy.clone()).await && probe(dead.clone()).await) {}
    }
    let ends = Instant::now() + RUN;
    let watched = [
        tokio::spawn(watch(same.clone(), healthy.clone(), ends)),
        tokio::spawn(watch(other, healthy, ends)),
        tokio::spawn(watch(same.clone(), dead.clone(), ends)),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..CALLERS_OF_THE_DEAD {
        let (probe, key, stop) = (same.clone(), dead.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                probe(key.clone()).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    if frozen {
        cluster.servers[0].pause()?
    } else {
        cluster.servers[0].kill()?
    }
    let mut figures = Vec::new();
    for one in watched {
        figures.push(one.await?);
    }
    stop.store(true, Ordering::Relaxed);
    println!(
        "{:6} {:6}: healthy slots, same client {:5} ms (longest call {:4}); another client {:5} ms ({:4}); its slots {:5} ms ({:4})",
        if fred { "fred" } else { "ours" },
        if frozen { "frozen" } else { "killed" },
        figures[0].0,
        figures[0].1,
        figures[1].0,
        figures[1].1,
        figures[2].0,
        figures[2].1,
    );
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Outcome<()> {
    for fred in [false, true] {
        for frozen in [false, true] {
            measure(frozen, fred).await?;
        }
    }
    Ok(())
}
