//! From an upgrade request to the task of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue, ORIGIN, RETRY_AFTER};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use plenum_channels::{AcceptError, Link};
use plenum_http::{Reply, TlsStream, text};
use plenum_protocol::Encoding;
use plenum_telemetry::{Handshake, Metrics, Transport, WireEncoding};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::connection::Connection;
use crate::handshake::Opening;
use crate::{Door, Endpoint, Origins, TrustedProxies};

/// What a refused client is asked to wait, in seconds.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Settings of the transport.
#[derive(Clone, Debug)]
pub struct WebsocketConfig {
    /// Pages that may connect; `client.allowed_origins`.
    pub allowed_origins: Origins,
    /// Longest message from a client in bytes, all fragments together; `websocket.message_size_limit`, 64 KiB. Beyond it
    /// the connection is closed with the WebSocket's own code 1009, after which SDKs stay away.
    pub message_size_limit: usize,
    /// How long a socket may take nothing at all before the connection is given up; `websocket.write_timeout`, 5 s. It
    /// ends sockets that are dead: one that is merely slow is bounded by its outbox, in bytes.
    pub write_timeout: Duration,
    /// A header in which a proxy names the user; `client.user_id_http_header`. Only for proxies that always set or remove
    /// it.
    pub user_header: Option<HeaderName>,
    /// Proxies whose `X-Forwarded-For` says where a client is; `http_server.trusted_proxies`.
    pub trusted_proxies: TrustedProxies,
}

impl Default for WebsocketConfig {
    fn default() -> Self {
        Self {
            allowed_origins: Origins::default(),
            message_size_limit: 64 * 1024,
            write_timeout: Duration::from_secs(5),
            user_header: None,
            trusted_proxies: TrustedProxies::default(),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: WebsocketConfig,
    metrics: Arc<Metrics>,
    open: AtomicUsize,
    closed: Notify,
}

/// One open connection: it is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    encoding: Encoding,
}

impl Place {
    fn take(shared: &Arc<Shared>, encoding: Encoding) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        shared.metrics.connections(Transport::WebSocket, label(encoding)).inc();
        Self { shared: shared.clone(), encoding }
    }

    pub(crate) fn limits(&self) -> &WebsocketConfig {
        &self.shared.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.metrics.connections(Transport::WebSocket, label(self.encoding)).dec();
        if self.shared.open.fetch_sub(1, Ordering::Release) == 1 {
            self.shared.closed.notify_waiters();
        }
    }
}

fn label(encoding: Encoding) -> WireEncoding {
    match encoding {
        Encoding::Json => WireEncoding::Json,
        Encoding::Protobuf => WireEncoding::Protobuf,
    }
}

/// The transport: answers upgrade requests and runs their connections.
#[derive(Debug)]
pub struct Websocket<D> {
    door: D,
    shared: Arc<Shared>,
}

impl<D: Door> Websocket<D> {
    /// A transport whose connections end at endpoints of `door`.
    pub fn new(door: D, config: WebsocketConfig, metrics: Arc<Metrics>) -> Self {
        let shared = Shared { config, metrics, open: AtomicUsize::new(0), closed: Notify::new() };
        Self { door, shared: Arc::new(shared) }
    }

    /// Answers a request for the endpoint's path: 101 and a task for the connection, or the refusal.
    ///
    /// 400, 405 or 426 say what is wrong with the handshake, 403 that the Origin is not allowed, 503 with Retry-After
    /// that the process drains or is full. Must be called within a tokio runtime.
    pub fn upgrade(&self, mut request: Request<Incoming>, remote: SocketAddr) -> Reply {
        let opening = match Opening::check(&request) {
            Ok(opening) => opening,
            Err(fault) => {
                self.count(Handshake::Invalid);
                return fault.reply();
            }
        };
        let config = &self.shared.config;
        if !config.allowed_origins.allow(request.headers()) {
            self.count(Handshake::Origin);
            let origin = request.headers().get(ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or("(not ASCII)");
            tracing::info!(%remote, %origin, "origin is not in client.allowed_origins");
            return text(StatusCode::FORBIDDEN, "origin not allowed\n");
        }
        let user = config.user_header.as_ref().and_then(|name| request.headers().get(name));
        let user = user.and_then(|value| value.to_str().ok()).filter(|user| !user.is_empty()).map(str::to_owned);
        let encoding = opening.encoding;
        let address = Some(config.trusted_proxies.client(request.headers(), remote));
        match self.door.accept(Link { encoding, user, address }) {
            Ok(endpoint) => {
                let place = Place::take(&self.shared, encoding);
                // Only the promise of the socket goes into the task, not the request.
                tokio::spawn(upgraded(hyper::upgrade::on(&mut request), endpoint, place));
                opening.reply()
            }
            Err(refused) => {
                self.count(match refused {
                    AcceptError::Draining => Handshake::Draining,
                    AcceptError::ConnectionLimit { .. } => Handshake::ConnectionLimit,
                    AcceptError::RateLimit { .. } => Handshake::RateLimit,
                });
                let mut reply = text(StatusCode::SERVICE_UNAVAILABLE, format!("{refused}\n"));
                reply.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
                reply
            }
        }
    }

    /// Open connections, those included whose handshake is just being answered.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Waits until no connection is open: their last bytes and close frames have left.
    pub async fn closed(&self) {
        loop {
            let closed = self.shared.closed.notified();
            if self.open() == 0 {
                return;
            }
            closed.await;
        }
    }

    fn count(&self, result: Handshake) {
        self.shared.metrics.handshakes(result).inc();
    }
}

/// Waits for the socket behind the HTTP connection and hands it to a task of its own, whose size is the connection's
/// alone.
async fn upgraded<E: Endpoint>(promise: OnUpgrade, endpoint: E, place: Place) {
    let upgraded = match promise.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            place.metrics().handshakes(Handshake::Invalid).inc();
            return tracing::debug!(%error, "client left during the handshake");
        }
    };
    place.metrics().handshakes(Handshake::Accepted).inc();
    match socket::<TcpStream>(upgraded) {
        Ok((socket, early)) => start(socket, endpoint, &early, place),
        Err(upgraded) => match socket::<TlsStream>(upgraded) {
            Ok((socket, early)) => start(socket, endpoint, &early, place),
            Err(upgraded) => start(TokioIo::new(upgraded), endpoint, &[], place),
        },
    }
}

/// The socket itself and what the client sent early. hyper's buffer goes with the rest.
fn socket<S>(upgraded: Upgraded) -> Result<(S, Vec<u8>), Upgraded>
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let parts = upgraded.downcast::<TokioIo<S>>()?;
    Ok((parts.io.into_inner(), parts.read_buf.to_vec()))
}

fn start<S, E>(socket: S, endpoint: E, early: &[u8], place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Endpoint,
{
    tokio::spawn(Connection::new(socket, endpoint, early, place));
}
