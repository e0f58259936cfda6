//! One worker: takes jobs in order, keeps their deadlines by one coarse clock, survives their panics.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::queue::{Job, Queue};
use super::{Loss, Step, Work};

/// How late the end of a deadline may be noticed while a message waits for something.
const CLOCK: Duration = Duration::from_millis(20);
/// Messages between two looks at the time while the queue is never empty.
const LOOK_EVERY: u32 = 32;
/// Of this many messages one is measured.
const SAMPLE: u32 = 16;

pub(super) async fn run<M: Send + 'static>(queue: Arc<Queue<M>>) {
    let mut now = Instant::now();
    let mut count = 0u32;
    loop {
        let mut waited = false;
        let next = poll_fn(|context| {
            let polled = queue.poll_take(context);
            waited |= polled.is_pending();
            polled
        });
        let Some(job) = next.await else { return };
        count = count.wrapping_add(1);
        if waited || count.is_multiple_of(LOOK_EVERY) {
            now = Instant::now();
        }
        let (submitted, work, key) = (job.submitted, job.work.clone(), job.key);
        queue.at_work.store(true, Ordering::Release);
        let outcome = work_off(&queue, job, &mut now).await;
        queue.at_work.store(false, Ordering::Release);
        match outcome {
            Ok(()) => {
                queue.done.fetch_add(1, Ordering::Relaxed);
                if count.is_multiple_of(SAMPLE) {
                    queue.latency.record(submitted.elapsed());
                }
            }
            Err(loss) => {
                let counter = if loss == Loss::Expired { &queue.expired } else { &queue.panicked };
                counter.fetch_add(1, Ordering::Relaxed);
                tell(&work, key, loss);
            }
        }
        // Leaves the thread to others after a share of messages.
        tokio::task::coop::consume_budget().await;
    }
}

async fn work_off<M: Send + 'static>(queue: &Queue<M>, job: Job<M>, now: &mut Instant) -> Result<(), Loss> {
    let Job { work, message, key, deadline, .. } = job;
    if deadline <= *now {
        return guarded(move || drop(message)).and(Err(Loss::Expired));
    }
    match guarded(|| work.run(key, message))? {
        Step::Done => {}
        Step::Later(future) => {
            let outcome = drive(future, deadline).await;
            *now = Instant::now();
            outcome?;
        }
    }
    if *now >= deadline {
        queue.overran.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Polls the rest of a message's work until it is done, panics, or its deadline is over.
async fn drive(future: Pin<Box<dyn Future<Output = ()> + Send + '_>>, deadline: Instant) -> Result<(), Loss> {
    let mut future = Guarded(Some(future));
    let mut clock = tokio::time::interval_at(tokio::time::Instant::now() + CLOCK, CLOCK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    poll_fn(|context| {
        if let Poll::Ready(outcome) = future.poll(context) {
            return Poll::Ready(outcome);
        }
        while clock.poll_tick(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(Err(Loss::Expired));
            }
        }
        Poll::Pending
    })
    .await
}

/// A future whose panics, also those of its drop, stay inside.
struct Guarded<'a>(Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>);

impl Guarded<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Loss>> {
        let Some(future) = &mut self.0 else { return Poll::Ready(Ok(())) };
        match guarded(|| future.as_mut().poll(context)) {
            Ok(polled) => polled.map(Ok),
            Err(loss) => Poll::Ready(Err(loss)),
        }
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let future = self.0.take();
        // It was counted for what ended it.
        let _ = guarded(move || drop(future));
    }
}

/// A panic inside becomes a loss; what it left half done is its own business, nothing of the pool is.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Loss> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| Loss::Panicked)
}

pub(super) fn tell<M: 'static>(work: &Arc<dyn Work<M>>, key: u64, loss: Loss) {
    if guarded(|| work.lost(key, loss)).is_err() {
        tracing::error!(key, ?loss, "the notice of a lost message panicked");
    }
}
