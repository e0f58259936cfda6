//! What runs beside the reader: messages that are kept from other processes, and how much is left.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;

use super::{LOOK, ProcessInOrder, Reader};

/// Until JetStream is told again that messages are wanted, when it did not answer: its leader may be gone.
const KEEP_AGAIN: Duration = Duration::from_millis(500);

/// Tells JetStream that what was taken is still wanted, until it answers that it knows.
pub(super) async fn keep<P: ProcessInOrder>(reader: Reader<P>) {
    let pause = reader.config.ack_wait / 3;
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = reader.over() => return,
            () = tokio::time::sleep_until(next.into()) => {}
        }
        next = Instant::now() + pause;
        if reader.unsettled.lose_overdue() {
            continue;
        }
        let at = Instant::now();
        if reader.prolong(pause).await {
            reader.unsettled.kept(at);
        } else {
            next = Instant::now() + KEEP_AGAIN.min(pause);
        }
    }
}

/// Asks how much is left in the stream.
pub(super) async fn look<P: ProcessInOrder>(reader: Reader<P>) {
    loop {
        tokio::select! {
            () = reader.over() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if let Some(info) = reader.info().await {
            reader.running.set_remaining(info.num_pending);
            reader.unsettled.confirm(info.created.unix_timestamp_nanos(), info.ack_floor.stream_sequence);
        }
    }
}

impl<P: ProcessInOrder> Reader<P> {
    /// Prolongs the time of all messages; whether JetStream has answered, which it does in their order.
    async fn prolong(&self, patience: Duration) -> bool {
        let progress = || Bytes::from(jetstream::AckKind::Progress);
        let mut acks = self.unsettled.acks();
        let Some(last) = acks.pop() else { return self.flow.contact().is_some() };
        for ack in acks {
            if self.flow.client.publish(ack, progress()).await.is_err() {
                return false;
            }
        }
        let asked = tokio::time::timeout(patience, self.flow.client.request(last, progress()));
        asked.await.is_ok_and(|answer| answer.is_ok())
    }
}
