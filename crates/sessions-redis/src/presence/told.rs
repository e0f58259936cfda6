//! Whether a primary holds everything that living replicas announced. One that took over without the last writes, or came
//! back empty, does not, and its answers would show people as gone.
//!
//! Each incarnation says on each primary which history of its data it has compared with its roster. A read is answered by
//! one write with what was said and with the history that the server is at; it counts when everybody has said that one.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use plenum_channels::{Census, Incarnation, PresenceError};
use tokio::time::{Instant, sleep};

use super::{Canaries, Inner, calls, canary, failed, unavailable};
use crate::client::{Call, Node, Slots, Value};
use crate::keys::{Keys, Tag};

/// How long somebody may take to announce all of its own again; from then on what is there counts.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two reads for an answer that counts.
const PAUSE: Duration = Duration::from_millis(50);

/// Primaries remembered; all are forgotten beyond it.
const MAX_NODES: usize = 1024;

/// Where it is said of each node.
type Places = HashMap<String, Option<Tag>>;

/// What this replica knows of the others' announcements.
#[derive(Default)]
pub(super) struct Told {
    /// Who said it before: nobody waits for one who never does, as versions without it.
    tellers: HashSet<Incarnation>,
    nodes: HashMap<String, Known>,
    places: Option<(Arc<Slots>, Places)>,
}

/// The last complete announcement on one primary.
#[derive(Default)]
struct Known {
    data: Arc<str>,
    place: Option<Tag>,
    /// Another history, and since when it is incomplete.
    doubted: Option<(Arc<str>, Instant)>,
}

impl Told {
    #[cfg(test)]
    pub(super) fn tellers(&self) -> usize {
        self.tellers.len()
    }

    /// Where it is said of a node.
    fn place(&mut self, keys: &Keys, slots: &Arc<Slots>, node: &Node) -> Option<Tag> {
        if self.places.as_ref().is_none_or(|(known, _)| !Arc::ptr_eq(known, slots)) {
            self.places = Some((slots.clone(), HashMap::new()));
        }
        let (_, places) = self.places.as_mut()?;
        let place = places.entry_ref(canary::name(node));
        place.or_insert_with(|| canary::place(keys, slots, node)).clone()
    }

    /// Whether a primary at the history `data` holds everything, by what was said at `place`.
    fn holds(
        &mut self,
        node: &str,
        place: Option<&Tag>,
        data: &Arc<str>,
        said: &[(Incarnation, Option<Arc<str>>)],
    ) -> bool {
        // Of another history, or nothing by one who had spoken before.
        let open = |(of, said): &(Incarnation, Option<Arc<str>>)| match said {
            Some(said) => said != data,
            None => self.tellers.contains(of),
        };
        let complete = !said.iter().any(open);
        self.tellers.retain(|one| said.iter().any(|(of, _)| of == one));
        self.tellers.extend(said.iter().filter(|(_, said)| said.as_ref() == Some(data)).map(|(of, _)| *of));
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(node) {
            self.nodes.clear();
        }
        let known = self.nodes.entry_ref(node).or_default();
        if complete {
            *known = Known { data: data.clone(), place: place.cloned(), doubted: None };
            return true;
        }
        // The place moved to another server or from there, and nothing else happened.
        if known.data == *data && known.place.as_ref() != place {
            return true;
        }
        match &known.doubted {
            Some((doubted, since)) if doubted == data => since.elapsed() >= PATIENCE,
            _ => {
                known.doubted = Some((data.clone(), Instant::now()));
                false
            }
        }
    }
}

impl Inner {
    /// Learns who says it, before a read depends on that.
    pub(super) async fn learn(&self, canaries: &Canaries) {
        let alive: Vec<_> = calls::alive(&self.replicas.census()).collect();
        if alive.iter().all(|one| self.told.lock().tellers.contains(one)) {
            return;
        }
        let said = canaries.seen().filter_map(|(_, canary)| calls::told(self.redis.keys(), &canary.tag, &alive));
        for said in self.background.call_all(said.collect()).await.into_iter().flatten() {
            let said = said.into_array().into_iter().map(|said| said.into_string().is_some());
            self.told
                .lock()
                .tellers
                .extend(alive.iter().copied().zip(said).filter(|(_, said)| *said).map(|(of, _)| of));
        }
    }

    /// Executes reading calls on a channel, on a primary that holds all that those announced who count.
    pub(super) async fn read(
        &self,
        deadline: Instant,
        slot: u16,
        census: &Census,
        calls: Vec<Call>,
    ) -> Result<Vec<Value>, PresenceError> {
        let (keys, alive) = (self.redis.keys(), calls::alive(census).collect::<Vec<_>>());
        let section = [Value::from_static_str("replication")];
        let all = |slots: &Arc<Slots>, node: &Node| {
            let place = self.told.lock().place(keys, slots, node);
            let said = place.and_then(|place| calls::told(keys, &place, &alive));
            calls.iter().cloned().chain(said).collect()
        };
        loop {
            let read = self.client.read_together(deadline, slot, all, ("INFO", &section)).await;
            let Some(mut read) = read.map_err(failed)? else {
                // While its slot moves, a channel is with one server or the other: what is lost then is not noticed here.
                return self
                    .client
                    .call_all_by(deadline, calls)
                    .await
                    .into_iter()
                    .map(|answer| answer.map_err(failed))
                    .collect();
            };
            let said = read.answers.split_off(calls.len()).pop().map(Value::into_array).unwrap_or_default();
            let said = said.into_iter().map(|said| said.into_string().map(Arc::from));
            let said: Vec<_> = alive.iter().copied().zip(said).collect();
            let data = canary::history(&read.last);
            // A server that says nothing of its history cannot be judged.
            let holds = data.is_empty() || {
                let mut told = self.told.lock();
                let place = told.place(keys, &read.slots, &read.node);
                told.holds(canary::name(&read.node), place.as_ref(), &data, &said)
            };
            if holds {
                return Ok(read.answers);
            }
            self.look.notify_one();
            if Instant::now() + PAUSE >= deadline {
                return Err(unavailable("Redis lost entries, which are announced again"));
            }
            sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Address, RedisConfig};

    fn said(words: &[Option<&str>]) -> Vec<(Incarnation, Option<Arc<str>>)> {
        let one =
            |(n, said): (usize, &Option<&str>)| (Incarnation { replica: n as u64, generation: 1 }, said.map(Arc::from));
        words.iter().enumerate().map(one).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_holds_everything_when_all_who_speak_said_so() {
        let keys = Keys::new(&RedisConfig::standalone(Address::new("h", 1)));
        let (place, other) = (keys.tag(&["a"]), keys.tag(&["b"]));
        let (first, second): (Arc<str>, Arc<str>) = ("1".into(), "2".into());
        let mut told = Told::default();
        let mut holds =
            |data: &Arc<str>, place: &Tag, words: &[Option<&str>]| told.holds("node", Some(place), data, &said(words));
        assert!(holds(&first, &place, &[None, None]), "nobody ever speaks");
        assert!(holds(&first, &place, &[Some("1"), None]));
        assert!(!holds(&first, &place, &[None, None]), "what was said is gone");
        assert!(holds(&first, &other, &[None, None]), "it is said elsewhere now");
        assert!(!holds(&second, &place, &[Some("1"), None]), "taken over with what was said of the one before");
        assert!(holds(&second, &place, &[Some("2"), None]));
        assert!(!holds(&first, &place, &[None, None]), "empty");
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!holds(&first, &place, &[None, None]));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(holds(&first, &place, &[None, None]), "not for ever");
        assert!(!holds(&second, &place, &[None, None]), "another history");
    }
}
