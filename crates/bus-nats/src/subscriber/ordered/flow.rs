//! What a keyed worker does with a part: tries it until it has an outcome, and settles the message after its last part.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::AckKind;
use bytes::Bytes;
use futures_util::FutureExt;
use std::sync::atomic::Ordering;

use super::super::ProcessError;
use super::super::durable::delay;
use super::super::run::{Running, Tried};
use super::unsettled::{Ended, Entry, Part, Unsettled};
use super::{OrderedConfig, ProcessInOrder};
use crate::parcel::Parcel;
use crate::workers::{Step, Terms, Work};

pub(super) struct Flow<P: ProcessInOrder> {
    running: Arc<Running>,
    unsettled: Arc<Unsettled<P::Job>>,
    pub(super) processor: Arc<P>,
    pub(super) client: async_nats::Client,
    tries: u32,
    retry_delay: Duration,
    process_timeout: Duration,
}

impl<P: ProcessInOrder> Work<Parcel> for Flow<P> {
    fn run(self: Arc<Self>, _: u64, part: Parcel) -> Step {
        part.step()
    }

    /// A part waits behind others of its key as long as those are tried: their own time is bounded, not its.
    fn terms(&self) -> Terms {
        Terms { deadline: None, waits: true }
    }
}

impl<P: ProcessInOrder> Flow<P> {
    pub(super) fn new(
        running: Arc<Running>,
        unsettled: Arc<Unsettled<P::Job>>,
        processor: Arc<P>,
        client: async_nats::Client,
        config: &OrderedConfig,
    ) -> Arc<Self> {
        let OrderedConfig { tries, retry_delay, process_timeout, .. } = *config;
        Arc::new(Flow { running, unsettled, processor, client, tries, retry_delay, process_timeout })
    }

    /// Tries a part until it has an outcome, and settles its message if it was the last.
    pub(super) async fn work_off(&self, mut part: Part<P::Job>) {
        let _busy = self.running.busy();
        let ended = match &part.entry.job {
            Err(error) => Ended::Failed(error.to_string()),
            Ok(job) => tokio::select! {
                ended = self.attempts(&part, job) => ended,
                () = self.running.cut.cancelled() => Ended::Abandoned,
            },
        };
        if part.end(ended) {
            self.settle(&part.entry).await;
        }
    }

    /// Tries until there is an outcome. Whatever is later in the order waits.
    async fn attempts(&self, part: &Part<P::Job>, job: &P::Job) -> Ended {
        let mut failed = 0;
        loop {
            if self.running.discarding.is_cancelled() || !self.unsettled.keeps(&part.entry) {
                return Ended::Abandoned;
            }
            if self.unsettled.was_settled(&part.entry) {
                return Ended::Done;
            }
            let contact = self.contact();
            let reason = match self.attempt(part, job).await {
                Ok(()) => return Ended::Done,
                Err(ProcessError::Permanent(reason)) => return Ended::Failed(reason),
                Err(ProcessError::Temporary(reason)) => reason,
            };
            // Without NATS nothing can succeed, which says nothing about this message.
            failed += u32::from(contact.is_some() && contact == self.contact());
            if failed >= self.tries {
                return Ended::Failed(reason);
            }
            tokio::select! {
                () = tokio::time::sleep(delay(self.retry_delay, u64::from(failed))) => {}
                () = self.running.discarding.cancelled() => {}
            }
        }
    }

    async fn attempt(&self, part: &Part<P::Job>, job: &P::Job) -> Result<(), ProcessError> {
        let processing = self.processor.process(&part.entry.message, job, part.index);
        let processing = AssertUnwindSafe(processing).catch_unwind();
        match tokio::time::timeout(self.process_timeout, processing).await {
            Ok(Ok(outcome)) => outcome.inspect_err(|_| self.running.note(Tried::Failed)),
            Ok(Err(_)) => {
                self.running.note(Tried::Panicked);
                Err(ProcessError::Temporary("processing panicked".into()))
            }
            Err(_) => {
                self.running.note(Tried::TimedOut);
                Err(ProcessError::Temporary(format!("processing took longer than {:?}", self.process_timeout)))
            }
        }
    }

    /// Which contact this is, counted from the first.
    pub(super) fn contact(&self) -> Option<u64> {
        let connected = self.client.connection_state() == State::Connected;
        connected.then(|| self.client.statistics().connects.load(Ordering::Relaxed))
    }

    /// Tells JetStream what became of a message.
    async fn settle(&self, entry: &Arc<Entry<P::Job>>) {
        let reasons = entry.reasons();
        let answer = if reasons.is_empty() {
            self.running.note_processed(entry.arrived);
            AckKind::Ack
        } else if !self.unsettled.keeps(entry) {
            return;
        } else {
            let farewell = AssertUnwindSafe(self.processor.exhausted(&entry.message, &reasons)).catch_unwind();
            if !farewell.await.unwrap_or(false) {
                return self.unsettled.abandon(entry);
            }
            self.running.note(Tried::Exhausted);
            AckKind::Term
        };
        // A lost answer is one more delivery after `ack_wait`.
        let _ = self.client.publish(entry.ack(), Bytes::from(answer)).await;
        self.unsettled.settled(entry);
    }
}
