//! A log that takes longer than clients wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{ConnectRequest, Encoding, PushEvent, Request, SubscribeRequest};
use tokio::time::Instant;

use super::resuming::{LOST, present, room, seen};
use super::{Client, Cluster, node_with, open_namespace, settings};
use crate::memory::MemoryLog;
use crate::{
    Announcement, Append, AppendError, Appended, CLOSED_BY_CLIENT, ConnectionClaims, Live, Log, NamespaceOptions, Page,
    Position, Read, ReadError, SubscribeOptions, SubscriptionClaims, Tail, Target, TokenError, Tokens,
};

/// Longest time that a client of the released SDKs waits for a reply.
const SDK: Duration = Duration::from_secs(5);

/// The in-process log, whose answers come late.
struct Slow {
    log: Arc<dyn Log>,
    /// Milliseconds that a subscription takes.
    subscribe_ms: AtomicU64,
    /// Milliseconds that finding an end takes.
    tail_ms: AtomicU64,
    /// Subscriptions asked for.
    subscribes: AtomicUsize,
    /// What comes of them in the end.
    fate: Mutex<Fate>,
}

/// What comes of a subscription in the log.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Made,
    Refused,
    Panic,
}

impl Slow {
    fn new(log: Arc<dyn Log>) -> Arc<Self> {
        Arc::new(Slow {
            log,
            subscribe_ms: AtomicU64::new(0),
            tail_ms: AtomicU64::new(0),
            subscribes: AtomicUsize::new(0),
            fate: Mutex::new(Fate::Made),
        })
    }
}

async fn takes(ms: &AtomicU64) {
    tokio::time::sleep(Duration::from_millis(ms.load(Ordering::Relaxed))).await;
}

#[async_trait]
impl Log for Slow {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.log.append(append)
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        takes(&self.tail_ms).await;
        self.log.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        takes(&self.tail_ms).await;
        self.log.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.subscribes.fetch_add(1, Ordering::Relaxed);
        takes(&self.subscribe_ms).await;
        let fate = *self.fate.lock();
        assert!(fate != Fate::Panic, "as the test has it");
        if fate == Fate::Refused {
            return Err(ReadError::Unavailable { reason: "away".into() });
        }
        self.log.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        self.log.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.log.remove(channel).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscribe_that_takes_too_long_fails_for_the_moment_before_the_client_gives_up() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    let mut client = Client::connect(&node).await;
    log.tail_ms.store(3_600_000, Ordering::Relaxed);
    let began = Instant::now();
    let error = client.subscribe("room:a", None).await.unwrap_err();
    assert!(began.elapsed() < SDK, "{:?}", began.elapsed());
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.presence("room:a").await.unwrap().len(), 0, "what was made is taken back");
    log.tail_ms.store(0, Ordering::Relaxed);
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(node.presence("room:a").await.unwrap().len(), 1);
}

/// Keys that never come.
struct Silent;

#[async_trait]
impl Tokens for Silent {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        std::future::pending().await
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        std::future::pending().await
    }
}

/// Without an answer its connection would be closed as stale after a while, from which no client comes back.
#[tokio::test(start_paused = true)]
async fn a_connect_that_takes_too_long_fails_for_the_moment() {
    let node = node_with(settings(), MemoryLog::single());
    node.replace_tokens(Arc::new(Silent));
    let mut client = Client::attach(&node, Encoding::Json);
    let began = Instant::now();
    let request = ConnectRequest { token: "anna".into(), ..ConnectRequest::default() };
    let error = client.call(Request::Connect(Box::new(request))).await.unwrap_err();
    assert!(began.elapsed() < SDK, "{:?}", began.elapsed());
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
}

/// A connect that came late is under way when the connection would be stale, from which no client comes back.
#[tokio::test(start_paused = true)]
async fn a_connect_that_came_late_is_not_stale() {
    let node = node_with(settings(), MemoryLog::single());
    node.replace_tokens(Arc::new(Silent));
    let mut client = Client::attach(&node, Encoding::Json);
    client.idle(8).await;
    let request = ConnectRequest { token: "anna".into(), ..ConnectRequest::default() };
    let error = client.call(Request::Connect(Box::new(request))).await.unwrap_err();
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
}

