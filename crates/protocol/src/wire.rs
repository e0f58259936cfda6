//! Wire forms that have a handier public counterpart in [`crate::reply`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::command::Nothing;
use crate::field::messages;
use crate::message::*;
use crate::reply::ErrorReply;

messages! {
    pub(crate) struct ReplyWire {
        id: u32 = (uint32) 1,
        error: Option<ErrorWire> = (message, optional) 2,
        push: Option<Box<PushWire>> = (message, optional, boxed) 4,
        connect: Option<Box<ConnectResult>> = (message, optional, boxed) 5,
        subscribe: Option<Box<SubscribeResult>> = (message, optional, boxed) 6,
        unsubscribe: Option<Nothing> = (message, optional) 7,
        publish: Option<Nothing> = (message, optional) 8,
        presence: Option<PresenceResult> = (message, optional) 9,
        presence_stats: Option<PresenceStatsResult> = (message, optional) 10,
        history: Option<HistoryResult> = (message, optional) 11,
        ping: Option<Nothing> = (message, optional) 12,
        rpc: Option<RpcResult> = (message, optional) 13,
        refresh: Option<RefreshResult> = (message, optional) 14,
        sub_refresh: Option<SubRefreshResult> = (message, optional) 15,
    }

    pub(crate) struct ErrorWire {
        code: u32 = (uint32) 1,
        message: String = (string) 2,
        temporary: bool = (bool) 3,
    }

    pub(crate) struct PushWire {
        channel: String = (string) 2,
        #[serde(rename = "pub")]
        publication: Option<Publication> = (message, optional) 4,
        join: Option<Membership> = (message, optional) 5,
        leave: Option<Membership> = (message, optional) 6,
        unsubscribe: Option<Unsubscribe> = (message, optional) 7,
        message: Option<Payload> = (message, optional) 8,
        subscribe: Option<SubscribePush> = (message, optional) 9,
        connect: Option<Box<Connected>> = (message, optional, boxed) 10,
        disconnect: Option<Disconnected> = (message, optional) 11,
        refresh: Option<Refreshed> = (message, optional) 12,
    }

    pub(crate) struct Membership {
        info: Option<ClientInfo> = (message, optional) 1,
    }

    pub(crate) struct Unsubscribe {
        code: u32 = (uint32) 2,
        reason: String = (string) 3,
    }

    pub(crate) struct Payload {
        data: Bytes = (bytes = "bytes") 1,
    }

    pub(crate) struct Disconnected {
        code: u32 = (uint32) 1,
        reason: String = (string) 2,
        reconnect: bool = (bool) 3,
    }

    pub(crate) struct Refreshed {
        expires: bool = (bool) 1,
        ttl: u32 = (uint32) 2,
    }

    /// An entry of a map as it stands on the wire. As a map, prost leaves out a value that equals its default, and
    /// the JavaScript SDK then reads `null` where it expects a subscription.
    pub(crate) struct SubEntry {
        key: String = (string) 1,
        value: Option<SubscribeResult> = (message, optional) 2,
    }

    /// [`ConnectResult`] as a reply in Protobuf.
    pub(crate) struct ConnectReply {
        client: String = (string) 1,
        version: String = (string) 2,
        expires: bool = (bool) 3,
        ttl: u32 = (uint32) 4,
        data: Bytes = (bytes = "bytes") 5,
        subs: Vec<SubEntry> = (message, repeated) 6,
        ping: u32 = (uint32) 7,
        pong: bool = (bool) 8,
        session: String = (string) 9,
        node: String = (string) 10,
        time: i64 = (int64) 11,
    }

    /// [`ConnectResult`] as a push in Protobuf.
    pub(crate) struct ConnectPush {
        client: String = (string) 1,
        version: String = (string) 2,
        data: Bytes = (bytes = "bytes") 3,
        subs: Vec<SubEntry> = (message, repeated) 4,
        expires: bool = (bool) 5,
        ttl: u32 = (uint32) 6,
        ping: u32 = (uint32) 7,
        pong: bool = (bool) 8,
        session: String = (string) 9,
        node: String = (string) 10,
        time: i64 = (int64) 11,
    }

    /// The fields of [`ConnectResult`] under the numbers that they have in a push, to be decoded.
    pub(crate) struct Connected {
        client: String = (string) 1,
        version: String = (string) 2,
        data: Bytes = (bytes = "bytes") 3,
        subs: BTreeMap<String, SubscribeResult> = (btree_map = "string, message") 4,
        expires: bool = (bool) 5,
        ttl: u32 = (uint32) 6,
        ping: u32 = (uint32) 7,
        pong: bool = (bool) 8,
        session: String = (string) 9,
        node: String = (string) 10,
        time: i64 = (int64) 11,
    }
}

impl From<&ClientInfo> for Membership {
    fn from(info: &ClientInfo) -> Self {
        Membership { info: Some(info.clone()) }
    }
}

impl From<&ErrorReply> for ErrorWire {
    fn from(error: &ErrorReply) -> Self {
        ErrorWire { code: error.code, message: error.message.to_string(), temporary: error.temporary }
    }
}

impl From<ErrorWire> for ErrorReply {
    fn from(wire: ErrorWire) -> Self {
        ErrorReply { code: wire.code, message: Cow::Owned(wire.message), temporary: wire.temporary }
    }
}

/// Copies a [`ConnectResult`] into the form of the same fields with the subscriptions as entries.
macro_rules! with_entries {
    ($result:expr, $form:ident: $($field:ident)*) => {{
        let result: &ConnectResult = $result;
        let subs = (result.subs.iter())
            .map(|(channel, sub)| SubEntry { key: channel.clone(), value: Some(sub.clone()) })
            .collect();
        $form { subs, $($field: result.$field.clone()),* }
    }};
}

impl From<&ConnectResult> for ConnectReply {
    fn from(result: &ConnectResult) -> Self {
        with_entries!(result, ConnectReply: client version data expires ttl ping pong session node time)
    }
}

impl From<&ConnectResult> for ConnectPush {
    fn from(result: &ConnectResult) -> Self {
        with_entries!(result, ConnectPush: client version data expires ttl ping pong session node time)
    }
}

impl From<Connected> for ConnectResult {
    fn from(wire: Connected) -> Self {
        let Connected { client, version, data, subs, expires, ttl, ping, pong, session, node, time } = wire;
        ConnectResult { client, version, data, subs, expires, ttl, ping, pong, session, node, time }
    }
}
