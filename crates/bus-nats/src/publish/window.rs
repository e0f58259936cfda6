//! One connection's publishes that wait for JetStream's acknowledgement: one reply subscription, one task, no task and
//! no subscription per message.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

use super::{Ack, PublishError, ack};

/// How late a missing acknowledgement may be noticed.
const EXPIRY_TICK: Duration = Duration::from_millis(50);
/// How late new contact may be noticed.
const CONTACT_POLL: Duration = Duration::from_millis(10);
/// Acknowledgements taken in one go.
const BURST: usize = 256;

/// What happens with the outcome of a publish.
pub(super) enum Waiter {
    /// Somebody awaits it.
    Future(oneshot::Sender<Result<Ack, PublishError>>),
    /// It is handed over, on the window's task: must not block.
    Call(Box<dyn Completion>),
}

/// Takes the outcome of one publish.
pub(super) trait Completion: Send {
    fn complete(self: Box<Self>, outcome: Result<Ack, PublishError>);
}

impl Waiter {
    fn complete(self, outcome: Result<Ack, PublishError>) {
        match self {
            // Nobody awaits it any more.
            Waiter::Future(sender) => drop(sender.send(outcome)),
            Waiter::Call(completion) => completion.complete(outcome),
        }
    }
}

struct Waiting {
    waiter: Waiter,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Slots {
    entries: Vec<(u32, Option<Waiting>)>,
    free: Vec<u32>,
}

impl Slots {
    /// The returned number names this use of the slot only.
    fn insert(&mut self, waiting: Waiting) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[index as usize];
        entry.0 = entry.0.wrapping_add(1);
        entry.1 = Some(waiting);
        u64::from(entry.0) << 32 | u64::from(index)
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let index = number as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if u64::from(entry.0) != number >> 32 {
            return None;
        }
        let waiting = entry.1.take()?;
        self.free.push(index);
        Some(waiting)
    }

    fn take_where(&mut self, mut gone: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let mut taken = Vec::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.1.as_ref().is_some_and(&mut gone) {
                taken.extend(entry.1.take());
                self.free.push(index as u32);
            }
        }
        taken
    }
}

/// The window of one connection.
pub struct Window {
    client: async_nats::Client,
    inbox: String,
    slots: Arc<Mutex<Slots>>,
    room: Arc<Semaphore>,
    capacity: usize,
    closed: AtomicBool,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Window {
    /// Opens a window of at most `capacity` publishes on a connection, which need not have contact yet.
    pub async fn open(client: async_nats::Client, capacity: usize) -> Result<Arc<Self>, PublishError> {
        let inbox = format!("{}.", client.new_inbox());
        let replies = client.subscribe(format!("{inbox}*")).await.map_err(|_| PublishError::Closed)?;
        let slots = Arc::new(Mutex::new(Slots::default()));
        let reader = tokio::spawn(read(replies, slots.clone(), inbox.len()));
        Ok(Arc::new(Window {
            client,
            inbox,
            slots,
            room: Arc::new(Semaphore::new(capacity)),
            capacity,
            closed: AtomicBool::new(false),
            reader: Mutex::new(Some(reader)),
        }))
    }

    /// Sends a message and returns what waits for its acknowledgement, at most for `timeout` from then. Waits while the
    /// window is full or the connection's send queue is, and for contact as long as `timeout`. Messages leave in the order of the calls, if each call is
    /// polled to its end before the next is made.
    pub async fn publish(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<PendingAck, PublishError> {
        let (sender, receiver) = oneshot::channel();
        self.send(subject, headers, payload, timeout, Waiter::Future(sender)).await?;
        Ok(PendingAck(receiver))
    }

    pub(super) async fn send(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        payload: Bytes,
        timeout: Duration,
        waiter: Waiter,
    ) -> Result<(), PublishError> {
        let max = self.client.max_payload();
        if payload.len() > max {
            return Err(PublishError::TooLarge { size: payload.len(), max });
        }
        let permit = self.room.clone().acquire_owned().await.map_err(|_| PublishError::Closed)?;
        self.contact(timeout).await?;
        if self.closed.load(Ordering::Acquire) {
            return Err(PublishError::Closed);
        }
        let size = payload.len();
        let number = self.slots.lock().insert(Waiting { waiter, deadline: Instant::now() + timeout, _permit: permit });
        // A cancelled call must not leave its slot behind; one that was sent keeps it until the deadline.
        let unsent = Unsent { window: self, number };
        let reply = format!("{}{number:x}", self.inbox);
        let sent = match headers {
            Some(headers) => self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await,
            None => self.client.publish_with_reply(subject, reply, payload).await,
        };
        match sent {
            Ok(()) => {
                std::mem::forget(unsent);
                Ok(())
            }
            Err(error) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge { size, max: self.client.max_payload() },
                _ => PublishError::Closed,
            }),
        }
    }

