//! What runs beside the calls: bringing Redis into line with the roster, touching keys, sweeping.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use hashbrown::{HashMap, HashSet};
use plenum_channels::Incarnation;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::entry::{self, Stamp};
use super::{Canaries, Inner, calls, canary, incarnation, pairs};
use crate::client::{Call, Value};

/// How often the servers are looked at, and what is in doubt is brought into line.
const ROUND: Duration = Duration::from_secs(1);

/// Rest before a look for which there is a reason earlier than that.
const REST: Duration = Duration::from_millis(50);

/// Longest share of a round for sweeping.
const SHARE: Duration = Duration::from_millis(1500);

/// Calls in one write.
const AT_ONCE: usize = 256;

/// Batches of calls under way while what is in doubt is brought into line.
const SIDE_BY_SIDE: usize = 4;

/// Longest share of a round for that.
const MENDING: Duration = Duration::from_secs(4);

/// Channels touched in one round.
const TOUCHED_AT_ONCE: usize = 4096;

/// Doubtful clients of one channel; with more, the channel is compared as a whole.
const MAX_CLIENTS: usize = 64;

/// Channels in doubt; with more, everything is compared.
const MAX_CHANNELS: usize = 200_000;

/// Where Redis and the roster may differ.
#[derive(Default)]
pub(super) struct Doubts {
    channels: HashMap<Arc<str>, Doubt>,
    /// The same channels, those that wait longest first: what fails now must not hold up the others.
    order: VecDeque<Arc<str>>,
    everything: bool,
    /// Channels, with their slots, that were not compared since Redis may have lost them.
    unproven: HashMap<Arc<str>, u16>,
}

/// A call without an answer may be executed late, so its client is looked at in two rounds.
enum Doubt {
    Clients(Vec<(Box<str>, u8)>),
    Whole,
}

impl Doubts {
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// A call about this client had no answer.
    pub fn client(&mut self, channel: &str, client: &str) {
        self.again(channel, client, 2);
    }

    fn again(&mut self, channel: &str, client: &str, rounds: u8) {
        if rounds == 0 || !self.has_room(channel) {
            return;
        }
        let doubt = self.entry(channel);
        let Doubt::Clients(clients) = doubt else { return };
        if let Some((_, known)) = clients.iter_mut().find(|(known, _)| **known == *client) {
            *known = rounds.max(*known);
        } else if clients.len() < MAX_CLIENTS {
            clients.push((client.into(), rounds));
        } else {
            *doubt = Doubt::Whole;
        }
    }

    /// Any of the channel's entries may differ.
    pub fn whole(&mut self, channel: &str) {
        if self.has_room(channel) {
            *self.entry(channel) = Doubt::Whole;
        }
    }

    fn entry(&mut self, channel: &str) -> &mut Doubt {
        if !self.channels.contains_key(channel) {
            self.order.push_back(channel.into());
        }
        self.channels.entry_ref(channel).or_insert_with(|| Doubt::Clients(Vec::new()))
    }

    fn has_room(&mut self, channel: &str) -> bool {
        let room = self.channels.len() < MAX_CHANNELS || self.channels.contains_key(channel);
        self.everything |= !room;
        room
    }

    fn take(&mut self, limit: usize) -> Vec<(Arc<str>, Doubt)> {
        let names: Vec<_> = self.order.drain(..limit.min(self.order.len())).collect();
        names.into_iter().filter_map(|name| self.channels.remove_entry(&name)).collect()
    }
}

/// One call that brings one entry into line.
struct Repair {
    channel: Arc<str>,
    client: Box<str>,
    /// The stamp with which it is joined; `None`: it leaves.
    joined: Option<Stamp>,
    /// Rounds that follow.
    rounds: u8,
    call: Call,
}

