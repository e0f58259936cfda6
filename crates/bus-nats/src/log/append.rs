//! Appends: in the order of the calls, retried under the same id, many in flight at once.
//!
//! A lane is a task with a window of unacknowledged appends on one connection; a channel belongs to one lane. As long as
//! all goes well appends of a channel follow each other without waiting. When one fails or stays without an answer, the
//! channel sends nothing more until everything in flight is resolved, and begins again with the oldest. An append whose
//! successor was acknowledged first is never sent again, because it would land behind it: it is looked up instead.

mod contact;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hashbrown::HashMap;
use plenum_channels::{AppendError, Appended};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::contact::{Contact, RECENT, is_of_the_stream};
use super::ack::{self, Found};
use super::jetstream::{RequestError, parse_api};
use super::line::{Line, Op, Request, State, finish, finish_unanswered};
use super::links::{Held, Links};
use crate::channel_token;

/// An append without an answer for this long is taken for lost on the way, or stored unheard.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// While the oldest append in flight is older than this, its channel sends nothing more: an election may be under way, and
/// what is sent after it must not land before what was sent before it.
const CALM: Duration = Duration::from_millis(500);

/// An acknowledgement later than this after the first attempt counts for nothing: readers may hold the entry for void.
const TOO_LATE: Duration = Duration::from_secs(45);

/// Appends of one channel in flight.
const CHANNEL_WINDOW: usize = 256;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection is given back after this long, so that the pool may replace it.
const HOLD: Duration = Duration::from_secs(60);

/// The way to the lanes.
pub(super) struct Lanes {
    lanes: Vec<mpsc::Sender<Request>>,
}

impl Lanes {
    pub fn start(count: usize, window: usize, queue: usize, patience: Duration, links: &Arc<dyn Links>) -> Self {
        let lane = |number: usize| {
            let (sender, receiver) = mpsc::channel(queue.max(1));
            tokio::spawn(Lane::new(number as u64, window.max(1), patience, links.clone()).run(receiver));
            sender
        };
        Self { lanes: (0..count.max(1)).map(lane).collect() }
    }

    /// Puts an append in line; the calls fix the order. Refuses at once when the line is full.
    pub fn send(&self, request: Request) {
        let lane = (channel_token::hash(&request.channel) >> 20) as usize % self.lanes.len();
        if let Err(error) = self.lanes[lane].try_send(request) {
            let reason = "too many appends wait".to_owned();
            let _ = error.into_inner().reply.send(Err(AppendError::Unavailable { reason }));
        }
    }
}

#[derive(Deserialize)]
struct Ack {
    stream: String,
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

/// What a look-up beside the lane came to.
enum Resolved {
    Done(oneshot::Sender<Result<Appended, AppendError>>, Result<Appended, AppendError>),
    /// Nothing is there: try again.
    Repeat(Box<Op>),
    /// It was acknowledged, and the stream may have gone back since.
    Unproven(Box<Op>),
    /// How far the front may have taken the channel's only entries.
    Checked {
        number: u64,
        channel: Arc<str>,
        front: Result<u64, RequestError>,
    },
}

struct Lane {
    number: u64,
    window: usize,
    patience: Duration,
    links: Arc<dyn Links>,
    lines: HashMap<Arc<str>, Line>,
    /// Channel of each append in flight.
    sent: HashMap<u64, Arc<str>>,
    /// Channels that wait for room in the window.
    starved: VecDeque<Arc<str>>,
    lookups: FuturesUnordered<BoxFuture<'static, Resolved>>,
    contact: Contact,
    client: Held,
    /// When the connection was taken.
    held_since: Instant,
    /// How often it had been made; when it is made anew, what was in flight is lost or stored unheard.
    connects: u64,
    inbox: String,
    answers: Option<Subscriber>,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

impl Lane {
    fn new(number: u64, window: usize, patience: Duration, links: Arc<dyn Links>) -> Self {
        let client = links.pinned(number);
        let inbox = client.new_inbox();
        let now = Instant::now();
        Self {
            number,
            window,
            patience,
            links,
            lines: HashMap::new(),
            sent: HashMap::new(),
            starved: VecDeque::new(),
            lookups: FuturesUnordered::new(),
            contact: Contact::new(),
            client,
            held_since: now,
            connects: 0,
            inbox,
            answers: None,
        }
    }

