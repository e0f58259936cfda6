//! Consumers on a real NATS server: order, dead letters, what the account may do, and the end.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod sharing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use plenum_bus_nats::pool::{Credentials, Pool, PoolConfig};
use plenum_bus_nats::publish::{DeadLettersConfig, Envelope, Outgoing, Publisher, PublisherConfig};
use plenum_bus_nats::report::{Limits, Reporter};
use plenum_bus_nats::subscriber::OrderedConfig;
use plenum_bus_nats::testing::{NatsServer, ServerOptions};
use plenum_bus_nats::workers::{Workers, WorkersConfig};
use plenum_channels::memory::{MemoryControl, MemoryLog, MemoryPresence};
use plenum_channels::{
    ConnectionClaims, HistoryQuery, Log, NamespaceOptions, Node, Parts, Settings, SubscriptionClaims, TokenError,
    Tokens,
};
use plenum_telemetry::Metrics;
use plenum_worker::{ConsumerConfig, Consumers, ConsumersCollector, ConsumersParts, Mode, PublicationHeaders};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);

struct NoTokens;

#[async_trait]
impl Tokens for NoTokens {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        Err(TokenError::Invalid { reason: "none is valid here".into() })
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        Err(TokenError::Invalid { reason: "none is valid here".into() })
    }
}

/// A node that keeps history in namespace `log`.
fn node(log: Arc<dyn Log>) -> Arc<Node> {
    let mut settings = Settings::default();
    settings.client.history_max_publication_limit = 100_000;
    settings.channel.namespaces = vec![NamespaceOptions {
        name: "log".into(),
        history_size: 100_000,
        history_ttl: Duration::from_secs(600),
        ..NamespaceOptions::default()
    }];
    let node = Node::new(Parts {
        settings,
        log,
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(NoTokens),
        metrics: Metrics::new().unwrap(),
        name: "test".into(),
        version: "0.0.0".into(),
    });
    let node = node.unwrap();
    node.start();
    node
}

/// Payloads of a channel, oldest first.
async fn published(node: &Arc<Node>, channel: &str) -> Vec<Value> {
    let query = HistoryQuery { limit: -1, ..HistoryQuery::default() };
    let started = Instant::now();
    let history = loop {
        // While the log is in doubt it is not read.
        match node.history(channel, query.clone()).await {
            Ok(history) => break history,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error:?}"),
        }
    };
    history.publications.iter().map(|one| serde_json::from_slice(&one.data).unwrap()).collect()
}

/// One NATS server with the stream of commands, and connections of back ends and of consumers.
struct Bench {
    backend: Publisher,
    operator: Arc<Pool>,
    pool: Arc<Pool>,
    workers: Arc<Workers>,
    node: Arc<Node>,
    server: NatsServer,
}

async fn connect(server: &NatsServer, user: &str) -> Arc<Pool> {
    let credentials = match user {
        "" => Credentials::None,
        user => Credentials::UserPassword { user: user.into(), password: "secret".into() },
    };
    let inbox_prefix = "_INBOX_plenum".into();
    let config = PoolConfig {
        credentials,
        inbox_prefix,
        backoff_max: Duration::from_secs(1),
        ..PoolConfig::new([server.url()])
    };
    let pool = Pool::connect(config).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    pool
}

impl Bench {
    async fn new() -> Self {
        Self::with("", ["", ""]).await
    }

    async fn with(settings: &str, users: [&str; 2]) -> Self {
        Self::on(settings, users, WorkersConfig::default(), async |_, _| MemoryLog::single()).await
    }

