//! One replica: everything that its connections and its API share.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use plenum_protocol::{Disconnect, Encoding};
use plenum_telemetry::Metrics;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::access::{self, Access};
use crate::hub::Hub;
use crate::idempotency::Idempotency;
use crate::limits::{Limits, Rates};
use crate::memory::{MemoryLedger, SoleReplica};
use crate::outbox::Mail;
use crate::pulse::Pulse;
use crate::recall::Recall;
use crate::registry::Registry;
use crate::resume::{Grace, Resume};
use crate::stats::{History, SAMPLE_EVERY};
use crate::wheel::{TICK, Wheel};
use crate::{
    Answer, Compiled, Control, Copies, Dependency, Lease, Ledger, Load, Log, NodeInfo, NodeStats, Order, Outbox,
    OutboxLimits, Presence, Question, Quotas, Released, Replica, Replicas, Results, Session, Settings, SettingsError,
    Target, Tokens,
};

/// How often the presence lease is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// How long the idempotency key of a publication that the log does not keep is remembered.
const ANNOUNCED_WINDOW: Duration = Duration::from_secs(300);
/// How many such keys are remembered; the oldest is forgotten for a new one.
const MAX_ANNOUNCED: usize = 1 << 16;

/// What a node is made of.
pub struct Parts {
    /// What the operator set.
    pub settings: Settings,
    /// Durable publications and live delivery.
    pub log: Arc<dyn Log>,
    /// Who is where.
    pub presence: Arc<dyn Presence>,
    /// The other replicas.
    pub control: Arc<dyn Control>,
    /// Verifies tokens.
    pub tokens: Arc<dyn Tokens>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Name of this replica for people.
    pub name: String,
    /// Version of the program.
    pub version: String,
}

/// Ports of the cluster's shared state.
#[derive(Clone)]
pub struct Shared {
    /// Fences, blocks, revocations.
    pub ledger: Arc<dyn Ledger>,
    /// Who is alive.
    pub replicas: Arc<dyn Replicas>,
    /// Limits that hold for all replicas together; `None`: each holds its own.
    pub quotas: Option<Arc<dyn Quotas>>,
    /// First results of idempotency keys, beyond the log's window; `None`: not kept.
    pub results: Option<Arc<dyn Results>>,
    /// Where replicas that start find blocks and revocations; `None`: in the ledger only.
    pub copies: Option<Arc<dyn Copies>>,
}

impl Shared {
    /// For a process that is alone: everything in its memory.
    pub fn single() -> Self {
        Self { ledger: MemoryLedger::new(), replicas: SoleReplica::new(), quotas: None, results: None, copies: None }
    }
}

/// A replica.
pub struct Node {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) control: Arc<dyn Control>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) replicas: Arc<dyn Replicas>,
    pub(crate) resume: Arc<Resume>,
    pub(crate) grace: Grace,
    pub(crate) access: Arc<Access>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) registry: Registry,
    pub(crate) wheel: Wheel,
    pub(crate) pulse: Pulse,
    pub(crate) limits: Arc<Limits>,
    pub(crate) rates: Rates,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) version: String,
    settings: ArcSwap<Compiled>,
    tokens: ArcSwap<Arc<dyn Tokens>>,
    uid: Uuid,
    pub(crate) name: String,
    started: Instant,
    accepting: AtomicBool,
    /// Idempotency keys of publications that the log does not keep; of this replica only.
    pub(crate) announced: Mutex<Idempotency>,
    /// What keys were published before, beyond the log's window.
    pub(crate) recall: Recall,
    /// Second since start in the upper half, connections accepted in it in the lower.
    rate: AtomicU64,
    history: History,
}

/// What a transport knows of a connection before its first frame.
#[derive(Clone, Debug)]
pub struct Link {
    /// How messages are encoded.
    pub encoding: Encoding,
    /// User id from a trusted header (`client.user_id_http_header`).
    pub user: Option<String>,
    /// Where the client is, as far as it can be known; `None`: limits by address do not hold for it.
    pub address: Option<IpAddr>,
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// The replica is stopping.
    #[error("the server is draining")]
    Draining,
    /// `client.connection_limit` is reached.
    #[error("the server holds {max} connections, its limit")]
    ConnectionLimit {
        /// The limit.
        max: usize,
    },
    /// `client.connection_rate_limit` is reached.
    #[error("the server takes {max} new connections a second, its limit")]
    RateLimit {
        /// The limit per second.
        max: u32,
    },
}

