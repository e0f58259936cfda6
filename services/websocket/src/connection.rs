//! The task that owns a connection.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use plenum_channels::CLOSED_BY_CLIENT;
use plenum_protocol::Disconnect;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Endpoint;
use crate::batch::{MAX_BYTES, MAX_MESSAGES, Sent, Unsent};
use crate::ending::Ending;
use crate::frame::{Decoder, Event, FrameError, Opcode, close_frame, header};
use crate::scratch::Scratch;
use crate::service::Place;

/// Control frames that may wait while the socket takes nothing; pings beyond that go unanswered.
const MAX_CONTROL_BYTES: usize = 4 * 1024;

/// One connection from the upgrade to its end.
///
/// Each poll takes its inputs in this order:
/// 1. **client frames**, while the endpoint wants any: the socket is read into the thread's scratch and decoded there;
/// 2. **commands in flight**, by [`Endpoint::poll`];
/// 3. **the outbox**: messages, timers and the order to close;
/// 4. **the socket's room**: what was taken from the outbox goes out in one write. While a rest of it is unwritten
///    nothing more is taken.
///
/// It holds no buffer between messages: an incomplete message, input that the endpoint does not want yet and the rest of
/// a write are on the heap only while they exist.
#[derive(Debug)]
pub(crate) struct Connection<S, E> {
    wire: Wire<S>,
    /// Gone once it was told that the connection is over.
    endpoint: Option<E>,
    ending: Option<Box<Ending>>,
}

