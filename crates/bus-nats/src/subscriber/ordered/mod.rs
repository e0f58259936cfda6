//! Durable consumers whose messages are carried out in order, key by key, by a pool of keyed workers.
//!
//! Order needs three things of JetStream. One process at a time gets messages: the consumer pins its client. A failed
//! try is repeated in its place, before anything later of the key. And what another process has, or had when it died, or
//! what was lost on its way comes before anything new: a [`Gate`] sees to that, and pins outlive the wait for
//! acknowledgements, so that it seldom has to wait.

mod config;
mod flow;
mod gate;
mod settled;
mod unsettled;
mod upkeep;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::{self};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;

use super::durable::{Opening, delivery};
use super::run::Running;
use super::{ProcessError, Received, Subscription};
use crate::parcel::Parcel;
use crate::pool::Pool;
use crate::workers::{Reason, Rejected, Work, Workers};
pub use config::OrderedConfig;
use flow::Flow;
use gate::{Gate, Told, Verdict};
use unsettled::{Entry, Known, Part, Unsettled};
use upkeep::{keep, look};

/// The consumer's only priority group.
const GROUP: &str = "one";
/// How long one request for messages lasts; well below the time of a pin.
const EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Heartbeats missed in a row after which the consumer is opened anew.
const MISSES: u32 = 5;
/// One missed after this much longer than the one before is the first of another row: those that come show nowhere.
const ROW: Duration = HEARTBEAT.saturating_mul(4);
/// Messages of one request.
const BATCH: usize = 256;
/// Bytes of messages that wait or are worked on; at the bound no more are taken.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A message that was delivered this often without an outcome ends its processes: it is given up.
const MAX_DELIVERIES: u64 = 100;
/// How often NATS is asked how much is left.
const LOOK: Duration = Duration::from_secs(5);

/// What a message asks for.
#[derive(Debug)]
pub struct Assignment<J> {
    /// What was read.
    pub job: J,
    /// A key for each part of it. Parts of one key are worked on in the order of the stream, also those of different
    /// messages; parts of different keys at the same time. None is one part in no order.
    pub keys: Vec<u64>,
}

/// Carries messages out, in the order of each key.
#[async_trait]
pub trait ProcessInOrder: Send + Sync + 'static {
    /// A message that was read.
    type Job: Send + Sync + 'static;

    /// Reads a message. An error is its end, whatever its kind.
    fn read(&self, message: &Received) -> Result<Assignment<Self::Job>, ProcessError>;

    /// Carries one part out. It may come again all the same: be idempotent.
    async fn process(&self, message: &Received, job: &Self::Job, part: usize) -> Result<(), ProcessError>;

    /// Takes leave of a message that had all its tries, with the first reasons. It is not delivered again after `true`;
    /// after `false` all of it is tried again later.
    async fn exhausted(&self, message: &Received, reasons: &[String]) -> bool;
}

impl Subscription {
    /// Starts a durable subscription that keeps order, on the keyed workers of the process, and returns at once; it makes its
    /// consumer as soon as the stream exists. End it before the workers.
    pub fn ordered<P: ProcessInOrder>(
        pool: &Arc<Pool>,
        config: OrderedConfig,
        processor: Arc<P>,
        workers: &Arc<Workers>,
    ) -> Self {
        let config = config.within_bounds();
        let running = Running::new(&config.durable, 1, config.max_unsettled, MAX_BYTES);
        let client = pool.subscribing(crate::publish::key_of(&config.durable));
        let unsettled = Arc::new(Unsettled::new(running.clone(), config.ack_wait));
        let flow = Flow::new(running.clone(), unsettled.clone(), processor, client.clone(), &config);
        let reader = Reader {
            context: jetstream::new(client),
            running: running.clone(),
            unsettled,
            work: flow.clone(),
            flow,
            workers: workers.clone(),
            config,
        };
        running.spawn(keep(reader.clone()));
        running.spawn(look(reader.clone()));
        running.spawn(read(reader));
        Subscription { running }
    }
}

/// Why a consumer is opened anew that is in order.
const LOST: &str = "its messages were not kept in time and belong to whoever has them next";

/// Heartbeats that were missed in a row.
#[derive(Default)]
struct Misses {
    count: u32,
    last: Option<Instant>,
}

impl Misses {
    /// One more; false if it is one too many.
    fn bear(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > ROW) {
            self.count = 0;
        }
        (self.count, self.last) = (self.count + 1, Some(now));
        self.count <= MISSES
    }
}

/// What the tasks of a subscription share.
struct Reader<P: ProcessInOrder> {
    context: jetstream::Context,
    running: Arc<Running>,
    unsettled: Arc<Unsettled<P::Job>>,
    flow: Arc<Flow<P>>,
    work: Arc<dyn Work<Parcel>>,
    workers: Arc<Workers>,
    config: OrderedConfig,
}

