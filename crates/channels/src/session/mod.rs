//! One connection's side of the protocol: takes frames, answers through the outbox, never touches a socket.
//!
//! Commands run in the order in which they came, but a command that waits for the log or a store does not hold up
//! those behind it, except where order shows: connect comes before everything, and a command on a channel waits while
//! a subscribe, unsubscribe or refresh of that channel is under way.

mod connect;
mod establish;
mod flight;
mod orders;
mod requests;
mod subscriptions;
mod timers;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{ClientInfo, Command, Disconnect, Reply, ReplyResult, Request, commands, encode};
use plenum_telemetry::{Method, ResultCode};
use uuid::Uuid;

use crate::error::Failure;
use crate::limits::{Counted, Origin};
use crate::node::unix_now;
use crate::resume::{Noted, Resumption, Won};
use crate::{ConnectionClaims, Link, Node, Outbox};
use flight::{Done, Flight};
use subscriptions::{Fate, Subscription, Subscriptions};
use timers::Beat;

/// Why a connection ended whose client sent a close frame: it means to go.
pub const CLOSED_BY_CLIENT: Disconnect = Disconnect { code: 3000, reason: Cow::Borrowed("closed by the client") };

/// Closes a connection whose client has come back on another one.
pub const SUPERSEDED: Disconnect = Disconnect { code: 3503, reason: Cow::Borrowed("resumed by another connection") };

/// Who a connection is, shared with whatever runs on its behalf.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) client: Uuid,
    /// Empty for an anonymous user.
    pub(crate) user: Arc<str>,
    /// What others may see of the user.
    pub(crate) info: Bytes,
    /// Step of the fence that made the connection, 0 if it was not resumed: the highest of a client id holds it.
    pub(crate) step: u32,
    /// What is taken over from the connection before, if it was resumed.
    pub(crate) resumption: Option<Arc<Resumption>>,
    /// What most connections do not have.
    background: Option<Box<Background>>,
}

/// What only the server sees of a connection.
#[derive(Clone, Debug, Default, PartialEq)]
struct Background {
    meta: Bytes,
    /// Id and time of issue of the connection token, if it had one.
    token: Option<(Box<str>, u64)>,
    /// Name and version that the client gave.
    app: (Box<str>, Box<str>),
}

impl Identity {
    pub(crate) fn new(client: Uuid, claims: &ConnectionClaims, token: bool, app: (String, String), step: u32) -> Self {
        let background = Background {
            meta: claims.meta.clone(),
            token: token.then(|| (claims.token_id.as_str().into(), claims.issued_at)),
            app: (app.0.into(), app.1.into()),
        };
        Self {
            client,
            user: claims.user.as_str().into(),
            info: claims.info.clone(),
            step,
            resumption: None,
            background: (background != Background::default()).then(|| Box::new(background)),
        }
    }

    /// With what a newer token of the same user says.
    fn refreshed(&self, info: Bytes, token: Option<(&str, u64)>) -> Self {
        let mut next = Self { info, ..self.clone() };
        if let Some((id, issued_at)) = token {
            next.background.get_or_insert_default().token = Some((id.into(), issued_at));
        }
        next
    }

    pub(crate) fn has_token(&self) -> bool {
        self.background.as_ref().is_some_and(|it| it.token.is_some())
    }

    pub(crate) fn token_id(&self) -> &str {
        self.background.as_ref().and_then(|it| it.token.as_ref()).map_or("", |(id, _)| id)
    }

    pub(crate) fn issued_at(&self) -> u64 {
        self.background.as_ref().and_then(|it| it.token.as_ref()).map_or(0, |(_, at)| *at)
    }

    pub(crate) fn meta(&self) -> &[u8] {
        self.background.as_ref().map_or(&[], |it| &it.meta)
    }

    pub(crate) fn app(&self) -> (&str, &str) {
        self.background.as_ref().map_or(("", ""), |it| (&it.app.0, &it.app.1))
    }

    /// What others see of this connection in a channel.
    pub(crate) fn member(&self, channel_info: Bytes) -> ClientInfo {
        ClientInfo {
            user: self.user.to_string(),
            client: self.client.to_string(),
            conn_info: self.info.clone(),
            chan_info: channel_info,
        }
    }
}

/// How far a connection has come.
enum Phase {
    /// Nothing but a connect is accepted.
    Unauthenticated,
    /// The connect command is under way.
    Connecting,
    /// The connect was refused; what follows is dropped until the client or the stale timer ends the connection.
    Refused,
    Connected(Box<Connected>),
}

/// What is known of an authenticated connection.
struct Connected {
    identity: Arc<Identity>,
    subscriptions: Subscriptions,
    /// Unix seconds; 0: never.
    expire_at: u64,
    /// Its place among its user's connections, where these are limited.
    _counted: Option<Counted>,
    /// A resume whose success no pong has shown yet.
    unconfirmed: Option<Box<Won>>,
    /// What the server API changed of its subscriptions; `None`: nothing.
    noted: Option<Arc<Noted>>,
}