/// The side of a connection that faces the client.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    pub(crate) socket: S,
    decoder: Decoder,
    /// Input that was read and not decoded, because the endpoint wants nothing.
    unread: Vec<u8>,
    /// Encoded control frames that go out next.
    pub(crate) control: Vec<u8>,
    pub(crate) unsent: Option<Box<Unsent>>,
    place: Place,
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum End {
    /// The socket is of no use any more.
    Lost(Disconnect),
    /// To be closed with this frame.
    Close { code: Option<u16>, text: Cow<'static, str>, reason: Disconnect },
}

impl End {
    pub(crate) fn lost() -> Self {
        End::Lost(Disconnect::CONNECTION_CLOSED)
    }

    fn ordered(reason: Disconnect) -> Self {
        End::Close { code: Some(reason.code), text: reason.reason.clone(), reason }
    }

    fn by_client(code: Option<u16>) -> Self {
        End::Close { code, text: Cow::Borrowed(""), reason: CLOSED_BY_CLIENT }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        let text = error.to_string().into();
        End::Close { code: Some(error.close_code()), text, reason: Disconnect::CONNECTION_CLOSED }
    }
}

/// Why reading stopped without an end.
enum Read {
    /// The socket has nothing; its waker is registered.
    Waiting,
    /// The endpoint wants nothing.
    Held,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn poll_open<E: Endpoint>(&mut self, endpoint: &mut E, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<End> {
        loop {
            let read = self.poll_read(endpoint, cx, scratch);
            if let Err(end @ End::Lost(_)) = read {
                return Poll::Ready(end);
            }
            endpoint.poll(cx);
            if let Poll::Ready(end) = self.poll_write(endpoint, cx, scratch) {
                return Poll::Ready(end);
            }
            match read {
                Err(end) => return Poll::Ready(end),
                // Writing or a command that finished has made room: the socket's waker is not registered yet.
                Ok(Read::Held) if endpoint.wants_frames() => {}
                Ok(_) => return Poll::Pending,
            }
        }
    }

    fn poll_read<E: Endpoint>(
        &mut self,
        endpoint: &mut E,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Result<Read, End> {
        if !self.unread.is_empty() && endpoint.wants_frames() {
            let mut unread = mem::take(&mut self.unread);
            let taken = self.process(endpoint, &mut unread)?;
            unread.drain(..taken);
            self.unread = unread;
            self.unread.shrink_to_fit();
        }
        while endpoint.wants_frames() {
            let mut buffer = ReadBuf::new(&mut scratch.read);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Pending => return Ok(Read::Waiting),
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Err(End::lost()),
            }
            let input = buffer.filled_mut();
            self.place.metrics().bytes_received.inc_by(input.len() as u64);
            let taken = self.process(endpoint, input)?;
            self.unread = input[taken..].to_vec();
        }
        Ok(Read::Held)
    }

    /// Decodes `input` for as long as the endpoint wants frames; returns how much of it was used.
    fn process<E: Endpoint>(&mut self, endpoint: &mut E, input: &mut [u8]) -> Result<usize, End> {
        let mut used = 0;
        while used < input.len() && endpoint.wants_frames() {
            let (taken, event) = self.decoder.decode(&mut input[used..])?;
            used += taken;
            match event {
                None | Some(Event::Pong) => {}
                Some(Event::Message(kind, payload)) => endpoint.receive(kind, &payload),
                Some(Event::Ping(payload)) => {
                    if self.control.len() < MAX_CONTROL_BYTES {
                        header(&mut self.control, Opcode::Pong, payload.len());
                        self.control.extend_from_slice(&payload);
                    }
                }
                Some(Event::Close(code)) => return Err(End::by_client(code)),
            }
        }
        Ok(used)
    }

    /// Writes until nothing waits or the socket is full.
    fn poll_write<E: Endpoint>(&mut self, endpoint: &mut E, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<End> {
        loop {
            if let Some(unsent) = &mut self.unsent {
                match unsent.poll(cx, &mut self.socket) {
                    Poll::Pending => return self.poll_blocked(endpoint, cx, scratch),
                    Poll::Ready(Err(_)) => return Poll::Ready(End::Lost(Disconnect::WRITE_ERROR)),
                    Poll::Ready(Ok(sent)) => {
                        self.unsent = None;
                        self.written(endpoint, cx, sent);
                    }
                }
            }
            let work = &mut scratch.work;
            let outbox = endpoint.outbox().poll_work(cx, work, MAX_MESSAGES, MAX_BYTES);
            if outbox.is_pending() && self.control.is_empty() {
                return Poll::Pending;
            }
            if mem::take(&mut work.timer) {
                endpoint.on_timer();
                endpoint.poll(cx);
            }
            let close = work.close.take();
            scratch.batch.push_raw(&mem::take(&mut self.control));
            scratch.batch.push_messages(&mut work.messages, endpoint.framing());
            match self.write_batch(cx, scratch) {
                Err(_) => return Poll::Ready(End::Lost(Disconnect::WRITE_ERROR)),
                Ok(None) => {}
                Ok(Some(sent)) => self.written(endpoint, cx, sent),
            }
            if let Some(reason) = close {
                return Poll::Ready(End::ordered(reason));
            }
        }
    }

    /// Writes the batch, if there is any; what the socket did not take becomes `unsent`.
    pub(crate) fn write_batch(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> io::Result<Option<Sent>> {
        if scratch.batch.len() == 0 {
            return Ok(None);
        }
        let metrics = self.place.metrics();
        metrics.socket_writes.inc();
        metrics.bytes_sent.inc_by(scratch.batch.len() as u64);
        let patience = self.place.limits().write_timeout;
        match scratch.batch.poll_write(cx, &mut self.socket, patience) {
            Ok(Ok(sent)) => Ok(Some(sent)),
            Ok(Err(unsent)) => {
                self.unsent = Some(unsent);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what is left of a batch and the control frames, and nothing else.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<io::Result<()>> {
        loop {
            if let Some(unsent) = &mut self.unsent {
                ready!(unsent.poll(cx, &mut self.socket))?;
                self.unsent = None;
            }
            if self.control.is_empty() {
                return Poll::Ready(Ok(()));
            }
            scratch.batch.push_raw(&mem::take(&mut self.control));
            self.write_batch(cx, scratch)?;
        }
    }

    fn written<E: Endpoint>(&mut self, endpoint: &mut E, cx: &mut Context<'_>, sent: Sent) {
        if endpoint.outbox().written(sent.messages, sent.bytes) {
            endpoint.on_flushed();
            endpoint.poll(cx);
        }
    }

    /// The socket is full: nothing is taken from the outbox, but timers run and an overflow is noticed.
    fn poll_blocked<E: Endpoint>(
        &mut self,
        endpoint: &mut E,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<End> {
        let work = &mut scratch.work;
        if let Some(unsent) = &mut self.unsent
            && endpoint.outbox().is_closing()
        {
            unsent.hurry();
        }
        loop {
            let polled = endpoint.outbox().poll_work(cx, work, 0, 0);
            if let Some(reason) = work.close.take() {
                return Poll::Ready(End::ordered(reason));
            }
            if mem::take(&mut work.timer) {
                endpoint.on_timer();
                endpoint.poll(cx);
            }
            if polled.is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<S, E> Connection<S, E>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Endpoint,
{
    /// `early` is what the client sent behind its handshake.
    pub(crate) fn new(socket: S, endpoint: E, early: &[u8], place: Place) -> Self {
        let wire = Wire {
            socket,
            decoder: Decoder::new(place.limits().message_size_limit),
            unread: early.to_vec(),
            control: Vec::new(),
            unsent: None,
            place,
        };
        Self { wire, endpoint: Some(endpoint), ending: None }
    }

    fn advance(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        if self.ending.is_none() {
            let Some(endpoint) = &mut self.endpoint else { return Poll::Ready(()) };
            match ready!(self.wire.poll_open(endpoint, cx, scratch)) {
                End::Lost(reason) => {
                    self.finish(reason);
                    return Poll::Ready(());
                }
                End::Close { code, text, reason } => {
                    if reason == Disconnect::SLOW {
                        self.wire.place.metrics().outbox_overflows.inc();
                    }
                    close_frame(&mut self.wire.control, code, &text);
                    self.ending = Some(Box::new(Ending::new(reason)));
                }
            }
        }
        let Some(ending) = &mut self.ending else { return Poll::Ready(()) };
        // The endpoint may go once the close frame is with the kernel, whatever the client does then.
        let polled = ending.poll(&mut self.wire, cx, scratch);
        if ending.is_flushed() || polled.is_ready() {
            let reason = ending.reason();
            self.finish(reason);
        }
        polled
    }

    fn finish(&mut self, reason: Disconnect) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.end(reason);
        }
    }
}

impl<S, E> Future for Connection<S, E>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Endpoint,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.get_mut();
        Scratch::with(|scratch| connection.advance(cx, scratch))
    }
}
