//! Conformance of [`Sessions`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use plenum_protocol::Publication;

use super::{Fixture, run_cases};
use crate::memory::{MemoryBroker, MemoryConfig, MemoryLog};
use crate::{
    Append, Entry, Epoch, Log, MAX_SESSION_BYTES, MAX_SESSION_ID_BYTES, Position, Read, Retention, SessionError,
    Sessions, Since, Snapshot, StoredSession,
};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

/// All cases of the port [`Sessions`].
pub async fn sessions_suite(make: impl AsyncFn(usize) -> Fixture<dyn Sessions>) {
    run_cases!("sessions", make,
        a_session_lives_from_create_to_delete => 2,
        writers_of_one_session_lose_no_update => 2,
        sessions_expire_after_their_last_write => 2,
        a_users_sessions_are_listed => 2,
        any_id_is_kept_apart_from_any_other => 1,
        sizes_are_bounded => 1,
        a_snapshot_goes_forward_only => 2,
        snapshots_expire => 1,
        a_snapshot_that_the_log_did_not_lead_to_is_discarded => 2,
        the_newest_of_many_snapshots_at_once_stays => 2,
    );
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn stored(user: &str, state: &str, version: u64) -> StoredSession {
    StoredSession { user: user.into(), state: bytes(state), version }
}

async fn a_session_lives_from_create_to_delete(fixture: &Fixture<dyn Sessions>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(other.get("s").await, Err(SessionError::NotFound));
    assert_eq!(other.update("s", 1, bytes("x"), LONG).await, Err(SessionError::NotFound));
    assert_eq!(other.delete("s", None).await, Err(SessionError::NotFound));
    one.create("s", "ann", bytes("a"), LONG).await.unwrap();
    assert_eq!(other.get("s").await, Ok(stored("ann", "a", 1)));
    assert_eq!(other.create("s", "bob", bytes("b"), LONG).await, Err(SessionError::Exists { version: 1 }));
    assert_eq!(other.update("s", 1, bytes("b\0\r\n"), LONG).await, Ok(2));
    assert_eq!(one.get("s").await, Ok(stored("ann", "b\0\r\n", 2)));
    for expected in [1, 3, 0, u64::MAX] {
        let conflict = Err(SessionError::Conflict { expected, found: 2 });
        assert_eq!(one.update("s", expected, bytes("c"), LONG).await, conflict);
        assert_eq!(one.delete("s", Some(expected)).await, Err(SessionError::Conflict { expected, found: 2 }));
    }
    assert_eq!(one.update("s", 2, Bytes::new(), LONG).await, Ok(3));
    assert_eq!(other.get("s").await, Ok(stored("ann", "", 3)));
    one.delete("s", Some(3)).await.unwrap();
    assert_eq!(other.get("s").await, Err(SessionError::NotFound));
    assert_eq!(one.delete("s", None).await, Err(SessionError::NotFound));
    other.create("s", "", bytes("again"), LONG).await.unwrap();
    assert_eq!(one.get("s").await, Ok(stored("", "again", 1)), "a new session under an old id");
    other.delete("s", None).await.unwrap();
    assert_eq!(one.get("s").await, Err(SessionError::NotFound));
}

/// 200 writers add one each to a session: whoever conflicts reads and tries again, and nothing is lost.
async fn writers_of_one_session_lose_no_update(fixture: &Fixture<dyn Sessions>) {
    const WRITERS: usize = 200;
    fixture.replicas[0].create("s", "ann", bytes(""), LONG).await.unwrap();
    let write = async |writer: usize, sessions: Arc<dyn Sessions>| {
        loop {
            let there = match sessions.get("s").await {
                Ok(there) => there,
                Err(SessionError::Unavailable { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            let state = [&there.state[..], format!("{writer},").as_bytes()].concat();
            match sessions.update("s", there.version, state.into(), LONG).await {
                Ok(version) => return assert_eq!(version, there.version + 1),
                // Whether it was written shows in what is read next.
                Err(SessionError::Indeterminate) => {
                    let there = sessions.get("s").await.unwrap();
                    if String::from_utf8_lossy(&there.state).split(',').any(|one| one == writer.to_string()) {
                        return;
                    }
                }
                Err(SessionError::Conflict { .. } | SessionError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let replicas = &fixture.replicas;
    join_all((0..WRITERS).map(|writer| write(writer, replicas[writer % replicas.len()].clone()))).await;
    let there = replicas[0].get("s").await.unwrap();
    let mut writers: Vec<usize> =
        String::from_utf8_lossy(&there.state).split_terminator(',').map(|one| one.parse().unwrap()).collect();
    writers.sort_unstable();
    assert_eq!(writers, (0..WRITERS).collect::<Vec<_>>());
    assert_eq!(there.version, WRITERS as u64 + 1);
}

async fn sessions_expire_after_their_last_write(fixture: &Fixture<dyn Sessions>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    // Long enough that a slow store answers within the times that are left.
    let life = Duration::from_secs(8);
    one.create("gone", "ann", bytes("a"), life).await.unwrap();
    one.create("kept", "ann", bytes("a"), life).await.unwrap();
    one.create("long", "ann", bytes("a"), LONG).await.unwrap();
    fixture.let_pass(life / 2).await;
    assert_eq!(other.update("kept", 1, bytes("b"), life).await, Ok(2));
    fixture.let_pass(life * 6 / 10).await;
    assert_eq!(other.get("gone").await, Err(SessionError::NotFound));
    assert_eq!(other.get("kept").await, Ok(stored("ann", "b", 2)));
    fixture.let_pass(life).await;
    assert_eq!(other.get("kept").await, Err(SessionError::NotFound));
    assert_eq!(one.of_user("ann", 10).await, Ok(vec!["long".into()]));
    one.create("gone", "bob", bytes("c"), LONG).await.unwrap();
    assert_eq!(other.get("gone").await, Ok(stored("bob", "c", 1)));
}

async fn a_users_sessions_are_listed(fixture: &Fixture<dyn Sessions>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(one.of_user("ann", 10).await, Ok(vec![]));
    for n in 0..20 {
        one.create(&format!("a{n}"), "ann", bytes("x"), LONG).await.unwrap();
    }
    one.create("b", "bob", bytes("x"), LONG).await.unwrap();
    let mut ids = other.of_user("ann", 100).await.unwrap();
    ids.sort_unstable();
    let mut wanted: Vec<String> = (0..20).map(|n| format!("a{n}")).collect();
    wanted.sort_unstable();
    assert_eq!(ids, wanted);
    assert_eq!(other.of_user("ann", 7).await.unwrap().len(), 7);
    assert_eq!(other.of_user("bob", 7).await, Ok(vec!["b".to_owned()]));
    other.delete("b", Some(1)).await.unwrap();
    assert_eq!(one.of_user("bob", 7).await, Ok(vec![]));
}

async fn any_id_is_kept_apart_from_any_other(fixture: &Fixture<dyn Sessions>) {
    let sessions = &fixture.replicas[0];
    let long = "x".repeat(MAX_SESSION_ID_BYTES);
    let names = ["a", "A", "a b", "*", "{a}", "b{a}", "a}", "\0", "\r\n", "日本語", "a:1", &long, &long[1..]];
    for name in names {
        sessions.create(name, name, bytes(name), LONG).await.unwrap();
    }
    for name in names {
        assert_eq!(sessions.get(name).await, Ok(stored(name, name, 1)));
        assert_eq!(sessions.of_user(name, 10).await, Ok(vec![name.to_owned()]));
    }
}

async fn sizes_are_bounded(fixture: &Fixture<dyn Sessions>) {
    let sessions = &fixture.replicas[0];
    let (largest, too_large) = (Bytes::from(vec![7; MAX_SESSION_BYTES]), Bytes::from(vec![7; MAX_SESSION_BYTES + 1]));
    let long = "x".repeat(MAX_SESSION_ID_BYTES + 1);
    let size = |result: Result<(), SessionError>| matches!(result, Err(SessionError::Size { .. }));
    assert!(size(sessions.create("", "ann", bytes("x"), LONG).await));
    assert!(size(sessions.create(&long, "ann", bytes("x"), LONG).await));
    assert!(size(sessions.create("s", &long, bytes("x"), LONG).await));
    assert!(size(sessions.create("s", "ann", too_large.clone(), LONG).await));
    assert!(size(sessions.get(&long).await.map(drop)));
    sessions.create("s", "ann", largest.clone(), LONG).await.unwrap();
    assert!(size(sessions.update("s", 1, too_large.clone(), LONG).await.map(drop)));
    assert_eq!(sessions.update("s", 1, largest.clone(), LONG).await, Ok(2));
    assert_eq!(sessions.get("s").await.map(|there| there.state), Ok(largest.clone()));
    let position = Position { offset: 1, epoch: Epoch::from("e") };
    let snapshot = |state| Snapshot { position: position.clone(), time: u64::MAX, state };
    assert!(size(sessions.keep_snapshot("c", snapshot(too_large), LONG).await.map(drop)));
    assert_eq!(sessions.keep_snapshot("c", snapshot(largest.clone()), LONG).await, Ok(true));
    assert_eq!(sessions.snapshot("c").await, Ok(Some(snapshot(largest))));
}

/// "Keeps a snapshot unless one at the same or a later position of the same epoch is there."
async fn a_snapshot_goes_forward_only(fixture: &Fixture<dyn Sessions>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let snapshot = |epoch: &str, offset, state: &str| Snapshot {
        position: Position { offset, epoch: Epoch::from(epoch) },
        time: offset / 2,
        state: bytes(state),
    };
    assert_eq!(one.snapshot("c").await, Ok(None));
    // 9 and 10, 99 and 100: numbers, not texts; beyond 2^53 too.
    for offset in [9, 10, 99, 100, 1 << 53, (1 << 53) + 1, u64::MAX] {
        let next = snapshot("e", offset, "x");
        assert_eq!(one.keep_snapshot("c", next.clone(), LONG).await, Ok(true), "{offset}");
        assert_eq!(other.keep_snapshot("c", snapshot("e", offset, "y"), LONG).await, Ok(false), "{offset}");
        assert_eq!(other.keep_snapshot("c", snapshot("e", offset - 1, "y"), LONG).await, Ok(false), "{offset}");
        assert_eq!(other.snapshot("c").await, Ok(Some(next)), "{offset}");
    }
    for epoch in ["f", "", "e", "ee"] {
        let foreign = snapshot(epoch, 5, epoch);
        assert_eq!(other.keep_snapshot("c", foreign.clone(), LONG).await, Ok(true), "another epoch replaces");
        assert_eq!(one.snapshot("c").await, Ok(Some(foreign)));
    }
    assert_eq!(one.snapshot("d").await, Ok(None));
    assert_eq!(one.get("c").await, Err(SessionError::NotFound), "a snapshot is no session");
}

async fn snapshots_expire(fixture: &Fixture<dyn Sessions>) {
    let sessions = &fixture.replicas[0];
    let snapshot = at(5, "x");
    assert_eq!(sessions.keep_snapshot("c", snapshot.clone(), SHORT).await, Ok(true));
    fixture.let_pass(SHORT + SHORT / 10).await;
    assert_eq!(sessions.snapshot("c").await, Ok(None));
    assert_eq!(sessions.keep_snapshot("c", snapshot, SHORT).await, Ok(true));
}

/// A snapshot at a position of the epoch `e`.
fn at(offset: u64, state: &str) -> Snapshot {
    Snapshot { position: Position { offset, epoch: Epoch::from("e") }, time: 1_790_000_000_000, state: bytes(state) }
}

const RETENTION: Retention = Retention { size: 1_000, ttl: LONG, meta_ttl: LONG };

/// A log whose channel `c` has so many publications, and its end.
async fn log_of(publications: usize) -> (Arc<MemoryLog>, Arc<Entry>) {
    let log = MemoryBroker::new(MemoryConfig::default()).replica();
    for _ in 0..publications {
        let append = Append {
            channel: "c".into(),
            publication: Publication { data: bytes("1"), ..Publication::default() },
            retention: RETENTION,
            idempotency: None,
            expected: None,
            version: None,
        };
        log.append(append).await.unwrap();
    }
    let read = Read { since: Since::End, reverse: true, limit: 1, max_bytes: 100, retention: RETENTION };
    let last = log.read("c", read).await.unwrap().entries[0].clone();
    (log, last)
}

/// "One that does not fit is removed."
async fn a_snapshot_that_the_log_did_not_lead_to_is_discarded(fixture: &Fixture<dyn Sessions>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let (log, last) = log_of(20).await;
    let (stranger, _) = log_of(20).await;
    let epoch = log.tail("c").await.unwrap().position.epoch;
    let at = |offset, time| Snapshot { position: Position { offset, epoch: epoch.clone() }, time, state: bytes("x") };
    let right = at(last.offset, last.stored_at_ms);
    assert_eq!(one.keep_snapshot("c", right.clone(), LONG).await, Ok(true));
    assert_eq!(other.fitting_snapshot("c", log.as_ref(), RETENTION).await, Ok(Some(right.clone())));
    for position in [at(last.offset - 1, 1).position, Position { epoch: Epoch::from("f"), ..right.position.clone() }] {
        assert_eq!(other.discard_snapshot("c", &position).await, Ok(false), "{position:?}");
    }
    assert_eq!(one.snapshot("c").await, Ok(Some(right.clone())));
    assert_eq!(other.fitting_snapshot("c", stranger.as_ref(), RETENTION).await, Ok(None), "another epoch");
    assert_eq!(one.snapshot("c").await, Ok(None));
    // The log went back: it ends before the snapshot, or has grown past it and holds something else there.
    for wrong in [at(last.offset + 9, last.stored_at_ms), at(last.offset, last.stored_at_ms + 1), at(1, 1)] {
        assert_eq!(one.keep_snapshot("c", wrong.clone(), LONG).await, Ok(true));
        assert_eq!(other.fitting_snapshot("c", log.as_ref(), RETENTION).await, Ok(None), "{wrong:?}");
        assert_eq!(one.snapshot("c").await, Ok(None));
        assert_eq!(one.discard_snapshot("c", &wrong.position).await, Ok(false), "it is gone");
    }
    // Of the beginning, and one whose publication nobody sees any more.
    for (kept, retention) in
        [(at(0, 0), RETENTION), (at(last.offset, 1), Retention { ttl: Duration::ZERO, ..RETENTION })]
    {
        assert_eq!(one.keep_snapshot("c", kept.clone(), LONG).await, Ok(true));
        assert_eq!(other.fitting_snapshot("c", log.as_ref(), retention).await, Ok(Some(kept)));
    }
    assert_eq!(one.fitting_snapshot("d", log.as_ref(), RETENTION).await, Ok(None));
}

async fn the_newest_of_many_snapshots_at_once_stays(fixture: &Fixture<dyn Sessions>) {
    const WRITERS: u64 = 50;
    let keep = |n: u64| {
        // Neither rising nor falling: 7 has no divisor in common with 50.
        let offset = 1 + n * 7 % WRITERS;
        let sessions = &fixture.replicas[(n % 2) as usize];
        async move { sessions.keep_snapshot("c", at(offset, &format!("state {offset}")), LONG).await }
    };
    let outcomes = join_all((0..WRITERS).map(keep)).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(outcomes.contains(&Ok(true)));
    let newest = at(WRITERS, &format!("state {WRITERS}"));
    for sessions in &fixture.replicas {
        assert_eq!(sessions.snapshot("c").await, Ok(Some(newest.clone())));
    }
}
