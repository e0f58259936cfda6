//! Finds out which primaries may have lost data: those with another node id or run id than before, and those on which a
//! key that this replica had written is gone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use futures_util::future::join_all;
use hashbrown::HashMap;

use crate::client::{Call, Client, Node, Redis, Slots, Value};
use crate::keys::{Key, SLOTS};

/// The life of a canary, given anew with each look at it.
const LIFE: Duration = Duration::from_secs(3600);

/// What is known of the servers' data, slot by slot.
pub(crate) struct Canaries {
    /// Part of the keys' names: each replica and purpose has its own.
    name: String,
    /// By node id, or address where there is none.
    canaries: HashMap<String, Canary>,
    /// What stood for the slot's data when it was last seen; 0: never seen.
    marks: Vec<u64>,
}

#[derive(Clone)]
struct Canary {
    key: Key,
    value: u64,
}

impl Canaries {
    pub fn new(name: String) -> Self {
        Self { name, canaries: HashMap::new(), marks: vec![0; usize::from(SLOTS)] }
    }

    /// Looks at every primary that answers; for each slot whether its data may be another than at the last look.
    pub async fn look(&mut self, redis: &Redis, client: &Client) -> Option<Vec<bool>> {
        let slots = redis.slots();
        let looks = slots.primaries().iter().map(|node| {
            let canary = self.canary(redis, &slots, node);
            async move { Some((node, look_at(client, node, canary?).await?)) }
        });
        let seen: Vec<_> = join_all(looks.collect::<Vec<_>>()).await.into_iter().flatten().collect();
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
            if *known != 0 && *known != *mark {
                changed.get_or_insert_with(|| vec![false; usize::from(SLOTS)])[usize::from(slot)] = true;
            }
            *known = *mark;
        }
        changed
    }

    /// The canary of a node, as long as its slot is that node's; else a new one, which nobody has written.
    fn canary(&self, redis: &Redis, slots: &Slots, node: &Node) -> Option<Canary> {
        let served = |slot: u16| slots.owner(slot).is_some_and(|owner| **owner == *node);
        if let Some(canary) = self.canaries.get(name(node)).filter(|canary| served(canary.key.slot())) {
            return Some(canary.clone());
        }
        let tag = redis.keys().tag_in(served)?;
        Some(Canary { key: redis.keys().part("canary", &tag, &self.name), value: 0 })
    }
}

fn name(node: &Node) -> &str {
    if node.id.is_empty() { &node.address.host } else { &node.id }
}

/// The canary as it is now, and what stands for the server's data; `None` when the server does not answer.
async fn look_at(client: &Client, node: &Node, mut canary: Canary) -> Option<(Canary, u64)> {
    let (px, life) = (Value::from("PX"), Value::Integer(LIFE.as_millis() as i64));
    let info = client.ask_server(&node.address, "INFO", vec![Value::from("server")]).await.ok()?;
    let info = info.as_str()?.into_owned();
    let run = info.lines().find_map(|line| line.strip_prefix("run_id:"))?;
    let look = Call::command("GETEX", &canary.key, [px.clone(), life.clone()]).repeatable();
    let found = client.call(look).await.ok()?.as_str().and_then(|text| text.parse().ok());
    if canary.value == 0 || found != Some(canary.value) {
        canary.value = rand::random::<u64>() | 1;
        let write = Call::command("SET", &canary.key, [Value::from(canary.value.to_string()), px, life]).repeatable();
        client.call(write).await.ok()?;
    }
    let mut hasher = DefaultHasher::new();
    (name(node), run, canary.value).hash(&mut hasher);
    Some((canary, hasher.finish() | 1))
}
