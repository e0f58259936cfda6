//! The session store.
//!
//! A session is one string key in its own slot, changed by scripts that compare a version and the random mark of that
//! version; there is no lock. The list of a user's sessions lies in the user's slot, so it is written after the session
//! and cleaned when it is read: best effort in order. Failovers lose acknowledged writes; this replica remembers the newest
//! versions that it saw, and tells [`SessionError::WentBack`] once where the store is behind one of them.

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
use tokio::time::{Instant, timeout_at};

use self::record::{Header, Mark};
use self::seen::{Guard, HORIZON, Seen, Wrote};
use crate::client::{Call, CallError, Client, Purpose, Redis, RedisMetrics, Value};
use crate::keys::{Key, Keys, Tag};

/// Sessions of which this replica remembers the newest version (about 140 bytes each).
const SEEN: usize = 65_536;
/// Longest list of one user's sessions; beyond it those that expire first are not listed.
const MAX_LISTED: usize = 1000;
/// No operation takes longer, whatever its parts take.
const WHOLE: Duration = Duration::from_millis(950);
/// Shortest and longest time to live; others are taken for the nearest.
const MIN_TTL: Duration = Duration::from_millis(1);
const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Sessions on Redis, seen from one replica.
pub struct RedisSessions {
    client: Client,
    keys: Keys,
    seen: Seen,
    metrics: Arc<RedisMetrics>,
}

impl RedisSessions {
    /// On connections of its own.
    pub fn new(redis: &Redis) -> Arc<Self> {
        let (client, keys, metrics) = (redis.client(Purpose::Sessions), redis.keys().clone(), redis.metrics().clone());
        Arc::new(RedisSessions { client, keys, seen: Seen::new(SEEN), metrics })
    }

    fn session(&self, id: &str) -> Result<(Tag, Key), SessionError> {
        check_size("id", id.len(), 1, MAX_SESSION_ID_BYTES)?;
        let tag = self.keys.tag(&["session", id]);
        let key = self.keys.key("s", &tag);
        Ok((tag, key))
    }

    fn list_of(&self, user: &str) -> Key {
        self.keys.key("su", &self.keys.tag(&["user", user]))
    }

    /// Compares what was found with what this replica knows, and tells a store that went back.
    fn judge(&self, id: &str, tag: &Tag, found: Option<&Header>, asked_at: Instant) -> Result<(), SessionError> {
        let Err(behind) = self.seen.found(tag, found, asked_at) else { return Ok(()) };
        let found = found.filter(|found| found.live).map_or(0, |found| found.version);
        self.metrics.sessions_went_back.inc();
        tracing::warn!(session = id, known = behind.known, found, "a session went back behind an acknowledged version");
        Err(SessionError::WentBack { known: behind.known, found })
    }

    /// Enters the session in its user's list, or notes that this is due with the next update.
    async fn list(&self, id: &str, tag: &Tag, user: &str, ttl: Duration, until: Instant) {
        let arguments = [text(id), millis(ttl), Value::Integer(MAX_LISTED as i64)];
        let call = Call::script(&scripts::LIST, &[&self.list_of(user)], arguments).repeatable();
        match timeout_at(until, self.client.call(call)).await {
            Ok(Ok(_)) => self.seen.relisted(tag, ttl),
            Ok(Err(error)) => tracing::debug!(%error, "a user's session was not listed"),
            Err(_) => tracing::debug!("a user's session was not listed in time"),
        }
    }

