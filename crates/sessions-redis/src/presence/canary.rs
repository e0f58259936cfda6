//! Finds out which primaries may have lost data: those with another node id or another history than before, and those on
//! which a key that this replica had written is gone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hashbrown::HashMap;

use crate::client::{Call, Client, Node, Redis, Slots, Value};
use crate::keys::{Key, Keys, SLOTS, Tag};

/// The life of a canary, given anew with each look at it.
pub(super) const LIFE: Duration = Duration::from_secs(3600);

/// What is known of the servers' data, slot by slot.
pub(crate) struct Canaries {
    /// Part of the keys' names: each replica and purpose has its own.
    name: String,
    /// By node id, or address where there is none.
    canaries: HashMap<String, Canary>,
    /// What stood for the slot's data when it was last seen; 0: never seen.
    marks: Vec<u64>,
    /// Whether a slot that was never seen before counts as changed.
    first_too: bool,
}

/// A primary as it was at the last look.
#[derive(Clone)]
pub(super) struct Canary {
    pub tag: Tag,
    pub key: Key,
    pub value: u64,
    /// [`history`] of its data.
    pub data: Arc<str>,
}

impl Canaries {
    pub fn new(name: String) -> Self {
        Self { name, canaries: HashMap::new(), marks: vec![0; usize::from(SLOTS)], first_too: false }
    }

    /// The same for those who had to do with the data before they looked: what is seen first counts as changed.
    pub fn late(name: String) -> Self {
        Self { first_too: true, ..Self::new(name) }
    }

    /// The canary of each primary that answered the last look.
    pub(super) fn seen(&self) -> impl Iterator<Item = (&str, &Canary)> {
        self.canaries.iter().map(|(node, canary)| (node.as_str(), canary))
    }

    /// Looks at every primary that answers; for each slot whether its data may be another than at the last look.
    pub async fn look(&mut self, redis: &Redis, client: &Client) -> Option<Vec<bool>> {
        let slots = redis.slots();
        let looks = slots.primaries().iter().map(|node| {
            let canary = self.canary(redis, &slots, node);
            async move { Some((node, look_at(client, node, canary?).await?)) }
        });
        let seen: Vec<_> = join_all(looks.collect::<Vec<_>>()).await.into_iter().flatten().collect();
        // Who did not answer keeps its canary.
        self.canaries = slots.primaries().iter().filter_map(|node| self.canaries.remove_entry(name(node))).collect();
        let mut marks = Vec::with_capacity(seen.len());
        for (node, (canary, mark)) in &seen {
            self.canaries.insert(name(node).to_owned(), canary.clone());
            marks.push((*node, *mark));
        }
        let mut changed = None;
        for slot in 0..SLOTS {
            let Some(owner) = slots.owner(slot) else { continue };
            let Some((_, mark)) = marks.iter().find(|(node, _)| std::ptr::eq(*node, owner)) else {
                continue;
            };
            let known = &mut self.marks[usize::from(slot)];
            if *known != *mark && (*known != 0 || self.first_too) {
                changed.get_or_insert_with(|| vec![false; usize::from(SLOTS)])[usize::from(slot)] = true;
            }
            *known = *mark;
        }
        changed
    }

    /// The canary of a node, as long as its place is the same; else a new one, which nobody has written.
    fn canary(&self, redis: &Redis, slots: &Slots, node: &Node) -> Option<Canary> {
        let tag = place(redis.keys(), slots, node)?;
        if let Some(canary) = self.canaries.get(name(node)).filter(|canary| canary.tag == tag) {
            return Some(canary.clone());
        }
        Some(Canary { key: redis.keys().part("canary", &tag, &self.name), tag, value: 0, data: "".into() })
    }
}

/// The tag of keys that watch a primary, the same for all who know the same layout.
pub(super) fn place(keys: &Keys, slots: &Slots, node: &Node) -> Option<Tag> {
    keys.tag_in(|slot| slots.owner(slot).is_some_and(|owner| name(owner) == name(node)))
}

/// The id of a node; its address where there is no cluster.
pub(super) fn name(node: &Node) -> &str {
    if node.id.is_empty() { &node.address.host } else { &node.id }
}

/// What Redis names the history of a primary's data, in an answer to `INFO replication`: another one after each start of the
/// server and each time that it was made a primary. Empty where it says none.
pub(super) fn history(info: &Value) -> Arc<str> {
    let info = info.as_str().unwrap_or_default();
    info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap_or_default().trim().into()
}

/// The canary as it is now, and what stands for the server's data; `None` when the server does not answer.
async fn look_at(client: &Client, node: &Node, mut canary: Canary) -> Option<(Canary, u64)> {
    let (px, life) = (Value::from("PX"), Value::Integer(LIFE.as_millis() as i64));
    let info = client.ask_server(&node.address, "INFO", vec![Value::from("replication")]).await.ok()?;
    canary.data = history(&info);
    let look = Call::command("GETEX", &canary.key, [px.clone(), life.clone()]).repeatable();
    let found = client.call(look).await.ok()?.as_str().and_then(|text| text.parse().ok());
    if canary.value == 0 || found != Some(canary.value) {
        canary.value = rand::random::<u64>() | 1;
        let write = Call::command("SET", &canary.key, [Value::from(canary.value.to_string()), px, life]).repeatable();
        client.call(write).await.ok()?;
    }
    let mut hasher = DefaultHasher::new();
    (name(node), &canary.data, canary.value).hash(&mut hasher);
    Some((canary, hasher.finish() | 1))
}
