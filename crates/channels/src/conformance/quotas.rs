//! Conformance of [`Quotas`].

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Isolating, PATIENCE, run_cases};
use crate::{Bucket, Quota, QuotaError, Quotas, Rate, Token};

/// All cases of the port [`Quotas`]. A replica that is cut off must have lost its lease after 5 s.
pub async fn quotas_suite(make: impl AsyncFn(usize) -> Isolating<dyn Quotas>) {
    run_cases!("quotas", make,
        a_limit_holds_for_all_replicas_together => 3,
        entering_again_is_harmless => 2,
        quotas_and_keys_are_kept_apart => 1,
        many_enter_at_once => 3,
        holding_counts_beyond_the_limit => 2,
        what_a_gone_replica_counted_ends => 2,
        what_a_replica_counted_returns_with_it => 2,
        a_bucket_empties_and_fills => 1,
        a_bucket_is_shared => 3,
    );
}

const USER: Quota = Quota::UserConnections;

type Fixture = Isolating<dyn Quotas>;

async fn until(fixture: &Fixture, what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        fixture.let_pass(Duration::from_millis(20)).await;
    }
}

/// "Counts one unless `max` are there"; what is taken back makes room.
async fn a_limit_holds_for_all_replicas_together(fixture: &Fixture) {
    let [one, two, three] = &fixture.replicas[..] else { panic!("three replicas") };
    for (replica, member) in [(one, "1"), (two, "2"), (three, "3")] {
        assert_eq!(replica.enter(USER, "ann", member, 3).await, Ok(()));
    }
    for replica in &fixture.replicas {
        assert_eq!(replica.enter(USER, "ann", "4", 3).await, Err(QuotaError::Reached { found: 3, max: 3 }));
        assert_eq!(
            replica.enter(USER, "bob", "4", 3).await,
            Ok(()),
            "the same member, which moves from one to the next"
        );
        replica.exit(USER, "bob", "4");
    }
    assert_eq!(two.enter(USER, "ann", "4", 4).await, Ok(()), "the caller's limit counts");
    two.exit(USER, "ann", "4");
    one.exit(USER, "ann", "3");
    one.exit(USER, "ann", "1");
    until(fixture, "there is room", async || three.enter(USER, "ann", "5", 3).await.is_ok()).await;
    assert_eq!(
        one.enter(USER, "ann", "1", 3).await,
        Err(QuotaError::Reached { found: 3, max: 3 }),
        "one left, one came"
    );
    assert_eq!(one.enter(USER, "nobody", "1", 0).await, Err(QuotaError::Reached { found: 0, max: 0 }));
}

/// "Counts one whatever the limit is"; an enter that nobody waited for counts nobody.
async fn holding_counts_beyond_the_limit(fixture: &Fixture) {
    let [one, two] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(one.enter(USER, "ann", "1", 1).await, Ok(()));
    for member in ["2", "2", "3"] {
        two.hold(USER, "ann", member);
    }
    until(fixture, "they count", async || {
        one.enter(USER, "ann", "4", 1).await == Err(QuotaError::Reached { found: 3, max: 1 })
    })
    .await;
    for member in ["2", "3"] {
        two.exit(USER, "ann", member);
    }
    one.exit(USER, "ann", "1");
    for _ in 0..20 {
        let _ = one.enter(USER, "ann", "a", 1).now_or_never();
        one.exit(USER, "ann", "a");
    }
    until(fixture, "there is room", async || two.enter(USER, "ann", "5", 1).await.is_ok()).await;
}

/// "`member` makes a repetition harmless", also at the limit, on the same replica and on another one.
async fn entering_again_is_harmless(fixture: &Fixture) {
    let [one, two] = [&fixture.replicas[0], &fixture.replicas[1]];
    for replica in [one, one, two, two, one] {
        assert_eq!(replica.enter(USER, "ann", "1", 1).await, Ok(()));
    }
    assert!(matches!(one.enter(USER, "ann", "2", 1).await, Err(QuotaError::Reached { .. })));
    one.exit(USER, "ann", "1");
    one.exit(USER, "ann", "1");
    fixture.let_pass(Duration::from_millis(500)).await;
    assert_eq!(one.enter(USER, "ann", "2", 1).await, Err(QuotaError::Reached { found: 1, max: 1 }), "it is on two");
    // Out and in again at once: the exit must not take back what came after it.
    for _ in 0..20 {
        two.exit(USER, "ann", "1");
        assert_eq!(two.enter(USER, "ann", "1", 1).await, Ok(()));
    }
    fixture.let_pass(Duration::from_millis(1500)).await;
    until(fixture, "it counts", async || {
        let full = one.enter(USER, "ann", "2", 1).await == Err(QuotaError::Reached { found: 1, max: 1 });
        if !full {
            // Nobody waits for an exit: entering again before it went through would be no question but a stay.
            one.exit(USER, "ann", "2");
            fixture.let_pass(Duration::from_secs(1)).await;
        }
        full
    })
    .await;
    two.exit(USER, "ann", "1");
    until(fixture, "there is room", async || one.enter(USER, "ann", "2", 1).await.is_ok()).await;
}

