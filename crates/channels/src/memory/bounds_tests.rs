//! What happens at the bounds of the in-process log, and what is left when something ends.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use plenum_protocol::Publication;
use tokio::sync::Notify;

use super::{MemoryBroker, MemoryConfig, MemoryLog};
use crate::conformance::Recorder;
use crate::{
    Announcement, Append, AppendError, IdempotencyKey, Live, LiveEvent, Log, Position, Read, Retention, Since,
};

const KEEP: Retention = Retention { size: 1000, ttl: Duration::from_secs(60), meta_ttl: Duration::from_secs(120) };

fn request(channel: &str, size: usize, retention: Retention) -> Append {
    Append {
        channel: channel.into(),
        publication: Publication { data: vec![b'x'; size].into(), ..Publication::default() },
        retention,
        idempotency: None,
        expected: None,
        version: None,
    }
}

/// Passes events on once `gate` lets it; holds its shard's worker meanwhile.
struct Gated {
    gate: Mutex<mpsc::Receiver<()>>,
    stands: Arc<Notify>,
    recorder: Arc<Recorder>,
}

impl Live for Gated {
    fn deliver(&self, events: &[LiveEvent]) {
        self.stands.notify_one();
        let _ = self.gate.lock().recv();
        self.recorder.deliver(events);
    }
}

/// A log with one shard whose worker stands still with the first publication until the sender is dropped, and what it
/// delivers then.
async fn gated(config: MemoryConfig) -> (Arc<MemoryLog>, mpsc::Sender<()>, Arc<Recorder>) {
    let log = MemoryBroker::new(MemoryConfig { shards: 1, ..config }).replica();
    let (opener, gate) = mpsc::channel();
    let (recorder, stands) = (Recorder::new(), Arc::new(Notify::new()));
    let live = Gated { gate: Mutex::new(gate), stands: stands.clone(), recorder: recorder.clone() };
    log.subscribe("c", Arc::new(live)).await.unwrap();
    log.append(request("c", 1, KEEP)).await.unwrap();
    stands.notified().await;
    (log, opener, recorder)
}

