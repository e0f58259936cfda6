//! The connections that this replica holds, and whose they are.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{Outbox, Target};

/// Locks that connections are spread over.
const SHARDS: usize = 64;

/// Every connection from its handshake to its end.
pub(crate) struct Registry {
    clients: Vec<Mutex<HashMap<Uuid, Connection>>>,
    users: Vec<Mutex<HashMap<Arc<str>, Vec<Uuid>>>>,
    hasher: RandomState,
    count: AtomicUsize,
}

struct Connection {
    outbox: Arc<Outbox>,
    /// `None` before authentication and for anonymous users, whom no order can name.
    user: Option<Arc<str>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            clients: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            users: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
        }
    }

    fn clients_of(&self, client: &Uuid) -> &Mutex<HashMap<Uuid, Connection>> {
        &self.clients[client.as_bytes()[0] as usize % SHARDS]
    }

    fn users_of(&self, user: &str) -> &Mutex<HashMap<Arc<str>, Vec<Uuid>>> {
        &self.users[self.hasher.hash_one(user) as usize % SHARDS]
    }

    /// Takes a connection in unless `max` (0: no bound) are held.
    pub(crate) fn admit(&self, client: Uuid, outbox: Arc<Outbox>, max: usize) -> bool {
        let admitted = self
            .count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (max == 0 || count < max).then_some(count + 1));
        if admitted.is_ok() {
            self.clients_of(&client).lock().insert(client, Connection { outbox, user: None });
        }
        admitted.is_ok()
    }

    /// Says whose connection it is unless the user has `max` (0: no bound) already.
    pub(crate) fn identify(&self, client: Uuid, user: &Arc<str>, max: usize) -> bool {
        if user.is_empty() {
            return true;
        }
        {
            let mut users = self.users_of(user).lock();
            let connections = users.entry(user.clone()).or_default();
            if max > 0 && connections.len() >= max {
                return false;
            }
            connections.push(client);
        }
        if let Some(connection) = self.clients_of(&client).lock().get_mut(&client) {
            connection.user = Some(user.clone());
        }
        true
    }

    /// Forgets a connection.
    pub(crate) fn remove(&self, client: Uuid) {
        let Some(connection) = self.clients_of(&client).lock().remove(&client) else { return };
        self.count.fetch_sub(1, Ordering::Relaxed);
        let Some(user) = connection.user else { return };
        let mut users = self.users_of(&user).lock();
        if let Some(connections) = users.get_mut(&user) {
            connections.retain(|held| *held != client);
            if connections.is_empty() {
                users.remove(&user);
            }
        }
    }

    /// Connections held, those not yet authenticated included.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Distinct authenticated users.
    pub(crate) fn num_users(&self) -> usize {
        self.users.iter().map(|users| users.lock().len()).sum()
    }

    /// The connections that an order is meant for, with their client ids.
    pub(crate) fn find(&self, target: &Target) -> Vec<(Uuid, Arc<Outbox>)> {
        let clients = self.users_of(&target.user).lock().get(target.user.as_str()).cloned().unwrap_or_default();
        clients
            .into_iter()
            .filter(|client| {
                let id = client.to_string();
                (target.client.is_empty() || target.client == id) && (target.session.is_empty() || target.session == id)
            })
            .filter_map(|client| {
                self.clients_of(&client).lock().get(&client).map(|connection| (client, connection.outbox.clone()))
            })
            .collect()
    }

    /// Calls `see` with the outbox of every connection.
    pub(crate) fn for_each(&self, mut see: impl FnMut(&Arc<Outbox>)) {
        for clients in &self.clients {
            for connection in clients.lock().values() {
                see(&connection.outbox);
            }
        }
    }
}