/// Each attempt is given up before the log has answered, and yet the work is not begun anew each time.
#[tokio::test(start_paused = true)]
async fn a_channel_that_takes_longer_than_its_clients_wait_is_there_in_the_end() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    log.subscribe_ms.store(6_000, Ordering::Relaxed);
    let (mut client, began) = (Client::connect(&node).await, Instant::now());
    while client.subscribe("log:a", None).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "never");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert_eq!(log.subscribes.load(Ordering::Relaxed), 1);
}

/// Who was lost and came back is neither announced again nor told to have left because its subscribe needed two attempts.
#[tokio::test(start_paused = true)]
async fn a_resumed_client_whose_subscribe_takes_too_long_stays_for_the_others() {
    let mut cluster = Cluster::new();
    let log = Slow::new(cluster.broker.replica());
    cluster.log = Some(log.clone());
    let node = cluster.replica(settings());
    let (mut watch, _) = Client::connect_as(&node, "watch").await;
    watch.subscribe("room:a", None).await.unwrap();
    let (mut client, connected, pass) = Client::connect_with(&node, "anna", "").await;
    client.subscribe("room:a", None).await.unwrap();
    while !matches!(watch.push().await.event, PushEvent::Join(info) if info.client == connected.client) {}
    client.end(LOST);
    let (mut back, resumed, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(resumed.client, connected.client);
    log.tail_ms.store(3_600_000, Ordering::Relaxed);
    assert_eq!(back.subscribe("room:a", None).await.unwrap_err().code, 100);
    log.tail_ms.store(0, Ordering::Relaxed);
    back.subscribe("room:a", None).await.unwrap();
    watch.idle(10).await;
    assert!(watch.inbox.is_empty(), "{:?}", watch.inbox);
    assert_eq!(node.presence("room:a").await.unwrap().len(), 2);
}

/// Who makes the subscription that an order is to end before it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Maker {
    Connect,
    Api,
    Client,
}

/// The order finds nothing to end yet, and must not be forgotten for that; a resume does not bring back what it ended either.
#[tokio::test(start_paused = true)]
async fn what_the_api_ends_while_it_is_made_does_not_stand() {
    for (maker, ended) in [
        (Maker::Connect, "log:a"),
        (Maker::Connect, ""),
        (Maker::Api, "log:a"),
        (Maker::Api, ""),
        (Maker::Client, "log:a"),
        (Maker::Client, ""),
    ] {
        let mut cluster = Cluster::new();
        let log = Slow::new(cluster.broker.replica());
        cluster.log = Some(log.clone());
        let node = cluster.replica(settings());
        let anna = || Target { user: "anna".into(), ..Target::default() };
        let token = if maker == Maker::Connect { "anna;subs=log:a" } else { "anna" };
        let mut client = Client::attach(&node, Encoding::Json);
        let request = ConnectRequest { token: token.into(), ..ConnectRequest::default() };
        let slow = || log.tail_ms.store(3_000, Ordering::Relaxed);
        if maker == Maker::Connect {
            slow();
        }
        let connect = client.send(Request::Connect(Box::new(request)));
        client.idle(1).await;
        let pass = if maker == Maker::Connect { String::new() } else { client.connected(connect).await };
        slow();
        let subscribe = SubscribeRequest { channel: "log:a".into(), ..SubscribeRequest::default() };
        let subscribing = match maker {
            Maker::Connect => None,
            Maker::Api => node.subscribe(anna(), "log:a", SubscribeOptions::default()).await.map(|()| None).unwrap(),
            Maker::Client => Some(client.send(Request::Subscribe(Box::new(subscribe)))),
        };
        client.idle(1).await;
        assert!(client.inbox.is_empty(), "{maker:?}: {:?}", client.inbox);
        node.unsubscribe(anna(), ended, Unsubscribed::SERVER).await.unwrap();
        let pass = if maker == Maker::Connect { client.connected(connect).await } else { pass };
        if let Some(subscribing) = subscribing {
            client.answer(subscribing).await.unwrap();
        }
        if maker == Maker::Api {
            assert!(matches!(client.push().await.event, PushEvent::Subscribe(_)));
        }
        let push = client.push().await;
        assert_eq!(push.channel, "log:a", "{maker:?} {ended}");
        assert!(matches!(push.event, PushEvent::Unsubscribe { code: 2000, .. }), "{maker:?} {ended}: {:?}", push.event);
        client.idle(1).await;
        client.end(LOST);
        let (_back, again, _) = Client::connect_with(&node, "", &pass).await;
        assert!(again.subs.is_empty(), "{maker:?} {ended}");
        assert_eq!(node.metrics.resumes(plenum_telemetry::Resume::Accepted).get(), 1);
    }
}

