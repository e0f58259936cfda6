//! The keyed worker pool allocates nothing per message. A binary of its own, because it brings a counting allocator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plenum_bus_nats::workers::{Step, Work, Workers, WorkersConfig};

#[derive(Default)]
struct Count(AtomicU64);

impl Work<[u64; 4]> for Count {
    fn run(self: Arc<Self>, _: u64, message: [u64; 4]) -> Step {
        self.0.fetch_add(message[0], Ordering::Relaxed);
        Step::Done
    }
}

const BURST: u64 = 1_000;

async fn burst(pool: &Workers<[u64; 4]>, work: &Arc<dyn Work<[u64; 4]>>, count: &Count) {
    let before = count.0.load(Ordering::Relaxed);
    for key in 0..BURST {
        if key % 2 == 0 {
            pool.try_submit(key, work, [1, key, 0, 0]).expect("there is room");
        } else {
            pool.submit(key, work, [1, key, 0, 0]).await.expect("there is room");
        }
    }
    while count.0.load(Ordering::Relaxed) < before + BURST {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_message_costs_no_allocation() {
    // One thread, so that the counter, which counts per thread, sees submitter and workers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let count = Arc::new(Count::default());
    let work: Arc<dyn Work<[u64; 4]>> = count.clone();
    let pool = runtime.block_on(async { Workers::start(WorkersConfig::default()) });
    // The first messages make the queues, and grow the runtime's own lists.
    runtime.block_on(async {
        for _ in 0..3 {
            burst(&pool, &work, &count).await;
        }
    });
    // What the runtime itself takes for one visit.
    let visit = allocation_counter::measure(|| runtime.block_on(tokio::task::yield_now()));
    let used = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..100 {
                burst(&pool, &work, &count).await;
            }
        });
    });
    assert_eq!(used.count_total, visit.count_total, "{used:?} for {} messages", 100 * BURST);
    assert_eq!(count.0.load(Ordering::Relaxed), 103 * BURST);
    runtime.block_on(pool.stop(Duration::from_secs(1)));
}
