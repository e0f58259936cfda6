//! Blocks, revocations, and who is connected.

use serde_json::json;

use crate::client::Client;
use crate::fixture::fixture;

#[tokio::test]
async fn a_user_is_blocked_and_unblocked() {
    let fixture = fixture();
    let mut client = Client::connect(&fixture.node, "42").await;
    assert_eq!(fixture.done("block_user", json!({ "user": "42" })).await, json!({}));
    assert_eq!(client.closed().await.code, 3507);
    assert_eq!(fixture.done("unblock_user", json!({ "user": "42" })).await, json!({}));
    let body = json!({ "commands": [{ "block_user": { "user": "43", "expire_at": 1 } }, { "unblock_user": {} }] });
    let (_, replies) = fixture.raw("batch", body.to_string(), "").await;
    let replies: serde_json::Value = serde_json::from_str(&replies).unwrap();
    assert_eq!(replies["replies"][0], json!({ "block_user": {} }));
    assert_eq!(replies["replies"][1]["error"]["code"], 107);
}

#[tokio::test]
async fn connections_are_shown_and_closed_by_their_client_id() {
    let fixture = fixture();
    let mut one = Client::connect(&fixture.node, "42").await;
    let _other = Client::connect(&fixture.node, "42").await;
    let found = fixture.done("connections", json!({ "user": "42" })).await;
    let shown = &found["connections"][&one.id];
    assert_eq!(
        (&shown["user"], &shown["transport"], &shown["protocol"]),
        (&json!("42"), &json!("websocket"), &json!("json"))
    );
    assert_eq!(found["connections"].as_object().map(|found| found.len()), Some(2));
    fixture.done("disconnect", json!({ "client": one.id })).await;
    assert_eq!(one.closed().await.code, 3503);
    assert_eq!(fixture.failed("disconnect", json!({})).await.0, 107);
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let fixture = fixture();
    let long = "x".repeat(1025);
    for (method, body) in [
        ("block_user", json!({})),
        ("block_user", json!({ "user": "" })),
        ("unblock_user", json!({ "user": long })),
        ("block_user", json!({ "user": "42", "expire_at": -1 })),
        ("revoke_token", json!({ "uid": "" })),
        ("invalidate_user_tokens", json!({ "user": "42", "channel": "x".repeat(256) })),
        ("connections", json!({})),
    ] {
        assert_eq!(fixture.failed(method, body.clone()).await.0, 107, "{method} {body}");
    }
    assert_eq!(fixture.done("revoke_token", json!({ "uid": "x", "expire_at": 7 })).await, json!({}));
    assert_eq!(fixture.done("invalidate_user_tokens", json!({ "user": "42", "issued_before": 7 })).await, json!({}));
}
