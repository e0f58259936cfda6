//! Conformance of [`Replicas`].

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{PATIENCE, run_cases, run_timed_cases};
use crate::{Census, Incarnation, Replicas};

/// Replicas of which single ones can be cut off from all, themselves included, as a pause or a broken network does it.
pub struct Isolating<P: ?Sized> {
    /// As many as asked for.
    pub replicas: Vec<Arc<P>>,
    /// Cuts the replica with this index off (true) or lets it come back (false).
    pub cut: Box<dyn Fn(usize, bool) + Send + Sync>,
    /// Lets this much time pass, as the implementation sees it.
    pub advance: Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>,
    /// How much later than promised something may come about: a busy machine takes time from a reader that judges by its own
    /// clock. Zero under paused time, where bounds are exact.
    pub slack: Duration,
    /// Whatever must live as long as the replicas.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl<P: ?Sized> Isolating<P> {
    /// Replicas for which time passes as tokio has it, and without slack.
    pub fn with_tokio_time(replicas: Vec<Arc<P>>, cut: impl Fn(usize, bool) + Send + Sync + 'static) -> Self {
        let advance = |by| -> BoxFuture<'static, ()> { Box::pin(tokio::time::sleep(by)) };
        Self { replicas, cut: Box::new(cut), advance: Box::new(advance), slack: Duration::ZERO, guard: Box::new(()) }
    }

    /// Waits for what holds by now but for the slack.
    pub(super) async fn soon(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !holds().await {
            assert!(start.elapsed() < self.slack, "{what}");
            self.let_pass(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn let_pass(&self, by: Duration) {
        (self.advance)(by).await;
    }
}

/// All cases of the port [`Replicas`].
pub async fn replicas_suite(make: impl AsyncFn(usize) -> Isolating<dyn Replicas>) {
    run_cases!("replicas", make,
        everybody_comes_to_know_everybody => 3,
        another_generation_takes_the_place_of_the_one_before => 3,
    );
    run_timed_cases!("replicas", make,
        a_replica_alone_comes_to_judge => 1,
        a_silent_replica_stops_counting_and_returns_as_another_generation => 3,
        who_does_not_hear_itself_judges_nobody => 3,
        a_replica_that_resigned_does_not_count => 3,
        a_replica_that_is_gone_stops_counting_within_five_seconds => 2,
    );
}

async fn until(fixture: &Isolating<dyn Replicas>, what: &str, holds: impl Fn(&[Arc<Census>]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let census: Vec<_> = fixture.replicas.iter().map(|replica| replica.census()).collect();
        if holds(&census) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {census:?}");
        fixture.let_pass(Duration::from_millis(50)).await;
    }
}

fn own(fixture: &Isolating<dyn Replicas>, index: usize) -> Incarnation {
    fixture.replicas[index].census().own
}

/// Each counts in the view of each, under different numbers, and all of them come to judge.
async fn everybody_comes_to_know_everybody(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all know all", |views| views.iter().all(|view| views.iter().all(|other| view.counts(other.own))))
        .await;
    until(fixture, "all judge", |views| views.iter().all(|view| view.judging)).await;
    let view = fixture.replicas[0].census();
    assert_eq!(view.alive.len(), 3);
    assert_eq!(view.own.generation, 1);
    assert!(!view.counts(Incarnation { generation: 2, ..view.own }));
}

/// "False while this replica has listened for less than 4 s"; nobody else is needed.
async fn a_replica_alone_comes_to_judge(fixture: &Isolating<dyn Replicas>) {
    let view = fixture.replicas[0].census();
    assert!(!view.judging && view.counts(view.own));
    until(fixture, "it judges", |views| views[0].judging).await;
}

/// "Unchanged for 4 s: not counted; an own lapse of more than 3 s: a new generation, before it acts."
async fn a_silent_replica_stops_counting_and_returns_as_another_generation(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all judge", |views| views.iter().all(|view| view.judging && view.alive.len() == 3)).await;
    let before = own(fixture, 0);
    (fixture.cut)(0, true);
    fixture.let_pass(Duration::from_millis(2000)).await;
    assert!(fixture.replicas[1].census().counts(before), "silent for 2 s");
    assert_eq!(own(fixture, 0), before);
    fixture.let_pass(Duration::from_millis(3000)).await;
    for index in [1, 2] {
        let view = fixture.replicas[index].census();
        assert!(!view.counts(before) && view.judging && view.alive.len() == 2, "silent for 5 s: {view:?}");
    }
    let after = own(fixture, 0);
    assert_eq!(after, Incarnation { generation: before.generation + 1, ..before });
    (fixture.cut)(0, false);
    until(fixture, "it is back", |views| views[1].counts(after) && views[2].counts(after)).await;
    assert!(!fixture.replicas[1].census().counts(before));
    until(fixture, "it judges again", |views| views[0].judging).await;
    assert_eq!(own(fixture, 0), after, "one lapse, one generation");
}

/// A reader that was cut off still counts those that it counted, and goes on doing so until it has listened again.
async fn who_does_not_hear_itself_judges_nobody(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all judge", |views| views.iter().all(|view| view.judging && view.alive.len() == 3)).await;
    let others = [own(fixture, 1), own(fixture, 2)];
    (fixture.cut)(0, true);
    fixture.let_pass(Duration::from_secs(6)).await;
    let view = fixture.replicas[0].census();
    assert!(!view.judging && others.iter().all(|other| view.counts(*other)), "{view:?}");
    (fixture.cut)(0, false);
    until(fixture, "it judges again", |views| {
        assert!(others.iter().all(|other| views[0].counts(*other)), "{:?}", views[0]);
        views[0].judging
    })
    .await;
}

/// At once on the replica itself, with the next heartbeat for the others.
async fn another_generation_takes_the_place_of_the_one_before(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all know all", |views| views.iter().all(|view| view.alive.len() == 3)).await;
    let before = own(fixture, 0);
    fixture.replicas[0].begin_anew();
    let after = own(fixture, 0);
    assert_eq!(after, Incarnation { generation: before.generation + 1, ..before });
    assert!(fixture.replicas[0].census().counts(after));
    until(fixture, "the others follow", |views| views.iter().all(|view| view.counts(after))).await;
    assert!(fixture.replicas.iter().all(|replica| !replica.census().counts(before)));
}

/// "Others stop counting it at once", and it does not count for itself.
async fn a_replica_that_resigned_does_not_count(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all know all", |views| views.iter().all(|view| view.alive.len() == 3)).await;
    let left = own(fixture, 2);
    let start = Instant::now();
    fixture.replicas[2].resign();
    until(fixture, "nobody counts it", |views| views.iter().all(|view| !view.counts(left))).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    fixture.let_pass(Duration::from_secs(3)).await;
    assert!(fixture.replicas.iter().all(|replica| replica.census().alive.len() == 2));
}

/// What presence promises after `kill -9` rests on this.
async fn a_replica_that_is_gone_stops_counting_within_five_seconds(fixture: &Isolating<dyn Replicas>) {
    until(fixture, "all judge", |views| views.iter().all(|view| view.judging && view.alive.len() == 2)).await;
    let gone = own(fixture, 1);
    let start = Instant::now();
    (fixture.cut)(1, true);
    until(fixture, "it does not count", |views| !views[0].counts(gone)).await;
    let took = start.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(5), "{took:?}");
}
