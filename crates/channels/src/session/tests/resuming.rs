//! Connections that come back: their passes, the fence, and what others see of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plenum_protocol::{Disconnect, PushEvent, Reply, Request};
use plenum_telemetry::Resume;

use super::{Client, Cluster, api_publish, settings, text};
use crate::memory::MemoryLedger;
use crate::node::unix_now;
use crate::{CLOSED_BY_CLIENT, Ledger, LedgerError, Node, Record, SUPERSEDED, Settings, SubscribeOptions};

const LOST: Disconnect = Disconnect::CONNECTION_CLOSED;

fn outcomes(node: &Node, outcome: Resume) -> u64 {
    node.metrics.resumes(outcome).get()
}

fn channels(result: &plenum_protocol::ConnectResult) -> Vec<&str> {
    result.subs.keys().map(String::as_str).collect()
}

/// Answers the ping that follows a resume at once, so that the server knows that the client has got the reply.
async fn confirm(client: &mut Client) {
    client.idle(1).await;
    assert!(client.inbox.contains(&Reply::Ping), "within a second: {:?}", client.inbox);
    client.send(Request::Pong);
    client.idle(1).await;
}

/// The next event in `room:a` that is not about the observer itself; `None` when nothing comes for 12 s.
async fn seen(observer: &mut Client) -> Option<(&'static str, String)> {
    observer.call(Request::Ping).await.unwrap();
    let push = tokio::time::timeout(Duration::from_secs(12), observer.push()).await.ok()?;
    match push.event {
        PushEvent::Join(info) => Some(("join", info.client)),
        PushEvent::Leave(info) => Some(("leave", info.client)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_comes_back_on_another_replica_as_it_was() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (client, first, pass) = Client::connect_with(&one, "anna;subs=log:a,room:a;jti=x;iat=7", "").await;
    client.end(LOST);
    // No token at all, and one that the application's keys would refuse: neither is asked for.
    let (mut client, second, pass) = Client::connect_with(&other, "", &pass).await;
    assert_eq!(second.client, first.client);
    assert_eq!(channels(&second), ["log:a", "room:a"]);
    api_publish(&one, "log:a", 1).await;
    assert_eq!(text(&client.publication().await), "1");
    let connections = one.connections("anna").await.unwrap();
    let token = connections[&first.client].token.clone().unwrap();
    assert_eq!((token.uid.as_str(), token.issued_at, connections.len()), ("x", 7, 1));
    confirm(&mut client).await;
    client.end(LOST);
    let (mut client, third, pass) = Client::connect_with(&one, "", &pass).await;
    assert_eq!(third.client, first.client);
    assert_eq!((outcomes(&one, Resume::Accepted), outcomes(&other, Resume::Accepted)), (1, 1));
    // It stands on the token of the first connect, however often it comes back without one.
    let token = one.connections("anna").await.unwrap()[&first.client].token.clone();
    assert_eq!(token.map(|token| (token.uid, token.issued_at)), Some(("x".to_owned(), 7)));
    confirm(&mut client).await;
    other.revoke_token("x", 0).await.unwrap();
    assert_eq!(client.close().await, Disconnect::INVALID_TOKEN);
    let (_client, stranger, _) = Client::connect_with(&other, "", &pass).await;
    assert_eq!((stranger.client == first.client, outcomes(&other, Resume::Denied)), (false, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_was_lost_locks_nobody_out() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (_, first, pass) = Client::connect_with(&one, "anna", "").await;
    let (mut unheard, _, lost) = Client::connect_with(&other, "anna", &pass).await;
    let (mut client, again, next) = Client::connect_with(&one, "anna", &pass).await;
    assert_eq!(again.client, first.client);
    assert_eq!(unheard.close().await, SUPERSEDED, "the connection that nobody heard of is closed");
    confirm(&mut client).await;
    let (_stray, stranger, _) = Client::connect_with(&other, "anna", &lost).await;
    assert_ne!(stranger.client, first.client, "the pass of the lost reply is void");
    let (_client, last, _) = Client::connect_with(&other, "anna", &next).await;
    assert_eq!(last.client, first.client);
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_was_copied_serves_once() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (_, first, pass) = Client::connect_with(&one, "anna", "").await;
    let (mut client, ..) = Client::connect_with(&one, "anna", &pass).await;
    confirm(&mut client).await;
    let (mut thief, copied, _) = Client::connect_with(&other, "anna", &pass).await;
    assert_ne!(copied.client, first.client);
    assert_eq!(outcomes(&other, Resume::Outdated), 1);
    thief.call(Request::Ping).await.unwrap();
    client.call(Request::Ping).await.expect("the owner keeps its connection");
}

/// A subscribe that left along with the connect shows nothing: the reply may still be lost.
#[tokio::test(start_paused = true)]
async fn only_the_answer_to_a_ping_ends_what_came_before() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (mut unheard, ..) = Client::connect_with(&node, "anna", &pass).await;
    unheard.subscribe("log:a", None).await.unwrap();
    unheard.idle(1).await;
    let (_client, again, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(again.client, first.client);
}

#[tokio::test(start_paused = true)]
async fn what_was_altered_or_is_foreign_counts_as_none() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let altered = pass.replacen(pass.chars().nth(40).unwrap(), "_-", 1);
    for (pass, token, outcome) in [
        (altered.as_str(), "anna", Resume::Altered),
        ("nonsense", "anna", Resume::Altered),
        (pass.as_str(), "bert", Resume::Foreign),
    ] {
        let (_client, result, _) = Client::connect_with(&node, token, pass).await;
        assert_ne!(result.client, first.client, "{pass}");
        assert!(outcomes(&node, outcome) > 0, "{outcome:?}");
    }
    let (_client, result, _) = Client::connect_with(&node, "anna;iat=9", &pass).await;
    assert_eq!(result.client, first.client, "a newer token of the same user resumes");
}

/// Without a newer token the expiry of the one that the connection was made with counts.
#[tokio::test(start_paused = true)]
async fn nobody_resumes_past_the_expiry() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let token = format!("anna;exp={}", unix_now() + 1);
    let (_, first, pass) = Client::connect_with(&node, &token, "").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let mut pass = pass;
    loop {
        let (_client, result, next) = Client::connect_with(&node, "", &pass).await;
        if outcomes(&node, Resume::Expired) > 0 {
            return assert_ne!(result.client, first.client);
        }
        assert_eq!(result.client, first.client);
        pass = next;
        // The expiry is a time of day, which does not follow the test's clock.
        std::thread::sleep(Duration::from_millis(200));
        assert!(std::time::Instant::now() < deadline);
    }
}

/// A refresh gives the client a newer token and no pass: what the pass says of the expiry is out of date.
#[tokio::test(start_paused = true)]
async fn who_was_refreshed_resumes_past_the_expiry_of_the_first_token() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let end = unix_now() + 2;
    let (mut client, first, pass) = Client::connect_with(&one, &format!("anna;exp={end}"), "").await;
    let newer = format!("anna;exp={}", end + 3600);
    let refresh = plenum_protocol::RefreshRequest { token: newer.clone() };
    client.call(Request::Refresh(refresh)).await.expect("refreshed");
    client.end(LOST);
    // A time of day, which does not follow the test's clock.
    while unix_now() <= end {
        std::thread::sleep(Duration::from_millis(100));
    }
    let (client, again, pass) = Client::connect_with(&other, &newer, &pass).await;
    assert_eq!((again.client.as_str(), again.expires), (first.client.as_str(), true));
    assert!(again.ttl > 3000, "the newer token's expiry counts: {}", again.ttl);
    client.end(LOST);
    let (_client, third, _) = Client::connect_with(&one, "", &pass).await;
    assert_eq!(third.client, first.client, "the next pass holds it");
    assert_eq!((outcomes(&one, Resume::Expired), outcomes(&other, Resume::Expired)), (0, 0));
}

/// The pass was sealed before: what the API ended must not come back with it, and what it made must not be lost.
#[tokio::test(start_paused = true)]
async fn what_the_api_subscribed_and_unsubscribed_holds_over_resumes() {
    for away in [false, true] {
        let ledger = Arc::new(Failing(MemoryLedger::new(), AtomicBool::new(false), AtomicUsize::new(0)));
        let mut cluster = Cluster::on(ledger.clone());
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut client, first, pass) = Client::connect_with(&one, "anna;subs=log:a,log:b", "").await;
        ledger.1.store(away, Ordering::SeqCst);
        let target = crate::Target { user: "anna".into(), ..crate::Target::default() };
        let code = plenum_protocol::codes::Unsubscribed { code: 2000, reason: "".into() };
        let options = SubscribeOptions { data: "1".into(), ..SubscribeOptions::default() };
        other.subscribe(target.clone(), "log:c", options).await.unwrap();
        assert_eq!(client.push().await.channel, "log:c");
        other.unsubscribe(target.clone(), "log:a", code.clone()).await.unwrap();
        assert_eq!(client.push().await.channel, "log:a");
        client.end(LOST);
        if away {
            tokio::time::sleep(Duration::from_secs(5)).await;
            ledger.1.store(false, Ordering::SeqCst);
        }
        tokio::time::sleep(Duration::from_secs(11)).await;
        // Its reply is lost: the same pass comes again.
        let (_, lost, _) = Client::connect_with(&other, "", &pass).await;
        assert_eq!((&lost.client, channels(&lost)), (&first.client, vec!["log:b", "log:c"]), "away: {away}");
        let (mut client, again, pass) = Client::connect_with(&other, "", &pass).await;
        assert_eq!((&again.client, channels(&again)), (&first.client, vec!["log:b", "log:c"]));
        assert_eq!(again.subs["log:c"].data, "1");
        confirm(&mut client).await;
        one.unsubscribe(target, "", code).await.unwrap();
        client.idle(1).await;
        client.end(LOST);
        // The token of the first connect, which grants log:a and log:b.
        let (_client, third, _) = Client::connect_with(&one, "anna;subs=log:a,log:b", &pass).await;
        assert_eq!((&third.client, channels(&third)), (&first.client, vec![]));
    }
}

