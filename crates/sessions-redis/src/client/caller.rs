use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fred::types::Value;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::error::{Failure, Reply};
use super::link::{Link, Wire};
use super::redis::Shared;
use super::{Address, Call, CallError, Node, Purpose, Slots};

/// Redirections that one call follows before it waits.
const MAX_REDIRECTIONS: u32 = 5;
/// Wait before the first repetition of a call; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Calls of one pipeline that are repeated at the same time.
const REPEATED_AT_ONCE: usize = 64;

/// A primary as one client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// Where it listens.
    pub address: Address,
    /// Whether the client has a connection to it.
    pub connected: bool,
}

/// Calls for one purpose. Clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// Answers of one server to one write.
pub(crate) struct Together {
    /// The layout by which it was asked.
    pub slots: Arc<Slots>,
    pub node: Arc<Node>,
    /// One for each call.
    pub answers: Vec<Value>,
    /// To the command behind them.
    pub last: Value,
}

struct Inner {
    shared: Arc<Shared>,
    purpose: Purpose,
    deadline: Duration,
    links: ArcSwap<HashMap<Address, Arc<Link>>>,
    /// Held while `links` is changed.
    changing: Mutex<()>,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, purpose: Purpose) -> Self {
        let (deadline, links) = (shared.config.deadline, ArcSwap::default());
        Client { inner: Arc::new(Inner { shared, purpose, deadline, links, changing: Mutex::default() }) }
    }

    /// The same purpose with a deadline of its own, on connections of its own.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let (shared, purpose) = (self.inner.shared.clone(), self.inner.purpose);
        let (links, changing) = (ArcSwap::default(), Mutex::default());
        Client { inner: Arc::new(Inner { shared, purpose, deadline, links, changing }) }
    }

    /// Executes on the primary of the call's slot: at most once, unless the call says that it may be repeated.
    pub async fn call(&self, call: Call) -> Result<Value, CallError> {
        self.call_by(self.deadline(), call).await
    }

    /// When a call that begins now ends at the latest; for several calls that share one deadline.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.inner.deadline
    }

    pub(crate) async fn call_by(&self, deadline: Instant, call: Call) -> Result<Value, CallError> {
        let started = Instant::now();
        let result = self.until(&call, deadline, None).await;
        self.inner.shared.metrics.called(self.inner.purpose, result.as_ref().err(), started.elapsed());
        result
    }

    /// Executes many calls, those for the same server in one write; answers in the order of the calls. What was not
    /// executed (moved slots, a script to load, a server that was away) is repeated one by one until the deadline.
    pub async fn call_all(&self, calls: Vec<Call>) -> Vec<Result<Value, CallError>> {
        self.call_all_by(self.deadline(), calls).await
    }

    pub(crate) async fn call_all_by(&self, deadline: Instant, calls: Vec<Call>) -> Vec<Result<Value, CallError>> {
        let started = Instant::now();
        let slots = self.inner.shared.slots.borrow().clone();
        let mut groups: HashMap<Address, Vec<usize>> = HashMap::new();
        let mut later: Vec<(usize, Option<Failure>)> = Vec::new();
        for (place, call) in calls.iter().enumerate() {
            match slots.owner(call.slot) {
                Some(node) => groups.entry(node.address.clone()).or_default().push(place),
                None => later.push((place, None)),
            }
        }
        let (calls, limit) = (&calls, self.limit(deadline));
        let sent = groups.into_iter().map(|(address, places)| async move {
            let link = self.inner.link(&address);
            let Some(_room) = link.enter() else {
                let failure = || Err(Failure::Full(full(&address)));
                return places.into_iter().map(|place| (place, failure())).collect();
            };
            let wires = places.iter().map(|place| calls[*place].wire(false)).collect();
            places.into_iter().zip(link.send_all(wires, limit).await).collect::<Vec<_>>()
        });
        let mut answers: Vec<Option<Result<Value, CallError>>> = vec![None; calls.len()];
        for (place, answer) in join_all(sent).await.into_iter().flatten() {
            answers[place] = match answer {
                Ok(value) => Some(Ok(value)),
                Err(Failure::Reply(Reply::Final(reply))) => Some(Err(CallError::Refused { reply })),
                Err(Failure::Full(reason)) => Some(Err(CallError::Unavailable { reason })),
                Err(Failure::Unknown(reason)) if !calls[place].repeatable => {
                    Some(Err(CallError::Indeterminate { reason }))
                }
                Err(failure) => {
                    later.push((place, Some(failure)));
                    None
                }
            };
        }
        let again = later
            .into_iter()
            .map(|(place, before)| async move { (place, self.until(&calls[place], deadline, before).await) });
        let mut again = stream::iter(again).buffer_unordered(REPEATED_AT_ONCE);
        while let Some((place, answer)) = again.next().await {
            answers[place] = Some(answer);
        }
        let missing = || Err(CallError::Unavailable { reason: "no answer".into() });
        let answers: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_or_else(missing)).collect();
        for answer in &answers {
            self.inner.shared.metrics.called(self.inner.purpose, answer.as_ref().err(), started.elapsed());
        }
        answers
    }

    /// Sends a command without a key (`INFO`, `DBSIZE`) to one primary, once.
    pub async fn ask_server(
        &self,
        address: &Address,
        name: &'static str,
        arguments: Vec<Value>,
    ) -> Result<Value, CallError> {
        let started = Instant::now();
        let limit = self.inner.deadline.min(self.inner.shared.config.command_timeout);
        let answer = self.inner.link(address).send(Wire { name, arguments }, false, limit).await;
        let result = answer.map_err(|failure| match failure {
            Failure::NotSent(reason) | Failure::Full(reason) => CallError::Unavailable { reason },
            Failure::Unknown(reason) => CallError::Indeterminate { reason },
            Failure::Reply(reply) => CallError::Refused { reply: format!("{reply:?}") },
        });
        self.inner.shared.metrics.called(self.inner.purpose, result.as_ref().err(), started.elapsed());
        result
    }

    /// Sends reading calls and behind them a command without a key to the primary of a slot in one write, so that one run of
    /// one server answers all of it; repeated as a whole until the deadline. A refused command is answered by nothing. `None`
    /// where the slot is moving and the server points to the other one.
    pub(crate) async fn read_together(
        &self,
        deadline: Instant,
        slot: u16,
        calls: impl Fn(&Arc<Slots>, &Node) -> Vec<Call>,
        last: (&'static str, &[Value]),
    ) -> Result<Option<Together>, CallError> {
        let started = Instant::now();
        let (mut pause, mut whole) = (FIRST_PAUSE, false);
        let result = loop {
            let reason = match self.together(deadline, slot, &calls, last, whole).await {
                Ok(together) => break Ok(Some(together)),
                Err(Failure::Reply(Reply::Ask(_))) => break Ok(None),
                Err(Failure::Reply(Reply::NoScript)) if !whole => {
                    whole = true;
                    continue;
                }
                Err(Failure::Reply(Reply::Final(reply))) => break Err(CallError::Refused { reply }),
                Err(Failure::Full(reason)) => break Err(CallError::Unavailable { reason }),
                Err(Failure::Unknown(reason) | Failure::NotSent(reason)) => reason,
                Err(Failure::Reply(reply)) => format!("{reply:?}"),
            };
            self.inner.shared.wanted.notify_one();
            if Instant::now() + pause >= deadline {
                break Err(CallError::Unavailable { reason });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.inner.shared.metrics.called(self.inner.purpose, result.as_ref().err(), started.elapsed());
        result
    }

    async fn together(
        &self,
        deadline: Instant,
        slot: u16,
        calls: &impl Fn(&Arc<Slots>, &Node) -> Vec<Call>,
        last: (&'static str, &[Value]),
        whole: bool,
    ) -> Result<Together, Failure> {
        let slots = self.inner.shared.slots.borrow().clone();
        let Some(node) = slots.owner(slot).cloned() else {
            return Err(Failure::NotSent(format!("no server is known for slot {slot}")));
        };
        let link = self.inner.link(&node.address);
        let _room = link.enter().ok_or_else(|| Failure::Full(full(&node.address)))?;
        let mut wires: Vec<Wire> = calls(&slots, &node).iter().map(|call| call.wire(whole)).collect();
        let count = wires.len();
        wires.push(Wire { name: last.0, arguments: last.1.to_vec() });
        let mut answers = link.send_all(wires, self.limit(deadline)).await;
        let last = match answers.split_off(count.min(answers.len())).pop() {
            Some(Ok(answer)) => answer,
            Some(Err(Failure::Reply(Reply::Final(_)))) => Value::Null,
            Some(Err(failure)) => return Err(failure),
            None => return Err(Failure::Unknown("no answer".into())),
        };
        Ok(Together { slots, node, answers: answers.into_iter().collect::<Result<_, _>>()?, last })
    }

    /// Closes the connections to all others.
    pub(super) fn keep_only(&self, servers: &[Address]) {
        let _changing = self.inner.changing.lock();
        let mut links = (**self.inner.links.load()).clone();
        links.retain(|address, _| servers.contains(address));
        self.inner.links.store(Arc::new(links));
    }

    /// The primaries, and whether this client is connected to each.
    pub fn servers(&self) -> Vec<ServerState> {
        let slots = self.inner.shared.slots.borrow().clone();
        let links = self.inner.links.load();
        let state = |address: &Address| ServerState {
            connected: links.get(address).is_some_and(|link| link.is_connected()),
            address: address.clone(),
        };
        slots.primaries().iter().map(|node| state(&node.address)).collect()
    }

    /// Goes on from the failure of an attempt `before`.
    async fn until(&self, call: &Call, deadline: Instant, before: Option<Failure>) -> Result<Value, CallError> {
        let mut course = Course { whole: false, redirect: None, redirections: 0, sent: false };
        let (mut pause, mut room, mut before) = (FIRST_PAUSE, None, before);
        loop {
            let failure = match before.take() {
                Some(failure) => failure,
                None => match self.attempt(call, &mut course, deadline, &mut room).await {
                    Ok(value) => return Ok(value),
                    Err(failure) => failure,
                },
            };
            if !matches!(failure, Failure::Reply(Reply::NoScript | Reply::Ask(_) | Reply::Final(_))) {
                self.inner.shared.wanted.notify_one();
            }
            let reason = match course.after(call, failure) {
                Next::AtOnce => continue,
                Next::End(error) => return Err(error),
                Next::Later(reason) => reason,
            };
            if Instant::now() + pause >= deadline {
                return Err(match course.sent {
                    true => CallError::Indeterminate { reason },
                    false => CallError::Unavailable { reason },
                });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(
        &self,
        call: &Call,
        course: &mut Course,
        deadline: Instant,
        room: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Value, Failure> {
        let shared = &self.inner.shared;
        let owner = || shared.slots.borrow().owner(call.slot).map(|node| (node.address.clone(), false));
        let Some((address, asking)) = course.redirect.take().or_else(owner) else {
            return Err(Failure::NotSent(format!("no server is known for slot {}", call.slot)));
        };
        let link = self.inner.link(&address);
        if room.is_none() {
            *room = Some(link.enter().ok_or_else(|| Failure::Full(full(&address)))?);
        }
        link.send(call.wire(course.whole), asking, self.limit(deadline)).await
    }

    /// Longest wait for the answer to one attempt that begins now; nothing when the deadline is over.
    fn limit(&self, deadline: Instant) -> Duration {
        deadline.saturating_duration_since(Instant::now()).min(self.inner.shared.config.command_timeout)
    }
}

/// How a call with repetitions stands.
struct Course {
    /// Send the script's text.
    whole: bool,
    /// Where the last answer pointed, and whether it asks for `ASKING`.
    redirect: Option<(Address, bool)>,
    redirections: u32,
    /// It left once without an answer, and writes.
    sent: bool,
}

enum Next {
    AtOnce,
    Later(String),
    End(CallError),
}

impl Course {
    fn after(&mut self, call: &Call, failure: Failure) -> Next {
        let reason = match failure {
            Failure::Reply(Reply::Moved(to)) if self.redirections < MAX_REDIRECTIONS => {
                self.redirections += 1;
                self.redirect = Some((to, false));
                return Next::AtOnce;
            }
            Failure::Reply(Reply::Ask(to)) if self.redirections < MAX_REDIRECTIONS => {
                self.redirections += 1;
                self.redirect = Some((to, true));
                return Next::AtOnce;
            }
            Failure::Reply(Reply::NoScript) if !self.whole => {
                self.whole = true;
                return Next::AtOnce;
            }
            Failure::Reply(Reply::Final(reply)) => return Next::End(CallError::Refused { reply }),
            Failure::Full(reason) => return Next::End(CallError::Unavailable { reason }),
            Failure::Unknown(reason) if !call.repeatable => {
                return Next::End(CallError::Indeterminate { reason });
            }
            Failure::Unknown(reason) => {
                self.sent |= !call.reads;
                reason
            }
            Failure::Reply(reply) => format!("{reply:?}"),
            Failure::NotSent(reason) => reason,
        };
        self.redirections = 0;
        Next::Later(reason)
    }
}

fn full(address: &Address) -> String {
    format!("too many calls for {address} are under way")
}

impl Inner {
    fn link(&self, address: &Address) -> Arc<Link> {
        if let Some(link) = self.links.load().get(address) {
            return link.clone();
        }
        let _changing = self.changing.lock();
        let known = self.links.load();
        if let Some(link) = known.get(address) {
            return link.clone();
        }
        // A change of the layout is the moment to leave servers that are none of it.
        let slots = self.shared.slots.borrow().clone();
        let mut links = (**known).clone();
        if self.purpose != Purpose::Layout {
            links.retain(|address, _| slots.primaries().iter().any(|node| node.address == *address));
        }
        let link = Link::open(address.clone(), self.purpose, &self.shared.config, &self.shared.metrics);
        links.insert(address.clone(), link.clone());
        self.links.store(Arc::new(links));
        link
    }
}
