use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use parking_lot::Mutex;

use super::*;
use crate::pool::{Pool, PoolConfig};
use crate::testing::{NatsCluster, NatsServer};

const PATIENCE: Duration = Duration::from_secs(20);

type Failures = Arc<Mutex<Vec<FailedPublish>>>;

async fn publisher(server: &NatsServer, config: PublisherConfig) -> (Publisher, Failures, jetstream::stream::Stream) {
    let pool = Pool::connect(PoolConfig::new([server.url()])).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let stream = jetstream::stream::Config { name: "S".into(), subjects: vec!["s.*".into()], ..Default::default() };
    let stream = jetstream::new(pool.subscribing(0)).create_stream(stream).await.unwrap();
    let failures = Failures::default();
    let sink = failures.clone();
    (Publisher::new(pool, config, move |failed| sink.lock().push(failed)), failures, stream)
}

async fn stored(stream: &mut jetstream::stream::Stream) -> u64 {
    stream.info().await.unwrap().state.messages
}

#[tokio::test]
async fn one_by_one_with_the_acknowledgement() {
    let server = NatsServer::start().await.unwrap();
    let (publisher, failures, mut stream) = publisher(&server, PublisherConfig::default()).await;
    let first = publisher.publish_sync(Outgoing::new("s.a", "x").message_id("id-1")).await.unwrap();
    assert_eq!((first.stream.as_ref(), first.sequence, first.duplicate), ("S", 1, false));
    let again = publisher.publish_sync(Outgoing::new("s.a", "x").message_id("id-1")).await.unwrap();
    assert_eq!((again.sequence, again.duplicate), (1, true));
    assert_eq!(publisher.publish_sync(Outgoing::new("nowhere", "x")).await, Err(PublishError::NoStream));
    let large = publisher.publish_sync(Outgoing::new("s.a", vec![0; 2 << 20])).await;
    assert_eq!(large, Err(PublishError::TooLarge { size: 2 << 20, max: 1 << 20 }));
    assert!(failures.lock().is_empty(), "only publish_async tells the sink");
    assert_eq!(stored(&mut stream).await, 1);
    assert_eq!(publisher.stats(), PublisherStats { sent: 4, acknowledged: 2, failed: 2, unacknowledged: 0 });
}

#[tokio::test]
async fn a_batch_reports_each_failure_with_its_message() {
    let server = NatsServer::start().await.unwrap();
    let (publisher, _, mut stream) = publisher(&server, PublisherConfig::default()).await;
    let messages = (0..350).map(|number| match number {
        7 => Outgoing::new("nowhere", "7"),
        201 => Outgoing::new("s.b", "201").header("Nats-Expected-Last-Subject-Sequence", "999"),
        number => Outgoing::new("s.a", number.to_string()),
    });
    let report = publisher.publish_batch(messages.collect()).await;
    assert_eq!(report.acknowledged, 348);
    let failed: Vec<_> = report.failed.iter().map(|failed| (&failed.message.payload[..], &failed.error)).collect();
    assert_eq!(failed[0], (&b"7"[..], &PublishError::NoStream));
    assert!(matches!(failed[1], (b"201", PublishError::Refused { err_code: 10071, .. })), "{failed:?}");
    assert_eq!(failed.len(), 2);
    assert_eq!(stored(&mut stream).await, 348);
    assert_eq!(publisher.publish_batch(Vec::new()).await.acknowledged, 0);
}

#[tokio::test]
async fn without_waiting_in_order_with_one_failure_sink() {
    let server = NatsServer::start().await.unwrap();
    let (publisher, failures, mut stream) = publisher(&server, PublisherConfig::default()).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for number in 0..5_000 {
        publisher.publish_async(Outgoing::new("s.a", number.to_string())).await.unwrap();
        assert_eq!(tasks(), before, "no task per message");
        assert!(publisher.stats().unacknowledged <= 256);
    }
    publisher.publish_async(Outgoing::new("nowhere", "lost")).await.unwrap();
    assert!(publisher.settled(PATIENCE).await);
    assert_eq!(stored(&mut stream).await, 5_000);
    let failed = std::mem::take(&mut *failures.lock());
    assert_eq!(failed.len(), 1);
    assert_eq!((&failed[0].message.payload[..], &failed[0].error), (&b"lost"[..], &PublishError::NoStream));
    for sequence in [1, 2, 1234, 5_000] {
        let message = stream.get_raw_message(sequence).await.unwrap();
        assert_eq!(message.payload, (sequence - 1).to_string());
    }
}