/// What futures of a session work with.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) node: Arc<Node>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) identity: Arc<Identity>,
}

/// A connection from its handshake to its end; owned by the transport's task.
pub struct Session {
    node: Arc<Node>,
    outbox: Arc<Outbox>,
    /// Of this connection alone; also its client id unless it was resumed.
    connection: Uuid,
    client: Uuid,
    phase: Phase,
    /// `None` while no command is under way, so that an idle connection pays nothing for it.
    flight: Option<Box<Flight>>,
    beat: Beat,
    /// User id that the transport vouches for.
    vouched: Option<Box<str>>,
    /// Where the client is, for limits by address.
    origin: Origin,
    /// The replica drains: nothing more is read, and the connection closes once its commands have been answered.
    leaving: bool,
}

impl Session {
    pub(crate) fn new(node: Arc<Node>, client: Uuid, outbox: Arc<Outbox>, link: Link) -> Self {
        let beat = Beat::stale_after(&node);
        node.wheel.schedule(beat.due, &outbox);
        Self {
            node,
            outbox,
            connection: client,
            client,
            phase: Phase::Unauthenticated,
            flight: None,
            beat,
            vouched: link.user.map(Into::into),
            origin: Origin::of(link.address),
            leaving: false,
        }
    }

    /// Where replies and pushes wait for the transport.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// Id of the connection.
    pub fn client(&self) -> Uuid {
        self.client
    }

    /// Takes one frame of whole commands. Whatever is wrong with it ends up as an error reply or as the outbox's close.
    pub fn receive(&mut self, frame: &[u8]) {
        if self.outbox.is_closing() {
            return;
        }
        if !self.beat.frame(&self.node) {
            return self.close(Disconnect::TOO_MANY_REQUESTS);
        }
        for command in commands(self.outbox.encoding(), frame) {
            match command {
                Ok(command) => self.accept(command),
                Err(error) => {
                    tracing::debug!(client = %self.client, %error, "malformed frame");
                    return self.close(Disconnect::BAD_REQUEST);
                }
            }
        }
        self.settle();
    }

    /// Whether the transport shall read: false while as many commands are under way as
    /// `client.max_in_flight_commands` allows, or one waits for another, and while the replica drains: what is not read
    /// was not acknowledged.
    pub fn wants_frames(&self) -> bool {
        !self.leaving
            && self.flight.as_ref().is_none_or(|flight| {
                flight.waiting.is_empty() && flight.len() < self.node.settings().client.max_in_flight_commands
            })
    }