    /// Inputs: appends, acknowledgements, finished look-ups, and a clock for what stays without an answer. Ends when
    /// the log is dropped and nothing is left to do.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut clock = interval(Duration::from_millis(20));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || !self.lines.is_empty() || !self.lookups.is_empty() {
            if self.answers.is_none() || self.sent.is_empty() && self.held_since.elapsed() >= HOLD {
                self.listen().await;
                for channel in std::mem::take(&mut self.starved) {
                    self.pump(&channel).await;
                }
            }
            let busy = !self.lines.is_empty();
            tokio::select! {
                answer = answer(&mut self.answers) => match answer {
                    Some(answer) => self.answered(answer).await,
                    None => self.answers = None,
                },
                request = requests.recv(), if open && self.sent.len() < self.window => match request {
                    Some(request) => self.admit(request).await,
                    None => open = false,
                },
                Some(resolved) = self.lookups.next(), if !self.lookups.is_empty() => self.resolved(resolved).await,
                _ = clock.tick(), if busy => self.check_time().await,
            }
        }
    }

    async fn listen(&mut self) {
        self.client = self.links.pinned(self.number);
        self.held_since = Instant::now();
        self.connects = self.client.statistics().connects.load(Ordering::Relaxed);
        self.inbox = self.client.new_inbox();
        let subscribe = self.client.subscribe(format!("{}.*", self.inbox));
        match timeout(ATTEMPT_TIMEOUT, subscribe).await {
            Ok(Ok(subscriber)) => self.answers = Some(subscriber),
            _ => tokio::time::sleep(LONGEST_PAUSE).await,
        }
    }

    async fn admit(&mut self, request: Request) {
        let channel = request.channel.clone();
        let op = Op {
            request,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            stream: None,
            attempts: 0,
            floors: (0, 0),
            state: State::Waits,
            maybe_stored: false,
            overtaken_by: None,
            checked: false,
            trouble: String::new(),
        };
        self.lines.entry(channel.clone()).or_default().ops.push_back(op);
        self.pump(&channel).await;
    }

