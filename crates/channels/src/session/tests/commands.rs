//! Each command: what it answers, and what it refuses with which code.

use plenum_protocol::{
    ConnectRequest, Disconnect, Encoding, ErrorReply, HistoryRequest, PresenceRequest, PresenceStatsRequest, PushEvent,
    RefreshRequest, ReplyResult, Request, RpcRequest, SendRequest, StreamPosition, SubRefreshRequest, SubscribeRequest,
    UnsubscribeRequest,
};

use super::{Client, api_publish, node, settings, text};
use crate::node::unix_now;

fn code<T: std::fmt::Debug>(result: Result<T, ErrorReply>) -> u32 {
    result.unwrap_err().code
}

#[tokio::test(start_paused = true)]
async fn a_publication_reaches_subscribers_in_both_encodings_untouched() {
    let node = node(settings());
    let payload = r#"{"z":1,"a":123456789012345678901234567890,"s":"\u00e9"}"#;
    let mut json = Client::connect(&node).await;
    let mut protobuf = Client::attach(&node, Encoding::Protobuf);
    protobuf.call(Request::Connect(Box::default())).await.unwrap();
    json.subscribe("log:a", None).await.unwrap();
    protobuf.subscribe("log:a", None).await.unwrap();
    json.publish("log:a", payload).await.unwrap();
    for client in [&mut json, &mut protobuf] {
        let publication = client.publication().await;
        assert_eq!(text(&publication), payload);
        assert!(publication.offset > 0);
        assert!(publication.info.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_without_history_shows_no_offset() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let result = client.subscribe("live:a", None).await.unwrap();
    assert!(!result.positioned && !result.recoverable && result.epoch.is_empty());
    client.publish("live:a", "1").await.unwrap();
    assert_eq!(client.publication().await.offset, 0);
}

#[tokio::test(start_paused = true)]
async fn connect_comes_first_and_once() {
    let node = node(settings());
    let mut early = Client::attach(&node, Encoding::Json);
    early.send(Request::Ping);
    assert_eq!(early.close().await, Disconnect::BAD_REQUEST);

    let mut twice = Client::connect(&node).await;
    twice.send(Request::Connect(Box::default()));
    assert_eq!(twice.close().await, Disconnect::BAD_REQUEST);

    let mut unknown = Client::connect(&node).await;
    unknown.send(Request::Unknown);
    assert_eq!(unknown.close().await, Disconnect::BAD_REQUEST);

    let mut malformed = Client::connect(&node).await;
    malformed.session.receive(b"{");
    assert_eq!(malformed.close().await, Disconnect::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn commands_in_the_frame_of_connect_run_after_it_and_are_dropped_when_it_is_refused() {
    let node = node(settings());
    let mut client = Client::attach(&node, Encoding::Json);
    client.session.receive(
        b"{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"log:a\"}}\n{\"id\":3,\"ping\":{}}",
    );
    client.answer(1).await.unwrap();
    client.answer(2).await.unwrap();
    client.answer(3).await.unwrap();

    let mut refused = Client::attach(&node, Encoding::Json);
    refused
        .session
        .receive(b"{\"id\":1,\"connect\":{\"token\":\"late\"}}\n{\"id\":2,\"subscribe\":{\"channel\":\"log:a\"}}");
    assert_eq!(code(refused.answer(1).await), 109);
    refused.idle(5).await;
    assert!(refused.inbox.is_empty() && refused.closed.is_none(), "{:?}", refused.inbox);
    assert_eq!(refused.close().await, Disconnect::STALE);
}

#[tokio::test(start_paused = true)]
async fn who_may_connect() {
    let mut strict = settings();
    strict.client.allow_anonymous_connect_without_token = false;
    let node = node(strict);
    for (token, expected) in [("", Disconnect::BAD_REQUEST), ("bad", Disconnect::INVALID_TOKEN)] {
        let mut client = Client::attach(&node, Encoding::Json);
        client.send(Request::Connect(Box::new(ConnectRequest { token: token.into(), ..Default::default() })));
        assert_eq!(client.close().await, expected, "{token:?}");
    }
    let (_, result) = Client::connect_as(&node, &format!("anna;exp={}", unix_now() + 60)).await;
    assert!(result.expires && (58..=60).contains(&result.ttl), "{result:?}");
    assert!(result.ping > 0 && result.pong);
}

#[tokio::test(start_paused = true)]
async fn subscribe_refuses() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    client.subscribe("log:a", None).await.unwrap();
    assert_eq!(code(client.subscribe("log:a", None).await), 105);
    assert_eq!(code(client.subscribe("nowhere:a", None).await), 102);
    assert_eq!(code(client.subscribe("closed:a", None).await), 103);
    assert_eq!(code(client.subscribe("$log:a", None).await), 103, "private");
    assert_eq!(code(client.subscribe("", None).await), 107);
    assert_eq!(code(client.subscribe(&format!("log:{}", "x".repeat(300)), None).await), 107);
    let other = SubscribeRequest { channel: "log:b".into(), kind: 1, ..Default::default() };
    assert_eq!(code(client.call(Request::Subscribe(Box::new(other))).await), 108);
    let filtered = SubscribeRequest { channel: "log:b".into(), tf: Some(Default::default()), ..Default::default() };
    assert_eq!(code(client.call(Request::Subscribe(Box::new(filtered))).await), 108);
}

#[tokio::test(start_paused = true)]
async fn a_subscription_token_must_match_user_channel_and_client() {
    let node = node(settings());
    let (mut client, connected) = Client::connect_as(&node, "anna").await;
    let mine = format!("anna;channel=closed:a;client={}", connected.client);
    let with = |token: &str| {
        Request::Subscribe(Box::new(SubscribeRequest {
            channel: "closed:a".into(),
            token: token.into(),
            ..Default::default()
        }))
    };
    assert_eq!(code(client.call(with("bad")).await), 103);
    for token in ["bert;channel=closed:a", "anna;channel=closed:b", "anna;channel=closed:a;client=other"] {
        let (mut refused, _) = Client::connect_as(&node, "anna").await;
        refused.send(with(token));
        assert_eq!(refused.close().await, Disconnect::INVALID_TOKEN, "{token}");
    }
    assert_eq!(code(client.call(with("late")).await), 109);
    client.call(with(&mine)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_refreshed_by_a_token_that_is_not_past() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    let token = |seconds: u64| format!("anna;channel=closed:a;exp={}", unix_now() + seconds);
    let subscribe = SubscribeRequest { channel: "closed:a".into(), token: token(3600), ..Default::default() };
    match client.call(Request::Subscribe(Box::new(subscribe))).await.unwrap() {
        ReplyResult::Subscribe(result) => assert!(result.expires && result.ttl > 3500),
        other => panic!("{other:?}"),
    }
    let refresh = SubRefreshRequest { channel: "closed:a".into(), token: token(60), ..Default::default() };
    match client.call(Request::SubRefresh(refresh)).await.unwrap() {
        ReplyResult::SubRefresh(result) => assert!(result.expires && result.ttl <= 60),
        other => panic!("{other:?}"),
    }
    let gone = SubRefreshRequest { channel: "closed:b".into(), token: token(60), ..Default::default() };
    assert_eq!(code(client.call(Request::SubRefresh(gone)).await), 107);
    let past = SubRefreshRequest {
        channel: "closed:a".into(),
        token: "anna;channel=closed:a;exp=1".into(),
        ..Default::default()
    };
    assert_eq!(code(client.call(Request::SubRefresh(past)).await), 110);
}

#[tokio::test(start_paused = true)]
async fn a_refreshed_subscription_shows_the_info_of_its_new_token() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, "anna").await;
    let token = |info: &str| format!("anna;channel=log:a;info={info}");
    let subscribe = SubscribeRequest { channel: "log:a".into(), token: token("1"), ..Default::default() };
    client.call(Request::Subscribe(Box::new(subscribe))).await.unwrap();
    for info in ["1", "2", ""] {
        let refresh = SubRefreshRequest { channel: "log:a".into(), token: token(info), ..Default::default() };
        client.call(Request::SubRefresh(refresh)).await.unwrap();
        // Waits in line behind the presence entry.
        client.publish("log:a", "0").await.unwrap();
        assert_eq!(client.publication().await.info.unwrap().chan_info, info);
        let members = node.presence("log:a").await.unwrap();
        assert_eq!(members.iter().map(|member| &member.chan_info[..]).collect::<Vec<_>>(), [info.as_bytes()]);
    }
}

#[tokio::test(start_paused = true)]
async fn refresh_extends_and_another_user_is_refused() {
    let node = node(settings());
    let (mut client, _) = Client::connect_as(&node, &format!("anna;exp={}", unix_now() + 60)).await;
    let refresh = |token: String| Request::Refresh(RefreshRequest { token });
    match client.call(refresh(format!("anna;exp={}", unix_now() + 600))).await.unwrap() {
        ReplyResult::Refresh(result) => assert!(result.expires && result.ttl > 500),
        other => panic!("{other:?}"),
    }
    for (token, expected) in [("late", Disconnect::EXPIRED), ("bert", Disconnect::INVALID_TOKEN)] {
        let (mut client, _) = Client::connect_as(&node, "anna").await;
        client.send(refresh(token.into()));
        assert_eq!(client.close().await, expected, "{token}");
    }
}

#[tokio::test(start_paused = true)]
async fn history_pages_both_ways() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    for number in 1..=5 {
        api_publish(&node, "log:a", number).await;
    }
    let mut history = async |limit, since, reverse| {
        let request = HistoryRequest { channel: "log:a".into(), limit, since, reverse };
        match client.call(Request::History(request)).await {
            Ok(ReplyResult::History(result)) => Ok(result),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code),
        }
    };
    let texts = |result: &plenum_protocol::HistoryResult| {
        result.publications.iter().map(|publication| text(publication).to_owned()).collect::<Vec<_>>().concat()
    };
    let top = history(0, None, false).await.unwrap();
    assert!(top.publications.is_empty() && top.offset > 0);
    let first = history(2, None, false).await.unwrap();
    assert_eq!(texts(&first), "12");
    let since = |result: &plenum_protocol::HistoryResult| {
        result.publications.last().map(|last| StreamPosition { offset: last.offset, epoch: result.epoch.clone() })
    };
    let second = history(2, since(&first), false).await.unwrap();
    assert_eq!(texts(&second), "34");
    let newest = history(2, None, true).await.unwrap();
    assert_eq!(texts(&newest), "54");
    assert_eq!(texts(&history(9, since(&newest), true).await.unwrap()), "321");
    assert_eq!(texts(&history(-1, None, false).await.unwrap()), "12345");
    let foreign = Some(StreamPosition { offset: 1, epoch: "foreign".into() });
    assert_eq!(history(1, foreign, false).await, Err(112));
}

