//! The port `Control` on core NATS: orders and questions to every replica, with answers.
//!
//! A replica knows the others by their signs of life, one a second and one at once for each newcomer. A broadcast waits
//! for the acknowledgement of each, and repeats itself once to those that stay silent; receivers carry an order out
//! once. Nothing is stored: a replica that is cut off is missed, and the caller is told so.

mod wire;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt;
use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_channels::{Answer, Control, ControlError, Order, Question, Replica};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout, timeout_at};

use self::wire::{Call, Reply, What, merge, split};
use crate::log::Links;

/// How long orders and questions wait for a replica.
const DEADLINE: Duration = Duration::from_secs(2);

/// When a call is sent again to those that did not answer.
const REPEAT: Duration = Duration::from_millis(700);

/// Signs of life, and how long a replica counts without one.
const BEAT: Duration = Duration::from_secs(1);
const GONE_AFTER: Duration = Duration::from_millis(3500);

/// How long a newcomer listens for those that are there.
const INTRODUCTION: Duration = Duration::from_millis(300);

/// Calls are remembered, with their answers, for as long as they may be repeated, so that they are carried out once; at
/// most so many of them.
const REMEMBERED: usize = 4096;
const REMEMBER: Duration = Duration::from_secs(5);

/// Orders and questions carried out at the same time; beyond it they are not taken, and their sender is told by silence.
const MAX_RUNNING: usize = 1024;

/// One replica's side of the control bus. Its tasks end when it is dropped.
pub struct NatsControl {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

struct Inner {
    links: Arc<dyn Links>,
    prefix: String,
    /// Random number of this run.
    own: u64,
    replica: OnceLock<Arc<dyn Replica>>,
    members: Mutex<HashMap<u64, Instant>>,
    seen: Mutex<Seen>,
    running: tokio::sync::Semaphore,
}

/// The messages that answer a call.
type Answers = Vec<Vec<u8>>;

/// Calls that were taken: under way (`None`) or answered.
#[derive(Default)]
struct Seen {
    answers: HashMap<(u64, u64), Option<Answers>>,
    order: VecDeque<((u64, u64), Instant)>,
}

impl Seen {
    /// Remembers a new call; otherwise what is known of it.
    fn enter(&mut self, call: (u64, u64)) -> Option<Option<Answers>> {
        if let Some(known) = self.answers.get(&call) {
            return Some(known.clone());
        }
        let old = |(_, at): &(_, Instant)| at.elapsed() > REMEMBER;
        while self.order.len() >= REMEMBERED || self.order.front().is_some_and(old) {
            let Some((oldest, _)) = self.order.pop_front() else { break };
            self.answers.remove(&oldest);
        }
        self.order.push_back((call, Instant::now()));
        self.answers.insert(call, None);
        None
    }

    /// The call was not taken: it is new again.
    fn forget(&mut self, call: (u64, u64)) {
        self.answers.remove(&call);
        self.order.retain(|(known, _)| *known != call);
    }
}

impl NatsControl {
    /// Joins the bus under `prefix`. Must be called within a tokio runtime. Fails when NATS cannot be reached.
    pub async fn start(links: Arc<dyn Links>, prefix: &str) -> Result<Arc<Self>, ControlError> {
        let client = links.subscribing(0);
        let inner = Arc::new(Inner {
            links,
            prefix: prefix.into(),
            own: rand::random(),
            replica: OnceLock::new(),
            members: Mutex::default(),
            seen: Mutex::default(),
            running: tokio::sync::Semaphore::new(MAX_RUNNING),
        });
        let calls = subscribe(&client, inner.calls()).await?;
        let signs = subscribe(&client, inner.signs()).await?;
        within(client.flush()).await?;
        let tasks = vec![
            tokio::spawn(inner.clone().serve(client.clone(), calls)),
            tokio::spawn(inner.clone().follow(client.clone(), signs)),
            tokio::spawn(inner.clone().beat(client)),
        ];
        // Each of the others answers once it knows of this one.
        sleep(INTRODUCTION).await;
        Ok(Arc::new(Self { inner, tasks }))
    }

