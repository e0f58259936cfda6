//! What a connection talks to.

use std::sync::Arc;
use std::task::Context;

use plenum_channels::{AcceptError, Link, Node, Outbox, Session};
use plenum_protocol::{Disconnect, Encoding};

use crate::Kind;

/// The far end of one connection inside the server. All calls come from the connection's one task.
pub trait Endpoint: Send + Unpin + 'static {
    /// What waits to be written.
    fn outbox(&self) -> &Arc<Outbox>;

    /// Takes one whole message, unmasked.
    fn receive(&mut self, kind: Kind, payload: &[u8]);

    /// While false nothing is read from the socket: the client feels back-pressure.
    fn wants_frames(&self) -> bool;

    /// Drives what is in flight and registers the waker; progress shows in the outbox and in [`Endpoint::wants_frames`].
    fn poll(&mut self, cx: &mut Context<'_>);

    /// The outbox said that a timer is due. [`Endpoint::poll`] follows.
    fn on_timer(&mut self);

    /// Everything that was queued has been written. [`Endpoint::poll`] follows.
    fn on_flushed(&mut self);

    /// The connection is over.
    fn end(self, reason: Disconnect);

    /// How queued messages become frames.
    fn framing(&self) -> Framing {
        match self.outbox().encoding() {
            Encoding::Json => Framing::Lines,
            Encoding::Protobuf => Framing::Concatenated,
        }
    }
}

/// How queued messages become frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Text frames of messages with a line feed between them.
    Lines,
    /// Binary frames of messages one behind the other; each carries its length.
    Concatenated,
    /// A frame for each message.
    Single(Kind),
}

/// Makes the endpoint of a connection, or refuses it before the upgrade.
pub trait Door: Send + Sync + 'static {
    /// What it makes.
    type Endpoint: Endpoint;

    /// Called once for each valid handshake.
    fn accept(&self, link: Link) -> Result<Self::Endpoint, AcceptError>;
}

impl Door for Arc<Node> {
    type Endpoint = Session;

    fn accept(&self, link: Link) -> Result<Session, AcceptError> {
        Node::accept(self, link)
    }
}

/// The kind of a frame does not matter to a session: its encoding was agreed on in the handshake.
impl Endpoint for Session {
    fn outbox(&self) -> &Arc<Outbox> {
        Session::outbox(self)
    }

    fn receive(&mut self, _: Kind, payload: &[u8]) {
        Session::receive(self, payload);
    }

    fn wants_frames(&self) -> bool {
        Session::wants_frames(self)
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        Session::poll(self, cx);
    }

    fn on_timer(&mut self) {
        Session::on_timer(self);
    }

    fn on_flushed(&mut self) {
        Session::on_flushed(self);
    }

    fn end(self, reason: Disconnect) {
        Session::end(self, reason);
    }
}