/// More changes than a register holds: what the connection was is not known any more.
#[tokio::test(start_paused = true)]
async fn who_was_changed_too_much_connects_anew() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut client, first, pass) = Client::connect_with(&node, "anna", "").await;
    let target = crate::Target { user: "anna".into(), ..crate::Target::default() };
    let options = SubscribeOptions { data: Bytes::from(format!("\"{}\"", "x".repeat(4000))), ..Default::default() };
    node.subscribe(target, "log:a", options).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    client.idle(1).await;
    client.end(LOST);
    let (_client, again, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_ne!(again.client, first.client);
    assert_eq!((channels(&again), outcomes(&node, Resume::Outdated)), (vec![], 1));
}

#[tokio::test(start_paused = true)]
async fn two_tabs_are_two_sessions() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (_, one, first) = Client::connect_with(&node, "anna", "").await;
    let (_, two, second) = Client::connect_with(&node, "anna", "").await;
    let (_a, again_two, _) = Client::connect_with(&node, "anna", &second).await;
    let (_b, again_one, _) = Client::connect_with(&node, "anna", &first).await;
    assert_eq!((again_one.client, again_two.client), (one.client, two.client));
}

#[tokio::test(start_paused = true)]
async fn of_two_at_the_same_time_one_wins() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    for round in 0..20 {
        let (_, first, pass) = Client::connect_with(&one, "anna", "").await;
        let ((mut a, at_one, _), (mut b, at_other, _)) =
            tokio::join!(Client::connect_with(&one, "anna", &pass), Client::connect_with(&other, "anna", &pass));
        a.idle(2).await;
        b.idle(2).await;
        let alive = |client: &Client, id: &str| client.closed.is_none() && id == first.client;
        let holders = [alive(&a, &at_one.client), alive(&b, &at_other.client)];
        assert_eq!(holders.iter().filter(|holds| **holds).count(), 1, "round {round}: {holders:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_old_socket_is_closed_and_writes_nothing_more() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut old, _, pass) = Client::connect_with(&one, "anna", "").await;
    let (_new, ..) = Client::connect_with(&other, "anna", &pass).await;
    assert_eq!(old.close().await, SUPERSEDED);
    assert!(!SUPERSEDED.reconnects());
    old.send(Request::Publish(plenum_protocol::PublishRequest {
        channel: "log:a".into(),
        data: "1".into(),
        ..Default::default()
    }));
    old.idle(1).await;
    let history = other.history("log:a", crate::HistoryQuery { limit: -1, ..Default::default() }).await.unwrap();
    assert!(history.publications.is_empty());
}

/// A ledger that can be away, and counts the looks at fences.
struct Failing(Arc<MemoryLedger>, AtomicBool, AtomicUsize);

impl Failing {
    fn answer(&self) -> Result<(), LedgerError> {
        if self.1.load(Ordering::SeqCst) { Err(LedgerError::Unavailable { reason: "away".into() }) } else { Ok(()) }
    }
}

#[async_trait]
impl Ledger for Failing {
    async fn get(&self, key: &str) -> Result<Option<Record>, LedgerError> {
        self.answer()?;
        self.2.fetch_add(usize::from(key.starts_with(crate::resume::FENCES)), Ordering::SeqCst);
        self.0.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<u64, LedgerError> {
        self.answer()?;
        self.0.put(key, value, expected, ttl).await
    }

    async fn changes(&self, revision: u64, limit: usize) -> Result<Vec<Record>, LedgerError> {
        self.answer()?;
        self.0.changes(revision, limit).await
    }

    async fn end(&self) -> Result<u64, LedgerError> {
        self.answer()?;
        self.0.end().await
    }

    async fn fill(&self) -> Result<f64, LedgerError> {
        self.answer()?;
        self.0.fill().await
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_ledger_a_client_connects_as_if_it_had_no_pass() {
    let ledger = Arc::new(Failing(MemoryLedger::new(), AtomicBool::new(false), AtomicUsize::new(0)));
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    ledger.1.store(true, Ordering::SeqCst);
    let (_client, result, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_ne!(result.client, first.client);
    assert_eq!(outcomes(&node, Resume::Unavailable), 1);
    ledger.1.store(false, Ordering::SeqCst);
    let (_client, result, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(result.client, first.client, "the pass was not used up");
}

/// Of most clients that come back it is the first time: one write of the ledger settles it.
#[tokio::test(start_paused = true)]
async fn the_first_resume_does_not_look_before_it_writes() {
    let ledger = Arc::new(Failing(MemoryLedger::new(), AtomicBool::new(false), AtomicUsize::new(0)));
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (_, lost, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!((lost.client == first.client, ledger.2.load(Ordering::SeqCst)), (true, 0));
    let (mut back, again, next) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!((again.client == first.client, ledger.2.load(Ordering::SeqCst)), (true, 1), "the reply was lost");
    back.idle(1).await;
    let (_, third, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!((third.client == first.client, ledger.2.load(Ordering::SeqCst)), (true, 2));
}

/// A pass that was used ends also when the ledger elected its leader, or was away for longer, while it was to be confirmed.
#[tokio::test(start_paused = true)]
async fn a_resume_is_confirmed_when_the_ledger_is_back() {
    for away in [8, 30] {
        let ledger = Arc::new(Failing(MemoryLedger::new(), AtomicBool::new(false), AtomicUsize::new(0)));
        let mut cluster = Cluster::on(ledger.clone());
        let node = cluster.replica(settings());
        let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
        let (mut client, ..) = Client::connect_with(&node, "anna", &pass).await;
        ledger.1.store(true, Ordering::SeqCst);
        confirm(&mut client).await;
        tokio::time::sleep(Duration::from_secs(away)).await;
        ledger.1.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(11)).await;
        let (_thief, copied, _) = Client::connect_with(&node, "anna", &pass).await;
        assert_ne!(copied.client, first.client, "away for {away} s");
        assert_eq!(outcomes(&node, Resume::Outdated), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_added_where_resuming_is_off() {
    let mut off = settings();
    off.client.resume.enabled = false;
    let mut cluster = Cluster::new();
    let (_, result) = Client::connect_as(&cluster.replica(off), "anna").await;
    assert!(result.data.is_empty());
}

#[tokio::test(start_paused = true)]
async fn replicas_with_one_secret_need_no_shared_key() {
    let with = |secret: &str| {
        let mut settings = settings();
        settings.client.resume.secret = secret.into();
        settings
    };
    let mut cluster = Cluster::new();
    let one = cluster.replica(with("a secret of more than thirty-two characters"));
    let other = cluster.replica(with("another secret of more than thirty-two"));
    let (_, first, pass) = Client::connect_with(&one, "anna", "").await;
    let (_client, result, _) = Client::connect_with(&other, "anna", &pass).await;
    assert_ne!(result.client, first.client);
    assert!(Settings::default().compile().is_ok() && with("short").compile().is_err());
}

/// An observer of `room:a` on one replica, and a member there that has just joined on `at`.
async fn room(observing: &Arc<Node>, at: &Arc<Node>) -> (Client, Client, String, String) {
    let mut observer = Client::connect(observing).await;
    observer.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await.unwrap().0, "join", "its own");
    let (mut client, result, pass) = Client::connect_with(at, "anna", "").await;
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client.clone())));
    (observer, client, result.client, pass)
}

async fn present(node: &Node, client: &str) -> bool {
    node.presence("room:a").await.unwrap().iter().any(|member| member.client == client)
}

#[tokio::test(start_paused = true)]
async fn who_resumes_neither_leaves_nor_joins() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(present(&other, &id).await);
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        client.subscribe("room:a", None).await.unwrap();
        assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
        assert!(present(&one, &id).await && present(&other, &id).await);
        client.end(CLOSED_BY_CLIENT);
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
        assert!(!present(&one, &id).await);
    }
}

/// The first attempt to enter presence fails: the second one must not tell of a join again, and without a second one the
/// leave is told.
#[tokio::test(start_paused = true)]
async fn who_cannot_enter_presence_at_first_has_neither_left_nor_joined() {
    for (elsewhere, again) in [(false, true), (true, true), (false, false)] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.away.store(true, Ordering::Relaxed);
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        assert_eq!(client.subscribe("room:a", None).await.unwrap_err().code, 100);
        cluster.away.store(false, Ordering::Relaxed);
        if again {
            client.subscribe("room:a", None).await.unwrap();
            assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
            assert!(present(&one, &id).await && present(&other, &id).await);
            client.end(CLOSED_BY_CLIENT);
        }
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())), "again: {again}");
        assert!(!present(&one, &id).await);
    }
}

