//! Leaves that are held back for those who may come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::session::Identity;

/// Leaves that are held back, and who is seated, so that a connection that comes back is not missed.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    state: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    clients: HashMap<Uuid, HashMap<Arc<str>, Place>>,
    due: BTreeMap<(Instant, u64), (Uuid, Arc<str>)>,
    next: u64,
}

/// A client's place in a channel, as far as this replica answers for it.
#[derive(Debug, Default)]
struct Place {
    /// Seats of resumed connections.
    seats: u32,
    leave: Option<Leave>,
    /// An older connection ended while a newer one had its seat: others took the client for present all the time.
    known: bool,
}

/// A leave that is due.
#[derive(Debug)]
pub(crate) struct Leave {
    pub(crate) identity: Arc<Identity>,
    pub(crate) channel: Arc<str>,
    /// Of the subscriber in this channel.
    pub(crate) info: Bytes,
    /// There is a presence entry of this replica.
    pub(crate) presence: bool,
    /// Others were told of the join, so a leave is to be told.
    pub(crate) announced: bool,
    /// The connection was taken over: its leave is told by whoever has it now.
    pub(crate) silent: bool,
    /// The client was back elsewhere before it was due.
    outrun: bool,
    key: (Instant, u64),
}

/// Leaves held back at one time; beyond it nobody is waited for.
const MAX_HELD: usize = 1 << 18;

impl Grace {
    /// Holds a leave back; gives it back when it is not to be held: at the bound. `None` also when a newer connection of
    /// the client sits in the channel, which makes it void.
    pub(crate) fn hold(&self, leave: NewLeave, grace: Duration) -> Option<Leave> {
        let mut held = self.state.lock();
        let held = &mut *held;
        let client = leave.identity.client;
        let key = (Instant::now() + grace, held.next);
        let full = held.due.len() >= MAX_HELD;
        let leave = leave.until(key);
        if full && !held.clients.contains_key(&client) {
            return Some(leave);
        }
        let place = held.clients.entry(client).or_default().entry(leave.channel.clone()).or_default();
        if place.seats > 0 {
            place.known |= leave.announced;
            return None;
        }
        if full {
            return Some(leave);
        }
        let presence = leave.presence || place.leave.as_ref().is_some_and(|older| older.presence);
        let leave = Leave { presence, ..leave };
        held.next += 1;
        held.due.insert(key, (client, leave.channel.clone()));
        if let Some(older) = place.leave.replace(leave) {
            held.due.remove(&older.key);
        }
        None
    }

    /// Takes over, for a resumed connection here, a leave that another replica held back.
    pub(crate) fn inherit(&self, identity: &Arc<Identity>, channel: Arc<str>, info: Bytes, grace: Duration) {
        let leave =
            NewLeave { identity: identity.clone(), channel, info, presence: false, announced: true, silent: false };
        let _ = self.hold(leave, grace);
    }

    /// A resumed connection takes a seat. True when a leave was held back that would have been told.
    pub(crate) fn enter(&self, client: Uuid, channel: &Arc<str>) -> bool {
        let mut held = self.state.lock();
        let held = &mut *held;
        let place = held.clients.entry(client).or_default().entry(channel.clone()).or_default();
        place.seats += 1;
        let Some(leave) = place.leave.take() else { return false };
        held.due.remove(&leave.key);
        leave.announced
    }

    /// A seat that [`Grace::enter`] counted is given up. False while another one of the client is there.
    pub(crate) fn exit(&self, client: Uuid, channel: &Arc<str>) -> bool {
        let mut held = self.state.lock();
        let Some(places) = held.clients.get_mut(&client) else { return true };
        let Some(place) = places.get_mut(channel) else { return true };
        place.seats = place.seats.saturating_sub(1);
        let last = place.seats == 0;
        if last && place.leave.is_none() {
            places.remove(channel);
            if places.is_empty() {
                held.clients.remove(&client);
            }
        }
        last
    }

    /// Whether others had seen an older connection of the client in the channel when it ended.
    pub(crate) fn is_known(&self, client: Uuid, channel: &Arc<str>) -> bool {
        let held = self.state.lock();
        held.clients.get(&client).and_then(|places| places.get(channel)).is_some_and(|place| place.known)
    }

    /// Hands the client's places over: their leaves are not told here any more. Channel and information of each.
    pub(crate) fn release(&self, client: Uuid) -> Vec<(Arc<str>, Bytes)> {
        let mut held = self.state.lock();
        let Some(places) = held.clients.get_mut(&client) else { return Vec::new() };
        let mut released = Vec::new();
        for leave in places.values_mut().filter_map(|place| place.leave.as_mut()) {
            if std::mem::take(&mut leave.announced) {
                released.push((leave.channel.clone(), leave.info.clone()));
            }
        }
        released
    }

    /// The client is back on a connection of this step: a leave of an older one that is still here when it is due is told
    /// by nobody.
    pub(crate) fn outrun(&self, client: Uuid, step: u32) {
        let mut held = self.state.lock();
        let Some(places) = held.clients.get_mut(&client) else { return };
        for leave in places.values_mut().filter_map(|place| place.leave.as_mut()) {
            leave.outrun |= leave.identity.step < step;
        }
    }

    /// Leaves whose time has come.
    pub(crate) fn due(&self, now: Instant) -> Vec<Leave> {
        let mut held = self.state.lock();
        let held = &mut *held;
        let mut leaves = Vec::new();
        while let Some((&key, _)) = held.due.first_key_value()
            && key.0 <= now
        {
            let Some((client, channel)) = held.due.remove(&key) else { break };
            let Some(places) = held.clients.get_mut(&client) else { continue };
            if let Some(place) = places.get_mut(&channel) {
                leaves.extend(place.leave.take().map(|leave| Leave {
                    presence: leave.presence && place.seats == 0,
                    announced: leave.announced && !leave.silent && !leave.outrun,
                    ..leave
                }));
                if place.seats == 0 {
                    places.remove(&channel);
                }
            }
            if places.is_empty() {
                held.clients.remove(&client);
            }
        }
        leaves
    }

    /// Leaves held back.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().due.len()
    }
}

/// A leave that may be held back.
pub(crate) struct NewLeave {
    pub(crate) identity: Arc<Identity>,
    pub(crate) channel: Arc<str>,
    pub(crate) info: Bytes,
    pub(crate) presence: bool,
    pub(crate) announced: bool,
    pub(crate) silent: bool,
}

impl NewLeave {
    fn until(self, key: (Instant, u64)) -> Leave {
        let Self { identity, channel, info, presence, announced, silent } = self;
        Leave { identity, channel, info, presence, announced, silent, outrun: false, key }
    }
}
