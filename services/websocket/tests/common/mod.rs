//! Servers on loopback and clients for them.
#![allow(dead_code)] // Each test binary uses its part.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use plenum_channels::memory::{MemoryControl, MemoryLog, MemoryPresence};
use plenum_channels::{ConnectionClaims, Node, Parts, Settings, SubscriptionClaims, TokenError, Tokens};
use plenum_http::{Router, Server, ServerConfig, Tls};
use plenum_telemetry::Metrics;
use plenum_websocket::{Door, Origins, Websocket, WebsocketConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longest wait for anything that must happen.
pub const LONG: Duration = Duration::from_secs(60);

pub type Client = WebSocketStream<TcpStream>;

/// A running server; it stops when dropped.
pub struct Rig<D> {
    pub address: SocketAddr,
    pub websocket: Arc<Websocket<D>>,
    pub metrics: Arc<Metrics>,
    _stop: DropGuard,
}

pub fn config() -> WebsocketConfig {
    WebsocketConfig {
        allowed_origins: Origins::new(["https://app.example.com"]).unwrap(),
        ..WebsocketConfig::default()
    }
}

pub fn serve<D: Door>(door: D, config: WebsocketConfig, metrics: Arc<Metrics>) -> Rig<D> {
    serve_with(door, config, metrics, None)
}

pub fn serve_with<D: Door>(door: D, config: WebsocketConfig, metrics: Arc<Metrics>, tls: Option<Arc<Tls>>) -> Rig<D> {
    let websocket = Arc::new(Websocket::new(door, config, metrics.clone()));
    let router: Router = {
        let websocket = websocket.clone();
        Arc::new(move |request, remote| {
            let reply = websocket.upgrade(request, remote);
            Box::pin(async move { reply })
        })
    };
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap(), ServerConfig::default()).unwrap();
    if let Some(tls) = tls {
        server = server.with_tls(tls);
    }
    let (address, stop) = (server.local_addr(), CancellationToken::new());
    tokio::spawn(server.run(router, stop.clone(), LONG));
    Rig { address, websocket, metrics, _stop: stop.drop_guard() }
}

/// Grants nothing: tests connect without a token.
struct NoTokens;

#[async_trait::async_trait]
impl Tokens for NoTokens {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        Err(TokenError::Expired)
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        Err(TokenError::Expired)
    }
}

/// A node without permission checks.
pub fn node(adapt: impl FnOnce(&mut Settings)) -> Arc<Node> {
    let mut settings = Settings::default();
    settings.client.insecure = true;
    adapt(&mut settings);
    let node = Node::new(Parts {
        settings,
        log: MemoryLog::single(),
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(NoTokens),
        metrics: Metrics::new().unwrap(),
        name: "test".into(),
        version: "0".into(),
    })
    .unwrap();
    node.start();
    node
}

pub fn serve_node(node: &Arc<Node>, config: WebsocketConfig) -> Rig<Arc<Node>> {
    serve(node.clone(), config, node.metrics().clone())
}

impl<D: Door> Rig<D> {
    pub fn request(&self, query: &str) -> Request {
        format!("ws://{}/connection/websocket{query}", self.address).into_client_request().unwrap()
    }

    pub async fn open(&self, request: Request) -> Result<(Client, Response), Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        timeout(LONG, client_async(request, stream)).await.unwrap()
    }

    pub async fn client(&self) -> Client {
        self.open(self.request("")).await.unwrap().0
    }

    /// The status and headers with which a handshake is refused.
    pub async fn refusal(&self, request: Request) -> Response {
        match self.open(request).await {
            Err(Error::Http(response)) => response.map(|_| None),
            other => panic!("not refused: {other:?}"),
        }
    }
}

pub async fn send(client: &mut Client, text: &str) {
    client.send(Message::text(text)).await.unwrap();
}

/// The next message of any kind; `None` when the stream has ended.
pub async fn next(client: &mut Client) -> Option<Result<Message, Error>> {
    timeout(LONG, client.next()).await.expect("nothing comes")
}

pub async fn text(client: &mut Client) -> String {
    match next(client).await {
        Some(Ok(Message::Text(text))) => text.to_string(),
        other => panic!("not text: {other:?}"),
    }
}

/// Reads until the close frame; its code and reason.
pub async fn closed(client: &mut Client) -> (u16, String) {
    ended(client).await.expect("a close frame")
}

/// As [`closed`]; `None` when the connection is lost without a close frame.
pub async fn ended(client: &mut Client) -> Option<(u16, String)> {
    loop {
        match next(client).await {
            Some(Ok(Message::Close(Some(frame)))) => return Some((frame.code.into(), frame.reason.to_string())),
            Some(Ok(Message::Close(None))) => return Some((1005, String::new())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// Waits for something that other tasks bring about.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