/// Orders for one channel are obeyed one after the other, each of them.
#[tokio::test(start_paused = true)]
async fn orders_that_wait_keep_their_order() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    log.tail_ms.store(1_000, Ordering::Relaxed);
    let anna = || Target { user: "anna".into(), ..Target::default() };
    for _ in 0..2 {
        node.subscribe(anna(), "log:a", SubscribeOptions::default()).await.unwrap();
        node.unsubscribe(anna(), "log:a", Unsubscribed::SERVER).await.unwrap();
    }
    node.subscribe(anna(), "log:a", SubscribeOptions::default()).await.unwrap();
    for round in 0..2 {
        assert!(matches!(client.push().await.event, PushEvent::Subscribe(_)), "{round}");
        assert!(matches!(client.push().await.event, PushEvent::Unsubscribe { .. }), "{round}");
    }
    assert!(matches!(client.push().await.event, PushEvent::Subscribe(_)));
    super::api_publish(&node, "log:a", 1).await;
    assert_eq!(super::text(&client.publication().await), "1");
}

/// The socket breaks again during the first subscribe after a resume: what the attempt had taken over is not lost with it.
#[tokio::test(start_paused = true)]
async fn who_is_lost_again_during_a_subscribe_leaves_once_or_not_at_all() {
    for (elsewhere, again) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut cluster = Cluster::new();
        let one = cluster.replica(settings());
        let log = Slow::new(cluster.broker.replica());
        cluster.log = Some(log.clone());
        let other = cluster.replica(settings());
        let (mut observer, client, id, pass) = room(&one, if elsewhere { &one } else { &other }).await;
        client.end(LOST);
        let (mut client, _, pass) = Client::connect_with(&other, "anna", &pass).await;
        log.tail_ms.store(2_000, Ordering::Relaxed);
        let subscribe = SubscribeRequest { channel: "room:a".into(), ..SubscribeRequest::default() };
        client.send(Request::Subscribe(Box::new(subscribe)));
        client.idle(1).await;
        client.end(LOST);
        let case = format!("elsewhere: {elsewhere}, again: {again}");
        if again {
            let (mut client, result, _) = Client::connect_with(&one, "anna", &pass).await;
            assert_eq!(result.client, id);
            client.subscribe("room:a", None).await.unwrap();
            assert_eq!(seen(&mut observer).await, None, "{case}");
            assert!(present(&one, &id).await && present(&other, &id).await);
            client.end(CLOSED_BY_CLIENT);
        }
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())), "{case}");
        assert_eq!(seen(&mut observer).await, None, "{case}");
        assert!(!present(&one, &id).await);
    }
}