/// The old socket is not known to be dead when the client is back.
#[tokio::test(start_paused = true)]
async fn who_resumes_before_the_old_socket_has_ended_neither_leaves_nor_joins() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, mut old, id, pass) = room(&one, &one).await;
        let ending = tokio::spawn(async move {
            let reason = old.close().await;
            old.end(reason);
        });
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        client.subscribe("room:a", None).await.unwrap();
        ending.await.unwrap();
        assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
        assert!(present(&one, &id).await && present(&other, &id).await);
        drop(client);
        assert_eq!(seen(&mut observer).await, Some(("leave", id)));
    }
}

/// What the client sent before it gave the connection up is read late: when it is long back elsewhere.
#[tokio::test(start_paused = true)]
async fn who_gave_up_a_replica_that_stood_still_has_not_left() {
    for (released, back) in [(true, true), (false, true), (false, false)] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, old, id, pass) = room(&other, &one).await;
        one.pulse.wake();
        let mut old = Some(old);
        if !released {
            old.take().unwrap().end(CLOSED_BY_CLIENT);
        }
        let mut client = None;
        if back {
            let (mut again, ..) = Client::connect_with(&other, "anna", &pass).await;
            again.subscribe("room:a", None).await.unwrap();
            client = Some(again);
        }
        if let Some(old) = old {
            old.end(CLOSED_BY_CLIENT);
        }
        let expected = (!back).then(|| ("leave", id.clone()));
        assert_eq!(seen(&mut observer).await, expected, "released: {released}, back: {back}");
        assert_eq!(present(&other, &id).await, back);
        drop(client);
    }
}

