//! Nanoseconds and allocations per message of the keyed worker pool, as one line of JSON. A program of its own, because
//! it brings a counting allocator.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plenum_bus_nats::workers::{Step, Work, Workers, WorkersConfig};

const MESSAGES: u64 = 4_000_000;
const BURST: u64 = 10_000;

#[derive(Default)]
struct Count(AtomicU64);

impl Work<[u64; 4]> for Count {
    fn run(self: Arc<Self>, _: u64, message: [u64; 4]) -> Step {
        self.0.fetch_add(message[0], Ordering::Relaxed);
        Step::Done
    }
}

async fn burst(pool: &Workers<[u64; 4]>, work: &Arc<dyn Work<[u64; 4]>>, count: &Count) {
    let before = count.0.load(Ordering::Relaxed);
    for key in 0..BURST {
        // Full queues are not what is measured here.
        while pool.try_submit(key, work, [1, key, 0, 0]).is_err() {
            tokio::task::yield_now().await;
        }
    }
    while count.0.load(Ordering::Relaxed) < before + BURST {
        tokio::task::yield_now().await;
    }
}

fn main() -> std::io::Result<()> {
    // One thread: the counter counts per thread, and sees submitter and workers.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let count = Arc::new(Count::default());
    let work: Arc<dyn Work<[u64; 4]>> = count.clone();
    let pool = runtime.block_on(async { Workers::start(WorkersConfig::default()) });
    // The first messages make the queues.
    runtime.block_on(burst(&pool, &work, &count));
    let started = Instant::now();
    let used = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..MESSAGES / BURST {
                burst(&pool, &work, &count).await;
            }
        });
    });
    let ns = started.elapsed().as_nanos() as f64 / MESSAGES as f64;
    let allocations = used.count_total;
    println!(r#"{{"messages":{MESSAGES},"ns":{ns:.1},"allocations":{allocations}}}"#);
    Ok(())
}
