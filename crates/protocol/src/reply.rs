//! Replies and pushes: what a server sends.

use std::borrow::Cow;

use bytes::Bytes;

use crate::Encoding;
use crate::command::Nothing;
use crate::envelope::{Slot, put, put_empty, put_push};
use crate::frame::{DecodeError, EncodeError, Messages, Replies};
use crate::message::*;
use crate::wire::{
    ConnectPush, ConnectReply, Disconnected, ErrorWire, Membership, Payload, PushWire, Refreshed, ReplyWire,
    Unsubscribe,
};

/// One message from the server.
// Replies are made, encoded and gone; a box would cost an allocation for each publication.
#[expect(clippy::large_enum_variant)]
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Reply {
    /// A ping: a reply with nothing in it.
    #[default]
    Ping,
    /// A command succeeded.
    Result {
        /// Id of the command.
        id: u32,
        /// What it gave.
        result: ReplyResult,
    },
    /// A command failed.
    Error {
        /// Id of the command.
        id: u32,
        /// Why.
        error: ErrorReply,
    },
    /// Something that no command asked for.
    Push(Push),
}

/// What a command gave.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyResult {
    /// To connect.
    Connect(Box<ConnectResult>),
    /// To subscribe.
    Subscribe(Box<SubscribeResult>),
    /// To unsubscribe.
    Unsubscribe,
    /// To publish.
    Publish,
    /// To presence.
    Presence(PresenceResult),
    /// To presence_stats.
    PresenceStats(PresenceStatsResult),
    /// To history.
    History(HistoryResult),
    /// To ping.
    Ping,
    /// To rpc.
    Rpc(RpcResult),
    /// To refresh.
    Refresh(RefreshResult),
    /// To sub_refresh.
    SubRefresh(SubRefreshResult),
}

/// Why a command failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorReply {
    /// One of [`crate::codes`], or the application's own.
    pub code: u32,
    /// For people.
    pub message: Cow<'static, str>,
    /// Trying again later may help.
    pub temporary: bool,
}

/// Something that the server sends by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// Channel that it is about; empty for the connection.
    pub channel: String,
    /// What happened.
    pub event: PushEvent,
}

/// What a push says.
#[derive(Debug, Clone, PartialEq)]
pub enum PushEvent {
    /// A message in the channel.
    Publication(Publication),
    /// A client came into the channel.
    Join(ClientInfo),
    /// A client left the channel.
    Leave(ClientInfo),
    /// The server ended the subscription.
    Unsubscribe {
        /// One of [`crate::codes::Unsubscribed`]; from 2500 on the client subscribes again.
        code: u32,
        /// For people.
        reason: String,
    },
    /// A message to the connection.
    Message {
        /// Payload.
        data: Bytes,
    },
    /// The server subscribed the client.
    Subscribe(SubscribePush),
    /// The server connected the client, on transports without commands.
    Connect(Box<ConnectResult>),
    /// The server is about to close, on transports without close codes.
    Disconnect {
        /// One of [`crate::codes::Disconnect`].
        code: u32,
        /// For people.
        reason: String,
        /// The client shall come back; kept for older clients, which do not read it off the code.
        reconnect: bool,
    },
    /// The server set a new expiry of the connection.
    Refresh {
        /// The connection ends unless refreshed.
        expires: bool,
        /// Seconds until then.
        ttl: u32,
    },
}

/// Appends one message: JSON without a line end, Protobuf with its length prefix. Between two messages in one frame
/// stands [`Encoding::separator`]. On an error `out` is as it was.
pub fn encode(encoding: Encoding, reply: &Reply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match reply {
        Reply::Ping => {
            put_empty(encoding, out);
            Ok(())
        }
        Reply::Result { id, result } => encode_result(encoding, *id, result, out),
        Reply::Error { id, error } => put(encoding, *id, Slot("error", 2), &ErrorWire::from(error), out),
        Reply::Push(push) => encode_push(encoding, push, out),
    }
}

/// Appends the push of a publication, as [`encode`] would, without taking a copy of it first.
pub fn encode_publication(
    encoding: Encoding,
    channel: &str,
    publication: &Publication,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    out.reserve(publication.data.len() + channel.len() + 64);
    put_push(encoding, channel, Slot("pub", 4), publication, out)
}

fn encode_result(encoding: Encoding, id: u32, result: &ReplyResult, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match result {
        ReplyResult::Connect(body) => match encoding {
            Encoding::Json => put(encoding, id, Slot("connect", 5), body.as_ref(), out),
            Encoding::Protobuf => put(encoding, id, Slot("connect", 5), &ConnectReply::from(body.as_ref()), out),
        },
        ReplyResult::Subscribe(body) => put(encoding, id, Slot("subscribe", 6), body.as_ref(), out),
        ReplyResult::Unsubscribe => put(encoding, id, Slot("unsubscribe", 7), &Nothing {}, out),
        ReplyResult::Publish => put(encoding, id, Slot("publish", 8), &Nothing {}, out),
        ReplyResult::Presence(body) => put(encoding, id, Slot("presence", 9), body, out),
        ReplyResult::PresenceStats(body) => put(encoding, id, Slot("presence_stats", 10), body, out),
        ReplyResult::History(body) => put(encoding, id, Slot("history", 11), body, out),
        ReplyResult::Ping => put(encoding, id, Slot("ping", 12), &Nothing {}, out),
        ReplyResult::Rpc(body) => put(encoding, id, Slot("rpc", 13), body, out),
        ReplyResult::Refresh(body) => put(encoding, id, Slot("refresh", 14), body, out),
        ReplyResult::SubRefresh(body) => put(encoding, id, Slot("sub_refresh", 15), body, out),
    }
}

