//! Conformance of [`Control`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Fixture, PATIENCE, Stalls, run_timed_cases};
use crate::{Answer, Control, ControlError, NodeInfo, Order, Question, Replica, Target};

/// All cases of the port [`Control`]; every replica of the fixture knows all others. One that stands still for seconds is taken
/// for gone, and nobody waits for it.
pub async fn control_suite(make: impl AsyncFn(usize) -> Fixture<dyn Control>) {
    run_timed_cases!("control", make,
        orders_reach_every_replica => 3,
        orders_of_one_replica_keep_their_sequence => 2,
        questions_collect_every_answer => 3,
        a_replica_that_hangs_delays_nobody_beyond_the_deadline => 3,
    );
}

/// Notes orders and answers with its name, or hangs.
struct Noting {
    name: String,
    hangs: bool,
    orders: Mutex<Vec<Order>>,
    questions: Mutex<Vec<Question>>,
}

#[async_trait]
impl Replica for Noting {
    async fn execute(&self, order: Order) {
        self.orders.lock().push(order);
        if self.hangs {
            std::future::pending::<()>().await;
        }
    }

    async fn answer(&self, question: Question) -> Answer {
        self.questions.lock().push(question);
        if self.hangs {
            std::future::pending::<()>().await;
        }
        Answer::Info(Box::new(NodeInfo { name: self.name.clone(), ..NodeInfo::default() }))
    }
}

fn attach(fixture: &Fixture<dyn Control>, hanging: Option<usize>) -> Vec<Arc<Noting>> {
    let replica = |(index, control): (usize, &Arc<dyn Control>)| {
        let replica = Arc::new(Noting {
            name: format!("replica {index}"),
            hangs: hanging == Some(index),
            orders: Mutex::default(),
            questions: Mutex::default(),
        });
        control.attach(replica.clone());
        replica
    };
    fixture.replicas.iter().enumerate().map(replica).collect()
}

fn names(answers: Vec<Answer>) -> Vec<String> {
    let name = |answer| match answer {
        Answer::Info(info) => info.name,
        other => panic!("asked for information, got {other:?}"),
    };
    let mut names: Vec<String> = answers.into_iter().map(name).collect();
    names.sort_unstable();
    names
}

/// Sends an order until it is known that all carried it out: a replica that is slow to answer, or not known yet, is told.
async fn broadcast(control: &Arc<dyn Control>, order: Order) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match control.broadcast(order.clone()).await {
            Err(ControlError::Unavailable { .. }) if Instant::now() < deadline => {}
            result => return result.unwrap(),
        }
    }
}

/// Asks until so many answered: one that is slow, or not known yet, is missing.
async fn survey(control: &Arc<dyn Control>, question: Question, replicas: usize) -> Vec<Answer> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answers = control.survey(question.clone()).await.unwrap_or_default();
        if answers.len() == replicas || Instant::now() > deadline {
            return answers;
        }
    }
}

fn orders() -> Vec<Order> {
    let target = Target { user: "ü\0".into(), client: "c".into(), session: String::new() };
    vec![
        Order::Subscribe { target: target.clone(), channel: "a.>".into(), options: Box::default() },
        Order::Unsubscribe { target: target.clone(), channel: String::new(), code: 2000, reason: "r".into() },
        Order::Disconnect { target: target.clone(), code: 3500, reason: "r".into(), whitelist: vec!["x".into()] },
        Order::Refresh { target, expired: true, expire_at: u64::MAX, info: Some(vec![0, 255]) },
    ]
}

/// A broadcast that resolved was executed by all, the sender included, as it was sent.
async fn orders_reach_every_replica(fixture: &Fixture<dyn Control>) {
    let replicas = attach(fixture, None);
    for (index, order) in orders().into_iter().enumerate() {
        broadcast(&fixture.replicas[index % 3], order.clone()).await;
        for replica in &replicas {
            assert_eq!(replica.orders.lock().last(), Some(&order), "{}", replica.name);
        }
    }
}

/// An order that was awaited is executed before the next one.
async fn orders_of_one_replica_keep_their_sequence(fixture: &Fixture<dyn Control>) {
    let replicas = attach(fixture, None);
    for order in orders() {
        broadcast(&fixture.replicas[0], order).await;
    }
    for replica in replicas {
        let mut seen = replica.orders.lock().clone();
        seen.dedup();
        assert_eq!(seen, orders(), "{}", replica.name);
    }
}

/// Every replica answers once, the one that asks among them.
async fn questions_collect_every_answer(fixture: &Fixture<dyn Control>) {
    let replicas = attach(fixture, None);
    for control in &fixture.replicas {
        let answers = survey(control, Question::Info, 3).await;
        assert_eq!(names(answers), ["replica 0", "replica 1", "replica 2"]);
    }
    let question = Question::Channels { pattern: "*".into() };
    assert_eq!(survey(&fixture.replicas[1], question.clone(), 3).await.len(), 3);
    assert!(replicas.iter().all(|replica| replica.questions.lock().last() == Some(&question)));
}

/// A survey ends after 2 s with the answers there are; a broadcast ends too, and the others have the order.
async fn a_replica_that_hangs_delays_nobody_beyond_the_deadline(fixture: &Fixture<dyn Control>) {
    let (replicas, stalls) = (attach(fixture, Some(1)), Stalls::watch());
    let start = Instant::now();
    let answers = tokio::time::timeout(PATIENCE, fixture.replicas[0].survey(Question::Info)).await.expect("ends");
    let (took, stood) = (start.elapsed(), stalls.since(start));
    assert!(took < Duration::from_secs(4) + stood, "{took:?}, of which it stood still for {stood:?}");
    let mut answers = names(answers.unwrap());
    if answers.len() < 2 {
        answers = names(survey(&fixture.replicas[0], Question::Info, 2).await);
    }
    assert_eq!(answers, ["replica 0", "replica 2"]);
    let order = orders().remove(1);
    let broadcast = fixture.replicas[2].broadcast(order.clone());
    let _ = tokio::time::timeout(PATIENCE, broadcast).await.expect("ends");
    let deadline = Instant::now() + PATIENCE;
    while [0, 2].iter().any(|index| replicas[*index].orders.lock().last() != Some(&order)) {
        assert!(Instant::now() < deadline, "the others do not have the order");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
