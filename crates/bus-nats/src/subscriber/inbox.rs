//! What waits for a worker, bounded in messages and bytes.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Received;

pub(super) struct Item {
    pub(super) message: Received,
    /// Where a durable message is acknowledged.
    pub(super) ack: Option<async_nats::Subject>,
    pub(super) arrived: Instant,
    pub(super) bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Messages,
    Bytes,
    Closed,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    bytes: usize,
    closed: bool,
}

pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    max_items: usize,
    max_bytes: usize,
    arrived: Notify,
    room: Notify,
}

impl Inbox {
    pub(super) fn new(max_items: usize, max_bytes: usize) -> Self {
        let waiting = Mutex::new(Waiting::default());
        Inbox { waiting, max_items: max_items.max(1), max_bytes, arrived: Notify::new(), room: Notify::new() }
    }

    /// What could not be taken comes back, with the reason.
    pub(super) fn put(&self, item: Item) -> Option<(Item, Full)> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Some((item, Full::Closed));
        }
        if waiting.items.len() >= self.max_items {
            return Some((item, Full::Messages));
        }
        // A message larger than the bound passes an empty inbox, else it never would.
        if waiting.bytes + item.bytes > self.max_bytes && !waiting.items.is_empty() {
            return Some((item, Full::Bytes));
        }
        waiting.bytes += item.bytes;
        waiting.items.push_back(item);
        drop(waiting);
        self.arrived.notify_one();
        None
    }

    /// Waits for room; false only when closed. For one putter.
    pub(super) async fn put_when_room(&self, mut item: Item) -> bool {
        loop {
            let room = self.room.notified();
            match self.put(item) {
                None => return true,
                Some((_, Full::Closed)) => return false,
                Some((back, _)) => item = back,
            }
            room.await;
        }
    }

    /// The next one; `None` when closed and empty.
    pub(super) async fn take(&self) -> Option<Item> {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            {
                let mut waiting = self.waiting.lock();
                if let Some(item) = waiting.items.pop_front() {
                    waiting.bytes -= item.bytes;
                    // One notification may stand for several arrivals.
                    if !waiting.items.is_empty() {
                        self.arrived.notify_one();
                    }
                    self.room.notify_one();
                    return Some(item);
                }
                if waiting.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Takes nothing more; returns what waited if `discard`.
    pub(super) fn close(&self, discard: bool) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        let discarded = if discard { waiting.items.len() } else { 0 };
        if discard {
            waiting.items.clear();
            waiting.bytes = 0;
        }
        drop(waiting);
        self.arrived.notify_waiters();
        self.room.notify_waiters();
        self.room.notify_one();
        discarded
    }

    /// Messages and bytes that wait.
    pub(super) fn size(&self) -> (usize, usize) {
        let waiting = self.waiting.lock();
        (waiting.items.len(), waiting.bytes)
    }

    /// Their bounds.
    pub(super) fn bounds(&self) -> (usize, usize) {
        (self.max_items, self.max_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(bytes: usize) -> Item {
        let message =
            Received { subject: "s".into(), payload: bytes::Bytes::new(), headers: None, reply: None, delivery: None };
        Item { message, ack: None, arrived: Instant::now(), bytes }
    }

    #[tokio::test]
    async fn both_bounds_hold() {
        let inbox = Inbox::new(2, 100);
        assert!(inbox.put(item(500)).is_none(), "a large one passes an empty inbox");
        assert_eq!(inbox.put(item(1)).map(|(_, full)| full), Some(Full::Bytes));
        assert_eq!(inbox.take().await.unwrap().bytes, 500);
        assert!(inbox.put(item(1)).is_none());
        assert!(inbox.put(item(1)).is_none());
        assert_eq!(inbox.put(item(1)).map(|(_, full)| full), Some(Full::Messages));
        assert_eq!(inbox.size(), (2, 2));
        assert_eq!(inbox.close(true), 2);
        assert!(inbox.take().await.is_none());
        assert_eq!(inbox.put(item(1)).map(|(_, full)| full), Some(Full::Closed));
    }
}
