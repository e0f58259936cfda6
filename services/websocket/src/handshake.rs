//! The opening handshake (RFC 6455, section 4.2).

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use plenum_http::{Reply, text};
use plenum_protocol::Encoding;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Subprotocols of the client protocol.
const SUBPROTOCOLS: [(&str, Encoding); 2] =
    [("centrifuge-protobuf", Encoding::Protobuf), ("centrifuge-json", Encoding::Json)];

/// A valid request for a WebSocket.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) encoding: Encoding,
    accept: HeaderValue,
    subprotocol: Option<&'static str>,
}

/// Why a request is no valid handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHandshake {
    #[error("a WebSocket is opened with GET and HTTP/1.1")]
    Method,
    #[error("this is a WebSocket endpoint: the headers \"Connection: Upgrade\" and \"Upgrade: websocket\" are missing")]
    NoUpgrade,
    #[error("only version 13 of the WebSocket protocol is supported")]
    Version,
    #[error("Sec-WebSocket-Key must be 16 bytes in Base64")]
    Key,
    #[error("only version v2 of the client protocol is supported")]
    ProtocolVersion,
}

impl BadHandshake {
    /// The refusal, with the reason as plain text.
    pub(crate) fn reply(self) -> Reply {
        let status = match self {
            BadHandshake::Method => StatusCode::METHOD_NOT_ALLOWED,
            BadHandshake::Version => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut reply = text(status, format!("{self}\n"));
        match self {
            BadHandshake::Method => {
                reply.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            BadHandshake::Version => {
                reply.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            _ => {}
        }
        reply
    }
}

impl Opening {
    /// Checks the request line and headers; the body does not matter.
    pub(crate) fn check<B>(request: &Request<B>) -> Result<Self, BadHandshake> {
        let headers = request.headers();
        if request.method() != Method::GET || request.version() != Version::HTTP_11 {
            return Err(BadHandshake::Method);
        }
        if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
            return Err(BadHandshake::NoUpgrade);
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(BadHandshake::Version);
        }
        let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).ok_or(BadHandshake::Key)?;
        let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        if key.len() != 24 || !key.ends_with(b"==") || !key[..22].iter().all(base64) {
            return Err(BadHandshake::Key);
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key)).map_err(|_| BadHandshake::Key)?;
        let chosen = tokens(headers, SEC_WEBSOCKET_PROTOCOL)
            .find_map(|offered| SUBPROTOCOLS.iter().find(|(name, _)| *name == offered));
        let encoding = match chosen {
            Some((_, encoding)) => *encoding,
            None => encoding_of(request.uri())?,
        };
        Ok(Self { encoding, accept, subprotocol: chosen.map(|(name, _)| *name) })
    }

    /// The reply that switches protocols.
    pub(crate) fn reply(self) -> Reply {
        let mut reply = Response::new(Full::new(Bytes::new()));
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(subprotocol) = self.subprotocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
        }
        reply
    }
}

/// The encoding that the query asks for; JSON unless it says otherwise.
fn encoding_of(uri: &Uri) -> Result<Encoding, BadHandshake> {
    let mut encoding = Encoding::Json;
    for pair in uri.query().unwrap_or_default().split('&') {
        match pair.split_once('=') {
            Some(("cf_protocol" | "format", "protobuf")) => encoding = Encoding::Protobuf,
            Some(("cf_protocol_version", version)) if version != "v2" => return Err(BadHandshake::ProtocolVersion),
            _ => {}
        }
    }
    Ok(encoding)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> http::request::Builder {
        Request::get("/connection/websocket")
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "WebSocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    fn check(builder: http::request::Builder) -> Result<Opening, BadHandshake> {
        Opening::check(&builder.body(()).unwrap())
    }

    #[test]
    fn the_example_of_the_rfc() {
        let reply = check(request()).unwrap().reply();
        assert_eq!(reply.status(), 101);
        assert_eq!(reply.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!reply.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn the_encoding_comes_from_subprotocol_or_query() {
        assert_eq!(check(request()).unwrap().encoding, Encoding::Json);
        let offered = request().header("Sec-WebSocket-Protocol", "other, centrifuge-protobuf");
        let opening = check(offered).unwrap();
        assert_eq!(opening.encoding, Encoding::Protobuf);
        assert_eq!(opening.reply().headers()[SEC_WEBSOCKET_PROTOCOL], "centrifuge-protobuf");
        let asked = |query: &str| check(request().uri(format!("/connection/websocket?{query}")));
        assert_eq!(asked("a=b&cf_protocol=protobuf").unwrap().encoding, Encoding::Protobuf);
        assert_eq!(asked("cf_protocol=json&cf_protocol_version=v2").unwrap().encoding, Encoding::Json);
        assert_eq!(asked("cf_protocol_version=v1").unwrap_err(), BadHandshake::ProtocolVersion);
    }

    #[test]
    fn each_fault_is_named() {
        let without = |name: &str| {
            let mut request = request().body(()).unwrap();
            request.headers_mut().remove(name);
            Opening::check(&request).unwrap_err()
        };
        assert_eq!(without("connection"), BadHandshake::NoUpgrade);
        assert_eq!(without("upgrade"), BadHandshake::NoUpgrade);
        assert_eq!(without("sec-websocket-version"), BadHandshake::Version);
        assert_eq!(without("sec-websocket-key"), BadHandshake::Key);
        assert_eq!(check(request().method("POST")).unwrap_err(), BadHandshake::Method);
        assert_eq!(check(request().version(Version::HTTP_10)).unwrap_err(), BadHandshake::Method);
        let mut short = request().body(()).unwrap();
        short.headers_mut().insert("Sec-WebSocket-Key", HeaderValue::from_static("c2hvcnQ="));
        assert_eq!(Opening::check(&short).unwrap_err(), BadHandshake::Key);
        assert_eq!(BadHandshake::Version.reply().headers()[SEC_WEBSOCKET_VERSION], "13");
        assert_eq!(BadHandshake::Key.reply().status(), 400);
    }
}