/// It resumes and does not enter the channel again: others see it leave, once.
#[tokio::test(start_paused = true)]
async fn a_channel_that_is_not_entered_again_is_left() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        let (_client, ..) = Client::connect_with(if elsewhere { &other } else { &one }, "anna", &pass).await;
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())), "elsewhere: {elsewhere}");
        assert_eq!(seen(&mut observer).await, None);
        assert!(!present(&other, &id).await);
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_after_the_grace_has_left_and_joins() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, client, id, pass) = room(&one, &one).await;
    let began = tokio::time::Instant::now();
    client.end(Disconnect::SHUTDOWN);
    assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
    let after = began.elapsed();
    assert!((2900..3300).contains(&after.as_millis()), "{after:?}");
    let (mut client, ..) = Client::connect_with(&other, "anna", &pass).await;
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", id)));
}

#[tokio::test(start_paused = true)]
async fn another_connection_of_the_user_joins_before_the_old_one_leaves() {
    let mut cluster = Cluster::new();
    let one = cluster.replica(settings());
    let (mut observer, client, id, _) = room(&one, &one).await;
    client.end(LOST);
    let (mut other, result, _) = Client::connect_with(&one, "anna", "").await;
    other.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client)));
    assert_eq!(seen(&mut observer).await, Some(("leave", id)));
}

