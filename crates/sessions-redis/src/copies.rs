//! The copy of blocks and revocations: parts of a string each, under fixed keys, so that the newest copy takes the room of
//! the one before. Parts of two copies never pass for one: whoever reads compares the digest that the ledger holds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use plenum_channels::{Copies, MAX_COPY_BYTES};

use crate::client::{Call, Client, Purpose, Redis, Value};
use crate::keys::{Key, Keys};
use crate::sessions::millis;

/// Bytes of one part: no server is held up by it for long.
const PART: usize = 256 * 1024;

/// A copy on Redis.
pub struct RedisCopies {
    client: Client,
    keys: Keys,
}

impl RedisCopies {
    /// On connections of its own, made when there is something to keep or to read.
    pub fn new(redis: &Redis) -> Arc<Self> {
        Arc::new(RedisCopies { client: redis.client(Purpose::Sessions), keys: redis.keys().clone() })
    }

    fn key(&self, part: usize) -> Key {
        self.keys.key("ac", &self.keys.tag(&["copy", &part.to_string()]))
    }
}

#[async_trait]
impl Copies for RedisCopies {
    async fn keep(&self, copy: Bytes, ttl: Duration) -> bool {
        if !(1..=MAX_COPY_BYTES).contains(&copy.len()) {
            return false;
        }
        let parts = (0..copy.len()).step_by(PART).map(|from| copy.slice(from..copy.len().min(from + PART)));
        let set = |(place, part): (usize, Bytes)| {
            let arguments = [Value::Bytes(part), Value::from_static_str("PX"), millis(ttl)];
            Call::command("SET", &self.key(place), arguments).repeatable()
        };
        let answers = self.client.call_all(parts.enumerate().map(set).collect()).await;
        answers.iter().all(Result::is_ok)
    }

    async fn copy(&self, bytes: usize) -> Option<Bytes> {
        if !(1..=MAX_COPY_BYTES).contains(&bytes) {
            return None;
        }
        let parts = 0..bytes.div_ceil(PART);
        let reads = parts.map(|place| Call::command("GET", &self.key(place), []).reading()).collect();
        let mut copy = BytesMut::with_capacity(bytes);
        for answer in self.client.call_all(reads).await {
            let part = answer.ok()?.into_bytes()?;
            if copy.len() + part.len() > bytes {
                return None;
            }
            copy.extend_from_slice(&part);
        }
        (copy.len() == bytes).then(|| copy.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use plenum_channels::conformance::{Fixture, copies_suite};

    use super::*;
    use crate::client::{RedisConfig, RedisMetrics};
    use crate::testing::{RedisCluster, RedisServer};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Until there are connections to all primaries, as in a process that runs.
    async fn keep(copies: &RedisCopies, copy: Bytes, ttl: Duration) {
        let started = Instant::now();
        while !copies.keep(copy.clone(), ttl).await {
            assert!(started.elapsed() < PATIENCE, "{} bytes are not kept", copy.len());
        }
    }

    fn open(config: RedisConfig) -> Arc<Redis> {
        Redis::open(config, RedisMetrics::new().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn copies_conform_on_a_cluster_and_on_one_server() {
        let (cluster, server) =
            (Arc::new(RedisCluster::start_steady().await.unwrap()), RedisServer::start().await.unwrap());
        for config in [cluster.patient(), server.patient()] {
            let n = std::sync::atomic::AtomicU32::new(0);
            copies_suite(async |replicas| {
                let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let redis = open(RedisConfig { prefix: format!("p{n}"), ..config.clone() });
                let all: Vec<_> = (0..replicas).map(|_| RedisCopies::new(&redis)).collect();
                for one in &all {
                    keep(one, vec![0; MAX_COPY_BYTES].into(), Duration::from_millis(1)).await;
                }
                let all = all.into_iter().map(|one| one as Arc<dyn Copies>).collect();
                Fixture { guard: Box::new(redis), ..Fixture::with_tokio_time(all) }
            })
            .await;
        }
        for server in &cluster.servers {
            assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
        }
    }

    #[tokio::test]
    async fn a_copy_that_lost_a_part_is_none_and_one_without_servers_ends_in_time() {
        let server = RedisServer::start().await.unwrap();
        let copies = RedisCopies::new(&open(server.config()));
        let copy = Bytes::from(vec![7; 3 * PART]);
        keep(&copies, copy.clone(), Duration::from_secs(60)).await;
        assert_eq!(copies.copy(3 * PART).await, Some(copy.clone()));
        copies.client.call(Call::command("GETDEL", &copies.key(1), [])).await.unwrap();
        assert_eq!(copies.copy(3 * PART).await, None);
        // A longer one that was there before does not show through.
        keep(&copies, copy.slice(..10), Duration::from_secs(60)).await;
        assert_eq!(copies.copy(3 * PART).await, None);
        drop(server);
        assert!(!copies.keep(copy, Duration::from_secs(60)).await);
        assert_eq!(copies.copy(10).await, None);
    }
}
