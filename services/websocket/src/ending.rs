//! The orderly end of a connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use plenum_protocol::Disconnect;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::connection::Wire;
use crate::scratch::Scratch;

/// Longest time for writing what was taken from the outbox and the close frame.
const FLUSH: Duration = Duration::from_secs(1);

/// Longest wait for the client to close its side; until then its bytes are read and dropped, because closing a socket with
/// unread bytes resets it and the client could lose the close frame.
const LINGER: Duration = Duration::from_millis(500);

/// Writes what is left and the close frame, shuts down our side, waits for the client's. Each step is bounded in time.
#[derive(Debug)]
pub(crate) struct Ending {
    reason: Disconnect,
    deadline: Pin<Box<Sleep>>,
    step: Step,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Flush,
    Shutdown,
    Linger,
}

impl Ending {
    pub(crate) fn new(reason: Disconnect) -> Self {
        Self { reason, deadline: Box::pin(sleep(FLUSH)), step: Step::Flush }
    }

    pub(crate) fn reason(&self) -> Disconnect {
        self.reason.clone()
    }

    /// Whether the close frame has left.
    pub(crate) fn is_flushed(&self) -> bool {
        self.step != Step::Flush
    }

    /// Ready when the socket may be dropped.
    pub(crate) fn poll<S>(&mut self, wire: &mut Wire<S>, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // An error ends it as well: there is nobody left to be polite to.
        if self.poll_steps(wire, cx, scratch).is_ready() {
            return Poll::Ready(());
        }
        self.deadline.as_mut().poll(cx)
    }

    fn poll_steps<S>(&mut self, wire: &mut Wire<S>, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<io::Result<()>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.step == Step::Flush {
            ready!(wire.poll_flush(cx, scratch))?;
            self.deadline.as_mut().reset(Instant::now() + LINGER);
            self.step = Step::Shutdown;
        }
        if self.step == Step::Shutdown {
            ready!(Pin::new(&mut wire.socket).poll_shutdown(cx))?;
            self.step = Step::Linger;
        }
        loop {
            let mut buffer = ReadBuf::new(&mut scratch.read);
            ready!(Pin::new(&mut wire.socket).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