#[tokio::test(start_paused = true)]
async fn who_means_to_go_leaves_at_once() {
    for reason in [CLOSED_BY_CLIENT, Disconnect::FORCE_NO_RECONNECT] {
        let mut cluster = Cluster::new();
        let one = cluster.replica(settings());
        let (mut observer, client, id, _) = room(&one, &one).await;
        let began = tokio::time::Instant::now();
        client.end(reason);
        assert_eq!(seen(&mut observer).await, Some(("leave", id)));
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}

/// Unsubscribing and subscribing again on a resumed connection is seen as on any other.
#[tokio::test(start_paused = true)]
async fn a_resumed_connection_leaves_and_joins_by_itself() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, client, id, pass) = room(&one, &one).await;
    client.end(LOST);
    let (mut client, ..) = Client::connect_with(&other, "anna", &pass).await;
    client.subscribe("room:a", None).await.unwrap();
    client.idle(5).await;
    let leave = plenum_protocol::UnsubscribeRequest { channel: "room:a".into() };
    client.call(Request::Unsubscribe(leave)).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", id)));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_tells_the_leaves_of_those_who_did_not_come_back() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, mut gone, id, _) = room(&other, &one).await;
    let (mut back, result, pass) = Client::connect_with(&one, "bert", "").await;
    back.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client.clone())));
    let stopping = {
        let one = one.clone();
        tokio::spawn(async move { one.shutdown(Duration::from_secs(30)).await })
    };
    let (left, moved) = (gone.close().await, back.close().await);
    assert_eq!((&left, &moved), (&Disconnect::SHUTDOWN, &Disconnect::SHUTDOWN));
    gone.end(left);
    back.end(moved);
    let (mut back, again, _) = Client::connect_with(&other, "bert", &pass).await;
    back.subscribe("room:a", None).await.unwrap();
    assert_eq!(again.client, result.client);
    stopping.await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("leave", id)));
    assert_eq!(seen(&mut observer).await, None);
    assert!(present(&other, &result.client).await);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_connections_does_not_count_the_one_that_is_replaced() {
    let mut limited = settings();
    limited.client.user_connection_limit = 1;
    let mut cluster = Cluster::new();
    let node = cluster.replica(limited);
    let (_old, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (_client, result, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(result.client, first.client);
}

#[tokio::test(start_paused = true)]
async fn orders_find_a_resumed_connection_by_its_client_id() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (client, first, pass) = Client::connect_with(&one, "anna", "").await;
    client.end(LOST);
    let (mut client, ..) = Client::connect_with(&other, "anna", &pass).await;
    let target = crate::Target { client: first.client.clone(), ..crate::Target::default() };
    one.subscribe(target.clone(), "log:a", SubscribeOptions::default()).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    one.disconnect(target, Disconnect::FORCE_NO_RECONNECT, Vec::new()).await.unwrap();
    assert_eq!(client.close().await.code, 3503);
}