    async fn unlist(&self, user: &str, entries: Vec<Value>, until: Instant) {
        let call = Call::script(&scripts::UNLIST, &[&self.list_of(user)], entries).repeatable();
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

    async fn exist(&self, ids: &[String]) -> Vec<Result<bool, CallError>> {
        let call = |id: &String| {
            let key = self.keys.key("s", &self.keys.tag(&["session", id]));
            Call::command("GETRANGE", &key, [Value::Integer(0), Value::Integer(0)]).reading()
        };
        let answers = self.client.call_all(ids.iter().map(call).collect()).await;
        let lives = |answer: Value| answer.into_bytes().is_some_and(|first| first.first() == Some(&1));
        answers.into_iter().map(|answer| answer.map(lives)).collect()
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
        let answer = self.client.call(Call::command("GET", &key, []).reading()).await.map_err(failed)?;
        let record = answer.into_bytes().unwrap_or_default();
        let header = Header::parse(&record);
        self.judge(id, &tag, header.as_ref(), asked_at)?;
        let Some(header) = header.filter(|header| header.live) else { return Err(SessionError::NotFound) };
        let body = header.body(&record);
        let (user, state) = body.ok_or_else(|| unavailable("the session's record is damaged".into()))?;
        Ok(StoredSession { user, state, version: header.version })
    }

    async fn create(&self, id: &str, user: &str, state: Bytes, ttl: Duration) -> Result<(), SessionError> {
        let (tag, key) = self.session(id)?;
        check_size("user", user.len(), 0, MAX_SESSION_ID_BYTES)?;
        check_size("state", state.len(), 0, MAX_SESSION_BYTES)?;
        let sent = Instant::now();
        let header = Header::first(rand::random(), mark(), user);
        let record = record::record(&header, user, &state);
        let call = Call::script(&scripts::CREATE, &[&key], [Value::Bytes(record), millis(ttl)]);
        let changed = self.change(call).await?;
        if changed.done == 0 {
            self.judge(id, &tag, changed.header.as_ref(), sent)?;
            return Err(SessionError::Exists { version: changed.header.map_or(0, |header| header.version) });
        }
        self.seen.wrote(&tag, &header, Wrote { sent, ttl });
        self.list(id, &tag, user, ttl, sent + WHOLE).await;
        Ok(())
    }

    async fn update(&self, id: &str, expected: u64, state: Bytes, ttl: Duration) -> Result<u64, SessionError> {
        let (tag, key) = self.session(id)?;
        check_size("state", state.len(), 0, MAX_SESSION_BYTES)?;
        let (sent, mark) = (Instant::now(), mark());
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
                self.judge(id, &tag, changed.header.as_ref(), sent)?;
                let Some(found) = found else { return Err(SessionError::NotFound) };
                return Err(SessionError::Conflict { expected, found: found.version });
            }
        };
        self.seen.wrote(&tag, &header, Wrote { sent, ttl });
        if self.seen.relist_due(&tag) {
            self.list(id, &tag, &changed.user, ttl, sent + WHOLE).await;
        }
        Ok(expected + 1)
    }

    async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), SessionError> {
        let (tag, key) = self.session(id)?;
        let (sent, mark) = (Instant::now(), mark());
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
                self.judge(id, &tag, found.as_ref(), sent)?;
                return Err(match (found.filter(|found| found.live), expected) {
                    (Some(found), Some(expected)) => SessionError::Conflict { expected, found: found.version },
                    _ => SessionError::NotFound,
                });
            }
        };
        self.seen.wrote(&tag, &gone, Wrote { sent, ttl: HORIZON });
        self.unlist(&changed.user, vec![text(id), text("")], sent + WHOLE).await;
        Ok(())
    }

    async fn of_user(&self, user: &str, limit: usize) -> Result<Vec<String>, SessionError> {
        check_size("user", user.len(), 0, MAX_SESSION_ID_BYTES)?;
        let until = Instant::now() + WHOLE;
        // Some may turn out to be gone, so all are asked for.
        let listed = Call::script(&scripts::LISTED, &[&self.list_of(user)], [Value::Integer(MAX_LISTED as i64)]);
        let listed = self.client.call(listed.reading()).await.map_err(failed)?;
        let mut words = listed.into_array().into_iter().filter_map(Value::into_string);
        let mut entries = Vec::new();
        while let (Some(id), Some(date)) = (words.next(), words.next()) {
            entries.push((id, date));
        }
        let ids: Vec<String> = entries.iter().map(|(id, _)| id.clone()).collect();
        let lives = timeout_at(until, self.exist(&ids)).await;
        let lives = lives.map_err(|_| unavailable("a user's sessions were not found in time".into()))?;
        let (mut found, mut gone) = (Vec::new(), Vec::new());
        for ((id, date), lives) in entries.into_iter().zip(lives) {
            match lives.map_err(failed)? {
                true if found.len() < limit => found.push(id),
                true => {}
                false => gone.extend([text(&id), text(&date)]),
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
