//! Who may have what, as published.

use plenum_protocol::{Disconnect, Encoding, PushEvent, ReplyResult, Request, SubscribeRequest};
use plenum_telemetry::AppendFailure;

use super::{Client, api_publish, node, open_namespace, settings, text};
use crate::node::unix_now;
use crate::{NamespaceOptions, Publish, RecoveryMode, Settings};

/// Clients may subscribe to `quiet:…`, ask for everything, and are allowed nothing else.
fn quiet() -> NamespaceOptions {
    NamespaceOptions {
        join_leave: true,
        force_recovery: false,
        allow_presence_for_client: false,
        allow_history_for_client: false,
        ..open_namespace("quiet", 10)
    }
}

fn with(namespace: NamespaceOptions) -> Settings {
    let mut settings = settings();
    settings.channel.namespaces.push(namespace);
    settings
}

async fn ask(client: &mut Client, channel: &str) -> plenum_protocol::SubscribeResult {
    let request = SubscribeRequest {
        channel: channel.into(),
        positioned: true,
        recoverable: true,
        join_leave: true,
        ..SubscribeRequest::default()
    };
    match client.call(Request::Subscribe(Box::new(request))).await {
        Ok(ReplyResult::Subscribe(result)) => *result,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn joins_are_told_on_request_to_those_who_may_read_presence() {
    for allowed in [false, true] {
        let node = node(with(NamespaceOptions { allow_presence_for_subscriber: allowed, ..quiet() }));
        let mut client = Client::connect(&node).await;
        ask(&mut client, "quiet:a").await;
        let mut other = Client::connect(&node).await;
        ask(&mut other, "quiet:a").await;
        api_publish(&node, "quiet:a", 1).await;
        let first = client.push().await.event;
        // Without the permission the publication is the first to arrive.
        assert_eq!(matches!(first, PushEvent::Join(_)), allowed, "{first:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_read_history_may_have_positions_and_recovery() {
    for allowed in [false, true] {
        let node = node(with(NamespaceOptions { allow_history_for_subscriber: allowed, ..quiet() }));
        let mut client = Client::connect(&node).await;
        let result = ask(&mut client, "quiet:a").await;
        assert_eq!((result.positioned, result.recoverable), (allowed, allowed));
    }
}

#[tokio::test(start_paused = true)]
async fn the_insecure_mode_allows_all_but_private_channels_and_never_expires() {
    let mut settings = with(quiet());
    settings.client.insecure = true;
    let node = node(settings);
    let (mut client, connected) = Client::connect_as(&node, &format!("anna;exp={}", unix_now() + 5)).await;
    assert!(!connected.expires);
    client.subscribe("closed:a", None).await.unwrap();
    client.publish("closed:b", "1").await.unwrap();
    assert_eq!(client.subscribe("$closed:a", None).await.unwrap_err().code, 103);
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_user_is_refused_where_settings_say_so() {
    let mut settings = settings();
    settings.client.disallow_anonymous_connection_tokens = true;
    let node = node(settings);
    let mut client = Client::attach(&node, Encoding::Json);
    let request = plenum_protocol::ConnectRequest { token: ";exp=0".into(), ..Default::default() };
    client.send(Request::Connect(Box::new(request)));
    assert_eq!(client.close().await, Disconnect::PERMISSION_DENIED);
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_holds_nothing_is_an_error_for_those_who_ask_for_one() {
    let node =
        node(with(NamespaceOptions { force_recovery: true, force_recovery_mode: RecoveryMode::Cache, ..quiet() }));
    let mut client = Client::connect(&node).await;
    let request = SubscribeRequest {
        channel: "quiet:a".into(),
        recover: true,
        offset: 5,
        epoch: "other".into(),
        flag: plenum_protocol::subscribe_flag::REJECT_UNRECOVERED,
        ..SubscribeRequest::default()
    };
    let outcome = client.call(Request::Subscribe(Box::new(request.clone()))).await;
    assert_eq!(outcome.unwrap_err().code, 112);
    api_publish(&node, "quiet:a", 1).await;
    match client.call(Request::Subscribe(Box::new(request))).await {
        Ok(ReplyResult::Subscribe(result)) => {
            assert_eq!((result.recovered, text(&result.publications[0])), (true, "1"))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_holds_without_history_too() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    client.subscribe("log:a", None).await.unwrap();
    for (key, data) in [("one", "1"), ("one", "2"), ("two", "3")] {
        let publish = Publish {
            channel: "log:a".into(),
            data: data.into(),
            idempotency_key: key.into(),
            skip_history: true,
            ..Publish::default()
        };
        assert_eq!(node.publish(publish).await.unwrap().position, None);
    }
    assert_eq!(text(&client.publication().await), "1");
    assert_eq!(text(&client.publication().await), "3");
}

#[tokio::test(start_paused = true)]
async fn idempotency_keys_without_history_are_forgotten_for_newer_ones() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    client.subscribe("live:a", None).await.unwrap();
    let publish = async |data: &str| {
        let publish = Publish {
            channel: "live:a".into(),
            data: data.to_owned().into(),
            idempotency_key: "first".into(),
            skip_history: true,
            ..Publish::default()
        };
        node.publish(publish).await.unwrap();
    };
    let newer = |keys: std::ops::Range<u64>| {
        let now = node.uptime_ms();
        keys.for_each(|key| node.announced.lock().insert((key, key), 0, now));
    };
    publish("1").await;
    newer(1..1 << 16);
    publish("2").await;
    newer(1 << 16..(1 << 16) + 1);
    publish("3").await;
    assert_eq!(text(&client.publication().await), "1");
    assert_eq!(text(&client.publication().await), "3");
}

#[tokio::test(start_paused = true)]
async fn the_log_is_measured() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    client.subscribe("log:a", None).await.unwrap();
    api_publish(&node, "log:a", 1).await;
    client.publication().await;
    node.history("log:a", crate::HistoryQuery { limit: -1, ..Default::default() }).await.unwrap();
    let metrics = node.metrics();
    assert_eq!(metrics.publications_received.get(), 1);
    assert_eq!(metrics.log_append_seconds.get_sample_count(), 1);
    assert!(metrics.log_read_seconds.get_sample_count() >= 1);
    assert_eq!(metrics.append_failures(AppendFailure::Unavailable).get(), 0);
}
