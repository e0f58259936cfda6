//! What one shard of the in-process log holds.

mod forgetting;
mod reading;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use plenum_protocol::Publication;

use super::expiry::Expiry;
use super::slab::{Linked, Links, List, Slab};
use crate::idempotency::Idempotency;
use crate::{Append, AppendError, Appended, Entry, Epoch, Live, Position, Tail, Version};

/// Fronts per shard: forgetting a channel casts doubt on the channels of its front only.
const FRONTS: usize = 1024;

/// What an entry costs besides its payload, tags and information, counted against the bound.
const ENTRY_BYTES: usize = size_of::<Entry>() + size_of::<Node>() + 48;

/// What a remembered tail costs besides its name, counted against the bound.
const TAIL_BYTES: usize = size_of::<Channel>() + 24;

/// Milliseconds since the broker started, and the same moment as Unix time.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub ms: u64,
    pub unix_ms: u64,
}

/// An entry for the subscribers of the channel with this id.
pub(super) type ForLive = Option<(u32, Arc<Entry>)>;

/// One replica's subscription to a channel.
pub(super) struct Sink {
    pub replica: u32,
    /// Number of the first queued event that is meant for it.
    pub since: u64,
    pub live: Arc<dyn Live>,
}

pub(super) struct Channel {
    name: Box<str>,
    sinks: Vec<Sink>,
    /// Readable entries, oldest first.
    entries: VecDeque<u32>,
    version: Option<Box<Version>>,
    /// The last publication's offset; before the first one what the front says.
    last: u64,
    /// Publications up to here are not readable any more.
    floor: u64,
    newest_ms: u64,
    expire_ms: u64,
    forget_ms: u64,
    /// Tick of the valid entry in the schedule; 0 for none.
    scheduled: u32,
    links: Links,
    published: bool,
    /// In the list of remembered tails: nobody subscribed, nothing to read.
    idle: bool,
}

pub(super) struct Node {
    entry: Arc<Entry>,
    channel: u32,
    cost: u32,
    links: Links,
}

impl Linked for Channel {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Linked for Node {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Channels, entries and tails of one shard under one sequence.
///
/// A channel has a record while somebody is subscribed, something can be read, or its tail is remembered. Of all
/// other channels the store knows one thing, the **front** of their hash: the highest offset of any channel with that
/// hash that was forgotten. So a client at or after the front of a channel without a record has missed nothing.
pub(super) struct Store {
    epoch: Epoch,
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    channels: Slab<Channel>,
    nodes: Slab<Node>,
    /// All entries, oldest first.
    oldest: List,
    /// Remembered tails, first to become one first.
    idle: List,
    sequence: u64,
    fronts: Box<[u64]>,
    bytes: usize,
    max_bytes: usize,
    expiry: Expiry,
    known: Idempotency,
}

impl Store {
    pub fn new(epoch: Epoch, hasher: DefaultHashBuilder, max_bytes: usize, known: Idempotency) -> Self {
        Self {
            epoch,
            hasher,
            index: HashTable::new(),
            channels: Slab::new(),
            nodes: Slab::new(),
            oldest: List::EMPTY,
            idle: List::EMPTY,
            sequence: 0,
            fronts: vec![0; FRONTS].into(),
            bytes: 0,
            max_bytes,
            expiry: Expiry::default(),
            known,
        }
    }

