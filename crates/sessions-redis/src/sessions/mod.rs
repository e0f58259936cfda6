//! The session store.
//!
//! A session is one string key in its own slot, changed by scripts that compare a version and the random mark of that
//! version; there is no lock. The list of a user's sessions lies in the user's slot, so it is written after the session
//! and cleaned when it is read: best effort in order. Failovers lose acknowledged writes; this replica remembers the newest
//! versions that it saw, looks at them again where a primary may have lost data, reports each that is gone, and tells the
//! next caller [`SessionError::WentBack`].

mod losses;
mod record;
mod scripts;
mod seen;
mod snapshots;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::scripts::ALL as SCRIPTS;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plenum_channels::{
    MAX_SESSION_BYTES, MAX_SESSION_ID_BYTES, Position, SessionError, Sessions, Snapshot, StoredSession,
};
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout_at};

pub use self::losses::SessionLoss;
use self::record::{Header, Mark};
use self::seen::{Guard, HORIZON, Lasts, Seen};
use crate::client::{Call, CallError, Client, Purpose, Redis, RedisMetrics, Value};
use crate::keys::{Key, Keys, Tag};

/// Sessions of which this replica remembers the newest version (about 170 bytes each, and the id).
const SEEN: usize = 65_536;
/// Longest list of one user's sessions; beyond it those that expire first are not listed.
const MAX_LISTED: usize = 1000;
/// No operation takes longer than the deadline of a call and this, whatever its parts take.
const REST: Duration = Duration::from_millis(50);
/// Shortest and longest time to live; others are taken for the nearest.
const MIN_TTL: Duration = Duration::from_millis(1);
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Sessions on Redis, seen from one replica.
pub struct RedisSessions {
    redis: Arc<Redis>,
    client: Client,
    keys: Keys,
    seen: Seen,
    metrics: Arc<RedisMetrics>,
    losses: broadcast::Sender<SessionLoss>,
}

impl RedisSessions {
    /// On connections of its own. Must be called within a tokio runtime; a task there looks for losses until this is dropped.
    pub fn new(redis: &Arc<Redis>) -> Arc<Self> {
        let (client, keys, metrics) = (redis.client(Purpose::Sessions), redis.keys().clone(), redis.metrics().clone());
        let losses = broadcast::Sender::new(losses::WAITING);
        let sessions = RedisSessions { redis: redis.clone(), client, keys, seen: Seen::new(SEEN), metrics, losses };
        let sessions = Arc::new(sessions);
        tokio::spawn(losses::watch(Arc::downgrade(&sessions)));
        sessions
    }

    /// When an operation that begins now ends at the latest.
    fn end(&self) -> Instant {
        self.client.deadline() + REST
    }

    fn session(&self, id: &str) -> Result<(Tag, Key), SessionError> {
        check_size("id", id.len(), 1, MAX_SESSION_ID_BYTES)?;
        let tag = self.keys.tag(&["session", id]);
        let key = self.keys.key("s", &tag);
        Ok((tag, key))
    }

    fn list_of(&self, user: &str) -> Key {
        self.keys.key("sl", &self.keys.tag(&["user", user]))
    }

    /// Compares what was found with what this replica knows, and tells a store that went back.
    fn judge(
        &self,
        session: (&Tag, &str),
        found: Option<&Header>,
        asked_at: Instant,
        lasts: Option<Lasts>,
    ) -> Result<(), SessionError> {
        let Err(behind) = self.seen.found(session, found, asked_at, lasts) else { return Ok(()) };
        let (known, found) = (behind.known, live_version(found));
        if !behind.reported {
            self.report(SessionLoss { id: session.1.into(), known, found });
        }
        Err(SessionError::WentBack { known, found })
    }

    /// Enters the session in its user's list, or notes that this is due with the next update.
    async fn list(&self, (tag, id): (&Tag, &str), incarnation: u64, user: &str, ttl: Duration, until: Instant) {
        let entry = record::listed(incarnation, id);
        let arguments = [text(&entry), millis(ttl), Value::Integer(MAX_LISTED as i64)];
        let call = Call::script(&scripts::LIST, &[&self.list_of(user)], arguments).repeatable();
        match timeout_at(until, self.client.call(call)).await {
            Ok(Ok(_)) => self.seen.relisted(tag, ttl),
            Ok(Err(error)) => tracing::debug!(%error, "a user's session was not listed"),
            Err(_) => tracing::debug!("a user's session was not listed in time"),
        }
    }

    /// Removes entries; each is of one session for ever, so none can have been made again meanwhile.
    async fn unlist(&self, user: &str, entries: Vec<Value>, until: Instant) {
        let call = Call::command("ZREM", &self.list_of(user), entries).repeatable();
        // What stays in the list is checked by whoever reads it.
        let _ = timeout_at(until, self.client.call(call)).await;
    }

