//! Many messages, one write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};

use crate::frame::{Opcode, header};
use crate::{Framing, Kind};

/// Most messages that one write takes from an outbox.
pub(crate) const MAX_MESSAGES: usize = 64;

/// About how many bytes one write takes from an outbox.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

/// Longest payload of a frame that joins messages; clients bound what they accept.
const MAX_JOINED: usize = 64 * 1024;

/// Longer messages are handed to the kernel where they lie instead of being copied.
const MAX_COPIED: usize = 8 * 1024;

/// Most pieces of one vectored write.
const MAX_PIECES: usize = 64;

/// Frames ready to be written: copied bytes, with shared messages between them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    copied: Vec<u8>,
    /// Each with the place in `copied` before which it goes out.
    shared: Vec<(usize, Bytes)>,
    messages: usize,
    bytes: usize,
}

impl Batch {
    /// Bytes of all frames, headers included.
    pub(crate) fn len(&self) -> usize {
        self.copied.len() + self.shared.iter().map(|(_, message)| message.len()).sum::<usize>()
    }

    /// Adds frames that are encoded already.
    pub(crate) fn push_raw(&mut self, frames: &[u8]) {
        self.copied.extend_from_slice(frames);
    }

    /// Turns messages into as few frames as `framing` allows, and empties `messages`.
    pub(crate) fn push_messages(&mut self, messages: &mut Vec<Bytes>, framing: Framing) {
        let (kind, separator, joins): (_, &[u8], _) = match framing {
            Framing::Lines => (Kind::Text, b"\n", true),
            Framing::Concatenated => (Kind::Binary, b"", true),
            Framing::Single(kind) => (kind, b"", false),
        };
        self.messages += messages.len();
        let mut waiting = messages.as_slice();
        while let Some(first) = waiting.first() {
            let (mut count, mut length) = (1, first.len());
            let candidates = if joins { &waiting[1..] } else { &[] };
            for next in candidates {
                let longer = length + separator.len() + next.len();
                if longer > MAX_JOINED {
                    break;
                }
                (count, length) = (count + 1, longer);
            }
            let (frame, rest) = waiting.split_at(count);
            waiting = rest;
            header(&mut self.copied, Opcode::from(kind), length);
            for (index, message) in frame.iter().enumerate() {
                if index > 0 {
                    self.copied.extend_from_slice(separator);
                }
                self.push_payload(message);
            }
        }
        messages.clear();
    }

    fn push_payload(&mut self, message: &Bytes) {
        self.bytes += message.len();
        if message.len() > MAX_COPIED {
            self.shared.push((self.copied.len(), message.clone()));
        } else {
            self.copied.extend_from_slice(message);
        }
    }

    /// Writes everything with one call where the socket takes it, and leaves the batch empty. What did not fit comes
    /// back as [`Unsent`], to be polled next.
    pub(crate) fn poll_write<S>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        patience: Duration,
    ) -> io::Result<Result<Sent, Box<Unsent>>>
    where
        S: AsyncWrite + Unpin,
    {
        let outcome = self.write_once(cx, Pin::new(socket));
        let sent = Sent { messages: mem::take(&mut self.messages), bytes: mem::take(&mut self.bytes) };
        let outcome = match outcome {
            Ok(Progress::Complete) => Ok(Ok(sent)),
            Ok(Progress::Partial(written)) => Ok(Err(Box::new(Unsent::new(self, written, sent, patience)))),
            Err(error) => Err(error),
        };
        self.copied.clear();
        self.shared.clear();
        outcome
    }

    fn write_once<S: AsyncWrite>(&self, cx: &mut Context<'_>, mut socket: Pin<&mut S>) -> io::Result<Progress> {
        let polled = if self.shared.is_empty() {
            socket.as_mut().poll_write(cx, &self.copied)
        } else {
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let count = self.pieces(0).zip(&mut pieces).map(|(piece, place)| *place = IoSlice::new(piece.0)).count();
            socket.as_mut().poll_write_vectored(cx, &pieces[..count])
        };
        let written = match polled {
            Poll::Pending => 0,
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Err(error),
        };
        // A TLS session may hold back what it has encrypted.
        if written == self.len() && socket.poll_flush(cx)?.is_ready() {
            return Ok(Progress::Complete);
        }
        Ok(Progress::Partial(written))
    }

    /// What is to be written, in order, behind the first `skip` bytes; a shared message with each piece of it.
    fn pieces(&self, mut skip: usize) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        let mut place = 0;
        let shared = self.shared.iter().flat_map(move |(before, message)| {
            let copied = &self.copied[place..*before];
            place = *before;
            [(copied, None), (&message[..], Some(message))]
        });
        let last = self.shared.last().map_or(0, |(before, _)| *before);
        shared.chain([(&self.copied[last..], None)]).filter_map(move |(piece, message)| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            (skipped < piece.len()).then(|| (&piece[skipped..], message))
        })
    }
}

enum Progress {
    Complete,
    /// So many bytes were taken.
    Partial(usize),
}

/// What a complete write freed in the outbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// The rest of a batch that the socket did not take. Nothing else is written before it.
#[derive(Debug)]
pub(crate) struct Unsent {
    pieces: VecDeque<Bytes>,
    sent: Sent,
    patience: Duration,
    deadline: Pin<Box<Sleep>>,
    /// The connection is to be closed: progress no longer earns more time.
    last: bool,
}

impl Unsent {
    fn new(batch: &Batch, written: usize, sent: Sent, patience: Duration) -> Self {
        let keep = |(piece, message): (&[u8], Option<&Bytes>)| match message {
            Some(message) => message.slice_ref(piece),
            None => Bytes::copy_from_slice(piece),
        };
        let pieces = batch.pieces(written).map(keep).collect();
        Self { pieces, sent, patience, deadline: Box::pin(sleep(patience)), last: false }
    }

    /// From now on the rest has to leave within the patience, however it moves: a client that reads a byte at a time
    /// shall not hold a connection that is closing.
    pub(crate) fn hurry(&mut self) {
        self.last = true;
    }

    /// Goes on writing. An error also when the socket took nothing for the whole patience.
    pub(crate) fn poll<S>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Poll<io::Result<Sent>>
    where
        S: AsyncWrite + Unpin,
    {
        let outcome = self.poll_pieces(cx, Pin::new(socket));
        if outcome.is_pending() && self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        outcome
    }

    fn poll_pieces<S>(&mut self, cx: &mut Context<'_>, mut socket: Pin<&mut S>) -> Poll<io::Result<Sent>>
    where
        S: AsyncWrite,
    {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = self.pieces.iter().zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
            let written = ready!(socket.as_mut().poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            if !self.last {
                self.deadline.as_mut().reset(Instant::now() + self.patience);
            }
        }
        ready!(socket.poll_flush(cx))?;
        Poll::Ready(Ok(self.sent))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let taken = written.min(piece.len());
            piece.advance(taken);
            written -= taken;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
