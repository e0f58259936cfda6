//! Conformance of [`Tails`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fixture, PATIENCE, run_cases};
use crate::{Epoch, Position, RememberedTail, Tails};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

/// All cases of the port [`Tails`].
pub async fn tails_suite(make: impl AsyncFn(usize) -> Fixture<dyn Tails>) {
    run_cases!("tails", make,
        an_older_tail_replaces_no_newer_one => 2,
        a_batch_is_remembered_whole => 2,
        tails_expire => 1,
    );
}

fn tail(epoch: &str, offset: u64, through: u64) -> RememberedTail {
    RememberedTail { position: Position { offset, epoch: Epoch::from(epoch) }, through }
}

/// What is remembered; a store that does not answer at once is asked again.
async fn recalled(tails: &Arc<dyn Tails>, channel: &str) -> RememberedTail {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tails.recall(channel).await {
            Some(tail) => return tail,
            None => assert!(Instant::now() < deadline, "{channel}: nothing was remembered"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn an_older_tail_replaces_no_newer_one(fixture: &Fixture<dyn Tails>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(one.recall("c").await, None);
    let remember = async |tail: RememberedTail| {
        one.remember(&[("c".to_owned(), tail)], LONG).await;
        recalled(other, "c").await
    };
    // 9 and 10: numbers, not texts; beyond 2^53 too.
    for newer in [(9, 9), (9, 10), (10, 100), (1 << 53, 1 << 53), ((1 << 53) + 1, (1 << 53) + 1), (u64::MAX, u64::MAX)]
    {
        let newer = tail("e", newer.0, newer.1);
        assert_eq!(remember(newer.clone()).await, newer);
        assert_eq!(remember(tail("e", newer.position.offset - 1, newer.through - 1)).await, newer, "an older one");
        assert_eq!(remember(tail("e", newer.position.offset, newer.through - 1)).await, newer, "an older proof");
    }
    for epoch in ["f", "", "e", "ee"] {
        assert_eq!(remember(tail(epoch, 1, 2)).await, tail(epoch, 1, 2), "another epoch's positions do not compare");
    }
}

async fn a_batch_is_remembered_whole(fixture: &Fixture<dyn Tails>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let batch: Vec<(String, RememberedTail)> = (0..500).map(|n| (format!("{{c}}{n}"), tail("e", n, 1000))).collect();
    one.remember(&batch, LONG).await;
    for (channel, tail) in &batch {
        assert_eq!(recalled(other, channel).await, *tail);
    }
    one.remember(&[], LONG).await;
}

async fn tails_expire(fixture: &Fixture<dyn Tails>) {
    let tails = &fixture.replicas[0];
    tails.remember(&[("c".to_owned(), tail("e", 1, 2)), ("d".to_owned(), tail("e", 1, 2))], SHORT).await;
    fixture.let_pass(SHORT / 2).await;
    tails.remember(&[("d".to_owned(), tail("e", 3, 4))], LONG).await;
    fixture.let_pass(SHORT * 6 / 10).await;
    assert_eq!(recalled(tails, "d").await, tail("e", 3, 4));
    assert_eq!(tails.recall("c").await, None);
}
