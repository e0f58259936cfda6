//! Each bound of a connection, reached.

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{
    Disconnect, Encoding, HistoryRequest, Publication, PublishRequest, PushEvent, Reply, ReplyResult, Request,
    SubscribeRequest,
};

use super::{Client, api_publish, node, settings};
use crate::channel::{Channel, GoLive, MemberTraits};
use crate::node::unix_now;
use crate::{
    AcceptError, Entry, Link, Live, LiveEvent, Outbox, OutboxLimits, Position, Settings, SubscribeOptions, Target,
};

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_too_slow_is_closed_and_hurts_nobody_else() {
    let mut settings = settings();
    settings.client.queue_max_size = 64 * 1024;
    let node = node(settings);
    let mut slow = Client::connect(&node).await;
    let mut quick = Client::connect(&node).await;
    slow.subscribe("log:a", None).await.unwrap();
    quick.subscribe("log:a", None).await.unwrap();
    let payload = format!("\"{}\"", "x".repeat(1000));
    for _ in 0..100 {
        api_publish(&node, "log:a", &payload).await;
        quick.publication().await;
    }
    assert!(slow.session.outbox().pending_bytes() <= 64 * 1024 + 2048);
    assert_eq!(slow.close().await, Disconnect::SLOW);
    assert!(quick.closed.is_none());
}

