use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

/// Records what it saw per key; does what the message says.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(u64, u64)>>,
    losses: Mutex<Vec<(u64, Loss)>>,
    hold: AtomicBool,
    done: AtomicU64,
}

#[derive(Debug)]
enum Order {
    Note(u64),
    Panic,
    PanicLater,
    Hang,
    Hold,
}

impl Work<Order> for Recorder {
    fn run(&self, key: u64, message: Order) -> Step<'_> {
        match message {
            Order::Note(number) => self.seen.lock().push((key, number)),
            Order::Panic => panic!("as told"),
            Order::PanicLater => {
                return Step::Later(Box::pin(async {
                    tokio::task::yield_now().await;
                    panic!("as told, later");
                }));
            }
            Order::Hang => return Step::Later(Box::pin(std::future::pending())),
            Order::Hold => {
                return Step::Later(Box::pin(async {
                    while self.hold.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }));
            }
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        Step::Done
    }

    fn lost(&self, key: u64, loss: Loss) {
        self.losses.lock().push((key, loss));
    }
}

fn recorder() -> (Arc<Recorder>, Arc<dyn Work<Order>>) {
    let recorder = Arc::new(Recorder::default());
    (recorder.clone(), recorder)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_within_a_key_holds_under_load() {
    let pool = Workers::start(WorkersConfig { workers: 16, queue: 32, ..WorkersConfig::default() });
    let (recorder, work) = recorder();
    let submitters: Vec<_> = (0..8u64)
        .map(|submitter| {
            let (pool, work) = (pool.clone(), work.clone());
            tokio::spawn(async move {
                for number in 0..2_000u64 {
                    for key in 0..5u64 {
                        pool.submit(submitter * 100 + key, &work, Order::Note(number)).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.await.unwrap();
    }
    assert_eq!(pool.stop(Duration::from_secs(10)).await, 0);
    let mut next = std::collections::HashMap::new();
    for &(key, number) in recorder.seen.lock().iter() {
        let expected = next.entry(key).or_insert(0);
        assert_eq!(number, *expected, "key {key}");
        *expected += 1;
    }
    assert_eq!(next.len(), 40);
    assert!(next.values().all(|&count| count == 2_000));
    let stats = pool.stats();
    assert_eq!((stats.done, stats.rejected, stats.queued), (80_000, 0, 0));
    assert!(stats.latency.count > 1_000);
}

#[tokio::test]
async fn a_full_queue_is_a_counted_outcome() {
    let config = WorkersConfig { workers: 1, queue: 4, wait: Duration::from_millis(50), ..WorkersConfig::default() };
    let pool = Workers::start(config);
    let (recorder, work) = recorder();
    recorder.hold.store(true, Ordering::Relaxed);
    pool.submit(1, &work, Order::Hold).await.unwrap();
    until("the worker is busy", || pool.stats().queued == 0).await;
    for number in 0..4 {
        pool.try_submit(1, &work, Order::Note(number)).unwrap();
    }
    let back = pool.try_submit(1, &work, Order::Note(4)).unwrap_err();
    assert!(matches!(back, Rejected { message: Order::Note(4), reason: Reason::Full }));
    let started = Instant::now();
    assert_eq!(pool.submit(1, &work, Order::Note(4)).await.unwrap_err().reason, Reason::Full);
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(pool.stats().rejected, 2);
    let waiting = pool.submit(1, &work, Order::Note(4));
    recorder.hold.store(false, Ordering::Relaxed);
    waiting.await.expect("room is made while it waits");
    assert_eq!(pool.stop(Duration::from_secs(5)).await, 0);
    assert_eq!(recorder.seen.lock().as_slice(), (0..5).map(|number| (1, number)).collect::<Vec<_>>());
    assert_eq!(pool.submit(1, &work, Order::Note(9)).await.unwrap_err().reason, Reason::Stopped);
}

#[tokio::test]
async fn a_panic_and_a_deadline_cost_their_message_only() {
    let config = WorkersConfig { workers: 1, deadline: Duration::from_millis(100), ..WorkersConfig::default() };
    let pool = Workers::start(config);
    let (recorder, work) = recorder();
    for order in [Order::Panic, Order::PanicLater, Order::Note(1), Order::Hang] {
        pool.try_submit(7, &work, order).unwrap();
    }
    until("the hanging one expires", || pool.stats().expired == 1).await;
    pool.try_submit(7, &work, Order::Note(2)).unwrap();
    until("the next one is done", || pool.stats().done == 2).await;
    assert_eq!(recorder.seen.lock().as_slice(), [(7, 1), (7, 2)]);
    assert_eq!(pool.stats().panicked, 2);
    assert_eq!(recorder.losses.lock().as_slice(), [(7, Loss::Panicked), (7, Loss::Panicked), (7, Loss::Expired)]);
}

#[tokio::test]
async fn a_message_that_waited_past_its_deadline_is_not_started() {
    let config = WorkersConfig { workers: 1, deadline: Duration::from_millis(60), ..WorkersConfig::default() };
    let pool = Workers::start(config);
    let (recorder, work) = recorder();
    pool.try_submit(1, &work, Order::Hang).unwrap();
    pool.try_submit(1, &work, Order::Note(1)).unwrap();
    until("both expire", || pool.stats().expired == 2).await;
    assert!(recorder.seen.lock().is_empty());
}

#[tokio::test]
async fn stopping_ends_every_task_in_time() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let pool = Workers::start(WorkersConfig { workers: 8, ..WorkersConfig::default() });
    let (recorder, work) = recorder();
    pool.try_submit(1, &work, Order::Hang).unwrap();
    pool.try_submit(1, &work, Order::Note(1)).unwrap();
    until("the worker hangs", || pool.stats().queued == 1).await;
    assert_eq!(pool.stop(Duration::from_millis(50)).await, 2);
    assert_eq!(tasks(), before);
    assert_eq!(recorder.losses.lock().as_slice(), [(1, Loss::Stopped)]);
    assert_eq!(pool.stats().abandoned, 2);
}