#[tokio::test]
async fn consecutive_events_of_a_channel_arrive_in_one_call() {
    struct Batches(Mutex<Vec<usize>>);
    impl Live for Batches {
        fn deliver(&self, events: &[LiveEvent]) {
            self.0.lock().push(events.len());
        }
    }
    let log = MemoryLog::single();
    let batches = Arc::new(Batches(Mutex::default()));
    log.subscribe("c", batches.clone()).await.unwrap();
    for _ in 0..300 {
        log.append(request("c", 1, KEEP)).now_or_never().unwrap().unwrap();
    }
    assert!(batches.0.lock().is_empty(), "the publishing task must not deliver");
    while batches.0.lock().iter().sum::<usize>() < 300 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*batches.0.lock(), [256, 44]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_makes_appends_wait_in_order_and_then_refuses() {
    let config = MemoryConfig { queue_events: 2, waiting_appends: 3, ..MemoryConfig::default() };
    let (log, opener, recorder) = gated(config).await;
    for _ in 0..2 {
        log.append(request("c", 1, KEEP)).now_or_never().expect("there is room").unwrap();
    }
    let mut waiting: Vec<_> = (0..4).map(|_| log.append(request("c", 1, KEEP))).collect();
    let refused = waiting.remove(3).now_or_never().expect("the line is full");
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })), "{refused:?}");
    assert!(waiting.iter_mut().all(|call| call.now_or_never().is_none()));
    let announced = log.announce("c", Announcement::Publication(Publication::default())).await;
    assert!(announced.is_err(), "announcements stand in the same line");
    drop(opener);
    let offsets: Vec<u64> = join_all(waiting).await.into_iter().map(|done| done.unwrap().position.offset).collect();
    assert_eq!(offsets, [4, 5, 6]);
    recorder.until_offset(6).await;
    assert_eq!(recorder.offsets(), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_waited_too_long_is_not_made() {
    // The abandoned one waits for as long, and has to get its turn on a busy machine.
    let config = MemoryConfig { queue_events: 1, append_wait: Duration::from_secs(3), ..MemoryConfig::default() };
    let (log, opener, recorder) = gated(config).await;
    log.append(request("c", 1, KEEP)).await.unwrap();
    let refused = log.append(request("c", 1, KEEP)).await;
    assert!(matches!(refused, Err(AppendError::Unavailable { .. })), "{refused:?}");
    let abandoned = log.append(request("c", 1, KEEP));
    drop((abandoned, opener));
    recorder.until("three publications", |seen| seen.entries().len() == 3).await;
    let last = log.append(request("c", 1, KEEP)).await.unwrap().position.offset;
    recorder.until_offset(last).await;
    assert_eq!(recorder.offsets(), [1, 2, 3, 4], "an abandoned one proceeds, a refused one does not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_locked_while_delivering() {
    struct Reentrant(Arc<MemoryLog>, Arc<Recorder>);
    impl Live for Reentrant {
        fn deliver(&self, events: &[LiveEvent]) {
            assert!(self.0.append(request("other", 1, KEEP)).now_or_never().is_some());
            self.0.unsubscribe("c");
            self.1.deliver(events);
        }
    }
    let broker = MemoryBroker::new(MemoryConfig { shards: 1, ..MemoryConfig::default() });
    let (log, recorder) = (broker.replica(), Recorder::new());
    log.subscribe("c", Arc::new(Reentrant(log.clone(), recorder.clone()))).await.unwrap();
    log.append(request("c", 1, KEEP)).await.unwrap();
    recorder.until("the publication", |seen| !seen.entries().is_empty()).await;
}

#[tokio::test]
async fn a_subscriber_that_panics_is_told_and_the_others_go_on() {
    struct Panics(Mutex<Vec<LiveEvent>>);
    impl Live for Panics {
        fn deliver(&self, events: &[LiveEvent]) {
            assert!(!matches!(events[0], LiveEvent::Publication(_)), "on purpose");
            self.0.lock().extend_from_slice(events);
        }
    }
    let broker = MemoryBroker::new(MemoryConfig::default());
    let (log, other) = (broker.replica(), broker.replica());
    let (panics, recorder) = (Arc::new(Panics(Mutex::default())), Recorder::new());
    log.subscribe("c", panics.clone()).await.unwrap();
    other.subscribe("c", recorder.clone()).await.unwrap();
    let position = log.append(request("c", 1, KEEP)).await.unwrap().position;
    recorder.until_offset(position.offset).await;
    assert!(matches!(&panics.0.lock()[..], [LiveEvent::Lost { position: lost }] if *lost == position));
}

#[tokio::test]
async fn what_is_dropped_ends() {
    let metrics = tokio::runtime::Handle::current().metrics();
    let broker = MemoryBroker::new(MemoryConfig { shards: 3, ..MemoryConfig::default() });
    assert_eq!(metrics.num_alive_tasks(), 3);
    let (stays, goes, recorder) = (broker.replica(), broker.replica(), Recorder::new());
    goes.subscribe("c", recorder.clone()).await.unwrap();
    drop(goes);
    assert_eq!(Arc::strong_count(&recorder), 1, "a dropped replica is not subscribed");
    assert_eq!(broker.counts(), (0, 0, 0));
    drop((stays, broker));
    while metrics.num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn expired_channels_are_freed_though_nobody_asks() {
    let broker = MemoryBroker::new(MemoryConfig::default());
    let log = broker.replica();
    let retention = Retention { size: 10, ttl: Duration::from_secs(2), meta_ttl: Duration::from_secs(8000) };
    for n in 0..2000 {
        log.append(request(&format!("c{n}"), 10, retention)).await.unwrap();
    }
    assert_eq!((broker.counts().0, broker.counts().1), (2000, 2000));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((broker.counts().0, broker.counts().1), (2000, 0), "tails are remembered");
    tokio::time::sleep(Duration::from_secs(8000)).await;
    assert_eq!(broker.counts(), (0, 0, 0));
}

#[tokio::test]
async fn channels_without_retention_leave_nothing() {
    let broker = MemoryBroker::new(MemoryConfig::default());
    let log = broker.replica();
    for n in 0..500 {
        let name = format!("c{n}");
        log.subscribe(&name, Recorder::new()).await.unwrap();
        log.append(request(&name, 10, Retention::NONE)).await.unwrap();
        log.unsubscribe(&name);
        log.append(request(&name, 10, Retention::NONE)).await.unwrap();
        log.remove(&name).await.unwrap();
    }
    assert_eq!(broker.counts(), (0, 0, 0));
}

#[tokio::test]
async fn bytes_are_bounded_and_the_oldest_go_first() {
    let max_bytes = 200_000;
    let broker = MemoryBroker::new(MemoryConfig { shards: 1, max_bytes, ..MemoryConfig::default() });
    let log = broker.replica();
    let mut first = Position::default();
    for n in 0..1000 {
        let position = log.append(request(&format!("c{}", n % 10), 500, KEEP)).await.unwrap().position;
        if n < 10 {
            first = position;
        }
        assert!(broker.counts().2 <= max_bytes);
    }
    let kept = broker.counts().1;
    assert!((100..400).contains(&kept), "{kept}");
    let read = |since| Read { since, reverse: false, limit: 1000, max_bytes: usize::MAX, retention: KEEP };
    let page = log.read("c9", read(Since::Position(first))).await.unwrap();
    assert!(!page.complete && page.entries.len() == kept / 10 || page.entries.len() == kept / 10 + 1, "{page:?}");
    let oldest = page.entries[0].offset;
    let before = Position { offset: oldest - 10, epoch: page.top.epoch.clone() };
    assert!(log.read("c9", read(Since::Position(before))).await.unwrap().complete);
}

#[tokio::test]
async fn remembered_tails_are_bounded_too() {
    let max_bytes = 100_000;
    let broker = MemoryBroker::new(MemoryConfig { shards: 1, max_bytes, ..MemoryConfig::default() });
    let log = broker.replica();
    let tail_only = Retention { size: 0, ttl: Duration::ZERO, meta_ttl: Duration::from_secs(1 << 40) };
    let mut positions = Vec::new();
    for n in 0..5000 {
        positions.push(log.append(request(&format!("c{n}"), 10, tail_only)).await.unwrap().position);
        assert!(broker.counts().2 <= max_bytes);
    }
    // A forgotten channel is not taken for one that never was.
    for n in [0, 4999] {
        let top = log.tail(&format!("c{n}")).await.unwrap().position;
        assert!(top.offset >= positions[n].offset);
        let conflict = log.append(Append { expected: Some(0), ..request(&format!("c{n}"), 1, tail_only) }).await;
        assert!(matches!(conflict, Err(AppendError::Conflict { .. })));
        let at_tail = Append { expected: Some(top.offset), ..request(&format!("c{n}"), 1, tail_only) };
        log.append(at_tail).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn idempotency_keys_leave_after_five_minutes() {
    let log = MemoryLog::single();
    let key = IdempotencyKey { scope: "api".into(), key: "k".into() };
    let call = || Append { idempotency: Some(key.clone()), ..request("c", 1, KEEP) };
    log.append(call()).await.unwrap();
    tokio::time::advance(Duration::from_secs(299)).await;
    assert!(log.append(call()).await.unwrap().duplicate);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!log.append(call()).await.unwrap().duplicate);
}
