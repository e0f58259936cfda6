//! History and tails, read straight from the stream with bounded memory and a proof of freshness.

use std::panic::Location;
use std::sync::Arc;

use plenum_channels::{Entry, Page, Position, Read, Since, Tail, Version};

use super::entry::Record;
use super::event::entry;
#[cfg(test)]
use super::faults::Faults;
use super::jetstream::{RequestError, Stored, get_batch, get_last_before, get_one, get_part};
use super::links::{Held, Links};
use super::proof::{self, End};
use super::repair::front;
use super::setup::stream_info;
use super::shard::{Current, Shard};
use super::tails;

/// Most entries of one request.
const BATCH: usize = 1024;

/// About the bytes of a stored publication's headers.
const HEADERS: usize = 128;

/// Entries behind the tail that are searched for its version.
const VERSION_SEARCH: usize = 1024;

/// Steps back from a channel's end, each at least a `history_ttl` long, in which an expiry is looked for.
const EXPIRY_SEARCH: usize = 256;

/// Reads of one channel.
pub(super) struct Reader<'a> {
    pub links: &'a dyn Links,
    pub shard: &'a Shard,
    pub channel: &'a str,
}

/// Whether a part of the history had expired when its next publication came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expiry {
    None,
    /// Everything before this sequence is gone.
    Before(u64),
    /// Too far back to be found out.
    Unknown,
}

/// One channel's end, freshly read.
struct Top {
    current: Arc<Current>,
    client: Held,
    subject: String,
    end: End,
    last: Option<Stored>,
}

/// Entries that follow one another, and what is known of them.
struct Stretch {
    entries: Vec<Arc<Entry>>,
    more: bool,
    /// Nothing was trimmed between its parts.
    unbroken: bool,
    /// Nothing of it had expired.
    unexpired: bool,
}

impl Stretch {
    fn page(self, top: &Top, complete: bool) -> Page {
        Page { entries: self.entries, top: top.current.position(top.end.top()), complete, more: self.more }
    }
}

