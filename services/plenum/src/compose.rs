//! The composition root: which parts make up a server, and which port carries what.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::header::RETRY_AFTER;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use plenum_api::{Api, ApiConfig, ErrorMode, Keys, Operations, OperationsConfig, OperationsParts, Page};
use plenum_channels::memory::{MemoryControl, MemoryLog, MemoryPresence};
use plenum_channels::{Control, Dependency, Log, Node, Parts, Presence, Shared, Tokens};
use plenum_http::{Failure, Intake, Observer, Reply, Router, Server, ServerConfig, Tls, text};
use plenum_telemetry::{Handshake, Metrics};
use plenum_tokens::{Authority, Verifier};
use plenum_websocket::{Origins, TrustedProxies, Websocket, WebsocketConfig};
use tokio::sync::Notify;

use crate::config::{self, Config, HttpServer, TlsSection};
use crate::drain;
use crate::nats::Nats;
use crate::redis::Redis;

/// Path of the report on what the connections to NATS use.
const REPORT: &str = "/report";

/// A server with its ports bound, not yet serving.
pub struct App {
    pub node: Arc<Node>,
    pub websocket: Arc<Websocket<Arc<Node>>>,
    pub services: Arc<Services>,
    pub nats: Option<Arc<Nats>>,
    pub public: Server,
    pub internal: Option<Server>,
}

/// The addresses that were bound.
pub struct Bound {
    pub public: SocketAddr,
    pub internal: Option<SocketAddr>,
}

/// What answers HTTP requests.
pub struct Services {
    node: Arc<Node>,
    websocket: Arc<Websocket<Arc<Node>>>,
    /// Exchanged when its keys are.
    api: ArcSwap<Api>,
    operations: Operations,
    page: Option<Page>,
    nats: Option<Arc<Nats>>,
    paths: Paths,
    drain: Notify,
}

/// Which services a port carries.
struct Paths {
    websocket: Option<String>,
    api: bool,
    api_external: bool,
    apart: bool,
}

