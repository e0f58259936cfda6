//! Appends: in the order of the calls, retried under the same id, many in flight at once.
//!
//! A lane is a task that appends on one connection; a channel belongs to one lane. Each connection has one window of
//! unacknowledged appends, which the lanes meant for it share evenly. As long as all goes well appends of a channel follow
//! each other without waiting. When one fails or stays without an answer, the channel sends nothing more until everything in
//! flight is resolved, and begins again with the oldest. An append whose successor was acknowledged first is never sent
//! again, because it would land behind it: it is looked up instead.

mod answers;
mod contact;
mod lines;
mod send;
mod trouble;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::connection::State as Connection;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use plenum_channels::{AppendError, Appended};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::contact::Contact;
use self::lines::Lines;
use self::trouble::Words;
use super::jetstream::RequestError;
use super::line::{LONGEST_PAUSE, Op, Request, State};
use super::links::{Held, Links};
use super::stats::LaneStats;
use crate::channel_token;

/// An append without an answer for this long is taken for lost on the way, or stored unheard.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection is given back after this long, so that the pool may replace it; after the shorter time when it is not the
/// lane's own one, which had no contact.
const HOLD: Duration = Duration::from_secs(60);
const HOLD_OTHER: Duration = Duration::from_secs(1);

/// Appends taken in, or acknowledgements, before the others have their turn.
const BATCH: usize = 128;

/// The way to the lanes.
pub(super) struct Lanes {
    lanes: Vec<Way>,
}

/// The way to one lane.
struct Way {
    requests: mpsc::Sender<Request>,
    told: Arc<Told>,
}

/// What a lane tells of itself for the report.
#[derive(Default)]
struct Told {
    in_flight: AtomicUsize,
    window: AtomicUsize,
}

impl Lanes {
    pub fn start(count: usize, window: usize, queue: usize, patience: Duration, links: &Arc<dyn Links>) -> Self {
        let count = count.max(1);
        let lane = |number: usize| {
            let (requests, receiver) = mpsc::channel(queue.max(1));
            let lane = Lane::new(Place { number, lanes: count, window: window.max(1) }, patience, links.clone());
            let told = lane.told.clone();
            tokio::spawn(lane.run(receiver));
            Way { requests, told }
        };
        Self { lanes: (0..count).map(lane).collect() }
    }

    pub fn stats(&self) -> Vec<LaneStats> {
        let stats = |way: &Way| {
            let queue_bound = way.requests.max_capacity();
            LaneStats {
                waiting: queue_bound - way.requests.capacity(),
                queue_bound,
                in_flight: way.told.in_flight.load(Ordering::Relaxed),
                window: way.told.window.load(Ordering::Relaxed),
            }
        };
        self.lanes.iter().map(stats).collect()
    }

    /// Puts an append in line; the calls fix the order. Refuses at once when the line is full.
    pub fn send(&self, request: Request) {
        let lane = (channel_token::hash(&request.channel) >> 20) as usize % self.lanes.len();
        if let Err(error) = self.lanes[lane].requests.try_send(request) {
            let reason = "too many appends wait".to_owned();
            let _ = error.into_inner().reply.send(Err(AppendError::Unavailable { reason }));
        }
    }
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
        line: usize,
        number: u64,
        front: Result<u64, RequestError>,
    },
}

/// Which lane it is.
#[derive(Clone, Copy)]
struct Place {
    number: usize,
    /// How many lanes there are.
    lanes: usize,
    /// Of a connection.
    window: usize,
}

impl Place {
    /// This lane's share of its connection's window, at least 1.
    fn share(&self, connections: usize) -> usize {
        let first = self.number % connections.max(1);
        let sharers = (first..self.lanes).step_by(connections.max(1)).count();
        (self.window / sharers.max(1)).max(1)
    }
}

struct Lane {
    place: Place,
    /// Appends that may be in flight.
    window: usize,
    patience: Duration,
    links: Arc<dyn Links>,
    lines: Lines,
    in_flight: usize,
    told: Arc<Told>,
    /// Lines that wait for room in the window.
    starved: VecDeque<usize>,
    lookups: FuturesUnordered<BoxFuture<'static, Resolved>>,
    contact: Contact,
    words: Words,
    client: Held,
    /// When the connection is to be given back.
    held_until: Instant,
    /// How often it had been made; when it is made anew, what was in flight is lost or stored unheard.
    connects: u64,
    /// It has contact, as of `now`.
    connected: bool,
    inbox: String,
    answers: Option<Subscriber>,
    /// Of the last append that was taken in.
    newest: u64,
    /// When the task was woken; one look at the clock for all that it does then.
    now: Instant,
}

impl Lane {
    fn new(place: Place, patience: Duration, links: Arc<dyn Links>) -> Self {
        let (client, _) = links.lane(place.number);
        let inbox = client.new_inbox();
        let now = Instant::now();
        Self {
            place,
            window: place.share(links.connections()),
            patience,
            links,
            lines: Lines::default(),
            in_flight: 0,
            told: Arc::default(),
            starved: VecDeque::new(),
            lookups: FuturesUnordered::new(),
            contact: Contact::new(),
            words: Words::default(),
            client,
            held_until: now + HOLD,
            connects: 0,
            connected: false,
            inbox,
            answers: None,
            newest: 0,
            now,
        }
    }

