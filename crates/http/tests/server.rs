//! The server over real loopback sockets.
#![allow(clippy::unwrap_used)] // Functions that tests share say what they expect by unwrapping.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use plenum_http::{Failure, Router, Server, ServerConfig, Tls, text};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(60);

fn hello() -> Router {
    Arc::new(|_, _| Box::pin(async { text(StatusCode::OK, "hello\n") }))
}

fn start(
    config: ServerConfig,
    router: Router,
    tls: Option<Arc<Tls>>,
) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    if let Some(tls) = tls {
        server = server.with_tls(tls);
    }
    let (address, stop) = (server.local_addr(), CancellationToken::new());
    (address, stop.clone(), tokio::spawn(server.run(router, stop, Duration::from_secs(5))))
}

async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// Everything until the server closes. A reset ends it as well.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("the server leaves the connection open");
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn a_request_is_answered_and_the_connection_kept() {
    let (address, _stop, _) = start(ServerConfig::default(), hello(), None);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = answer(&mut send(address, request).await).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let config = ServerConfig { header_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let (address, _stop, _) = start(config, hello(), None);
    let mut silent = send(address, b"").await;
    let mut slow = send(address, b"GET / HTTP/1.1\r\nHost:").await;
    assert!(!answer(&mut silent).await.contains("200"));
    assert!(!answer(&mut slow).await.contains("200"));
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let (address, _stop, _) = start(ServerConfig::default(), hello(), None);
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(20_000));
    let answer = answer(&mut send(address, head.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let config = ServerConfig { max_connections: 1, ..ServerConfig::default() };
    let (address, _stop, _) = start(config, hello(), None);
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut first = send(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut line = [0; 15];
    first.read_exact(&mut line).await.unwrap();
    let mut second = send(address, request).await;
    let mut byte = [0; 1];
    assert!(timeout(Duration::from_millis(200), second.read(&mut byte)).await.is_err(), "answered over the limit");
    drop(first);
    assert!(answer(&mut second).await.contains("200 OK"));
}

#[tokio::test]
async fn a_request_under_way_is_finished_at_the_end() {
    let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router: Router = {
        let (entered, go_on) = (entered.clone(), go_on.clone());
        Arc::new(move |_, _| {
            let (entered, go_on) = (entered.clone(), go_on.clone());
            Box::pin(async move {
                entered.notify_one();
                go_on.notified().await;
                text(StatusCode::OK, "done\n")
            })
        })
    };
    let (address, stop, running) = start(ServerConfig::default(), router, None);
    let mut idle = send(address, b"").await;
    let mut busy = send(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    timeout(LONG, entered.notified()).await.unwrap();
    stop.cancel();
    assert_eq!(answer(&mut idle).await, "");
    assert!(!running.is_finished());
    go_on.notify_one();
    assert!(answer(&mut busy).await.ends_with("done\n"));
    timeout(LONG, running).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "still accepting");
}

fn certificate() -> CertifiedKey<rcgen::KeyPair> {
    generate_simple_self_signed(["localhost".to_owned()]).unwrap()
}

/// A certificate and key in files of their own.
struct Files(std::path::PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plenum-http-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, pair: &CertifiedKey<rcgen::KeyPair>) {
        std::fs::write(self.0.join("tls.crt"), pair.cert.pem()).unwrap();
        std::fs::write(self.0.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    }

    fn load(&self) -> Result<Tls, plenum_http::TlsError> {
        Tls::load(&self.0.join("tls.crt"), &self.0.join("tls.key"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A request by a client that trusts `pair` alone.
async fn request_tls(address: SocketAddr, pair: &CertifiedKey<rcgen::KeyPair>) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_new_certificate_is_used_and_a_bad_one_is_not() {
    let (first, second) = (certificate(), certificate());
    let files = Files::new("reload");
    files.write(&first);
    let tls = Arc::new(files.load().unwrap());
    let (address, _stop, _) = start(ServerConfig::default(), hello(), Some(tls.clone()));
    assert!(request_tls(address, &first).await.unwrap().ends_with("hello\n"));
    assert!(!tls.reload().unwrap(), "nothing changed");

    // The certificate came before its key: refused once, the old pair stays.
    std::fs::write(files.0.join("tls.crt"), second.cert.pem()).unwrap();
    assert!(matches!(tls.reload(), Err(plenum_http::TlsError::Pair { .. })));
    assert!(!tls.reload().unwrap());
    assert!(request_tls(address, &first).await.is_ok());

    files.write(&second);
    assert!(tls.reload().unwrap());
    assert!(request_tls(address, &second).await.unwrap().ends_with("hello\n"));
    assert!(request_tls(address, &first).await.is_err());
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let pair = certificate();
    let files = Files::new("handshake");
    files.write(&pair);
    let config = ServerConfig { handshake_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let (address, _stop, _) = start(config, hello(), Some(Arc::new(files.load().unwrap())));
    assert_eq!(answer(&mut send(address, b"").await).await, "");
    // A busy machine may not manage a whole handshake in that time.
    let answered = async { while request_tls(address, &pair).await.is_err() {} };
    timeout(LONG, answered).await.expect("no handshake in time is answered");
}

#[tokio::test]
async fn unusable_files_are_named() {
    let files = Files::new("unusable");
    let missing = files.load().unwrap_err();
    assert!(missing.to_string().contains("tls.crt"), "{missing}");
    files.write(&certificate());
    std::fs::write(files.0.join("tls.crt"), "nothing").unwrap();
    assert!(matches!(files.load(), Err(plenum_http::TlsError::NoCertificate { .. })));
    files.write(&certificate());
    std::fs::write(files.0.join("tls.key"), "nothing").unwrap();
    let error = files.load().unwrap_err();
    assert!(error.to_string().contains("tls.key"), "{error}");
}

#[tokio::test]
async fn what_fails_before_a_request_is_told() {
    let files = Files::new("observer");
    files.write(&certificate());
    let tls = Arc::new(files.load().unwrap());
    let short = Duration::from_millis(50);
    let garbage: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (tls, sent, limit, expected) in [
        (None, &b"GET / HTTP/1.1\r\n"[..], short, Failure::Timeout),
        (Some(tls.clone()), b"", short, Failure::Timeout),
        (Some(tls), garbage, LONG, Failure::Tls),
    ] {
        let config = ServerConfig { header_timeout: limit, handshake_timeout: limit, ..ServerConfig::default() };
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap(), config)
            .unwrap()
            .with_observer(Arc::new(move |failure| told.send(failure).unwrap()));
        if let Some(tls) = tls {
            server = server.with_tls(tls);
        }
        let address = server.local_addr();
        tokio::spawn(server.run(hello(), CancellationToken::new(), LONG));
        let _stream = send(address, sent).await;
        assert_eq!(timeout(LONG, tells.recv()).await.unwrap(), Some(expected));
    }
}
