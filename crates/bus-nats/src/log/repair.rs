//! What live delivery reads from the stream: where a channel starts, what a gap hides, which channels have moved on.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use hashbrown::HashMap;
use tokio::time::{sleep, timeout};

use super::chain::{Filled, Gap};
use super::delivery::Look;
use super::jetstream::{REQUEST_TIMEOUT, RequestError, Stored, get_batch};
use super::links::Links;
use super::live::{Channel, Joined};
use super::names::Kind;
use super::setup::stream_info;
use super::shard::{Current, Shard};

/// Channels looked up with one request.
pub(super) const VERIFY_BATCH: usize = 500;

/// Entries read with one request, and the most that one repair brings before they are delivered.
const BATCH: usize = 256;
const MAX_ITEMS: usize = 2048;

/// Pause between attempts while the stream does not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Subscribes to the channel's live messages, then reads where it stands, on the same connection.
pub(super) async fn join(
    client: &Client,
    shard: &Shard,
    channel: &str,
    subscribe: bool,
) -> Result<Joined, RequestError> {
    let subscriber = if subscribe {
        let subscribe = timeout(REQUEST_TIMEOUT, client.subscribe(shard.names.live(channel)));
        match subscribe.await {
            Ok(Ok(subscriber)) => Some(subscriber),
            _ => return Err(RequestError::Unavailable("the connection takes nothing")),
        }
    } else {
        None
    };
    let subject = shard.names.publication(channel);
    let fresh = shard.fresh(client, std::slice::from_ref(&subject), 0, shard.chain().through).await?;
    let last = fresh.answer.messages.iter().find(|stored| stored.subject == subject).map(|stored| stored.seq);
    let last = match last {
        Some(last) => last,
        None => front(client, &fresh.current.stream).await?,
    };
    #[cfg(test)]
    {
        shard.faults.joins.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        drop(shard.faults.before_joined.read().await);
    }
    Ok(Joined { subscriber, current: fresh.current, last, through: fresh.answer.up_to })
}

/// The highest sequence that was trimmed away.
pub(super) async fn front(client: &Client, stream: &str) -> Result<u64, RequestError> {
    Ok(stream_info(client, stream).await?.state.first_seq.saturating_sub(1))
}

/// Reads a gap. Goes on until it succeeds or the shard is another stream (`None`).
pub(super) async fn fill(
    links: &dyn Links,
    shard: &Shard,
    current: &Arc<Current>,
    channel: &str,
    gap: Gap,
) -> Option<Filled<Stored>> {
    let subject = shard.names.publication(channel);
    loop {
        if shard.current().stream != current.stream {
            return None;
        }
        match try_fill(&links.any(), shard, current, &subject, gap).await {
            Ok(filled) => return Some(filled),
            Err(error) => tracing::debug!(stream = current.stream, ?gap, %error, "a gap cannot be read yet"),
        }
        sleep(PAUSE).await;
    }
}

async fn try_fill(
    client: &Client,
    shard: &Shard,
    current: &Current,
    subject: &str,
    gap: Gap,
) -> Result<Filled<Stored>, RequestError> {
    let mut items: Vec<(u64, Stored)> = Vec::new();
    let mut last = gap.after;
    // Each batch begins with what it follows, unless the front has passed that.
    let mut unbroken = gap.after > 0;
    loop {
        let batch = get_batch(client, &current.stream, subject, last, BATCH).await?;
        unbroken &= batch.first().is_some_and(|stored| stored.seq == last);
        let count = items.len();
        items.extend(batch.into_iter().filter(|stored| stored.seq > last).map(|stored| (stored.seq, stored)));
        last = items.last().map_or(last, |(seq, _)| *seq);
        if last >= gap.target || items.len() == count || items.len() >= MAX_ITEMS {
            break;
        }
    }
    let mut through = last;
    if last < gap.target && items.len() < MAX_ITEMS {
        // Not there: only a server that knows the target can say so, and that nothing else is there.
        let subjects = [subject.to_owned()];
        let fresh = shard.fresh(client, &subjects, 0, gap.target).await?;
        let newest = fresh.answer.messages.iter().filter(|stored| stored.subject == subject).map(|stored| stored.seq);
        if fresh.current.stream != current.stream || newest.max().is_some_and(|newest| newest > last) {
            return Err(RequestError::Unavailable("the answering server lags behind"));
        }
        through = fresh.answer.up_to;
    }
    let complete = unbroken || {
        let state = stream_info(client, &current.stream).await?.state;
        if state.last_seq < gap.target.max(last) {
            return Err(RequestError::Unavailable("the stream's leader lags behind"));
        }
        state.first_seq <= gap.verified + 1
    };
    let complete = complete && shard.broken().is_none();
    Ok(Filled { items, through, complete })
}

/// Looks up the last sequence of those channels that have something behind [`Look::behind`]; goes on until it succeeds or
/// the shard is another stream.
pub(super) async fn verify(
    links: &dyn Links,
    shard: &Shard,
    channels: &[Arc<Channel>],
    look: Look,
) -> (Arc<Current>, Vec<(Arc<Channel>, u64)>) {
    let before = shard.current();
    let subjects: Vec<String> = channels.iter().map(|channel| shard.names.publication(&channel.name)).collect();
    let by_name: HashMap<&str, &Arc<Channel>> = channels.iter().map(|channel| (&*channel.name, channel)).collect();
    loop {
        if shard.current().stream != before.stream {
            return (before, Vec::new());
        }
        if let Ok(fresh) = shard.fresh(&links.any(), &subjects, look.behind + 1, look.required).await {
            let last = |stored: &Stored| match shard.names.kind(&stored.subject) {
                Some(Kind::Publication(name)) => by_name.get(&*name).map(|channel| (Arc::clone(channel), stored.seq)),
                _ => None,
            };
            let lasts = fresh.answer.messages.iter().filter_map(last).collect();
            return (fresh.current, lasts);
        }
        sleep(PAUSE).await;
    }
}