    /// Sends what the channel may send now.
    async fn pump(&mut self, channel: &Arc<str>) {
        loop {
            // A connection that is due is given back when nothing is in flight on it.
            let room = self.sent.len() < self.window && self.held_since.elapsed() < HOLD;
            let Some(line) = self.lines.get_mut(channel) else { return };
            if line.ops.is_empty() {
                self.lines.remove(channel);
                return;
            }
            if line.checking {
                return;
            }
            let now = Instant::now();
            let next = match line.recovering {
                Some(at) if line.in_flight > 0 || now < at => return,
                Some(_) => Some(0),
                None if line.in_flight >= CHANNEL_WINDOW => return,
                None => {
                    let oldest = line.ops.iter().find_map(|op| match op.state {
                        State::InFlight(since) => Some(since),
                        _ => None,
                    });
                    if oldest.is_some_and(|since| now - since > CALM) {
                        return;
                    }
                    line.ops.iter().position(|op| op.state == State::Waits)
                }
            };
            let Some(next) = next else { return };
            if line.ops[next].overtaken_by.is_some() {
                let op = line.ops.remove(next);
                if let Some(op) = op {
                    self.give_up(op, channel);
                }
                continue;
            }
            if !room {
                self.starved.push_back(channel.clone());
                return;
            }
            let op = &mut line.ops[next];
            // In this order: what an incarnation has seen is below everything of the next.
            let floor = op.request.shard.seen();
            let current = op.request.shard.current();
            // After a long sleep of this process the caller has been told that nobody knows.
            let late = op.request.called.elapsed() > self.patience;
            // Held until the shard is another stream.
            if current.has_gone_back() && !late {
                return;
            }
            // What no stream can have, and stands under no condition, may as well go to the new one.
            if !op.maybe_stored && op.request.expected.is_none() {
                op.stream = None;
            }
            let elsewhere = op.stream.get_or_insert_with(|| current.stream.clone()) != &current.stream;
            if elsewhere || late {
                if let Some(op) = line.ops.remove(next) {
                    finish_unanswered(op);
                }
                continue;
            }
            #[cfg(test)]
            if super::faults::Faults::on(&op.request.shard.faults.believe_empty) {
                op.checked = true;
            }
            if op.request.expected == Some(0) && !op.checked {
                op.state = State::Checking;
                line.checking = true;
                let (number, channel, links) = (op.number, channel.clone(), self.links.clone());
                let (shard, subject) = (op.request.shard.clone(), op.request.subject.clone());
                let lookup = async move {
                    let front = ack::front_of_empty(&links.any(), &shard, &current, &subject).await;
                    Resolved::Checked { number, channel, front }
                };
                self.lookups.push(lookup.boxed());
                return;
            }
            self.contact.sent(now);
            op.attempts += 1;
            op.floors = (if op.attempts == 1 { floor } else { op.floors.0 }, floor);
            op.state = State::InFlight(now);
            line.in_flight += 1;
            self.sent.insert(op.number, channel.clone());
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", op.request.id.as_str());
            headers.insert("Nats-Expected-Stream", current.stream.as_str());
            if let Some(expected) = op.request.expected {
                headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
            }
            let reply = format!("{}.{}-{}", self.inbox, op.number, op.attempts);
            let (subject, payload) = (op.request.subject.clone(), op.request.payload.clone());
            #[cfg(test)]
            let subject = match super::faults::Faults::take(&op.request.shard.faults.misroute) {
                true => "nobody.listens.here".into(),
                false => subject,
            };
            let number = op.number;
            // The queue of a connection that is away fills up; what did not get in was certainly not stored.
            let sent = {
                let publish = self.client.publish_with_reply_and_headers(subject, reply, headers, payload);
                let connected = self.client.connection_state() == async_nats::connection::State::Connected;
                connected && matches!(timeout(ATTEMPT_TIMEOUT, publish).await, Ok(Ok(())))
            };
            if !sent {
                self.failed(number, "the connection takes nothing".into(), false);
            }
        }
    }