    /// Appends and returns what subscribers get, with the channel's id, if there are any.
    pub fn append(&mut self, hash: u64, append: Append, now: Moment) -> Result<(Appended, ForLive), AppendError> {
        let key = append.idempotency.as_ref().map(|key| self.known.id(&append.channel, key));
        if let Some(offset) = key.and_then(|key| self.known.get(key, now.ms)) {
            return Ok((Appended { position: self.position(offset), duplicate: true }, None));
        }
        let found = self.find(hash, &append.channel, now.ms);
        let last = found.map_or(self.front(hash), |id| self.channels[id].last);
        if let Some(expected) = append.expected
            && expected != last
        {
            return Err(AppendError::Conflict { expected, last });
        }
        self.sequence += 1;
        let offset = self.sequence;
        if let Some(key) = key {
            self.known.insert(key, offset, now.ms);
        }
        let appended = Appended { position: self.position(offset), duplicate: false };
        let remembered = append.retention.keeps_history() || !append.retention.meta_ttl.is_zero();
        let id = match found {
            Some(id) => {
                // It goes to the end of the remembered tails.
                if self.channels[id].idle {
                    self.set_idle(id, false);
                }
                id
            }
            None if remembered => self.insert(hash, &append.channel),
            None => {
                self.raise_front(hash, offset);
                return Ok((appended, None));
            }
        };
        let live = self.extend(id, offset, append, now);
        self.settle(id, now.ms);
        self.trim(now.ms);
        Ok((appended, live.map(|entry| (id, entry))))
    }

    /// Puts the publication at the end of a channel that has a record.
    fn extend(&mut self, id: u32, offset: u64, append: Append, now: Moment) -> Option<Arc<Entry>> {
        let Append { mut publication, retention, version, .. } = append;
        let channel = &mut self.channels[id];
        let previous = if channel.published { channel.last } else { 0 };
        channel.last = offset;
        channel.published = true;
        channel.newest_ms = now.ms;
        channel.expire_ms = now.ms.saturating_add(millis(retention.ttl));
        channel.forget_ms = now.ms.saturating_add(millis(retention.meta_ttl));
        if let Some(version) = version {
            channel.version = Some(Box::new(version));
        }
        let keeps = retention.keeps_history();
        let entry = (keeps || !channel.sinks.is_empty()).then(|| {
            publication.offset = offset;
            Arc::new(Entry { offset, previous, publication, stored_at_ms: now.unix_ms })
        });
        let wanted = !channel.sinks.is_empty();
        match &entry {
            Some(entry) if keeps => {
                let cost = cost(&entry.publication) as u32;
                self.bytes += cost as usize;
                let node = self.nodes.insert(Node { entry: entry.clone(), channel: id, cost, links: Links::NONE });
                self.oldest.push_back(&mut self.nodes, node);
                self.channels[id].entries.push_back(node);
                while self.channels[id].entries.len() > retention.size {
                    self.drop_oldest(id);
                }
            }
            _ => self.hide(id),
        }
        entry.filter(|_| wanted)
    }

    pub fn tail(&mut self, hash: u64, name: &str, now_ms: u64) -> Tail {
        match self.find(hash, name, now_ms) {
            None => Tail { position: self.position(self.front(hash)), version: None },
            Some(id) => {
                let channel = &self.channels[id];
                Tail { position: self.position(channel.last), version: channel.version.as_deref().cloned() }
            }
        }
    }

    pub fn remove(&mut self, hash: u64, name: &str, now_ms: u64) -> Position {
        // The marker takes a place in the sequence, as in a stored log.
        self.sequence += 1;
        match self.find(hash, name, now_ms) {
            None => self.position(self.front(hash)),
            Some(id) => {
                self.hide(id);
                let last = self.channels[id].last;
                self.settle(id, now_ms);
                self.position(last)
            }
        }
    }

    /// Returns what the sink replaced too: dropping it is foreign code and does not belong under the lock.
    pub fn subscribe(&mut self, hash: u64, name: &str, sink: Sink, now_ms: u64) -> (Position, Option<Sink>) {
        let id = self.find(hash, name, now_ms).unwrap_or_else(|| self.insert(hash, name));
        let channel = &mut self.channels[id];
        let replaced = match channel.sinks.iter_mut().find(|known| known.replica == sink.replica) {
            Some(known) => Some(std::mem::replace(known, sink)),
            None => {
                channel.sinks.reserve_exact(1);
                channel.sinks.push(sink);
                None
            }
        };
        let last = channel.last;
        self.settle(id, now_ms);
        (self.position(last), replaced)
    }