#[tokio::test(start_paused = true)]
async fn channels_per_connection() {
    let mut settings = settings();
    settings.client.channel_limit = 2;
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    client.subscribe("log:a", None).await.unwrap();
    client.subscribe("log:b", None).await.unwrap();
    assert_eq!(client.subscribe("log:c", None).await.unwrap_err().code, 106);
    // A subscription that is being given up has no place any more.
    let frame = br#"{"id":90,"unsubscribe":{"channel":"log:a"}}
{"id":91,"subscribe":{"channel":"log:c"}}"#;
    client.session.receive(frame);
    client.answer(91).await.unwrap();
    // Nor has the server more places than the client.
    let (mut client, _) = Client::connect_as(&node, "anna;subs=log:a,log:b").await;
    let target = Target { user: "anna".into(), ..Target::default() };
    node.subscribe(target, "log:c", SubscribeOptions::default()).await.unwrap();
    assert_eq!(client.close().await, Disconnect::CHANNEL_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn orders_that_a_session_does_not_read() {
    let node = node(settings());
    let (client, _) = Client::connect_as(&node, "anna").await;
    for number in 0..=1024 {
        assert!(!client.session.outbox().is_closing(), "after {number} orders");
        let target = Target { user: "anna".into(), ..Target::default() };
        node.refresh(target, false, 0, None).await.unwrap();
    }
    assert!(client.session.outbox().is_closing());
}

#[tokio::test(start_paused = true)]
async fn a_reload_leaves_the_pings_that_a_client_was_told_of() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let mut later = settings();
    later.client.ping_interval = Duration::from_secs(600);
    node.reload(later).unwrap();
    for _ in 0..3 {
        client.idle(25).await;
        client.session.receive(b"{}");
    }
    // SDKs give a connection up whose pings stay out.
    assert!(client.inbox.iter().filter(|reply| matches!(reply, Reply::Ping)).count() >= 2);
}

/// Expiries go by the calendar's clock, so these run in real time.
fn expiring() -> Settings {
    let mut settings = settings();
    settings.client.expired_close_delay = Duration::from_secs(1);
    settings.client.expired_sub_close_delay = Duration::from_secs(1);
    settings
}

#[tokio::test]
async fn a_connection_that_is_not_refreshed() {
    let node = node(expiring());
    let exp = unix_now() + 3;
    let (mut client, result) = Client::connect_as(&node, &format!("anna;exp={exp}")).await;
    assert!(result.expires);
    assert_eq!(client.close().await, Disconnect::EXPIRED);
    assert!(unix_now() > exp, "closed before its grace was over");
}

#[tokio::test]
async fn a_subscription_that_is_not_refreshed() {
    let node = node(expiring());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    let exp = unix_now() + 3;
    let token = format!("anna;channel=closed:a;exp={exp}");
    let request = SubscribeRequest { channel: "closed:a".into(), token, ..Default::default() };
    client.call(Request::Subscribe(Box::new(request))).await.unwrap();
    let Unsubscribed { code, reason } = Unsubscribed::EXPIRED;
    assert_eq!(client.push().await.event, PushEvent::Unsubscribe { code, reason: reason.into_owned() });
    assert!(unix_now() > exp, "ended before its grace was over");
    // The connection goes on; one that the server made ends with it.
    let target = Target { user: "anna".into(), ..Target::default() };
    let options = SubscribeOptions { expire_at: unix_now() + 3, ..SubscribeOptions::default() };
    node.subscribe(target, "log:a", options).await.unwrap();
    assert_eq!(client.close().await, Disconnect::SUBSCRIPTION_EXPIRED);
}

#[tokio::test(start_paused = true)]
async fn connections_per_replica_user_and_second() {
    let mut limited = settings();
    limited.client.connection_limit = 2;
    let crowded = node(limited);
    let first = Client::attach(&crowded, Encoding::Json);
    let _second = Client::attach(&crowded, Encoding::Json);
    let link = || Link { encoding: Encoding::Json, user: None, address: None };
    assert_eq!(crowded.accept(link()).unwrap_err(), AcceptError::ConnectionLimit { max: 2 });
    drop(first);
    crowded.accept(link()).unwrap();

    let mut limited = settings();
    limited.client.user_connection_limit = 1;
    let node_of_users = node(limited);
    let (first, _) = Client::connect_as(&node_of_users, "anna").await;
    let mut second = Client::attach(&node_of_users, Encoding::Json);
    second.session.receive(b"{\"id\":1,\"connect\":{\"token\":\"anna\"}}");
    assert_eq!(second.close().await, Disconnect::CONNECTION_LIMIT);
    drop(first);
    drop(second);
    Client::connect_as(&node_of_users, "anna").await;

    let mut limited = settings();
    limited.client.connection_rate_limit = 3;
    let steady = node(limited);
    for _ in 0..3 {
        steady.accept(link()).unwrap();
    }
    assert_eq!(steady.accept(link()).unwrap_err(), AcceptError::RateLimit { max: 3 });
    tokio::time::sleep(Duration::from_secs(1)).await;
    steady.accept(link()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn frames_per_second() {
    let mut settings = settings();
    settings.client.max_frames_per_second = 5;
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    for _ in 0..20 {
        client.session.receive(b"{}");
    }
    assert_eq!(client.close().await, Disconnect::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn commands_in_flight_hold_reading_up() {
    let mut settings = settings();
    settings.client.max_in_flight_commands = 2;
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    let frame: Vec<u8> = (2..6)
        .flat_map(|id| format!("{{\"id\":{id},\"subscribe\":{{\"channel\":\"log:{id}\"}}}}\n").into_bytes())
        .collect();
    client.session.receive(&frame);
    assert!(!client.session.wants_frames());
    for id in 2..6 {
        client.answer(id).await.unwrap();
    }
    assert!(client.session.wants_frames());
}

#[tokio::test(start_paused = true)]
async fn a_publication_over_the_bound() {
    let mut settings = settings();
    settings.channel.max_publication_size = 1000;
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    let big = |bytes: usize| {
        let data = format!("\"{}\"", "x".repeat(bytes - 2)).into();
        Request::Publish(PublishRequest { channel: "log:a".into(), data, ..Default::default() })
    };
    client.call(big(1000)).await.unwrap();
    let error = client.call(big(1001)).await.unwrap_err();
    assert_eq!(error.code, 107);
    assert!(error.message.contains("1001") && error.message.contains("1000"), "{}", error.message);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_authenticates() {
    let node = node(settings());
    let mut client = Client::attach(&node, Encoding::Json);
    let started = tokio::time::Instant::now();
    assert_eq!(client.close().await, Disconnect::STALE);
    assert!((10..12).contains(&started.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn two_missed_pongs_and_not_one() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let started = tokio::time::Instant::now();
    // Answers the first ping late, after it was counted as missed.
    client.idle(37).await;
    assert_eq!(client.inbox.pop_front(), Some(Reply::Ping));
    client.session.receive(b"{}");
    client.idle(20).await;
    assert!(client.closed.is_none());
    assert_eq!(client.close().await, Disconnect::NO_PONG);
    // Pings at 25, 50 and 75 s; the second and third are unanswered, judged at 60 and 85 s.
    let elapsed = started.elapsed().as_secs();
    assert!((84..88).contains(&elapsed), "{elapsed} s");
}

#[test]
fn publications_kept_for_those_who_are_joining() {
    let channel = Channel::new("c".into(), plenum_telemetry::Metrics::new().unwrap());
    let at = |offset| Position { offset, epoch: "e".into() };
    channel.started(at(0));
    let outbox = Arc::new(Outbox::new(Encoding::Json, OutboxLimits { max_bytes: 1 << 20 }));
    let member = channel.join(outbox.clone(), MemberTraits::default());
    let publish = |offset| {
        let publication = Publication { data: "1".into(), offset, ..Publication::default() };
        channel.deliver(&[LiveEvent::Publication(Arc::new(Entry {
            offset,
            previous: offset - 1,
            publication,
            stored_at_ms: 0,
        }))]);
    };
    (1..=1025).for_each(publish);
    assert_eq!(channel.go_live(member, Some(&at(0)), &mut None), GoLive::Behind, "it has to read the log again");
    assert_eq!(channel.go_live(member, Some(&at(1025)), &mut None), GoLive::Done);
    assert_eq!(outbox.pending_bytes(), 0);
    publish(1026);
    assert!(outbox.pending_bytes() > 0);
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_page_of_history_for_the_api() {
    let mut settings = settings();
    settings.channel.max_publication_size = crate::MAX_PUBLICATION_BYTES;
    let node = node(settings);
    let payload = format!("\"{}\"", "x".repeat(980_000));
    for _ in 0..20 {
        api_publish(&node, "log:a", &payload).await;
    }
    let query = crate::HistoryQuery { limit: -1, ..Default::default() };
    // The page ends with the publication that takes it over 16 MiB.
    assert_eq!(node.history("log:a", query).await.unwrap().publications.len(), 18);
}

#[tokio::test(start_paused = true)]
async fn bytes_of_a_page_of_history() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let payload = format!("\"{}\"", "x".repeat(50_000));
    for _ in 0..20 {
        api_publish(&node, "log:a", &payload).await;
    }
    let request = HistoryRequest { channel: "log:a".into(), limit: -1, ..HistoryRequest::default() };
    match client.call(Request::History(request)).await.unwrap() {
        // The default outbox of 1 MiB gives a page a quarter.
        ReplyResult::History(page) => assert_eq!(page.publications.len(), 6),
        other => panic!("{other:?}"),
    }
}
