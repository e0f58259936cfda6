//! Accept loop, time-outs and the end of a server.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{Router, Tls};

/// How long the accept loop rests when the process is out of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often certificate files are looked at.
const TLS_WATCH: Duration = Duration::from_secs(5);

/// Connections that the kernel holds while the server does not accept.
const BACKLOG: u32 = 4096;

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Longest wait for a complete request head, also on a kept-alive connection; then the connection is closed.
    pub header_timeout: Duration,
    /// Longest TLS handshake; then the connection is closed.
    pub handshake_timeout: Duration,
    /// Largest request head in bytes (at least 8 KiB); beyond it 431.
    pub max_header_bytes: usize,
    /// Connections that may be in handshake or in HTTP at once (an upgraded one no longer counts); beyond it new ones
    /// wait in the kernel's backlog.
    pub max_connections: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            max_header_bytes: 16 * 1024,
            max_connections: 8192,
        }
    }
}

/// The port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Why a connection ended before it had a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The TLS handshake failed.
    Tls,
    /// The TLS handshake or the request's head took too long.
    Timeout,
}

/// Hears of each [`Failure`]; must not block.
pub type Observer = Arc<dyn Fn(Failure) + Send + Sync>;

/// Whether a server can take connections; clones tell of the same one.
#[derive(Clone, Debug, Default)]
pub struct Intake(Arc<AtomicBool>);

impl Intake {
    /// The process is out of descriptors or memory: connections wait in the kernel's backlog. True from the first failure
    /// until connections are accepted again, or none waits.
    pub fn is_failing(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn fails(&self, failing: bool) {
        self.0.store(failing, Ordering::Relaxed);
    }
}

/// One listening socket, with or without TLS.
pub struct Server {
    listener: TcpListener,
    intake: Intake,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    config: ServerConfig,
    observer: Observer,
}

impl Server {
    /// Binds `address`; port 0 takes a free one, see [`Server::local_addr`].
    pub fn bind(address: SocketAddr, config: ServerConfig) -> Result<Self, BindError> {
        let listen = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        };
        let (listener, bound) = listen().map_err(|source| BindError { address, source })?;
        Ok(Self { listener, intake: Intake::default(), address: bound, tls: None, config, observer: Arc::new(|_| {}) })
    }

    /// Speaks TLS with this certificate, and looks every 5 s whether its files changed.
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<Tls>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Tells this observer of connections that fail before a request.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Tells whether it can take connections, for as long as it runs.
    pub fn intake(&self) -> Intake {
        self.intake.clone()
    }

    /// Serves until `shutdown`, then stops accepting and lets requests under way finish for up to `grace`; what is left
    /// then is cut. Upgraded connections are not waited for.
    pub async fn run(self, router: Router, shutdown: CancellationToken, grace: Duration) {
        let Self { listener, intake, tls, config, address, observer } = self;
        let slots = u32::try_from(config.max_connections).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let places = Arc::new(Semaphore::new(slots as usize));
        let cut = CancellationToken::new();
        let exchange = Arc::new(Exchange { router, tls, config, observer, shutdown, cut: cut.clone() });
        tokio::select! {
            () = exchange.shutdown.cancelled() => {}
            () = accept(&listener, &intake, &exchange, &places) => {}
            () = watch_certificate(exchange.tls.clone()) => {}
        }
        drop(listener);
        // All places free: every connection has ended.
        if timeout_at(Instant::now() + grace, places.acquire_many(slots)).await.is_err() {
            tracing::warn!(%address, "requests still under way at the end of the grace time are cut");
            cut.cancel();
        }
    }
}

/// What the connections of one server share.
struct Exchange {
    router: Router,
    tls: Option<Arc<Tls>>,
    config: ServerConfig,
    observer: Observer,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

async fn accept(listener: &TcpListener, intake: &Intake, exchange: &Arc<Exchange>, places: &Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = match intake.is_failing() {
            false => listener.accept().await,
            true => match timeout(ACCEPT_BACKOFF, listener.accept()).await {
                Ok(accepted) => accepted,
                // Nobody waits, and the kernel looks for a free descriptor before it says so.
                Err(_) => {
                    intake.fails(false);
                    continue;
                }
            },
        };
        match accepted {
            Ok((stream, peer)) => {
                intake.fails(false);
                tokio::spawn(connection(exchange.clone(), stream, peer, place));
            }
            // The peer gave up before it was accepted.
            Err(error) if is_peer(&error) => {}
            Err(error) => {
                if !intake.is_failing() {
                    tracing::error!(%error, "cannot accept connections, trying on");
                }
                intake.fails(true);
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn is_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn watch_certificate(tls: Option<Arc<Tls>>) {
    let Some(tls) = tls else { return std::future::pending().await };
    // It was read just now.
    let mut ticks = interval_at(Instant::now() + TLS_WATCH, TLS_WATCH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let tls = tls.clone();
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(true)) => tracing::info!("certificate exchanged"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::error!(%error, "new certificate refused, the old one stays"),
            Err(error) => tracing::error!(%error, "certificate not checked"),
        }
    }
}

async fn connection(exchange: Arc<Exchange>, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "connection lost before its first request");
        return;
    }
    match &exchange.tls {
        None => serve(&exchange, TokioIo::new(stream), peer).await,
        Some(tls) => {
            let handshake = timeout(exchange.config.handshake_timeout, tls.acceptor().accept(stream));
            let outcome = tokio::select! {
                outcome = handshake => outcome,
                () = exchange.shutdown.cancelled() => return,
            };
            match outcome {
                // Boxed: the state of a TLS session is large and would double the size of this future.
                Ok(Ok(stream)) => Box::pin(serve(&exchange, TokioIo::new(stream), peer)).await,
                Ok(Err(error)) => {
                    (exchange.observer)(Failure::Tls);
                    tracing::debug!(%error, %peer, "TLS handshake failed");
                }
                Err(_) => {
                    (exchange.observer)(Failure::Timeout);
                    tracing::debug!(%peer, "TLS handshake took too long");
                }
            }
        }
    }
    drop(place);
}

async fn serve<I>(exchange: &Exchange, io: I, peer: SocketAddr)
where
    I: Read + Write + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let reply = (exchange.router)(request, peer);
        async move { Ok::<_, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(exchange.config.header_timeout)
        .max_buf_size(exchange.config.max_header_bytes.max(8192))
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = exchange.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = connection.as_mut() => outcome,
                () = exchange.cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = outcome {
        if error.is_timeout() {
            (exchange.observer)(Failure::Timeout);
        }
        tracing::debug!(%error, %peer, "HTTP connection ended early");
    }
}
