use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use async_nats::jetstream::Context;
use parking_lot::Mutex;
use plenum_channels::conformance::Stalls;

use super::super::SubscriptionStats;
use super::config::PIN;
use super::*;
use crate::pool::{Credentials, PoolConfig};
use crate::publish::key_of;
use crate::testing::{NatsCluster, NatsServer, Proxy, ServerOptions};
use crate::workers::WorkersConfig;

const PATIENCE: Duration = Duration::from_secs(60);

/// Messages are `keys number`, such as `a,b 7`; notes each part, fails and panics as the text says.
#[derive(Default)]
struct Notes {
    seen: Arc<Mutex<Vec<(String, String)>>>,
    exhausted: Mutex<Vec<(String, Vec<String>)>>,
    hold: AtomicBool,
    refuse_farewells: AtomicUsize,
    uneven: Mutex<HashSet<(String, String)>>,
}

struct Job {
    keys: Vec<String>,
    text: String,
}

#[async_trait]
impl ProcessInOrder for Notes {
    type Job = Job;

    fn read(&self, message: &Received) -> Result<Assignment<Job>, ProcessError> {
        let text = std::str::from_utf8(&message.payload).unwrap();
        let (keys, text) = text.split_once(' ').ok_or_else(|| ProcessError::Permanent("no keys".into()))?;
        let keys: Vec<String> = keys.split(',').map(str::to_owned).collect();
        let hashes = keys.iter().map(|key| key_of(key)).collect();
        Ok(Assignment { job: Job { keys, text: text.into() }, keys: hashes })
    }

    async fn process(&self, _: &Received, job: &Job, part: usize) -> Result<(), ProcessError> {
        while self.hold.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match job.text.as_str() {
            "fails" => return Err(ProcessError::Temporary("as told".into())),
            "never" => return Err(ProcessError::Permanent("not ever".into())),
            "panics" => panic!("as told"),
            text if text.ends_with("uneven") && self.uneven.lock().insert((job.keys[part].clone(), text.into())) => {
                return Err(ProcessError::Temporary("the first time".into()));
            }
            _ => {}
        }
        self.seen.lock().push((job.keys[part].clone(), job.text.clone()));
        Ok(())
    }

    async fn exhausted(&self, message: &Received, reasons: &[String]) -> bool {
        let refused = |left: usize| left.checked_sub(1);
        if self.refuse_farewells.fetch_update(Ordering::SeqCst, Ordering::SeqCst, refused).is_ok() {
            return false;
        }
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        self.exhausted.lock().push((text, reasons.to_vec()));
        true
    }
}

impl Notes {
    fn of(&self, key: &str) -> Vec<String> {
        self.seen.lock().iter().filter(|(one, _)| one == key).map(|(_, text)| text.clone()).collect()
    }
}

struct Bench {
    pool: Arc<Pool>,
    context: Context,
    workers: Arc<Workers>,
    notes: Arc<Notes>,
    config: OrderedConfig,
    server: NatsServer,
}

impl Bench {
    async fn new() -> Self {
        Self::with("", Credentials::None).await
    }

