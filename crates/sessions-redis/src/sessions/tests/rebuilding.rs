//! A state that is the fold of a channel's log, with its snapshot in Redis: what Redis lost is made again from the log.

use std::sync::atomic::{AtomicUsize, Ordering};

use plenum_channels::memory::{MemoryBroker, MemoryConfig, MemoryLog};
use plenum_channels::{Append, Log, Page, Read, Retention, Since};
use plenum_protocol::Publication;

use super::*;

/// Votes by name; the newest vote of a name counts.
type Votes = std::collections::BTreeMap<String, String>;

fn fold(votes: &mut Votes, data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some((name, vote)) = text.split_once('=') {
        votes.insert(name.into(), vote.into());
    }
}

fn encode(votes: &Votes) -> Bytes {
    serde_json::to_vec(votes).unwrap().into()
}

/// A replica that serves the channel `poker`.
struct Replica {
    log: Arc<MemoryLog>,
    sessions: Arc<RedisSessions>,
    folded: AtomicUsize,
}

const RETENTION: Retention = Retention { size: 10_000, ttl: TTL, meta_ttl: TTL };

impl Replica {
    async fn append(&self, data: &str) {
        let publication = Publication { data: Bytes::copy_from_slice(data.as_bytes()), ..Publication::default() };
        let append = Append {
            channel: "poker".into(),
            publication,
            retention: RETENTION,
            idempotency: None,
            expected: None,
            version: None,
        };
        self.log.append(append).await.unwrap();
    }

    async fn page(&self, since: Since) -> Page {
        let read = Read { since, reverse: false, limit: 7, max_bytes: 1 << 20, retention: RETENTION };
        self.log.read("poker", read).await.unwrap()
    }

    /// The snapshot where it belongs to this log and is not ahead of it, else nothing; then the rest of the log.
    async fn state(&self) -> Votes {
        let fitting = async || self.sessions.fitting_snapshot("poker", self.log.as_ref(), RETENTION).await;
        let (mut votes, mut position, mut time) = match patiently(fitting).await.unwrap() {
            Some(snapshot) => (serde_json::from_slice(&snapshot.state).unwrap(), snapshot.position, snapshot.time),
            None => {
                let epoch = self.log.tail("poker").await.unwrap().position.epoch;
                (Votes::new(), plenum_channels::Position { offset: 0, epoch }, 0)
            }
        };
        loop {
            let page = self.page(Since::Position(position.clone())).await;
            assert!(page.complete);
            for entry in &page.entries {
                fold(&mut votes, &entry.publication.data);
                (position.offset, time) = (entry.offset, entry.stored_at_ms);
                self.folded.fetch_add(1, Ordering::Relaxed);
            }
            if !page.more {
                break;
            }
        }
        let snapshot = Snapshot { position, time, state: encode(&votes) };
        patiently(async || self.sessions.keep_snapshot("poker", snapshot.clone(), TTL).await).await.unwrap();
        votes
    }

    async fn folded_since(&self) -> usize {
        self.folded.swap(0, Ordering::Relaxed)
    }
}

#[tokio::test]
async fn what_redis_lost_is_made_again_from_the_log() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    let redis = open(cluster.patient());
    let broker = MemoryBroker::new(MemoryConfig::default());
    let replica = |log| Replica { log, sessions: RedisSessions::new(&redis), folded: AtomicUsize::new(0) };
    let (one, other) = (replica(broker.replica()), replica(broker.replica()));
    for n in 0..40 {
        one.append(&format!("name{}={n}", n % 5)).await;
    }
    let votes = one.state().await;
    assert_eq!((votes.len(), one.folded_since().await), (5, 40));
    assert_eq!((other.state().await, other.folded_since().await), (votes.clone(), 0), "from the snapshot alone");
    one.append("late=1").await;
    let votes = other.state().await;
    assert_eq!((votes.len(), other.folded_since().await), (6, 1), "the snapshot and the rest of the log");

    cluster.flush().await.unwrap();
    assert_eq!((one.state().await, one.folded_since().await), (votes.clone(), 41), "from the log alone");
    assert_eq!((other.state().await, other.folded_since().await), (votes.clone(), 0), "and it is kept again");

    // A snapshot of another log, and one that is ahead of this one, are not taken for it.
    let tail = one.log.tail("poker").await.unwrap().position;
    let foreign = plenum_channels::Position { offset: 1, epoch: "other".into() };
    let ahead = plenum_channels::Position { offset: tail.offset + 9, epoch: tail.epoch.clone() };
    for position in [foreign, ahead] {
        let wrong = Snapshot { position, time: 1, state: encode(&Votes::from([("wrong".into(), "1".into())])) };
        assert_eq!(one.sessions.keep_snapshot("poker", wrong, TTL).await, Ok(true));
        assert_eq!((other.state().await, other.folded_since().await), (votes.clone(), 41));
    }
    // Nor is one that was ahead, once the log has grown past it, whether anybody looked meanwhile or not.
    for n in 0..10 {
        one.append(&format!("later{n}=1")).await;
    }
    let votes = one.state().await;
    assert_eq!((votes.len(), votes.contains_key("wrong"), one.folded_since().await), (16, false, 10));
    let tail = one.log.tail("poker").await.unwrap().position;
    let unseen = plenum_channels::Position { offset: tail.offset + 1, epoch: tail.epoch.clone() };
    let wrong = Snapshot { position: unseen, time: 1, state: encode(&Votes::from([("wrong".into(), "1".into())])) };
    assert_eq!(one.sessions.keep_snapshot("poker", wrong, TTL).await, Ok(true));
    one.append("last=1").await;
    one.append("last=2").await;
    let votes = other.state().await;
    assert_eq!((votes.len(), votes.contains_key("wrong"), other.folded_since().await), (17, false, 53));
}
