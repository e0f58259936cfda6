//! Alive, ready, delivering.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::BodyExt;
use plenum_api::{Broker, BrokerState, Operations, OperationsConfig, OperationsParts};
use plenum_channels::memory::MemoryLog;
use plenum_channels::{Announcement, Append, AppendError, Appended, Live, Log, Page, Position, Read, ReadError, Tail};
use serde_json::Value;

use crate::fixture::{Fixture, fixture, fixture_on};

async fn get(fixture: &Fixture, path: &str) -> (u16, String) {
    assert!(fixture.operations.owns(path));
    let (head, body) = fixture.operations.route(Request::get(path).body(()).unwrap()).await.into_parts();
    (head.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_node_that_delivers_is_healthy() {
    let fixture = fixture();
    for _ in 0..3 {
        let (status, report) = get(&fixture, "/health").await;
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(
            (status, &report["status"], &report["delivery"]["ok"]),
            (200, &"ok".into(), &true.into()),
            "{report}"
        );
        assert!(report["delivery"]["latency_ms"].as_f64().unwrap() < 2000.0);
    }
    assert_eq!(get(&fixture, "/livez").await.0, 200);
    assert_eq!(get(&fixture, "/readyz").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_is_alive_but_not_ready() {
    let fixture = fixture();
    fixture.node.stop_accepting();
    assert_eq!(get(&fixture, "/livez").await.0, 200);
    assert_eq!(get(&fixture, "/readyz").await, (503, "draining\n".into()));
    let (status, report) = get(&fixture, "/health").await;
    assert_eq!((status, report.contains("\"draining\"")), (200, true), "{report}");
}

/// Acknowledges everything and delivers nothing.
struct Deaf(Arc<MemoryLog>);

#[async_trait]
impl Log for Deaf {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.0.append(append)
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.0.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.0.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.0.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, _: Arc<dyn Live>) -> Result<Position, ReadError> {
        Ok(self.0.tail(channel).await?.position)
    }

    fn unsubscribe(&self, _: &str) {}

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.0.remove(channel).await
    }
}

#[tokio::test(start_paused = true)]
async fn dead_delivery_is_never_green() {
    let fixture = fixture_on(Arc::new(Deaf(MemoryLog::single())));
    let began = tokio::time::Instant::now();
    let (status, report) = get(&fixture, "/health").await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((status, &report["status"]), (503, &"failing".into()), "{report}");
    assert!(report["delivery"]["error"].as_str().unwrap().contains("not delivered"), "{report}");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(get(&fixture, "/livez").await.0, 200, "restarting this process would not help");
}

struct Remote(std::sync::Mutex<BrokerState>);

impl Broker for Remote {
    fn state(&self) -> BrokerState {
        self.0.lock().unwrap().clone()
    }

    fn metrics(&self) -> String {
        "remote_up 1\n".into()
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_told_at_once_and_a_node_that_was_ready_stays_so() {
    let mut fixture = fixture();
    let state = |started, error: Option<&str>| BrokerState {
        started,
        connected: 0,
        connections: 3,
        error: error.map(str::to_owned),
    };
    let remote = Arc::new(Remote(std::sync::Mutex::new(state(false, Some("no contact yet")))));
    let parts = OperationsParts { node: fixture.node.clone(), log: MemoryLog::single() };
    fixture.operations = Arc::new(Operations::new(OperationsConfig::default(), parts).with_broker(remote.clone()));
    let began = tokio::time::Instant::now();
    assert_eq!(get(&fixture, "/readyz").await, (503, "waiting for the broker\n".into()));
    let (status, report) = get(&fixture, "/health").await;
    assert!(status == 503 && report.contains("no contact yet"), "{report}");

    *remote.0.lock().unwrap() = state(true, None);
    assert_eq!((get(&fixture, "/readyz").await.0, get(&fixture, "/health").await.0), (200, 200));
    *remote.0.lock().unwrap() = state(true, Some("lost"));
    assert_eq!((get(&fixture, "/readyz").await.0, get(&fixture, "/health").await.0), (200, 503));
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waited");
    assert!(get(&fixture, "/metrics").await.1.ends_with("remote_up 1\n"));
}

#[tokio::test]
async fn metrics_count_calls_by_method_and_result() {
    let fixture = fixture();
    fixture.done("publish", serde_json::json!({ "channel": "log:a", "data": 1 })).await;
    fixture.failed("publish", serde_json::json!({ "channel": "log:a" })).await;
    let (status, text) = get(&fixture, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"plenum_api_requests_total{code="0",method="publish"} 1"#,
        r#"plenum_api_requests_total{code="107",method="publish"} 1"#,
        r#"plenum_api_request_duration_seconds_count{method="publish"} 2"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing");
    }
}
