//! Conformance of [`Ledger`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Fixture, PATIENCE, run_cases};
use crate::{Ledger, LedgerError, MAX_LEDGER_KEY_BYTES, MAX_LEDGER_VALUE_BYTES, Record};

/// All cases of the port [`Ledger`].
pub async fn ledger_suite(make: impl AsyncFn(usize) -> Fixture<dyn Ledger>) {
    run_cases!("ledger", make,
        what_was_written_is_read_by_all => 3,
        a_write_needs_the_revision_it_expects => 2,
        one_of_many_writers_wins => 3,
        erased_registers_are_gone_and_show_among_the_changes => 2,
        any_key_is_a_key_of_its_own => 1,
        sizes_are_bounded => 1,
        changes_come_oldest_first_and_once => 2,
        the_end_is_above_what_was_acknowledged => 2,
        a_register_with_a_time_ends => 2,
    );
}

/// Asks until there is an answer: a cluster that elects, or is slow, says so.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, LedgerError>) -> Result<T, LedgerError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(LedgerError::Unavailable { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
            result => return result,
        }
    }
}

/// Writes a value that the register does not hold yet. After a write without an answer it is read whether it took place; if not,
/// the same is tried again.
async fn write(
    ledger: &Arc<dyn Ledger>,
    key: &str,
    value: Option<&str>,
    expected: Option<u64>,
    ttl: Option<Duration>,
) -> Result<u64, LedgerError> {
    let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
    let mut in_doubt = false;
    for _ in 0..20 {
        let result = patiently(async || ledger.put(key, value.clone(), expected, ttl).await).await;
        let unknown = result == Err(LedgerError::Indeterminate);
        in_doubt |= unknown;
        if !in_doubt || !(unknown || matches!(result, Err(LedgerError::Conflict { .. }))) {
            return result;
        }
        let there = match value {
            Some(_) => get(ledger, key).await,
            None => changes(ledger, expected.unwrap_or_default(), 1000).await.into_iter().find(|one| one.key == key),
        };
        match there {
            Some(record) if record.value == value => return Ok(record.revision),
            _ if unknown => {}
            _ => return result,
        }
    }
    Err(LedgerError::Indeterminate)
}

async fn put(ledger: &Arc<dyn Ledger>, key: &str, value: &str) -> u64 {
    write(ledger, key, Some(value), None, None).await.unwrap()
}

async fn get(ledger: &Arc<dyn Ledger>, key: &str) -> Option<Record> {
    patiently(async || ledger.get(key).await).await.unwrap()
}

async fn changes(ledger: &Arc<dyn Ledger>, revision: u64, limit: usize) -> Vec<Record> {
    patiently(async || ledger.changes(revision, limit).await).await.unwrap()
}

fn shown(records: &[Record]) -> Vec<(&str, Option<&[u8]>)> {
    records.iter().map(|record| (record.key.as_str(), record.value.as_deref())).collect()
}

async fn what_was_written_is_read_by_all(fixture: &Fixture<dyn Ledger>) {
    assert_eq!(get(&fixture.replicas[0], "a").await, None);
    let mut last = 0;
    for round in 0..20 {
        let value = format!("value {round}");
        let revision = put(&fixture.replicas[round % 3], "a", &value).await;
        assert!(revision > last, "{revision} after {last}");
        last = revision;
        for ledger in &fixture.replicas {
            let record = get(ledger, "a").await.expect("written");
            assert_eq!(record, Record { key: "a".into(), value: Some(value.clone().into()), revision });
        }
    }
}

async fn a_write_needs_the_revision_it_expects(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let first = write(one, "a", Some("1"), Some(0), None).await.unwrap();
    let again = write(other, "a", Some("x"), Some(0), None).await;
    assert_eq!(again, Err(LedgerError::Conflict { expected: 0, found: first }));
    let second = write(other, "a", Some("2"), Some(first), None).await.unwrap();
    let stale = write(one, "a", Some("x"), Some(first), None).await;
    assert_eq!(stale, Err(LedgerError::Conflict { expected: first, found: second }));
    let nothing = write(one, "b", Some("x"), Some(second), None).await;
    assert_eq!(nothing, Err(LedgerError::Conflict { expected: second, found: 0 }));
    assert_eq!(get(one, "a").await.unwrap().value, Some("2".into()));
}

async fn the_end_is_above_what_was_acknowledged(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let before = patiently(async || other.end().await).await.unwrap();
    let written = put(one, "a", "1").await;
    let end = patiently(async || other.end().await).await.unwrap();
    assert!(before < written && written <= end, "{before}, {written}, {end}");
    let later = put(one, "a", "2").await;
    assert!(end < later, "{end}, {later}");
}

