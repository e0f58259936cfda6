//! The messages of the protocol, with the field names and numbers of `client.proto` in centrifugal/protocol.
//!
//! A payload (`data`, `conn_info`, `chan_info`, …) is the sender's bytes, untouched; empty means absent. Fields of
//! features that we do not have are here as well, so that they can be refused rather than overlooked.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::field::messages;

/// Bits of [`SubscribeRequest::flag`].
pub mod subscribe_flag {
    /// The client understands pushes that name a channel by number. A server may ignore it.
    pub const CHANNEL_COMPACTION: i64 = 1;
    /// A recovery that fails shall be answered by error 112 instead of a subscription with `recovered: false`.
    pub const REJECT_UNRECOVERED: i64 = 2;
}

/// Values of [`SubscribeRequest::kind`].
pub mod subscription_type {
    /// A stream of publications, the default and the only one we have.
    pub const STREAM: i32 = 0;
    /// A map of keys to values.
    pub const MAP: i32 = 1;
    /// Presence of clients as a map.
    pub const MAP_CLIENTS: i32 = 2;
    /// Presence of users as a map.
    pub const MAP_USERS: i32 = 3;
    /// Items that the server polls for all of its subscribers.
    pub const SHARED_POLL: i32 = 4;
}

messages! {
    /// Who a client is, as other clients see it.
    pub struct ClientInfo {
        /// User id; empty for an anonymous user.
        user: String = (string) 1 always,
        /// Id of the connection.
        client: String = (string) 2 always,
        /// What the connection's token says about the user.
        conn_info: Bytes = (bytes = "bytes") 3,
        /// What the subscription's token says about the user.
        chan_info: Bytes = (bytes = "bytes") 4,
    }

    /// One message in a channel.
    pub struct Publication {
        /// Payload.
        data: Bytes = (bytes = "bytes") 4,
        /// Who published, when a client did.
        info: Option<ClientInfo> = (message, optional) 5,
        /// Position in the channel's stream; 0 when the channel keeps none.
        offset: u64 = (uint64) 6,
        /// Tags given by the publisher.
        tags: BTreeMap<String, String> = (btree_map = "string, string") 7,
        /// `data` is a difference to the publication before (not in use here).
        delta: bool = (bool) 8,
        /// Unix time in milliseconds; 0 for unknown.
        time: i64 = (int64) 9,
        /// Channel, for a subscription that covers several.
        channel: String = (string) 10,
        /// Key of a map entry.
        key: String = (string) 11,
        /// The map entry was removed.
        removed: bool = (bool) 12,
        /// Rank of a map entry.
        score: i64 = (sint64) 13,
        /// Epoch of the stream, where it is not known from the subscription.
        epoch: String = (string) 14,
        /// Payload before this one, between servers.
        prev_data: Bytes = (bytes = "bytes") 15,
        /// Version of a shared-poll item.
        version: u64 = (uint64) 16,
    }

    /// A place in a channel's stream.
    pub struct StreamPosition {
        /// Offset of the last publication seen.
        offset: u64 = (uint64) 1,
        /// Which incarnation of the stream `offset` counts in.
        epoch: String = (string) 2,
    }

    /// First command of a connection.
    pub struct ConnectRequest {
        /// Connection token (JWT); empty for none.
        token: String = (string) 1,
        /// Payload for the application.
        data: Bytes = (bytes = "bytes") 2,
        /// Positions of server-side subscriptions, to be recovered, by channel.
        subs: BTreeMap<String, SubscribeRequest> = (btree_map = "string, message") 3,
        /// Name of the client's program or SDK.
        name: String = (string) 4,
        /// Version of the client's program or SDK.
        version: String = (string) 5,
        /// Headers that a browser cannot set.
        headers: BTreeMap<String, String> = (btree_map = "string, string") 6,
        /// Features of the connection, as bits; none is known.
        flag: i64 = (int64) 7,
    }

    /// Answer to connect.
    pub struct ConnectResult {
        /// Id of the connection.
        client: String = (string) 1,
        /// Version of the server.
        version: String = (string) 2,
        /// The connection ends unless refreshed.
        expires: bool = (bool) 3,
        /// Seconds until then.
        ttl: u32 = (uint32) 4,
        /// Payload of the application.
        data: Bytes = (bytes = "bytes") 5,
        /// Server-side subscriptions by channel.
        subs: BTreeMap<String, SubscribeResult> = (btree_map = "string, message") 6,
        /// Seconds between the server's pings; 0 for none.
        ping: u32 = (uint32) 7,
        /// The server expects an answer to each ping.
        pong: bool = (bool) 8,
        /// Session id, for transports in two halves.
        session: String = (string) 9,
        /// Node id, for transports in two halves.
        node: String = (string) 10,
        /// The server's Unix time in milliseconds; 0 when not sent.
        time: i64 = (int64) 11,
    }

    /// Subscribes to a channel, or says in [`ConnectRequest::subs`] where a server-side subscription stood.
    pub struct SubscribeRequest {
        /// Channel.
        channel: String = (string) 1,
        /// Subscription token (JWT); empty for none.
        token: String = (string) 2,
        /// Recover what was published since `epoch` and `offset`.
        recover: bool = (bool) 3,
        /// Epoch last known.
        epoch: String = (string) 6,
        /// Offset last seen.
        offset: u64 = (uint64) 7,
        /// Payload for the application.
        data: Bytes = (bytes = "bytes") 8,
        /// Ask for positioning.
        positioned: bool = (bool) 9,
        /// Ask for recovery.
        recoverable: bool = (bool) 10,
        /// Ask for join and leave events.
        join_leave: bool = (bool) 11,
        /// Kind of differences that the client understands, such as `fossil`; empty for none.
        delta: String = (string) 12,
        /// Filter by tags.
        tf: Option<FilterNode> = (message, optional) 13,
        /// Bits of [`subscribe_flag`].
        flag: i64 = (int64) 14,
        /// One of [`subscription_type`].
        #[serde(rename = "type")]
        kind: i32 = (int32) 15,
        /// Phase of a map subscription.
        phase: i32 = (int32) 16,
        /// Page of a map subscription.
        cursor: String = (string) 17,
        /// Page size of a map subscription.
        limit: i32 = (int32) 18,
        /// Order of a map subscription.
        asc: bool = (bool) 19,
    }

    /// Answer to subscribe, and the state of a server-side subscription.
    pub struct SubscribeResult {
        /// The subscription ends unless refreshed.
        expires: bool = (bool) 1,
        /// Seconds until then.
        ttl: u32 = (uint32) 2,
        /// The channel can be recovered.
        recoverable: bool = (bool) 3,
        /// Epoch of the stream.
        epoch: String = (string) 6,
        /// What was missed, oldest first.
        publications: Vec<Publication> = (message, repeated) 7,
        /// Nothing was lost.
        recovered: bool = (bool) 8,
        /// Position of the stream at the time of the answer.
        offset: u64 = (uint64) 9,
        /// The position is watched.
        positioned: bool = (bool) 10,
        /// Payload of the application.
        data: Bytes = (bytes = "bytes") 11,
        /// Recovery was asked for.
        was_recovering: bool = (bool) 12,
        /// Publications may be differences.
        delta: bool = (bool) 13,
        /// Number that stands for the channel in pushes.
        id: i64 = (int64) 14,
        /// One of [`subscription_type`].
        #[serde(rename = "type")]
        kind: i32 = (int32) 15,
        /// Phase of a map subscription.
        phase: i32 = (int32) 16,
        /// Next page of a map subscription.
        cursor: String = (string) 17,
        /// Entries of a map subscription.
        state: Vec<Publication> = (message, repeated) 18,
        /// Milliseconds in which a client gathers its publications into one.
        publish_debounce: u32 = (uint32) 19,
    }

    /// A node of a filter by tags: a comparison, or `and`, `or`, `not` over `nodes`.
    pub struct FilterNode {
        /// `and`, `or`, `not`; empty for a comparison.
        op: String = (string) 1,
        /// Tag to compare.
        key: String = (string) 2,
        /// Comparison.
        cmp: String = (string) 3,
        /// Value to compare with.
        val: String = (string) 4,
        /// Values to compare with.
        vals: Vec<String> = (string, repeated) 5,
        /// Operands of `op`.
        nodes: Vec<FilterNode> = (message, repeated) 6,
    }

    /// Ends a subscription.
    pub struct UnsubscribeRequest {
        /// Channel.
        channel: String = (string) 1,
    }

    /// Publishes into a channel.
    pub struct PublishRequest {
        /// Channel.
        channel: String = (string) 1,
        /// Payload.
        data: Bytes = (bytes = "bytes") 2,
        /// 0 for a publication, 1 for an entry of a map.
        #[serde(rename = "type")]
        kind: i32 = (int32) 3,
        /// Key of the map entry.
        key: String = (string) 4,
        /// Remove the map entry.
        removed: bool = (bool) 5,
    }

    /// Asks who is in a channel.
    pub struct PresenceRequest {
        /// Channel.
        channel: String = (string) 1,
    }

    /// Answer to presence.
    pub struct PresenceResult {
        /// Clients by connection id.
        presence: BTreeMap<String, ClientInfo> = (btree_map = "string, message") 1 always,
    }

    /// Asks how many are in a channel.
    pub struct PresenceStatsRequest {
        /// Channel.
        channel: String = (string) 1,
    }

    /// Answer to presence_stats.
    pub struct PresenceStatsResult {
        /// Connections.
        num_clients: u32 = (uint32) 1 always,
        /// Different user ids among them.
        num_users: u32 = (uint32) 2 always,
    }

    /// Reads a channel's history.
    pub struct HistoryRequest {
        /// Channel.
        channel: String = (string) 1,
        /// Most publications wanted; 0 for the position alone, negative for as many as the server gives.
        limit: i32 = (int32) 7,
        /// Read what lies after (with `reverse`: before) this position.
        since: Option<StreamPosition> = (message, optional) 8,
        /// Newest first.
        reverse: bool = (bool) 9,
    }

    /// Answer to history.
    pub struct HistoryResult {
        /// In the order asked for.
        publications: Vec<Publication> = (message, repeated) 1 always,
        /// Epoch of the stream.
        epoch: String = (string) 2 always,
        /// Last offset of the stream.
        offset: u64 = (uint64) 3 always,
    }

    /// A message to the server without an answer.
    pub struct SendRequest {
        /// Payload.
        data: Bytes = (bytes = "bytes") 1,
    }

    /// Calls a procedure of the application.
    pub struct RpcRequest {
        /// Payload.
        data: Bytes = (bytes = "bytes") 1,
        /// Name of the procedure.
        method: String = (string) 2,
    }

    /// Answer to rpc.
    pub struct RpcResult {
        /// Payload.
        data: Bytes = (bytes = "bytes") 1,
    }

    /// Brings a new connection token.
    pub struct RefreshRequest {
        /// Connection token (JWT).
        token: String = (string) 1,
    }

    /// Answer to refresh.
    pub struct RefreshResult {
        /// Id of the connection.
        client: String = (string) 1,
        /// Version of the server.
        version: String = (string) 2,
        /// The connection ends unless refreshed.
        expires: bool = (bool) 3,
        /// Seconds until then.
        ttl: u32 = (uint32) 4,
    }

    /// Brings a new subscription token.
    pub struct SubRefreshRequest {
        /// Channel.
        channel: String = (string) 1,
        /// Subscription token (JWT).
        token: String = (string) 2,
        /// 0 for a refresh; 1 and 2 start and stop tracking shared-poll items.
        #[serde(rename = "type")]
        kind: i32 = (int32) 3,
        /// Shared-poll items to track.
        track: Vec<TrackBatch> = (message, repeated) 4,
        /// Shared-poll items to forget.
        untrack: Vec<String> = (string, repeated) 5,
    }

    /// Answer to sub_refresh.
    pub struct SubRefreshResult {
        /// The subscription ends unless refreshed.
        expires: bool = (bool) 1,
        /// Seconds until then.
        ttl: u32 = (uint32) 2,
        /// Shared-poll items.
        items: Vec<Publication> = (message, repeated) 3,
    }

    /// Shared-poll items under one signature.
    pub struct TrackBatch {
        /// Signature of the application.
        signature: String = (string) 1,
        /// The items.
        items: Vec<KeyedItem> = (message, repeated) 2,
    }

    /// A shared-poll item.
    pub struct KeyedItem {
        /// Key.
        key: String = (string) 1,
        /// Version that the client has.
        version: u64 = (uint64) 2,
    }

    /// Push: the server subscribed the client to a channel.
    pub struct SubscribePush {
        /// The channel can be recovered.
        recoverable: bool = (bool) 1,
        /// Epoch of the stream.
        epoch: String = (string) 4,
        /// Position of the stream.
        offset: u64 = (uint64) 5,
        /// The position is watched.
        positioned: bool = (bool) 6,
        /// Payload of the application.
        data: Bytes = (bytes = "bytes") 7,
    }
}