async fn quotas_and_keys_are_kept_apart(fixture: &Fixture) {
    let replica = &fixture.replicas[0];
    let long = "x".repeat(255);
    for quota in [USER, Quota::ChannelSubscribers] {
        for key in ["", "a", "A", "{a}", "a}", "a:b", "*", "\0", "日本語", &long] {
            assert_eq!(replica.enter(quota, key, "1", 1).await, Ok(()), "{quota:?} {key:?}");
        }
    }
    for key in ["", "a", &long] {
        let bucket = Bucket { tokens: 1, period: Duration::from_secs(3600) };
        for rate in [Rate::UserConnect, Rate::AddressConnect, Rate::UserPublish, Rate::AddressPublish] {
            assert_eq!(replica.take(rate, key, bucket), Token::Given);
            assert_eq!(replica.take(rate, key, bucket), Token::Refused);
        }
    }
}

/// However many race for the last places, no more than allowed get one.
async fn many_enter_at_once(fixture: &Fixture) {
    let enter = |n: usize| {
        let replica = fixture.replicas[n % 3].clone();
        async move { replica.enter(Quota::ChannelSubscribers, "c", &n.to_string(), 50).await.is_ok() }
    };
    let entered = futures_util::future::join_all((0..200).map(enter)).await;
    assert_eq!(entered.iter().filter(|entered| **entered).count(), 50);
}

/// "What a replica counted ends with its lease": nothing that a dead replica held keeps anybody out.
async fn what_a_gone_replica_counted_ends(fixture: &Fixture) {
    let [gone, here] = [&fixture.replicas[0], &fixture.replicas[1]];
    gone.enter(USER, "ann", "1", 2).await.unwrap();
    here.enter(USER, "ann", "2", 2).await.unwrap();
    (fixture.cut)(0, true);
    fixture.let_pass(Duration::from_secs(5)).await;
    fixture.soon("there is room", async || here.enter(USER, "ann", "3", 2).await == Ok(())).await;
    assert_eq!(here.enter(USER, "ann", "4", 2).await, Err(QuotaError::Reached { found: 2, max: 2 }));
}

/// A replica that was only cut off still holds what it held, and counts again.
async fn what_a_replica_counted_returns_with_it(fixture: &Fixture) {
    let [away, here] = [&fixture.replicas[0], &fixture.replicas[1]];
    away.enter(USER, "ann", "1", 1).await.unwrap();
    (fixture.cut)(0, true);
    fixture.let_pass(Duration::from_secs(5)).await;
    (fixture.cut)(0, false);
    until(fixture, "it counts again", async || {
        let full = here.enter(USER, "ann", "2", 1).await.is_err();
        here.exit(USER, "ann", "2");
        fixture.let_pass(Duration::from_millis(300)).await;
        full
    })
    .await;
    away.exit(USER, "ann", "1");
    until(fixture, "there is room", async || here.enter(USER, "ann", "3", 1).await.is_ok()).await;
}

/// `tokens` at once, then `tokens` per period.
async fn a_bucket_empties_and_fills(fixture: &Fixture) {
    let (replica, bucket) = (&fixture.replicas[0], Bucket { tokens: 10, period: Duration::from_secs(2) });
    let take = || {
        let start = Instant::now();
        let taken = (0..40).filter(|_| replica.take(Rate::UserPublish, "ann", bucket) == Token::Given).count();
        (taken, start, Instant::now())
    };
    // What came in within that time, all of it and all but the fraction.
    let filled = |time: Duration| time.as_millis() as usize * 10 / 2000;
    let full = |(taken, start, end): (usize, Instant, Instant)| (10..=10 + filled(end - start)).contains(&taken);
    let first = take();
    assert!(full(first), "{first:?}");
    fixture.let_pass(Duration::from_millis(1000)).await;
    let again = take();
    let (least, most) = (filled(again.1 - first.2), filled(again.2 - first.1));
    assert!(
        (least.saturating_sub(1).min(10)..=most + 1).contains(&again.0),
        "half a period: {again:?}, {least} to {most}"
    );
    fixture.let_pass(Duration::from_secs(10)).await;
    let last = take();
    assert!(full(last), "never more than fit in: {last:?}");
}

/// Three replicas take all they get: no more than the bucket holds and is filled with, and beyond that what the others can
/// take before they know: here two intervals of 200 ms, of two replicas.
async fn a_bucket_is_shared(fixture: &Fixture) {
    let bucket = Bucket { tokens: 100, period: Duration::from_secs(10) };
    let (start, step) = (Instant::now(), Duration::from_millis(20));
    let mut taken = 0;
    while start.elapsed() < Duration::from_secs(6) {
        for replica in &fixture.replicas {
            // At most 2 each 20 ms: 20 in 200 ms.
            taken += (0..2).filter(|_| replica.take(Rate::AddressConnect, "10.0.0.1", bucket) == Token::Given).count();
        }
        fixture.let_pass(step).await;
    }
    let filled = start.elapsed().as_millis() as usize * 100 / 10_000;
    let unknown = 2 * 2 * 20;
    assert!(taken <= 100 + filled + unknown, "{taken} were taken, {filled} filled in");
    assert!(taken >= 100 + filled / 2, "{taken} were taken, {filled} filled in");
}
