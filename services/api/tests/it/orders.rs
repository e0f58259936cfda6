//! What the API does to connections.

use serde_json::json;

use crate::client::Client;
use crate::fixture::fixture;

#[tokio::test]
async fn a_user_is_subscribed_and_unsubscribed() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    let body = json!({ "user": "42", "channel": "log:a", "data": { "hello": 1 }, "info": { "role": "x" } });
    assert_eq!(fixture.done("subscribe", body).await, json!({}));
    let push = client.push().await;
    assert_eq!((&push["channel"], &push["subscribe"]["data"]), (&json!("log:a"), &json!({ "hello": 1 })));
    let presence = fixture.done("presence", json!({ "channel": "log:a" })).await;
    assert_eq!(presence["presence"][&client.id]["chan_info"], json!({ "role": "x" }));
    fixture.done("publish", json!({ "channel": "log:a", "data": 7 })).await;
    assert_eq!(client.push().await["pub"]["data"], 7);
    assert_eq!(fixture.done("unsubscribe", json!({ "user": "42", "channel": "log:a" })).await, json!({}));
    let push = client.push().await;
    assert_eq!((&push["channel"], &push["unsubscribe"]["code"]), (&json!("log:a"), &json!(2000)));
}

#[tokio::test]
async fn an_override_and_a_position_are_taken() {
    let fixture = fixture();
    let first = fixture.done("publish", json!({ "channel": "log:a", "data": 1 })).await;
    fixture.done("publish", json!({ "channel": "log:a", "data": 2 })).await;
    let mut client = Client::connect(&fixture.node, "42").await;
    let since = json!({ "offset": first["offset"], "epoch": first["epoch"] });
    let body = json!({ "user": "42", "channel": "log:a", "recover_since": since,
        "override": { "presence": { "value": false }, "join_leave": null } });
    fixture.done("subscribe", body).await;
    let push = client.push().await;
    assert!(push["subscribe"].is_object(), "{push}");
    assert_eq!(client.push().await["pub"]["data"], 2);
    assert_eq!(fixture.done("presence", json!({ "channel": "log:a" })).await["presence"], json!({}));
}

#[tokio::test]
async fn a_user_is_disconnected_but_for_the_whitelist() {
    let fixture = fixture();
    let mut gone = Client::connect(&fixture.node, "42").await;
    let stays = Client::connect(&fixture.node, "42").await;
    let mut other = Client::connect(&fixture.node, "43").await;
    fixture.done("disconnect", json!({ "user": "42", "whitelist": [stays.id] })).await;
    assert_eq!(gone.closed().await.code, 3503);
    let custom = json!({ "user": "43", "disconnect": { "code": 4001, "reason": "go" } });
    fixture.done("disconnect", custom).await;
    let close = other.closed().await;
    assert_eq!((close.code, close.reason.as_ref()), (4001, "go"));
    let info = fixture.done("info", json!({})).await;
    assert!(info["nodes"][0]["num_users"].as_u64() >= Some(1), "{info}");
}

#[tokio::test]
async fn an_expired_connection_is_closed() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    fixture.done("refresh", json!({ "user": "42", "expired": true })).await;
    assert_eq!(client.closed().await.code, 3005);
}

#[tokio::test]
async fn a_target_needs_a_user_and_a_code_its_range() {
    let fixture = fixture();
    for (method, body, named) in [
        ("subscribe", json!({ "channel": "log:a" }), "user"),
        ("subscribe", json!({ "user": "", "channel": "log:a" }), "user"),
        ("subscribe", json!({ "user": "42" }), "channel"),
        ("subscribe", json!({ "user": "42", "channel": "log:a", "expire_at": -1 }), "expire_at"),
        ("subscribe", json!({ "user": "42", "channel": "log:a", "b64info": "?" }), "b64info"),
        ("unsubscribe", json!({ "user": "42" }), "channel"),
        ("disconnect", json!({}), "user"),
        ("disconnect", json!({ "user": "42", "disconnect": { "code": 2999, "reason": "" } }), "disconnect.code"),
        ("disconnect", json!({ "user": "42", "disconnect": { "code": null, "reason": "" } }), "disconnect.code"),
        (
            "disconnect",
            json!({ "user": "42", "disconnect": { "code": 4000, "reason": "x".repeat(124) } }),
            "disconnect.reason",
        ),
        ("refresh", json!({ "expired": true }), "user"),
        ("refresh", json!({ "user": "42", "expire_at": -5 }), "expire_at"),
    ] {
        let (code, message) = fixture.failed(method, body).await;
        assert!(code == 107 && message.contains(named), "{method}: {code} {message}");
    }
    assert_eq!(fixture.failed("subscribe", json!({ "user": "42", "channel": "unknown:a" })).await.0, 102);
}
