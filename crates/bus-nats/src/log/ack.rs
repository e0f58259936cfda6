//! Looking up what became of an append.

use std::time::Duration;

use async_nats::Client;
use tokio::time::sleep;

use super::entry::Record;
use super::jetstream::{RequestError, Stored, get_batch, get_one};
use super::line::Request;
use super::repair::front;
use super::shard::{Current, Shard};

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
    if stored.subject != request.subject || stored.id.as_deref() != Some(&request.id) {
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
    let subjects = [request.subject.clone()];
    let fresh = shard.fresh(client, &subjects, 0, 0).await?;
    let last = fresh.answer.messages.iter().find(|stored| stored.subject == request.subject).map(|stored| stored.seq);
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