/// Of two server-side subscriptions of a resume one is refused, and with it the connect.
#[tokio::test(start_paused = true)]
async fn a_resume_that_fails_for_one_channel_leaves_the_other_once_or_not_at_all() {
    for (slow, again) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut limited = settings();
        let few = NamespaceOptions { subscriber_limit: 1, ..open_namespace("few", 10) };
        limited.channel.namespaces.push(few);
        let mut cluster = Cluster::new();
        let one = cluster.replica(limited.clone());
        let log = Slow::new(cluster.broker.replica());
        cluster.log = Some(log.clone());
        let other = cluster.replica(limited);
        let mut observer = Client::connect(&one).await;
        observer.subscribe("room:a", None).await.unwrap();
        seen(&mut observer).await.expect("its own join");
        let (client, connected, pass) = Client::connect_with(&other, "anna;subs=few:a,room:a", "").await;
        assert_eq!(seen(&mut observer).await, Some(("join", connected.client.clone())));
        client.end(LOST);
        let mut rival = Client::connect(&one).await;
        rival.subscribe("few:a", None).await.expect("the place is free");
        log.tail_ms.store(if slow { 500 } else { 0 }, Ordering::Relaxed);
        let data = serde_json::json!({ "plenum": { "resume": pass } }).to_string();
        let request = ConnectRequest { data: data.into(), ..ConnectRequest::default() };
        let mut client = Client::attach(&other, Encoding::Json);
        assert_eq!(client.call(Request::Connect(Box::new(request))).await.unwrap_err().code, 106);
        client.end(LOST);
        let case = format!("slow: {slow}, again: {again}");
        if again {
            rival.end(CLOSED_BY_CLIENT);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let (client, result, _) = Client::connect_with(&one, "", &pass).await;
            assert_eq!(result.client, connected.client);
            assert_eq!(seen(&mut observer).await, None, "{case}");
            assert!(present(&one, &connected.client).await);
            client.end(CLOSED_BY_CLIENT);
        }
        assert_eq!(seen(&mut observer).await, Some(("leave", connected.client.clone())), "{case}");
        assert_eq!(seen(&mut observer).await, None, "{case}");
    }
}

/// Callers give up and come again while the log is away; what goes on without them is one attempt a channel, not one a caller.
#[tokio::test(start_paused = true)]
async fn callers_that_come_again_and_again_pile_nothing_up() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    log.subscribe_ms.store(5_000, Ordering::Relaxed);
    *log.fate.lock() = Fate::Refused;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    for _ in 0..5 {
        let patient = |_| tokio::time::timeout(Duration::from_secs(4), node.hub.acquire("log:a"));
        let outcomes = join_all((0..100).map(patient)).await;
        assert!(outcomes.iter().all(|outcome| !matches!(outcome, Ok(Ok(_)))));
        // The replica has tasks of its own that come and go.
        assert!(alive() < before + 20, "{} tasks more", alive() - before);
    }
    let asked = log.subscribes.load(Ordering::Relaxed);
    assert_eq!(asked, 3, "one each 5 s");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut left = Vec::new();
    node.hub.for_each(|channel, _| left.push(channel.to_owned()));
    assert!(left.is_empty(), "{left:?}");
    *log.fate.lock() = Fate::Made;
    let outcomes = join_all((0..100).map(|_| node.hub.acquire("log:a"))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(log.subscribes.load(Ordering::Relaxed), asked + 1);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_panics_locks_no_channel() {
    let log = Slow::new(MemoryLog::single());
    let node = node_with(settings(), log.clone());
    let mut client = Client::connect(&node).await;
    *log.fate.lock() = Fate::Panic;
    let error = client.subscribe("log:a", None).await.unwrap_err();
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
    *log.fate.lock() = Fate::Made;
    client.subscribe("log:a", None).await.unwrap();
}

/// While presence is away entries are made again and again; an order for what stands does not wait for them.
#[tokio::test(start_paused = true)]
async fn what_stands_ends_at_once_though_its_presence_entry_is_being_renewed() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    client.subscribe("log:a", None).await.unwrap();
    cluster.away.store(true, Ordering::Relaxed);
    client.session.outbox().mail(crate::outbox::Mail::Announce);
    client.call(Request::Ping).await.unwrap();
    let began = Instant::now();
    node.unsubscribe(Target { user: "anna".into(), ..Target::default() }, "log:a", Unsubscribed::SERVER).await.unwrap();
    assert!(matches!(client.push().await.event, PushEvent::Unsubscribe { code: 2000, .. }));
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
}
