//! Requests to JetStream: its API, and reads by direct get (ADR-31 of the NATS project).

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::entry::{format_time_ms, parse_time_ms};

/// Long answers on their way to this process at once; others wait for their turn. Together they are less than what a
/// server lets wait for one connection (`max_pending`, 64 MiB by default) before it closes it as a slow consumer's, and all
/// other answers with it.
static LONG_ANSWERS: Semaphore = Semaphore::const_new(32);

/// How long a read waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes of one answer of direct get, besides its last message.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No answer in time, or nobody there to answer.
    #[error("{0}")]
    Unavailable(&'static str),
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

impl RequestError {
    pub fn code(&self) -> Option<u64> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }
}

/// A message as the stream holds it.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub subject: String,
    pub stream: String,
    pub seq: u64,
    /// In a republished message the sequence before it on its subject; in an answer of direct get it means nothing.
    pub previous: u64,
    /// When it was stored, Unix milliseconds.
    pub time_ms: u64,
    /// Messages that match and follow, in an answer of direct get.
    pub pending: u64,
    pub id: Option<String>,
    pub payload: Bytes,
}

fn number(headers: &HeaderMap, name: &'static str) -> Option<u64> {
    headers.get_last(name)?.as_str().parse().ok()
}

impl Stored {
    /// Reads a republished message or an answer of direct get; `None` when it is neither.
    pub fn parse(message: Message) -> Option<Self> {
        let (mut subject, mut stream, mut seq, mut id) = (None, None, None, None);
        let (mut previous, mut time_ms, mut pending) = (0, 0, 0);
        // One look at each header: looking each of ours up costs a hash and a check of its name. The last value counts: a
        // publisher's own header of that name would stand before the server's.
        for (name, values) in message.headers.as_ref()?.iter() {
            let value = values.last();
            #[cfg(test)]
            let value = if super::faults::FIRST_HEADER.get() { values.first() } else { value };
            let Some(value) = value.map(|value| value.as_str()) else { continue };
            match name.as_ref() {
                "Nats-Subject" => subject = Some(value.to_owned()),
                "Nats-Stream" => stream = Some(value.to_owned()),
                "Nats-Sequence" => seq = value.parse().ok(),
                "Nats-Last-Sequence" => previous = value.parse().unwrap_or(0),
                "Nats-Time-Stamp" => time_ms = parse_time_ms(value).unwrap_or(0),
                "Nats-Num-Pending" => pending = value.parse().unwrap_or(0),
                "Nats-Msg-Id" => id = Some(value.to_owned()),
                _ => {}
            }
        }
        let (subject, stream, seq) = (subject?, stream?, seq?);
        Some(Self { subject, stream, seq, previous, time_ms, pending, id, payload: message.payload })
    }
}

/// A request of the JetStream API, `$JS.API.` before the subject.
pub(crate) async fn api<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    body: &impl Serialize,
) -> Result<T, RequestError> {
    let body = serde_json::to_vec(body).map_err(|error| RequestError::Malformed(error.to_string()))?;
    let body = if body == b"null" { Bytes::new() } else { body.into() };
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let answer = timeout_at(deadline, client.request(format!("$JS.API.{subject}"), body)).await;
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => return Err(RequestError::Unavailable("JetStream is not reachable")),
        Err(_) => return Err(RequestError::Unavailable("JetStream did not answer in time")),
    };
    parse_api(&answer.payload)
}

/// An answer of the JetStream API, or a publication's acknowledgement.
pub(crate) fn parse_api<T: DeserializeOwned>(payload: &[u8]) -> Result<T, RequestError> {
    #[derive(serde::Deserialize)]
    struct Failed {
        error: Failure,
    }
    #[derive(serde::Deserialize)]
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

/// What direct get is asked.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Get {
    #[serde(skip_serializing_if = "is_zero")]
    pub seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_by_subj: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multi_last: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to_time: Option<String>,
    #[serde(skip_serializing_if = "is_zero_usize")]
    pub batch: usize,
    #[serde(skip_serializing_if = "is_zero_usize")]
    pub max_bytes: usize,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_zero_usize(number: &usize) -> bool {
    *number == 0
}

/// The messages of one answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub messages: Vec<Stored>,
    /// For `multi_last`: the last sequence that the answering server had.
    pub up_to: u64,
}

/// One exact sequence of the stream.
pub(super) async fn get_one(client: &Client, stream: &str, seq: u64) -> Result<Stored, RequestError> {
    let answer = get(client, stream, &Get { seq, ..Get::default() }).await?;
    answer.messages.into_iter().next().ok_or(RequestError::NotFound)
}

/// Messages of a subject with sequence `from` or more, at most `batch` (at least 1), and bounded in bytes. Empty when
/// the answering server has none, which proves nothing.
pub(super) async fn get_batch(
    client: &Client,
    stream: &str,
    subject: &str,
    from: u64,
    batch: usize,
) -> Result<Vec<Stored>, RequestError> {
    get_part(client, stream, subject, from, batch, MAX_ANSWER_BYTES).await
}