async fn one_of_many_writers_wins(fixture: &Fixture<dyn Ledger>) {
    let (mut revision, mut rounds) = (0, 0);
    for round in 0..20 {
        let writes = (0..12).map(|writer| {
            let ledger = fixture.replicas[writer % 3].clone();
            async move { ledger.put("a", Some(format!("{round} {writer}").into()), Some(revision), None).await }
        });
        let outcomes = join_all(writes).await;
        let won: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).collect();
        assert!(won.len() <= 1, "{outcomes:?}");
        let record = get(&fixture.replicas[0], "a").await;
        if let [(writer, Ok(won))] = won[..] {
            let record = record.unwrap();
            assert_eq!((record.value, record.revision), (Some(format!("{round} {writer}").into()), *won));
            (revision, rounds) = (*won, rounds + 1);
        } else {
            // No writer knows that it won where one had no answer, or none was heard. None of this round comes in later: what
            // they expect is over.
            let away = |one: &_| matches!(one, Err(LedgerError::Indeterminate | LedgerError::Unavailable { .. }));
            assert!(outcomes.iter().any(away), "{outcomes:?}");
            revision = put(&fixture.replicas[0], "a", &format!("{round} without a winner")).await;
        }
        if rounds == 5 {
            return;
        }
    }
    panic!("{rounds} rounds had a winner");
}

async fn erased_registers_are_gone_and_show_among_the_changes(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let written = put(one, "a", "1").await;
    let wrong = write(one, "a", None, Some(written + 100), None).await;
    assert_eq!(wrong, Err(LedgerError::Conflict { expected: written + 100, found: written }));
    let erased = write(one, "a", None, Some(written), None).await.unwrap();
    assert_eq!(get(other, "a").await, None);
    assert_eq!(changes(other, written, 10).await, [Record { key: "a".into(), value: None, revision: erased }]);
    // What was erased may be made again like new.
    let made = write(other, "a", Some("2"), Some(0), None).await.unwrap();
    assert!(made > erased);
    assert_eq!(get(one, "a").await.unwrap().value, Some("2".into()));
}

async fn any_key_is_a_key_of_its_own(fixture: &Fixture<dyn Ledger>) {
    let ledger = &fixture.replicas[0];
    let keys = ["a", "A", "a.b", "a.*", "a.>", ">", "*", " ", "ä\0\n", "$KV", "b".repeat(MAX_LEDGER_KEY_BYTES).leak()];
    for key in keys {
        put(ledger, key, key).await;
    }
    for key in keys {
        let record = get(ledger, key).await.unwrap_or_else(|| panic!("{key:?}"));
        assert_eq!((record.key.as_str(), record.value), (key, Some(Bytes::copy_from_slice(key.as_bytes()))));
    }
    assert_eq!(changes(ledger, 0, 100).await.len(), keys.len());
}

async fn sizes_are_bounded(fixture: &Fixture<dyn Ledger>) {
    let ledger = &fixture.replicas[0];
    let largest = "x".repeat(MAX_LEDGER_VALUE_BYTES);
    put(ledger, "a", &largest).await;
    assert_eq!(get(ledger, "a").await.unwrap().value, Some(largest.into()));
    let larger = ledger.put("a", Some(vec![b'x'; MAX_LEDGER_VALUE_BYTES + 1].into()), None, None).await;
    assert!(matches!(larger, Err(LedgerError::TooLarge { what: "value", .. })), "{larger:?}");
    let longer = ledger.put(&"k".repeat(MAX_LEDGER_KEY_BYTES + 1), Some("1".into()), None, None).await;
    assert!(matches!(longer, Err(LedgerError::TooLarge { what: "key", .. })), "{longer:?}");
}

async fn changes_come_oldest_first_and_once(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    assert_eq!(changes(other, 0, 10).await, []);
    for (key, value) in [("a", "1"), ("b", "1"), ("c", "1"), ("a", "2")] {
        put(one, key, value).await;
    }
    let first = changes(other, 0, 2).await;
    assert_eq!(shown(&first), [("b", Some(&b"1"[..])), ("c", Some(b"1"))], "only the newest write of a register");
    let rest = changes(other, first[1].revision, 2).await;
    assert_eq!(shown(&rest), [("a", Some(&b"2"[..]))]);
    assert_eq!(changes(other, rest[0].revision, 2).await, []);
    // Everything that was acknowledged before the question is in the answer.
    let mut seen = rest[0].revision;
    for round in 0..20 {
        let written = put(one, &format!("key {round}"), "1").await;
        let changes = changes(other, seen, 10).await;
        assert_eq!(changes.iter().map(|record| record.revision).collect::<Vec<_>>(), [written]);
        seen = written;
    }
}

async fn a_register_with_a_time_ends(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let ttl = Duration::from_secs(6);
    put(one, "b", "stays").await;
    let revision = write(one, "a", Some("1"), Some(0), Some(ttl)).await.unwrap();
    assert_eq!(get(other, "a").await.unwrap().revision, revision);
    fixture.let_pass(ttl + Duration::from_secs(1)).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while get(other, "a").await.is_some() {
        assert!(tokio::time::Instant::now() < deadline, "it never ends");
        fixture.let_pass(Duration::from_millis(200)).await;
    }
    let again = write(other, "a", Some("2"), Some(0), None).await.unwrap();
    assert!(again > revision);
    assert!(get(one, "b").await.is_some());
}
