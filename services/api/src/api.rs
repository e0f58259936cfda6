//! The server API over HTTP: `POST /api/<method>`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use plenum_channels::Node;
use plenum_protocol::ErrorCode;
use plenum_telemetry::{ApiMethod, Label, ResultCode};
use serde::de::DeserializeOwned;

use crate::batch::BatchRequest;
use crate::control::*;
use crate::decode;
use crate::http_reply::{HttpReply, JSON, json, method_not_allowed, reply, unless_get};
use crate::methods::{Call, Calls};
use crate::request::*;
use crate::response::Response;
use crate::{ApiError, ErrorMode, Keys, openapi};

/// Time in which the body of a request has to be complete.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How the API is served; the fields are Centrifugo's `http_api` section.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Path before the method's name, without a slash at its end (`http_api.handler_prefix`).
    pub prefix: String,
    /// Keys that callers show (`http_api.key`); without one nobody is admitted.
    pub keys: Keys,
    /// Admit everybody (`http_api.insecure`).
    pub insecure: bool,
    /// How errors are told where the request does not say (`http_api.error_mode`).
    pub error_mode: ErrorMode,
    /// Longest body in bytes; a longer one is answered with status 413.
    pub max_body_bytes: usize,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            prefix: "/api".into(),
            keys: Keys::default(),
            insecure: false,
            error_mode: ErrorMode::Body,
            max_body_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Answers the requests under [`ApiConfig::prefix`].
pub struct Api {
    config: ApiConfig,
    calls: Calls,
    document: Bytes,
}

impl Api {
    /// An API that acts on `node`.
    pub fn new(config: ApiConfig, node: Arc<Node>) -> Self {
        let document = openapi::document(&config.prefix).to_string().into();
        let metrics = node.metrics().clone();
        Self { config, calls: Calls { node, metrics }, document }
    }

