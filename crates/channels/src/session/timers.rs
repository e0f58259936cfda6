//! Pings, and the ends of connections and subscriptions. One wheel entry a connection is pending at a time; an entry
//! that comes too early finds nothing due and costs one look.

use std::sync::Arc;

use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{Disconnect, Reply};

use super::connect::PATIENCE;
use super::{Phase, Session, frame};
use crate::Node;
use crate::node::unix_now;
use crate::wheel::TICK;

/// Ticks in a second.
const TICKS: u32 = (1000 / TICK.as_millis()) as u32;

/// A connection's heartbeat, in ticks of the node's wheel.
#[derive(Debug)]
pub(super) struct Beat {
    /// When something is to be done next: the stale check, a ping, or judging the last one.
    pub(super) due: u32,
    /// The earliest wheel entry that is pending.
    scheduled: u32,
    /// When the next ping is to be sent.
    next_ping: u32,
    /// How often it pings: what the client was told, whatever a reload says since.
    interval: u32,
    /// A ping is out and nothing has come since.
    waiting: bool,
    missed: u8,
    /// Second in which `frames` frames came.
    second: u32,
    frames: u32,
}

impl Beat {
    /// The heartbeat of a connection that is not authenticated: it must be by then.
    pub(super) fn stale_after(node: &Arc<Node>) -> Self {
        let due = node.wheel.after(node.settings().client.stale_close_delay);
        Self { due, scheduled: due, next_ping: 0, interval: 0, waiting: false, missed: 0, second: 0, frames: 0 }
    }

    /// Counts a frame; any frame is a sign of life. False when too many came this second.
    pub(super) fn frame(&mut self, node: &Arc<Node>) -> bool {
        self.waiting = false;
        self.missed = 0;
        let max = node.settings().client.max_frames_per_second;
        if max == 0 {
            return true;
        }
        let second = node.wheel.now() / TICKS;
        if self.second != second {
            self.second = second;
            self.frames = 0;
        }
        self.frames += 1;
        self.frames <= max
    }
}

impl Session {
    /// A timer fired or mail arrived: does what is due. [`Session::poll`] follows.
    pub fn on_timer(&mut self) {
        self.read_mail();
        let now = self.node.wheel.now();
        if now >= self.beat.scheduled {
            self.beat.scheduled = u32::MAX;
        }
        if self.leaving {
            self.settle();
        }
        if self.outbox.is_closing() {
            return;
        }
        if !matches!(self.phase, Phase::Connected(_)) {
            if now >= self.beat.due && matches!(self.phase, Phase::Connecting) {
                // It has done its part; stale would end it for good, and what it waits for ends by then.
                self.beat.due = self.node.wheel.after(PATIENCE).saturating_add(1);
            }
            if now >= self.beat.due {
                self.close(Disconnect::STALE);
            } else {
                self.schedule();
            }
            return;
        }
        if now >= self.beat.due && !self.on_beat(now) {
            return self.close(Disconnect::NO_PONG);
        }
        self.end_expired();
        self.settle();
        self.schedule();
    }

    /// The first ping of a connected client is due after the interval.
    pub(super) fn start_beat(&mut self) {
        let settings = self.node.settings();
        self.beat.interval = (settings.client.ping_interval.as_millis() / TICK.as_millis()) as u32;
        self.ping_at(self.node.wheel.after(settings.client.ping_interval));
    }

    /// Pings soon: the answer shows that the client has got what was sent before.
    pub(super) fn ask_for_a_sign(&mut self) {
        self.ping_at(self.node.wheel.after(TICK));
    }

    fn ping_at(&mut self, tick: u32) {
        (self.beat.next_ping, self.beat.due) = (tick, tick);
        self.schedule();
    }

    /// Sends the next ping or judges the last. False when too many were missed.
    fn on_beat(&mut self, now: u32) -> bool {
        let settings = self.node.settings();
        if self.beat.waiting {
            self.beat.waiting = false;
            self.beat.missed = self.beat.missed.saturating_add(1);
            self.node.metrics.missed_pongs.inc();
            if u32::from(self.beat.missed) >= settings.client.missed_pongs {
                return false;
            }
        }
        if now < self.beat.next_ping {
            self.beat.due = self.beat.next_ping;
            return true;
        }
        if let Some(ping) = frame(&self.outbox, &Reply::Ping) {
            self.outbox.push(ping);
        }
        self.beat.waiting = true;
        self.beat.next_ping = now.saturating_add(self.beat.interval);
        self.beat.due = self.node.wheel.after(settings.client.pong_timeout);
        true
    }

    fn end_expired(&mut self) {
        let Phase::Connected(connected) = &self.phase else { return };
        let settings = self.node.settings();
        let now = unix_now();
        let over = |expire_at: u64, grace: std::time::Duration| expire_at > 0 && now >= expire_at + grace.as_secs();
        if over(connected.expire_at, settings.client.expired_close_delay) {
            return self.close(Disconnect::EXPIRED);
        }
        let grace = settings.client.expired_sub_close_delay;
        let expired: Vec<_> = connected
            .subscriptions
            .iter()
            .filter(|subscription| over(subscription.expire_at, grace))
            .map(|subscription| (subscription.channel().clone(), subscription.server_side))
            .collect();
        for (channel, server_side) in expired {
            if server_side {
                return self.close(Disconnect::SUBSCRIPTION_EXPIRED);
            }
            self.end_subscription(&channel, &Unsubscribed::EXPIRED);
        }
    }

    /// Makes sure that the wheel calls in time for whatever comes first.
    pub(super) fn schedule(&mut self) {
        let wheel = &self.node.wheel;
        let mut due = self.beat.due;
        if let Phase::Connected(connected) = &self.phase {
            let settings = self.node.settings();
            let now = unix_now();
            let mut consider = |expire_at: u64, grace: std::time::Duration| {
                if expire_at > 0 {
                    let seconds = (expire_at + grace.as_secs()).saturating_sub(now);
                    due = due.min(wheel.after(std::time::Duration::from_secs(seconds)));
                }
            };
            consider(connected.expire_at, settings.client.expired_close_delay);
            for subscription in connected.subscriptions.iter() {
                consider(subscription.expire_at, settings.client.expired_sub_close_delay);
            }
        }
        if due < self.beat.scheduled {
            self.beat.scheduled = due;
            wheel.schedule(due, &self.outbox);
        }
    }
}
