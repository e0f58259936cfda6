use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::*;
use crate::memory::MemoryQuotas;
use crate::{Bucket, Rate};

const USER: Quota = Quota::UserConnections;

/// Counts in memory, or answers nothing.
struct Shaky {
    inner: Arc<MemoryQuotas>,
    away: Mutex<bool>,
}

#[async_trait]
impl Quotas for Shaky {
    async fn enter(&self, quota: Quota, key: &str, member: &str, max: u64) -> Result<(), QuotaError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if *self.away.lock() {
            return Err(QuotaError::Unavailable { reason: "the test says so".into() });
        }
        self.inner.enter(quota, key, member, max).await
    }

    fn hold(&self, quota: Quota, key: &str, member: &str) {
        self.inner.hold(quota, key, member);
    }

    fn exit(&self, quota: Quota, key: &str, member: &str) {
        self.inner.exit(quota, key, member);
    }

    fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> bool {
        self.inner.take(rate, key, bucket)
    }
}

fn shaky() -> (Arc<Shaky>, Arc<Limits>, Arc<Metrics>) {
    let (quotas, metrics) =
        (Arc::new(Shaky { inner: MemoryQuotas::single(), away: Mutex::new(false) }), Metrics::new().unwrap());
    let limits = Limits::new(Some(quotas.clone()), metrics.clone());
    (quotas, limits, metrics)
}

fn ann() -> Place {
    (USER, "ann".into())
}

async fn enter(limits: &Arc<Limits>, member: u128, max: usize) -> Result<Counted, Refused> {
    limits.enter(ann(), Uuid::from_u128(member), max, Fallback::Open).await
}

#[tokio::test(start_paused = true)]
async fn one_client_id_counts_once_until_nobody_holds_it() {
    let (quotas, limits, _) = shaky();
    let first = enter(&limits, 1, 1).await.ok().unwrap();
    let again = enter(&limits, 1, 1).await.ok().unwrap();
    assert_eq!(enter(&limits, 2, 1).await.err(), Some(Refused::Full));
    drop(first);
    assert!(quotas.inner.enter(USER, "ann", "x", 1).await.is_err(), "the resumed connection still counts");
    drop(again);
    assert_eq!(limits.places(), 0);
    assert_eq!(quotas.inner.enter(USER, "ann", "x", 1).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_cluster_refuses_what_this_replica_would_let_in() {
    let (quotas, limits, metrics) = shaky();
    quotas.inner.hold(USER, "ann", "elsewhere");
    assert_eq!(enter(&limits, 1, 1).await.err(), Some(Refused::Full));
    assert_eq!(limits.places(), 0, "who was refused is not counted here");
    assert_eq!(metrics.limits(Limit::UserConnections, LimitOutcome::Cluster).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_cluster_the_own_count_holds_and_is_told_later() {
    let (quotas, limits, metrics) = shaky();
    *quotas.away.lock() = true;
    let closed = limits.enter(ann(), Uuid::from_u128(1), 5, Fallback::Closed).await;
    assert_eq!(closed.err(), Some(Refused::Unknown));
    assert_eq!(limits.places(), 0);
    let _one = enter(&limits, 1, 2).await.ok().unwrap();
    let two = enter(&limits, 2, 2).await.ok().unwrap();
    assert_eq!(enter(&limits, 3, 2).await.err(), Some(Refused::Full));
    for (outcome, times) in [(LimitOutcome::LetIn, 2), (LimitOutcome::ShutOut, 1), (LimitOutcome::Replica, 1)] {
        assert_eq!(metrics.limits(Limit::UserConnections, outcome).get(), times, "{outcome:?}");
    }
    *quotas.away.lock() = false;
    let found = quotas.inner.enter(USER, "ann", "x", 2).await;
    assert_eq!(found, Err(QuotaError::Reached { found: 2, max: 2 }));
    drop(two);
    assert_eq!(quotas.inner.enter(USER, "ann", "x", 2).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn who_goes_while_it_is_being_counted_leaves_nothing() {
    let (quotas, limits, _) = shaky();
    let entering = enter(&limits, 1, 1);
    assert!(tokio::time::timeout(Duration::from_millis(1), entering).await.is_err());
    assert_eq!(limits.places(), 0);
    assert_eq!(quotas.inner.enter(USER, "ann", "x", 1).await, Ok(()));
}