    /// Returns the subscription that ended, to be dropped outside of the lock.
    pub fn unsubscribe(&mut self, hash: u64, name: &str, replica: u32, now_ms: u64) -> Option<Sink> {
        self.find(hash, name, now_ms).and_then(|id| self.unsubscribe_id(id, replica, now_ms))
    }

    /// Ends all subscriptions of a replica; costs as much as there are channels.
    pub fn unsubscribe_all(&mut self, replica: u32, now_ms: u64) -> Vec<Sink> {
        let ids: Vec<u32> = self.channels.ids().collect();
        ids.into_iter().filter_map(|id| self.unsubscribe_id(id, replica, now_ms)).collect()
    }

    fn unsubscribe_id(&mut self, id: u32, replica: u32, now_ms: u64) -> Option<Sink> {
        let sinks = &mut self.channels[id].sinks;
        let index = sinks.iter().position(|sink| sink.replica == replica)?;
        let sink = sinks.swap_remove(index);
        sinks.shrink_to_fit();
        self.settle(id, now_ms);
        Some(sink)
    }

    /// Id of the channel with this name, if somebody is subscribed to it.
    pub fn subscribed(&self, hash: u64, name: &str) -> Option<u32> {
        let id = self.index.find(hash, |&id| *self.channels[id].name == *name).copied()?;
        (!self.channels[id].sinks.is_empty()).then_some(id)
    }

    /// Subscriptions of the channel with this id; none when the id is not in use any more.
    pub fn sinks(&self, id: u32) -> &[Sink] {
        self.channels.get(id).map_or(&[], |channel| &channel.sinks)
    }

    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Channels with a record, entries, bytes counted against the bound.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.channels.len(), self.nodes.len(), self.bytes)
    }

    fn position(&self, offset: u64) -> Position {
        Position { offset, epoch: self.epoch.clone() }
    }

    /// The record of a channel, after everything that is due for it was done.
    fn find(&mut self, hash: u64, name: &str, now_ms: u64) -> Option<u32> {
        let id = *self.index.find(hash, |&id| *self.channels[id].name == *name)?;
        let channel = &self.channels[id];
        let due = if channel.entries.is_empty() { channel.forget_ms } else { channel.expire_ms };
        if now_ms >= due { self.settle(id, now_ms) } else { Some(id) }
    }

    fn insert(&mut self, hash: u64, name: &str) -> u32 {
        let front = self.front(hash);
        let id = self.channels.insert(Channel {
            name: name.into(),
            sinks: Vec::new(),
            entries: VecDeque::new(),
            version: None,
            last: front,
            floor: front,
            newest_ms: 0,
            expire_ms: 0,
            forget_ms: 0,
            scheduled: 0,
            links: Links::NONE,
            published: false,
            idle: false,
        });
        let Self { index, channels, hasher, .. } = self;
        index.insert_unique(hash, id, |&id| hasher.hash_one(&*channels[id].name));
        id
    }

    fn front(&self, hash: u64) -> u64 {
        self.fronts[front_index(hash)]
    }

    fn raise_front(&mut self, hash: u64, offset: u64) {
        let front = &mut self.fronts[front_index(hash)];
        *front = offset.max(*front);
    }
}

/// The shard takes bits 32 and up, the table the lowest and highest ones.
fn front_index(hash: u64) -> usize {
    (hash >> 44) as usize % FRONTS
}

/// Rounded up, so that a short time is not none.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Bytes of a publication, counted against the bounds.
pub(super) fn cost(publication: &Publication) -> usize {
    let tags: usize = publication.tags.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
    let info = publication
        .info
        .as_ref()
        .map_or(0, |info| info.user.len() + info.client.len() + info.conn_info.len() + info.chan_info.len());
    ENTRY_BYTES + publication.data.len() + tags + info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_with_one_subscription_costs_little() {
        // Record, subscription, name of 24 bytes, place in the index at its emptiest.
        let bytes = size_of::<Channel>() + size_of::<Sink>() + 24 + 2 * 5;
        assert!(bytes <= 250, "{bytes} bytes");
    }
}
