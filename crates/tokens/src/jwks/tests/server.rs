//! A key set server that answers as told and counts.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

#[derive(Clone)]
pub(super) enum Answer {
    Body(Vec<u8>),
    Status(u16),
    /// To a path that would answer.
    Redirect,
    Never,
    /// The body, once for each permit.
    Gated(Arc<Semaphore>, Vec<u8>),
}

impl Answer {
    pub(super) fn keys<const N: usize>(keys: [Value; N]) -> Self {
        Self::Body(json!({"keys": keys.to_vec()}).to_string().into_bytes())
    }
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    hits: Mutex<HashMap<String, usize>>,
}

/// Ends when dropped.
pub(super) struct KeyServer {
    base: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl KeyServer {
    pub(super) async fn start() -> Self {
        Self::serve("http", None).await
    }

    /// With a certificate of its own, which is returned.
    pub(super) async fn start_tls() -> (Self, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let certificate = made.cert.der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        (Self::serve("https", Some(TlsAcceptor::from(Arc::new(config)))).await, certificate)
    }

    async fn serve(scheme: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = if tls.is_some() { "localhost" } else { "127.0.0.1" };
        let base = format!("{scheme}://{host}:{}", listener.local_addr().unwrap().port());
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        let accepted = shared.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (accepted.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => connection(shared, stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(shared, stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { base, shared, _tasks: tasks }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().insert(path.to_owned(), answer);
    }

    /// Answers only when the returned semaphore has a permit.
    pub(super) fn gated(&self, path: &str, answer: Answer) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        let Answer::Body(body) = answer else { panic!("only a body can be gated") };
        self.answer(path, Answer::Gated(gate.clone(), body));
        gate
    }

    pub(super) fn hits(&self, path: &str) -> usize {
        self.shared.hits.lock().get(path).copied().unwrap_or(0)
    }

    pub(super) async fn wait_for_hits(&self, path: &str, hits: usize) {
        let reached = async {
            while self.hits(path) < hits {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("the server is asked");
    }
}

async fn connection(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(move |request| answer(shared.clone(), request));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    *shared.hits.lock().entry(path.clone()).or_default() += 1;
    let answer = shared.answers.lock().get(&path).cloned().unwrap_or(Answer::Status(404));
    let (status, body) = match answer {
        Answer::Body(body) => (200, body),
        Answer::Status(status) => (status, Vec::new()),
        Answer::Redirect => (302, Vec::new()),
        Answer::Never => std::future::pending().await,
        Answer::Gated(gate, body) => {
            gate.acquire().await.unwrap().forget();
            (200, body)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if status == 302 {
        response.headers_mut().insert(http::header::LOCATION, "/elsewhere".parse().unwrap());
    }
    Ok(response)
}
