//! In-process sessions.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::expiring::Expiring;
use crate::{MAX_SESSION_BYTES, MAX_SESSION_ID_BYTES, Position, SessionError, Sessions, Snapshot, StoredSession};

/// Sessions and snapshots kept together; beyond it new ones are refused.
const MAX_KEPT: usize = 1 << 20;

/// Sessions in this process's memory; replicas share it by sharing the pointer.
#[derive(Default)]
pub struct MemorySessions {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: Expiring<Box<str>, StoredSession>,
    snapshots: Expiring<Box<str>, Snapshot>,
    of_user: HashMap<Box<str>, HashSet<Box<str>>>,
}

impl MemorySessions {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

impl State {
    /// Removes what is expired, from the users' lists too.
    fn forget_expired(&mut self, now: Instant) {
        for (id, session) in self.sessions.take_expired(now) {
            unlist(&mut self.of_user, &session.user, &id);
        }
        self.snapshots.take_expired(now);
    }

    fn room(&self) -> Result<(), SessionError> {
        if self.sessions.len() + self.snapshots.len() < MAX_KEPT {
            return Ok(());
        }
        Err(SessionError::Unavailable { reason: format!("{MAX_KEPT} sessions are kept in memory") })
    }
}

fn unlist(of_user: &mut HashMap<Box<str>, HashSet<Box<str>>>, user: &str, id: &str) {
    if let Some(ids) = of_user.get_mut(user) {
        ids.remove(id);
        if ids.is_empty() {
            of_user.remove(user);
        }
    }
}

/// The bounds of the port, for every implementation of it.
pub(crate) fn check_size(field: &'static str, size: usize, empty_too: bool, max: usize) -> Result<(), SessionError> {
    if size > max || (size == 0 && !empty_too) {
        return Err(SessionError::Size { field, size, max });
    }
    Ok(())
}

#[async_trait]
impl Sessions for MemorySessions {
    async fn get(&self, id: &str) -> Result<StoredSession, SessionError> {
        check_size("id", id.len(), false, MAX_SESSION_ID_BYTES)?;
        let mut state = self.state.lock();
        state.forget_expired(Instant::now());
        state.sessions.get(id).cloned().ok_or(SessionError::NotFound)
    }

    async fn create(&self, id: &str, user: &str, session: Bytes, ttl: Duration) -> Result<(), SessionError> {
        check_size("id", id.len(), false, MAX_SESSION_ID_BYTES)?;
        check_size("user", user.len(), true, MAX_SESSION_ID_BYTES)?;
        check_size("state", session.len(), true, MAX_SESSION_BYTES)?;
        let mut state = self.state.lock();
        let now = Instant::now();
        state.forget_expired(now);
        if let Some(there) = state.sessions.get(id) {
            return Err(SessionError::Exists { version: there.version });
        }
        state.room()?;
        state.sessions.insert(id.into(), StoredSession { user: user.into(), state: session, version: 1 }, now + ttl);
        state.of_user.entry_ref(user).or_default().insert(id.into());
        Ok(())
    }

    async fn update(&self, id: &str, expected: u64, session: Bytes, ttl: Duration) -> Result<u64, SessionError> {
        check_size("id", id.len(), false, MAX_SESSION_ID_BYTES)?;
        check_size("state", session.len(), true, MAX_SESSION_BYTES)?;
        let mut state = self.state.lock();
        let now = Instant::now();
        state.forget_expired(now);
        let there = state.sessions.get(id).ok_or(SessionError::NotFound)?;
        if there.version != expected {
            return Err(SessionError::Conflict { expected, found: there.version });
        }
        let next = StoredSession { user: there.user.clone(), state: session, version: expected + 1 };
        state.sessions.insert(id.into(), next, now + ttl);
        Ok(expected + 1)
    }

    async fn delete(&self, id: &str, expected: Option<u64>) -> Result<(), SessionError> {
        check_size("id", id.len(), false, MAX_SESSION_ID_BYTES)?;
        let mut state = self.state.lock();
        state.forget_expired(Instant::now());
        let there = state.sessions.get(id).ok_or(SessionError::NotFound)?;
        if let Some(expected) = expected
            && there.version != expected
        {
            return Err(SessionError::Conflict { expected, found: there.version });
        }
        let user = there.user.clone();
        state.sessions.remove(id);
        unlist(&mut state.of_user, &user, id);
        Ok(())
    }

    async fn of_user(&self, user: &str, limit: usize) -> Result<Vec<String>, SessionError> {
        check_size("user", user.len(), true, MAX_SESSION_ID_BYTES)?;
        let mut state = self.state.lock();
        state.forget_expired(Instant::now());
        let ids = state.of_user.get(user).into_iter().flatten();
        Ok(ids.take(limit).map(|id| id.to_string()).collect())
    }

    async fn snapshot(&self, channel: &str) -> Result<Option<Snapshot>, SessionError> {
        let mut state = self.state.lock();
        state.forget_expired(Instant::now());
        Ok(state.snapshots.get(channel).cloned())
    }

    async fn keep_snapshot(&self, channel: &str, snapshot: Snapshot, ttl: Duration) -> Result<bool, SessionError> {
        check_size("channel", channel.len(), false, crate::MAX_CHANNEL_BYTES)?;
        check_size("state", snapshot.state.len(), true, MAX_SESSION_BYTES)?;
        let mut state = self.state.lock();
        let now = Instant::now();
        state.forget_expired(now);
        match state.snapshots.get(channel) {
            Some(there) if there.position.epoch == snapshot.position.epoch => {
                if there.position.offset >= snapshot.position.offset {
                    return Ok(false);
                }
            }
            Some(_) => {}
            None => state.room()?,
        }
        state.snapshots.insert(channel.into(), snapshot, now + ttl);
        Ok(true)
    }

    async fn discard_snapshot(&self, channel: &str, position: &Position) -> Result<bool, SessionError> {
        let mut state = self.state.lock();
        state.forget_expired(Instant::now());
        let there = state.snapshots.get(channel).is_some_and(|there| there.position == *position);
        if there {
            state.snapshots.remove(channel);
        }
        Ok(there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Fixture, sessions_suite};

    #[tokio::test(start_paused = true)]
    async fn sessions_conform() {
        sessions_suite(async |replicas| {
            let sessions = MemorySessions::new();
            Fixture::with_tokio_time((0..replicas).map(|_| sessions.clone() as Arc<dyn Sessions>).collect())
        })
        .await;
    }
}
