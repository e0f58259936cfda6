//! Publishing, history and presence.

use http::StatusCode;
use serde_json::json;

use crate::client::Client;
use crate::fixture::fixture;

#[tokio::test]
async fn a_publication_reaches_subscribers_untouched() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    client.subscribe("log:a").await;
    let data = r#"{"z":1.50,"a":123456789012345678901234567890}"#;
    let body = format!(r#"{{"channel":"log:a","data":{data},"tags":{{"k":"v"}}}}"#);
    let (status, reply) = fixture.raw("publish", body, "").await;
    assert_eq!(status, StatusCode::OK);
    let reply: serde_json::Value = serde_json::from_str(&reply).unwrap();
    assert!(reply["result"]["offset"].as_u64().unwrap() > 0, "{reply}");
    assert!(!reply["result"]["epoch"].as_str().unwrap().is_empty(), "{reply}");
    let push = client.push().await;
    assert_eq!(push["channel"], "log:a");
    assert_eq!(push["pub"]["tags"], json!({ "k": "v" }));
    let (_, history) = fixture.raw("history", r#"{"channel":"log:a","limit":-1}"#, "").await;
    assert!(history.contains(data), "{history}");
}

#[tokio::test]
async fn base64_is_decoded_and_comes_back_as_base64_when_it_is_not_json() {
    let fixture = fixture();
    fixture.done("publish", json!({ "channel": "log:a", "data": "ignored", "b64data": "eyJhIjoxfQ==" })).await;
    fixture.done("publish", json!({ "channel": "log:a", "b64data": "/wA=" })).await;
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    assert_eq!(history["publications"][0]["data"], json!({ "a": 1 }));
    assert_eq!(history["publications"][1]["data"], json!(null));
    assert_eq!(history["publications"][1]["b64data"], "/wA=");
    let (code, message) = fixture.failed("publish", json!({ "channel": "log:a", "b64data": "%%" })).await;
    assert_eq!(code, 107);
    assert!(message.contains("b64data") && message.contains("%%"), "{message}");
}

#[tokio::test]
async fn null_is_a_payload_and_nothing_is_none() {
    let fixture = fixture();
    fixture.done("publish", json!({ "channel": "log:a", "data": null })).await;
    let (code, message) = fixture.failed("publish", json!({ "channel": "log:a" })).await;
    assert_eq!((code, message.contains("data is missing")), (107, true), "{message}");
}

#[tokio::test]
async fn the_same_key_publishes_once_and_answers_alike() {
    let fixture = fixture();
    let body = json!({ "channel": "log:a", "data": 1, "idempotency_key": "k" });
    let first = fixture.done("publish", body.clone()).await;
    assert_eq!(fixture.done("publish", body).await, first);
    let other = json!({ "channel": "log:b", "data": 1, "idempotency_key": "k" });
    fixture.done("publish", other).await;
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    assert_eq!(history["publications"].as_array().unwrap().len(), 1);
    let history = fixture.done("history", json!({ "channel": "log:b", "limit": 10 })).await;
    assert_eq!(history["publications"].as_array().unwrap().len(), 1, "a key counts per channel");
}

#[tokio::test]
async fn an_older_version_is_not_published_unless_the_epoch_changes() {
    let fixture = fixture();
    let publish = |version: u64, epoch: &str| {
        fixture
            .done("publish", json!({ "channel": "log:a", "data": version, "version": version, "version_epoch": epoch }))
    };
    publish(5, "x").await;
    publish(5, "x").await;
    publish(4, "x").await;
    publish(6, "x").await;
    publish(1, "y").await;
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    let data: Vec<_> = history["publications"].as_array().unwrap().iter().map(|p| p["data"].clone()).collect();
    assert_eq!(data, [json!(5), json!(6), json!(1)]);
}

#[tokio::test]
async fn without_history_there_is_no_position() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    client.subscribe("log:a").await;
    let skipped = json!({ "channel": "log:a", "data": 1, "skip_history": true });
    assert_eq!(fixture.done("publish", skipped).await, json!({}));
    assert_eq!(client.push().await["pub"], json!({ "data": 1 }));
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    assert_eq!(history["publications"], json!([]));
    assert_eq!(fixture.done("publish", json!({ "channel": "live:a", "data": 1 })).await, json!({}));
}

#[tokio::test]
async fn what_is_not_supported_or_allowed_is_refused_by_name() {
    let fixture = fixture();
    let long = "x".repeat(256);
    for (body, code, named) in [
        (json!({ "channel": "log:a", "data": 1, "delta": true }), 108, "delta"),
        (json!({ "data": 1 }), 107, "channel is missing"),
        (json!({ "channel": "", "data": 1 }), 107, "channel"),
        (json!({ "channel": long, "data": 1 }), 107, "255"),
        (json!({ "channel": "unknown:a", "data": 1 }), 102, "unknown"),
        (json!({ "channel": "log:a", "data": 1, "idempotency_key": long }), 107, "idempotency_key"),
        (json!({ "channel": "log:a", "data": 1, "version_epoch": long }), 107, "version_epoch"),
        (json!({ "channel": "log:a", "data": "x".repeat(200_000) }), 107, "data"),
    ] {
        let (given, message) = fixture.failed("publish", body).await;
        assert!(given == code && message.contains(named), "{given} {message}");
    }
    fixture.done("publish", json!({ "channel": "log:a", "data": 1, "delta": false, "new_field": 1 })).await;
}