    /// Replicas that showed a sign of life within 3.5 s, this one among them.
    pub fn members(&self) -> usize {
        self.inner.present().len()
    }
}

impl Drop for NatsControl {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn unavailable(reason: impl Into<String>) -> ControlError {
    ControlError::Unavailable { reason: reason.into() }
}

async fn within<T, E: std::fmt::Display>(step: impl Future<Output = Result<T, E>>) -> Result<T, ControlError> {
    match timeout(DEADLINE, step).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(unavailable(error.to_string())),
        Err(_) => Err(unavailable("NATS takes nothing")),
    }
}

async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, ControlError> {
    within(client.subscribe(subject)).await
}

impl Inner {
    fn calls(&self) -> String {
        format!("{}.control.call", self.prefix)
    }

    fn signs(&self) -> String {
        format!("{}.control.here", self.prefix)
    }

    fn present(&self) -> Vec<u64> {
        let mut members = self.members.lock();
        members.retain(|_, seen| seen.elapsed() < GONE_AFTER);
        members.insert(self.own, Instant::now());
        members.keys().copied().collect()
    }

    async fn show_life(&self, client: &Client) {
        let sign = self.own.to_le_bytes().to_vec();
        let _ = timeout(DEADLINE, client.publish(self.signs(), sign.into())).await;
    }

    async fn beat(self: Arc<Self>, client: Client) {
        let mut beat = interval(BEAT);
        loop {
            beat.tick().await;
            self.show_life(&client).await;
        }
    }

    async fn follow(self: Arc<Self>, client: Client, mut signs: Subscriber) {
        while let Some(sign) = signs.next().await {
            let Ok(member) = <[u8; 8]>::try_from(&sign.payload[..]) else { continue };
            let member = u64::from_le_bytes(member);
            let known = self.members.lock().insert(member, Instant::now());
            if known.is_none_or(|seen| seen.elapsed() >= GONE_AFTER) && member != self.own {
                self.show_life(&client).await;
            }
        }
    }

    async fn serve(self: Arc<Self>, client: Client, mut calls: Subscriber) {
        while let Some(message) = calls.next().await {
            let Ok(call) = serde_json::from_slice::<Call>(&message.payload) else {
                tracing::warn!("a control message cannot be read and is passed over");
                continue;
            };
            let known = self.seen.lock().enter((call.from, call.id));
            match known {
                None => self.clone().take(client.clone(), message, call),
                Some(Some(answers)) => send(&client, &message, answers).await,
                Some(None) => {}
            }
        }
    }

    fn take(self: Arc<Self>, client: Client, message: Message, call: Call) {
        tokio::spawn(async move {
            let Ok(_running) = self.running.try_acquire() else {
                // Its repetition may find room.
                self.seen.lock().forget((call.from, call.id));
                return;
            };
            let answer = match (self.replica.get(), call.what) {
                (Some(replica), What::Order(order)) => {
                    replica.execute(order).await;
                    None
                }
                (Some(replica), What::Question(question)) => Some(replica.answer(question).await),
                (None, _) => None,
            };
            let answers = split(self.own, answer);
            if let Some(entry) = self.seen.lock().answers.get_mut(&(call.from, call.id)) {
                *entry = Some(answers.clone());
            }
            send(&client, &message, answers).await;
        });
    }

