use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::*;
use crate::memory::MemoryQuotas;
use crate::{Bucket, ClientSettings, Rate, Token};

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

    fn take(&self, rate: Rate, key: &str, bucket: Bucket) -> Token {
        if *self.away.lock() {
            return Token::Unknown;
        }
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

const HOUR: Duration = Duration::from_secs(3600);

fn rated(quotas: Option<Arc<dyn Quotas>>, user: u32, address: u32) -> (Rates, ClientSettings, Arc<Metrics>) {
    let mut settings = ClientSettings::default();
    let bucket = |tokens| Some(Bucket { tokens, period: HOUR });
    settings.rate_limit.user =
        CommandRates { publish: bucket(user), subscribe: bucket(user), ..CommandRates::default() };
    settings.rate_limit.address = CommandRates { publish: bucket(address), ..CommandRates::default() };
    let metrics = Metrics::new().unwrap();
    (Rates::new(quotas, &settings, metrics.clone()), settings, metrics)
}

fn at(address: &str) -> Origin {
    Origin::of(Some(address.parse().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn rates_hold_by_user_and_by_address() {
    let (rates, settings, metrics) = rated(None, 3, 5);
    let publish = |user: &str, address: &str| {
        (0..10).filter(|_| rates.take(Limited::Publish, user, at(address), &settings)).count()
    };
    assert_eq!(publish("ann", "192.0.2.1"), 3);
    assert_eq!(publish("bob", "192.0.2.1"), 0, "the address has used its five up");
    assert_eq!(publish("bob", "192.0.2.2"), 3);
    assert_eq!(publish("", "192.0.2.3"), 5, "the anonymous user has no limit of its own");
    assert_eq!(publish("cid", "2001:db8::1"), 3);
    assert_eq!(publish("dan", "2001:db8::ffff:1"), 0, "a network of IPv6 is one address");
    assert_eq!(publish("dan", "2001:db8:0:1::1"), 3);
    assert_eq!(publish("eve", "::ffff:192.0.2.9"), 3);
    assert_eq!((publish("fay", "::1"), publish("gil", "::1")), (3, 0));
    assert!(rates.take(Limited::Connect, "ann", at("192.0.2.1"), &settings), "not limited");
    assert!(rates.take(Limited::Subscribe, "ann", at("192.0.2.1"), &settings), "commands are kept apart");
    assert_eq!((0..10).filter(|_| rates.take(Limited::Publish, "", Origin::of(None), &settings)).count(), 10);
    assert!(metrics.limits(Limit::UserPublish, LimitOutcome::Replica).get() > 0);
    assert!(metrics.limits(Limit::AddressPublish, LimitOutcome::Replica).get() > 0);
    tokio::time::advance(HOUR).await;
    assert_eq!(publish("ann", "192.0.2.1"), 3);
}

#[tokio::test(start_paused = true)]
async fn rates_of_connects_and_publishes_are_shared() {
    let quotas = MemoryQuotas::single();
    let (one, settings, metrics) = rated(Some(quotas.clone()), 4, 100);
    let (other, ..) = rated(Some(quotas), 4, 100);
    let long = "u".repeat(1000);
    for user in ["ann", &long] {
        let take = |rates: &Rates| rates.take(Limited::Publish, user, at("192.0.2.1"), &settings);
        assert_eq!([&one, &one, &other, &other, &one, &other].map(take), [true, true, true, true, false, false]);
        let subscribe = |rates: &Rates| rates.take(Limited::Subscribe, user, at("192.0.2.1"), &settings);
        assert!([&one, &one, &other, &other, &one, &other].map(subscribe).iter().all(|taken| *taken), "not shared");
    }
    assert_eq!(metrics.limits(Limit::UserPublish, LimitOutcome::Cluster).get(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_the_cluster_rates_hold_here_or_fail_closed() {
    let (quotas, ..) = shaky();
    *quotas.away.lock() = true;
    let (rates, mut settings, metrics) = rated(Some(quotas), 3, 100);
    let take = |settings: &ClientSettings| rates.take(Limited::Publish, "ann", at("192.0.2.1"), settings);
    assert_eq!([take(&settings), take(&settings)], [true, true]);
    settings.on_unavailable.publish_rate = Fallback::Closed;
    assert!(!take(&settings));
    assert_eq!(metrics.limits(Limit::AddressPublish, LimitOutcome::ShutOut).get(), 1);
    settings.on_unavailable.publish_rate = Fallback::Open;
    assert_eq!([take(&settings), take(&settings)], [true, false], "the own bucket holds");
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_buckets_whose_size_stays() {
    let (rates, mut settings, _) = rated(None, 1, 100);
    let take = |settings: &ClientSettings| rates.take(Limited::Publish, "ann", at("192.0.2.1"), settings);
    assert_eq!([take(&settings), take(&settings)], [true, false]);
    settings.rate_limit.address.publish = None;
    rates.configure(&settings);
    assert!(!take(&settings));
    settings.rate_limit.user.publish = None;
    rates.configure(&settings);
    assert!(take(&settings));
}