    async fn answered(&mut self, message: Message) {
        let mut numbers = message.subject.rsplit(['.', '-']).map(|number| number.parse::<u64>().ok());
        let (Some(Some(attempt)), Some(Some(number))) = (numbers.next(), numbers.next()) else { return };
        let Some(channel) = self.sent.get(&number).cloned() else { return };
        #[cfg(test)]
        if let Some(op) = self.lines[&channel].ops.iter().find(|op| op.number == number)
            && message.status.is_none()
            && super::faults::Faults::take(&op.request.shard.faults.deafen)
        {
            return;
        }
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.failed(number, "the stream has no leader".into(), false);
        } else {
            let answer = parse_api::<Ack>(&message.payload);
            if answer.as_ref().map_or_else(is_of_the_stream, |_| true) {
                self.contact.useful(Instant::now(), self.sent.len() > 1);
            }
            match answer {
                Ok(ack) => self.acknowledged(number, attempt, &channel, ack),
                Err(error) => self.refused(number, &channel, error),
            }
        }
        self.pump(&channel).await;
        while self.sent.len() < self.window
            && let Some(channel) = self.starved.pop_front()
        {
            self.pump(&channel).await;
        }
    }

    /// Takes an append out of its line.
    fn take(&mut self, number: u64, channel: &Arc<str>) -> Option<Op> {
        self.sent.remove(&number);
        let line = self.lines.get_mut(channel)?;
        let place = line.ops.iter().position(|op| op.number == number)?;
        let op = line.ops.remove(place)?;
        if let State::InFlight(_) = op.state {
            line.in_flight -= 1;
        }
        Some(op)
    }

    fn acknowledged(&mut self, number: u64, attempt: u64, channel: &Arc<str>, ack: Ack) {
        let Some(op) = self.take(number, channel) else { return };
        let current = op.request.shard.current();
        // The first acknowledgement of an attempt is for what that very attempt stored.
        let exact = !ack.duplicate && attempt == u64::from(op.attempts);
        let floor = if exact { op.floors.1 } else { op.floors.0 };
        let others = ack.duplicate && op.request.keyed;
        let proven = current.stream == ack.stream && (current.has_gone_back() || ack.seq <= floor && !others);
        #[cfg(test)]
        let proven = proven && !super::faults::Faults::on(&op.request.shard.faults.believe_old);
        if proven {
            current.goes_back();
            self.hold(op);
            return;
        }
        // An earlier attempt may have been stored before the stream went back, or after.
        let doubtful = !exact && ack.seq <= op.request.shard.seen();
        let Some(line) = self.lines.get_mut(channel) else { return };
        op.request.shard.see(&ack.stream, ack.seq);
        if !ack.duplicate {
            op.request.shard.note(&ack.stream, ack.seq, channel_token::hash(channel));
        }
        line.recovering = None;
        line.pause = Duration::ZERO;
        if !ack.duplicate {
            for earlier in line.ops.iter_mut().filter(|earlier| earlier.number < number && earlier.attempts > 0) {
                #[cfg(test)]
                if super::faults::Faults::on(&earlier.request.shard.faults.retry_overtaken) {
                    continue;
                }
                earlier.overtaken_by.get_or_insert(ack.seq);
            }
        }
        if line.ops.iter().any(|op| op.state == State::Failed) {
            line.recovering = Some(Instant::now());
        }
        if current.stream != ack.stream || op.request.called.elapsed() > TOO_LATE {
            finish(op, Err(AppendError::Indeterminate));
            return;
        }
        line.last_acknowledged = line.last_acknowledged.max(ack.seq);
        let position = current.position(ack.seq);
        let known = !ack.duplicate || (!op.request.keyed && op.request.expected.is_none());
        #[cfg(test)]
        let known = known || super::faults::Faults::on(&op.request.shard.faults.trust_duplicates);
        if known && !doubtful {
            finish(op, Ok(Appended { position, duplicate: false }));
            return;
        }
        let client = self.links.any();
        let lookup = async move {
            if doubtful {
                // Is there a server that has everything that was seen?
                match op.request.shard.fresh(&client, &[], 0, 0).await {
                    Ok(fresh) if Arc::ptr_eq(&fresh.current, &current) && !current.has_gone_back() => {}
                    _ => return Resolved::Unproven(Box::new(op)),
                }
            }
            if known {
                return Resolved::Done(op.request.reply, Ok(Appended { position, duplicate: false }));
            }
            // Somebody's attempt with this id was stored there: whose, the entry says.
            let found = ack::at(&client, &current, &op.request, ack.seq).await;
            let result = match found {
                Some(Found::Own) => Ok(Appended { position, duplicate: false }),
                Some(Found::SameKey) => Ok(Appended { position, duplicate: true }),
                Some(Found::Foreign) => {
                    Err(AppendError::Unavailable { reason: "the server knows the id for another entry".into() })
                }
                None => Err(AppendError::Indeterminate),
            };
            Resolved::Done(op.request.reply, result)
        };
        self.lookups.push(lookup.boxed());
    }

    /// Keeps an append whose acknowledgement does not count: it is repeated under its id when the stream proves to be
    /// intact, or in the stream that takes its place. There a condition on a position of the old one means nothing.
    fn hold(&mut self, mut op: Op) {
        op.maybe_stored = true;
        if op.request.shard.current().has_gone_back() {
            if op.request.expected.is_some() {
                finish_unanswered(op);
                return;
            }
            // What the old stream has of it is out of everybody's reach.
            op.stream = None;
            op.overtaken_by = None;
        }
        op.state = State::Failed;
        op.trouble = "the stream went back behind what it had acknowledged".into();
        let line = self.lines.entry(op.request.channel.clone()).or_default();
        line.recovering = Some(Instant::now() + FIRST_PAUSE);
        let place = line.ops.partition_point(|other| other.number < op.number);
        line.ops.insert(place, op);
    }

    fn refused(&mut self, number: u64, channel: &Arc<str>, error: RequestError) {
        let (code, description) = match error {
            RequestError::Refused { code, description } => (code, description),
            other => return self.failed(number, other.to_string(), true),
        };
        match code {
            // Wrong last sequence: perhaps our own earlier attempt has made it so.
            10071 => self.wrong_last(number, channel, &description),
            // An attempt with this id, or another condition on this subject, is under way.
            10158 | 10164 => self.failed(number, description, false),
            10054 => {
                if let Some(op) = self.take(number, channel) {
                    let size = op.request.payload.len();
                    finish(op, Err(AppendError::TooLarge { size, max: size.saturating_sub(1) }));
                }
            }
            10060 => {
                if let Some(op) = self.take(number, channel) {
                    op.request.shard.suspect.notify_one();
                    finish_unanswered(op);
                }
            }
            _ => self.failed(number, description, false),
        }
    }

    fn wrong_last(&mut self, number: u64, channel: &Arc<str>, description: &str) {
        let Some(mut op) = self.take(number, channel) else { return };
        let last = description.rsplit(' ').next().and_then(|last| last.parse().ok()).unwrap_or(0);
        let expected = op.request.expected.unwrap_or(0);
        let certain = op.attempts == 1 && !op.request.keyed && last > 0;
        #[cfg(test)]
        let certain = certain || super::faults::Faults::on(&op.request.shard.faults.believe_refusals);
        if certain {
            finish(op, Err(AppendError::Conflict { expected, last }));
            return;
        }
        let (client, current) = (self.links.any(), op.request.shard.current());
        let lookup = async move {
            let shard = op.request.shard.clone();
            match ack::after(&client, &shard, &current, &op.request, expected).await {
                Ok(ack::After::Ours { seq, found }) => {
                    let duplicate = found == Found::SameKey;
                    Resolved::Done(op.request.reply, Ok(Appended { position: current.position(seq), duplicate }))
                }
                Ok(ack::After::Others { last }) => {
                    Resolved::Done(op.request.reply, Err(AppendError::Conflict { expected, last }))
                }
                Ok(ack::After::Nothing) => {
                    // What was expected was trimmed away, or it is the front: for the server there is nothing.
                    op.request.expected = Some(0);
                    op.checked = true;
                    Resolved::Repeat(Box::new(op))
                }
                Err(error) => {
                    op.trouble = error.to_string();
                    Resolved::Repeat(Box::new(op))
                }
            }
        };
        self.lookups.push(lookup.boxed());
    }

    async fn resolved(&mut self, resolved: Resolved) {
        match resolved {
            Resolved::Done(reply, result) => drop(reply.send(result)),
            Resolved::Checked { number, channel, front } => self.checked(number, &channel, front).await,
            Resolved::Unproven(op) => self.hold(*op),
            Resolved::Repeat(mut op) => {
                op.state = State::Failed;
                let channel = op.request.channel.clone();
                let line = self.lines.entry(channel.clone()).or_default();
                line.ops.push_front(*op);
                line.recovering = Some(Instant::now() + FIRST_PAUSE);
                self.pump(&channel).await;
            }
        }
    }

    async fn checked(&mut self, number: u64, channel: &Arc<str>, front: Result<u64, RequestError>) {
        let Some(line) = self.lines.get_mut(channel) else { return };
        line.checking = false;
        let Some(op) = line.ops.iter_mut().find(|op| op.number == number) else { return };
        match front {
            Ok(0) => {
                op.checked = true;
                op.state = State::Waits;
            }
            Ok(last) => {
                if let Some(op) = self.take(number, channel) {
                    finish(op, Err(AppendError::Conflict { expected: 0, last }));
                }
            }
            Err(error) => {
                op.state = State::Failed;
                op.trouble = error.to_string();
                line.recovering = Some(Instant::now() + LONGEST_PAUSE);
            }
        }
        self.pump(channel).await;
    }

    /// An attempt failed; `maybe_stored` when nobody knows how far it came.
    fn failed(&mut self, number: u64, trouble: String, maybe_stored: bool) {
        let Some(channel) = self.sent.remove(&number) else { return };
        let Some(line) = self.lines.get_mut(&channel) else { return };
        line.pause = (line.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        line.recovering = Some(Instant::now() + line.pause);
        let Some(op) = line.ops.iter_mut().find(|op| op.number == number) else { return };
        if let State::InFlight(_) = op.state {
            line.in_flight -= 1;
        }
        op.state = State::Failed;
        op.maybe_stored |= maybe_stored;
        op.trouble = trouble;
    }

    /// What stays without an answer, what was tried long enough, what may go on.
    async fn check_time(&mut self) {
        let now = Instant::now();
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        let broken =
            connects != self.connects || self.client.connection_state() != async_nats::connection::State::Connected;
        if broken {
            self.contact.renewed(now);
        }
        self.connects = connects;
        let (mut silent, mut due, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for (channel, line) in &self.lines {
            for op in &line.ops {
                match op.state {
                    State::InFlight(since) if broken || now - since > ATTEMPT_TIMEOUT => silent.push(op.number),
                    State::InFlight(_) => {}
                    _ if op.request.called.elapsed() > self.patience || op.overtaken_by.is_some() => {
                        over.push((op.number, channel.clone()));
                    }
                    _ => {}
                }
            }
            due.push(channel.clone());
        }
        for number in silent {
            self.failed(number, "no acknowledgement in time".into(), true);
        }
        for (number, channel) in over {
            if let Some(op) = self.take(number, &channel) {
                self.give_up(op, &channel);
            }
        }
        let lives = || {
            let mut oldest = self.lines.values().filter_map(|line| line.ops.front());
            oldest.any(|op| op.request.called.elapsed() > RECENT && op.request.shard.silence().0 < RECENT)
        };
        #[cfg(test)]
        let stays = self
            .lines
            .values()
            .flat_map(|line| &line.ops)
            .any(|op| super::faults::Faults::on(&op.request.shard.faults.stay));
        #[cfg(test)]
        if stays {
            self.contact.renewed(now);
        }
        if self.contact.is_due(now, lives) {
            tracing::warn!(
                connection = self.client.connection(),
                "no stream takes appends here; moving to another server"
            );
            self.links.leave(self.client.connection());
        }
        for channel in due {
            self.pump(&channel).await;
        }
        if self.lines.is_empty() {
            self.contact.idle();
        }
    }

    /// Ends an append that may not be sent again.
    fn give_up(&mut self, op: Op, channel: &Arc<str>) {
        let (Some(by), true) = (op.overtaken_by, op.maybe_stored) else {
            finish_unanswered(op);
            return;
        };
        // Whether it was stored before the one that overtook it can be read.
        let after = self.lines.get(channel).map_or(0, |line| line.last_acknowledged.min(by)).saturating_sub(1);
        let (client, current) = (self.links.any(), op.request.shard.current());
        let lookup = async move {
            let found = ack::before(&client, &op.request.shard, &current, &op.request, after, by).await;
            let result = match found {
                Some(seq) => Ok(Appended { position: current.position(seq), duplicate: false }),
                None => Err(AppendError::Indeterminate),
            };
            Resolved::Done(op.request.reply, result)
        };
        self.lookups.push(lookup.boxed());
    }
}

async fn answer(answers: &mut Option<Subscriber>) -> Option<Message> {
    match answers {
        Some(answers) => answers.next().await,
        None => std::future::pending().await,
    }
}