fn encode_push(encoding: Encoding, push: &Push, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let channel = push.channel.as_str();
    match &push.event {
        PushEvent::Publication(body) => encode_publication(encoding, channel, body, out),
        PushEvent::Join(info) => put_push(encoding, channel, Slot("join", 5), &Membership::from(info), out),
        PushEvent::Leave(info) => put_push(encoding, channel, Slot("leave", 6), &Membership::from(info), out),
        PushEvent::Unsubscribe { code, reason } => {
            let body = Unsubscribe { code: *code, reason: reason.clone() };
            put_push(encoding, channel, Slot("unsubscribe", 7), &body, out)
        }
        PushEvent::Message { data } => {
            put_push(encoding, channel, Slot("message", 8), &Payload { data: data.clone() }, out)
        }
        PushEvent::Subscribe(body) => put_push(encoding, channel, Slot("subscribe", 9), body, out),
        PushEvent::Connect(body) => match encoding {
            Encoding::Json => put_push(encoding, channel, Slot("connect", 10), body.as_ref(), out),
            Encoding::Protobuf => {
                put_push(encoding, channel, Slot("connect", 10), &ConnectPush::from(body.as_ref()), out)
            }
        },
        PushEvent::Disconnect { code, reason, reconnect } => {
            let body = Disconnected { code: *code, reason: reason.clone(), reconnect: *reconnect };
            put_push(encoding, channel, Slot("disconnect", 11), &body, out)
        }
        PushEvent::Refresh { expires, ttl } => {
            put_push(encoding, channel, Slot("refresh", 12), &Refreshed { expires: *expires, ttl: *ttl }, out)
        }
    }
}

/// The replies of one frame, the client's side of [`encode`].
pub fn replies(encoding: Encoding, frame: &[u8]) -> Replies<'_> {
    Replies(Messages::new(encoding, frame))
}

impl Iterator for Replies<'_> {
    type Item = Result<Reply, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reply = self.0.next_as::<ReplyWire>()?.and_then(Reply::try_from);
        if reply.is_err() {
            self.0.end();
        }
        Some(reply)
    }
}

impl TryFrom<ReplyWire> for Reply {
    type Error = DecodeError;

    fn try_from(wire: ReplyWire) -> Result<Self, DecodeError> {
        let id = wire.id;
        if let Some(error) = wire.error {
            return Ok(Reply::Error { id, error: error.into() });
        }
        if let Some(push) = wire.push {
            return Ok(Reply::Push((*push).try_into()?));
        }
        let result = (wire.connect.map(ReplyResult::Connect))
            .or(wire.subscribe.map(ReplyResult::Subscribe))
            .or(wire.unsubscribe.map(|_| ReplyResult::Unsubscribe))
            .or(wire.publish.map(|_| ReplyResult::Publish))
            .or(wire.presence.map(ReplyResult::Presence))
            .or(wire.presence_stats.map(ReplyResult::PresenceStats))
            .or(wire.history.map(ReplyResult::History))
            .or(wire.ping.map(|_| ReplyResult::Ping))
            .or(wire.rpc.map(ReplyResult::Rpc))
            .or(wire.refresh.map(ReplyResult::Refresh))
            .or(wire.sub_refresh.map(ReplyResult::SubRefresh));
        match result {
            Some(result) => Ok(Reply::Result { id, result }),
            None if id == 0 => Ok(Reply::Ping),
            None => Err(DecodeError::UnknownReply { id }),
        }
    }
}

impl TryFrom<PushWire> for Push {
    type Error = DecodeError;

    fn try_from(wire: PushWire) -> Result<Self, DecodeError> {
        let event = (wire.publication.map(PushEvent::Publication))
            .or(wire.join.map(|body| PushEvent::Join(body.info.unwrap_or_default())))
            .or(wire.leave.map(|body| PushEvent::Leave(body.info.unwrap_or_default())))
            .or(wire.unsubscribe.map(|body| PushEvent::Unsubscribe { code: body.code, reason: body.reason }))
            .or(wire.message.map(|body| PushEvent::Message { data: body.data }))
            .or(wire.subscribe.map(PushEvent::Subscribe))
            .or(wire.connect.map(|body| PushEvent::Connect(Box::new((*body).into()))))
            .or(wire.disconnect.map(|body| PushEvent::Disconnect {
                code: body.code,
                reason: body.reason,
                reconnect: body.reconnect,
            }))
            .or(wire.refresh.map(|body| PushEvent::Refresh { expires: body.expires, ttl: body.ttl }))
            .ok_or(DecodeError::UnknownReply { id: 0 })?;
        Ok(Push { channel: wire.channel, event })
    }
}
