//! Limits that hold for all replicas together.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{
    ConnectRequest, Disconnect, Encoding, ErrorReply, PublishRequest, Request, RpcRequest, SubscribeRequest,
    UnsubscribeRequest,
};

use super::{Client, Cluster, open_namespace, settings};
use crate::{CommandRates, Link, NamespaceOptions, Node, Settings, rate};

fn limited() -> Settings {
    let mut settings = settings();
    settings.client.user_connection_limit = 2;
    settings.channel.namespaces.push(NamespaceOptions { subscriber_limit: 2, ..open_namespace("small", 10) });
    settings.channel.namespaces.push(NamespaceOptions { session: true, ..open_namespace("meeting", 10) });
    settings
}

async fn refused(node: &Arc<Node>, token: &str) -> Disconnect {
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

#[tokio::test(start_paused = true)]
async fn a_session_of_people_has_50_subscribers_on_all_replicas() {
    let mut cluster = Cluster::new();
    let nodes = [cluster.replica(limited()), cluster.replica(limited())];
    let mut clients = Vec::new();
    for n in 0..51 {
        let mut client = Client::connect(&nodes[n % 2]).await;
        let outcome = subscribe(&mut client, "meeting:a").await;
        assert_eq!(outcome.err().map(|error| error.code), (n == 50).then_some(ErrorCode::LIMIT_EXCEEDED.code), "{n}");
        clients.push(client);
    }
}

#[tokio::test(start_paused = true)]
async fn what_presence_cannot_say_is_a_temporary_error_with_its_reason() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(limited());
    let mut client = Client::connect(&node).await;
    cluster.away.store(true, Ordering::Relaxed);
    let error = subscribe(&mut client, "log:a").await.unwrap_err();
    assert_eq!((error.code, error.temporary), (ErrorCode::INTERNAL.code, true));
    assert_eq!(error.message, "presence is unavailable: Redis does not answer");
    cluster.away.store(false, Ordering::Relaxed);
    subscribe(&mut client, "log:a").await.unwrap();
}

/// Connects from an address, as a transport would have it.
async fn connect_from(node: &Arc<Node>, address: &str, token: &str) -> Result<Client, ErrorReply> {
    let link = Link { encoding: Encoding::Json, user: None, address: Some(address.parse().unwrap()) };
    let mut client = Client::around(node.accept(link).unwrap(), Encoding::Json);
    let request = ConnectRequest { token: token.into(), ..ConnectRequest::default() };
    client.call(Request::Connect(Box::new(request))).await?;
    Ok(client)
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_often_is_told_so_and_stays_connected() {
    let mut limited = limited();
    let rate = |text| rate::parse(text);
    limited.client.user_connection_limit = 0;
    limited.client.rate_limit.address = CommandRates { connect: rate("3/10s"), ..CommandRates::default() };
    limited.client.rate_limit.user =
        CommandRates { connect: rate("2/10s"), subscribe: rate("2/1s"), publish: rate("3/1s"), rpc: rate("1/1s") };
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(limited.clone()), cluster.replica(limited));
    let too_often = ErrorCode::TOO_MANY_REQUESTS.code;
    let mut anna = connect_from(&one, "192.0.2.1", "anna").await.unwrap();
    let mut again = connect_from(&other, "192.0.2.1", "anna").await.unwrap();
    assert_eq!(connect_from(&other, "192.0.2.1", "anna").await.err().unwrap().code, too_often, "all of anna's");
    assert_eq!(connect_from(&one, "192.0.2.1", "berta").await.err().unwrap().code, too_often, "all of the address");
    connect_from(&one, "192.0.2.2", "berta").await.unwrap();

    for (client, outcomes) in [(&mut anna, [true, true, false]), (&mut again, [true, true, false])] {
        for (channel, allowed) in ["log:a", "log:b", "log:c"].into_iter().zip(outcomes) {
            assert_eq!(subscribe(client, channel).await.is_ok(), allowed, "{channel}: each replica by itself");
        }
    }
    let publish = || {
        let request = PublishRequest { channel: "log:a".into(), data: "1".into(), ..PublishRequest::default() };
        Request::Publish(request)
    };
    anna.call(publish()).await.unwrap();
    again.call(publish()).await.unwrap();
    anna.call(publish()).await.unwrap();
    for client in [&mut again, &mut anna] {
        let refused = client.call(publish()).await.unwrap_err();
        assert_eq!((refused.code, refused.temporary), (too_often, true), "all replicas together");
    }
    let rpc = || Request::Rpc(RpcRequest::default());
    assert_eq!(anna.call(rpc()).await.unwrap_err().code, ErrorCode::NOT_AVAILABLE.code);
    assert_eq!(anna.call(rpc()).await.unwrap_err().code, too_often);
    anna.idle(2).await;
    anna.call(publish()).await.unwrap();
    subscribe(&mut anna, "log:c").await.unwrap();
}

/// A connection and the one that it came back as are one session; who is not authenticated is none.
#[tokio::test(start_paused = true)]
async fn sessions_are_client_ids() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let stranger = Client::attach(&one, Encoding::Json);
    let (tab, _) = Client::connect_as(&one, "anna").await;
    let (old, _, pass) = Client::connect_with(&one, "anna", "").await;
    assert_eq!((one.registry.len(), one.registry.num_sessions()), (3, 2));
    let (new, _, pass) = Client::connect_with(&one, "anna", &pass).await;
    assert_eq!((one.registry.len(), one.registry.num_sessions()), (4, 2), "beside the old one");
    drop(old);
    assert_eq!((one.registry.len(), one.registry.num_sessions()), (3, 2));
    let (_newest, ..) = Client::connect_with(&other, "anna", &pass).await;
    drop(new);
    assert_eq!((one.registry.num_sessions(), other.registry.num_sessions()), (1, 1));
    drop((stranger, tab));
    assert_eq!((one.registry.len(), one.registry.num_sessions()), (0, 0));
    assert_eq!(other.stats().await.unwrap().total.sessions, 1);
}
