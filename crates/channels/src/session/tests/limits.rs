//! Limits that hold for all replicas together.

use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{Disconnect, Encoding, ErrorReply, Request, SubscribeRequest, UnsubscribeRequest};

use super::{Client, Cluster, open_namespace, settings};
use crate::{NamespaceOptions, Settings};

fn limited() -> Settings {
    let mut settings = settings();
    settings.client.user_connection_limit = 2;
    settings.channel.namespaces.push(NamespaceOptions { subscriber_limit: 2, ..open_namespace("small", 10) });
    settings
}

async fn refused(node: &std::sync::Arc<crate::Node>, token: &str) -> Disconnect {
    let mut client = Client::attach(node, Encoding::Json);
    client.session.receive(format!("{{\"id\":1,\"connect\":{{\"token\":\"{token}\"}}}}").as_bytes());
    client.close().await
}

async fn subscribe(client: &mut Client, channel: &str) -> Result<(), ErrorReply> {
    let request = SubscribeRequest { channel: channel.into(), ..SubscribeRequest::default() };
    client.call(Request::Subscribe(Box::new(request))).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_user_are_counted_on_all_replicas() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(limited()), cluster.replica(limited()));
    let (first, _) = Client::connect_as(&one, "anna").await;
    let (second, _) = Client::connect_as(&other, "anna").await;
    assert_eq!(refused(&one, "anna").await, Disconnect::CONNECTION_LIMIT);
    assert_eq!(refused(&other, "anna").await, Disconnect::CONNECTION_LIMIT);
    Client::connect_as(&one, "berta").await;
    drop(second);
    let (third, _) = Client::connect_as(&one, "anna").await;
    drop((first, third));
    // Anonymous users are nobody in particular.
    let mut nobodies = Vec::new();
    for _ in 0..5 {
        nobodies.push(Client::connect(&one).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_comes_back_is_not_counted_twice() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(limited()), cluster.replica(limited()));
    let (_first, _) = Client::connect_as(&one, "anna").await;
    let (old, before, pass) = Client::connect_with(&one, "anna;subs=small:a", "").await;
    let (resumed, after, pass) = Client::connect_with(&other, "anna", &pass).await;
    assert_eq!(before.client, after.client);
    drop(old);
    assert_eq!(refused(&one, "anna").await, Disconnect::CONNECTION_LIMIT, "the resumed one counts");
    let (again, last, _) = Client::connect_with(&other, "anna", &pass).await;
    assert_eq!(before.client, last.client);
    drop(resumed);
    assert_eq!(refused(&other, "anna").await, Disconnect::CONNECTION_LIMIT);
    drop(again);
    Client::connect_as(&other, "anna").await;
}

#[tokio::test(start_paused = true)]
async fn subscribers_of_a_channel_are_counted_on_all_replicas() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(limited()), cluster.replica(limited()));
    let mut clients = Vec::new();
    for node in [&one, &other, &other] {
        clients.push(Client::connect(node).await);
    }
    let [first, second, third] = &mut clients[..] else { panic!("three clients") };
    subscribe(first, "small:a").await.unwrap();
    subscribe(second, "small:a").await.unwrap();
    assert_eq!(subscribe(third, "small:a").await.unwrap_err().code, ErrorCode::LIMIT_EXCEEDED.code);
    subscribe(third, "small:b").await.unwrap();
    subscribe(third, "log:a").await.unwrap();
    first.call(Request::Unsubscribe(UnsubscribeRequest { channel: "small:a".into() })).await.unwrap();
    subscribe(third, "small:a").await.unwrap();
    assert_eq!(subscribe(first, "small:a").await.unwrap_err().code, ErrorCode::LIMIT_EXCEEDED.code);
    clients.pop();
    subscribe(&mut clients[0], "small:a").await.unwrap();
}