    async fn on<L: Log>(
        settings: &str,
        [operator, user]: [&str; 2],
        workers: WorkersConfig,
        log: impl AsyncFnOnce(&Arc<Pool>, &Arc<Workers>) -> Arc<L>,
    ) -> Self {
        let options = ServerOptions { settings: settings.into(), ..ServerOptions::default() };
        let server = NatsServer::start_with(options).await.unwrap();
        let operator = connect(&server, operator).await;
        let stream = json!({ "name": "COMMANDS", "subjects": ["commands.>"], "storage": "file" });
        let made = operator.any().request("$JS.API.STREAM.CREATE.COMMANDS", stream.to_string().into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&made.payload).contains("error"), "{:?}", made.payload);
        let pool = connect(&server, user).await;
        let backend = Publisher::new(operator.clone(), PublisherConfig::default(), |failed: _| panic!("{failed:?}"));
        let workers = Workers::start(workers);
        let node = node(log(&pool, &workers).await);
        Bench { backend, operator, pool, workers, node, server }
    }

    fn config(&self) -> ConsumerConfig {
        ConsumerConfig {
            name: "outbox".into(),
            source: OrderedConfig {
                tries: 2,
                retry_delay: Duration::from_millis(20),
                filters: vec!["commands.>".into()],
                ..OrderedConfig::new("COMMANDS", "plenum")
            },
            mode: Mode::Commands { method_header: "method".into() },
            max_message_bytes: 10_000,
        }
    }

    fn start(&self, config: ConsumerConfig) -> Arc<Consumers> {
        let dead_letters = DeadLettersConfig { max_bytes: None, ..DeadLettersConfig::new("plenum") };
        let (pool, workers) = (self.pool.clone(), self.workers.clone());
        let parts = ConsumersParts { pool, workers, node: self.node.clone(), dead_letters };
        Consumers::start(vec![config], parts)
    }

    async fn send(&self, commands: impl IntoIterator<Item = Value>) {
        for command in commands {
            self.backend.publish_async(Outgoing::new("commands.a", command.to_string())).await.unwrap();
        }
        assert!(self.backend.settled(PATIENCE).await);
    }

    /// What was put aside, oldest first.
    async fn letters(&self, count: u64) -> Vec<Value> {
        let mut letters = Vec::new();
        for sequence in 1..=count {
            let asked = json!({ "seq": sequence }).to_string();
            let subject = "$JS.API.DIRECT.GET.plenum-commands-failed";
            let answer = self.operator.any().request(subject, asked.into()).await.unwrap();
            let envelope = Envelope::decode(&answer.payload).unwrap();
            assert_eq!((envelope.kind.as_str(), envelope.aggregate_id.as_str()), ("command.failed", "outbox"));
            letters.push(envelope.payload().unwrap());
        }
        letters
    }
}