    /// Waits for contact, so that nothing lies in a queue and leaves long after its caller has given up.
    async fn contact(&self, timeout: Duration) -> Result<(), PublishError> {
        let until = Instant::now() + timeout;
        while self.client.connection_state() != State::Connected {
            if self.closed.load(Ordering::Acquire) {
                return Err(PublishError::Closed);
            }
            if Instant::now() >= until {
                return Err(PublishError::Unavailable);
            }
            tokio::time::sleep(CONTACT_POLL).await;
        }
        Ok(())
    }

    /// Publishes that wait for an acknowledgement.
    pub fn waiting(&self) -> usize {
        self.capacity.saturating_sub(self.room.available_permits())
    }

    /// Ends the window: whatever waits is [`PublishError::Indeterminate`].
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
        let reader = self.reader.lock().take();
        if let Some(reader) = reader {
            reader.abort();
            // Aborted: the result says nothing.
            let _ = reader.await;
        }
        fail(self.slots.lock().take_where(|_| true));
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get_mut().take() {
            reader.abort();
        }
        let left = self.slots.lock().take_where(|_| true);
        fail(left);
    }
}

/// Frees the slot of a message that was not sent.
struct Unsent<'a> {
    window: &'a Window,
    number: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        // Its caller has the error; nobody else is told.
        let waiting = self.window.slots.lock().remove(self.number);
        drop(waiting);
    }
}

fn fail(waiting: Vec<Waiting>) {
    for one in waiting {
        one.waiter.complete(Err(PublishError::Indeterminate));
    }
}

/// Takes acknowledgements and expires what has none.
async fn read(mut replies: async_nats::Subscriber, slots: Arc<Mutex<Slots>>, inbox: usize) {
    let mut tick = tokio::time::interval(EXPIRY_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            reply = replies.next() => {
                let Some(reply) = reply else { break };
                settle(&slots, &reply, inbox);
                for _ in 1..BURST {
                    match replies.next().now_or_never() {
                        Some(Some(reply)) => settle(&slots, &reply, inbox),
                        _ => break,
                    }
                }
            }
            _ = tick.tick() => {
                let now = Instant::now();
                let late = slots.lock().take_where(|waiting| waiting.deadline <= now);
                fail(late);
            }
        }
    }
    let left = slots.lock().take_where(|_| true);
    fail(left);
}

fn settle(slots: &Mutex<Slots>, reply: &Message, inbox: usize) {
    let number = reply.subject.as_str().get(inbox..).and_then(|token| u64::from_str_radix(token, 16).ok());
    let waiting = number.and_then(|number| slots.lock().remove(number));
    // Nobody waits for an acknowledgement that comes after its deadline.
    if let Some(waiting) = waiting {
        waiting.waiter.complete(ack::read(reply));
    }
}

/// Resolves to the acknowledgement, or to the reason why there is none.
pub struct PendingAck(oneshot::Receiver<Result<Ack, PublishError>>);

impl Future for PendingAck {
    type Output = Result<Ack, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|outcome| outcome.unwrap_or(Err(PublishError::Indeterminate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn waiting(room: &Arc<Semaphore>, deadline: Instant) -> Waiting {
        let permit = room.clone().acquire_owned().await.unwrap();
        Waiting { waiter: Waiter::Future(oneshot::channel().0), deadline, _permit: permit }
    }

    #[tokio::test]
    async fn a_slot_used_again_does_not_take_an_old_answer() {
        let room = Arc::new(Semaphore::new(4));
        let mut slots = Slots::default();
        let now = Instant::now();
        let first = slots.insert(waiting(&room, now).await);
        assert_eq!(slots.take_where(|waiting| waiting.deadline <= now).len(), 1);
        let second = slots.insert(waiting(&room, now).await);
        assert_eq!(first as u32, second as u32, "the same slot");
        assert!(slots.remove(first).is_none());
        assert!(slots.remove(second).is_some());
        assert!(slots.remove(second).is_none());
        assert_eq!(room.available_permits(), 4);
    }
}
