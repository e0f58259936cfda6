//! Subscriptions that the server makes, and orders from the server API.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{ConnectRequest, Disconnect, Encoding, PushEvent, ReplyResult, Request, SubscribeRequest};

use super::{Client, Cluster, api_publish, node, open_namespace, settings, text};
use crate::node::unix_now;
use crate::{NamespaceOptions, SubscribeOptions, Target};

fn user(user: &str) -> Target {
    Target { user: user.into(), ..Target::default() }
}

#[tokio::test(start_paused = true)]
async fn subscriptions_of_the_token_stand_in_the_connect_reply_and_recover() {
    let node = node(settings());
    let (client, first) = Client::connect_as(&node, "anna;subs=log:a,log:b").await;
    assert_eq!(first.subs.keys().collect::<Vec<_>>(), ["log:a", "log:b"]);
    drop(client);
    api_publish(&node, "log:a", 1).await;
    let mut client = Client::attach(&node, Encoding::Json);
    let mut request = ConnectRequest { token: "anna;subs=log:a,log:b".into(), ..ConnectRequest::default() };
    for (channel, result) in &first.subs {
        let since = SubscribeRequest {
            recover: true,
            offset: result.offset,
            epoch: result.epoch.clone(),
            ..SubscribeRequest::default()
        };
        request.subs.insert(channel.clone(), since);
    }
    let result = match client.call(Request::Connect(Box::new(request))).await.unwrap() {
        ReplyResult::Connect(result) => result,
        other => panic!("{other:?}"),
    };
    assert!(result.subs.values().all(|sub| sub.recovered));
    assert_eq!(text(&result.subs["log:a"].publications[0]), "1");
    assert!(result.subs["log:b"].publications.is_empty());
    api_publish(&node, "log:b", 2).await;
    let push = client.push().await;
    assert_eq!(push.channel, "log:b");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_cannot_be_refuses_the_connect() {
    let node = node(settings());
    let mut client = Client::attach(&node, Encoding::Json);
    let request = ConnectRequest { token: "anna;subs=nowhere:a".into(), ..ConnectRequest::default() };
    assert_eq!(client.call(Request::Connect(Box::new(request))).await.unwrap_err().code, 102);
}

#[tokio::test(start_paused = true)]
async fn the_api_subscribes_and_unsubscribes() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    let (mut other, _) = Client::connect_as(&node, "bert").await;
    api_publish(&node, "log:a", 0).await;
    let data = Bytes::from_static(b"{\"hello\":1}");
    let options = SubscribeOptions { data: data.clone(), ..SubscribeOptions::default() };
    node.subscribe(user("anna"), "log:a", options).await.unwrap();
    match client.push().await.event {
        PushEvent::Subscribe(push) => assert!(push.recoverable && push.offset > 0 && push.data == data),
        event => panic!("{event:?}"),
    }
    api_publish(&node, "log:a", 1).await;
    assert_eq!(text(&client.publication().await), "1");
    node.unsubscribe(user("anna"), "log:a", Unsubscribed::SERVER).await.unwrap();
    match client.push().await.event {
        PushEvent::Unsubscribe { code, .. } => assert_eq!(code, 2000),
        event => panic!("{event:?}"),
    }
    api_publish(&node, "log:a", 2).await;
    client.idle(1).await;
    other.idle(1).await;
    assert!(client.inbox.is_empty() && other.inbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn joins_and_leaves_are_pushed_where_the_namespace_forces_it() {
    for force_push_join_leave in [false, true] {
        let mut settings = settings();
        let namespace = NamespaceOptions { join_leave: true, force_push_join_leave, ..open_namespace("seen", 10) };
        settings.channel.namespaces.push(namespace);
        let node = node(settings);
        let (mut by_token, _) = Client::connect_as(&node, "anna;subs=seen:a").await;
        let (mut by_api, _) = Client::connect_as(&node, "bert").await;
        node.subscribe(user("bert"), "seen:a", SubscribeOptions::default()).await.unwrap();
        by_api.push().await;
        by_api.idle(1).await;
        by_token.idle(1).await;
        by_api.inbox.clear();
        by_token.inbox.clear();
        let mut other = Client::connect(&node).await;
        other.subscribe("seen:a", None).await.unwrap();
        drop(other);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        api_publish(&node, "seen:a", 1).await;
        for client in [&mut by_token, &mut by_api] {
            let events = [client.push().await.event];
            if !force_push_join_leave {
                assert!(matches!(events, [PushEvent::Publication(_)]), "{events:?}");
                continue;
            }
            assert!(matches!(events, [PushEvent::Join(_)]), "{events:?}");
            assert!(matches!(client.push().await.event, PushEvent::Leave(_)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_subscribes_with_recovery() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    let first = api_publish(&node, "log:a", 1).await.position.unwrap();
    api_publish(&node, "log:a", 2).await;
    let since = Some((first.offset, first.epoch.as_str().to_owned()));
    let options = SubscribeOptions { since, ..SubscribeOptions::default() };
    node.subscribe(user("anna"), "log:a", options).await.unwrap();
    assert!(matches!(client.push().await.event, PushEvent::Subscribe(push) if push.offset == first.offset));
    assert_eq!(text(&client.publication().await), "2");
}

#[tokio::test(start_paused = true)]
async fn the_api_disconnects_with_a_whitelist() {
    let node = node(settings());
    let (mut gone, _) = Client::connect_as(&node, "anna").await;
    let (mut kept, connected) = Client::connect_as(&node, "anna").await;
    node.disconnect(user("anna"), Disconnect::FORCE_NO_RECONNECT, vec![connected.client]).await.unwrap();
    assert_eq!(gone.close().await, Disconnect::FORCE_NO_RECONNECT);
    let (mut wordless, _) = Client::connect_as(&node, "bert").await;
    node.disconnect(user("bert"), Disconnect::custom(4500, ""), vec![]).await.unwrap();
    assert!(!wordless.close().await.reason.is_empty(), "SDKs come back after a close without a reason");
    kept.idle(1).await;
    assert!(kept.closed.is_none());
    assert!(node.disconnect(user(""), Disconnect::FORCE_NO_RECONNECT, vec![]).await.is_err());
    assert!(node.disconnect(user("anna"), Disconnect::custom(1000, "no"), vec![]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_api_refreshes() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    node.refresh(user("anna"), false, unix_now() + 100, None).await.unwrap();
    match client.push().await.event {
        PushEvent::Refresh { expires, ttl } => assert!(expires && ttl <= 100),
        event => panic!("{event:?}"),
    }
    node.refresh(user("anna"), true, 0, None).await.unwrap();
    assert_eq!(client.close().await, Disconnect::EXPIRED);
}

/// The entry is being made again, with other information, when the subscription ends.
#[tokio::test(start_paused = true)]
async fn an_entry_that_is_renewed_does_not_outlive_its_subscription() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    client.subscribe("log:a", None).await.unwrap();
    let info = || async {
        node.presence("log:a").await.unwrap().into_iter().map(|it| it.conn_info.clone()).collect::<Vec<_>>()
    };
    assert_eq!(info().await, [Bytes::new()]);
    cluster.join_ms.store(200, Ordering::Relaxed);
    let refresh = |info: &'static str| node.refresh(user("anna"), false, unix_now() + 100, Some(info.into()));
    refresh("1").await.unwrap();
    client.idle(1).await;
    assert_eq!(info().await, ["1"]);
    refresh("2").await.unwrap();
    while !matches!(client.push().await.event, PushEvent::Refresh { .. }) {}
    node.unsubscribe(user("anna"), "log:a", Unsubscribed { code: 2500, reason: "".into() }).await.unwrap();
    while !matches!(client.push().await.event, PushEvent::Unsubscribe { .. }) {}
    client.idle(2).await;
    assert!(info().await.is_empty(), "shown for ever");
}

#[tokio::test(start_paused = true)]
async fn shutdown_closes_everybody_with_a_code_that_brings_them_back() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let stopping = {
        let node = node.clone();
        tokio::spawn(async move { node.shutdown(std::time::Duration::from_secs(5)).await })
    };
    assert_eq!(client.close().await, Disconnect::SHUTDOWN);
    drop(client);
    assert_eq!(stopping.await.unwrap(), 0);
    assert!(!node.is_accepting());
}