    /// Calls every replica; returns their answers, and how many are missing.
    async fn call(&self, what: What) -> Result<(Vec<Answer>, usize), ControlError> {
        let deadline = Instant::now() + DEADLINE;
        let client = self.links.any();
        if client.connection_state() != async_nats::connection::State::Connected {
            return Err(unavailable("there is no connection to NATS"));
        }
        let inbox = client.new_inbox();
        let mut replies = subscribe(&client, inbox.clone()).await?;
        let call = Call { from: self.own, id: rand::random(), what };
        let payload = serde_json::to_vec(&call).map_err(|error| unavailable(error.to_string()))?;
        let send = || within(client.publish_with_reply(self.calls(), inbox.clone(), payload.clone().into()));
        send().await?;
        let mut repeat_at = Some(Instant::now() + REPEAT);
        let expected = self.present();
        let mut parts: HashMap<u64, Vec<Option<Reply>>> = HashMap::new();
        let whole = |parts: &HashMap<u64, Vec<Option<Reply>>>, member: &u64| {
            parts.get(member).is_some_and(|parts| parts.iter().all(Option::is_some))
        };
        while !expected.iter().all(|member| whole(&parts, member)) {
            let until = repeat_at.unwrap_or(deadline).min(deadline);
            match timeout_at(until, replies.next()).await {
                Ok(Some(message)) => {
                    let Ok(reply) = serde_json::from_slice::<Reply>(&message.payload) else { continue };
                    let slots = parts.entry(reply.from).or_default();
                    slots.resize_with(reply.parts.clamp(1, wire::MAX_PARTS) as usize, || None);
                    if let Some(slot) = slots.get_mut(reply.part as usize) {
                        *slot = Some(reply);
                    }
                }
                Ok(None) => return Err(unavailable("the connection was closed")),
                Err(_) if repeat_at.take().is_some() && Instant::now() < deadline => send().await?,
                Err(_) => break,
            }
        }
        let missing = expected.iter().filter(|member| !whole(&parts, member)).count();
        let answers = parts.into_values().filter_map(|parts| merge(parts.into_iter().collect::<Option<Vec<_>>>()?));
        Ok((answers.collect(), missing))
    }
}

async fn send(client: &Client, message: &Message, answers: Answers) {
    let Some(reply) = &message.reply else { return };
    for answer in answers {
        // Whoever waits learns by silence that this side cannot send.
        let _ = timeout(DEADLINE, client.publish(reply.clone(), answer.into())).await;
    }
}

#[async_trait]
impl Control for NatsControl {
    /// A second call is ignored.
    fn attach(&self, replica: Arc<dyn Replica>) {
        if self.inner.replica.set(replica).is_err() {
            tracing::error!("a second replica was attached to one side of control; it gets no orders");
        }
    }

    async fn broadcast(&self, order: Order) -> Result<(), ControlError> {
        // In a task of its own: it goes on when the caller does not wait for the end.
        let inner = self.inner.clone();
        let call = tokio::spawn(async move { inner.call(What::Order(order)).await });
        match call.await {
            Ok(Ok((_, 0))) => Ok(()),
            Ok(Ok((_, missing))) => {
                Err(unavailable(format!("{missing} replicas did not carry out the order within {DEADLINE:?}")))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unavailable("the call ended early")),
        }
    }

    async fn survey(&self, question: Question) -> Result<Vec<Answer>, ControlError> {
        self.inner.call(What::Question(question)).await.map(|(answers, _)| answers)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use plenum_channels::conformance::{Fixture, control_suite};

    use super::*;
    use crate::log::PoolLinks;
    use crate::pool::{Pool, PoolConfig};
    use crate::testing::NatsServer;

    #[test]
    fn a_call_that_was_not_taken_is_new_when_it_is_repeated() {
        let mut seen = Seen::default();
        assert!(seen.enter((1, 1)).is_none());
        assert!(matches!(seen.enter((1, 1)), Some(None)), "under way");
        seen.forget((1, 1));
        assert!(seen.enter((1, 1)).is_none() && seen.order.len() == 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn control_on_a_single_server() {
        let server = NatsServer::start().await.unwrap();
        let make = async |count: usize| {
            let prefix = format!("t{:08x}", rand::random::<u32>());
            let mut sides = Vec::new();
            for _ in 0..count {
                let pool = Pool::connect(PoolConfig::new(vec![server.url()])).await.unwrap();
                pool.wait_ready(Duration::from_secs(20)).await.unwrap();
                sides.push(NatsControl::start(PoolLinks::new(pool), &prefix).await.unwrap());
            }
            let deadline = Instant::now() + Duration::from_secs(30);
            while sides.iter().any(|side| side.members() < count) {
                assert!(Instant::now() < deadline, "not all know all");
                sleep(Duration::from_millis(20)).await;
            }
            Fixture::with_tokio_time(sides.into_iter().map(|side| side as Arc<dyn Control>).collect())
        };
        control_suite(make).await;
    }
}
