//! The pass that a client carries, and whom it opens to.

use std::time::Duration;

use plenum_protocol::{Disconnect, PublishRequest, RefreshRequest, Request};
use plenum_telemetry::Resume;

use super::super::{api_publish, text};
use super::{Client, Cluster, LOST, channels, confirm, outcomes, settings};
use crate::node::unix_now;
use crate::{SUPERSEDED, Settings, SubscribeOptions};

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
    let token = format!("anna;exp={}", unix_now() + 3);
    let (_, first, pass) = Client::connect_with(&node, &token, "").await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
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
    let end = unix_now() + 4;
    let (mut client, first, pass) = Client::connect_with(&one, &format!("anna;exp={end}"), "").await;
    let newer = format!("anna;exp={}", end + 3600);
    let refresh = RefreshRequest { token: newer.clone() };
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
    old.send(Request::Publish(PublishRequest { channel: "log:a".into(), data: "1".into(), ..Default::default() }));
    old.idle(1).await;
    let history = other.history("log:a", crate::HistoryQuery { limit: -1, ..Default::default() }).await.unwrap();
    assert!(history.publications.is_empty());
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
