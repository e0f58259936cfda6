//! Blocks and revocations.

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::{ConnectRequest, Disconnect, Encoding, RefreshRequest, Request, SubscribeRequest};
use tokio::time::Instant;

use super::ledger::FarLedger;
use super::{Client, Cluster, settings};
use crate::node::unix_now;
use crate::{ConnectionClaims, Node, OperationError, Target};

/// What a connect with this token comes to: 0, an error's code, or the code of the close.
pub(super) async fn connect(node: &Arc<Node>, token: &str, data: String) -> u32 {
    let mut client = Client::attach(node, Encoding::Json);
    let request = ConnectRequest { token: token.into(), data: data.into(), ..ConnectRequest::default() };
    let id = client.send(Request::Connect(Box::new(request)));
    while client.inbox.is_empty() {
        if !client.more().await {
            return client.closed.unwrap().code.into();
        }
    }
    client.answer(id).await.map_or_else(|error| error.code, |_| 0)
}

#[tokio::test(start_paused = true)]
async fn a_blocked_user_is_out_everywhere_within_a_second() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut here, _, pass) = Client::connect_with(&one, "anna", "").await;
    let (mut there, _) = Client::connect_as(&other, "anna").await;
    let (mut bert, _) = Client::connect_as(&other, "bert").await;
    let began = Instant::now();
    one.block_user("anna", 0).await.unwrap();
    assert_eq!(here.close().await, Disconnect::PERMISSION_DENIED);
    assert_eq!(there.close().await, Disconnect::PERMISSION_DENIED);
    assert!(began.elapsed() <= Duration::from_secs(1), "{:?}", began.elapsed());
    let carried = serde_json::json!({ "plenum": { "resume": pass } }).to_string();
    for node in [&one, &other] {
        assert_eq!(connect(node, "anna", String::new()).await, 3507);
        assert_eq!(connect(node, "anna", carried.clone()).await, 3507, "a blocked user does not resume");
    }
    bert.call(Request::Ping).await.unwrap();
    other.unblock_user("anna").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(connect(&one, "anna", String::new()).await, 0);
}

/// The entries are the cluster's: a replica that starts, or was away, knows them before it admits anybody.
#[tokio::test(start_paused = true)]
async fn a_replica_that_starts_knows_who_is_blocked() {
    let mut cluster = Cluster::new();
    let one = cluster.replica(settings());
    one.block_user("anna", 0).await.unwrap();
    one.block_user(&"long ".repeat(200), 0).await.unwrap();
    one.revoke_token("spilled", 0).await.unwrap();
    let late = cluster.replica(settings());
    assert_eq!(connect(&late, "anna", String::new()).await, 3507);
    assert_eq!(connect(&late, &"long ".repeat(200), String::new()).await, 3507);
    assert_eq!(connect(&late, "bert;jti=spilled", String::new()).await, 113);
    assert_eq!(connect(&late, "bert;jti=other", String::new()).await, 0);
}

/// Nobody is let in before, and who asks hears why before giving up: released clients wait 5 s for the reply.
#[tokio::test(start_paused = true)]
async fn a_connect_before_it_is_known_who_is_blocked_is_told_why() {
    let ledger = FarLedger::new();
    ledger.set_away(true);
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (mut client, began) = (Client::attach(&node, Encoding::Json), Instant::now());
    let request = ConnectRequest { token: "anna".into(), ..ConnectRequest::default() };
    let error = client.call(Request::Connect(Box::new(request))).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
    assert!(error.message.contains("who is blocked"), "{error:?}");
    ledger.set_away(false);
    assert_eq!(connect(&node, "anna", String::new()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_block_ends_by_itself() {
    let mut cluster = Cluster::new();
    let one = cluster.replica(settings());
    one.block_user("anna", unix_now() - 1).await.unwrap();
    assert_eq!(connect(&one, "anna", String::new()).await, 0, "over before it began");
    one.block_user("anna", unix_now() + 3).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (mut codes, deadline) = (Vec::new(), std::time::Instant::now() + Duration::from_secs(20));
    while codes.last() != Some(&0) {
        codes.push(connect(&one, "anna", String::new()).await);
        // The end is a time of day, which does not follow the test's clock.
        std::thread::sleep(Duration::from_millis(100));
        assert!(std::time::Instant::now() < deadline, "{codes:?}");
    }
    assert!(codes.contains(&3507), "{codes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_grants_nothing_more() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut client, _, pass) = Client::connect_with(&other, "anna;jti=a", "").await;
    let (mut spared, _) = Client::connect_as(&other, "anna;jti=b").await;
    one.revoke_token("a", 0).await.unwrap();
    assert_eq!(client.close().await, Disconnect::INVALID_TOKEN);
    let carried = serde_json::json!({ "plenum": { "resume": pass } }).to_string();
    assert_eq!(connect(&one, "anna;jti=a", String::new()).await, 113);
    assert_eq!(connect(&one, "anna;jti=a", carried.clone()).await, 113);
    // Nor does it lengthen a connection that was made with another one, which stays.
    let refresh = RefreshRequest { token: "anna;jti=a".into() };
    assert_eq!(spared.call(Request::Refresh(refresh)).await.unwrap_err().code, 113);
    spared.call(Request::Ping).await.unwrap();
}

/// What is called back between the check of a newer token and its taking over finds no connection with it.
#[tokio::test(start_paused = true)]
async fn a_token_that_is_called_back_during_the_refresh_closes() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut client, _) = Client::connect_as(&node, "anna;jti=first").await;
    node.revoke_token("spilled", 0).await.unwrap();
    client.idle(1).await;
    let claims = ConnectionClaims { user: "anna".into(), token_id: "spilled".into(), ..ConnectionClaims::default() };
    client.session.refreshed(7, Ok(Box::new(claims)));
    assert_eq!(client.close().await, Disconnect::INVALID_TOKEN);
}

#[tokio::test(start_paused = true)]
async fn tokens_issued_before_a_time_are_void() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut old, _) = Client::connect_as(&node, "anna;iat=100").await;
    let (mut new, _) = Client::connect_as(&node, "anna;iat=300").await;
    node.invalidate_user_tokens("anna", "", 200, 0).await.unwrap();
    assert_eq!(old.close().await, Disconnect::INVALID_TOKEN);
    new.call(Request::Ping).await.unwrap();
    for (token, code) in [("anna;iat=199", 113), ("anna", 113), ("anna;iat=200", 0), ("bert;iat=1", 0)] {
        assert_eq!(connect(&node, token, String::new()).await, code, "{token}");
    }
    let subscribe = |token: &str| {
        let token = token.to_owned();
        Request::Subscribe(Box::new(SubscribeRequest { channel: "log:a".into(), token, ..Default::default() }))
    };
    node.invalidate_user_tokens("anna", "log:a", 0, 0).await.unwrap();
    node.revoke_token("s", 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = new.call(subscribe("anna;channel=log:a")).await;
    assert_eq!(refused.unwrap_err().code, 113);
}

#[tokio::test(start_paused = true)]
async fn ids_have_bounds() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    for id in ["", "x".repeat(1025).as_str()] {
        let refused = node.block_user(id, 0).await;
        assert!(matches!(refused, Err(OperationError::BadRequest { field: "user", .. })), "{refused:?}");
    }
    let nobody = node.disconnect(Target::default(), Disconnect::FORCE_NO_RECONNECT, Vec::new()).await;
    assert!(matches!(nobody, Err(OperationError::BadRequest { .. })), "{nobody:?}");
}
