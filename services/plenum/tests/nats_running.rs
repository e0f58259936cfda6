//! The built binary at work on a real NATS server: what the worker says, what the report warns of, batches over the log.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use common::{Folder, Server, output};
use plenum_bus_nats::testing::NatsServer;
use serde_json::{Value, json};

const KEY: &str = "key of this test only";

fn start(role: &str, nats: &NatsServer, options: &[&str]) -> Server {
    let (url, key) = (nats.url(), format!("http_api.key={KEY}"));
    let mut arguments = vec!["--nats", &url, "--set", &key, "--set", "nats.max_bytes=0"];
    arguments.extend(options.iter().flat_map(|option| ["--set", option]));
    Server::start_as(role, &arguments)
}

#[tokio::test]
async fn a_worker_without_consumers_says_so_and_the_report_warns_by_the_configured_limits() {
    let nats = NatsServer::start().await.unwrap();
    let worker = start("worker", &nats, &["nats.report.tasks=1", "nats.report.memory=1"]);
    worker.logged("no consumer is enabled", |_| Some(()));
    worker.until("/readyz", 200);
    let report: Value = serde_json::from_str(&worker.get("/report").1).unwrap();
    let warnings: Vec<_> = report["warnings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(warnings.iter().any(|text| text.ends_with("tasks are above the limit of 1")), "{warnings:?}");
    assert!(warnings.iter().any(|text| text.ends_with("bytes of memory are above the limit of 1")), "{warnings:?}");
    let connections = report["pools"][0]["connections"].as_array().unwrap();
    assert!(connections.len() == 3 && connections.iter().all(|one| one["healthy"] == true), "{connections:?}");
    worker.signal("USR1");
    worker.logged("tasks are above the limit of 1", |_| Some(()));
}

#[test]
fn history_without_a_log_is_refused_by_the_check() {
    let folder = Folder::new();
    let text = "[nats]\nservers = [\"nats://127.0.0.1:1\"]\n[[channel.namespaces]]\nname = \"cursors\"\n\
                durability = \"none\"\nhistory_size = 10\nhistory_ttl = \"60s\"\n";
    let (code, _, error) = output(&["config", "check", "--config", &folder.write("plenum.toml", text)]);
    assert!(code != Some(0) && error.contains("durability") && error.contains("history_size"), "{error}");
}

#[tokio::test]
async fn a_batch_keeps_the_order_of_its_publications_and_one_that_fails_stops_no_other() {
    let nats = NatsServer::start().await.unwrap();
    let history = ["history_size=10000", "history_ttl=60s"].map(|it| format!("channel.without_namespace.{it}"));
    let size = "channel.max_publication_size=1000";
    let server = start("serve", &nats, &[&history[0], &history[1], size, "client.history_max_publication_limit=5000"]);
    server.until("/readyz", 200);
    let large = "x".repeat(2000);
    let payload = |number: usize| if number % 100 == 50 { json!(large) } else { json!(number) };
    let channel = |number: usize| format!("channel-{}", number % 3);
    for parallel in [false, true] {
        let commands: Vec<_> = (0..3_000)
            .map(|number| json!({ "publish": { "channel": channel(number), "data": payload(number) } }))
            .collect();
        let body = json!({ "commands": commands, "parallel": parallel }).to_string();
        let (status, reply) = server.api(KEY, "batch", &body);
        let reply: Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(status, 200, "{reply}");
        for (number, reply) in reply["replies"].as_array().unwrap().iter().enumerate() {
            match number % 100 == 50 {
                true => assert!(reply["error"]["code"].is_u64(), "{number}: {reply}"),
                false => assert!(reply["publish"]["offset"].is_u64(), "{number}: {reply}"),
            }
        }
        for index in 0..3 {
            let expected: Vec<_> = (index..3_000).step_by(3).filter(|number| number % 100 != 50).collect();
            let body = json!({ "channel": channel(index), "limit": 5000 }).to_string();
            let reply = server.answers(KEY, "history", &body, "\"publications\"");
            let reply: Value = serde_json::from_str(&reply).unwrap();
            let found = reply["result"]["publications"].as_array().unwrap();
            let found: Vec<_> =
                found.iter().map(|publication| publication["data"].as_u64().unwrap() as usize).collect();
            assert_eq!(found[found.len() - expected.len()..], expected, "{index}, parallel: {parallel}");
        }
    }
}
