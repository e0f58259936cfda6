use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use async_nats::jetstream;
use parking_lot::Mutex;

use super::*;
use crate::pool::PoolConfig;
use crate::testing::{NatsServer, ServerOptions};

const PATIENCE: Duration = Duration::from_secs(20);

/// Notes what it processes; holds while told to; fails as the payload says.
#[derive(Default)]
struct Notes {
    seen: Mutex<Vec<(String, u64)>>,
    exhausted: Mutex<Vec<String>>,
    hold: AtomicBool,
    running: AtomicU64,
    most: AtomicU64,
}

#[async_trait]
impl Process for Notes {
    async fn process(&self, message: &Received) -> Result<(), ProcessError> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        while self.hold.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        let attempt = message.delivery.map_or(1, |delivery| delivery.attempt);
        self.seen.lock().push((payload.clone(), attempt));
        match payload.as_str() {
            "panic" => panic!("as told"),
            "fail" => Err(ProcessError::Temporary("as told".into())),
            "fail once" if attempt == 1 => Err(ProcessError::Temporary("as told".into())),
            "never" => Err(ProcessError::Permanent("as told".into())),
            _ => Ok(()),
        }
    }

    async fn exhausted(&self, message: &Received, _: &ProcessError) {
        self.exhausted.lock().push(String::from_utf8_lossy(&message.payload).into_owned());
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn core() -> (NatsServer, Arc<Pool>) {
    let server = NatsServer::start_with(ServerOptions { jetstream: false, ..Default::default() }).await.unwrap();
    let pool = Pool::connect(PoolConfig::new([server.url()])).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    (server, pool)
}

/// Publishes until the first message arrives, so that the subscription is known to stand.
async fn standing(client: &async_nats::Client, subject: &str, subscription: &Subscription) {
    let started = Instant::now();
    while subscription.stats().received == 0 {
        assert!(started.elapsed() < PATIENCE);
        client.publish(subject.to_owned(), "hello".into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Publishes more on the client that sent all the greetings, until one of these was processed: none before it is on its way.
async fn greeted(client: &async_nats::Client, subject: &str, notes: &[&Notes], members: &[&Subscription]) {
    let started = Instant::now();
    for number in 0.. {
        assert!(started.elapsed() < PATIENCE, "greetings never end");
        let last = format!("greeting {number}");
        client.publish(subject.to_owned(), last.clone().into()).await.unwrap();
        let sent = Instant::now();
        let seen = || notes.iter().any(|notes| notes.seen.lock().iter().any(|(payload, _)| *payload == last));
        while !seen() && sent.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if seen() {
            break;
        }
    }
    let idle = |member: &&Subscription| (member.stats().busy, member.stats().pending) == (0, 0);
    until("greetings are processed", || members.iter().all(idle)).await;
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn a_queue_subscription_is_bounded_and_counts_what_it_drops() {
    let (_server, pool) = core().await;
    let before = tasks();
    let notes = Arc::new(Notes::default());
    let config = QueueConfig { workers: 3, max_pending: 10, ..QueueConfig::new("work.*", Some("group")) };
    let subscription = Subscription::queue(&pool, config, notes.clone());
    let client = pool.any();
    standing(&client, "work.0", &subscription).await;
    greeted(&client, "work.0", &[&notes], &[&subscription]).await;
    let greetings = subscription.stats();
    notes.hold.store(true, Ordering::Relaxed);
    for number in 0..3 {
        client.publish("work.1", number.to_string().into()).await.unwrap();
    }
    until("all workers are busy", || subscription.stats().busy == 3).await;
    for number in 3..50 {
        client.publish("work.1", number.to_string().into()).await.unwrap();
    }
    until("all have arrived", || subscription.stats().received == greetings.received + 50).await;
    let stats = subscription.stats();
    assert_eq!((stats.busy, stats.pending, stats.dropped_full - greetings.dropped_full), (3, 10, 37));
    notes.hold.store(false, Ordering::Relaxed);
    assert!(subscription.drain(PATIENCE).await);
    assert_eq!(subscription.stats().processed, greetings.processed + 13);
    assert_eq!(notes.most.load(Ordering::SeqCst), 3);
    subscription.wait().await;
    until("no task is left", || tasks() == before).await;
}

#[tokio::test]
async fn bytes_are_bounded_too() {
    let (_server, pool) = core().await;
    let notes = Arc::new(Notes::default());
    let config = QueueConfig { workers: 1, max_pending_bytes: 10_000, ..QueueConfig::new("bytes", None) };
    let subscription = Subscription::queue(&pool, config, notes.clone());
    let client = pool.any();
    standing(&client, "bytes", &subscription).await;
    greeted(&client, "bytes", &[&notes], &[&subscription]).await;
    let greetings = subscription.stats();
    notes.hold.store(true, Ordering::Relaxed);
    for _ in 0..10 {
        client.publish("bytes", vec![b'x'; 4_000].into()).await.unwrap();
    }
    until("all have arrived", || subscription.stats().received == greetings.received + 10).await;
    let stats = subscription.stats();
    assert!(stats.dropped_bytes - greetings.dropped_bytes >= 7 && stats.pending_bytes <= 10_000, "{stats:?}");
    notes.hold.store(false, Ordering::Relaxed);
    assert!(subscription.stop(PATIENCE).await);
}

#[tokio::test]
async fn a_group_shares_and_a_panic_costs_its_message_only() {
    let (_server, pool) = core().await;
    let notes = [Arc::new(Notes::default()), Arc::new(Notes::default())];
    let client = pool.pinned(1);
    let members = notes.clone().map(|notes| Subscription::queue(&pool, QueueConfig::new("shared", Some("g")), notes));
    let received = || members.iter().map(|member| member.stats().received).sum::<u64>();
    let started = Instant::now();
    while members.iter().any(|member| member.stats().received == 0) {
        assert!(started.elapsed() < PATIENCE);
        client.publish("shared", "hello".into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Both members share one connection, so what was sent before has arrived when this does.
    greeted(&client, "shared", &[&notes[0], &notes[1]], &[&members[0], &members[1]]).await;
    let before = received();
    for payload in ["panic", "x", "panic", "y"] {
        client.publish("shared", payload.into()).await.unwrap();
    }
    until("each comes once", || received() == before + 4).await;
    until("panics are counted", || members.iter().map(|member| member.stats().panicked).sum::<u64>() == 2).await;
    let seen = || {
        notes
            .iter()
            .map(|notes| notes.seen.lock().iter().filter(|(payload, _)| payload.len() == 1).count())
            .sum::<usize>()
    };
    until("the others are processed", || seen() == 2).await;
}

#[tokio::test]
async fn a_stop_at_its_deadline_cuts_off_what_hangs() {
    let (_server, pool) = core().await;
    let before = tasks();
    let notes = Arc::new(Notes::default());
    notes.hold.store(true, Ordering::Relaxed);
    let subscription = Subscription::queue(&pool, QueueConfig { workers: 1, ..QueueConfig::new("hang", None) }, notes);
    standing(&pool.any(), "hang", &subscription).await;
    until("it hangs", || subscription.stats().busy == 1).await;
    assert!(!subscription.stop(Duration::from_millis(100)).await);
    assert!(subscription.stats().abandoned >= 1);
    until("no task is left", || tasks() == before).await;
}

#[tokio::test]
async fn a_durable_message_comes_again_until_it_is_done_or_given_up() {
    let mut server = NatsServer::start().await.unwrap();
    let config = PoolConfig { backoff_max: Duration::from_secs(1), ..PoolConfig::new([server.url()]) };
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let notes = Arc::new(Notes::default());
    let config = DurableConfig {
        tries: 3,
        retry_delay: Duration::from_millis(50),
        // So long that a test that stands still gets nothing a second time.
        ack_wait: Duration::from_secs(30),
        process_timeout: Duration::from_secs(10),
        ..DurableConfig::new("EVENTS", "worker")
    };
    // This one has a task of its own.
    let context = jetstream::new(pool.subscribing(0));
    let before = tasks();
    let subscription = Subscription::durable(&pool, config.clone(), notes.clone());
    // The stream is made after the subscription.
    let stream =
        jetstream::stream::Config { name: "EVENTS".into(), subjects: vec!["events.*".into()], ..Default::default() };
    context.create_stream(stream).await.unwrap();
    for payload in ["one", "fail", "fail once", "never", "panic"] {
        context.publish("events.a", payload.into()).await.unwrap().await.unwrap();
    }
    until("three are given up", || subscription.stats().exhausted == 3).await;
    let attempts = |wanted: &str| -> Vec<u64> {
        notes.seen.lock().iter().filter(|(payload, _)| payload == wanted).map(|(_, attempt)| *attempt).collect()
    };
    until("the others are done", || subscription.stats().processed == 2).await;
    assert_eq!(attempts("one"), [1]);
    assert_eq!(attempts("fail"), [1, 2, 3]);
    assert_eq!(attempts("fail once"), [1, 2]);
    assert_eq!(attempts("never"), [1]);
    assert_eq!(attempts("panic"), [1, 2, 3]);
    let mut given_up = notes.exhausted.lock().clone();
    given_up.sort();
    assert_eq!(given_up, ["fail", "never", "panic"]);

    // It goes on after the server was away.
    server.restart().await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    until_published(&context, "after").await;
    until("the new message is done", || !attempts("after").is_empty()).await;
    assert!(subscription.stop(PATIENCE).await);
    until("no task is left", || tasks() == before).await;

    // A second one with the same name goes on where the first stopped.
    until_published(&context, "later").await;
    let second = Subscription::durable(&pool, config, notes.clone());
    until("only what is new comes", || !attempts("later").is_empty()).await;
    assert!(second.drain(PATIENCE).await);
    assert_eq!(attempts("one"), [1]);
}

async fn until_published(context: &jetstream::Context, payload: &'static str) {
    let started = Instant::now();
    loop {
        let sent = context.publish("events.a", payload.into()).await.unwrap();
        if sent.await.is_ok() {
            return;
        }
        assert!(started.elapsed() < PATIENCE);
    }
}
