//! Conformance of [`Results`].

use std::sync::Arc;
use std::time::Duration;

use super::{Fixture, PATIENCE, run_cases};
use crate::{Epoch, IdempotencyKey, Position, Results};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

/// All cases of the port [`Results`].
pub async fn results_suite(make: impl AsyncFn(usize) -> Fixture<dyn Results>) {
    run_cases!("results", make,
        the_first_result_stays => 2,
        results_are_kept_apart => 1,
        results_expire => 1,
    );
}

fn key(scope: &str, key: &str) -> IdempotencyKey {
    IdempotencyKey { scope: scope.into(), key: key.into() }
}

fn at(offset: u64) -> Position {
    Position { offset, epoch: Epoch::from("e:1") }
}

/// Waits until something is remembered, and remembers it until then: remembering returns before it is done, and a store that is
/// not reached in time forgets it.
async fn remembered(
    results: &Arc<dyn Results>,
    channel: &str,
    key: &IdempotencyKey,
    position: Position,
    ttl: Duration,
) {
    let started = std::time::Instant::now();
    while results.recall(channel, key).await.is_none() {
        assert!(started.elapsed() < PATIENCE, "{channel}: nothing was remembered");
        results.remember(channel, key, position.clone(), ttl);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What was remembered; a store that does not answer at once is asked again.
async fn recalled(results: &Arc<dyn Results>, channel: &str, key: &IdempotencyKey) -> Position {
    let started = std::time::Instant::now();
    loop {
        match results.recall(channel, key).await {
            Some(position) => return position,
            None if started.elapsed() > PATIENCE => panic!("{channel}: nothing was remembered"),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn the_first_result_stays(fixture: &Fixture<dyn Results>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let key = key("api", "k");
    assert_eq!(other.recall("c", &key).await, None);
    remembered(one, "c", &key, at(u64::MAX), LONG).await;
    assert_eq!(recalled(other, "c", &key).await, at(u64::MAX));
    other.remember("c", &key, at(8), LONG);
    remembered(other, "marker", &key, at(1), LONG).await;
    assert_eq!(recalled(one, "c", &key).await, at(u64::MAX));
}

async fn results_are_kept_apart(fixture: &Fixture<dyn Results>) {
    let results = &fixture.replicas[0];
    let names = [("c", "s", "k"), ("cs", "", "k"), ("c", "sk", ""), ("", "", "csk"), ("{c}", "\0", "\r\n")];
    for (n, (channel, scope, name)) in names.iter().enumerate() {
        remembered(results, channel, &key(scope, name), at(n as u64), LONG).await;
    }
    for (n, (channel, scope, name)) in names.iter().enumerate() {
        assert_eq!(recalled(results, channel, &key(scope, name)).await, at(n as u64));
    }
}

async fn results_expire(fixture: &Fixture<dyn Results>) {
    let (results, key) = (&fixture.replicas[0], key("s", "k"));
    remembered(results, "c", &key, at(1), SHORT).await;
    fixture.let_pass(SHORT + SHORT / 10).await;
    assert_eq!(results.recall("c", &key).await, None);
    remembered(results, "c", &key, at(2), LONG).await;
    assert_eq!(recalled(results, "c", &key).await, at(2), "the first one is gone");
}