    /// On a server that takes no acknowledgement.
    async fn deaf() -> Self {
        let settings = r#"authorization { users: [
            { user: "u", password: "p", permissions: { publish: { deny: ["$JS.ACK.>"] } } }
        ] }"#;
        Self::with(settings, Credentials::UserPassword { user: "u".into(), password: "p".into() }).await
    }

    async fn with(settings: &str, credentials: Credentials) -> Self {
        let options = ServerOptions { settings: settings.into(), ..ServerOptions::default() };
        let server = NatsServer::start_with(options).await.unwrap();
        let backoff_max = Duration::from_secs(1);
        let config = PoolConfig { backoff_max, credentials, ..PoolConfig::new([server.url()]) };
        let pool = Pool::connect(config).await.unwrap();
        pool.wait_ready(PATIENCE).await.unwrap();
        let context = jetstream::new(pool.subscribing(0));
        let stream =
            jetstream::stream::Config { name: "WORK".into(), subjects: vec!["work.>".into()], ..Default::default() };
        context.create_stream(stream).await.unwrap();
        let config = OrderedConfig {
            tries: 3,
            retry_delay: Duration::from_millis(20),
            ack_wait: Duration::from_secs(4),
            ..OrderedConfig::new("WORK", "worker")
        };
        let workers = Workers::start(WorkersConfig { workers: 16, queue: 64, ..WorkersConfig::default() });
        Bench { pool, context, workers, notes: Arc::default(), config, server }
    }

    fn subscribe(&self) -> Subscription {
        self.subscribe_as(&self.notes)
    }

    fn subscribe_as(&self, notes: &Arc<Notes>) -> Subscription {
        Subscription::ordered(&self.pool, self.config.clone(), notes.clone(), &self.workers)
    }

    async fn publish(&self, texts: impl IntoIterator<Item = String>) {
        for text in texts {
            self.context.publish("work.a", text.into()).await.unwrap().await.unwrap();
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn settled(stats: &SubscriptionStats) -> u64 {
    stats.processed + stats.exhausted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_of_a_key_holds_through_failures_and_messages_of_several_keys() {
    let mut bench = Bench::new().await;
    // So long that nothing comes again although the test stands still for a while.
    bench.config.ack_wait = Duration::from_secs(10);
    let text = |number: usize| match number % 10 {
        3 => format!("k0,k1,k2 {number} uneven"),
        5 => format!("k{} {number} uneven", number % 7),
        _ => format!("k{} {number}", number % 7),
    };
    bench.publish((0..1_000).map(text)).await;
    let subscription = bench.subscribe();
    until("all are done", || subscription.stats().processed == 1_000).await;
    for key in 0..7 {
        let key = format!("k{key}");
        let expected: Vec<String> = (0..1_000)
            .map(text)
            .filter_map(|text| {
                let (keys, text) = text.split_once(' ').unwrap();
                keys.split(',').any(|one| one == key).then(|| text.to_owned())
            })
            .collect();
        assert_eq!(bench.notes.of(&key), expected, "{key}");
    }
    let stats = subscription.stats();
    assert!(stats.failed > 0 && stats.redelivered == 0 && stats.pending == 0, "{stats:?}");
    assert!(subscription.drain(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_cannot_be_done_is_given_up_with_its_reasons_and_stops_nothing() {
    let bench = Bench::new().await;
    bench.notes.refuse_farewells.store(1, Ordering::SeqCst);
    let texts = ["a 1", "malformed", "a fails", "a,b never", "b panics", "a 2", "b 3"];
    bench.publish(texts.map(str::to_owned)).await;
    let subscription = bench.subscribe();
    until("all are settled", || settled(&subscription.stats()) == 7).await;
    assert_eq!((bench.notes.of("a"), bench.notes.of("b")), (vec!["1".into(), "2".into()], vec!["3".into()]));
    let mut given_up = bench.notes.exhausted.lock().clone();
    given_up.sort();
    let expected = [
        ("a fails", vec!["as told"]),
        ("a,b never", vec!["not ever", "not ever"]),
        ("b panics", vec!["processing panicked"]),
        ("malformed", vec!["no keys"]),
    ];
    let expected = expected.map(|(text, reasons)| (text.to_owned(), reasons.into_iter().map(str::to_owned).collect()));
    assert_eq!(given_up, expected);
    let stats = subscription.stats();
    assert_eq!(stats.abandoned, 1, "the refused farewell came again: {stats:?}");
    assert!(stats.redelivered >= 1, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_at_a_time_gets_messages_and_the_next_goes_on_where_it_ended() {
    let bench = Bench::new().await;
    let first = bench.subscribe();
    bench.publish((0..50).map(|number| format!("a {number}"))).await;
    until("the first has them", || first.stats().processed == 50).await;
    let second_notes = Arc::new(Notes::default());
    let second = bench.subscribe_as(&second_notes);
    bench.publish((50..100).map(|number| format!("a {number}"))).await;
    until("the first has them all", || first.stats().processed == 100).await;
    assert_eq!(second.stats().received, 0);
    // Longer than the misses of a consumer that would not hear of the server while it stands by.
    let calm = Instant::now();
    while calm.elapsed() < HEARTBEAT * (MISSES + 3) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((first.stats().reopened, second.stats().reopened), (0, 0));
    let began = Instant::now();
    assert!(first.drain(PATIENCE).await);
    bench.publish((100..150).map(|number| format!("a {number}"))).await;
    until("the second has the rest", || second.stats().processed == 50).await;
    eprintln!("handed over within {:?}", began.elapsed());
    assert!(began.elapsed() < PIN, "the pin was given away");
    let expected: Vec<String> = (0..150).map(|number| number.to_string()).collect();
    let mut seen = bench.notes.of("a");
    seen.extend(second_notes.of("a"));
    assert_eq!(seen, expected);
    assert!(second.drain(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_dead_process_had_comes_again_before_anything_new() {
    let bench = Bench::new().await;
    bench.notes.hold.store(true, Ordering::Relaxed);
    let dead = bench.subscribe();
    bench.publish((0..20).map(|number| format!("a {number}"))).await;
    until("it is at work", || dead.stats().received == 20 && dead.stats().busy > 0).await;
    // Kept longer than the wait for an acknowledgement: nothing comes again while it lives and runs.
    let (stalls, started) = (Stalls::watch(), Instant::now());
    while started.elapsed() < bench.config.ack_wait * 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        dead.stats().redelivered == 0 || stalls.longest_since(started) > Duration::from_secs(1),
        "{:?}",
        dead.stats()
    );
    drop(dead);
    bench.publish((20..40).map(|number| format!("a {number}"))).await;
    let heir_notes = Arc::new(Notes::default());
    let heir = bench.subscribe_as(&heir_notes);
    let began = Instant::now();
    until("the heir has all", || heir.stats().processed == 40).await;
    eprintln!("taken over after {:?}", began.elapsed());
    assert_eq!(heir_notes.of("a"), (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drain_finishes_what_was_taken_and_a_stop_leaves_it() {
    let bench = Bench::new().await;
    bench.notes.hold.store(true, Ordering::Relaxed);
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let subscription = Arc::new(bench.subscribe());
    bench.publish((0..20).map(|number| format!("k{number} {number}"))).await;
    until("it is at work", || subscription.stats().received == 20 && subscription.stats().busy > 0).await;
    let draining = tokio::spawn({
        let subscription = subscription.clone();
        async move { subscription.drain(PATIENCE).await }
    });
    bench.notes.hold.store(false, Ordering::Relaxed);
    assert!(draining.await.unwrap());
    let stats = subscription.stats();
    assert_eq!((stats.processed, stats.pending, stats.abandoned), (20, 0, 0));
    until("no task is left", || tasks() <= before).await;

    bench.notes.hold.store(true, Ordering::Relaxed);
    let hanging = bench.subscribe();
    bench.publish((0..20).map(|number| format!("k{number} again {number}"))).await;
    until("it is at work", || hanging.stats().received == 20 && hanging.stats().busy > 0).await;
    assert!(!hanging.stop(Duration::from_millis(100)).await);
    until("nothing is at work", || hanging.stats().busy == 0).await;
    assert_eq!(hanging.stats().abandoned, 20);
    bench.notes.hold.store(false, Ordering::Relaxed);
    let next = bench.subscribe();
    until("they come again", || next.stats().processed == 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_done_is_not_done_again_when_its_acknowledgement_is_lost() {
    let bench = Bench::deaf().await;
    let subscription = bench.subscribe();
    bench.publish((0..5).map(|number| format!("a {number}"))).await;
    until("they are done", || subscription.stats().processed == 5).await;
    until("each comes again", || subscription.stats().redelivered >= 10).await;
    bench.publish(["a 5".to_owned()]).await;
    until("what follows is done", || subscription.stats().processed == 6).await;
    assert_eq!(bench.notes.of("a"), ["0", "1", "2", "3", "4", "5"]);
}

/// A connection that stands says nothing about whoever leads the consumer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_jetstream_does_not_hear_to_be_wanted_is_let_go() {
    let bench = Bench::deaf().await;
    bench.notes.hold.store(true, Ordering::Relaxed);
    let subscription = bench.subscribe();
    bench.publish((0..5).map(|number| format!("a {number}"))).await;
    until("they are let go", || subscription.stats().abandoned >= 5).await;
}

/// A process that stands still, with a runtime of its own in place of a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_stood_still_goes_on_with_nothing_that_another_took_over() {
    let bench = Bench::new().await;
    let (notes, still) = (Arc::new(Notes::default()), Arc::new(Notes::default()));
    still.hold.store(true, Ordering::Relaxed);
    let (stands, stood) = std::sync::mpsc::channel();
    let (wake, wakes) = std::sync::mpsc::channel();
    let (url, config, held) = (bench.server.url(), bench.config.clone(), still.clone());
    let process = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let pool = Pool::connect(PoolConfig::new([url])).await.unwrap();
            pool.wait_ready(PATIENCE).await.unwrap();
            let workers = Workers::start(WorkersConfig::default());
            let subscription = Subscription::ordered(&pool, config, held.clone(), &workers);
            until("it is at work", || subscription.stats().received == 20 && subscription.stats().busy > 0).await;
            stands.send(()).unwrap();
            wakes.recv_timeout(PATIENCE).unwrap();
            held.hold.store(false, Ordering::Relaxed);
            until("it lets go of them", || subscription.stats().pending == 0).await;
            assert!(subscription.stop(PATIENCE).await);
            subscription.stats()
        })
    });
    bench.publish((0..20).map(|number| format!("a {number}"))).await;
    stood.recv_timeout(PATIENCE).unwrap();
    let heir = bench.subscribe_as(&notes);
    until("the heir has all", || heir.stats().processed == 20).await;
    wake.send(()).unwrap();
    let stats = process.join().unwrap();
    assert_eq!(notes.of("a"), (0..20).map(|number| number.to_string()).collect::<Vec<_>>());
    // One was under way.
    assert!(still.of("a").len() <= 1 && stats.abandoned >= 19, "{:?} {stats:?}", still.of("a"));
}

#[test]
fn heartbeats_are_missed_in_a_row_or_not_at_all() {
    let start = Instant::now();
    let mut misses = Misses::default();
    assert!((0..100).all(|hour| misses.bear(start + Duration::from_hours(hour))));
    let start = start + Duration::from_hours(200);
    let borne: Vec<bool> = (0..7).map(|number| misses.bear(start + HEARTBEAT * 2 * number)).collect();
    assert_eq!(borne, [true, true, true, true, true, false, false]);
}

/// The server forgets a pin with its leader, or when it is told to, and another process may get what comes next.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_gets_the_pin_begins_nothing_while_another_process_has_what_came_before() {
    let mut bench = Bench::new().await;
    bench.config.ack_wait = Duration::from_secs(10);
    bench.notes.hold.store(true, Ordering::Relaxed);
    let first = bench.subscribe();
    bench.publish((0..20).map(|number| format!("a {number}"))).await;
    until("the first is at work", || first.stats().received == 20 && first.stats().busy > 0).await;
    let second_notes = Arc::new(Notes { seen: bench.notes.seen.clone(), ..Notes::default() });
    let second = bench.subscribe_as(&second_notes);
    let mut number = 20;
    while second.stats().received == 0 {
        let client = bench.pool.subscribing(0);
        client.request("$JS.API.CONSUMER.UNPIN.WORK.worker", format!(r#"{{"group":"{GROUP}"}}"#).into()).await.unwrap();
        for _ in 0..10 {
            bench.publish([format!("a {number}")]).await;
            number += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(number < 5_000, "the second never gets the pin");
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        assert_eq!(
            bench.notes.of("a"),
            [""; 0],
            "begun before what the first has: {:?} {:?}",
            first.stats(),
            second.stats()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.notes.hold.store(false, Ordering::Relaxed);
    until("all are done", || bench.notes.of("a").len() >= number).await;
    assert_eq!(bench.notes.of("a"), (0..number).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(second.stats().processed > 0, "{:?}", second.stats());
}

/// Messages were delivered into a connection that broke: what comes next comes before they come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_begun_before_what_was_lost_on_the_way() {
    let bench = Bench::new().await;
    let proxy = Proxy::start(bench.server.address()).await.unwrap();
    let config = PoolConfig {
        backoff_max: Duration::from_millis(100),
        ..PoolConfig::new([format!("nats://{}", proxy.address())])
    };
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let subscription = Subscription::ordered(&pool, bench.config.clone(), bench.notes.clone(), &bench.workers);
    bench.publish((0..10).map(|number| format!("a {number}"))).await;
    until("they are done", || subscription.stats().processed == 10).await;
    proxy.stall();
    bench.publish((10..30).map(|number| format!("a {number}"))).await;
    let delivered = async || {
        let consumer = bench.context.get_consumer_from_stream::<pull::Config, _, _>("worker", "WORK").await.unwrap();
        consumer.cached_info().delivered.stream_sequence
    };
    let started = Instant::now();
    while delivered().await < 30 {
        assert!(started.elapsed() < PATIENCE, "they are not delivered");
    }
    proxy.cut();
    until("the connections broke", || pool.stats().healthy().0 == 0).await;
    proxy.restore();
    bench.publish((30..50).map(|number| format!("a {number}"))).await;
    until("all are done", || bench.notes.of("a").len() >= 50).await;
    assert_eq!(bench.notes.of("a"), (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(subscription.stats().redelivered > 0, "nothing was lost");
}

/// The front of a full stream goes with each publication: what was delivered is removed before it is begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_full_stream_removes_holds_nothing_up() {
    let bench = Bench::new().await;
    let stream = jetstream::stream::Config {
        name: "WORK".into(),
        subjects: vec!["work.>".into()],
        max_messages: 100,
        ..Default::default()
    };
    bench.context.update_stream(stream).await.unwrap();
    bench.publish((0..100).map(|number| format!("a {number}"))).await;
    let publishing = tokio::spawn({
        let context = bench.context.clone();
        async move {
            for number in 100.. {
                context.publish("work.a", format!("a {number}").into()).await.unwrap().await.unwrap();
            }
        }
    });
    let subscription = bench.subscribe();
    until("it is at work", || subscription.stats().processed > 300).await;
    publishing.abort();
    let done: Vec<u64> = bench.notes.of("a").iter().map(|number| number.parse().unwrap()).collect();
    assert!(done.is_sorted_by(|one, next| one < next), "{done:?}");
}

/// With three copies: the server that leads the consumer is killed while messages are on their way. What was done is not done
/// again, whether its acknowledgement arrived or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_holds_through_the_loss_of_the_server_that_leads_the_consumer() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let config = PoolConfig { backoff_max: Duration::from_secs(1), ..PoolConfig::new(cluster.urls()) };
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let context = jetstream::new(pool.subscribing(0));
    let stream = jetstream::stream::Config {
        name: "WORK".into(),
        subjects: vec!["work.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    NatsCluster::make_stream(&pool.subscribing(0), stream, "work.a").await.unwrap();
    let mut sent = Vec::new();
    for number in 0..6_000 {
        sent.push(context.publish("work.a", format!("k{} {number}", number % 5).into()).await.unwrap());
        if sent.len() == 200 {
            for acknowledged in sent.drain(..) {
                acknowledged.await.unwrap();
            }
        }
    }
    let notes = Arc::new(Notes::default());
    let workers = Workers::start(WorkersConfig { workers: 16, ..WorkersConfig::default() });
    let config = OrderedConfig { max_unsettled: 100, ..OrderedConfig::new("WORK", "worker") };
    let subscription = Subscription::ordered(&pool, config, notes.clone(), &workers);
    until("it is at work", || notes.seen.lock().len() > 500).await;
    let consumer = context.get_consumer_from_stream::<pull::Config, _, _>("worker", "WORK").await.unwrap();
    let leader = consumer.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone()).unwrap();
    let leader = cluster.member_named(&leader).unwrap();
    let before = notes.seen.lock().len();
    cluster.kill(leader).unwrap();
    let killed = Instant::now();
    assert!(before < 6_000, "it was done before the kill");
    until("all are done", || {
        let seen = notes.seen.lock();
        seen.iter().map(|(_, text)| text).collect::<HashSet<_>>().len() == 6_000
    })
    .await;
    let stats = subscription.stats();
    eprintln!("killed after {before}, done after {:?}: {stats:?}", killed.elapsed());
    for key in 0..5 {
        let expected: Vec<String> =
            (0..6_000).filter(|number| number % 5 == key).map(|number| number.to_string()).collect();
        assert_eq!(notes.of(&format!("k{key}")), expected, "k{key}");
    }
}
