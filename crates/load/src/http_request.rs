//! One HTTP request on a connection of its own.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HOST, SERVER};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::socket::{Place, TargetError};

/// Largest answer that is read, bytes.
const MAX_ANSWER: usize = 8 << 20;

/// Where requests go.
#[derive(Clone)]
pub struct HttpTarget {
    url: Uri,
    place: Place,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// Its status.
    pub status: StatusCode,
    /// The header `Server`; empty when there is none.
    pub server: String,
    /// The header `Date`; empty when there is none.
    pub date: String,
    /// The body, whatever bytes it has.
    pub body: Bytes,
}

impl HttpTarget {
    /// An http:// or https:// URL, and a PEM file of authorities to trust instead of the system's.
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, TargetError> {
        let wrong = || TargetError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let place = Place::of(&uri, ["http", "https"], ca)?.ok_or_else(wrong)?;
        Ok(Self { url: uri, place })
    }

    /// The same server and another path.
    pub fn at(&self, path: &str) -> Self {
        let mut parts = self.url.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        Self { url: Uri::from_parts(parts).unwrap_or_else(|_| self.url.clone()), place: self.place.clone() }
    }

    /// The path that it was made with, without a slash at the end.
    pub fn path(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    /// GET.
    pub async fn get(&self, limit: Duration) -> Result<HttpAnswer, String> {
        self.ask(Method::GET, Bytes::new(), None, limit).await
    }

    /// POST of JSON with a key of the server API (`X-API-Key`); an empty one is left out.
    pub async fn post(&self, body: impl Into<Bytes>, key: &str, limit: Duration) -> Result<HttpAnswer, String> {
        self.ask(Method::POST, body.into(), Some(key).filter(|key| !key.is_empty()), limit).await
    }

    async fn ask(&self, method: Method, body: Bytes, key: Option<&str>, limit: Duration) -> Result<HttpAnswer, String> {
        let late = |_| format!("no answer within {limit:?}");
        timeout(limit, self.exchange(method, body, key)).await.map_err(late)?
    }

    async fn exchange(&self, method: Method, body: Bytes, key: Option<&str>) -> Result<HttpAnswer, String> {
        let stream = TokioIo::new(self.place.dial().await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        let host = self.url.authority().map_or("", |host| host.as_str());
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body));
        let answer = async {
            let answer = sender.send_request(request.map_err(|error| error.to_string())?).await;
            let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?.to_bytes();
            let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
            Ok(HttpAnswer { status: head.status, server: header(SERVER), date: header(DATE), body })
        };
        let answer = answer.await;
        connection.abort();
        answer
    }
}