/// Puts a server together, on NATS where the configuration has servers and in this process otherwise, and binds its
/// ports.
pub async fn app(config: &Config, dev: bool) -> anyhow::Result<App> {
    let metrics = Metrics::new()?;
    let name = node_name(config);
    let nats = match config.nats.enabled() {
        true => Some(Nats::open(config, &name, &metrics).await.context("nats")?),
        false => None,
    };
    let (log, control): (Arc<dyn Log>, Arc<dyn Control>) = match &nats {
        Some(nats) => (nats.log.clone(), nats.control.clone()),
        None => (MemoryLog::single(), MemoryControl::single()),
    };
    let mut shared = match &nats {
        Some(nats) => Shared { ledger: nats.ledger.clone(), replicas: nats.replicas.clone(), ..Shared::single() },
        None => Shared::single(),
    };
    let mut presence: Arc<dyn Presence> = MemoryPresence::single();
    let mut dependencies: Vec<Arc<dyn Dependency>> = Vec::new();
    if let Some(nats) = &nats {
        dependencies.push(nats.clone());
    }
    if config.redis.enabled() {
        let redis = Redis::open(&config.redis, shared.replicas.clone(), &metrics).context("redis")?;
        presence = redis.presence.clone();
        shared.quotas = Some(redis.quotas.clone());
        shared.results = Some(redis.results.clone());
        if let Some(nats) = &nats {
            nats.remember_tails(redis.tails.clone());
            shared.copies = Some(redis.copies.clone());
        }
        dependencies.push(redis);
    }
    let parts = Parts {
        settings: config.settings(),
        log: log.clone(),
        presence,
        control,
        tokens: tokens(config)?,
        metrics: metrics.clone(),
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let node = Node::with_shared(parts, shared)?;
    node.lean_on(dependencies);
    let websocket = Arc::new(Websocket::new(node.clone(), websocket_config(config)?, metrics));
    let operations = OperationsConfig {
        health: config.health.enabled.then(|| config.health.handler_prefix.clone()),
        metrics: config.prometheus.enabled.then(|| config.prometheus.handler_prefix.clone()),
    };
    let operations = Operations::new(operations, OperationsParts { node: node.clone(), log });
    let operations = match &nats {
        Some(nats) => operations.with_broker(nats.clone()),
        None => operations,
    };
    let (public, internal) = bind(&config.http_server)?;
    let intakes: Vec<Intake> = [Some(&public), internal.as_ref()].into_iter().flatten().map(Server::intake).collect();
    let operations = operations.with_blocked(Box::new(move || intakes.iter().any(Intake::is_failing)));
    let public = public.with_observer(handshake_failures(node.metrics()));
    let services = Arc::new(Services {
        api: ArcSwap::from_pointee(api(config, &node)),
        operations,
        page: dev.then_some(Page),
        nats: nats.clone(),
        paths: Paths {
            websocket: (!config.websocket.disabled).then(|| config.websocket.handler_prefix.clone()),
            api: !config.http_api.disabled,
            api_external: config.http_api.external,
            apart: internal.is_some(),
        },
        drain: Notify::new(),
        node: node.clone(),
        websocket: websocket.clone(),
    });
    Ok(App { node, websocket, services, nats, public, internal })
}

fn websocket_config(config: &Config) -> anyhow::Result<WebsocketConfig> {
    let user_header = &config.client.user_id_http_header;
    Ok(WebsocketConfig {
        allowed_origins: Origins::new(&config.access.allowed_origins)?,
        message_size_limit: config.websocket.message_size_limit,
        write_timeout: config.websocket.write_timeout,
        trusted_proxies: TrustedProxies::new(&config.http_server.trusted_proxies)?,
        user_header: (!user_header.is_empty()).then(|| user_header.parse()).transpose()?,
    })
}

/// Verifies tokens as the configuration says.
pub fn tokens(config: &Config) -> anyhow::Result<Arc<dyn Tokens>> {
    Ok(Arc::new(authority(config)?))
}

/// As [`tokens`], for a report on one token.
pub fn authority(config: &Config) -> anyhow::Result<Authority> {
    let verifier = |token: &plenum_tokens::TokenConfig| Verifier::new(token.clone());
    let connection = verifier(&config.access.token).context("client.token")?;
    let own = config.subscription_token.enabled;
    let subscription = own.then(|| verifier(&config.subscription_token.token)).transpose();
    Ok(Authority::new(connection, subscription.context("client.subscription_token")?))
}

fn api(config: &Config, node: &Arc<Node>) -> Api {
    let api = &config.http_api;
    let config = ApiConfig {
        prefix: api.handler_prefix.clone(),
        keys: Keys::new([api.key.expose()]),
        insecure: api.insecure,
        error_mode: match api.error_mode {
            config::ErrorMode::Body => ErrorMode::Body,
            config::ErrorMode::Transport => ErrorMode::Transport,
        },
        ..ApiConfig::default()
    };
    Api::new(config, node.clone())
}

fn node_name(config: &Config) -> String {
    if !config.node.name.is_empty() {
        return config.node.name.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "plenum" } else { host.trim() };
    format!("{host}_{}", config.http_server.port)
}

/// Certificates are read before any port is bound.
fn bind(http: &HttpServer) -> anyhow::Result<(Server, Option<Server>)> {
    let internal_port = http.internal_port()?;
    let public_tls = tls("http_server.tls", &http.tls)?;
    let internal_tls = match (&public_tls, http.internal_tls.enabled) {
        (_, true) => tls("http_server.internal_tls", &http.internal_tls)?,
        (shared, false) if !http.tls_external => shared.clone(),
        _ => None,
    };
    let limits = ServerConfig {
        header_timeout: http.header_timeout,
        handshake_timeout: http.handshake_timeout,
        max_header_bytes: http.max_header_size,
        max_connections: http.max_http_connections,
    };
    let open = |address: &str, port: u16, tls: Option<Arc<Tls>>| {
        let server = listen(address, port, &limits)?;
        anyhow::Ok(match tls {
            Some(tls) => server.with_tls(tls),
            None => server,
        })
    };
    let public = open(&http.address, http.port, public_tls).context("http_server.port")?;
    let address = if http.internal_address.is_empty() { &http.address } else { &http.internal_address };
    let internal = internal_port.map(|port| open(address, port, internal_tls)).transpose();
    Ok((public, internal.context("http_server.internal_port")?))
}

/// All interfaces are those of IPv6 and IPv4, where the system has IPv6.
fn listen(address: &str, port: u16, limits: &ServerConfig) -> anyhow::Result<Server> {
    if address.is_empty()
        && let Ok(server) = Server::bind((Ipv6Addr::UNSPECIFIED, port).into(), limits.clone())
    {
        return Ok(server);
    }
    Ok(Server::bind(config::resolve(address, port)?, limits.clone())?)
}

/// Counts clients that do not get as far as a request.
fn handshake_failures(metrics: &Arc<Metrics>) -> Observer {
    let metrics = metrics.clone();
    Arc::new(move |failure| {
        let result = match failure {
            Failure::Tls => Handshake::Tls,
            Failure::Timeout => Handshake::Timeout,
        };
        metrics.handshakes(result).inc();
    })
}

fn tls(key: &str, section: &TlsSection) -> anyhow::Result<Option<Arc<Tls>>> {
    if !section.enabled {
        return Ok(None);
    }
    let tls = Tls::load(Path::new(&section.cert_pem), Path::new(&section.key_pem)).with_context(|| key.to_owned())?;
    Ok(Some(Arc::new(tls)))
}

impl App {
    /// Where it listens.
    pub fn bound(&self) -> Bound {
        Bound { public: self.public.local_addr(), internal: self.internal.as_ref().map(Server::local_addr) }
    }
}

impl Services {
    /// Puts everything in force that can change while the server runs; nothing, if anything is wrong.
    pub fn reload(&self, config: &Config) -> anyhow::Result<()> {
        let tokens = tokens(config)?;
        self.node.reload(config.settings())?;
        self.node.replace_tokens(tokens);
        self.api.store(Arc::new(api(config, &self.node)));
        Ok(())
    }

    /// What the port for clients answers.
    pub fn public_router(self: &Arc<Self>) -> Router {
        let services = self.clone();
        Arc::new(move |request, peer| {
            let services = services.clone();
            Box::pin(async move { services.public(request, peer).await })
        })
    }

    /// What the internal port answers.
    pub fn internal_router(self: &Arc<Self>) -> Router {
        let services = self.clone();
        Arc::new(move |request, peer| {
            let services = services.clone();
            Box::pin(async move { services.internal(request, peer).await })
        })
    }

    async fn public(&self, request: Request<Incoming>, peer: SocketAddr) -> Reply {
        let path = request.uri().path();
        if self.paths.websocket.as_deref() == Some(path) {
            if self.nats.as_ref().is_some_and(|nats| !nats.is_started()) {
                let mut reply = text(StatusCode::SERVICE_UNAVAILABLE, "waiting for NATS\n");
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                return reply;
            }
            return self.websocket.upgrade(request, peer);
        }
        if let Some(page) = self.page.filter(|page| page.owns(path)) {
            return page.route(&request);
        }
        if !self.paths.apart || self.paths.api_external && self.owns_api(path) {
            return self.server_side(request).await;
        }
        not_found()
    }

    async fn internal(&self, request: Request<Incoming>, peer: SocketAddr) -> Reply {
        if request.uri().path() == drain::PATH && request.method() == Method::POST {
            return self.drain(&request, peer);
        }
        if self.paths.api_external && self.owns_api(request.uri().path()) {
            return not_found();
        }
        self.server_side(request).await
    }

    /// Resolves when a drain is asked for on the internal port.
    pub async fn drain_asked(&self) {
        self.drain.notified().await;
    }

    /// Anyone on this machine may ask; others need the API's key.
    fn drain(&self, request: &Request<Incoming>, peer: SocketAddr) -> Reply {
        let keyed = self.api.load().admits(request.headers(), request.uri().query());
        if !peer.ip().to_canonical().is_loopback() && !keyed {
            return text(StatusCode::FORBIDDEN, "needs the key of the server API\n");
        }
        tracing::info!(%peer, "a drain was asked for");
        self.drain.notify_one();
        text(StatusCode::ACCEPTED, "draining\n")
    }

    /// API, health and metrics.
    async fn server_side(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path();
        if self.owns_api(path) {
            let api = self.api.load_full();
            return api.route(request).await;
        }
        if self.operations.owns(path) {
            return self.operations.route(request).await;
        }
        match &self.nats {
            Some(nats) if path == REPORT && request.method() == Method::GET => text(StatusCode::OK, nats.report()),
            _ => not_found(),
        }
    }

    fn owns_api(&self, path: &str) -> bool {
        self.paths.api && self.api.load().owns(path)
    }
}

fn not_found() -> Reply {
    text(StatusCode::NOT_FOUND, "not found\n")
}
