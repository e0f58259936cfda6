//! Sending: which append of a channel goes next, and how.

use std::fmt::Write;
use std::sync::Arc;
use std::task::Poll;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::{ATTEMPT_TIMEOUT, Lane, Resolved};
use crate::log::ack;
use crate::log::line::{Op, State};
use crate::log::shard::Current;

/// What becomes of the append whose turn it is.
enum Turn {
    Send,
    /// It may not be sent again.
    Over,
    /// Whether "never published" can be believed comes first.
    Check,
    /// The stream went back: until the shard is another one nothing is sent.
    Hold,
}

fn turn(op: &mut Op, current: &Arc<Current>, late: bool) -> Turn {
    if op.overtaken_by.is_some() {
        return Turn::Over;
    }
    if current.has_gone_back() && !late {
        return Turn::Hold;
    }
    // What no stream can have, and stands under no condition, may as well go to the new one.
    if !op.maybe_stored && op.request.expected.is_none() {
        op.stream = None;
    }
    let elsewhere = !Arc::ptr_eq(op.stream.get_or_insert_with(|| current.clone()), current);
    if elsewhere || late {
        return Turn::Over;
    }
    let believed = op.checked;
    #[cfg(test)]
    let believed = believed || crate::log::faults::Faults::on(&op.request.shard.faults.believe_empty);
    if op.request.expected == Some(0) && !believed { Turn::Check } else { Turn::Send }
}

impl Lane {
    /// Sends what the line may send now.
    pub(super) async fn pump(&mut self, at: usize) {
        loop {
            let room = self.room() > 0;
            let Some(line) = self.lines.get(at) else { return };
            if line.is_empty() {
                self.lines.remove(at);
                return;
            }
            let Some(place) = line.next(self.now) else { return };
            if !room {
                if !std::mem::replace(&mut line.starved, true) {
                    self.starved.push_back(at);
                }
                return;
            }
            let Some(op) = line.get(place) else { return };
            // In this order: what an incarnation has seen is below everything of the next.
            let floor = op.request.shard.seen();
            let current = op.request.shard.current();
            // After a long sleep of this process the caller has been told that nobody knows.
            let late = self.now.saturating_duration_since(op.request.called) > self.patience;
            match turn(op, &current, late) {
                Turn::Hold => return,
                Turn::Over => {
                    let after = line.last_acknowledged;
                    if let Some(op) = line.remove(place) {
                        self.give_up(op, after);
                    }
                }
                Turn::Check => {
                    let (number, links) = (op.number, self.links.clone());
                    let (shard, subject) = (op.request.shard.clone(), op.request.subject.clone());
                    line.change(place, State::Checking);
                    let lookup = async move {
                        let front = ack::front_of_empty(&links.any(), &shard, &current, &subject).await;
                        Resolved::Checked { line: at, number, front }
                    };
                    self.lookups.push(lookup.boxed());
                    return;
                }
                Turn::Send => {
                    op.attempts += 1;
                    op.floors = (if op.attempts == 1 { floor } else { op.floors.0 }, floor);
                    line.change(place, State::InFlight(self.now));
                    self.in_flight += 1;
                    self.contact.sent(self.now);
                    self.send(at, place, &current).await;
                }
            }
        }
    }

    async fn send(&mut self, at: usize, place: usize, current: &Arc<Current>) {
        let Some(op) = self.lines.get(at).and_then(|line| line.get(place)) else { return };
        let (number, subject, payload) = (op.number, op.request.subject.clone(), op.request.payload.clone());
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, op.request.id.as_str());
        headers.insert(NATS_EXPECTED_STREAM, current.stream.as_str());
        if let Some(expected) = op.request.expected {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        }
        // Where the answer belongs stands in its subject.
        let mut reply = String::with_capacity(self.inbox.len() + 32);
        let _ = write!(reply, "{}.{at}-{number}-{}", self.inbox, op.attempts);
        #[cfg(test)]
        let subject = match crate::log::faults::Faults::take(&op.request.shard.faults.misroute) {
            true => "nobody.listens.here".into(),
            false => subject,
        };
        // The queue of a connection that is away fills up; what did not get in was certainly not stored.
        let sent = self.connected && {
            let publish = self.client.publish_with_reply_and_headers(subject, reply, headers, payload);
            let mut publish = std::pin::pin!(publish);
            match std::future::poll_fn(|context| Poll::Ready(publish.as_mut().poll(context))).await {
                Poll::Ready(sent) => sent.is_ok(),
                Poll::Pending => {
                    let sent = timeout(ATTEMPT_TIMEOUT, publish).await;
                    self.now = Instant::now();
                    matches!(sent, Ok(Ok(())))
                }
            }
        };
        if !sent {
            self.failed(at, number, "the connection to NATS takes nothing".into(), false);
        }
    }
}
