//! Which server serves which slot.

use std::sync::Arc;

use super::Address;
use crate::keys::SLOTS;

const NOBODY: u16 = u16::MAX;

/// A primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id in the cluster: 40 hex digits; empty for a standalone server.
    pub id: String,
    /// Where it listens.
    pub address: Address,
    /// Epoch of its claim on its slots; grows with each failover.
    pub epoch: u64,
}

/// A cluster's layout, as its nodes told it.
#[derive(Clone, PartialEq, Eq)]
pub struct Slots {
    nodes: Vec<Arc<Node>>,
    owners: Box<[u16]>,
    /// All nodes, replicas too, with their ids: whom to ask next time.
    members: Vec<(String, Address)>,
    /// Ids of nodes that the cluster takes for dead, or that everybody who was asked suspects.
    failed: Vec<String>,
}

impl Slots {
    pub(super) fn unknown() -> Self {
        Slots {
            nodes: Vec::new(),
            owners: vec![NOBODY; usize::from(SLOTS)].into(),
            members: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub(super) fn standalone(address: Address) -> Self {
        let node = Arc::new(Node { id: String::new(), address, epoch: 0 });
        Slots { nodes: vec![node], owners: vec![0; usize::from(SLOTS)].into(), members: Vec::new(), failed: Vec::new() }
    }

    /// Who serves this slot; `None` while nobody is known to.
    pub fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(*self.owners.get(usize::from(slot))?))
    }