/// Goes on until presence is gone.
pub(super) async fn run(inner: Weak<Inner>) {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut canaries: Option<Canaries> = None;
    let mut inspect = Instant::now();
    let Some((look, mut layout)) = inner.upgrade().map(|inner| (inner.look.clone(), inner.redis.watch_slots())) else {
        return;
    };
    loop {
        tokio::select! {
            _ = rounds.tick() => {}
            () = look.notified() => sleep(REST).await,
            Ok(()) = layout.changed() => sleep(REST).await,
        }
        let Some(inner) = inner.upgrade() else { return };
        let own = inner.own();
        let canaries = canaries.get_or_insert_with(|| Canaries::late(format!("presence:{}", incarnation(own))));
        let changed = canaries.look(&inner.redis, &inner.background).await;
        inner.doubt_slots(changed);
        inner.mend(own, Instant::now() + MENDING).await;
        inner.tell(canaries, own).await;
        inner.learn(canaries).await;
        let census = inner.replicas.census();
        if inner.sweeps.lock().deaths(&census) {
            inspect = Instant::now();
        }
        inner.touch(own, inspect).await;
        inner.sweep(Instant::now() + SHARE).await;
    }
}

impl Inner {
    fn doubt_slots(&self, changed: Option<Vec<bool>>) {
        let everything = std::mem::take(&mut self.doubts.lock().everything);
        let wanted = |slot: u16| everything || changed.as_ref().is_some_and(|changed| changed[usize::from(slot)]);
        if !everything && changed.is_none() {
            return;
        }
        let channels = self.roster.lock().in_slots(wanted);
        if channels.is_empty() {
            return;
        }
        tracing::info!(channels = channels.len(), "Redis may have lost presence entries: they are compared");
        let mut doubts = self.doubts.lock();
        for (channel, slot) in channels {
            doubts.whole(&channel);
            doubts.unproven.insert(channel, slot);
        }
    }

    /// Says to those who read that each primary has everything of ours, where that was compared.
    async fn tell(&self, canaries: &Canaries, own: Incarnation) {
        let slots = self.redis.slots();
        let unproven: HashSet<String> = {
            let doubts = self.doubts.lock();
            let owners = doubts.unproven.values().filter_map(|slot| slots.owner(*slot));
            owners.map(|node| canary::name(node).to_owned()).collect()
        };
        let proven = canaries.seen().filter(|(node, _)| !unproven.contains(*node));
        let tells = proven.map(|(_, canary)| calls::tell(self.redis.keys(), canary, own)).collect();
        // Who was not told waits, and is told in the next round.
        let _ = self.background.call_all(tells).await;
    }

    /// Brings what is in doubt into line, each channel once, until time is up.
    async fn mend(&self, own: Incarnation, until: Instant) {
        // What comes into doubt from here on, again or anew, waits for the next round.
        let mut left = self.doubts.lock().len();
        while left > 0 && Instant::now() < until {
            let mut doubts = self.doubts.lock().take(left.min(AT_ONCE * SIDE_BY_SIDE));
            left = if doubts.is_empty() { 0 } else { left - doubts.len() };
            let mut batches = Vec::new();
            while !doubts.is_empty() {
                let rest = doubts.split_off(doubts.len().min(AT_ONCE));
                batches.push(self.mend_some(std::mem::replace(&mut doubts, rest), own));
            }
            join_all(batches).await;
        }
    }

    async fn mend_some(&self, doubts: Vec<(Arc<str>, Doubt)>, own: Incarnation) {
        let (mut whole, mut repairs) = (Vec::new(), Vec::new());
        for (channel, doubt) in doubts {
            match doubt {
                Doubt::Whole => whole.push(channel),
                Doubt::Clients(clients) => repairs
                    .extend(clients.into_iter().map(|(client, rounds)| self.repair(&channel, client, own, rounds - 1))),
            }
        }
        let mut compared = self.compare(whole, own, &mut repairs).await;
        while !repairs.is_empty() {
            let rest = repairs.split_off(repairs.len().min(AT_ONCE));
            for failed in self.carry_out(std::mem::replace(&mut repairs, rest), own).await {
                if compared.remove(&failed) {
                    self.doubts.lock().whole(&failed);
                }
            }
        }
        let mut doubts = self.doubts.lock();
        for channel in &compared {
            doubts.unproven.remove(channel);
        }
    }

