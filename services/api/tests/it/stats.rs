//! `GET /api/stats`.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use plenum_channels::Dependency;
use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::{Fixture, KEY, fixture};

struct Down;

impl Dependency for Down {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn trouble(&self) -> Option<String> {
        Some("no primary of the slot answers".into())
    }
}

async fn stats(fixture: &Fixture, method: Method, key: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri("/api/stats").header("x-api-key", key);
    let reply = fixture.api.route(request.body(Full::new(Bytes::new())).unwrap()).await;
    let (head, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn counts_rates_and_states_are_told_per_replica_and_summed() {
    let fixture = fixture();
    fixture.node.lean_on(vec![Arc::new(Down)]);
    let mut client = Client::connect(&fixture.node, "42").await;
    client.subscribe("log:a").await;
    client.subscribe("log:b").await;
    fixture.done("publish", json!({ "channel": "log:a", "data": {} })).await;
    client.push().await;
    let (status, stats) = stats(&fixture, Method::GET, KEY).await;
    assert_eq!(status, StatusCode::OK);
    let node = &stats["nodes"][0];
    assert_eq!(node["name"], "test");
    for place in [node, &stats["total"]] {
        let counts = ["connections", "users", "channels", "subscriptions"].map(|name| place[name].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 2, 2], "{stats}");
        assert!(place["memory"].as_u64().unwrap() > 1 << 20, "{stats}");
    }
    assert_eq!(
        node["dependencies"][0],
        json!({ "name": "redis", "ok": false, "error": "no primary of the slot answers" })
    );
}

#[tokio::test]
async fn rates_ratio_and_percentiles_are_those_of_the_last_minute() {
    let fixture = fixture();
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    // The first reading is made once the node runs; what comes after it counts.
    loop {
        let mut client = Client::connect(&fixture.node, "42").await;
        client.subscribe("log:a").await;
        fixture.done("publish", json!({ "channel": "log:a", "data": {} })).await;
        client.push().await;
        let (_, stats) = stats(&fixture, Method::GET, KEY).await;
        assert_eq!(stats["total"]["sessions"], 1, "{stats}");
        let rates = ["publications_per_second", "deliveries_per_second"].map(|name| stats["total"][name].as_f64());
        let latency = &stats["delivery_latency_ms"];
        let bounds = ["p50", "p95", "p99"].map(|name| latency[name].as_f64().unwrap_or(0.0));
        if rates.iter().all(|rate| *rate > Some(0.0)) && bounds[0] > 0.0 && stats["connect_success"] == 1.0 {
            assert!(bounds.is_sorted(), "{stats}");
            assert!(stats["total"]["connects"].as_u64() >= Some(1), "{stats}");
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{stats}");
    }
}

#[tokio::test]
async fn stats_need_the_key_and_a_get() {
    let fixture = fixture();
    assert_eq!(stats(&fixture, Method::GET, "wrong").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(stats(&fixture, Method::DELETE, KEY).await.0, StatusCode::METHOD_NOT_ALLOWED);
}