impl<P: ProcessInOrder> Clone for Reader<P> {
    fn clone(&self) -> Self {
        Reader {
            context: self.context.clone(),
            running: self.running.clone(),
            unsettled: self.unsettled.clone(),
            flow: self.flow.clone(),
            work: self.work.clone(),
            workers: self.workers.clone(),
            config: self.config.clone(),
        }
    }
}

/// Takes messages until told to end; opens the consumer again, for ever, when it breaks.
async fn read<P: ProcessInOrder>(reader: Reader<P>) {
    let running = &reader.running;
    let _ended = Waiting(&reader.unsettled);
    let mut opening = Opening::new(&reader.config.stream, &reader.config.durable);
    while !running.ending.is_cancelled() {
        let delivered = reader.deliver().await;
        reader.unsettled.let_go();
        if let Err(error) = delivered
            && !opening.pause(running, &error).await
        {
            break;
        }
    }
    // What was taken is carried out, or dropped, before the reader counts as ended.
    reader.unsettled.empty().await;
    if running.draining.is_cancelled() {
        reader.hand_over().await;
    }
}

/// Lets go of what waits, also when the reader is aborted.
struct Waiting<'a, J>(&'a Unsettled<J>);

impl<J> Drop for Waiting<'_, J> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl<P: ProcessInOrder> Reader<P> {
    /// Waits for the end of everything that was taken.
    async fn over(&self) {
        self.running.ending.cancelled().await;
        self.unsettled.empty().await;
    }

    async fn info(&self) -> Option<jetstream::consumer::Info> {
        let asked = self
            .context
            .get_consumer_from_stream::<pull::Config, _, _>(self.config.durable.as_str(), self.config.stream.as_str());
        let limit = tokio::time::timeout(LOOK, asked).await;
        limit.ok()?.ok().map(|consumer| consumer.cached_info().clone())
    }

    /// Delivers until told to end, or until the consumer breaks.
    async fn deliver(&self) -> Result<(), async_nats::Error> {
        let ending = &self.running.ending;
        let open = async {
            let consumer = self.context.create_consumer_on_stream(self.config.consumer(), self.config.stream.as_str());
            let stream = consumer.await?;
            let batch = self.config.max_unsettled.min(BATCH);
            let losses = self.unsettled.begin(stream.cached_info().created.unix_timestamp_nanos());
            let messages = stream.stream().group(GROUP).max_messages_per_batch(batch).expires(EXPIRES);
            Ok::<_, async_nats::Error>((messages.heartbeat(HEARTBEAT).messages().await?, losses))
        };
        let (mut messages, mut losses) = tokio::select! {
            biased;
            () = ending.cancelled() => return Ok(()),
            opened = open => opened?,
        };
        let mut misses = Misses::default();
        let mut gate = Gate::default();
        // What the client has in store was not kept meanwhile.
        let stood_still = |began: Instant| began.elapsed() > self.config.ack_wait / 3;
        loop {
            let due = gate.due();
            let look = async move {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                biased;
                () = ending.cancelled() => break,
                _ = losses.changed() => return Err(LOST.into()),
                next = messages.next(), if !gate.is_full() => next,
                () = look => {
                    let began = Instant::now();
                    self.try_open(&mut gate).await?;
                    if stood_still(began) {
                        gate.close();
                    }
                    continue;
                }
            };
            match next {
                None => return Err("the stream of messages ended".into()),
                // Opening anew would give the pin away, and stand by for the rest of its time.
                Some(Err(error))
                    if error.kind() == MessagesErrorKind::MissingHeartbeat && misses.bear(Instant::now()) => {}
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(message)) => {
                    misses = Misses::default();
                    let began = Instant::now();
                    self.take(message, &mut gate, &losses).await?;
                    if stood_still(began) {
                        gate.close();
                    }
                }
            }
        }
        // What the client has already is ours.
        if self.running.draining.is_cancelled() {
            for _ in 0..BATCH {
                let Some(Some(Ok(message))) = messages.next().now_or_never() else { break };
                self.take(message, &mut gate, &losses).await?;
            }
            if gate.due().is_some() {
                self.try_open(&mut gate).await?;
            }
        }
        Ok(())
    }

    /// Begins what waits if nothing that came before it is elsewhere; lets go of it if another process gets the messages by
    /// now.
    async fn try_open(&self, gate: &mut Gate) -> Result<(), async_nats::Error> {
        let changes = self.unsettled.changes();
        let info = tokio::select! {
            () = self.running.discarding.cancelled() => return Ok(()),
            info = self.info() => info,
        };
        gate.look_later();
        if !gate.answered(info.is_some()) {
            return Err("JetStream does not answer CONSUMER.INFO, which tells what comes first".into());
        }
        let Some(info) = info else { return Ok(()) };
        let pinned = info.priority_groups.first().and_then(|group| group.pinned_client_id.as_deref());
        let here = self.unsettled.census(info.ack_floor.stream_sequence);
        let told = Told {
            pending: info.num_ack_pending,
            redelivered: info.num_redelivered,
            deliveries: info.delivered.consumer_sequence,
            newest: info.delivered.stream_sequence,
        };
        let verdict = match () {
            () if pinned != gate.pin() => Verdict::LetGo,
            () if here.changes != changes => Verdict::Wait,
            () => gate.judge(here, told, self.unsettled.has_room()),
        };
        match verdict {
            Verdict::Begin => {
                gate.open();
                for entry in self.unsettled.waiting() {
                    self.begin(&entry).await;
                }
            }
            Verdict::LetGo => {
                self.unsettled.let_go();
                gate.emptied();
            }
            Verdict::Wait => {}
        }
        Ok(())
    }

    /// Reads a message and, if the gate is open, gives its parts to the workers of their keys; waits while there is no room.
    async fn take(
        &self,
        message: jetstream::Message,
        gate: &mut Gate,
        losses: &watch::Receiver<u64>,
    ) -> Result<(), async_nats::Error> {
        let delivery = delivery(&message)?;
        let message = message.message;
        let pin = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Pin-Id")).map(|pin| pin.as_str());
        if let Some(pin) = pin {
            self.unsettled.pinned(pin);
        }
        let open = gate.passes(pin, delivery.consumer_sequence);
        self.running.note_delivery(delivery.attempt);
        self.running.set_remaining(delivery.remaining);
        let Some(ack) = message.reply.clone() else { return Ok(()) };
        match self.unsettled.known(&delivery, &ack) {
            Known::New => {}
            Known::Held => return Ok(()),
            Known::Settled => {
                let _ = self.flow.client.publish(ack, Bytes::from(jetstream::AckKind::Ack)).await;
                return Ok(());
            }
        }
        // What waits behind the gate needs those that come: there is room for them.
        if open && !self.unsettled.room().await {
            return Ok(());
        }
        let bytes = message.length;
        let message = Received::new(message, Some(delivery));
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.flow.processor.read(&message)));
        let read = match read {
            Ok(_) if delivery.attempt > MAX_DELIVERIES => {
                Err(ProcessError::Permanent(format!("delivered {MAX_DELIVERIES} times without an outcome")))
            }
            Ok(read) => read,
            Err(_) => Err(ProcessError::Permanent("reading it panicked".into())),
        };
        let (job, mut keys) = match read {
            Ok(Assignment { job, keys }) => (Ok(job), keys),
            Err(error) => (Err(error), Vec::new()),
        };
        if keys.is_empty() {
            keys.push(delivery.sequence);
        }
        let entry = Entry::new(message, job, ack, keys, bytes);
        let entry = self.unsettled.add(entry, losses).ok_or(LOST)?;
        if open {
            self.begin(&entry).await;
        }
        Ok(())
    }

    /// Gives the parts of a message to the workers of their keys.
    async fn begin(&self, entry: &Arc<Entry<P::Job>>) {
        for (index, key) in entry.begin().into_iter().enumerate() {
            self.submit(key, Part::new(&self.unsettled, entry, index)).await;
        }
    }

    /// A part that is dropped leaves its message to be delivered again.
    async fn submit(&self, key: u64, part: Part<P::Job>) {
        let flow = self.flow.clone();
        let mut parcel = Parcel::task(async move { flow.work_off(part).await });
        while !self.running.discarding.is_cancelled() {
            match self.workers.submit(key, &self.work, parcel).await {
                Ok(()) | Err(Rejected { reason: Reason::Stopped, .. }) => return,
                Err(Rejected { message, reason: Reason::Full }) => parcel = message,
            }
        }
    }

    /// Gives the pin to whoever stands by, if nothing was left behind; otherwise its time has to run out, so that what is
    /// left comes first.
    async fn hand_over(&self) {
        let _ = tokio::time::timeout(LOOK, self.flow.client.flush()).await;
        let Some(info) = self.info().await else { return };
        let pinned = info.priority_groups.first().and_then(|group| group.pinned_client_id.as_deref());
        if info.num_ack_pending > 0 || pinned.is_none() || pinned != self.unsettled.pin().as_deref() {
            return;
        }
        let subject = format!("$JS.API.CONSUMER.UNPIN.{}.{}", self.config.stream, self.config.durable);
        let body = Bytes::from(format!(r#"{{"group":"{GROUP}"}}"#));
        let asked = self.flow.client.request(subject, body);
        let _ = tokio::time::timeout(LOOK, asked).await;
    }
}