    /// Drives the commands under way and those that waited for them. Registers the waker for more.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        while let Some(flight) = &mut self.flight {
            let Some(done) = flight.poll(cx) else { break };
            self.complete(done);
            self.obey_waiting();
            self.run_waiting();
            self.settle();
        }
    }

    /// Everything in the outbox was written: subscriptions that catch up read on. [`Session::poll`] follows.
    pub fn on_flushed(&mut self) {
        if !self.leaving {
            self.catch_up();
        }
    }

    /// The connection is gone; its subscriptions end.
    pub fn end(mut self, reason: Disconnect) {
        // Subscriptions that are being made are given up first: who asks for what this connection held shall find it all.
        self.flight = None;
        if let Phase::Connected(connected) = &mut self.phase {
            let fate = match Fate::of(&reason) {
                // It may have come back elsewhere: then it ended this connection because nobody answered.
                _ if self.outbox.was_superseded() => Fate::TakenOver,
                Fate::Leave if reason == CLOSED_BY_CLIENT && self.node.pulse.stood_still() => Fate::Unsure,
                fate => fate,
            };
            connected.subscriptions.end(fate);
        }
        self.node.metrics.disconnects(plenum_telemetry::CloseCode::new(u32::from(reason.code))).inc();
    }

    /// The client answers a ping on a resumed connection, so it has what was sent before: what it needs to resume again.
    /// Other frames may have left before the reply came.
    fn confirm(&mut self) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        let Some(won) = connected.unconfirmed.take() else { return };
        let (resume, client) = (self.node.resume.clone(), self.client);
        let ttl = self.node.settings().client.resume.ttl;
        tokio::spawn(async move { resume.confirm(client, *won, ttl).await });
    }

    fn accept(&mut self, command: Command) {
        if matches!(command.request, Request::Pong) {
            return self.confirm();
        }
        if matches!(self.phase, Phase::Refused) || self.outbox.is_closing() {
            return;
        }
        let out_of_order = match &self.phase {
            Phase::Unauthenticated => !matches!(command.request, Request::Connect(_)),
            _ => matches!(command.request, Request::Connect(_) | Request::Unknown),
        };
        if out_of_order || (command.id == 0 && !matches!(command.request, Request::Send(_))) {
            return self.close(Disconnect::BAD_REQUEST);
        }
        if self.must_wait(&command) {
            self.flight.get_or_insert_default().waiting.push_back(command);
        } else {
            self.run(command);
        }
    }

    fn must_wait(&self, command: &Command) -> bool {
        let Some(flight) = &self.flight else { return false };
        !flight.waiting.is_empty() || self.is_blocked(command)
    }

    fn is_blocked(&self, command: &Command) -> bool {
        let Some(flight) = &self.flight else { return false };
        matches!(self.phase, Phase::Connecting)
            || flight.len() >= self.node.settings().client.max_in_flight_commands
            || command.request.channel().is_some_and(|channel| flight.is_busy(channel))
    }

    fn run_waiting(&mut self) {
        loop {
            let Some(next) = self.flight.as_ref().and_then(|flight| flight.waiting.front()) else { return };
            if matches!(self.phase, Phase::Refused) || self.outbox.is_closing() {
                if let Some(flight) = &mut self.flight {
                    flight.waiting.clear();
                }
                return;
            }
            if self.is_blocked(next) {
                return;
            }
            if let Some(command) = self.flight.as_mut().and_then(|flight| flight.waiting.pop_front()) {
                self.run(command);
            }
        }
    }

    /// Frees what only a session with commands under way needs, and reads on for those who catch up.
    fn settle(&mut self) {
        if self.flight.as_ref().is_some_and(|flight| flight.is_idle()) {
            self.flight = None;
        }
        if self.leaving {
            if self.flight.is_none() {
                self.close(Disconnect::SHUTDOWN);
            }
            return;
        }
        if self.outbox.pending_bytes() == 0 {
            self.catch_up();
        }
    }

    fn complete(&mut self, done: Done) {
        match done {
            Done::Connected { id, outcome } => self.connected(id, outcome),
            Done::Replied { id, method, result } => self.reply(id, method, result),
            Done::Subscribed { id, channel, outcome } => self.subscribed(id, &channel, outcome),
            Done::ServerSubscribed { channel, options, outcome } => self.server_subscribed(&channel, *options, outcome),
            Done::SubscriptionRefreshed { id, channel, outcome } => {
                self.subscription_refreshed(id, &channel, outcome);
            }
            Done::Refreshed { id, outcome } => self.refreshed(id, outcome),
            Done::CaughtUp { channel, member, outcome } => self.caught_up(&channel, member, outcome),
            Done::Released { channel, reply } => {
                if let Some(flight) = &mut self.flight {
                    flight.unblock(&channel);
                }
                if let Some(id) = reply {
                    self.reply(id, Method::Unsubscribe, Ok(ReplyResult::Unsubscribe));
                }
            }
        }
    }

    /// Answers a command.
    fn reply(&mut self, id: u32, method: Method, result: Result<ReplyResult, Failure>) {
        let reply = match result {
            Ok(result) => {
                self.count(method, 0);
                Reply::Result { id, result }
            }
            Err(Failure::Error(error)) => {
                self.count(method, error.code);
                Reply::Error { id, error }
            }
            Err(Failure::Disconnect(disconnect)) => return self.close(disconnect),
        };
        match frame(&self.outbox, &reply) {
            Some(frame) => self.outbox.push(frame),
            None => self.close(Disconnect::INAPPROPRIATE_PROTOCOL),
        }
    }

    fn count(&self, method: Method, code: u32) {
        self.node.metrics.commands(method, ResultCode::new(code)).inc();
    }

    fn close(&self, disconnect: Disconnect) {
        tracing::debug!(client = %self.client, code = disconnect.code, reason = %disconnect.reason, "closing");
        self.outbox.close(disconnect);
    }

    fn caller(&self, identity: &Arc<Identity>) -> Caller {
        Caller { node: self.node.clone(), outbox: self.outbox.clone(), identity: identity.clone() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.node.registry.remove(self.connection);
    }
}

/// One reply in the connection's encoding; `None` when a payload in it does not fit that encoding.
pub(crate) fn frame(outbox: &Outbox, reply: &Reply) -> Option<Bytes> {
    let mut frame = Vec::new();
    encode(outbox.encoding(), reply, &mut frame).ok().map(|()| frame.into())
}

/// What a client is told of an expiry.
pub(crate) fn time_to_live(expire_at: u64) -> Result<(bool, u32), Failure> {
    if expire_at == 0 {
        return Ok((false, 0));
    }
    match expire_at.checked_sub(unix_now()) {
        Some(ttl) if ttl > 0 => Ok((true, u32::try_from(ttl).unwrap_or(u32::MAX))),
        _ => Err(ErrorCode::EXPIRED.into()),
    }
}

fn method(request: &Request) -> Method {
    Method::from_name(request.method_name()).unwrap_or(Method::Unknown)
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("client", &self.client).finish_non_exhaustive()
    }
}
