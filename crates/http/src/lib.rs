//! The HTTP/1.1 server behind every port of Plenum.
//!
//! A [`Server`] owns one listening socket and hands each request to a [`Router`]. It bounds what a client may cost before
//! its request is complete (connections, header bytes, header and TLS handshake time), reloads its certificate when the
//! files change, and ends gracefully. Requests that upgrade (WebSocket) leave the server with their socket.

mod server;
mod tls;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

pub use server::{BindError, Failure, Intake, Observer, Server, ServerConfig};
pub use tls::{Tls, TlsError, TlsStream};

/// What a router answers with: a body that is complete when the response starts.
pub type Reply = Response<Full<Bytes>>;

/// The future of a [`Reply`].
pub type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// Answers one request; the address is that of the TCP peer.
pub type Router = Arc<dyn Fn(Request<Incoming>, SocketAddr) -> ReplyFuture + Send + Sync>;

/// A plain text reply; `text` should end with a newline so that it reads well in a terminal.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(text.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}
