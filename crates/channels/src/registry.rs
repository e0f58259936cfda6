//! The connections that this replica holds, and whose they are.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::session::Identity;
use crate::{Outbox, Target};

/// Locks that connections are spread over.
const SHARDS: usize = 64;

/// Every connection from its handshake to its end, under an id of its own: its client id, unless it was resumed, when it
/// has the client id of the connection before it, which may still be here.
pub(crate) struct Registry {
    connections: Vec<Mutex<HashMap<Uuid, Connection>>>,
    users: Vec<Mutex<HashMap<Arc<str>, Vec<Uuid>>>>,
    /// Resumed connections by client id.
    resumed: Mutex<HashMap<Uuid, Vec<Uuid>>>,
    hasher: RandomState,
    count: AtomicUsize,
    /// Of these, those whose user is known.
    known: AtomicUsize,
}

struct Connection {
    outbox: Arc<Outbox>,
    /// `None` before authentication.
    identity: Option<Arc<Identity>>,
}

/// A connection that was found.
pub(crate) struct Registered {
    pub(crate) identity: Arc<Identity>,
    pub(crate) outbox: Arc<Outbox>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            connections: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            users: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            resumed: Mutex::default(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            known: AtomicUsize::new(0),
        }
    }

    fn shard(&self, connection: &Uuid) -> &Mutex<HashMap<Uuid, Connection>> {
        &self.connections[connection.as_bytes()[0] as usize % SHARDS]
    }

    fn users_of(&self, user: &str) -> &Mutex<HashMap<Arc<str>, Vec<Uuid>>> {
        &self.users[self.hasher.hash_one(user) as usize % SHARDS]
    }

    fn get(&self, connection: &Uuid) -> Option<Registered> {
        let connections = self.shard(connection).lock();
        let found = connections.get(connection)?;
        Some(Registered { identity: found.identity.clone()?, outbox: found.outbox.clone() })
    }

    /// Takes a connection in unless `max` (0: no bound) are held.
    pub(crate) fn admit(&self, connection: Uuid, outbox: Arc<Outbox>, max: usize) -> bool {
        let admitted = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (max == 0 || count < max).then_some(count + 1));
        if admitted.is_ok() {
            self.shard(&connection).lock().insert(connection, Connection { outbox, identity: None });
        }
        admitted.is_ok()
    }

    /// Says whose connection it is unless the user has `max` (0: no bound) already, those with the same client id not
    /// counted.
    pub(crate) fn identify(&self, connection: Uuid, identity: &Arc<Identity>, max: usize) -> bool {
        if !identity.user.is_empty() {
            let mut users = self.users_of(&identity.user).lock();
            let connections = users.entry(identity.user.clone()).or_default();
            if max > 0 && connections.len() >= max {
                let other = |held: &&Uuid| self.get(held).is_none_or(|it| it.identity.client != identity.client);
                if connections.iter().filter(other).count() >= max {
                    return false;
                }
            }
            connections.push(connection);
        }
        if identity.client != connection {
            self.resumed.lock().entry(identity.client).or_default().push(connection);
        }
        self.known.fetch_add(1, Ordering::Relaxed);
        self.describe(connection, identity);
        true
    }

    /// What is known of the connection changed, but not its user or client id.
    pub(crate) fn describe(&self, connection: Uuid, identity: &Arc<Identity>) {
        if let Some(connection) = self.shard(&connection).lock().get_mut(&connection) {
            connection.identity = Some(identity.clone());
        }
    }

    /// Forgets a connection.
    pub(crate) fn remove(&self, connection: Uuid) {
        let Some(removed) = self.shard(&connection).lock().remove(&connection) else { return };
        self.count.fetch_sub(1, Ordering::Relaxed);
        let Some(identity) = removed.identity else { return };
        self.known.fetch_sub(1, Ordering::Relaxed);
        if identity.client != connection {
            forget(&mut self.resumed.lock(), &identity.client, connection);
        }
        if !identity.user.is_empty() {
            forget(&mut self.users_of(&identity.user).lock(), &identity.user, connection);
        }
    }

    /// Connections held, those not yet authenticated included.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Distinct client ids of authenticated connections: one that came back is counted once while the old one ends.
    pub(crate) fn num_sessions(&self) -> usize {
        let resumed: Vec<(Uuid, usize)> =
            self.resumed.lock().iter().map(|(client, connections)| (*client, connections.len())).collect();
        let more = |(client, times): &(Uuid, usize)| times - usize::from(self.get(client).is_none());
        self.known.load(Ordering::Relaxed).saturating_sub(resumed.iter().map(more).sum())
    }

    /// Distinct authenticated users.
    pub(crate) fn num_users(&self) -> usize {
        self.users.iter().map(|users| users.lock().len()).sum()
    }

    /// The connections that an order is meant for.
    pub(crate) fn find(&self, target: &Target) -> Vec<Registered> {
        let connections = match (target.user.as_str(), target.client.as_str(), target.session.as_str()) {
            ("", "", id) | ("", id, _) => Uuid::try_parse(id).map(|id| self.ids_of(id)).unwrap_or_default(),
            (user, ..) => self.users_of(user).lock().get(user).cloned().unwrap_or_default(),
        };
        let meant = |found: &Registered| {
            let id = found.identity.client.to_string();
            (target.user.is_empty() || *found.identity.user == *target.user)
                && (target.client.is_empty() || target.client == id)
                && (target.session.is_empty() || target.session == id)
        };
        connections.iter().filter_map(|connection| self.get(connection)).filter(meant).collect()
    }

    fn ids_of(&self, client: Uuid) -> Vec<Uuid> {
        let resumed = self.resumed.lock();
        resumed.get(&client).into_iter().flatten().copied().chain([client]).collect()
    }

    /// The connections of a client id that are older than that of `step`.
    pub(crate) fn older(&self, client: Uuid, step: u32) -> Vec<Registered> {
        let found = self.ids_of(client).into_iter().filter_map(|connection| self.get(&connection));
        found.filter(|found| found.identity.client == client && found.identity.step < step).collect()
    }

    /// Of the connection of a client id with this step.
    pub(crate) fn identity_of(&self, client: Uuid, step: u32) -> Option<Arc<Identity>> {
        let mut found = self.ids_of(client).into_iter().filter_map(|connection| self.get(&connection));
        found.find(|found| found.identity.client == client && found.identity.step == step).map(|it| it.identity)
    }

    /// Calls `see` with the outbox of every connection.
    pub(crate) fn for_each(&self, mut see: impl FnMut(&Arc<Outbox>)) {
        for connections in &self.connections {
            for connection in connections.lock().values() {
                see(&connection.outbox);
            }
        }
    }

    /// Calls `see` with every authenticated connection.
    pub(crate) fn for_each_known(&self, mut see: impl FnMut(&Arc<Identity>, &Arc<Outbox>)) {
        for connections in &self.connections {
            for connection in connections.lock().values() {
                if let Some(identity) = &connection.identity {
                    see(identity, &connection.outbox);
                }
            }
        }
    }
}

fn forget<K, Q>(index: &mut HashMap<K, Vec<Uuid>>, key: &Q, connection: Uuid)
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    let Some(connections) = index.get_mut(key) else { return };
    connections.retain(|held| *held != connection);
    if connections.is_empty() {
        index.remove(key);
    }
}
