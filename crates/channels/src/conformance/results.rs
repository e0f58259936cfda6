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

/// Waits until it is remembered: remembering returns before it is done.
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
    one.remember("c", &key, at(u64::MAX), LONG);
    assert_eq!(recalled(other, "c", &key).await, at(u64::MAX));
    other.remember("c", &key, at(8), LONG);
    other.remember("marker", &key, at(1), LONG);
    recalled(one, "marker", &key).await;
    assert_eq!(recalled(one, "c", &key).await, at(u64::MAX));
}

async fn results_are_kept_apart(fixture: &Fixture<dyn Results>) {
    let results = &fixture.replicas[0];
    let names = [("c", "s", "k"), ("cs", "", "k"), ("c", "sk", ""), ("", "", "csk"), ("{c}", "\0", "\r\n")];
    for (n, (channel, scope, name)) in names.iter().enumerate() {
        results.remember(channel, &key(scope, name), at(n as u64), LONG);
    }
    for (n, (channel, scope, name)) in names.iter().enumerate() {
        assert_eq!(recalled(results, channel, &key(scope, name)).await, at(n as u64));
    }
}

async fn results_expire(fixture: &Fixture<dyn Results>) {
    let results = &fixture.replicas[0];
    results.remember("c", &key("s", "k"), at(1), SHORT);
    recalled(results, "c", &key("s", "k")).await;
    fixture.let_pass(SHORT + SHORT / 10).await;
    assert_eq!(results.recall("c", &key("s", "k")).await, None);
}