impl Node {
    /// Puts a replica together that is alone; fails on settings that contradict each other.
    pub fn new(parts: Parts) -> Result<Arc<Self>, SettingsError> {
        Self::with_shared(parts, Shared::single())
    }

    /// Puts a replica of a cluster together; fails on settings that contradict each other.
    pub fn with_shared(parts: Parts, shared: Shared) -> Result<Arc<Self>, SettingsError> {
        let settings = parts.settings.compile()?;
        let node = Arc::new(Self {
            hub: Arc::new(Hub::new(parts.log.clone(), parts.metrics.clone())),
            log: parts.log,
            presence: parts.presence,
            control: parts.control.clone(),
            resume: Arc::new(Resume::new(shared.ledger.clone(), &settings.client.resume)),
            ledger: shared.ledger,
            replicas: shared.replicas,
            grace: Grace::default(),
            access: Arc::new(Access::new(shared.copies)),
            registry: Registry::new(),
            wheel: Wheel::new(),
            pulse: Pulse::new(),
            rates: Rates::new(shared.quotas.clone(), &settings.client, parts.metrics.clone()),
            limits: Limits::new(shared.quotas, parts.metrics.clone()),
            metrics: parts.metrics,
            version: parts.version,
            settings: ArcSwap::from_pointee(settings),
            tokens: ArcSwap::from_pointee(parts.tokens),
            uid: Uuid::new_v4(),
            name: parts.name,
            started: Instant::now(),
            accepting: AtomicBool::new(true),
            announced: Mutex::new(Idempotency::new(ANNOUNCED_WINDOW.as_millis() as u64, MAX_ANNOUNCED)),
            recall: Recall::new(shared.results),
            rate: AtomicU64::new(0),
            history: History::default(),
        });
        parts.control.attach(Arc::new(Side(Arc::downgrade(&node))));
        Ok(node)
    }

