//! Complete HTTP replies.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// A reply whose body is complete when it starts.
pub(crate) type HttpReply = Response<Full<Bytes>>;

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(crate) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

pub(crate) fn reply(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> HttpReply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    // Answers tell of this moment; an intermediary that kept one would lie.
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    reply
}

/// Our own types always have a JSON form; should one not, the caller gets status 500.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> HttpReply {
    match serde_json::to_vec(value) {
        Ok(body) => reply(status, JSON, body),
        Err(error) => {
            tracing::error!(%error, "a reply could not be encoded");
            reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the reply could not be encoded\n")
        }
    }
}

/// 405 with the methods that the path takes.
pub(crate) fn method_not_allowed(allowed: &'static str, method: &Method) -> HttpReply {
    let mut reply = reply(
        StatusCode::METHOD_NOT_ALLOWED,
        TEXT,
        format!("method {method} is not allowed here; allowed: {allowed}\n"),
    );
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// Refuses everything but GET, and HEAD where the server leaves the body out.
pub(crate) fn unless_get(method: &Method) -> Option<HttpReply> {
    match *method {
        Method::GET | Method::HEAD => None,
        _ => Some(method_not_allowed("GET, HEAD", method)),
    }
}