/// The same, at most about `max_bytes` of it, and at least one.
pub(super) async fn get_part(
    client: &Client,
    stream: &str,
    subject: &str,
    from: u64,
    batch: usize,
    max_bytes: usize,
) -> Result<Vec<Stored>, RequestError> {
    let next_by_subj = Some(subject.to_owned());
    let (batch, max_bytes) = (batch.max(1), max_bytes.clamp(1, MAX_ANSWER_BYTES));
    let _turn = match batch {
        1 => None,
        _ => match timeout(TURN_TIMEOUT, LONG_ANSWERS.acquire()).await {
            Ok(Ok(turn)) => Some(turn),
            _ => return Err(RequestError::Unavailable("too many reads wait")),
        },
    };
    let request = Get { seq: from.max(1), next_by_subj, batch, max_bytes, ..Get::default() };
    match get(client, stream, &request).await {
        Ok(answer) => Ok(answer.messages),
        Err(RequestError::NotFound) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The last message of each subject, those below sequence `min` left out, with the sequence through which the answering
/// server knows the stream. At most 1,000 subjects.
pub(super) async fn get_last(
    client: &Client,
    stream: &str,
    subjects: Vec<String>,
    min: u64,
) -> Result<Answer, RequestError> {
    get(client, stream, &Get { multi_last: subjects, seq: min, ..Get::default() }).await
}

/// Whether something between the last message of an answer and what its next part names before itself never arrived.
fn lacks(last: u64, named: u64) -> bool {
    #[cfg(test)]
    if super::faults::BELIEVE_PARTS.get() {
        return false;
    }
    named != last
}

/// The last message of a subject that was stored before `before_ms`, Unix milliseconds. A server that lags may answer with
/// an earlier one, or none.
pub(super) async fn get_last_before(
    client: &Client,
    stream: &str,
    subject: &str,
    before_ms: u64,
) -> Result<Option<Stored>, RequestError> {
    let up_to_time = Some(format_time_ms(before_ms));
    match get(client, stream, &Get { multi_last: vec![subject.to_owned()], up_to_time, ..Get::default() }).await {
        Ok(answer) => Ok(answer.messages.into_iter().next()),
        Err(RequestError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends a request of direct get and takes its answer, which may have many messages.
async fn get(client: &Client, stream: &str, request: &Get) -> Result<Answer, RequestError> {
    const SILENCE: RequestError = RequestError::Unavailable("the stream did not answer in time");
    let gone = |_| RequestError::Unavailable("the connection is closed");
    let body = serde_json::to_vec(request).map_err(|error| RequestError::Malformed(error.to_string()))?;
    let several = request.batch > 0 || !request.multi_last.is_empty();
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    let exchange = async {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| SILENCE)?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        client.publish_with_reply(subject, inbox, body.into()).await.map_err(|_| SILENCE)?;
        let mut answer = Answer::default();
        // Each message names the one before it in the answer: a connection that breaks and comes back in the middle may
        // have swallowed some, and what is read counts as everything that there is.
        let mut last = 0;
        let hole = RequestError::Unavailable("a part of the answer was lost on the way");
        loop {
            let message = answers.next().await.ok_or(()).map_err(gone)?;
            match message.status.map(|status| status.as_u16()) {
                Some(204) => {
                    let named = message.headers.as_ref().and_then(|it| number(it, "Nats-Last-Sequence"));
                    if named.is_some_and(|named| lacks(last, named)) {
                        return Err(hole);
                    }
                    answer.up_to =
                        message.headers.as_ref().and_then(|it| number(it, "Nats-UpTo-Sequence")).unwrap_or(0);
                    return Ok(answer);
                }
                Some(404) => return Err(RequestError::NotFound),
                Some(503) => return Err(RequestError::Unavailable("the stream has no server that answers")),
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(RequestError::Refused { code: u64::from(status), description });
                }
                None => {
                    let text = || RequestError::Malformed("no stored message".into());
                    let stored = Stored::parse(message).ok_or_else(text)?;
                    if several && lacks(last, stored.previous) {
                        return Err(hole);
                    }
                    last = stored.seq;
                    answer.messages.push(stored);
                    if !several {
                        return Ok(answer);
                    }
                }
            }
        }
    };
    timeout_at(deadline, exchange).await.unwrap_or(Err(SILENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A publisher's own headers stand before those that the server adds when it republishes.
    #[test]
    fn foreign_headers_do_not_count() {
        let mut headers = HeaderMap::new();
        for (seq, previous, stream, subject) in [("1", "0", "forged", "forged"), ("70", "69", "real", "p.log.g.0.c.x")]
        {
            headers.append("Nats-Sequence", seq);
            headers.append("Nats-Last-Sequence", previous);
            headers.append("Nats-Stream", stream);
            headers.append("Nats-Subject", subject);
        }
        let message = Message {
            subject: "live".into(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        };
        let stored = Stored::parse(message.clone()).map(|it| (it.seq, it.previous, it.stream, it.subject));
        assert_eq!(stored, Some((70, 69, "real".into(), "p.log.g.0.c.x".into())));
        assert!(Stored::parse(Message { headers: None, ..message }).is_none());
    }
}
