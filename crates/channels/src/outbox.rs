//! What waits to be written to one connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use plenum_protocol::Encoding;
use plenum_protocol::codes::Disconnect;

use crate::{Order, SUPERSEDED};

/// Room that one queued message takes besides its bytes, counted so that many tiny messages are bounded too.
const MESSAGE_OVERHEAD: usize = 32;

/// Mail that a session has not read; more and it is too slow to be kept.
pub(crate) const MAX_MAIL: usize = 1024;

/// Bounds of an outbox.
#[derive(Clone, Copy, Debug)]
pub struct OutboxLimits {
    /// Most bytes that may wait (queued and handed to the writer, not yet written); `client.queue_max_size`.
    pub max_bytes: usize,
}

/// The bounded queue between whoever sends to a connection and the one task that writes to its socket.
///
/// Messages are encoded replies and pushes, shared between connections where they are equal. A push that would take
/// the outbox over its bound closes it with [`Disconnect::SLOW`] and drops what waits: a slow reader hurts only itself.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    max_bytes: usize,
    encoding: Encoding,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    waker: Option<Waker>,
    close: Option<Box<Disconnect>>,
    corked: bool,
    timer: bool,
    mail: Vec<Mail>,
    /// The close is [`SUPERSEDED`].
    superseded: bool,
    /// The writer has taken the close; nothing is accepted any more.
    closed: bool,
}

/// What others want of a session; read by the connection's task in [`crate::Session::on_timer`].
#[derive(Debug)]
pub(crate) enum Mail {
    /// The log lost what lies ahead of this subscription.
    Lost {
        /// Of which channel.
        channel: Arc<str>,
        /// Which of the session's subscriptions to it, so that a newer one is spared.
        member: u64,
    },
    /// The replica's presence lease lapsed: join again.
    Announce,
    /// The replica drains: answer what is under way, then close so that the client comes back elsewhere.
    Move,
    /// An order from the server API.
    Order(Arc<Order>),
}

/// What the connection's task has to do next.
#[derive(Debug, Default)]
pub struct Work {
    /// Encoded messages to write, in order; reused between calls, emptied by the writer.
    pub messages: Vec<Bytes>,
    /// A timer of the session is due or there is mail: call [`crate::Session::on_timer`].
    pub timer: bool,
    /// After these messages, close with this.
    pub close: Option<Disconnect>,
}

impl Outbox {
    /// An empty, corked outbox: it hands nothing to the writer before [`Outbox::open`].
    pub fn new(encoding: Encoding, limits: OutboxLimits) -> Self {
        Self { queue: Mutex::new(Queue { corked: true, ..Queue::default() }), max_bytes: limits.max_bytes, encoding }
    }

    /// How messages for this connection are encoded.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Queues one message. Ignored once the outbox is closing.
    pub fn push(&self, message: Bytes) {
        self.push_all(std::iter::once(message));
    }

    /// Queues several messages with one wake-up.
    pub fn push_all(&self, messages: impl IntoIterator<Item = Bytes>) {
        let mut queue = self.queue.lock();
        if queue.close.is_some() || queue.closed {
            return;
        }
        for message in messages {
            queue.bytes += message.len() + MESSAGE_OVERHEAD;
            if queue.bytes > self.max_bytes {
                queue.abandon(Disconnect::SLOW);
                break;
            }
            queue.messages.push_back(message);
        }
        if !queue.corked || queue.close.is_some() {
            queue.wake();
        }
    }

    /// Puts the first reply ahead of everything that was pushed meanwhile and starts handing out.
    ///
    /// Server-side subscriptions go live before the connect reply is complete; their publications wait behind it.
    pub fn open(&self, first: Bytes) {
        let mut queue = self.queue.lock();
        if queue.close.is_some() || queue.closed {
            return;
        }
        queue.bytes += first.len() + MESSAGE_OVERHEAD;
        queue.messages.push_front(first);
        queue.corked = false;
        if queue.bytes > self.max_bytes {
            queue.abandon(Disconnect::SLOW);
        }
        queue.wake();
    }

    /// Closes after what is queued now was written. The first reason stands.
    pub fn close(&self, disconnect: Disconnect) {
        let mut queue = self.queue.lock();
        if queue.close.is_none() && !queue.closed {
            queue.superseded = disconnect == SUPERSEDED;
            if queue.corked {
                // No publication may come before the reply to connect, and none will.
                queue.abandon(disconnect);
            } else {
                queue.close = Some(Box::new(disconnect));
            }
            queue.wake();
        }
    }

    /// Whether it was closed because the client has come back on another connection.
    pub(crate) fn was_superseded(&self) -> bool {
        self.queue.lock().superseded
    }

    /// Leaves something for the session. A session that is closing needs none.
    pub(crate) fn mail(&self, mail: Mail) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        if queue.mail.len() < MAX_MAIL {
            queue.mail.push(mail);
            queue.timer = true;
        } else if queue.close.is_none() {
            queue.abandon(Disconnect::SLOW);
        }
        queue.wake();
    }

    /// Takes all mail.
    pub(crate) fn take_mail(&self) -> Vec<Mail> {
        std::mem::take(&mut self.queue.lock().mail)
    }

    /// Tells the connection's task that a timer is due.
    pub fn fire_timer(&self) {
        let mut queue = self.queue.lock();
        queue.timer = true;
        queue.wake();
    }

    /// Bytes that wait, with a fixed overhead per message.
    pub fn pending_bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    /// Whether it was asked to close.
    pub fn is_closing(&self) -> bool {
        let queue = self.queue.lock();
        queue.close.is_some() || queue.closed
    }

    /// Moves up to `max_messages` messages, together about `max_bytes` bytes, into `work`; `work.close` is set when
    /// nothing remains before the close. What was handed out counts against the bound until [`Outbox::written`].
    ///
    /// Only the connection's task calls this.
    pub fn poll_work(&self, cx: &mut Context<'_>, work: &mut Work, max_messages: usize, max_bytes: usize) -> Poll<()> {
        let mut queue = self.queue.lock();
        if queue.timer {
            queue.timer = false;
            work.timer = true;
        }
        if !queue.corked {
            let mut bytes = 0;
            while work.messages.len() < max_messages && bytes < max_bytes {
                let Some(message) = queue.messages.pop_front() else { break };
                bytes += message.len();
                work.messages.push(message);
            }
            if queue.messages.is_empty() {
                // An idle connection holds no queue memory.
                queue.messages = VecDeque::new();
                if let Some(disconnect) = queue.close.take() {
                    queue.closed = true;
                    work.close = Some(*disconnect);
                }
            }
        }
        if work.timer || work.close.is_some() || !work.messages.is_empty() {
            return Poll::Ready(());
        }
        match &mut queue.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Frees the room of `messages` messages of `bytes` bytes in all that were written. Returns true when nothing waits.
    pub fn written(&self, messages: usize, bytes: usize) -> bool {
        let mut queue = self.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(bytes + messages * MESSAGE_OVERHEAD);
        queue.messages.is_empty()
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn abandon(&mut self, disconnect: Disconnect) {
        self.messages = VecDeque::new();
        self.close = Some(Box::new(disconnect));
        self.corked = false;
    }
}