impl Reader<'_> {
    /// Fresh through at least `required` and everything that this replica knows of.
    async fn top(&self, required: u64) -> Result<Top, RequestError> {
        let client = self.links.series(Location::caller());
        let (subject, marker) = (self.shard.names.publication(self.channel), self.shard.names.marker(self.channel));
        let fresh = self.shard.fresh(&client, &[subject.clone(), marker.clone()], 0, required).await?;
        let (mut last, mut hidden) = (None, 0);
        for stored in fresh.answer.messages {
            if stored.subject == subject {
                last = Some(stored);
            } else if stored.subject == marker {
                hidden = stored.seq;
            }
        }
        #[cfg(test)]
        if Faults::on(&self.shard.faults.ignore_markers) {
            hidden = 0;
        }
        let current = fresh.current;
        let front = if last.is_none() { front(&client, &current.stream).await? } else { 0 };
        let end = End {
            last: last.as_ref().map(|stored| stored.seq),
            newest_ms: last.as_ref().map_or(0, |stored| stored.time_ms),
            hidden,
            front,
            stream_last: fresh.answer.up_to,
            now_ms: self.shard.now_ms(),
        };
        Ok(Top { current, client, subject, end, last })
    }

    pub async fn tail(&self) -> Result<Tail, RequestError> {
        let top = self.top(0).await?;
        let version = match &top.last {
            Some(last) => self.version(&top, last).await?,
            None => None,
        };
        Ok(Tail { position: top.current.position(top.end.top()), version })
    }

    /// The version of the newest publication that had one.
    async fn version(&self, top: &Top, last: &Stored) -> Result<Option<Version>, RequestError> {
        let version = |stored: &Stored| Record::decode(stored.payload.clone()).ok().and_then(|record| record.version);
        if let Some(version) = version(last) {
            return Ok(Some(version));
        }
        let mut before = last.seq;
        let mut searched = 0;
        while searched < VERSION_SEARCH {
            let part = self.before(top, before, 64).await?;
            let Some(first) = part.first() else { return Ok(None) };
            if let Some(version) = part.iter().rev().find_map(version) {
                return Ok(Some(version));
            }
            before = first.seq;
            searched += part.len();
        }
        Ok(None)
    }

    /// The read as a server would do it that remembers positions itself.
    #[cfg(test)]
    pub fn held(&self, mut read: Read) -> Read {
        if let (Since::Position(since), true) = (&mut read.since, Faults::on(&self.shard.faults.hold_positions)) {
            since.offset = self.shard.delivered(crate::channel_token::hash(self.channel)).unwrap_or(since.offset);
        }
        read
    }

    pub async fn read(&self, read: &Read) -> Result<Page, RequestError> {
        let mut top = self.top(0).await?;
        if let Since::Position(since) = &read.since
            && since.epoch == top.current.epoch
            && since.offset > top.end.top()
            && since.offset <= stream_info(&top.client, &top.current.stream).await?.state.last_seq
        {
            // Another replica has shown the client more than the server that answered knows of.
            top = self.top(since.offset).await?;
        }
        match &read.since {
            Since::Position(since) if since.epoch != top.current.epoch => Ok(nothing(&top, top.end.top(), false)),
            Since::Position(since) if read.reverse => self.backwards(&top, read, Some(since.offset)).await,
            Since::Position(since) => self.after(&top, read, since).await,
            Since::End if read.reverse => self.backwards(&top, read, None).await,
            Since::End => self.oldest(&top, read).await,
        }
    }

    /// Forwards from a position, with the proof that nothing is missing behind it.
    async fn after(&self, top: &Top, read: &Read, since: &Position) -> Result<Page, RequestError> {
        let position = since.offset;
        if let Some(complete) = top.end.settles(position) {
            let complete = match complete && top.end.last.is_none() && position < top.end.stream_last {
                true => self.is_young(top, position + 1).await?,
                false => complete,
            };
            let complete = complete || self.remembered(top, position).await?;
            let offset = if complete { top.end.top().max(position) } else { top.end.top() };
            return Ok(nothing(top, offset, complete));
        }
        if !top.end.shows(&read.retention) {
            return Ok(nothing(top, top.end.top(), false));
        }
        #[cfg(test)]
        let allowed = self.front_allows(top, position).await?;
        // What is at the position, or the first that is left behind it; and what follows.
        let part = self.part(top, position, read.limit, read.max_bytes).await?;
        let following = part.first().map_or(0, |stored| stored.pending + u64::from(stored.seq > position));
        if following > read.retention.size as u64 {
            let from = self.rank(top, read.retention.size as u64).await?.max(top.end.hidden);
            return Ok(self.forwards(top, read, from, Vec::new()).await?.page(top, false));
        }
        let hides = part.iter().any(|stored| stored.seq > position && stored.seq < top.end.hidden);
        let at_ms = part.first().filter(|stored| stored.seq == position).map(|stored| stored.time_ms);
        let from = (position + 1).max(top.end.hidden);
        let stretch = self.forwards(top, read, from, part).await?;
        // After the range was read: what it lacks was trimmed before that, and the front tells.
        let mut complete = match at_ms {
            Some(at_ms) if stretch.unbroken => self.stays(top, position, at_ms).await?,
            _ => self.front_allows(top, position).await?,
        };
        #[cfg(test)]
        if Faults::on(&self.shard.faults.front_first) {
            complete = allowed;
        }
        // Settings that somebody changed may have taken entries out of the middle.
        complete &= self.shard.broken().is_none() && !hides;
        complete &= stretch.unexpired;
        Ok(stretch.page(top, complete))
    }

    /// Whether an entry that a range began with, stored at `at_ms`, cannot have been trimmed by its age while the range was
    /// read. (Bytes trim on a write, and no write comes between the entries of one answer.)
    async fn stays(&self, top: &Top, seq: u64, at_ms: u64) -> Result<bool, RequestError> {
        let age_ms = self.shard.now_ms().saturating_sub(at_ms);
        Ok(proof::is_out_of_reach(age_ms, self.shard.max_age_ms)
            || front(&top.client, &top.current.stream).await? < seq)
    }

    /// The channel's entries from sequence `from`, in one request: the first, then about as many as asked for.
    async fn part(&self, top: &Top, from: u64, count: usize, bytes: usize) -> Result<Vec<Stored>, RequestError> {
        #[cfg(test)]
        self.shard.faults.parts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        #[cfg(test)]
        drop(self.shard.faults.before_part.read().await);
        // One more shows whether there is more.
        let count = count.saturating_add(2).min(BATCH);
        // Where a range begins costs the server as much as a thousand entries, and it counts subjects and headers as well: so
        // that a page comes in one range, the newest entry tells how many will fit.
        let size = top.last.as_ref().map_or(1, |last| last.payload.len().max(1));
        let fit = (bytes / size).saturating_add(2).min(count);
        let room = bytes.saturating_add(fit * (top.subject.len() + HEADERS)).saturating_add(size);
        get_part(&top.client, &top.current.stream, &top.subject, from, count, room).await
    }

    /// Of a channel that the stream holds nothing of any more: whether its remembered tail and what the stream still holds
    /// prove together that nothing followed this position.
    async fn remembered(&self, top: &Top, position: u64) -> Result<bool, RequestError> {
        if top.end.last.is_some() || position > top.end.stream_last || self.shard.broken().is_some() {
            return Ok(false);
        }
        let hash = crate::channel_token::hash(self.channel);
        let Some(tail) = tails::recall(self.shard, &top.current, hash).await else { return Ok(false) };
        if position < tail.position.offset {
            return Ok(false);
        }
        #[cfg(test)]
        if Faults::on(&self.shard.faults.trust_tails) {
            return Ok(true);
        }
        // Nothing followed through there, and the stream, of which everything since is left, holds nothing either.
        self.front_allows(top, tail.through).await
    }

    async fn oldest(&self, top: &Top, read: &Read) -> Result<Page, RequestError> {
        if top.end.last.is_none() || !top.end.shows(&read.retention) {
            return Ok(nothing(top, top.end.top(), true));
        }
        let from = self.oldest_visible(top, read).await?;
        Ok(self.forwards(top, read, from, Vec::new()).await?.page(top, true))
    }

    /// The first sequence that the reader may see.
    async fn oldest_visible(&self, top: &Top, read: &Read) -> Result<u64, RequestError> {
        let count = self.count(top, 1).await?;
        let from = match count {
            Some((_, count)) if count > read.retention.size as u64 => {
                self.rank(top, read.retention.size as u64).await?
            }
            _ => 1,
        };
        Ok(from.max(top.end.hidden))
    }

    /// Entries from sequence `from` up to the top, within the read's bounds. `part` is what was read of them already; it may
    /// begin with what they follow.
    async fn forwards(
        &self,
        top: &Top,
        read: &Read,
        from: u64,
        mut part: Vec<Stored>,
    ) -> Result<Stretch, RequestError> {
        let end = top.end.last.unwrap_or(0);
        let ttl_ms = proof::millis(read.retention.ttl);
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
        let (mut unbroken, mut unexpired) = (true, true);
        let (mut last, mut before_ms) = (None, None);
        'parts: while last.map_or(from, |last: u64| last + 1) <= end {
            if part.is_empty() {
                let (left, room) = (read.limit.saturating_sub(entries.len()), read.max_bytes.saturating_sub(bytes));
                part = self.part(top, last.unwrap_or(from), left, room).await?;
                // A part that does not begin with what it follows shows that the front has passed that.
                let follows = last.is_none() || part.first().map(|stored| stored.seq) == last;
                #[cfg(test)]
                let follows = follows || Faults::on(&self.shard.faults.trust_parts);
                unbroken &= follows;
                if part.last().map(|stored| stored.seq) <= last {
                    return Err(RequestError::Unavailable("the answering server lags behind"));
                }
            }
            for stored in std::mem::take(&mut part) {
                if stored.seq > end {
                    break 'parts;
                }
                if last == Some(stored.seq) {
                    continue;
                }
                if stored.seq >= from && (entries.len() >= read.limit || bytes > read.max_bytes) {
                    more = true;
                    break 'parts;
                }
                let previous = last.replace(stored.seq).unwrap_or(0);
                if stored.seq < from {
                    continue;
                }
                if before_ms.is_some_and(|before| stored.time_ms.saturating_sub(before) >= ttl_ms) {
                    // All that came before this one had expired when it came.
                    entries.clear();
                    bytes = 0;
                    unexpired = false;
                }
                before_ms = Some(stored.time_ms);
                if let Some(entry) = entry(self.shard, stored.seq, previous, &stored) {
                    bytes += entry.bytes();
                    entries.push(Arc::new(entry));
                    if bytes > read.max_bytes {
                        more = stored.seq < end;
                        break 'parts;
                    }
                }
            }
        }
        if let (true, Some(last), Some(before_ms)) = (more, last, before_ms) {
            // What expired behind the page's end took the page with it.
            match self.expiry(top, last, before_ms, ttl_ms).await? {
                Expiry::None => {}
                Expiry::Before(first) => {
                    let stretch = Box::pin(self.forwards(top, read, first, Vec::new())).await?;
                    return Ok(Stretch { unexpired: false, ..stretch });
                }
                Expiry::Unknown => unexpired = false,
            }
        }
        Ok(Stretch { entries, more, unbroken, unexpired })
    }

    /// Whether a publication that came `ttl_ms` or more after the one before it stands after sequence `at`, which was
    /// stored at `at_ms`. Goes back from the end in steps of the time to live: between two publications that lie closer
    /// together than that there is no such pause.
    async fn expiry(&self, top: &Top, at: u64, at_ms: u64, ttl_ms: u64) -> Result<Expiry, RequestError> {
        let (client, stream) = (&top.client, &top.current.stream);
        let mut reached_ms = top.end.newest_ms;
        for _ in 0..EXPIRY_SEARCH {
            if reached_ms.saturating_sub(at_ms) < ttl_ms {
                return Ok(Expiry::None);
            }
            let pause_ms = reached_ms - ttl_ms;
            // Times are cut to milliseconds here and not there.
            let Some(before) = get_last_before(client, stream, &top.subject, pause_ms + 1).await? else {
                return Ok(Expiry::None);
            };
            let next = get_batch(client, stream, &top.subject, before.seq + 1, 1).await?;
            let Some(next) = next.first().filter(|next| next.time_ms >= pause_ms) else {
                return Err(RequestError::Unavailable("the answering server lags behind"));
            };
            if before.seq < at {
                return Ok(Expiry::None);
            }
            if next.time_ms.saturating_sub(before.time_ms) >= ttl_ms {
                return Ok(Expiry::Before(next.seq));
            }
            reached_ms = before.time_ms;
        }
        Ok(Expiry::Unknown)
    }

    /// Backwards from below a position, or from the top.
    async fn backwards(&self, top: &Top, read: &Read, since: Option<u64>) -> Result<Page, RequestError> {
        let beyond = since.is_some_and(|since| since > top.end.top());
        if top.end.last.is_none() || beyond || !top.end.shows(&read.retention) {
            let untouched = top.end.last.is_none() && top.end.front == 0 && !beyond;
            return Ok(nothing(top, top.end.top(), since.is_none() || untouched));
        }
        let floor = self.oldest_visible(top, read).await?;
        let ttl_ms = proof::millis(read.retention.ttl);
        let mut below = since.unwrap_or(u64::MAX);
        // The time of the position itself is not known: only what follows below it can be seen to have expired.
        let mut after_ms: Option<u64> = None;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
        let mut hidden_below = false;
        'pages: loop {
            let wanted = (read.limit - entries.len().min(read.limit) + 1).min(BATCH);
            let part = self.before(top, below, wanted).await?;
            let (Some(first), Some(newest)) = (part.first(), part.last()) else { break };
            if after_ms.is_none()
                && since.is_some()
                && matches!(self.expiry(top, newest.seq, newest.time_ms, ttl_ms).await?, Expiry::Before(_))
            {
                hidden_below = true;
                break;
            }
            below = first.seq;
            for stored in part.iter().rev() {
                if stored.seq < floor || after_ms.is_some_and(|after| after.saturating_sub(stored.time_ms) >= ttl_ms) {
                    hidden_below = true;
                    break 'pages;
                }
                if entries.len() >= read.limit || bytes > read.max_bytes {
                    more = true;
                    break 'pages;
                }
                after_ms = Some(stored.time_ms);
                if let Some(entry) = entry(self.shard, stored.seq, 0, stored) {
                    bytes += entry.bytes();
                    entries.push(Arc::new(entry));
                }
            }
        }
        let complete = since.is_none() || !entries.is_empty() || more || !hidden_below && self.untrimmed(top).await?;
        Ok(Page { entries, top: top.current.position(top.end.top()), complete, more })
    }

    /// Whether the stream still begins where it began.
    async fn untrimmed(&self, top: &Top) -> Result<bool, RequestError> {
        Ok(top.end.hidden == 0 && front(&top.client, &top.current.stream).await? == 0)
    }

    /// Up to `count` entries next below sequence `below`, oldest first.
    async fn before(&self, top: &Top, below: u64, count: usize) -> Result<Vec<Stored>, RequestError> {
        let behind = match below {
            u64::MAX => 0,
            below => self.count(top, below).await?.map_or(0, |(_, count)| count),
        };
        let from = self.rank(top, behind + count as u64).await?;
        let mut part = get_batch(&top.client, &top.current.stream, &top.subject, from, count).await?;
        let end = top.end.last.unwrap_or(0);
        // A new publication in between moves the ranks by one; then a part may reach beyond what was asked for.
        part.retain(|stored| stored.seq < below && stored.seq <= end);
        Ok(part)
    }

    /// The first entry at or after `from`, and how many there are from it to the top. `None`: there is none.
    async fn count(&self, top: &Top, from: u64) -> Result<Option<(u64, u64)>, RequestError> {
        let one = get_batch(&top.client, &top.current.stream, &top.subject, from, 1).await?;
        Ok(one.first().map(|stored| (stored.seq, stored.pending + 1)))
    }

    /// A sequence from which at most `rank` entries follow to the top, and as many where there are: found by bisection
    /// over the server's counts, so no list of entries is ever held.
    async fn rank(&self, top: &Top, rank: u64) -> Result<u64, RequestError> {
        let end = top.end.last.unwrap_or(0);
        let Some((first, total)) = self.count(top, 1).await? else { return Ok(1) };
        if total <= rank {
            return Ok(first);
        }
        // At `low` more than `rank` follow, at `high` not.
        let (mut low, mut high) = (first, end + 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            match self.count(top, middle).await? {
                Some((_, count)) if count == rank => return Ok(middle),
                // The entry found stands for every sequence below it.
                Some((at, count)) if count > rank => low = at.max(middle),
                _ => high = middle,
            }
        }
        Ok(high)
    }

    /// Proof that nothing directly after `position` was trimmed, although `position` itself is not on the channel.
    async fn front_allows(&self, top: &Top, position: u64) -> Result<bool, RequestError> {
        let state = stream_info(&top.client, &top.current.stream).await?.state;
        if state.first_seq > position + 1 {
            return Ok(false);
        }
        self.is_young(top, position + 1).await
    }

    /// Whether no server can have trimmed the stream's entry at `seq` yet, nor one behind it.
    async fn is_young(&self, top: &Top, seq: u64) -> Result<bool, RequestError> {
        let entry = match get_one(&top.client, &top.current.stream, seq).await {
            Ok(entry) => entry,
            Err(RequestError::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        let age_ms = self.shard.now_ms().saturating_sub(entry.time_ms);
        Ok(proof::is_out_of_reach(age_ms, self.shard.max_age_ms))
    }
}

fn nothing(top: &Top, offset: u64, complete: bool) -> Page {
    Page { entries: Vec::new(), top: top.current.position(offset), complete, more: false }
}
