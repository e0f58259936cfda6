//! A live subscriber that remembers.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::PATIENCE;
use crate::{Announcement, Entry, Live, LiveEvent};

/// Remembers every live event that it gets.
#[derive(Default)]
pub struct Recorder {
    events: Mutex<Vec<LiveEvent>>,
    news: Notify,
}

impl Live for Recorder {
    fn deliver(&self, events: &[LiveEvent]) {
        assert!(!events.is_empty(), "an empty batch was delivered");
        self.events.lock().extend_from_slice(events);
        self.news.notify_one();
    }
}

impl Recorder {
    /// One that has seen nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Publications so far. Fails when something was lost: a suite breaks nothing.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let entry = |event: &LiveEvent| match event {
            LiveEvent::Publication(entry) => Some(entry.clone()),
            LiveEvent::Announcement(_) => None,
            LiveEvent::Lost { position } => panic!("events were lost up to {position:?}"),
        };
        self.events.lock().iter().filter_map(entry).collect()
    }

    /// Offsets of the publications so far.
    pub fn offsets(&self) -> Vec<u64> {
        self.entries().iter().map(|entry| entry.offset).collect()
    }

    /// Announcements so far.
    pub fn announcements(&self) -> Vec<Arc<Announcement>> {
        let announcement = |event: &LiveEvent| match event {
            LiveEvent::Announcement(announcement) => Some(announcement.clone()),
            _ => None,
        };
        self.events.lock().iter().filter_map(announcement).collect()
    }

    /// Waits until `ready` says so; fails with what was seen when that takes too long.
    pub async fn until(&self, what: &str, ready: impl Fn(&Self) -> bool) {
        let wait = async {
            while !ready(self) {
                self.news.notified().await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("waited in vain for {what}; seen: {:?}", self.events.lock());
        }
    }

    /// Waits for the publication with this offset.
    pub async fn until_offset(&self, offset: u64) {
        self.until(&format!("offset {offset}"), |seen| seen.offsets().contains(&offset)).await;
    }
}
