//! From a URL to an open WebSocket.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Response, Uri};
use plenum_protocol::Encoding;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Limit of TCP, TLS and WebSocket handshake together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a load test connects to.
#[derive(Clone)]
pub struct Target {
    url: Uri,
    place: Place,
    origin: Option<HeaderValue>,
}

/// A TCP port, and whom to trust there.
#[derive(Clone)]
pub(crate) struct Place {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Place {
    /// Where a URL with these schemes leads; `None` when it is no such URL.
    pub(crate) fn of(url: &Uri, schemes: [&str; 2], ca: Option<&Path>) -> Result<Option<Self>, TargetError> {
        let (Some(scheme), Some(host)) = (url.scheme_str(), url.host()) else { return Ok(None) };
        if !schemes.contains(&scheme) {
            return Ok(None);
        }
        let encrypted = scheme == schemes[1];
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = url.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        if !encrypted {
            return Ok(Some(Self { host, port, tls: None }));
        }
        let Ok(name) = ServerName::try_from(host.clone()) else { return Ok(None) };
        Ok(Some(Self { host, port, tls: Some((connector(ca)?, name)) }))
    }

    /// TCP and TLS.
    pub(crate) async fn dial(&self) -> Result<Stream, String> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(match &self.tls {
            None => Stream::Plain(tcp),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(|error| error.to_string())?;
                Stream::Tls(Box::new(tls))
            }
        })
    }
}

/// Why a target cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is no WebSocket URL.
    #[error("{url:?} is not allowed: must be ws://host[:port]/path or wss://host[:port]/path")]
    Url {
        /// What was given.
        url: String,
    },
    /// The Origin cannot be sent.
    #[error("origin {origin:?} is not allowed: must be printable ASCII")]
    Origin {
        /// What was given.
        origin: String,
    },
    /// No certificate authority to trust.
    #[error("no certificate authority: {reason}")]
    Roots {
        /// Why.
        reason: String,
    },
}

impl Target {
    /// A URL, the Origin to send, and a PEM file of authorities to trust instead of the system's.
    pub fn new(url: &str, origin: Option<&str>, ca: Option<&Path>) -> Result<Self, TargetError> {
        let wrong = || TargetError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let place = Place::of(&uri, ["ws", "wss"], ca)?.ok_or_else(wrong)?;
        let origin = origin
            .map(|origin| HeaderValue::from_str(origin).map_err(|_| TargetError::Origin { origin: origin.to_owned() }))
            .transpose()?;
        Ok(Self { url: uri, place, origin })
    }

    pub(crate) async fn open(&self, encoding: Encoding) -> Result<WebSocketStream<Stream>, String> {
        let opened = timeout(PATIENCE, self.handshake(encoding)).await;
        opened.map_err(|_| "no answer within 10 s".to_owned())?.map(|(socket, _)| socket)
    }

    /// The socket and the answer to its handshake.
    pub(crate) async fn handshake(
        &self,
        encoding: Encoding,
    ) -> Result<(WebSocketStream<Stream>, Response<Option<Vec<u8>>>), String> {
        let stream = self.place.dial().await?;
        let mut request = self.url.clone().into_client_request().map_err(|error| error.to_string())?;
        if let Some(origin) = &self.origin {
            request.headers_mut().insert("origin", origin.clone());
        }
        if encoding == Encoding::Protobuf {
            let name = HeaderValue::from_static("centrifuge-protobuf");
            request.headers_mut().insert("sec-websocket-protocol", name);
        }
        // The library's own buffer is 128 KiB for each of thousands of connections.
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        match client_async_with_config(request, stream, Some(config)).await {
            Ok(opened) => Ok(opened),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, TargetError> {
    let refused = |reason: String| TargetError::Roots { reason };
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let shown = path.display();
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| refused(format!("{shown}: {error}")))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| refused(format!("{shown}: {error}")))?;
                roots.add(certificate).map_err(|error| refused(format!("{shown}: {error}")))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(refused("the system has none; name a PEM file".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A socket with or without TLS.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// What the server proved itself with, its own certificate first; empty without TLS.
    pub(crate) fn certificates(&self) -> Vec<Vec<u8>> {
        match self {
            Stream::Plain(_) => Vec::new(),
            Stream::Tls(stream) => {
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                chain.iter().map(|certificate| certificate.to_vec()).collect()
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
