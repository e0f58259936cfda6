//! One coarse timer wheel for all connections.
//!
//! A `Sleep` per connection would cost memory in each of them and contend for the runtime's timer lock; the ends of
//! pings, pongs and expiries need no precision below [`TICK`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Outbox;

/// Resolution of the wheel.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Slots of the wheel; a longer delay goes round again.
const SLOTS: usize = 512;

/// Fires [`Outbox::fire_timer`] at or after the tick it was scheduled for.
#[derive(Debug)]
pub(crate) struct Wheel {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    slots: Vec<Vec<Timer>>,
    /// The last tick that was processed.
    done: u32,
}

#[derive(Debug)]
struct Timer {
    due: u32,
    outbox: Weak<Outbox>,
}

impl Wheel {
    pub(crate) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { start: Instant::now(), state: Mutex::new(State { slots, done: 0 }) }
    }

    /// Ticks since the wheel was made; 32 bits last 13 years.
    pub(crate) fn now(&self) -> u32 {
        (self.start.elapsed().as_millis() / TICK.as_millis()) as u32
    }

    /// The tick that lies `delay` ahead, rounded up, at least one tick.
    pub(crate) fn after(&self, delay: Duration) -> u32 {
        let ticks = delay.as_millis().div_ceil(TICK.as_millis());
        self.now().saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)).saturating_add(1)
    }

    /// Has the outbox's task attended at tick `due` or soon after.
    pub(crate) fn schedule(&self, due: u32, outbox: &Arc<Outbox>) {
        let mut state = self.state.lock();
        let due = due.max(state.done + 1);
        state.slots[due as usize % SLOTS].push(Timer { due, outbox: Arc::downgrade(outbox) });
    }

    /// Fires everything that is due by now. Called once a [`TICK`] by one task.
    pub(crate) fn advance(&self) {
        let now = self.now();
        let mut fired = Vec::new();
        loop {
            {
                let mut state = self.state.lock();
                if state.done >= now {
                    return;
                }
                let tick = state.done + 1;
                let slot = &mut state.slots[tick as usize % SLOTS];
                fired.extend(slot.extract_if(.., |timer| timer.due <= tick));
                if slot.is_empty() {
                    slot.shrink_to(64);
                }
                state.done = tick;
            }
            for timer in fired.drain(..) {
                if let Some(outbox) = timer.outbox.upgrade() {
                    outbox.fire_timer();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OutboxLimits;
    use plenum_protocol::Encoding;

    fn fired(outbox: &Outbox) -> bool {
        let mut work = crate::Work::default();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = outbox.poll_work(&mut cx, &mut work, 1, 1);
        work.timer
    }

    #[tokio::test(start_paused = true)]
    async fn fires_at_its_tick_and_only_once_also_beyond_one_round() {
        let wheel = Wheel::new();
        let near = Arc::new(Outbox::new(Encoding::Json, OutboxLimits { max_bytes: 1 }));
        let far = Arc::new(Outbox::new(Encoding::Json, OutboxLimits { max_bytes: 1 }));
        wheel.schedule(wheel.after(Duration::from_secs(1)), &near);
        wheel.schedule(wheel.after(TICK * (SLOTS as u32 + 10)), &far);

        tokio::time::advance(Duration::from_millis(900)).await;
        wheel.advance();
        assert!(!fired(&near));
        tokio::time::advance(Duration::from_millis(300)).await;
        wheel.advance();
        assert!(fired(&near));
        assert!(!fired(&near));

        tokio::time::advance(TICK * (SLOTS as u32 - 20)).await;
        wheel.advance();
        assert!(!fired(&far), "one round early");
        tokio::time::advance(TICK * 30).await;
        wheel.advance();
        assert!(fired(&far));
    }
}
