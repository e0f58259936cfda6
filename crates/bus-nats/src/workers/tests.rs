use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, Weak};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use super::*;

/// A loaded machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records what it saw per key; does what the message says, on the terms it has.
#[derive(Default)]
struct Recorder {
    terms: Mutex<Terms>,
    seen: Mutex<Vec<(u64, u64)>>,
    losses: Mutex<Vec<(u64, Loss)>>,
    hold: AtomicBool,
    released: Notify,
    done: AtomicU64,
    pool: OnceLock<Weak<Workers<Order>>>,
}

#[derive(Debug)]
enum Order {
    Note(u64),
    Panic,
    PanicLater,
    Hang,
    /// Waits until it is let go, and then notes the number.
    Hold(u64),
    /// Waits for this many turns of the runtime, and then notes the number.
    Yield(u64, u32),
    /// Submits itself again for as long as the others are held.
    Again,
    /// Keeps its thread for so long after a turn.
    Block(Duration),
}

impl Work<Order> for Recorder {
    fn run(self: Arc<Self>, key: u64, message: Order) -> Step {
        match message {
            Order::Note(number) => self.note(key, number),
            Order::Panic => panic!("as told"),
            Order::PanicLater => {
                return Step::Later(Box::pin(async {
                    tokio::task::yield_now().await;
                    panic!("as told, later");
                }));
            }
            Order::Hang => return Step::Later(Box::pin(std::future::pending())),
            Order::Hold(number) => {
                return Step::Later(Box::pin(async move {
                    while self.hold.load(Ordering::SeqCst) {
                        let mut released = std::pin::pin!(self.released.notified());
                        released.as_mut().enable();
                        if self.hold.load(Ordering::SeqCst) {
                            released.await;
                        }
                    }
                    self.note(key, number);
                }));
            }
            Order::Yield(number, turns) => {
                return Step::Later(Box::pin(async move {
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    self.note(key, number);
                }));
            }
            Order::Again => {
                let pool = self.pool.get().and_then(Weak::upgrade);
                if let Some(pool) = pool.filter(|_| self.hold.load(Ordering::SeqCst)) {
                    let work: Arc<dyn Work<Order>> = self.clone();
                    pool.try_submit(key, &work, Order::Again).unwrap();
                }
            }
            Order::Block(time) => {
                return Step::Later(Box::pin(async move {
                    tokio::task::yield_now().await;
                    std::thread::sleep(time);
                }));
            }
        }
        Step::Done
    }

    fn terms(&self) -> Terms {
        *self.terms.lock()
    }

    fn lost(&self, key: u64, loss: Loss) {
        self.losses.lock().push((key, loss));
    }
}

impl Recorder {
    fn note(&self, key: u64, number: u64) {
        self.seen.lock().push((key, number));
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self) {
        self.hold.store(false, Ordering::SeqCst);
        self.released.notify_waiters();
    }

    fn of(&self, key: u64) -> Vec<u64> {
        self.seen.lock().iter().filter(|(one, _)| *one == key).map(|(_, number)| *number).collect()
    }
}

fn recorder(terms: Terms) -> (Arc<Recorder>, Arc<dyn Work<Order>>) {
    let recorder = Arc::new(Recorder { terms: Mutex::new(terms), ..Recorder::default() });
    (recorder.clone(), recorder)
}

/// Work that is done at once.
fn immediate() -> (Arc<Recorder>, Arc<dyn Work<Order>>) {
    recorder(Terms { deadline: None, waits: false })
}

/// Work that waits, as long as it takes.
fn waiting() -> (Arc<Recorder>, Arc<dyn Work<Order>>) {
    recorder(Terms { deadline: None, waits: true })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect(what);
}

