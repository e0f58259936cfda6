//! What this replica has joined: the truth that Redis is brought into line with.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use plenum_channels::Incarnation;
use plenum_protocol::ClientInfo;
use tokio::time::Instant;

use super::entry::Stamp;

/// How long a channel that was left is verified along with the others: a failover may bring its entries back.
const REMEMBER_LEFT: Duration = Duration::from_secs(60);

/// Channels remembered after they were left.
const MAX_LEFT: usize = 100_000;

/// One member as it was joined.
pub(super) type Member = (Stamp, Arc<ClientInfo>);

/// What this replica has joined under its present incarnation.
pub(super) struct Roster {
    pub own: Incarnation,
    /// The incarnation changed, and [`Presence::renew`](plenum_channels::Presence::renew) has not said so yet.
    pub lapsed: bool,
    channels: HashMap<Arc<str>, Own>,
    entries: usize,
    /// Channels by the time of their last touch, oldest first; stale where the time is not the channel's.
    by_touch: VecDeque<(Instant, Arc<str>)>,
    left: VecDeque<(Instant, Arc<str>, u16)>,
    last_stamp: Stamp,
    hasher: DefaultHashBuilder,
}

struct Own {
    members: HashTable<Member>,
    slot: u16,
    touched: Instant,
}

impl Roster {
    pub fn new(own: Incarnation) -> Self {
        Self {
            own,
            lapsed: false,
            channels: HashMap::new(),
            entries: 0,
            by_touch: VecDeque::new(),
            left: VecDeque::new(),
            last_stamp: 0,
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Forgets everything; the channels that had entries of the incarnation before, and that incarnation.
    pub fn begin(&mut self, own: Incarnation) -> (Incarnation, Vec<Arc<str>>) {
        let before = std::mem::replace(&mut self.own, own);
        let left = self.left.drain(..).map(|(_, channel, _)| channel);
        let channels = std::mem::take(&mut self.channels).into_keys().chain(left).collect();
        (self.entries, self.lapsed) = (0, true);
        self.by_touch.clear();
        (before, channels)
    }

    /// Greater than every stamp before.
    pub fn stamp(&mut self) -> Stamp {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        self.last_stamp = now.max(self.last_stamp + 1);
        self.last_stamp
    }

    pub fn join(&mut self, channel: &str, slot: impl FnOnce() -> u16, info: Arc<ClientInfo>) -> Stamp {
        let stamp = self.stamp();
        let hash = self.hasher.hash_one(&info.client);
        let own = match self.channels.get_mut(channel) {
            Some(own) => own,
            None => {
                let (name, touched) = (Arc::<str>::from(channel), Instant::now());
                self.by_touch.push_back((touched, name.clone()));
                self.channels.entry(name).or_insert(Own { members: HashTable::new(), slot: slot(), touched })
            }
        };
        match own.members.find_mut(hash, |(_, known)| known.client == info.client) {
            Some(known) => *known = (stamp, info),
            None => {
                let hasher = &self.hasher;
                own.members.insert_unique(hash, (stamp, info), |(_, known)| hasher.hash_one(&known.client));
                self.entries += 1;
            }
        }
        stamp
    }

    /// The stamp of the leave; `None` when the client had not joined.
    pub fn leave(&mut self, channel: &str, client: &str) -> Option<Stamp> {
        let hash = self.hasher.hash_one(client);
        let own = self.channels.get_mut(channel)?;
        own.members.find_entry(hash, |(_, known)| known.client == client).ok()?.remove();
        self.entries -= 1;
        if own.members.is_empty() {
            self.vacate(channel);
        }
        Some(self.stamp())
    }

    fn vacate(&mut self, channel: &str) {
        let Some((name, own)) = self.channels.remove_entry(channel) else {
            return;
        };
        let now = Instant::now();
        let old = |(at, ..): &(Instant, Arc<str>, u16)| now.duration_since(*at) > REMEMBER_LEFT;
        while self.left.len() >= MAX_LEFT || self.left.front().is_some_and(old) {
            self.left.pop_front();
        }
        self.left.push_back((now, name, own.slot));
        // Channels that come and go leave stale places behind.
        if self.by_touch.len() > 2 * self.channels.len() + 1024 {
            let channels = &self.channels;
            self.by_touch.retain(|(at, name)| channels.get(name).is_some_and(|own| own.touched == *at));
        }
    }

    pub fn member(&self, channel: &str, client: &str) -> Option<&Member> {
        let own = self.channels.get(channel)?;
        own.members.find(self.hasher.hash_one(client), |(_, known)| known.client == client)
    }

    pub fn members(&self, channel: &str) -> impl Iterator<Item = &Member> {
        self.channels.get(channel).into_iter().flat_map(|own| own.members.iter())
    }

    /// Entries in one channel.
    pub fn count(&self, channel: &str) -> usize {
        self.channels.get(channel).map_or(0, |own| own.members.len())
    }

    /// Entries in all channels.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Channels with entries.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Channels with entries, or left lately, in slots that `wanted` accepts, with their slots.
    pub fn in_slots(&self, wanted: impl Fn(u16) -> bool) -> Vec<(Arc<str>, u16)> {
        let held = self.channels.iter().map(|(name, own)| (name, own.slot));
        let left = self.left.iter().map(|(_, name, slot)| (name, *slot));
        held.chain(left).filter(|(_, slot)| wanted(*slot)).map(|(name, slot)| (name.clone(), slot)).collect()
    }

    /// At most `limit` channels that were not touched since `before`, which count as touched now.
    pub fn due(&mut self, before: Instant, limit: usize) -> Vec<Arc<str>> {
        let (now, mut due) = (Instant::now(), Vec::new());
        while due.len() < limit && self.by_touch.front().is_some_and(|(at, _)| *at < before) {
            let Some((at, name)) = self.by_touch.pop_front() else {
                break;
            };
            let Some(own) = self.channels.get_mut(&name).filter(|own| own.touched == at) else {
                continue;
            };
            own.touched = now;
            self.by_touch.push_back((now, name.clone()));
            due.push(name);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(client: &str) -> Arc<ClientInfo> {
        Arc::new(ClientInfo { client: client.into(), ..ClientInfo::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn channels_are_touched_in_turn_and_forgotten_when_left() {
        let mut roster = Roster::new(Incarnation { replica: 1, generation: 1 });
        let mut stamps = vec![roster.join("a", || 1, info("1"))];
        tokio::time::advance(Duration::from_secs(1)).await;
        stamps.push(roster.join("b", || 2, info("1")));
        stamps.push(roster.join("b", || 2, info("1")));
        stamps.push(roster.leave("b", "1").unwrap_or_default());
        assert!(stamps.is_sorted_by(|a, b| a < b), "{stamps:?}");
        assert_eq!((roster.leave("b", "1"), roster.entries(), roster.channels()), (None, 1, 1));
        assert_eq!(roster.in_slots(|slot| slot == 2), [("b".into(), 2)], "a channel that was just left");
        roster.join("b", || 2, info("2"));
        tokio::time::advance(Duration::from_secs(1)).await;
        let now = Instant::now();
        assert_eq!(roster.due(now, 1), ["a".into()]);
        assert_eq!(roster.due(now, 9), ["b".into()], "once, though it joined twice");
        assert_eq!(roster.due(now, 9), []);
        let (before, channels) = roster.begin(Incarnation { replica: 1, generation: 2 });
        assert_eq!((before.generation, channels.len(), roster.entries(), roster.lapsed), (1, 3, 0, true));
    }
}
