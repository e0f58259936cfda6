//! The stream's answer to an append, and looking up what became of one.

use std::time::Duration;

use async_nats::Client;
use serde::Deserialize;
use tokio::time::sleep;

use super::entry::Record;
use super::jetstream::{RequestError, Stored, get_batch, get_one};
use super::line::Request;
use super::repair::front;
use super::shard::{Current, Shard};

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack<'a> {
    pub stream: &'a str,
    pub seq: u64,
    /// An entry with this id was stored before.
    pub duplicate: bool,
}

impl<'a> Ack<'a> {
    /// Reads an answer at one go, because there is one for each append.
    pub fn parse(payload: &'a [u8]) -> Result<Self, RequestError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            /// Names of streams need no escapes.
            #[serde(default)]
            stream: &'a str,
            #[serde(default)]
            seq: u64,
            #[serde(default)]
            duplicate: bool,
            error: Option<Failure>,
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
        let answer: Answer<'a> =
            serde_json::from_slice(payload).map_err(|error| RequestError::Malformed(error.to_string()))?;
        match answer {
            Answer { error: Some(Failure { code, err_code, description }), .. } => {
                let code = if err_code > 0 { err_code } else { code };
                Err(RequestError::Refused { code, description })
            }
            Answer { seq: 0, .. } => Err(RequestError::Malformed("an acknowledgement without a sequence".into())),
            Answer { stream, seq, duplicate, .. } => Ok(Self { stream, seq, duplicate }),
        }
    }
}

/// Whose entry was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This very append.
    Own,
    /// Another append with the same idempotency key.
    SameKey,
    /// Something else.
    Foreign,
}

/// What stands behind an expected position.
pub(super) enum After {
    Ours {
        seq: u64,
        found: Found,
    },
    Others {
        last: u64,
    },
    /// Nothing, and nothing can have been there.
    Nothing,
}

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

fn whose(request: &Request, stored: &Stored) -> Found {
    if stored.subject != request.subject.as_str() || stored.id.as_deref() != Some(&request.id) {
        return Found::Foreign;
    }
    let nonce = Record::decode(stored.payload.clone()).ok().and_then(|record| record.nonce);
    if nonce == request.nonce { Found::Own } else { Found::SameKey }
}

/// Whose entry has this sequence; `None` when it cannot be read.
pub(super) async fn at(client: &Client, current: &Current, request: &Request, seq: u64) -> Option<Found> {
    for _ in 0..TRIES {
        // A server that lags does not have it yet.
        match get_one(client, &current.stream, seq).await {
            Ok(stored) => return Some(whose(request, &stored)),
            Err(_) => sleep(PAUSE).await,
        }
    }
    None
}

/// What the channel has after `expected`, read freshly.
pub(super) async fn after(
    client: &Client,
    shard: &Shard,
    current: &Current,
    request: &Request,
    expected: u64,
) -> Result<After, RequestError> {
    let subjects = [request.subject.to_string()];
    let fresh = shard.fresh(client, &subjects, 0, 0).await?;
    let last = fresh.answer.messages.iter().find(|stored| stored.subject == subjects[0]).map(|stored| stored.seq);
    let Some(last) = last else {
        let front = front(client, &current.stream).await?;
        // A position from before the front cannot be compared any more; "never published" least of all.
        return Ok(if expected >= front { After::Nothing } else { After::Others { last: front } });
    };
    let entries = get_batch(client, &current.stream, &request.subject, expected + 1, 64).await?;
    if entries.last().is_none_or(|stored| stored.seq < last) && entries.len() < 64 && expected < last {
        return Err(RequestError::Unavailable("the answering server lags behind"));
    }
    let ours = entries.iter().map(|stored| (stored.seq, whose(request, stored)));
    match ours.into_iter().find(|(_, found)| *found != Found::Foreign) {
        Some((seq, found)) => Ok(After::Ours { seq, found }),
        None => Ok(After::Others { last }),
    }
}

/// For a channel without entries, the highest sequence that was trimmed away: it may have had some. 0 otherwise.
pub(super) async fn front_of_empty(
    client: &Client,
    shard: &Shard,
    current: &Current,
    subject: &str,
) -> Result<u64, RequestError> {
    let front = front(client, &current.stream).await?;
    if front == 0 {
        return Ok(0);
    }
    let subjects = [subject.to_owned()];
    let fresh = shard.fresh(client, &subjects, 0, 0).await?;
    let has_entries = fresh.answer.messages.iter().any(|stored| stored.subject == subject);
    Ok(if has_entries { 0 } else { front })
}

/// Where the append was stored between two sequences of its channel, if it was.
pub(super) async fn before(
    client: &Client,
    shard: &Shard,
    current: &Current,
    request: &Request,
    after: u64,
    by: u64,
) -> Option<u64> {
    let mut from = after + 1;
    shard.fresh(client, &[], 0, by).await.ok()?;
    for _ in 0..TRIES {
        let entries = get_batch(client, &current.stream, &request.subject, from, 256).await.ok()?;
        if let Some(own) = entries.iter().find(|stored| whose(request, stored) == Found::Own) {
            return Some(own.seq);
        }
        from = entries.last()?.seq + 1;
        if from > by {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let ack = Ack::parse(br#"{"stream":"p-g-0-1a-0","domain":"hub","seq":7,"duplicate":true}"#).unwrap();
        assert_eq!(ack, Ack { stream: "p-g-0-1a-0", seq: 7, duplicate: true });
        assert!(!Ack::parse(br#"{"stream":"s","seq":7}"#).unwrap().duplicate);
        let full =
            br#"{"error":{"code":503,"err_code":10023,"description":"insufficient resources"},"stream":"s","seq":0}"#;
        assert_eq!(Ack::parse(full).unwrap_err().to_string(), "insufficient resources (10023)");
        for wrong in ["", "{}", "[]", r#"{"stream":"s","seq":0}"#, r#"{"seq":-1}"#] {
            assert!(matches!(Ack::parse(wrong.as_bytes()), Err(RequestError::Malformed(_))), "{wrong}");
        }
    }
}