    /// Runs a script that answers whether it did it, the header that was there, and the user.
    async fn change(&self, call: Call) -> Result<Changed, SessionError> {
        let answer = self.client.call(call.repeatable()).await.map_err(failed)?;
        let mut parts = answer.into_array().into_iter();
        let done = parts.next().and_then(|done| done.as_i64()).unwrap_or(0);
        let header = parts.next().and_then(Value::into_bytes).and_then(|bytes| Header::parse(&bytes));
        let user = parts.next().and_then(Value::into_string).unwrap_or_default();
        Ok(Changed { done, header, user })
    }

    /// Whether each entry of a list leads to the session for which it was made.
    async fn exist(&self, entries: &[String]) -> Vec<Result<bool, CallError>> {
        let tag = |entry: &String| self.keys.tag(&["session", record::listed_parts(entry).map_or("", |(_, id)| id)]);
        let calls = entries.iter().map(|entry| self.header_of(&tag(entry))).collect();
        let answers = self.client.call_all(calls).await;
        let lives = |(entry, answer): (&String, Result<Value, CallError>)| {
            let wanted = record::listed_parts(entry).map(|(incarnation, _)| incarnation);
            answer.map(|answer| {
                let header = answer.into_bytes().and_then(|bytes| Header::parse(&bytes));
                header.is_some_and(|header| header.live && Some(header.incarnation) == wanted)
            })
        };
        entries.iter().zip(answers).map(lives).collect()
    }

    /// Reads a session's header.
    fn header_of(&self, tag: &Tag) -> Call {
        let range = [Value::Integer(0), Value::Integer(record::HEADER as i64 - 1)];
        Call::command("GETRANGE", &self.keys.key("s", tag), range).reading()
    }
}

/// What a script that changes a session answered.
struct Changed {
    /// 0: refused; 1: done; 2: done by an earlier attempt of the same call.
    done: i64,
    /// Before it, or after it where an earlier attempt did it.
    header: Option<Header>,
    user: String,
}

#[async_trait]
impl Sessions for RedisSessions {
    async fn get(&self, id: &str) -> Result<StoredSession, SessionError> {
        let (tag, key) = self.session(id)?;
        let asked_at = Instant::now();
        let reads = ["GET", "PTTL"].map(|name| Call::command(name, &key, []).reading());
        let mut answers = self.client.call_all(reads.into()).await.into_iter();
        let answer = answers.next().unwrap_or_else(|| Err(CallError::Unavailable { reason: "no answer".into() }));
        let record = answer.map_err(failed)?.into_bytes().unwrap_or_default();
        let left = answers.next().and_then(Result::ok).and_then(|left| left.as_u64());
        let lasts = left.map(|left| Lasts { sent: asked_at, ttl: Duration::from_millis(left) });
        let header = Header::parse(&record);
        self.judge((&tag, id), header.as_ref(), asked_at, lasts)?;
        let Some(header) = header.filter(|header| header.live) else { return Err(SessionError::NotFound) };
        let body = header.body(&record);
        let (user, state) = body.ok_or_else(|| unavailable("the session's record is damaged".into()))?;
        Ok(StoredSession { user, state, version: header.version })
    }

    async fn create(&self, id: &str, user: &str, state: Bytes, ttl: Duration) -> Result<(), SessionError> {
        let (tag, key) = self.session(id)?;
        check_size("user", user.len(), 0, MAX_SESSION_ID_BYTES)?;
        check_size("state", state.len(), 0, MAX_SESSION_BYTES)?;
        let (sent, until) = (Instant::now(), self.end());
        let header = Header::first(rand::random(), mark(), user);
        let record = record::record(&header, user, &state);
        let call = Call::script(&scripts::CREATE, &[&key], [Value::Bytes(record), millis(ttl)]);
        let changed = self.change(call).await?;
        if changed.done == 0 {
            self.judge((&tag, id), changed.header.as_ref(), sent, None)?;
            return Err(SessionError::Exists { version: changed.header.map_or(0, |header| header.version) });
        }
        self.seen.wrote((&tag, id), &header, Lasts { sent, ttl });
        self.list((&tag, id), header.incarnation, user, ttl, until).await;
        Ok(())
    }