    /// Inputs: appends, acknowledgements, finished look-ups, and a clock for what stays without an answer. Ends when
    /// the log is dropped and nothing is left to do.
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut clock = interval(Duration::from_millis(20));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = interval(HOLD);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut arrived = Vec::with_capacity(BATCH);
        let mut open = true;
        while open || !self.lines.is_empty() || !self.lookups.is_empty() {
            if self.answers.is_none() || self.in_flight == 0 && self.is_due() {
                self.listen().await;
                self.look();
                self.feed().await;
            }
            self.share();
            let busy = !self.lines.is_empty();
            let room = BATCH.min(self.room());
            self.client.carries(self.in_flight);
            self.told.in_flight.store(self.in_flight, Ordering::Relaxed);
            tokio::select! {
                answer = answer(&mut self.answers) => match answer {
                    Some(answer) => {
                        self.look();
                        self.answered(answer).await;
                        self.answered_too().await;
                        self.feed().await;
                    }
                    None => self.answers = None,
                },
                count = requests.recv_many(&mut arrived, room), if open && room > 0 => {
                    open = count > 0;
                    self.look();
                    for request in arrived.drain(..) {
                        self.admit(request).await;
                    }
                }
                Some(resolved) = self.lookups.next(), if !self.lookups.is_empty() => {
                    self.look();
                    self.resolved(resolved).await;
                }
                _ = clock.tick(), if busy || self.answers.is_none() => {
                    self.look();
                    self.check_time().await;
                }
                // A lane that nobody uses gives its connection back as well.
                _ = idle.tick(), if self.in_flight == 0 => self.look(),
            }
        }
    }

    /// Looks at the clock and the connection.
    fn look(&mut self) {
        self.now = Instant::now();
        self.connected = self.client.connection_state() == Connection::Connected;
    }

    /// Whether the connection is to be given back as soon as nothing is in flight on it.
    fn is_due(&self) -> bool {
        self.now >= self.held_until
    }

    /// How many may be in flight follows the number of connections.
    fn share(&mut self) {
        self.window = self.place.share(self.links.connections());
        self.told.window.store(self.window, Ordering::Relaxed);
    }

    /// So many more may be sent now: none without a way for their acknowledgements.
    fn room(&self) -> usize {
        if self.answers.is_some() && !self.is_due() { self.window.saturating_sub(self.in_flight) } else { 0 }
    }

    /// Takes a connection, unless something is in flight on the present one, and subscribes to the acknowledgements on it.
    async fn listen(&mut self) {
        self.now = Instant::now();
        if self.in_flight == 0 {
            let (client, own) = self.links.lane(self.place.number);
            self.client = client;
            self.held_until = self.now + if own { HOLD } else { HOLD_OTHER };
        }
        self.connects = self.client.statistics().connects.load(Ordering::Relaxed);
        self.inbox = self.client.new_inbox();
        let subscribe = self.client.subscribe(format!("{}.*", self.inbox));
        match timeout(ATTEMPT_TIMEOUT, subscribe).await {
            Ok(Ok(subscriber)) => self.answers = Some(subscriber),
            _ => tokio::time::sleep(LONGEST_PAUSE).await,
        }
    }

    async fn admit(&mut self, request: Request) {
        let line = self.lines.of(&request.channel);
        self.newest += 1;
        if let Some(found) = self.lines.get(line) {
            found.insert(Op::new(request, self.newest));
        }
        self.pump(line).await;
    }

    /// Acknowledgements that have come with the one before.
    async fn answered_too(&mut self) {
        for _ in 1..BATCH {
            let Some(Some(answer)) = self.answers.as_mut().and_then(|answers| answers.next().now_or_never()) else {
                return;
            };
            self.answered(answer).await;
        }
    }

    /// Gives what room there is to the lines that wait for it.
    async fn feed(&mut self) {
        while self.room() > 0
            && let Some(line) = self.starved.pop_front()
        {
            if let Some(line) = self.lines.get(line) {
                line.starved = false;
            }
            self.pump(line).await;
        }
    }

    /// Takes an append out of its line.
    fn take(&mut self, line: usize, number: u64) -> Option<Op> {
        let found = self.lines.get(line)?;
        let op = found.remove(found.place(number)?)?;
        if let State::InFlight(_) = op.state() {
            self.in_flight -= 1;
        }
        Some(op)
    }
}

async fn answer(answers: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match answers {
        Some(answers) => answers.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lanes_of_a_connection_share_one_window() {
        for (lanes, connections) in [(4, 1), (4, 2), (4, 3), (4, 4), (4, 9), (7, 3), (1, 1)] {
            let mut windows = vec![0; connections];
            for number in 0..lanes {
                windows[number % connections] += Place { number, lanes, window: 1024 }.share(connections);
            }
            let full = |window: &usize| *window == 0 || (1024 - lanes..=1024).contains(window);
            assert!(windows.iter().all(full), "{lanes} lanes on {connections} connections: {windows:?}");
            assert!(windows.iter().filter(|window| **window > 0).count() == lanes.min(connections));
        }
        assert_eq!(Place { number: 0, lanes: 4, window: 1 }.share(1), 1);
    }
}
