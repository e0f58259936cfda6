//! Many commands in one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use plenum_channels::memory::MemoryLog;
use plenum_channels::{Announcement, Append, AppendError, Appended, Live, Log, Page, Position, Read, ReadError, Tail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::fixture::{Fixture, fixture, fixture_on};

async fn batch(fixture: &Fixture, body: Value) -> Vec<Value> {
    let mut reply = fixture.call("batch", body).await;
    match reply["replies"].take() {
        Value::Array(replies) => replies,
        _ => panic!("{reply}"),
    }
}

#[tokio::test]
async fn replies_stand_in_the_order_of_the_commands() {
    let fixture = fixture();
    for parallel in [false, true] {
        let commands = json!([
            { "publish": { "channel": "log:a", "data": 1 } },
            { "publish": { "channel": "unknown:a", "data": 1 } },
            { "rpc": { "method": "x" } },
            { "broadcast": { "channels": ["log:b", "unknown:b"], "data": 1 } },
            { "history": { "channel": "log:b", "limit": 1, "reverse": true } },
            { "channels": {} },
            { "info": {} },
        ]);
        let replies = batch(&fixture, json!({ "commands": commands, "parallel": parallel })).await;
        assert_eq!(replies.len(), 7);
        assert!(replies[0]["publish"]["offset"].is_u64(), "{replies:?}");
        assert_eq!(replies[1]["error"]["code"], 102);
        assert_eq!(replies[2]["error"]["code"], 104);
        assert_eq!(replies[3]["broadcast"]["responses"][1]["error"]["code"], 102);
        assert!(replies[4]["history"]["offset"].is_u64(), "{replies:?}");
        assert_eq!(replies[5]["channels"]["channels"], json!({}));
        assert_eq!(replies[6]["info"]["nodes"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_of_a_parallel_batch_keep_their_order() {
    let fixture = fixture();
    // A version makes a publication read the channel's end first: without an order of their own, the others would
    // overtake it.
    let commands: Vec<_> = (1..=90)
        .map(|number| match number % 3 {
            0 => json!({ "broadcast": { "channels": ["log:b", "log:a"], "data": number } }),
            1 => json!({ "publish": { "channel": "log:a", "data": number, "version": number } }),
            _ => json!({ "publish": { "channel": "log:a", "data": number } }),
        })
        .collect();
    batch(&fixture, json!({ "commands": commands, "parallel": true })).await;
    let history = fixture.done("history", json!({ "channel": "log:a", "limit": -1 })).await;
    let data: Vec<_> =
        history["publications"].as_array().unwrap().iter().map(|p| p["data"].as_u64().unwrap()).collect();
    assert_eq!(data, (1..=90).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_batch_that_cannot_be_answered_is_refused_whole() {
    let fixture = fixture();
    let many = vec![json!({ "info": {} }); 10_001];
    for body in [
        json!({}).to_string(),
        json!({ "commands": many }).to_string(),
        json!({ "commands": 1 }).to_string(),
        "[]".to_owned(),
        "{".to_owned(),
    ] {
        let (status, reply) = fixture.raw("batch", body, "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{reply}");
        let error: Value = serde_json::from_str(&reply).unwrap();
        assert!(error["code"].is_u64() && error["message"].is_string(), "{reply}");
    }
    assert!(batch(&fixture, json!({ "commands": [] })).await.is_empty());
}

#[tokio::test]
async fn a_batch_whose_replies_grow_too_long_carries_out_no_more() {
    let fixture = fixture();
    let payload = "x".repeat(60_000);
    for _ in 0..100 {
        fixture.done("publish", json!({ "channel": "log:a", "data": payload })).await;
    }
    // Six megabytes each: the sixth goes over 32 MiB.
    let mut commands = vec![json!({ "history": { "channel": "log:a", "limit": -1 } }); 7];
    commands.push(json!({ "publish": { "channel": "log:b", "data": 1 } }));
    let replies = batch(&fixture, json!({ "commands": commands })).await;
    assert!(replies[..6].iter().all(|reply| reply["history"]["publications"].as_array().unwrap().len() == 100));
    for refused in &replies[6..] {
        assert_eq!(refused["error"]["code"], 106, "{refused}");
    }
    let history = fixture.done("history", json!({ "channel": "log:b" })).await;
    assert_eq!(history["offset"], 0, "what was refused was not carried out");
}

/// A log whose acknowledgements take their time; the payload `"bad"` gets an error instead.
struct SlowLog {
    inner: Arc<dyn Log>,
    waiting: Arc<AtomicUsize>,
    most: AtomicUsize,
}

/// How long an acknowledgement takes.
const ROUND_TRIP: Duration = Duration::from_millis(100);

impl SlowLog {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemoryLog::single(), waiting: Arc::default(), most: AtomicUsize::new(0) })
    }
}

#[async_trait]
impl Log for SlowLog {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let bad = append.publication.data.as_ref() == b"\"bad\"";
        let appended = (!bad).then(|| self.inner.append(append));
        self.most.fetch_max(self.waiting.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let (waiting, answer) = (self.waiting.clone(), sleep(ROUND_TRIP));
        async move {
            answer.await;
            waiting.fetch_sub(1, Ordering::Relaxed);
            match appended {
                Some(appended) => appended.await,
                None => Err(AppendError::Indeterminate),
            }
        }
        .boxed()
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.inner.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.inner.read(channel, read).await
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.inner.tail(channel).await
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.inner.subscribe(channel, live).await
    }

    fn unsubscribe(&self, channel: &str) {
        self.inner.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.inner.remove(channel).await
    }
}

async fn data_in(fixture: &Fixture, channel: &str) -> Vec<Value> {
    let history = fixture.done("history", json!({ "channel": channel, "limit": -1 })).await;
    history["publications"].as_array().unwrap().iter().map(|publication| publication["data"].clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn publications_of_a_batch_share_the_round_trip_and_one_that_fails_stops_no_other() {
    for parallel in [false, true] {
        let log = SlowLog::new();
        let fixture = fixture_on(log.clone());
        let data = |number: u64| if number % 10 == 5 { json!("bad") } else { json!(number) };
        let commands: Vec<_> = (0..80)
            .map(|number| match number % 4 {
                0 => json!({ "broadcast": { "channels": ["log:b", "log:a"], "data": data(number) } }),
                _ => json!({ "publish": { "channel": "log:a", "data": data(number) } }),
            })
            .collect();
        let started = Instant::now();
        let replies = batch(&fixture, json!({ "commands": commands, "parallel": parallel })).await;
        assert_eq!(started.elapsed(), ROUND_TRIP, "one for all");
        for (number, reply) in replies.iter().enumerate() {
            match (number % 10 == 5, number % 4 == 0) {
                (true, _) => assert_eq!(reply["error"]["code"], 100, "{number}: {reply}"),
                (false, true) => assert!(reply["broadcast"]["responses"][1]["result"]["offset"].is_u64(), "{reply}"),
                (false, false) => assert!(reply["publish"]["offset"].is_u64(), "{number}: {reply}"),
            }
        }
        let expected: Vec<_> = (0..80).filter(|number| number % 10 != 5).map(|number| json!(number)).collect();
        assert_eq!(data_in(&fixture, "log:a").await, expected, "in the order of the commands");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_publication_waits_for_those_before_it() {
    let fixture = fixture_on(SlowLog::new());
    let publish = json!({ "publish": { "channel": "log:a", "data": 1 } });
    let read = json!({ "history": { "channel": "log:a", "limit": -1 } });
    let commands = json!([publish, publish, read, publish, read]);
    let started = Instant::now();
    let replies = batch(&fixture, json!({ "commands": commands })).await;
    assert_eq!(started.elapsed(), 2 * ROUND_TRIP);
    let seen = |reply: &Value| reply["history"]["publications"].as_array().unwrap().len();
    assert_eq!((seen(&replies[2]), seen(&replies[4])), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_request_keeps_a_bounded_number_of_publications_waiting() {
    let publish = |number: usize| json!({ "publish": { "channel": format!("log:{}", number % 7), "data": number } });
    let channels: Vec<_> = (0..5_000).map(|number| format!("log:{number}")).collect();
    let broadcast = json!({ "channels": channels, "data": 1 });
    let publishes: Vec<_> = (0..4_000).map(publish).collect();
    let mixed: Vec<_> = [json!({ "broadcast": broadcast })].into_iter().chain(publishes.iter().cloned()).collect();
    for (method, body, round_trips) in [
        ("batch", json!({ "commands": publishes }), 4),
        ("broadcast", broadcast.clone(), 5),
        ("batch", json!({ "commands": mixed, "parallel": true }), 9),
    ] {
        let log = SlowLog::new();
        let fixture = fixture_on(log.clone());
        let started = Instant::now();
        fixture.call(method, body).await;
        assert!(log.most.load(Ordering::Relaxed) <= 1024, "{method}: {}", log.most.load(Ordering::Relaxed));
        assert_eq!(started.elapsed(), round_trips * ROUND_TRIP, "{method}");
    }
}