    /// Starts what runs beside the connections: timers and the presence lease. Ends when the node is dropped.
    pub fn start(self: &Arc<Self>) -> JoinHandle<()> {
        let node = Arc::downgrade(self);
        tokio::spawn(access::follow(node.clone()));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            let mut renewed = Instant::now();
            let mut sampled: Option<Instant> = None;
            loop {
                ticks.tick().await;
                let Some(node) = node.upgrade() else { return };
                node.pulse.beat();
                node.wheel.advance();
                node.tell_due_leaves(Instant::now());
                if sampled.is_none_or(|at| at.elapsed() >= SAMPLE_EVERY) {
                    sampled = Some(Instant::now());
                    node.history.sample(&node.metrics);
                }
                if renewed.elapsed() >= RENEWAL {
                    renewed = Instant::now();
                    tokio::spawn(async move { node.renew_presence().await });
                }
            }
        })
    }

    async fn renew_presence(&self) {
        match self.presence.renew().await {
            Ok(Lease::Held) => {}
            Ok(Lease::Lapsed) => {
                tracing::warn!("the presence lease lapsed: announcing everybody again");
                self.registry.for_each(|outbox| outbox.mail(Mail::Announce));
            }
            Err(error) => tracing::warn!(%error, "the presence lease was not renewed"),
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Compiled> {
        self.settings.load_full()
    }

    /// Puts new settings in force; connections and subscriptions that exist keep what they were granted.
    pub fn reload(&self, settings: Settings) -> Result<(), SettingsError> {
        let settings = settings.compile()?;
        self.resume.configure(&settings.client.resume);
        self.rates.configure(&settings.client);
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    /// Verifies tokens with other keys from now on.
    pub fn replace_tokens(&self, tokens: Arc<dyn Tokens>) {
        self.tokens.store(Arc::new(tokens));
    }

    pub(crate) fn tokens(&self) -> Arc<dyn Tokens> {
        self.tokens.load().as_ref().clone()
    }

    /// Milliseconds since this node was made.
    pub(crate) fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Unique id of this run.
    pub fn uid(&self) -> Uuid {
        self.uid
    }

    /// The registry of metrics that this node counts in.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether new connections are taken.
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Relaxed)
    }

    /// Takes a connection in.
    pub fn accept(self: &Arc<Self>, link: Link) -> Result<Session, AcceptError> {
        if !self.is_accepting() {
            return Err(AcceptError::Draining);
        }
        let settings = self.settings.load();
        let client = &settings.client;
        if !self.take_rate(client.connection_rate_limit) {
            return Err(AcceptError::RateLimit { max: client.connection_rate_limit });
        }
        let outbox = Arc::new(Outbox::new(link.encoding, OutboxLimits { max_bytes: client.queue_max_size }));
        let id = Uuid::new_v4();
        if !self.registry.admit(id, outbox.clone(), client.connection_limit) {
            return Err(AcceptError::ConnectionLimit { max: client.connection_limit });
        }
        Ok(Session::new(self.clone(), id, outbox, link))
    }

    fn take_rate(&self, max: u32) -> bool {
        if max == 0 {
            return true;
        }
        let second = self.started.elapsed().as_secs();
        self.rate
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |rate| {
                let (then, count) = (rate >> 32, rate & u64::from(u32::MAX));
                let count = if then == second { count } else { 0 };
                (count < u64::from(max)).then_some(second << 32 | (count + 1))
            })
            .is_ok()
    }

    /// Refuses new connections from now on.
    pub fn stop_accepting(&self) {
        self.accepting.store(false, Ordering::Relaxed);
    }

    /// Says what this replica leans on, for [`Node::stats`]; the first call counts.
    pub fn lean_on(&self, dependencies: Vec<Arc<dyn Dependency>>) {
        self.history.lean_on(dependencies);
    }

    fn stats_here(&self) -> NodeStats {
        let info = self.describe();
        let mut load = Load {
            connections: info.num_clients.into(),
            sessions: self.registry.num_sessions() as u64,
            users: info.num_users.into(),
            channels: info.num_channels.into(),
            subscriptions: info.num_subs.into(),
            ..Load::default()
        };
        let delivery_latency_ms = self.history.fill(&self.metrics, &mut load);
        NodeStats {
            uid: info.uid,
            name: info.name,
            version: info.version,
            uptime: info.uptime,
            load,
            delivery_latency_ms,
            dependencies: self.history.dependencies(),
        }
    }

    fn describe(&self) -> NodeInfo {
        let (mut channels, mut subs) = (0, 0);
        self.hub.for_each(|_, members| {
            channels += 1;
            subs += members as u32;
        });
        NodeInfo {
            uid: self.uid.to_string(),
            name: self.name.clone(),
            version: self.version.clone(),
            num_clients: self.registry.len() as u32,
            num_users: self.registry.num_users() as u32,
            num_subs: subs,
            num_channels: channels,
            uptime: self.started.elapsed().as_secs() as u32,
        }
    }

    fn execute(&self, order: Order) {
        if let Order::Disconnect { target, code, reason, whitelist } = order {
            for found in self.registry.find(&target) {
                if !whitelist.contains(&found.identity.client.to_string()) {
                    found.outbox.close(Disconnect::custom(code, reason.clone()));
                }
            }
            return;
        }
        let order = Arc::new(order);
        for found in self.registry.find(order.target()) {
            found.outbox.mail(Mail::Order(order.clone()));
        }
    }
}

impl Order {
    /// Whom the order is meant for.
    pub fn target(&self) -> &Target {
        match self {
            Order::Subscribe { target, .. }
            | Order::Unsubscribe { target, .. }
            | Order::Disconnect { target, .. }
            | Order::Refresh { target, .. } => target,
        }
    }
}

/// The node as the control port sees it; weak, because the node holds the port.
struct Side(std::sync::Weak<Node>);

#[async_trait]
impl Replica for Side {
    async fn execute(&self, order: Order) {
        if let Some(node) = self.0.upgrade() {
            node.execute(order);
        }
    }

    async fn answer(&self, question: Question) -> Answer {
        let node = self.0.upgrade();
        match question {
            Question::Release { client, step } => Answer::Released(match (node, Uuid::try_parse(&client)) {
                (Some(node), Ok(client)) => node.release(client, step).await,
                _ => Released::default(),
            }),
            Question::Connections { user } => {
                Answer::Connections(node.map(|node| node.describe_connections(&user)).unwrap_or_default())
            }
            Question::Stats => Answer::Stats(Box::new(node.map(|node| node.stats_here()).unwrap_or_default())),
            Question::Info => Answer::Info(Box::new(node.map(|node| node.describe()).unwrap_or_default())),
            Question::Channels { pattern } => {
                let mut found = std::collections::BTreeMap::new();
                if let Some(node) = node {
                    let pattern = crate::pattern::Pattern::new(&pattern);
                    node.hub.for_each(|name, members| {
                        if pattern.matches(name) {
                            found.insert(name.to_owned(), members as u32);
                        }
                    });
                }
                Answer::Channels(found)
            }
        }
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