#[tokio::test]
async fn a_full_window_holds_the_publisher_back() {
    let server = NatsServer::start().await.unwrap();
    let config = PublisherConfig {
        max_unacknowledged: 8,
        ack_timeout: Duration::from_millis(500),
        ..PublisherConfig::default()
    };
    let (publisher, failures, _stream) = publisher(&server, config).await;
    server.pause().unwrap();
    let started = Instant::now();
    for number in 0..8 {
        publisher.publish_async(Outgoing::new("s.a", number.to_string())).await.unwrap();
    }
    let full = publisher.try_publish_async(Outgoing::new("s.a", "8")).await;
    assert_eq!(full, Err(PublishError::WindowFull));
    publisher.publish_async(Outgoing::new("s.a", "8")).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(500), "waited until the first ones had their outcome");
    assert!(publisher.settled(PATIENCE).await);
    assert_eq!(failures.lock().len(), 9);
    assert!(failures.lock().iter().all(|failed| failed.error == PublishError::Indeterminate));
    server.resume().unwrap();
}

#[tokio::test]
async fn without_contact_nothing_is_sent_and_with_it_again_all_is() {
    let mut server = NatsServer::start().await.unwrap();
    let config = PublisherConfig { ack_timeout: Duration::from_millis(300), ..PublisherConfig::default() };
    let (publisher, failures, mut stream) = publisher(&server, config).await;
    publisher.publish_sync(Outgoing::new("s.a", "first")).await.unwrap();
    server.kill().unwrap();
    let started = Instant::now();
    // The loss may be noticed a moment later than the first attempt.
    while publisher.publish_sync(Outgoing::new("s.a", "lost")).await != Err(PublishError::Unavailable) {
        assert!(started.elapsed() < PATIENCE);
    }
    assert_eq!(publisher.publish_async(Outgoing::new("s.a", "lost")).await, Err(PublishError::Unavailable));
    assert!(failures.lock().is_empty(), "the caller knows, so the sink is not told");
    server.restart().await.unwrap();
    while publisher.publish_sync(Outgoing::new("s.a", "last").message_id("last")).await.is_err() {
        assert!(started.elapsed() < PATIENCE);
    }
    assert_eq!(stored(&mut stream).await, 2, "what failed did not come later");
}

#[tokio::test]
async fn a_killed_leader_costs_time_and_no_message() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let pool = Pool::connect(PoolConfig::new(cluster.urls())).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let stream = jetstream::stream::Config {
        name: "S".into(),
        subjects: vec!["s.*".into()],
        num_replicas: 3,
        ..Default::default()
    };
    let client = pool.subscribing(0);
    let mut stream = NatsCluster::make_stream(&client, stream, "s.a").await.unwrap();
    let config = PublisherConfig { ack_timeout: Duration::from_secs(1), ..PublisherConfig::default() };
    let publisher = Publisher::new(pool, config, |_| {});
    let (mut longest, mut failures) = (Duration::ZERO, 0);
    for number in 0..400u64 {
        if number == 200 {
            let leader = cluster.leader_of(&client, "S").await.unwrap();
            cluster.kill(leader).unwrap();
        }
        let started = Instant::now();
        let message = Outgoing::new("s.a", number.to_string()).message_id(&format!("id-{number}"));
        while let Err(error) = publisher.publish_sync(message.clone()).await {
            failures += 1;
            assert!(started.elapsed() < Duration::from_secs(30), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        longest = longest.max(started.elapsed());
    }
    println!("longest stall {longest:?}, {failures} tries failed");
    let started = Instant::now();
    let state = loop {
        // Answers come from the new leader once it is known everywhere.
        match stream.info().await {
            Ok(info) => break info.state.clone(),
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
    };
    assert_eq!((state.messages, state.last_sequence), (400, 400), "each once");
    for sequence in [1, 200, 201, 202, 400] {
        assert_eq!(stream.get_raw_message(sequence).await.unwrap().payload, (sequence - 1).to_string());
    }
}