    /// Reads the own entries of channels, and adds what makes them those of the roster; which could be read.
    async fn compare(&self, channels: Vec<Arc<str>>, own: Incarnation, repairs: &mut Vec<Repair>) -> HashSet<Arc<str>> {
        let mut compared = HashSet::new();
        let reads = channels.iter().map(|channel| calls::entries(self.redis.keys(), channel, own)).collect();
        for (channel, answer) in channels.into_iter().zip(self.background.call_all(reads).await) {
            let Ok(answer) = answer else {
                self.doubts.lock().whole(&channel);
                continue;
            };
            let found: HashMap<String, Option<Stamp>> =
                pairs(answer).into_iter().map(|(client, entry)| (client, entry::stamp(&entry))).collect();
            let wrong: Vec<Box<str>> = {
                let roster = self.roster.lock();
                let missing = roster.members(&channel).filter(|(stamp, info)| {
                    found.get(&info.client).is_none_or(|found| found.is_none_or(|found| found < *stamp))
                });
                let missing = missing.map(|(_, info)| info.client.as_str().into());
                let extra = found.keys().filter(|client| roster.member(&channel, client).is_none());
                missing.chain(extra.map(|client| client.as_str().into())).collect()
            };
            repairs.extend(wrong.into_iter().map(|client| self.repair(&channel, client, own, 0)));
            compared.insert(channel);
        }
        compared
    }

    fn repair(&self, channel: &Arc<str>, client: Box<str>, own: Incarnation, rounds: u8) -> Repair {
        let base = self.base(channel);
        let mut roster = self.roster.lock();
        let (joined, call) = match roster.member(channel, &client) {
            Some((stamp, info)) => (Some(*stamp), calls::join(&base, own, *stamp, info, self.config.life)),
            None => (None, calls::leave(&base, own, &client, roster.stamp())),
        };
        Repair { channel: channel.clone(), client, joined, rounds, call }
    }

    /// The channels of repairs that failed.
    async fn carry_out(&self, repairs: Vec<Repair>, own: Incarnation) -> Vec<Arc<str>> {
        let mut failed = Vec::new();
        let answers = self.background.call_all(repairs.iter().map(|repair| repair.call.clone()).collect()).await;
        let mut doubts = self.doubts.lock();
        let roster = self.roster.lock();
        if roster.own != own {
            return failed;
        }
        for (repair, answer) in repairs.into_iter().zip(answers) {
            let joined = roster.member(&repair.channel, &repair.client).map(|(stamp, _)| *stamp);
            let rounds = match answer {
                // It left, or joined again, while this was under way.
                Ok(_) if joined != repair.joined => 1,
                Ok(_) => repair.rounds,
                Err(_) => {
                    failed.push(repair.channel.clone());
                    repair.rounds + 1
                }
            };
            doubts.again(&repair.channel, &repair.client, rounds);
        }
        failed
    }

    /// Touches the channels that were not for a third of their keys' life, or not since `inspect`; finds leftovers there.
    async fn touch(&self, own: Incarnation, inspect: Instant) {
        let now = Instant::now();
        let before = now.checked_sub(self.config.life / 3).map_or(inspect, |old| old.max(inspect));
        let due = self.roster.lock().due(before, TOUCHED_AT_ONCE);
        for some in due.chunks(AT_ONCE) {
            let touches = some.iter().map(|channel| calls::touch(&self.base(channel), own, self.config.life));
            let answers = self.background.call_all(touches.collect()).await;
            let census = self.replicas.census();
            for (channel, answer) in some.iter().zip(answers) {
                let (entries, found) = match answer.map(Value::into_array).as_deref() {
                    Ok([entries, Value::Array(found)]) => (entries.as_i64(), found.clone()),
                    _ => (None, Vec::new()),
                };
                if entries != Some(self.roster.lock().count(channel) as i64) {
                    self.doubts.lock().whole(channel);
                }
                self.counting(channel, &census, &found);
            }
        }
    }
}
