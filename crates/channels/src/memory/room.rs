//! Who is present in one channel.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;
use plenum_protocol::ClientInfo;

/// One lease of one replica; a replica that lapsed gets another.
pub(super) type LeaseId = u32;

/// The members of a channel, with counts that are kept up to date.
///
/// One client counts once, also when two replicas have an entry for it; the newest entry is the one shown.
#[derive(Default)]
pub(super) struct Room {
    members: HashTable<Member>,
    /// Entries shown, by user.
    users: HashTable<(Arc<ClientInfo>, u32)>,
    /// Entries, shown or not, by lease.
    leases: Vec<(LeaseId, u32)>,
}

type Owned = (LeaseId, Arc<ClientInfo>);

struct Member {
    shown: Owned,
    /// Entries of other leases for the same client, oldest first; hardly ever any.
    behind: Vec<Owned>,
}

impl Room {
    pub fn join(&mut self, hasher: &RandomState, lease: LeaseId, info: Arc<ClientInfo>) {
        self.leave(hasher, lease, &info.client);
        self.count_lease(lease);
        self.count_user(hasher, &info);
        let hash = hasher.hash_one(&info.client);
        match self.members.find_mut(hash, |member| member.shown.1.client == info.client) {
            None => {
                let member = Member { shown: (lease, info), behind: Vec::new() };
                self.members.insert_unique(hash, member, |member| hasher.hash_one(&member.shown.1.client));
            }
            Some(member) => {
                let before = std::mem::replace(&mut member.shown, (lease, info));
                let user = before.1.clone();
                member.behind.push(before);
                self.uncount_user(hasher, &user);
            }
        }
    }

    pub fn leave(&mut self, hasher: &RandomState, lease: LeaseId, client: &str) {
        let hash = hasher.hash_one(client);
        let Ok(mut found) = self.members.find_entry(hash, |member| member.shown.1.client == client) else { return };
        let member = found.get_mut();
        if member.shown.0 != lease {
            let before = member.behind.len();
            member.behind.retain(|(owner, _)| *owner != lease);
            if member.behind.len() < before {
                self.uncount_lease(lease);
            }
            return;
        }
        let gone = member.shown.1.clone();
        match member.behind.pop() {
            Some(next) => {
                member.shown = next.clone();
                self.count_user(hasher, &next.1);
            }
            None => drop(found.remove()),
        }
        self.uncount_lease(lease);
        self.uncount_user(hasher, &gone);
    }

    /// Removes the entries of leases that are over; costs nothing when there are none.
    pub fn sweep(&mut self, hasher: &RandomState, alive: impl Fn(LeaseId) -> bool) {
        while let Some(&(lease, _)) = self.leases.iter().find(|(lease, _)| !alive(*lease)) {
            let owned = |member: &&Member| member.shown.0 == lease || member.behind.iter().any(|it| it.0 == lease);
            let clients: Vec<_> = self.members.iter().filter(owned).map(|member| member.shown.1.clone()).collect();
            for info in clients {
                self.leave(hasher, lease, &info.client);
            }
            // Whatever was counted wrongly must not keep this loop going.
            self.leases.retain(|(counted, _)| *counted != lease);
        }
    }

    pub fn members(&self) -> Vec<Arc<ClientInfo>> {
        self.members.iter().map(|member| member.shown.1.clone()).collect()
    }

    pub fn clients(&self) -> u32 {
        self.members.len() as u32
    }

    pub fn users(&self) -> u32 {
        self.users.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn count_lease(&mut self, lease: LeaseId) {
        match self.leases.iter_mut().find(|(counted, _)| *counted == lease) {
            Some((_, count)) => *count += 1,
            None => self.leases.push((lease, 1)),
        }
    }

    fn uncount_lease(&mut self, lease: LeaseId) {
        self.leases.retain_mut(|(counted, count)| {
            *count -= u32::from(*counted == lease);
            *count > 0
        });
    }

    fn count_user(&mut self, hasher: &RandomState, info: &Arc<ClientInfo>) {
        let hash = hasher.hash_one(&info.user);
        match self.users.find_mut(hash, |(counted, _)| counted.user == info.user) {
            Some((_, count)) => *count += 1,
            None => {
                self.users.insert_unique(hash, (info.clone(), 1), |(counted, _)| hasher.hash_one(&counted.user));
            }
        }
    }

    fn uncount_user(&mut self, hasher: &RandomState, info: &ClientInfo) {
        let hash = hasher.hash_one(&info.user);
        if let Ok(mut found) = self.users.find_entry(hash, |(counted, _)| counted.user == info.user) {
            found.get_mut().1 -= 1;
            if found.get().1 == 0 {
                found.remove();
            }
        }
    }
}
