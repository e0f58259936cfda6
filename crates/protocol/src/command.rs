//! Commands: what a client sends.

use crate::Encoding;
use crate::envelope::{Slot, put, put_bare, put_empty};
use crate::field::messages;
use crate::frame::{Commands, DecodeError, EncodeError, Messages};
use crate::message::*;

/// A command with the id that its reply repeats. An id of 0 is in order for `Pong` and `Send` alone; whoever takes the
/// command closes with 3501 otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Command {
    /// Chosen by the client, greater than 0.
    pub id: u32,
    /// What is asked.
    pub request: Request,
}

/// What a client asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Request {
    /// The answer to a server's ping: a command with nothing in it.
    #[default]
    Pong,
    /// First command of a connection.
    Connect(Box<ConnectRequest>),
    /// Subscribe to a channel.
    Subscribe(Box<SubscribeRequest>),
    /// End a subscription.
    Unsubscribe(UnsubscribeRequest),
    /// Publish into a channel.
    Publish(PublishRequest),
    /// Who is in a channel.
    Presence(PresenceRequest),
    /// How many are in a channel.
    PresenceStats(PresenceStatsRequest),
    /// Read a channel's history.
    History(HistoryRequest),
    /// Ask for a sign of life.
    Ping,
    /// A message without an answer.
    Send(SendRequest),
    /// Call a procedure of the application.
    Rpc(RpcRequest),
    /// Bring a new connection token.
    Refresh(RefreshRequest),
    /// Bring a new subscription token.
    SubRefresh(SubRefreshRequest),
    /// An id with no request that we know. The reference server closes with 3501.
    Unknown,
}

impl Request {
    /// Name of the command in the protocol, for metric labels and logs; `pong` and `unknown` are ours.
    pub fn method_name(&self) -> &'static str {
        match self {
            Request::Pong => "pong",
            Request::Connect(_) => "connect",
            Request::Subscribe(_) => "subscribe",
            Request::Unsubscribe(_) => "unsubscribe",
            Request::Publish(_) => "publish",
            Request::Presence(_) => "presence",
            Request::PresenceStats(_) => "presence_stats",
            Request::History(_) => "history",
            Request::Ping => "ping",
            Request::Send(_) => "send",
            Request::Rpc(_) => "rpc",
            Request::Refresh(_) => "refresh",
            Request::SubRefresh(_) => "sub_refresh",
            Request::Unknown => "unknown",
        }
    }

    /// The channel that the request is about, if it is about one.
    pub fn channel(&self) -> Option<&str> {
        match self {
            Request::Subscribe(request) => Some(&request.channel),
            Request::Unsubscribe(request) => Some(&request.channel),
            Request::Publish(request) => Some(&request.channel),
            Request::Presence(request) => Some(&request.channel),
            Request::PresenceStats(request) => Some(&request.channel),
            Request::History(request) => Some(&request.channel),
            Request::SubRefresh(request) => Some(&request.channel),
            _ => None,
        }
    }
}

messages! {
    /// A message without fields.
    pub(crate) struct Nothing {}

    pub(crate) struct CommandWire {
        id: u32 = (uint32) 1,
        connect: Option<Box<ConnectRequest>> = (message, optional, boxed) 4,
        subscribe: Option<Box<SubscribeRequest>> = (message, optional, boxed) 5,
        unsubscribe: Option<UnsubscribeRequest> = (message, optional) 6,
        publish: Option<PublishRequest> = (message, optional) 7,
        presence: Option<PresenceRequest> = (message, optional) 8,
        presence_stats: Option<PresenceStatsRequest> = (message, optional) 9,
        history: Option<HistoryRequest> = (message, optional) 10,
        ping: Option<Nothing> = (message, optional) 11,
        send: Option<SendRequest> = (message, optional) 12,
        rpc: Option<RpcRequest> = (message, optional) 13,
        refresh: Option<RefreshRequest> = (message, optional) 14,
        sub_refresh: Option<SubRefreshRequest> = (message, optional) 15,
    }
}

impl From<CommandWire> for Command {
    /// Of several requests in one command the first counts, in the order in which the reference server looks.
    fn from(wire: CommandWire) -> Self {
        let request = (wire.connect.map(Request::Connect))
            .or(wire.ping.map(|_| Request::Ping))
            .or(wire.subscribe.map(Request::Subscribe))
            .or(wire.unsubscribe.map(Request::Unsubscribe))
            .or(wire.publish.map(Request::Publish))
            .or(wire.presence.map(Request::Presence))
            .or(wire.presence_stats.map(Request::PresenceStats))
            .or(wire.history.map(Request::History))
            .or(wire.rpc.map(Request::Rpc))
            .or(wire.send.map(Request::Send))
            .or(wire.refresh.map(Request::Refresh))
            .or(wire.sub_refresh.map(Request::SubRefresh))
            .unwrap_or(if wire.id == 0 { Request::Pong } else { Request::Unknown });
        Command { id: wire.id, request }
    }
}

/// The commands of one frame as it came from a socket. Payloads are copied out of it, so the frame need not outlive
/// them. Memory used is bounded by a constant times the frame's length; an empty frame is an error.
pub fn commands(encoding: Encoding, frame: &[u8]) -> Commands<'_> {
    Commands(Messages::new(encoding, frame))
}

impl Iterator for Commands<'_> {
    type Item = Result<Command, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_as::<CommandWire>().map(|result| result.map(Command::from))
    }
}

/// Appends one command, the client's side of [`commands`]. Between two commands in one frame stands
/// [`Encoding::separator`]. On an error `out` is as it was.
pub fn encode_command(encoding: Encoding, command: &Command, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let id = command.id;
    match &command.request {
        Request::Pong => {
            put_empty(encoding, out);
            Ok(())
        }
        Request::Unknown => {
            put_bare(encoding, id, out);
            Ok(())
        }
        Request::Connect(body) => put(encoding, id, Slot("connect", 4), body.as_ref(), out),
        Request::Subscribe(body) => put(encoding, id, Slot("subscribe", 5), body.as_ref(), out),
        Request::Unsubscribe(body) => put(encoding, id, Slot("unsubscribe", 6), body, out),
        Request::Publish(body) => put(encoding, id, Slot("publish", 7), body, out),
        Request::Presence(body) => put(encoding, id, Slot("presence", 8), body, out),
        Request::PresenceStats(body) => put(encoding, id, Slot("presence_stats", 9), body, out),
        Request::History(body) => put(encoding, id, Slot("history", 10), body, out),
        Request::Ping => put(encoding, id, Slot("ping", 11), &Nothing {}, out),
        Request::Send(body) => put(encoding, id, Slot("send", 12), body, out),
        Request::Rpc(body) => put(encoding, id, Slot("rpc", 13), body, out),
        Request::Refresh(body) => put(encoding, id, Slot("refresh", 14), body, out),
        Request::SubRefresh(body) => put(encoding, id, Slot("sub_refresh", 15), body, out),
    }
}
