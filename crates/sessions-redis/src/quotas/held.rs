//! What this replica counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use plenum_channels::{Incarnation, Quota};
use tokio::time::Instant;

/// One quota of one user or channel.
pub(super) type Place = (Quota, Arc<str>);

/// Members that left and of whom Redis has not heard; of more, the quota as a whole is written again.
const MAX_LEAVING: usize = 65_536;

/// The truth about this replica's members that Redis is brought into line with.
pub(super) struct Held {
    own: Incarnation,
    groups: HashMap<Place, Group>,
    members: usize,
    leaving: VecDeque<(Place, Box<str>)>,
    /// Enters whose answer was not taken in yet: Redis may know their members already.
    entering: HashMap<Place, usize>,
    doubtful: HashSet<Place>,
    /// The same, those that wait longest first.
    order: VecDeque<Place>,
    /// Groups by the time when Redis was last told all of them; stale where the time is not the group's.
    by_told: VecDeque<(Instant, Place)>,
    /// Of the last change.
    version: u64,
}

struct Group {
    members: HashSet<Box<str>>,
    version: u64,
    told: Instant,
    slot: u16,
}

impl Held {
    pub fn new(own: Incarnation) -> Self {
        Self {
            own,
            groups: HashMap::new(),
            members: 0,
            leaving: VecDeque::new(),
            entering: HashMap::new(),
            doubtful: HashSet::new(),
            order: VecDeque::new(),
            by_told: VecDeque::new(),
            version: 0,
        }
    }

    pub fn own(&self) -> Incarnation {
        self.own
    }

    pub fn begin(&mut self, own: Incarnation) {
        if self.own < own {
            self.own = own;
            self.doubt_slots(|_| true);
        }
    }

    pub fn enter(&mut self, place: &Place, member: &str, slot: u16) {
        self.version += 1;
        if !self.groups.contains_key(place) {
            let told = Instant::now();
            self.by_told.push_back((told, place.clone()));
            self.groups.insert(place.clone(), Group { members: HashSet::new(), version: 0, told, slot });
        }
        if let Some(group) = self.groups.get_mut(place) {
            group.version = self.version;
            self.members += usize::from(group.members.insert(member.into()));
        }
    }

    /// Whether Redis is to be told.
    pub fn exit(&mut self, place: Place, member: &str) -> bool {
        let Some(group) = self.groups.get_mut(&place) else {
            return false;
        };
        if !group.members.remove(member) {
            return false;
        }
        self.members -= 1;
        self.version += 1;
        group.version = self.version;
        if group.members.is_empty() {
            self.groups.remove(&place);
            if self.by_told.len() > 2 * self.groups.len() + 1024 {
                let groups = &self.groups;
                self.by_told.retain(|(at, place)| groups.get(place).is_some_and(|group| group.told == *at));
            }
        }
        if self.leaving.len() >= MAX_LEAVING {
            self.doubt(place);
            return false;
        }
        self.leaving.push_back((place, member.into()));
        true
    }

    /// Members that left and did not come again.
    pub fn leaving(&mut self, limit: usize) -> Vec<(Place, Box<str>)> {
        while let Some((place, member)) = self.leaving.front() {
            if !self.has(place, member) {
                break;
            }
            self.leaving.pop_front();
        }
        let count = self.leaving.len().min(limit);
        let leaving: Vec<_> = self.leaving.drain(..count).collect();
        leaving.into_iter().filter(|(place, member)| !self.has(place, member)).collect()
    }

    /// An enter is under way, until [`Held::entered`].
    pub fn will_enter(&mut self, place: &Place) {
        *self.entering.entry(place.clone()).or_default() += 1;
    }

    /// What became of an enter was taken in.
    pub fn entered(&mut self, place: &Place) {
        if let Some(count) = self.entering.get_mut(place) {
            *count -= 1;
            if *count == 0 {
                self.entering.remove(place);
            }
        }
    }

    /// Redis was told that a member left. Who came again meanwhile, or is about to, may have been taken back with that.
    pub fn told_exit(&mut self, place: Place, member: &str) {
        if self.has(&place, member) || self.entering.contains_key(&place) {
            self.doubt(place);
        }
    }

    /// Redis was told the members as they were at `version`. Who came or left meanwhile, or is about to, is not in that.
    pub fn told_members(&mut self, place: Place, version: u64) {
        if self.version(&place) != version || self.entering.contains_key(&place) {
            self.doubt(place);
        }
    }

    pub fn has(&self, place: &Place, member: &str) -> bool {
        self.groups.get(place).is_some_and(|group| group.members.contains(member))
    }

    pub fn doubt(&mut self, place: Place) {
        if self.doubtful.insert(place.clone()) {
            self.order.push_back(place);
        }
    }

    pub fn doubt_slots(&mut self, wanted: impl Fn(u16) -> bool) {
        let found: Vec<Place> =
            self.groups.iter().filter(|(_, group)| wanted(group.slot)).map(|(place, _)| place.clone()).collect();
        found.into_iter().for_each(|place| self.doubt(place));
    }

    /// At most `limit` groups of which Redis was not told for so long.
    pub fn doubt_old(&mut self, age: Duration, limit: usize) {
        let now = Instant::now();
        for _ in 0..limit {
            if self.by_told.front().is_none_or(|(at, _)| now.duration_since(*at) < age) {
                return;
            }
            let Some((at, place)) = self.by_told.pop_front() else {
                return;
            };
            let Some(group) = self.groups.get_mut(&place).filter(|group| group.told == at) else {
                continue;
            };
            group.told = now;
            self.by_told.push_back((now, place.clone()));
            self.doubt(place);
        }
    }

    pub fn take_doubts(&mut self, limit: usize) -> Vec<Place> {
        let taken: Vec<Place> = self.order.drain(..limit.min(self.order.len())).collect();
        for place in &taken {
            self.doubtful.remove(place);
        }
        taken
    }

    /// The members, and the version of their last change; 0 when there are none.
    pub fn members(&self, place: &Place) -> (u64, Vec<Box<str>>) {
        let group = self.groups.get(place);
        group.map_or((0, Vec::new()), |group| (group.version, group.members.iter().cloned().collect()))
    }

    pub fn version(&self, place: &Place) -> u64 {
        self.groups.get(place).map_or(0, |group| group.version)
    }

    /// Members, and groups in doubt.
    pub fn state(&self) -> (usize, usize) {
        (self.members, self.doubtful.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Redis has carried out an enter and then an exit, or a list, that went out behind it; the enter's answer is taken in last.
    #[test]
    fn what_was_told_beside_an_enter_is_in_doubt() {
        let place: Place = (Quota::UserConnections, "ann".into());
        let mut held = Held::new(Incarnation { replica: 1, generation: 1 });
        held.will_enter(&place);
        held.told_exit(place.clone(), "1");
        assert_eq!(held.state().1, 1);
        held.take_doubts(1);
        held.told_members(place.clone(), 0);
        assert_eq!(held.state().1, 1);
        held.take_doubts(1);
        held.enter(&place, "1", 0);
        held.entered(&place);
        held.told_exit(place.clone(), "another");
        held.told_members(place.clone(), held.version(&place));
        assert_eq!(held.state().1, 0);
        held.told_exit(place, "1");
        assert_eq!(held.state().1, 1);
    }
}
