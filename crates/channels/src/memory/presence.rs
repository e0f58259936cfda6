//! In-process presence.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use plenum_protocol::ClientInfo;
use tokio::time::{Duration, Instant};

use super::room::{LeaseId, Room};
use crate::{Lease, Presence, PresenceError, PresenceStats};

/// A lease that was not renewed for this long does not count for any reader.
const READERS_PATIENCE: Duration = Duration::from_secs(4);

/// A replica that was late by more than this takes its own lease for lapsed: before any reader does.
const OWN_PATIENCE: Duration = Duration::from_secs(3);

/// Locks over the channels.
const SHARDS: usize = 16;

/// No lease yet.
const NO_LEASE: LeaseId = 0;

/// Presence in this process's memory, shared by the replicas that [`PresenceStore::replica`] makes.
pub struct PresenceStore {
    shards: Vec<Mutex<HashMap<Box<str>, Room>>>,
    /// Leases held, with their last renewal; as few as replicas.
    leases: RwLock<Vec<Held>>,
    next_lease: AtomicU32,
    hasher: RandomState,
}

struct Held {
    lease: LeaseId,
    replica: Box<str>,
    renewed: Instant,
}

/// One replica's side of a [`PresenceStore`]. Its lease begins with its first join or renewal.
pub struct MemoryPresence {
    store: Arc<PresenceStore>,
    replica: Box<str>,
    lease: AtomicU32,
}

impl PresenceStore {
    /// A store in which nobody is present.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            leases: RwLock::default(),
            next_lease: AtomicU32::new(NO_LEASE + 1),
            hasher: RandomState::new(),
        })
    }

    /// A side for the replica with this id. When the id begins a lease again, what it had before does not count.
    pub fn replica(self: &Arc<Self>, id: &str) -> Arc<MemoryPresence> {
        Arc::new(MemoryPresence { store: self.clone(), replica: id.into(), lease: AtomicU32::new(NO_LEASE) })
    }

    /// Runs `access` on the channel's room, from which everybody whose lease is over was removed.
    fn room<R>(&self, channel: &str, access: impl FnOnce(Option<&mut Room>) -> R) -> R {
        let mut rooms = self.shard(channel).lock();
        let result = match rooms.get_mut(channel) {
            None => return access(None),
            Some(room) => {
                self.sweep(room);
                access(Some(room))
            }
        };
        if rooms.get(channel).is_some_and(Room::is_empty) {
            rooms.remove(channel);
        }
        result
    }

    fn shard(&self, channel: &str) -> &Mutex<HashMap<Box<str>, Room>> {
        &self.shards[self.hasher.hash_one(channel) as usize % SHARDS]
    }

    fn sweep(&self, room: &mut Room) {
        let leases = self.leases.read();
        let now = Instant::now();
        let alive = |lease| leases.iter().any(|held| held.lease == lease && now - held.renewed < READERS_PATIENCE);
        room.sweep(&self.hasher, alive);
    }

    /// Frees the entries of leases that are over in channels that nobody looks at. Costs as much as there are channels,
    /// so it runs when a lease ended.
    fn sweep_all(&self) {
        for shard in &self.shards {
            shard.lock().retain(|_, room| {
                self.sweep(room);
                !room.is_empty()
            });
        }
    }
}

impl MemoryPresence {
    /// The only replica of a fresh store.
    pub fn single() -> Arc<Self> {
        PresenceStore::new().replica("single")
    }

    /// The lease under which this replica's entries count now, begun if there was none; `None` when it lapsed.
    fn lease(&self) -> Option<LeaseId> {
        let now = Instant::now();
        let current = self.lease.load(Ordering::Acquire);
        if current != NO_LEASE {
            let leases = self.store.leases.read();
            let held = leases.iter().find(|held| held.lease == current);
            return held.is_some_and(|held| now - held.renewed < READERS_PATIENCE).then_some(current);
        }
        Some(self.begin(&mut self.store.leases.write(), now))
    }

    fn begin(&self, leases: &mut Vec<Held>, now: Instant) -> LeaseId {
        // Another task may have been faster.
        let current = self.lease.load(Ordering::Acquire);
        if current != NO_LEASE && leases.iter().any(|held| held.lease == current) {
            return current;
        }
        let lease = self.store.next_lease.fetch_add(1, Ordering::Relaxed);
        leases.retain(|held| held.replica != self.replica);
        leases.push(Held { lease, replica: self.replica.clone(), renewed: now });
        self.lease.store(lease, Ordering::Release);
        lease
    }
}

#[async_trait]
impl Presence for MemoryPresence {
    async fn join(&self, channel: &str, member: Arc<ClientInfo>) -> Result<(), PresenceError> {
        // Without a lease the entry would not count; the replica joins everybody again when it learns of the lapse.
        let Some(lease) = self.lease() else { return Ok(()) };
        let mut rooms = self.store.shard(channel).lock();
        let room = match rooms.get_mut(channel) {
            Some(room) => room,
            None => rooms.entry(channel.into()).or_default(),
        };
        self.store.sweep(room);
        room.join(&self.store.hasher, lease, member);
        Ok(())
    }

    async fn leave(&self, channel: &str, client: &str) -> Result<(), PresenceError> {
        let lease = self.lease.load(Ordering::Acquire);
        self.store.room(channel, |room| {
            if let Some(room) = room {
                room.leave(&self.store.hasher, lease, client);
            }
        });
        Ok(())
    }

    async fn members(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, PresenceError> {
        Ok(self.store.room(channel, |room| room.map_or(Vec::new(), |room| room.members())))
    }

    async fn stats(&self, channel: &str) -> Result<PresenceStats, PresenceError> {
        let stats = |room: &mut Room| PresenceStats { clients: room.clients(), users: room.users() };
        Ok(self.store.room(channel, |room| room.map(stats).unwrap_or_default()))
    }

    async fn renew(&self) -> Result<Lease, PresenceError> {
        let now = Instant::now();
        let (outcome, ended) = {
            let mut leases = self.store.leases.write();
            let before = leases.len();
            let current = self.lease.load(Ordering::Acquire);
            leases.retain(|held| held.lease == current || now - held.renewed < READERS_PATIENCE);
            let ended = leases.len() < before;
            match leases.iter_mut().find(|held| held.lease == current) {
                Some(held) if now - held.renewed <= OWN_PATIENCE => {
                    held.renewed = now;
                    (Lease::Held, ended)
                }
                _ => {
                    leases.retain(|held| held.lease != current);
                    self.begin(&mut leases, now);
                    let first = current == NO_LEASE;
                    (if first { Lease::Held } else { Lease::Lapsed }, ended || !first)
                }
            }
        };
        if ended {
            self.store.sweep_all();
        }
        Ok(outcome)
    }

    async fn resign(&self) -> Result<(), PresenceError> {
        let current = self.lease.swap(NO_LEASE, Ordering::AcqRel);
        self.store.leases.write().retain(|held| held.lease != current);
        self.store.sweep_all();
        Ok(())
    }
}
