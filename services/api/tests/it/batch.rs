//! Many commands in one request.

use http::StatusCode;
use serde_json::{Value, json};

use crate::fixture::{Fixture, fixture};

async fn batch(fixture: &Fixture, body: Value) -> Vec<Value> {
    let mut reply = fixture.call("batch", body).await;
    match reply["replies"].take() {
        Value::Array(replies) => replies,
        _ => panic!("{reply}"),
    }
}

#[tokio::test]
async fn replies_stand_in_the_order_of_the_commands() {
    let fixture = fixture();
    for parallel in [false, true] {
        let commands = json!([
            { "publish": { "channel": "log:a", "data": 1 } },
            { "publish": { "channel": "unknown:a", "data": 1 } },
            { "rpc": { "method": "x" } },
            { "broadcast": { "channels": ["log:b", "unknown:b"], "data": 1 } },
            { "history": { "channel": "log:b", "limit": 1, "reverse": true } },
            { "channels": {} },
            { "info": {} },
        ]);
        let replies = batch(&fixture, json!({ "commands": commands, "parallel": parallel })).await;
        assert_eq!(replies.len(), 7);
        assert!(replies[0]["publish"]["offset"].is_u64(), "{replies:?}");
        assert_eq!(replies[1]["error"]["code"], 102);
        assert_eq!(replies[2]["error"]["code"], 104);
        assert_eq!(replies[3]["broadcast"]["responses"][1]["error"]["code"], 102);
        assert!(replies[4]["history"]["offset"].is_u64(), "{replies:?}");
        assert_eq!(replies[5]["channels"]["channels"], json!({}));
        assert_eq!(replies[6]["info"]["nodes"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_of_a_parallel_batch_keep_their_order() {
    let fixture = fixture();
    // A version makes a publication read the channel's end first: without an order of their own, the others would
    // overtake it.
    let commands: Vec<_> = (1..=90)
        .map(|number| match number % 3 {
            0 => json!({ "broadcast": { "channels": ["log:b", "log:a"], "data": number } }),
            1 => json!({ "publish": { "channel": "log:a", "data": number, "version": number } }),
            _ => json!({ "publish": { "channel": "log:a", "data": number } }),
        })
        .collect();
    batch(&fixture, json!({ "commands": commands, "parallel": true })).await;
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": -1 })).await;
    let data: Vec<_> =
        history["publications"].as_array().unwrap().iter().map(|p| p["data"].as_u64().unwrap()).collect();
    assert_eq!(data, (1..=90).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_batch_that_cannot_be_answered_is_refused_whole() {
    let fixture = fixture();
    let many = vec![json!({ "info": {} }); 10_001];
    for body in [
        json!({}).to_string(),
        json!({ "commands": many }).to_string(),
        json!({ "commands": 1 }).to_string(),
        "[]".to_owned(),
        "{".to_owned(),
    ] {
        let (status, reply) = fixture.raw("batch", body, "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{reply}");
        let error: Value = serde_json::from_str(&reply).unwrap();
        assert!(error["code"].is_u64() && error["message"].is_string(), "{reply}");
    }
    assert!(batch(&fixture, json!({ "commands": [] })).await.is_empty());
}

#[tokio::test]
async fn a_batch_whose_replies_grow_too_long_carries_out_no_more() {
    let fixture = fixture();
    let payload = "x".repeat(60_000);
    for _ in 0..100 {
        fixture.done("publish", json!({ "channel": "log:a", "data": payload })).await;
    }
    // Six megabytes each: the sixth goes over 32 MiB.
    let mut commands = vec![json!({ "history": { "channel": "log:a", "limit": -1 } }); 7];
    commands.push(json!({ "publish": { "channel": "log:b", "data": 1 } }));
    let replies = batch(&fixture, json!({ "commands": commands })).await;
    assert!(replies[..6].iter().all(|reply| reply["history"]["publications"].as_array().unwrap().len() == 100));
    for refused in &replies[6..] {
        assert_eq!(refused["error"]["code"], 106, "{refused}");
    }
    let history = fixture.done("history", json!({ "channel": "log:b" })).await;
    assert_eq!(history["offset"], 0, "what was refused was not carried out");
}