    /// All primaries with slots.
    pub fn primaries(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Number of slots that somebody serves.
    pub fn covered(&self) -> usize {
        self.owners.iter().filter(|owner| **owner != NOBODY).count()
    }

    /// The same without those whose primary is taken for dead; they wait for another one.
    pub fn served(&self) -> usize {
        let dead: Vec<bool> = self.nodes.iter().map(|node| self.failed.contains(&node.id)).collect();
        self.owners.iter().filter(|owner| dead.get(usize::from(**owner)) == Some(&false)).count()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Address> {
        self.members.iter().map(|(_, address)| address)
    }

    /// Whether every slot has the same owner.
    pub(super) fn served_like(&self, other: &Slots) -> bool {
        self.nodes == other.nodes && self.owners == other.owners
    }

    /// Goes back behind no newer claim of `known`: those who answered may all be behind. The claim of a node that none
    /// of them names any more ends; a cluster that was made anew begins with low epochs.
    pub(super) fn keep_newer(&mut self, known: &Slots) {
        for slot in 0..SLOTS {
            let (Some(old), new) = (known.owner(slot), self.owner(slot)) else { continue };
            let newer = new.is_none_or(|new| new.epoch < old.epoch);
            if newer && self.members.iter().any(|(id, _)| *id == old.id) {
                let old = old.clone();
                let place = self.place(old);
                self.owners[usize::from(slot)] = place;
            }
        }
        self.drop_slotless();
    }

    /// The node's place, with an entry for each node, address and epoch: an older answer's address is not to be used.
    fn place(&mut self, node: Arc<Node>) -> u16 {
        let place = self.nodes.iter().position(|known| *known == node).unwrap_or(self.nodes.len());
        if place == self.nodes.len() {
            self.nodes.push(node);
        }
        place as u16
    }

    /// From the answers of several nodes to `CLUSTER NODES`, each with the address that was asked. They may be of
    /// different age: each slot goes to the claim of the highest epoch, which is how the nodes themselves decide.
    pub(super) fn merged(answers: &[(Address, String)], named: bool) -> Self {
        let mut slots = Slots::unknown();
        let mut claims = vec![0u64; usize::from(SLOTS)];
        let mut suspected: Vec<String> = Vec::new();
        for (asked, text) in answers {
            for line in text.lines().filter_map(|line| Line::parse(line, asked, named)) {
                let member = (line.node.id.clone(), line.node.address.clone());
                if !slots.members.contains(&member) {
                    slots.members.push(member);
                }
                match line.health {
                    Health::Good => {}
                    Health::Suspected => suspected.push(line.node.id.clone()),
                    Health::Failed => suspected.extend(vec![line.node.id.clone(); answers.len()]),
                }
                if line.primary {
                    slots.claim(line, &mut claims);
                }
            }
        }
        slots.drop_slotless();
        let by_all = |id: &&String| suspected.iter().filter(|one| one == id).count() >= answers.len();
        slots.failed = suspected.iter().filter(by_all).cloned().collect();
        slots.failed.sort_unstable();
        slots.failed.dedup();
        slots
    }

    fn claim(&mut self, line: Line, claims: &mut [u64]) {
        let epoch = line.node.epoch;
        let place = self.place(Arc::new(line.node));
        for (first, last) in line.ranges {
            for slot in usize::from(first)..=usize::from(last).min(claims.len() - 1) {
                if self.owners[slot] == NOBODY || epoch > claims[slot] {
                    self.owners[slot] = place;
                    claims[slot] = epoch;
                }
            }
        }
    }

    fn drop_slotless(&mut self) {
        let mut places = vec![NOBODY; self.nodes.len()];
        let mut kept = Vec::new();
        for owner in self.owners.iter_mut().filter(|owner| **owner != NOBODY) {
            let place = &mut places[usize::from(*owner)];
            if *place == NOBODY {
                *place = kept.len() as u16;
                kept.push(self.nodes[usize::from(*owner)].clone());
            }
            *owner = *place;
        }
        self.nodes = kept;
        self.members.sort_unstable();
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("nodes", &self.nodes).field("covered", &self.covered()).finish_non_exhaustive()
    }
}

/// One line of `CLUSTER NODES`:
/// `<id> <ip:port@bus[,hostname]> <flags> <primary> <ping> <pong> <epoch> <link> <slot or range>...`
struct Line {
    node: Node,
    primary: bool,
    health: Health,
    ranges: Vec<(u16, u16)>,
}

/// What a node holds of another: one that is silent is suspected (`fail?`), and has failed once most primaries suspect it.
enum Health {
    Good,
    Suspected,
    Failed,
}

impl Line {
    /// `named`: the announced host name counts before the address, as certificates want it.
    fn parse(line: &str, asked: &Address, named: bool) -> Option<Line> {
        let mut words = line.split(' ');
        let (id, place, flags) = (words.next()?, words.next()?, words.next()?);
        let epoch = words.nth(3)?.parse().ok()?;
        let flags: Vec<&str> = flags.split(',').collect();
        if ["noaddr", "handshake"].iter().any(|flag| flags.contains(flag)) {
            return None;
        }
        let (place, host_name) = match place.split_once(',') {
            Some((place, rest)) => (place, rest.split(',').next().unwrap_or_default()),
            None => (place, ""),
        };
        let (host, port) = place.split_once('@').map_or(place, |(place, _)| place).rsplit_once(':')?;
        let host = match (named && !host_name.is_empty(), host.is_empty()) {
            (true, _) => host_name,
            (false, true) => &asked.host,
            (false, false) => host,
        };
        let ranges = words.skip(1).filter(|word| !word.starts_with('[')).filter_map(|word| {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        let node = Node { id: id.into(), address: Address::new(host, port.parse().ok()?), epoch };
        let health = match () {
            () if flags.contains(&"fail") => Health::Failed,
            () if flags.contains(&"fail?") => Health::Suspected,
            () => Health::Good,
        };
        Some(Line { node, primary: flags.contains(&"master"), health, ranges: ranges.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(answers: &[&str]) -> Slots {
        let answers: Vec<_> = answers.iter().map(|text| (Address::new("seed", 1), (*text).to_owned())).collect();
        Slots::merged(&answers, false)
    }

    fn owner(slots: &Slots, slot: u16) -> String {
        slots.owner(slot).map_or("nobody".into(), |node| node.address.to_string())
    }

    #[test]
    fn the_highest_epoch_has_the_slot() {
        let before = "aa 10.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-100 [7->-bb]\n\
                      bb 10.0.0.2:7000@17000,two.local slave aa 0 0 1 connected\n\
                      cc :7003@17003 master - 0 0 3 connected 101 200-16383\n\
                      dd 10.0.0.4:7000@17000 master,noaddr - 0 0 9 disconnected 0-16383\n\
                      ee 10.0.0.5:7000@17000 handshake - 0 0 0 connected";
        let slots = merged(&[before]);
        assert_eq!((owner(&slots, 0), owner(&slots, 100)), ("10.0.0.1:7000".into(), "10.0.0.1:7000".into()));
        assert_eq!((owner(&slots, 101), owner(&slots, 150)), ("seed:7003".into(), "nobody".into()));
        assert_eq!((slots.primaries().len(), slots.members().count(), slots.covered()), (2, 3, 102 + 16_184));
        let after = "aa 10.0.0.1:7000@17000 master,fail - 0 0 1 disconnected\n\
                     bb 10.0.0.2:7000@17000 myself,master - 0 0 4 connected 0-100";
        for answers in [[before, after], [after, before]] {
            let slots = merged(&answers);
            assert_eq!((owner(&slots, 50), owner(&slots, 300)), ("10.0.0.2:7000".into(), "seed:7003".into()));
            assert_eq!(slots.primaries().len(), 2, "who lost all slots is no primary");
        }
        let mut behind = merged(&[before]);
        behind.keep_newer(&merged(&[after]));
        assert_eq!(owner(&behind, 50), "10.0.0.2:7000", "an older answer alone does not take a slot back");
        let mut anew = merged(&["ff 10.0.0.9:7000@17000 master - 0 0 0 connected 0-16383"]);
        anew.keep_newer(&merged(&[after]));
        assert_eq!(
            (owner(&anew, 50), anew.primaries().len()),
            ("10.0.0.9:7000".into(), 1),
            "a cluster made anew counts"
        );
        assert_eq!(merged(&["rubbish\n\n- - -"]).covered(), 0);
        assert_eq!(merged(&["aa h:1@2 master - 0 0 1 connected 16000-60000"]).covered(), 384);
    }

    #[test]
    fn slots_of_a_dead_primary_are_not_served() {
        let view = |of_a: &str, of_b: &str| {
            format!("aa 10.0.0.1:1@2 {of_a} - 0 0 1 connected 0-99\nbb 10.0.0.2:1@2 {of_b} - 0 0 2 connected 100-16383")
        };
        let served = |answers: &[&str]| (merged(answers).covered(), merged(answers).served());
        let (good, failed) = (view("myself,master", "master"), view("master,fail", "myself,master"));
        let (suspects_a, suspects_b) = (view("master,fail?", "myself,master"), view("myself,master", "master,fail?"));
        assert_eq!(served(&[&good, &good]), (16_384, 16_384));
        assert_eq!(served(&[&good, &failed]), (16_384, 16_284), "most primaries say so");
        assert_eq!(served(&[&suspects_a]), (16_384, 16_284), "all who answer say so");
        assert_eq!(served(&[&suspects_a, &suspects_b]), (16_384, 16_384), "each is cut off from the other");
        let after = view("master,fail", "myself,master").replace(" 0-99", "").replace("100-", "0-");
        assert_eq!(served(&[&after]), (16_384, 16_384), "another one has the slots");
    }

    #[test]
    fn host_names_count_where_certificates_are_checked() {
        let line = "aa 10.0.0.1:7000@17000,one.local,shard-id=x master - 0 0 1 connected 0-16383".to_owned();
        let slots = Slots::merged(&[(Address::new("seed", 1), line)], true);
        assert_eq!(owner(&slots, 1), "one.local:7000");
    }
}