fn one_worker(queue: usize) -> Arc<Workers<Order>> {
    Workers::start(WorkersConfig { workers: 1, queue, wait: Duration::from_millis(50) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_within_a_key_holds_under_load() {
    let pool = Workers::start(WorkersConfig { workers: 16, queue: 32, wait: PATIENCE });
    let (recorder, work) = immediate();
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
    assert_eq!(pool.stop(PATIENCE).await, 0);
    let mut next = HashMap::new();
    for &(key, number) in recorder.seen.lock().iter() {
        let expected = next.entry(key).or_insert(0);
        assert_eq!(number, *expected, "key {key}");
        *expected += 1;
    }
    assert_eq!(next.len(), 40);
    assert!(next.values().all(|&count| count == 2_000));
    let stats = pool.stats();
    assert_eq!((stats.done, stats.rejected, stats.queued, stats.waiting), (80_000, 0, 0, 0));
    assert!(stats.latency.count > 1_000 && stats.waited.count == 0);
}

/// Keys of work that waits, of whose messages some are done at once, some later and some never, among messages of work
/// that does not, on few workers with little room.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_within_a_key_holds_whatever_waits() {
    for seed in 0..8u64 {
        let pool = Workers::start(WorkersConfig { workers: 3, queue: 16, wait: PATIENCE });
        let ((slow, slow_work), (fast, fast_work)) = (waiting(), immediate());
        let submitters: Vec<_> = (0..6u64)
            .map(|key| {
                let (pool, slow, fast) = (pool.clone(), slow_work.clone(), fast_work.clone());
                let mut random = StdRng::seed_from_u64(seed * 100 + key);
                tokio::spawn(async move {
                    for number in 0..1_000u64 {
                        let order = match random.random_range(0..20) {
                            0..9 => Order::Note(number),
                            9..18 => Order::Yield(number, random.random_range(0..20)),
                            18 => Order::Panic,
                            _ => Order::PanicLater,
                        };
                        pool.submit(key, &slow, order).await.unwrap();
                        // The same number of other work is another key.
                        pool.submit(key, &fast, Order::Note(number)).await.unwrap();
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.await.unwrap();
        }
        assert_eq!(pool.stop(PATIENCE).await, 0, "seed {seed}");
        for key in 0..6 {
            assert_eq!(fast.of(key), (0..1_000).collect::<Vec<_>>(), "seed {seed}, key {key}");
            assert!(slow.of(key).is_sorted_by(|one, next| one < next), "seed {seed}, key {key}");
        }
        let stats = pool.stats();
        let panicked = slow.losses.lock().len() as u64;
        assert_eq!((stats.done, stats.panicked), (12_000 - panicked, panicked), "seed {seed}");
        assert_eq!(slow.done.load(Ordering::Relaxed), 6_000 - panicked, "seed {seed}");
        assert_eq!((stats.waiting, stats.queued, stats.waited.count), (0, 0, 6_000 - panicked), "seed {seed}");
    }
}

#[tokio::test]
async fn a_key_that_waits_holds_up_only_itself() {
    let pool = one_worker(100);
    let ((slow, slow_work), (fast, fast_work)) = (waiting(), immediate());
    slow.hold.store(true, Ordering::SeqCst);
    for key in [1, 2] {
        pool.try_submit(key, &slow_work, Order::Hold(1)).unwrap();
        pool.try_submit(key, &slow_work, Order::Note(2)).unwrap();
    }
    // Another key, and the same one of other work.
    pool.try_submit(3, &slow_work, Order::Note(1)).unwrap();
    pool.try_submit(1, &fast_work, Order::Note(1)).unwrap();
    until("the others are done", || fast.of(1) == [1] && slow.of(3) == [1]).await;
    assert_eq!(slow.seen.lock().as_slice(), [(3, 1)]);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.waiting, stats.most_waiting, stats.done), (0, 4, 4, 2));
    slow.release();
    until("what waited is done", || pool.stats().done == 6).await;
    assert_eq!((slow.of(1), slow.of(2)), (vec![1, 2], vec![1, 2]));
    assert_eq!(pool.stop(PATIENCE).await, 0);
    assert_eq!(pool.stats().waited.count, 5);
}

#[tokio::test]
async fn a_full_queue_is_a_counted_outcome() {
    let pool = one_worker(4);
    let (recorder, work) = immediate();
    recorder.hold.store(true, Ordering::SeqCst);
    // It waits without having said so: its worker takes nothing meanwhile.
    pool.submit(1, &work, Order::Hold(9)).await.unwrap();
    until("the worker is busy", || pool.stats().queued == 0).await;
    for number in 0..4 {
        pool.try_submit(2, &work, Order::Note(number)).unwrap();
    }
    let back = pool.try_submit(2, &work, Order::Note(4)).unwrap_err();
    assert!(matches!(back, Rejected { message: Order::Note(4), reason: Reason::Full }));
    let started = Instant::now();
    assert_eq!(pool.submit(2, &work, Order::Note(4)).await.unwrap_err().reason, Reason::Full);
    assert!(started.elapsed() >= Duration::from_millis(50));
    assert_eq!(pool.stats().rejected, 2);
    let waiting = pool.submit(2, &work, Order::Note(4));
    recorder.release();
    waiting.await.expect("room is made while it waits");
    assert_eq!(pool.stop(PATIENCE).await, 0);
    assert_eq!(recorder.seen.lock()[0], (1, 9));
    assert_eq!(recorder.of(2), [0, 1, 2, 3, 4]);
    assert_eq!(pool.submit(1, &work, Order::Note(9)).await.unwrap_err().reason, Reason::Stopped);
}

#[tokio::test]
async fn keys_that_wait_fill_their_places_and_leave_room_for_what_is_done_at_once() {
    let pool = one_worker(4);
    let ((slow, slow_work), (fast, fast_work)) = (waiting(), immediate());
    slow.hold.store(true, Ordering::SeqCst);
    for number in 0..4 {
        pool.try_submit(number % 2, &slow_work, Order::Hold(number)).unwrap();
    }
    until("the worker has them", || pool.stats().queued == 0).await;
    let back = pool.try_submit(2, &slow_work, Order::Note(4)).unwrap_err();
    assert!(matches!(back, Rejected { message: Order::Note(4), reason: Reason::Full }));
    let started = Instant::now();
    assert_eq!(pool.submit(1, &slow_work, Order::Note(4)).await.unwrap_err().reason, Reason::Full);
    assert!(started.elapsed() >= Duration::from_millis(50));
    // More than the worker has places.
    for number in 0..20 {
        pool.submit(1, &fast_work, Order::Note(number)).await.unwrap();
    }
    until("they are done", || fast.of(1) == (0..20).collect::<Vec<_>>()).await;
    let stats = pool.stats();
    assert_eq!((stats.rejected, stats.waiting, stats.most_waiting, stats.queue_bound), (2, 4, 4, 4));
    let waiting = tokio::spawn({
        let (pool, work) = (pool.clone(), slow_work.clone());
        async move { while pool.submit(1, &work, Order::Note(4)).await.is_err() {} }
    });
    tokio::task::yield_now().await;
    slow.release();
    tokio::time::timeout(PATIENCE, waiting).await.expect("a place becomes free while it waits").unwrap();
    assert_eq!(pool.stop(PATIENCE).await, 0);
    assert_eq!((slow.of(0), slow.of(1)), (vec![0, 2], vec![1, 3, 4]));
    assert_eq!(pool.stats().waiting, 0);
}

/// Of work that waits and of work that does not: what is lost is told, and the next ones are done.
#[tokio::test]
async fn a_panic_and_a_deadline_cost_their_message_only() {
    for waits in [false, true] {
        let pool = one_worker(100);
        let (recorder, work) = recorder(Terms { deadline: None, waits });
        for order in [Order::Panic, Order::PanicLater, Order::Note(1)] {
            pool.try_submit(7, &work, order).unwrap();
        }
        recorder.terms.lock().deadline = Some(Duration::from_millis(100));
        pool.try_submit(7, &work, Order::Hang).unwrap();
        recorder.terms.lock().deadline = None;
        until("the hanging one expires", || pool.stats().expired == 1).await;
        pool.try_submit(7, &work, Order::Note(2)).unwrap();
        until("the next one is done", || pool.stats().done == 2).await;
        assert_eq!(recorder.of(7), [1, 2]);
        assert_eq!(pool.stats().panicked, 2);
        assert_eq!(recorder.losses.lock().as_slice(), [(7, Loss::Panicked), (7, Loss::Panicked), (7, Loss::Expired)]);
        assert_eq!(pool.stop(PATIENCE).await, 0);
        assert_eq!(pool.stats().waiting, 0);
    }
}

#[tokio::test]
async fn a_message_that_waited_past_its_deadline_is_not_started() {
    for waits in [false, true] {
        let pool = one_worker(100);
        let (recorder, work) = recorder(Terms { deadline: Some(Duration::from_millis(60)), waits });
        pool.try_submit(1, &work, Order::Hang).unwrap();
        pool.try_submit(1, &work, Order::Note(1)).unwrap();
        until("both expire", || pool.stats().expired == 2).await;
        assert!(recorder.seen.lock().is_empty());
        assert_eq!(recorder.losses.lock().len(), 2);
    }
}

/// Also while the queue is never empty; and what kept its worker past its deadline is done all the same, and counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_hold_beside_a_flood() {
    let pool = one_worker(100);
    let (recorder, work) = recorder(Terms { deadline: Some(Duration::from_millis(200)), waits: true });
    let (_, flood) = immediate();
    pool.try_submit(1, &work, Order::Hang).unwrap();
    let started = Instant::now();
    while pool.stats().expired == 0 {
        assert!(started.elapsed() < PATIENCE, "it never expires");
        let _ = pool.try_submit(2, &flood, Order::Note(0));
    }
    assert_eq!(recorder.losses.lock().as_slice(), [(1, Loss::Expired)]);
    // Where it is not even begun in time it is lost, and tried once more.
    while pool.stats().overran == 0 {
        assert!(started.elapsed() < PATIENCE, "it is never late");
        let settled = pool.stats().expired + pool.stats().overran;
        pool.submit(1, &work, Order::Block(Duration::from_millis(400))).await.unwrap();
        until("it is settled", || pool.stats().expired + pool.stats().overran > settled).await;
    }
    assert_eq!(recorder.losses.lock().len() as u64, pool.stats().expired);
}

/// Messages that never end to come do not keep one that wakes up again and again from its turn.
#[tokio::test]
async fn a_flood_of_one_key_does_not_keep_the_others_from_their_turn() {
    let pool = one_worker(100);
    let (recorder, work) = waiting();
    recorder.pool.set(Arc::downgrade(&pool)).unwrap();
    recorder.hold.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        pool.try_submit(1, &work, Order::Again).unwrap();
    }
    pool.try_submit(2, &work, Order::Yield(7, 100)).unwrap();
    until("its turn comes", || recorder.of(2) == [7]).await;
    recorder.release();
    assert_eq!(pool.stop(PATIENCE).await, 0);
}

#[tokio::test]
async fn stopping_ends_every_task_in_time() {
    for waits in [false, true] {
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let pool = Workers::start(WorkersConfig { workers: 8, ..WorkersConfig::default() });
        let (recorder, work) = recorder(Terms { deadline: None, waits });
        pool.try_submit(1, &work, Order::Hang).unwrap();
        pool.try_submit(1, &work, Order::Note(1)).unwrap();
        until("the worker hangs", || pool.stats().queued == usize::from(!waits)).await;
        assert_eq!(pool.stop(Duration::from_millis(50)).await, 2);
        assert_eq!(tasks(), before);
        assert_eq!(recorder.losses.lock().as_slice(), [(1, Loss::Stopped), (1, Loss::Stopped)]);
        assert_eq!((pool.stats().abandoned, pool.stats().waiting), (2, 0));
        assert_eq!(pool.stop(Duration::from_millis(50)).await, 0);
    }
}

#[tokio::test]
async fn stopping_waits_for_what_is_parked() {
    let pool = one_worker(100);
    let (recorder, work) = waiting();
    recorder.hold.store(true, Ordering::SeqCst);
    for number in 0..10 {
        pool.try_submit(number % 2, &work, Order::Hold(number)).unwrap();
    }
    let stopping = tokio::spawn({
        let pool = pool.clone();
        async move { pool.stop(PATIENCE).await }
    });
    until("it takes nothing more", || {
        pool.try_submit(3, &work, Order::Note(0)).is_err_and(|back| back.reason == Reason::Stopped)
    })
    .await;
    recorder.release();
    assert_eq!(stopping.await.unwrap(), 0);
    assert_eq!((recorder.of(0), recorder.of(1)), (vec![0, 2, 4, 6, 8], vec![1, 3, 5, 7, 9]));
    assert!(recorder.losses.lock().is_empty());
}
