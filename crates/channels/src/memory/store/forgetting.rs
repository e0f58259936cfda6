//! How a shard forgets: by time, by number, by bytes, and on request.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use super::super::expiry::Expiry;
use super::{Store, TAIL_BYTES};

impl Store {
    /// Frees what is due, at most `budget` channels; false when more may be due.
    pub fn sweep(&mut self, now_ms: u64, budget: usize) -> bool {
        self.known.forget_old(now_ms);
        for _ in 0..budget {
            let Some((tick, id)) = self.expiry.pop(now_ms) else { return true };
            if let Some(channel) = self.channels.get_mut(id)
                && channel.scheduled == tick
            {
                channel.scheduled = 0;
                self.settle(id, now_ms);
            }
        }
        false
    }

    /// When [`Store::sweep`] has something to do next.
    pub fn next_sweep_ms(&self) -> Option<u64> {
        match (self.expiry.next_ms(), self.known.next_ms()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Does what is due for a channel and brings lists and schedule up to date; `None` when its record is gone.
    pub(super) fn settle(&mut self, id: u32, now_ms: u64) -> Option<u32> {
        if !self.channels[id].entries.is_empty() && now_ms >= self.channels[id].expire_ms {
            self.hide(id);
        }
        let channel = &self.channels[id];
        let idle = channel.sinks.is_empty() && channel.entries.is_empty();
        if idle && (!channel.published || now_ms >= channel.forget_ms) {
            self.forget(id);
            return None;
        }
        if idle != channel.idle {
            self.set_idle(id, idle);
        }
        let channel = &mut self.channels[id];
        let due = match channel.entries.is_empty() {
            false => channel.expire_ms,
            true if idle => channel.forget_ms,
            true => return Some(id),
        };
        let tick = Expiry::tick(due, now_ms);
        if channel.scheduled == 0 || tick < channel.scheduled {
            channel.scheduled = tick;
            self.expiry.insert(tick, id);
        }
        Some(id)
    }

    pub(super) fn set_idle(&mut self, id: u32, idle: bool) {
        let channel = &mut self.channels[id];
        channel.idle = idle;
        let bytes = TAIL_BYTES + channel.name.len();
        if idle {
            self.bytes += bytes;
            self.idle.push_back(&mut self.channels, id);
        } else {
            self.bytes -= bytes;
            self.idle.unlink(&mut self.channels, id);
        }
    }

    /// Removes the record of a channel without subscribers and entries.
    fn forget(&mut self, id: u32) {
        if self.channels[id].idle {
            self.set_idle(id, false);
        }
        let Some(channel) = self.channels.remove(id) else { return };
        let hash = self.hasher.hash_one(&*channel.name);
        if let Ok(entry) = self.index.find_entry(hash, |&known| known == id) {
            entry.remove();
        }
        self.raise_front(hash, channel.last);
    }

    /// Makes everything that the channel holds unreadable.
    pub(super) fn hide(&mut self, id: u32) {
        while self.drop_oldest(id) {}
        let channel = &mut self.channels[id];
        channel.floor = channel.last;
        if channel.entries.capacity() > 0 {
            channel.entries = VecDeque::new();
        }
    }

    /// Drops the channel's oldest entry; false when there is none.
    pub(super) fn drop_oldest(&mut self, id: u32) -> bool {
        let Some(id_of_node) = self.channels[id].entries.pop_front() else { return false };
        self.oldest.unlink(&mut self.nodes, id_of_node);
        if let Some(node) = self.nodes.remove(id_of_node) {
            self.channels[id].floor = node.entry.offset;
            self.bytes -= node.cost as usize;
        }
        true
    }

    /// Keeps the bound: the oldest goes first, be it an entry or a remembered tail.
    pub(super) fn trim(&mut self, now_ms: u64) {
        while self.bytes > self.max_bytes {
            let entry = self.oldest.first().map(|node| (self.nodes[node].channel, self.nodes[node].entry.offset));
            let tail = self.idle.first().map(|id| (id, self.channels[id].last));
            match (entry, tail) {
                (Some((_, offset)), Some((id, last))) if last < offset => self.forget(id),
                (Some((id, _)), _) => {
                    self.drop_oldest(id);
                    if self.channels[id].entries.is_empty() {
                        self.settle(id, now_ms);
                    }
                }
                (None, Some((id, _))) => self.forget(id),
                (None, None) => return,
            }
        }
    }
}
