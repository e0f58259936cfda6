//! Live messages on their way to a keyed worker, and how many of a channel there may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_nats::Message;
use futures_util::task::AtomicWaker;

use super::live::Channel;

/// Live messages of a channel that came together, counted until they were carried out or dropped.
pub(crate) struct Piece {
    channel: Arc<Channel>,
    messages: Vec<Message>,
}

impl Piece {
    pub(super) fn new(channel: Arc<Channel>, messages: Vec<Message>) -> Self {
        channel.pieces.waiting.fetch_add(1, Ordering::SeqCst);
        Self { channel, messages }
    }

    pub(super) fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Its messages; it counts until it is dropped all the same.
    pub(super) fn take(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// What a keyed worker does with it.
    pub fn carry_out(self) {
        self.channel.clone().receive(self);
    }

    /// It found no room: what it held is read from the stream.
    pub(super) fn missed(self) {
        self.channel.missed(&self.messages);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let pieces = &self.channel.pieces;
        if pieces.waiting.fetch_sub(1, Ordering::SeqCst) == Pieces::MOST {
            pieces.reader.wake();
        }
    }
}

/// How many pieces of a channel wait for their worker.
#[derive(Default)]
pub(super) struct Pieces {
    waiting: AtomicUsize,
    reader: AtomicWaker,
}

impl Pieces {
    /// So few that a worker's queue has room for its other channels, and so many that the reader need not be woken for each.
    const MOST: usize = 4;

    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting.load(Ordering::SeqCst) < Self::MOST {
            return Poll::Ready(());
        }
        self.reader.register(context.waker());
        if self.waiting.load(Ordering::SeqCst) < Self::MOST { Poll::Ready(()) } else { Poll::Pending }
    }
}
