//! Connections that come back.

mod changes;
mod ledger;
mod passes;
mod seen;

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::{ConnectResult, Disconnect, PushEvent, Reply, Request};
use plenum_telemetry::Resume;

use super::{Client, Cluster, settings};
use crate::Node;

pub(super) const LOST: Disconnect = Disconnect::CONNECTION_CLOSED;

fn outcomes(node: &Node, outcome: Resume) -> u64 {
    node.metrics.resumes(outcome).get()
}

fn channels(result: &ConnectResult) -> Vec<&str> {
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
pub(super) async fn seen(observer: &mut Client) -> Option<(&'static str, String)> {
    observer.call(Request::Ping).await.unwrap();
    let push = tokio::time::timeout(Duration::from_secs(12), observer.push()).await.ok()?;
    match push.event {
        PushEvent::Join(info) => Some(("join", info.client)),
        PushEvent::Leave(info) => Some(("leave", info.client)),
        other => panic!("{other:?}"),
    }
}

/// An observer of `room:a` on one replica, and a member there that has just joined on `at`.
pub(super) async fn room(observing: &Arc<Node>, at: &Arc<Node>) -> (Client, Client, String, String) {
    let mut observer = Client::connect(observing).await;
    observer.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await.unwrap().0, "join", "its own");
    let (mut client, result, pass) = Client::connect_with(at, "anna", "").await;
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client.clone())));
    (observer, client, result.client, pass)
}

pub(super) async fn present(node: &Node, client: &str) -> bool {
    node.presence("room:a").await.unwrap().iter().any(|member| member.client == client)
}
