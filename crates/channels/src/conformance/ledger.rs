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

async fn put(ledger: &Arc<dyn Ledger>, key: &str, value: &str) -> u64 {
    ledger.put(key, Some(value.to_owned().into()), None, None).await.unwrap()
}

/// What a register holds; a cluster that elects says so and is asked again.
async fn get(ledger: &Arc<dyn Ledger>, key: &str) -> Option<Record> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ledger.get(key).await {
            Err(LedgerError::Unavailable { .. }) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
            result => return result.unwrap(),
        }
    }
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
    let first = one.put("a", Some("1".into()), Some(0), None).await.unwrap();
    let again = other.put("a", Some("x".into()), Some(0), None).await;
    assert_eq!(again, Err(LedgerError::Conflict { expected: 0, found: first }));
    let second = other.put("a", Some("2".into()), Some(first), None).await.unwrap();
    let stale = one.put("a", Some("x".into()), Some(first), None).await;
    assert_eq!(stale, Err(LedgerError::Conflict { expected: first, found: second }));
    let nothing = one.put("b", Some("x".into()), Some(second), None).await;
    assert_eq!(nothing, Err(LedgerError::Conflict { expected: second, found: 0 }));
    assert_eq!(get(one, "a").await.unwrap().value, Some("2".into()));
}

async fn the_end_is_above_what_was_acknowledged(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let before = other.end().await.unwrap();
    let written = put(one, "a", "1").await;
    let end = other.end().await.unwrap();
    assert!(before < written && written <= end, "{before}, {written}, {end}");
    let later = put(one, "a", "2").await;
    assert!(end < later, "{end}, {later}");
}

async fn one_of_many_writers_wins(fixture: &Fixture<dyn Ledger>) {
    let mut revision = 0;
    for round in 0..5 {
        let writes = (0..12).map(|writer| {
            let ledger = fixture.replicas[writer % 3].clone();
            async move { ledger.put("a", Some(format!("{round} {writer}").into()), Some(revision), None).await }
        });
        let outcomes = join_all(writes).await;
        let won: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_ok()).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        revision = *won[0].1.as_ref().unwrap();
        let record = get(&fixture.replicas[0], "a").await.unwrap();
        assert_eq!((record.value, record.revision), (Some(format!("{round} {}", won[0].0).into()), revision));
    }
}

async fn erased_registers_are_gone_and_show_among_the_changes(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let written = put(one, "a", "1").await;
    let wrong = one.put("a", None, Some(written + 100), None).await;
    assert_eq!(wrong, Err(LedgerError::Conflict { expected: written + 100, found: written }));
    let erased = one.put("a", None, Some(written), None).await.unwrap();
    assert_eq!(get(other, "a").await, None);
    assert_eq!(other.changes(written, 10).await, Ok(vec![Record { key: "a".into(), value: None, revision: erased }]));
    // What was erased may be made again like new.
    let made = other.put("a", Some("2".into()), Some(0), None).await.unwrap();
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
    assert_eq!(ledger.changes(0, 100).await.unwrap().len(), keys.len());
}

async fn sizes_are_bounded(fixture: &Fixture<dyn Ledger>) {
    let ledger = &fixture.replicas[0];
    let largest = Bytes::from(vec![b'x'; MAX_LEDGER_VALUE_BYTES]);
    ledger.put("a", Some(largest.clone()), None, None).await.unwrap();
    assert_eq!(get(ledger, "a").await.unwrap().value, Some(largest));
    let larger = ledger.put("a", Some(vec![b'x'; MAX_LEDGER_VALUE_BYTES + 1].into()), None, None).await;
    assert!(matches!(larger, Err(LedgerError::TooLarge { what: "value", .. })), "{larger:?}");
    let longer = ledger.put(&"k".repeat(MAX_LEDGER_KEY_BYTES + 1), Some("1".into()), None, None).await;
    assert!(matches!(longer, Err(LedgerError::TooLarge { what: "key", .. })), "{longer:?}");
}

async fn changes_come_oldest_first_and_once(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    assert_eq!(other.changes(0, 10).await, Ok(vec![]));
    for (key, value) in [("a", "1"), ("b", "1"), ("c", "1"), ("a", "2")] {
        put(one, key, value).await;
    }
    let first = other.changes(0, 2).await.unwrap();
    assert_eq!(shown(&first), [("b", Some(&b"1"[..])), ("c", Some(b"1"))], "only the newest write of a register");
    let rest = other.changes(first[1].revision, 2).await.unwrap();
    assert_eq!(shown(&rest), [("a", Some(&b"2"[..]))]);
    assert_eq!(other.changes(rest[0].revision, 2).await, Ok(vec![]));
    // Everything that was acknowledged before the question is in the answer.
    let mut seen = rest[0].revision;
    for round in 0..20 {
        let written = put(one, &format!("key {round}"), "1").await;
        let changes = other.changes(seen, 10).await.unwrap();
        assert_eq!(changes.iter().map(|record| record.revision).collect::<Vec<_>>(), [written]);
        seen = written;
    }
}

async fn a_register_with_a_time_ends(fixture: &Fixture<dyn Ledger>) {
    let [one, other] = &fixture.replicas[..] else { panic!("two") };
    let revision = one.put("a", Some("1".into()), Some(0), Some(Duration::from_secs(2))).await.unwrap();
    put(one, "b", "stays").await;
    assert_eq!(get(other, "a").await.unwrap().revision, revision);
    fixture.let_pass(Duration::from_secs(3)).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while get(other, "a").await.is_some() {
        assert!(tokio::time::Instant::now() < deadline, "it never ends");
        fixture.let_pass(Duration::from_millis(200)).await;
    }
    let again = other.put("a", Some("2".into()), Some(0), None).await.unwrap();
    assert!(again > revision);
    assert!(get(one, "b").await.is_some());
}
