//! Coming back: what is recovered, what is not, and what happens to those who missed very much.

use std::time::Duration;

use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{ClientInfo, PushEvent, Request, SubscribeRequest, UnsubscribeRequest};

use super::{Client, api_publish, node, open_namespace, settings, text};
use crate::{HistoryQuery, RecoveryMode};

#[tokio::test(start_paused = true)]
async fn what_was_missed_comes_with_the_reply_and_the_rest_live() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let first = client.subscribe("log:a", None).await.unwrap();
    assert!(first.recoverable && first.positioned && !first.was_recovering);
    client.call(Request::Unsubscribe(UnsubscribeRequest { channel: "log:a".into() })).await.unwrap();
    for number in 1..=3 {
        api_publish(&node, "log:a", number).await;
    }
    let result = client.subscribe("log:a", Some((first.offset, &first.epoch))).await.unwrap();
    assert!(result.recovered && result.was_recovering);
    assert_eq!(result.offset, first.offset, "the position recovered from: publications move it");
    let texts: Vec<_> = result.publications.iter().map(text).collect();
    assert_eq!(texts, ["1", "2", "3"]);
    api_publish(&node, "log:a", 4).await;
    assert_eq!(text(&client.publication().await), "4");
}

#[tokio::test(start_paused = true)]
async fn one_more_than_the_history_holds_is_not_recovered() {
    for (missed, recovered) in [(10, true), (11, false)] {
        let node = node(settings());
        let mut client = Client::connect(&node).await;
        let first = client.subscribe("room:a", None).await.unwrap();
        drop(client);
        for number in 0..missed {
            api_publish(&node, "room:a", number).await;
        }
        let mut client = Client::connect(&node).await;
        let result = client.subscribe("room:a", Some((first.offset, &first.epoch))).await.unwrap();
        assert_eq!(result.recovered, recovered, "{missed} missed");
        assert_eq!(result.publications.len(), if recovered { missed } else { 0 });
        let mut strict = Client::connect(&node).await;
        let request = SubscribeRequest {
            channel: "room:a".into(),
            recover: true,
            offset: first.offset,
            epoch: first.epoch.clone(),
            flag: plenum_protocol::subscribe_flag::REJECT_UNRECOVERED,
            ..Default::default()
        };
        let outcome = strict.call(Request::Subscribe(Box::new(request))).await;
        assert_eq!(outcome.map_err(|error| error.code).err(), (!recovered).then_some(112));
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_epoch_or_a_position_ahead_is_not_recovered() {
    let node = node(settings());
    api_publish(&node, "log:a", 1).await;
    let mut client = Client::connect(&node).await;
    let top = client.subscribe("log:a", None).await.unwrap();
    for (offset, epoch) in [(top.offset, "foreign"), (top.offset + 1, top.epoch.as_str())] {
        let mut client = Client::connect(&node).await;
        let result = client.subscribe("log:a", Some((offset, epoch))).await.unwrap();
        assert!(!result.recovered && result.was_recovering);
        assert_eq!((result.offset, &result.epoch), (top.offset, &top.epoch));
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_channel_is_recovered_after_its_data_expired() {
    let node = node(settings());
    api_publish(&node, "log:a", 1).await;
    let mut client = Client::connect(&node).await;
    let top = client.subscribe("log:a", None).await.unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let history = node.history("log:a", HistoryQuery { limit: -1, ..Default::default() }).await.unwrap();
    assert!(history.publications.is_empty(), "expired");
    let mut client = Client::connect(&node).await;
    assert!(client.subscribe("log:a", Some((top.offset, &top.epoch))).await.unwrap().recovered);
}

#[tokio::test(start_paused = true)]
async fn mode_cache_brings_the_latest_only() {
    let mut settings = settings();
    let mut cache = open_namespace("cache", 10);
    cache.force_recovery_mode = RecoveryMode::Cache;
    settings.channel.namespaces.push(cache);
    let node = node(settings);
    for number in 1..=3 {
        api_publish(&node, "cache:a", number).await;
    }
    let mut client = Client::connect(&node).await;
    let result = client.subscribe("cache:a", Some((0, ""))).await.unwrap();
    assert!(result.recovered);
    assert_eq!(result.publications.iter().map(text).collect::<Vec<_>>(), ["3"]);
    let mut again = Client::connect(&node).await;
    let again = again.subscribe("cache:a", Some((result.offset, &result.epoch))).await.unwrap();
    assert!(again.recovered && again.publications.is_empty());
}

const MANY: usize = 100_000;

fn many() -> crate::Settings {
    let mut settings = settings();
    settings.channel.namespaces.push(open_namespace("many", MANY));
    settings
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_missed_follow_in_order_before_anything_live() {
    let node = node(many());
    let mut client = Client::connect(&node).await;
    let start = client.subscribe("many:a", None).await.unwrap();
    drop(client);
    for number in 0..MANY {
        api_publish(&node, "many:a", number).await;
    }
    let mut client = Client::connect(&node).await;
    let result = client.subscribe("many:a", Some((start.offset, &start.epoch))).await.unwrap();
    assert!(result.recovered);
    assert_eq!(result.offset, start.offset);
    assert!(result.publications.len() < 1000, "a first chunk only");
    let mut expected = 0;
    for publication in &result.publications {
        assert_eq!(text(publication), expected.to_string());
        expected += 1;
    }
    let mut live = 0;
    while expected < MANY + live {
        if live < 50 && expected % 1000 == 0 {
            api_publish(&node, "many:a", MANY + live).await;
            live += 1;
        }
        assert_eq!(text(&client.publication().await), expected.to_string());
        assert!(client.session.outbox().pending_bytes() < 256 * 1024, "memory stays bounded");
        expected += 1;
    }
    assert_eq!(live, 50);
}

#[tokio::test(start_paused = true)]
async fn whom_the_front_overtakes_while_catching_up_is_told_insufficient_state() {
    let mut settings = many();
    settings.client.recovery_max_publication_limit = 10;
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    let start = client.subscribe("many:a", None).await.unwrap();
    drop(client);
    for number in 0..5_000 {
        api_publish(&node, "many:a", number).await;
    }
    let mut client = Client::connect(&node).await;
    let result = client.subscribe("many:a", Some((start.offset, &start.epoch))).await.unwrap();
    assert!(result.recovered);
    client.stalled = true;
    node.history_remove("many:a").await.unwrap();
    client.idle(1).await;
    client.stalled = false;
    loop {
        match client.push().await.event {
            PushEvent::Publication(_) => {}
            PushEvent::Unsubscribe { code, .. } => {
                assert_eq!(code, Unsubscribed::INSUFFICIENT_STATE.code);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The client subscribes again, as SDKs do, and learns that it lost something.
    assert!(!client.subscribe("many:a", Some((start.offset, &start.epoch))).await.unwrap().recovered);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_catches_up_is_told_insufficient_state() {
    let mut settings = many();
    settings.client.recovery_max_publication_limit = 10;
    settings.client.ping_interval = Duration::from_secs(3600);
    let node = node(settings);
    let mut client = Client::connect(&node).await;
    let start = client.subscribe("many:a", None).await.unwrap();
    drop(client);
    for number in 0..20_000 {
        api_publish(&node, "many:a", number).await;
    }
    let mut client = Client::connect(&node).await;
    client.subscribe("many:a", Some((start.offset, &start.epoch))).await.unwrap();
    client.stalled = true;
    client.idle(400).await;
    client.stalled = false;
    loop {
        match client.push().await.event {
            PushEvent::Publication(_) => {}
            PushEvent::Unsubscribe { code, .. } => return assert_eq!(code, 2500),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_of_publishers_counts_too() {
    let node = node(settings());
    let mut client = Client::connect(&node).await;
    let first = client.subscribe("log:a", None).await.unwrap();
    drop(client);
    let info = ClientInfo { conn_info: format!("\"{}\"", "i".repeat(8_000)).into(), ..ClientInfo::default() };
    for number in 0..200 {
        let publish = crate::Publish { channel: "log:a".into(), data: number.to_string().into(), ..Default::default() };
        node.start_publish("client", publish, Some(info.clone())).await.unwrap();
    }
    let mut client = Client::connect(&node).await;
    let result = client.subscribe("log:a", Some((first.offset, &first.epoch))).await.unwrap();
    assert!(result.recovered && result.publications.len() < 200);
    for number in result.publications.len()..200 {
        assert_eq!(text(&client.publication().await), number.to_string());
    }
}