    /// Whether the path is one of the API's.
    pub fn owns(&self, path: &str) -> bool {
        path.strip_prefix(&self.config.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether a request carries one of the API's keys; never without keys, whatever `insecure` says.
    pub fn admits(&self, headers: &http::HeaderMap, query: Option<&str>) -> bool {
        self.config.keys.admit(headers, query)
    }

    /// Answers one request. Always complete; never panics on what a caller sends.
    pub async fn route<B>(&self, request: Request<B>) -> HttpReply
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let name = head.uri.path().strip_prefix(&self.config.prefix).unwrap_or_default().strip_prefix('/');
        if name == Some("openapi.json") {
            return unless_get(&head.method).unwrap_or_else(|| self.openapi());
        }
        if !self.config.insecure && !self.config.keys.admit(&head.headers, head.uri.query()) {
            self.calls.metrics.api_unauthorized.inc();
            return unauthorized();
        }
        if name == Some("stats") {
            return match unless_get(&head.method) {
                Some(refused) => refused,
                None => self.stats().await,
            };
        }
        let Some(method) = name.and_then(ApiMethod::from_name) else { return unknown_method(name) };
        if head.method != http::Method::POST {
            return method_not_allowed("POST", &head.method);
        }
        let mode = self.error_mode(&head.headers);
        match self.read(body).await {
            Ok(body) => self.dispatch(method, &body, mode).await,
            Err(refused) => refused,
        }
    }

    /// What the whole server is doing; replicas that do not answer within 2 s are left out.
    async fn stats(&self) -> HttpReply {
        match self.calls.node.stats().await {
            Ok(stats) => json(StatusCode::OK, &stats),
            Err(error) => {
                let error = ApiError::from(error);
                json(error.status(), &error)
            }
        }
    }

    fn openapi(&self) -> HttpReply {
        reply(StatusCode::OK, JSON, self.document.clone())
    }

    /// The request may ask for statuses; a configured mode stands for all.
    fn error_mode(&self, headers: &HeaderMap) -> ErrorMode {
        match headers.get("x-centrifugo-error-mode") {
            Some(mode) if mode == "transport" => ErrorMode::Transport,
            _ => self.config.error_mode,
        }
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, HttpReply>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let limit = self.config.max_body_bytes;
        let reading = Limited::new(body, limit).collect();
        match tokio::time::timeout(BODY_TIMEOUT, reading).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let error =
                    ApiError::new(ErrorCode::BAD_REQUEST, format_args!("the body is longer than {limit} bytes"));
                Err(json(StatusCode::PAYLOAD_TOO_LARGE, &error))
            }
            Ok(Err(error)) => Err(malformed(format_args!("the body could not be read: {error}"))),
            Err(_) => {
                let seconds = BODY_TIMEOUT.as_secs();
                let error = ApiError::new(
                    ErrorCode::BAD_REQUEST,
                    format_args!("the body was not complete after {seconds} seconds"),
                );
                Err(json(StatusCode::REQUEST_TIMEOUT, &error))
            }
        }
    }

    async fn dispatch(&self, method: ApiMethod, body: &[u8], mode: ErrorMode) -> HttpReply {
        match method {
            ApiMethod::Publish => self.one::<PublishRequest>(body, mode).await,
            ApiMethod::Broadcast => self.one::<BroadcastRequest>(body, mode).await,
            ApiMethod::Subscribe => self.one::<SubscribeRequest>(body, mode).await,
            ApiMethod::Unsubscribe => self.one::<UnsubscribeRequest>(body, mode).await,
            ApiMethod::Disconnect => self.one::<DisconnectRequest>(body, mode).await,
            ApiMethod::Refresh => self.one::<RefreshRequest>(body, mode).await,
            ApiMethod::Presence => self.one::<PresenceRequest>(body, mode).await,
            ApiMethod::PresenceStats => self.one::<PresenceStatsRequest>(body, mode).await,
            ApiMethod::History => self.one::<HistoryRequest>(body, mode).await,
            ApiMethod::HistoryRemove => self.one::<HistoryRemoveRequest>(body, mode).await,
            ApiMethod::Channels => self.one::<ChannelsRequest>(or_empty(body), mode).await,
            ApiMethod::Info => self.one::<InfoRequest>(or_empty(body), mode).await,
            ApiMethod::BlockUser => self.one::<BlockUserRequest>(body, mode).await,
            ApiMethod::UnblockUser => self.one::<UnblockUserRequest>(body, mode).await,
            ApiMethod::RevokeToken => self.one::<RevokeTokenRequest>(body, mode).await,
            ApiMethod::InvalidateUserTokens => self.one::<InvalidateUserTokensRequest>(body, mode).await,
            ApiMethod::Connections => self.one::<ConnectionsRequest>(body, mode).await,
            ApiMethod::Batch => self.batch(body).await,
        }
    }

    async fn one<C: Call + DeserializeOwned>(&self, body: &[u8], mode: ErrorMode) -> HttpReply {
        let request = match decode::whole::<C>(body) {
            Ok(request) => request,
            Err(error) => {
                self.calls.metrics.api_requests(C::METHOD, ResultCode::new(ErrorCode::BAD_REQUEST.code)).inc();
                return malformed(error);
            }
        };
        match self.calls.call(request).await {
            Err(error) if mode == ErrorMode::Transport => json(error.status(), &error),
            result => json(StatusCode::OK, &Response::from(result)),
        }
    }

    /// A batch that is refused as a whole has no reply to put its error into, so the status says it in either mode.
    async fn batch(&self, body: &[u8]) -> HttpReply {
        let started = Instant::now();
        let (code, reply) = match decode::whole::<BatchRequest>(body) {
            Err(error) => (ErrorCode::BAD_REQUEST.code, malformed(error)),
            Ok(batch) => match batch.replies(&self.calls).await {
                Ok(result) => (0, json(StatusCode::OK, &result)),
                Err(error) => (error.code, json(error.status(), &error)),
            },
        };
        self.calls.metrics.api_requests(ApiMethod::Batch, ResultCode::new(code)).inc();
        self.calls.metrics.api_seconds(ApiMethod::Batch).observe(started.elapsed().as_secs_f64());
        reply
    }
}

/// Methods without required fields take an empty body for an empty object.
fn or_empty(body: &[u8]) -> &[u8] {
    if body.is_empty() { b"{}" } else { body }
}

/// A body that does not have the form of its method's request.
fn malformed(why: impl std::fmt::Display) -> HttpReply {
    json(StatusCode::BAD_REQUEST, &ApiError::new(ErrorCode::BAD_REQUEST, why))
}

fn unauthorized() -> HttpReply {
    let details = "no valid API key in X-API-Key, in Authorization: apikey, or in the query as api_key";
    let mut reply = json(StatusCode::UNAUTHORIZED, &ApiError::new(ErrorCode::UNAUTHORIZED, details));
    reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("apikey"));
    reply
}

fn unknown_method(name: Option<&str>) -> HttpReply {
    let methods: Vec<_> = ApiMethod::ALL.iter().map(|method| method.name()).collect();
    let what = match name {
        None | Some("") => "the path names no method".to_owned(),
        Some(name) => format!("{:?} is not a method", name.chars().take(80).collect::<String>()),
    };
    let details = format!("{what}; allowed: {}", methods.join(", "));
    json(StatusCode::NOT_FOUND, &ApiError::new(ErrorCode::METHOD_NOT_FOUND, details))
}