#[tokio::test]
async fn a_broadcast_answers_per_channel_in_order() {
    let fixture = fixture();
    let body = json!({ "channels": ["log:a", "unknown:b", "log:c", "", "live:d"], "data": { "x": 1 } });
    let result = fixture.done("broadcast", body).await;
    let responses = result["responses"].as_array().unwrap();
    assert_eq!(responses.len(), 5);
    assert!(responses[0]["result"]["offset"].is_u64(), "{result}");
    assert_eq!(responses[1]["error"]["code"], 102);
    assert!(responses[2]["result"]["offset"].is_u64(), "{result}");
    assert_eq!(responses[3]["error"]["code"], 107);
    assert_eq!(responses[4]["result"], json!({}));
    assert_eq!(fixture.failed("broadcast", json!({ "channels": [], "data": 1 })).await.0, 107);
    assert_eq!(fixture.failed("broadcast", json!({ "data": 1 })).await.0, 107);
    let many = vec!["live:a"; 10_001];
    assert_eq!(fixture.failed("broadcast", json!({ "channels": many, "data": 1 })).await.0, 106);
}

#[tokio::test]
async fn history_pages_forwards_and_backwards() {
    let fixture = fixture();
    for number in 1..=5 {
        fixture.done("publish", json!({ "channel": "log:a", "data": number })).await;
    }
    let data = |history: &serde_json::Value| -> Vec<u64> {
        history["publications"].as_array().unwrap().iter().map(|p| p["data"].as_u64().unwrap()).collect()
    };
    let top = fixture.done("history", json!({ "channel": "log:a" })).await;
    assert_eq!(top["publications"], json!([]));
    let first = fixture.done("history", json!({ "channel": "log:a", "limit": 2 })).await;
    assert_eq!((data(&first), &first["offset"]), (vec![1, 2], &top["offset"]));
    let since = json!({ "offset": first["publications"][1]["offset"], "epoch": first["epoch"] });
    let next = fixture.done("history", json!({ "channel": "log:a", "limit": -1, "since": since })).await;
    assert_eq!(data(&next), [3, 4, 5]);
    let newest = fixture.done("history", json!({ "channel": "log:a", "limit": 2, "reverse": true })).await;
    assert_eq!(data(&newest), [5, 4]);
    let gone = json!({ "channel": "log:a", "limit": 2, "since": { "offset": 1, "epoch": "another" } });
    assert_eq!(fixture.failed("history", gone).await.0, 112);
    assert_eq!(fixture.failed("history", json!({ "channel": "live:a", "limit": 2 })).await.0, 108);
}

#[tokio::test]
async fn removed_history_is_gone_and_the_position_stays() {
    let fixture = fixture();
    let published = fixture.done("publish", json!({ "channel": "log:a", "data": 1 })).await;
    assert_eq!(fixture.done("history_remove", json!({ "channel": "log:a" })).await, json!({}));
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": 10 })).await;
    assert_eq!((&history["publications"], &history["epoch"]), (&json!([]), &published["epoch"]));
    assert!(history["offset"].as_u64() >= published["offset"].as_u64());
    assert_eq!(fixture.failed("history_remove", json!({ "channel": "live:a" })).await.0, 108);
}

#[tokio::test]
async fn presence_shows_who_is_there() {
    let fixture = fixture();
    let mut one = Client::connect(&fixture.node, "42").await;
    let mut two = Client::connect(&fixture.node, "42").await;
    one.subscribe("live:a").await;
    two.subscribe("live:a").await;
    let presence = fixture.done("presence", json!({ "channel": "live:a" })).await;
    assert_eq!(presence["presence"][&one.id], json!({ "client": one.id, "user": "42" }));
    assert_eq!(presence["presence"].as_object().unwrap().len(), 2);
    let stats = fixture.done("presence_stats", json!({ "channel": "live:a" })).await;
    assert_eq!(stats, json!({ "num_clients": 2, "num_users": 1 }));
    for method in ["presence", "presence_stats"] {
        assert_eq!(fixture.failed(method, json!({ "channel": "plain" })).await.0, 108);
        assert_eq!(fixture.failed(method, json!({})).await.0, 107);
    }
}

#[tokio::test]
async fn channels_and_info_count_what_is_there() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    client.subscribe("live:a").await;
    client.subscribe("log:b").await;
    let all = fixture.done("channels", json!({})).await;
    assert_eq!(all["channels"], json!({ "live:a": { "num_clients": 1 }, "log:b": { "num_clients": 1 } }));
    let some = fixture.done("channels", json!({ "pattern": "log:*" })).await;
    assert_eq!(some["channels"].as_object().unwrap().len(), 1);
    let (status, _) = fixture.raw("info", "", "").await;
    assert_eq!(status, StatusCode::OK, "an empty body stands for an empty object");
    let info = fixture.done("info", json!({})).await;
    let node = &info["nodes"][0];
    assert_eq!((&node["name"], &node["version"], &node["num_clients"]), (&json!("test"), &json!("0.0.0"), &json!(1)));
    assert_eq!((&node["num_users"], &node["num_subs"], &node["num_channels"]), (&json!(1), &json!(2), &json!(2)));
    assert_eq!(node["uid"].as_str().unwrap().len(), 36);
    assert_eq!((&node["num_sessions"], &node["metrics"]["interval"]), (&json!(1), &json!(60.0)));
    assert!(node["process"]["rss"].as_u64().unwrap() > 1 << 20 && node["process"]["cpu"].is_f64(), "{node}");
    assert!(node["metrics"]["items"]["publications_per_second"].is_f64(), "{node}");
}
