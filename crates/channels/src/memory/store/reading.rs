//! What readers see of a shard, and what is proven to them.

use super::{Channel, Store, millis};
use crate::{Page, Position, Read, Retention, Since};

impl Store {
    pub fn read(&mut self, hash: u64, name: &str, read: &Read, now_ms: u64) -> Page {
        let Some(id) = self.find(hash, name, now_ms) else { return self.read_unknown(hash, read) };
        let channel = &self.channels[id];
        let window = visible(channel, &read.retention, now_ms);
        let hidden = channel.entries.len() - window;
        let offset_at = |index: usize| self.nodes[channel.entries[index]].entry.offset;
        let floor = match hidden {
            0 => channel.floor,
            _ if window == 0 => channel.last,
            _ => offset_at(hidden - 1),
        };
        let len = channel.entries.len();
        // Entries from..to are those in the direction read.
        let (from, to, complete) = match &read.since {
            Since::End => (hidden, len, true),
            Since::Position(since) if since.epoch != self.epoch => (hidden, hidden, false),
            Since::Position(Position { offset, .. }) if read.reverse => {
                let below =
                    channel.entries.partition_point(|&node| self.nodes[node].entry.offset < *offset).max(hidden);
                (hidden, below, *offset <= channel.last && (below > hidden || floor == 0))
            }
            Since::Position(Position { offset, .. }) => {
                let after = channel.entries.partition_point(|&node| self.nodes[node].entry.offset <= *offset);
                (after.max(hidden), len, *offset >= floor && *offset <= channel.last)
            }
        };
        let count = to - from;
        let mut entries = Vec::with_capacity(count.min(read.limit));
        let mut bytes = 0;
        for step in 0..count.min(read.limit) {
            let index = if read.reverse { to - 1 - step } else { from + step };
            let entry = &self.nodes[channel.entries[index]].entry;
            bytes += entry.bytes();
            entries.push(entry.clone());
            if bytes > read.max_bytes {
                break;
            }
        }
        let more = entries.len() < count;
        Page { entries, top: self.position(channel.last), complete, more }
    }

    fn read_unknown(&self, hash: u64, read: &Read) -> Page {
        let front = self.front(hash);
        let (top, complete) = match &read.since {
            Since::End => (front, true),
            Since::Position(since) if since.epoch != self.epoch || since.offset > self.sequence => (front, false),
            Since::Position(since) if read.reverse => (front.max(since.offset), front == 0),
            // Nothing was published on it after the front, so a later position of the shard is a true one too.
            Since::Position(since) => (front.max(since.offset), since.offset >= front),
        };
        Page { entries: Vec::new(), top: self.position(top), complete, more: false }
    }
}

/// How many of the channel's entries a reader with this retention sees, counted from the newest.
fn visible(channel: &Channel, retention: &Retention, now_ms: u64) -> usize {
    if !retention.keeps_history() || now_ms >= channel.newest_ms.saturating_add(millis(retention.ttl)) {
        return 0;
    }
    channel.entries.len().min(retention.size)
}
