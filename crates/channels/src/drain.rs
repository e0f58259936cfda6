//! Drain: connections are asked to move at a steady pace, so that a deploy floods nobody.

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::Disconnect;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::outbox::Mail;
use crate::{Node, Outbox};

/// How often connections are asked to move; each time as many as the pace wants.
const STEP: Duration = Duration::from_millis(100);
/// How often the log says how far the drain is.
const REPORT: Duration = Duration::from_secs(5);

impl Node {
    /// Refuses new connections at once and asks those that are open to move, evenly over `time`, each after its commands
    /// under way have been answered and its queue was written. Returns when none is left or the time is over; what came
    /// in while the drain began is asked at its end.
    ///
    /// Cancel safe: dropping the future stops asking; whoever was asked moves all the same.
    pub async fn drain(&self, time: Duration) {
        self.stop_accepting();
        let mut staying: Vec<Arc<Outbox>> = Vec::new();
        self.registry.for_each(|outbox| staying.push(outbox.clone()));
        let (all, begin) = (staying.len(), Instant::now());
        tracing::info!(connections = all, ?time, "draining");
        let mut steps = interval(STEP);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported = begin;
        loop {
            let elapsed = begin.elapsed();
            let left = self.registry.len();
            self.metrics.draining_connections.set(left as i64);
            if left == 0 || elapsed >= time {
                break;
            }
            let keep = due_to_stay(all, elapsed, time);
            for outbox in staying.drain(keep.min(staying.len())..) {
                outbox.mail(Mail::Move);
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                tracing::info!(left, of = all, elapsed = ?elapsed, "draining");
            }
            steps.tick().await;
        }
        self.registry.for_each(|outbox| outbox.mail(Mail::Move));
        tracing::info!(left = self.registry.len(), of = all, elapsed = ?begin.elapsed(), "drained");
    }

    /// Closes every connection with 3001 at once, so that clients come back elsewhere, and waits at most `grace` for the
    /// last to end. Returns how many were left.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        self.stop_accepting();
        let deadline = Instant::now() + grace;
        self.registry.for_each(|outbox| outbox.close(Disconnect::SHUTDOWN));
        while self.registry.len() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.finish_leaves(deadline).await;
        if let Err(error) = self.presence.resign().await {
            tracing::warn!(%error, "the presence lease was not given up: it ends by itself");
        }
        self.registry.len()
    }
}

/// How many of `all` connections need not have been asked yet. The last is asked at 95 % of the time, so that it can go.
fn due_to_stay(all: usize, elapsed: Duration, time: Duration) -> usize {
    let share = elapsed.as_secs_f64() / (time.as_secs_f64() * 0.95);
    all - ((all as f64 * share).ceil() as usize).min(all)
}

#[cfg(test)]
mod tests {
    use super::due_to_stay;
    use std::time::Duration;

    #[test]
    fn the_pace_is_steady_and_ends_before_the_time() {
        let (all, time) = (1000, Duration::from_secs(60));
        let mut stay = all;
        let mut most = 0;
        for step in 0..600 {
            let now = due_to_stay(all, Duration::from_millis(step * 100), time);
            most = most.max(stay - now);
            stay = now;
        }
        assert_eq!(stay, 0);
        assert!(most <= 2, "{most} were asked in one step of 0.1 s, 1.75 on average");
        assert_eq!(due_to_stay(all, Duration::from_secs(57), time), 0, "nobody is asked when there is no time to go");
        assert_eq!(due_to_stay(0, Duration::ZERO, time), 0);
    }
}
