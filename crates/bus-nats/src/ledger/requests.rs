//! Requests of the ledger: writes with their acknowledgement, and reads by direct get (ADR-31 of the NATS project).

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How long one request waits.
const TIMEOUT: Duration = Duration::from_millis(700);
/// Between two attempts at a server that lags or knows nobody who takes the request.
pub(super) const PAUSE: Duration = Duration::from_millis(25);
/// How long making the bucket waits.
const API_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// Nothing took the request.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Something may have taken it.
    #[error("JetStream did not answer in time")]
    Silent,
    /// There is nothing; a server that lags says so as well.
    #[error("nothing found")]
    NotFound,
    /// The server refused.
    #[error("{description} ({code})")]
    Refused {
        /// `err_code` of JetStream, or the status of a direct get.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// An answer that this version does not understand.
    #[error("unexpected answer: {0}")]
    Malformed(String),
}

/// The acknowledgement of a write.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Written {
    pub seq: u64,
}

/// What direct get is asked.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Get {
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_by_subj: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multi_last: Vec<String>,
    #[serde(skip_serializing_if = "is_none")]
    pub batch: usize,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_none(number: &usize) -> bool {
    *number == 0
}

/// One message of an answer.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub subject: String,
    pub seq: u64,
    pub erased: bool,
    pub value: Bytes,
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub entries: Vec<Entry>,
    /// For `multi_last`: the last sequence that the answering server had.
    up_to: u64,
}

impl Found {
    /// Whether the server that answered had come as far as this sequence.
    pub fn reaches(&self, seq: u64) -> bool {
        self.up_to >= seq || self.entries.last().is_some_and(|entry| entry.seq >= seq)
    }
}

/// A request of the JetStream API, `$JS.API.` before the subject.
pub(super) async fn api<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    body: &serde_json::Value,
) -> Result<T, RequestError> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = client.request(format!("$JS.API.{subject}"), body);
    match timeout(API_TIMEOUT, request).await {
        Ok(Ok(answer)) => parse(&answer.payload),
        Ok(Err(_)) => Err(RequestError::Unavailable("JetStream is not reachable")),
        Err(_) => Err(RequestError::Silent),
    }
}

/// Stores a message. While nobody takes it (the interest in a new bucket or leader has not spread to this server yet), it is
/// sent again: nothing can be stored twice by that.
pub(super) async fn write(
    client: &Client,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<Written, RequestError> {
    if client.connection_state() != async_nats::connection::State::Connected {
        return Err(RequestError::Unavailable("there is no connection to NATS"));
    }
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let request = client.request_with_headers(subject.clone(), headers.clone(), payload.clone());
        match timeout_at(deadline, request).await {
            Ok(Ok(answer)) => return parse(&answer.payload),
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                if Instant::now() + PAUSE >= deadline {
                    return Err(RequestError::Unavailable("the bucket has no leader"));
                }
                sleep(PAUSE).await;
            }
            _ => return Err(RequestError::Silent),
        }
    }
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, RequestError> {
    #[derive(Deserialize)]
    struct Failed {
        error: Failure,
    }
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        code: u64,
        #[serde(default)]
        err_code: u64,
        #[serde(default)]
        description: String,
    }
    if let Ok(Failed { error }) = serde_json::from_slice(payload) {
        let code = if error.err_code > 0 { error.err_code } else { error.code };
        return Err(RequestError::Refused { code, description: error.description });
    }
    serde_json::from_slice(payload).map_err(|error| RequestError::Malformed(error.to_string()))
}

fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    headers.get_last(name).map(|value| value.as_str())
}

fn number(headers: &HeaderMap, name: &'static str) -> Option<u64> {
    header(headers, name)?.parse().ok()
}

/// Sends a request of direct get and takes its whole answer.
pub(super) async fn get(client: &Client, stream: &str, request: &Get) -> Result<Found, RequestError> {
    const SILENCE: RequestError = RequestError::Unavailable("the bucket did not answer in time");
    let body = serde_json::to_vec(request).map_err(|error| RequestError::Malformed(error.to_string()))?;
    let exchange = async {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| SILENCE)?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        client.publish_with_reply(subject, inbox, body.into()).await.map_err(|_| SILENCE)?;
        let mut found = Found::default();
        // Each message names the one before it in the answer, so that one that was lost on the way is noticed.
        let mut last = 0;
        loop {
            let message = answers.next().await.ok_or(SILENCE)?;
            match message.status.map(|status| status.as_u16()) {
                Some(204) => {
                    let named = |name| message.headers.as_ref().and_then(|headers| number(headers, name));
                    if named("Nats-Last-Sequence").is_some_and(|named| named != last) {
                        return Err(SILENCE);
                    }
                    found.up_to = named("Nats-UpTo-Sequence").unwrap_or(0);
                    return Ok(found);
                }
                Some(404) => return Err(RequestError::NotFound),
                Some(503) => return Err(RequestError::Unavailable("no server holds the bucket")),
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(RequestError::Refused { code: u64::from(status), description });
                }
                None => {
                    let previous = message.headers.as_ref().and_then(|it| number(it, "Nats-Last-Sequence"));
                    if previous.is_some_and(|previous| previous != last) {
                        return Err(SILENCE);
                    }
                    let entry = entry(message).ok_or_else(|| RequestError::Malformed("no stored message".into()))?;
                    last = entry.seq;
                    found.entries.push(entry);
                }
            }
        }
    };
    timeout_at(Instant::now() + TIMEOUT, exchange).await.unwrap_or(Err(SILENCE))
}

fn entry(message: Message) -> Option<Entry> {
    let headers = message.headers.as_ref()?;
    Some(Entry {
        subject: header(headers, "Nats-Subject")?.to_owned(),
        seq: number(headers, "Nats-Sequence")?,
        erased: header(headers, "KV-Operation") == Some("DEL"),
        value: message.payload,
    })
}