#[tokio::test(start_paused = true)]
async fn presence_and_its_counts() {
    let node = node(settings());
    let (mut anna, first) = Client::connect_as(&node, "anna").await;
    let (mut again, _) = Client::connect_as(&node, "anna").await;
    anna.subscribe("log:a", None).await.unwrap();
    again.subscribe("log:a", None).await.unwrap();
    match anna.call(Request::Presence(PresenceRequest { channel: "log:a".into() })).await.unwrap() {
        ReplyResult::Presence(result) => {
            assert_eq!(result.presence.len(), 2);
            assert_eq!(result.presence[&first.client].user, "anna");
        }
        other => panic!("{other:?}"),
    }
    again.call(Request::Unsubscribe(UnsubscribeRequest { channel: "log:a".into() })).await.unwrap();
    match anna.call(Request::PresenceStats(PresenceStatsRequest { channel: "log:a".into() })).await.unwrap() {
        ReplyResult::PresenceStats(result) => assert_eq!((result.num_clients, result.num_users), (1, 1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(code(anna.call(Request::Presence(PresenceRequest { channel: "closed:a".into() })).await), 108);
    let mut node_settings = settings();
    node_settings.channel.namespaces[0].allow_presence_for_anonymous = false;
    let mut anonymous = Client::connect(&self::node(node_settings)).await;
    assert_eq!(code(anonymous.call(Request::Presence(PresenceRequest { channel: "log:a".into() })).await), 103);
}

#[tokio::test(start_paused = true)]
async fn joins_and_leaves_are_told() {
    let node = node(settings());
    let mut watcher = Client::connect(&node).await;
    watcher.subscribe("room:a", None).await.unwrap();
    assert!(matches!(watcher.push().await.event, PushEvent::Join(_)), "its own");
    let (mut anna, _) = Client::connect_as(&node, "anna").await;
    anna.subscribe("room:a", None).await.unwrap();
    match watcher.push().await.event {
        PushEvent::Join(info) => assert_eq!(info.user, "anna"),
        other => panic!("{other:?}"),
    }
    drop(anna);
    match watcher.push().await.event {
        PushEvent::Leave(info) => assert_eq!(info.user, "anna"),
        other => panic!("{other:?}"),
    }
    watcher.call(Request::PresenceStats(PresenceStatsRequest { channel: "room:a".into() })).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rpc_and_send_have_nobody_to_go_to() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    assert_eq!(code(client.call(Request::Rpc(RpcRequest::default())).await), 108);
    client.send(Request::Send(SendRequest::default()));
    assert_eq!(client.close().await, Disconnect::NOT_AVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_json_end_a_json_connection_only() {
    let node = node(settings());
    let mut json = Client::connect(&node).await;
    let mut protobuf = Client::attach(&node, Encoding::Protobuf);
    protobuf.call(Request::Connect(Box::default())).await.unwrap();
    json.subscribe("log:a", None).await.unwrap();
    protobuf.subscribe("log:a", None).await.unwrap();
    api_publish(&node, "log:a", "not json").await;
    assert_eq!(text(&protobuf.publication().await), "not json");
    assert_eq!(json.close().await, Disconnect::INAPPROPRIATE_PROTOCOL);
}