    async fn update(&self, id: &str, expected: u64, state: Bytes, ttl: Duration) -> Result<u64, SessionError> {
        let (tag, key) = self.session(id)?;
        check_size("state", state.len(), 0, MAX_SESSION_BYTES)?;
        let (sent, until, mark) = (Instant::now(), self.end(), mark());
        let arguments = [
            text(&expected.to_string()),
            guard(self.seen.guard(&tag, expected)),
            bytes(&mark),
            Value::Bytes(state),
            millis(ttl),
        ];
        let changed = self.change(Call::script(&scripts::UPDATE, &[&key], arguments)).await?;
        let found = changed.header.filter(|header| header.live);
        let header = match (changed.done, found) {
            (1, Some(found)) => found.next(mark),
            // Others may have written since.
            (2, Some(found)) => found,
            _ => {
                self.judge((&tag, id), changed.header.as_ref(), sent, None)?;
                let Some(found) = found else { return Err(SessionError::NotFound) };
                return Err(SessionError::Conflict { expected, found: found.version });
            }
        };
        self.seen.wrote((&tag, id), &header, Lasts { sent, ttl });
        if self.seen.relist_due(&tag) {
            self.list((&tag, id), header.incarnation, &changed.user, ttl, until).await;
        }
        Ok(expected + 1)
    }

    async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), SessionError> {
        let (tag, key) = self.session(id)?;
        let (sent, until, mark) = (Instant::now(), self.end(), mark());
        let arguments = [
            text(&expected.map_or(String::new(), |expected| expected.to_string())),
            guard(expected.map_or(Guard::Nothing, |expected| self.seen.guard(&tag, expected))),
            bytes(&mark),
            millis(HORIZON),
        ];
        let changed = self.change(Call::script(&scripts::DELETE, &[&key], arguments)).await?;
        let gone = match (changed.done, changed.header) {
            (1, Some(found)) => found.next(mark).deleted(),
            (2, Some(found)) => found,
            (_, found) => {
                self.judge((&tag, id), found.as_ref(), sent, None)?;
                return Err(match (found.filter(|found| found.live), expected) {
                    (Some(found), Some(expected)) => SessionError::Conflict { expected, found: found.version },
                    _ => SessionError::NotFound,
                });
            }
        };
        self.seen.wrote((&tag, id), &gone, Lasts { sent, ttl: HORIZON });
        let entry = record::listed(gone.incarnation, id);
        self.unlist(&changed.user, vec![text(&entry)], until).await;
        Ok(())
    }

    async fn of_user(&self, user: &str, limit: usize) -> Result<Vec<String>, SessionError> {
        check_size("user", user.len(), 0, MAX_SESSION_ID_BYTES)?;
        let until = self.end();
        // Some may turn out to be gone, so all are asked for.
        let listed = Call::script(&scripts::LISTED, &[&self.list_of(user)], [Value::Integer(MAX_LISTED as i64)]);
        let listed = self.client.call(listed.reading()).await.map_err(failed)?;
        let entries: Vec<String> = listed.into_array().into_iter().filter_map(Value::into_string).collect();
        let lives = timeout_at(until, self.exist(&entries)).await;
        let lives = lives.map_err(|_| unavailable("a user's sessions were not found in time".into()))?;
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for (entry, lives) in entries.iter().zip(lives) {
            match (lives.map_err(failed)?, record::listed_parts(entry)) {
                (true, Some((_, id))) if found.len() < limit => found.push(id.to_owned()),
                (true, Some(_)) => {}
                _ => gone.push(text(entry)),
            }
        }
        if !gone.is_empty() {
            self.unlist(user, gone, until).await;
        }
        Ok(found)
    }

    async fn snapshot(&self, channel: &str) -> Result<Option<Snapshot>, SessionError> {
        self.read_snapshot(channel).await
    }

    async fn keep_snapshot(&self, channel: &str, snapshot: Snapshot, ttl: Duration) -> Result<bool, SessionError> {
        self.write_snapshot(channel, snapshot, ttl).await
    }

    async fn discard_snapshot(&self, channel: &str, position: &Position) -> Result<bool, SessionError> {
        self.remove_snapshot(channel, position).await
    }
}

fn check_size(field: &'static str, size: usize, min: usize, max: usize) -> Result<(), SessionError> {
    if (min..=max).contains(&size) { Ok(()) } else { Err(SessionError::Size { field, size, max }) }
}

/// 0 where there is no session.
fn live_version(found: Option<&Header>) -> u64 {
    found.filter(|found| found.live).map_or(0, |found| found.version)
}

fn mark() -> Mark {
    rand::random()
}

fn guard(guard: Guard) -> Value {
    match guard {
        Guard::Nothing => text(""),
        Guard::Mark(mark) => bytes(&mark),
        // No mark has this length.
        Guard::Refuse => text("refuse"),
    }
}

pub(crate) fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(bytes))
}

pub(crate) fn millis(ttl: Duration) -> Value {
    Value::Integer(ttl.clamp(MIN_TTL, MAX_TTL).as_millis() as i64)
}

fn unavailable(reason: String) -> SessionError {
    SessionError::Unavailable { reason }
}

fn failed(error: CallError) -> SessionError {
    match error {
        CallError::Indeterminate { .. } => SessionError::Indeterminate,
        error => unavailable(error.reason()),
    }
}