/// Waits until this many commands are done and failed.
async fn settled(consumers: &Consumers, done: u64, failed: u64) {
    let started = Instant::now();
    loop {
        let (_, stats) = consumers.stats().remove(0);
        if (stats.processed, stats.exhausted) == (done, failed) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn publish(channel: &str, data: impl Into<Value>) -> Value {
    json!({ "method": "publish", "payload": { "channel": channel, "data": data.into() } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_each_channel_holds_under_load() {
    let bench = Bench::new().await;
    let channel = |number: u64| format!("log:{}", number % 20);
    let commands = (0..3_000u64).map(|number| match number % 50 {
        49 => {
            let channels = [channel(number), channel(number + 1), channel(number + 2)];
            json!({ "method": "broadcast", "payload": { "channels": channels, "data": number } })
        }
        _ => publish(&channel(number), number),
    });
    bench.send(commands).await;
    let consumers = bench.start(bench.config());
    settled(&consumers, 3_000, 0).await;
    for index in 0..20u64 {
        let is_here = |number: &u64| match number % 50 {
            49 => (0..3).any(|more| (number + more) % 20 == index),
            _ => number % 20 == index,
        };
        let expected: Vec<Value> = (0..3_000).filter(is_here).map(Value::from).collect();
        assert_eq!(published(&bench.node, &channel(index)).await, expected, "{index}");
    }
    let metrics = bench.node.metrics();
    metrics.register(Box::new(ConsumersCollector::new(&consumers).unwrap())).unwrap();
    let text = metrics.render();
    for line in [
        "plenum_consumer_commands_total{consumer=\"outbox\",result=\"done\"} 3000",
        "plenum_consumer_commands_total{consumer=\"outbox\",result=\"failed\"} 0",
        "plenum_consumer_remaining{consumer=\"outbox\"} 0",
        "plenum_consumer_unsettled{consumer=\"outbox\"} 0",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let reporter = Reporter::new(Limits::default());
    consumers.report_to(&reporter);
    reporter.add_workers("keyed", &bench.workers);
    let report = reporter.report();
    assert_eq!((report.subscriptions[0].name.as_str(), report.subscriptions[0].stats.processed), ("outbox", 3_000));
    assert!(report.workers[0].stats.done >= 3_000 && report.publishers[0].stats.sent == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_is_put_aside_and_says_why() {
    let bench = Bench::new().await;
    let unknown = publish("nowhere:a", 1);
    let broadcast = json!({ "method": "broadcast", "payload": { "channels": ["log:a", "nowhere:b"], "data": 2 } });
    bench.send([json!("no command"), unknown.clone(), broadcast.clone(), publish("log:a", 3)]).await;
    for (subject, payload) in [("commands.bytes", &b"\xff"[..]), ("commands.large", &[b' '; 20_000])] {
        bench.backend.publish_sync(Outgoing::new(subject, payload)).await.unwrap();
    }
    let consumers = bench.start(bench.config());
    settled(&consumers, 1, 5).await;
    assert_eq!(published(&bench.node, "log:a").await, [json!(2), json!(3)]);
    let mut letters = bench.letters(5).await;
    letters.sort_by_key(|letter| letter["sequence"].as_u64());
    let reason = |index: usize| letters[index]["reasons"][0].as_str().unwrap();
    assert_eq!(letters[0]["command"], json!("no command"));
    assert!(reason(0).contains("an object"), "{}", reason(0));
    assert_eq!((&letters[1]["command"], &letters[1]["subject"]), (&unknown, &json!("commands.a")));
    assert!(reason(1).contains("unknown channel"), "{}", reason(1));
    assert_eq!(letters[2]["command"], broadcast);
    assert!(
        letters[2]["reasons"].as_array().unwrap().len() == 1 && reason(2).starts_with("nowhere:b: "),
        "{letters:?}"
    );
    assert_eq!(letters[3]["command_b64"], json!("/w=="));
    assert!(reason(4).contains("20000 bytes; allowed: at most 10000"), "{}", reason(4));
    for letter in &letters {
        assert_eq!((&letter["consumer"], &letter["stream"]), (&json!("outbox"), &json!("COMMANDS")));
        assert_eq!(letter["deliveries"], 1, "none of them is tried again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_name_the_method_or_what_becomes_of_a_payload() {
    let bench = Bench::new().await;
    let request = json!({ "channel": "log:a", "data": "by header" }).to_string();
    bench.backend.publish_sync(Outgoing::new("commands.a", request).header("method", "publish")).await.unwrap();
    let config = bench.config();
    let headers = PublicationHeaders {
        channels: "to".into(),
        idempotency_key: "key".into(),
        delta: "delta".into(),
        version: "version".into(),
        version_epoch: "epoch".into(),
        tags_prefix: "tag-".into(),
    };
    let payload = |text: &str| Outgoing::new("publications.a", text.to_owned());
    let publications = ConsumerConfig {
        source: OrderedConfig { filters: vec!["publications.>".into()], ..OrderedConfig::new("COMMANDS", "other") },
        mode: Mode::Publications(headers),
        ..config.clone()
    };
    let stream = json!({ "name": "COMMANDS", "subjects": ["commands.>", "publications.>"], "storage": "file" });
    bench.operator.any().request("$JS.API.STREAM.UPDATE.COMMANDS", stream.to_string().into()).await.unwrap();
    for message in [
        payload("1").header("to", "log:a, log:b").header("tag-color", "red"),
        payload("2").header("to", "log:b").header("key", "k"),
        payload("3").header("to", "log:b").header("key", "k"),
        payload("4").header("to", "log:b").header("version", "7"),
        payload("5").header("to", "log:b").header("version", "7"),
        payload("6"),
        payload("7").header("to", "log:b").header("version", "seven"),
        payload("8").header("to", "log:b").header("delta", "true"),
    ] {
        bench.backend.publish_sync(message).await.unwrap();
    }
    let commands = bench.start(config);
    settled(&commands, 1, 0).await;
    let publications = bench.start(publications);
    settled(&publications, 5, 3).await;
    assert_eq!(published(&bench.node, "log:a").await, [json!("by header"), json!(1)]);
    assert_eq!(published(&bench.node, "log:b").await, [json!(1), json!(2), json!(4)]);
    let history = bench.node.history("log:a", HistoryQuery { limit: -1, ..HistoryQuery::default() }).await.unwrap();
    assert_eq!(history.publications[1].tags["color"], "red");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_settles_what_was_taken_and_the_next_process_takes_the_rest() {
    let bench = Bench::new().await;
    let send = async |range: std::ops::Range<u64>| bench.send(range.map(|number| publish("log:a", number))).await;
    send(0..2_000).await;
    let first = bench.start(ConsumerConfig {
        source: OrderedConfig { max_unsettled: 50, ..bench.config().source },
        ..bench.config()
    });
    let started = Instant::now();
    while first.stats()[0].1.processed < 300 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(first.drain(PATIENCE).await);
    let stats = first.stats().remove(0).1;
    assert_eq!((stats.pending, stats.abandoned), (0, 0), "{stats:?}");
    assert_eq!(published(&bench.node, "log:a").await.len() as u64, stats.processed);
    let second = bench.start(ConsumerConfig {
        source: OrderedConfig { max_unsettled: 50, ..bench.config().source },
        ..bench.config()
    });
    settled(&second, 2_000 - stats.processed, 0).await;
    let expected: Vec<Value> = (0..2_000).map(Value::from).collect();
    assert_eq!(published(&bench.node, "log:a").await, expected);
}

/// The account of deploy/nats/plenum.conf with the lines that docs/consumers.md adds, and nothing more, is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_permissions_suffice() {
    let manual = include_str!("../../../../docs/consumers.md");
    let more = manual.split("```nats\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let marker = "\"plenum.log.>\"";
    let operator = "{ user: operator, password: secret },\n{\n        user: plenum";
    let account = include_str!("../../../../deploy/nats/plenum.conf")
        .replace(marker, &format!("{more}\n{marker}"))
        .replacen("{\n        user: plenum", operator, 1)
        .replace("$PLENUM_NATS_PASSWORD", "secret");
    let bench = Bench::with(&account, ["operator", "plenum"]).await;
    let mut complaints = bench.pool.events();
    bench.send([publish("log:a", 1), publish("nowhere:a", 2)]).await;
    let consumers = bench.start(bench.config());
    settled(&consumers, 1, 1).await;
    assert_eq!(bench.letters(1).await[0]["command"], publish("nowhere:a", 2));
    // The last look at what is left, and the hand-over, are asked for as well.
    let looked = Instant::now();
    while looked.elapsed() < Duration::from_secs(6) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(consumers.drain(PATIENCE).await);
    while let Ok(event) = complaints.try_recv() {
        let text = format!("{event:?}").to_lowercase();
        assert!(!text.contains("permission"), "{text}");
    }
    let state = bench.operator.any().request("$JS.API.CONSUMER.INFO.COMMANDS.plenum", "".into()).await.unwrap();
    let state: Value = serde_json::from_slice(&state.payload).unwrap();
    assert!(state["priority_groups"][0]["pinned_client_id"].as_str().is_none_or(str::is_empty), "{state}");
    assert_eq!(state["num_ack_pending"], 0, "{state}");
    drop(bench.server);
}
