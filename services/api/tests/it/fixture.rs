//! A node, its API and its health.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use plenum_api::{Api, ApiConfig, Keys, Operations, OperationsConfig, OperationsParts};
use plenum_channels::memory::{MemoryControl, MemoryLog, MemoryPresence};
use plenum_channels::{
    ConnectionClaims, Log, NamespaceOptions, Node, Parts, Settings, SubscriptionClaims, TokenError, Tokens,
};
use plenum_telemetry::Metrics;
use serde_json::Value;

pub const KEY: &str = "key of the tests";

struct NoTokens;

#[async_trait]
impl Tokens for NoTokens {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        Err(TokenError::Invalid { reason: "none is valid here".into() })
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        Err(TokenError::Invalid { reason: "none is valid here".into() })
    }
}

pub struct Fixture {
    pub node: Arc<Node>,
    pub api: Arc<Api>,
    pub operations: Arc<Operations>,
}

/// Namespaces: none (nothing), `log` (history, presence), `live` (no history).
pub fn fixture() -> Fixture {
    fixture_on(MemoryLog::single())
}

pub fn fixture_on(log: Arc<dyn Log>) -> Fixture {
    let open = |name: &str| NamespaceOptions {
        name: name.into(),
        presence: true,
        allow_subscribe_for_client: true,
        allow_publish_for_client: true,
        ..NamespaceOptions::default()
    };
    let kept = NamespaceOptions { history_size: 100, history_ttl: Duration::from_secs(600), ..open("log") };
    let mut settings = Settings::default();
    settings.channel.namespaces = vec![NamespaceOptions { force_recovery: true, ..kept }, open("live")];
    let node = Node::new(Parts {
        settings,
        log: log.clone(),
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(NoTokens),
        metrics: Metrics::new().unwrap(),
        name: "test".into(),
        version: "0.0.0".into(),
    })
    .unwrap();
    node.start();
    let config = ApiConfig { keys: Keys::new([KEY]), max_body_bytes: 256 * 1024, ..ApiConfig::default() };
    let operations = Operations::new(OperationsConfig::default(), OperationsParts { node: node.clone(), log });
    Fixture { api: Arc::new(Api::new(config, node.clone())), operations: Arc::new(operations), node }
}

impl Fixture {
    /// Calls a method with the key; the body as it is.
    pub async fn raw(&self, method: &str, body: impl Into<Bytes>, error_mode: &str) -> (StatusCode, String) {
        let request = Request::post(format!("/api/{method}"))
            .header("x-api-key", KEY)
            .header("x-centrifugo-error-mode", error_mode)
            .body(Full::new(body.into()))
            .unwrap();
        let reply = self.api.route(request).await;
        assert_eq!(reply.headers()["content-type"], "application/json");
        let (head, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Calls a method; its answer comes with status 200.
    pub async fn call(&self, method: &str, body: Value) -> Value {
        let (status, text) = self.raw(method, body.to_string(), "").await;
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Calls a method that succeeds.
    pub async fn done(&self, method: &str, body: Value) -> Value {
        let mut reply = self.call(method, body).await;
        assert!(reply.get("error").is_none(), "{reply}");
        reply["result"].take()
    }

    /// Calls a method that fails: code and message.
    pub async fn failed(&self, method: &str, body: Value) -> (u64, String) {
        let reply = self.call(method, body).await;
        assert!(reply.get("result").is_none(), "{reply}");
        (reply["error"]["code"].as_u64().unwrap(), reply["error"]["message"].as_str().unwrap().to_owned())
    }
}
