//! Requests of the server API, with the field names of Centrifugo's.
//!
//! A field of the wrong type is refused while decoding (status 400); a missing or senseless value by `check`, as an
//! error of the method. Unknown fields are ignored, as published. `null` means absent, except for `data`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::decode::{integer, object, offset, with_null};

/// Any JSON, kept as it was written.
pub(crate) type Json = Box<RawValue>;

/// Publishes into one channel.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = payload_given()))]
pub struct PublishRequest {
    /// Channel, at most 255 bytes; ASCII, unless its namespace has a `channel_regex`.
    #[schemars(required, length(min = 1, max = 255), extend("pattern" = ASCII))]
    pub channel: Option<String>,
    /// Payload: any JSON, delivered as it is written here.
    #[serde(default, deserialize_with = "with_null")]
    #[schemars(with = "serde_json::Value")]
    pub data: Option<Json>,
    /// Payload in base64, for bytes that are not JSON; taken instead of `data` when not empty.
    #[schemars(extend("pattern" = BASE64, "contentEncoding" = "base64"))]
    pub b64data: Option<String>,
    /// Deliver to those who are subscribed now, without a position and without history.
    pub skip_history: Option<bool>,
    /// Tags for subscribers.
    pub tags: Option<BTreeMap<String, String>>,
    /// The same key on the same channel publishes once within the log's window (2 minutes), however often it is sent.
    #[schemars(length(max = 255))]
    pub idempotency_key: Option<String>,
    /// Delta compression; not supported, so only `false` is allowed.
    #[schemars(extend("enum" = [false, null]))]
    pub delta: Option<bool>,
    /// Version of the document that the payload holds: a version that is not greater than the last is not published.
    #[schemars(range(min = 0, max = 18446744073709551615u64))]
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<u64>,
    /// Versions of different epochs do not compare; the newest epoch wins.
    #[schemars(length(max = 255))]
    pub version_epoch: Option<String>,
}

/// Publishes the same payload into many channels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = payload_given()))]
pub struct BroadcastRequest {
    /// Channels, each at most 255 bytes; ASCII, unless their namespace has a `channel_regex`.
    #[schemars(required, length(min = 1, max = 10000), extend("items" = channel_schema()))]
    pub channels: Option<Vec<String>>,
    /// Payload: any JSON, delivered as it is written here.
    #[serde(default, deserialize_with = "with_null")]
    #[schemars(with = "serde_json::Value")]
    pub data: Option<Json>,
    /// Payload in base64, for bytes that are not JSON; taken instead of `data` when not empty.
    #[schemars(extend("pattern" = BASE64, "contentEncoding" = "base64"))]
    pub b64data: Option<String>,
    /// Deliver to those who are subscribed now, without positions and without history.
    pub skip_history: Option<bool>,
    /// Tags for subscribers.
    pub tags: Option<BTreeMap<String, String>>,
    /// The same key publishes once per channel within the log's window (2 minutes).
    #[schemars(length(max = 255))]
    pub idempotency_key: Option<String>,
    /// Delta compression; not supported, so only `false` is allowed.
    #[schemars(extend("enum" = [false, null]))]
    pub delta: Option<bool>,
    /// Version of the document that the payload holds: a version that is not greater than the last is not published.
    #[schemars(range(min = 0, max = 18446744073709551615u64))]
    #[serde(default, deserialize_with = "integer")]
    pub version: Option<u64>,
    /// Versions of different epochs do not compare; the newest epoch wins.
    #[schemars(length(max = 255))]
    pub version_epoch: Option<String>,
}

/// Subscribes connections of a user on the server's side.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct SubscribeRequest {
    /// User id.
    #[schemars(required, length(min = 1))]
    pub user: Option<String>,
    /// Channel, at most 255 bytes; ASCII, unless its namespace has a `channel_regex`.
    #[schemars(required, length(min = 1, max = 255), extend("pattern" = ASCII))]
    pub channel: Option<String>,
    /// Only the connection with this client id.
    pub client: Option<String>,
    /// Only the connection with this session id.
    pub session: Option<String>,
    /// When the subscription expires, Unix seconds; 0: never.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub expire_at: Option<i64>,
    /// Channel information of the subscriber for presence, joins and leaves: any JSON.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub info: Option<Json>,
    /// `info` in base64; taken instead of `info` when not empty.
    #[schemars(extend("pattern" = BASE64, "contentEncoding" = "base64"))]
    pub b64info: Option<String>,
    /// For the client, in its subscribe push: any JSON.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub data: Option<Json>,
    /// `data` in base64; taken instead of `data` when not empty.
    #[schemars(extend("pattern" = BASE64, "contentEncoding" = "base64"))]
    pub b64data: Option<String>,
    /// Deliver what was published after this position.
    #[serde(default, deserialize_with = "object")]
    pub recover_since: Option<StreamPosition>,
    /// Options of the namespace that this subscription has otherwise.
    #[serde(rename = "override", default, deserialize_with = "object")]
    pub overrides: Option<SubscribeOverride>,
}

/// Options that differ from the namespace's.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
pub struct SubscribeOverride {
    /// Show the subscriber in presence.
    #[serde(default, deserialize_with = "object")]
    pub presence: Option<BoolValue>,
    /// Announce joining and leaving.
    #[serde(default, deserialize_with = "object")]
    pub join_leave: Option<BoolValue>,
    /// Send joins and leaves without being asked.
    #[serde(default, deserialize_with = "object")]
    pub force_push_join_leave: Option<BoolValue>,
    /// Watch the position.
    #[serde(default, deserialize_with = "object")]
    pub force_positioning: Option<BoolValue>,
    /// Recover after a lost connection.
    #[serde(default, deserialize_with = "object")]
    pub force_recovery: Option<BoolValue>,
}

/// A boolean that can be absent.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BoolValue {
    /// The value.
    pub value: bool,
}

/// A place in a channel's stream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StreamPosition {
    /// Offset of the last publication seen.
    #[schemars(range(min = 0, max = 18446744073709551615u64))]
    #[serde(deserialize_with = "offset")]
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
}

/// Ends a subscription of a user.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct UnsubscribeRequest {
    /// User id.
    #[schemars(required, length(min = 1))]
    pub user: Option<String>,
    /// Channel, at most 255 bytes; the empty string stands for every channel.
    #[schemars(required, length(max = 255), extend("pattern" = ASCII))]
    pub channel: Option<String>,
    /// Only the connection with this client id.
    pub client: Option<String>,
    /// Only the connection with this session id.
    pub session: Option<String>,
}

/// Closes connections of a user, or one by its client or session id alone.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[schemars(extend("anyOf" = somebody_named()))]
pub struct DisconnectRequest {
    /// User id; needed where neither `client` nor `session` is given.
    pub user: Option<String>,
    /// Only the connection with this client id.
    pub client: Option<String>,
    /// Only the connection with this session id.
    pub session: Option<String>,
    /// Client ids that stay connected.
    #[schemars(length(max = 10000))]
    pub whitelist: Option<Vec<String>>,
    /// Code and reason; 3503 `force disconnect` (the client stays away) when absent.
    #[serde(default, deserialize_with = "object")]
    pub disconnect: Option<DisconnectSpec>,
}

/// Why connections are closed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "Disconnect")]
pub struct DisconnectSpec {
    /// 3000 to 3499 and 4000 to 4499: the client comes back; 3500 to 3999 and 4500 to 4999: it stays away.
    #[schemars(required, range(min = 3000, max = 4999))]
    #[serde(deserialize_with = "integer")]
    pub code: Option<u32>,
    /// For people, at most 123 bytes.
    #[schemars(length(max = 123))]
    pub reason: Option<String>,
}

/// Changes when connections of a user expire.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct RefreshRequest {
    /// User id.
    #[schemars(required, length(min = 1))]
    pub user: Option<String>,
    /// Only the connection with this client id.
    pub client: Option<String>,
    /// Only the connection with this session id.
    pub session: Option<String>,
    /// Treat the connections as expired now.
    pub expired: Option<bool>,
    /// New expiry, Unix seconds; 0: never.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub expire_at: Option<i64>,
    /// New connection information: any JSON; absent leaves it.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub info: Option<Json>,
}

macro_rules! about_one_channel {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
        pub struct $name {
            /// Channel, at most 255 bytes; ASCII, unless its namespace has a `channel_regex`.
            #[schemars(required, length(min = 1, max = 255), extend("pattern" = ASCII))]
            pub channel: Option<String>,
        }
    )*};
}

about_one_channel! {
    /// Asks who is subscribed to a channel.
    PresenceRequest
    /// Asks how many are subscribed to a channel.
    PresenceStatsRequest
    /// Hides everything that a channel's history holds now.
    HistoryRemoveRequest
}

/// Reads the history of a channel.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct HistoryRequest {
    /// Channel, at most 255 bytes; ASCII, unless its namespace has a `channel_regex`.
    #[schemars(required, length(min = 1, max = 255), extend("pattern" = ASCII))]
    pub channel: Option<String>,
    /// Most publications in the answer; 0 or absent: only the stream's position; negative: as many as one answer holds.
    #[schemars(range(min = -2147483648, max = 2147483647))]
    #[serde(default, deserialize_with = "integer")]
    pub limit: Option<i32>,
    /// Only what lies after this position (before it, when `reverse`).
    #[serde(default, deserialize_with = "object")]
    pub since: Option<StreamPosition>,
    /// Newest first.
    pub reverse: Option<bool>,
}

/// Asks for active channels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct ChannelsRequest {
    /// Glob pattern (`*`, `?`, `[a-z]`, `{a,b}`); all channels when empty.
    pub pattern: Option<String>,
}

/// Asks for the nodes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct InfoRequest {}

/// The rule for channels in all namespaces but those that have a `channel_regex` of their own.
pub(crate) const ASCII: &str = "^[\\u0000-\\u007f]*$";

/// Standard alphabet with padding.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

fn payload_given() -> serde_json::Value {
    serde_json::json!([
        { "required": ["data"] },
        { "required": ["b64data"], "properties": { "b64data": { "type": "string", "minLength": 4 } } },
    ])
}

fn somebody_named() -> serde_json::Value {
    let named = |field: &str| serde_json::json!({ "required": [field], "properties": { field: { "type": "string", "minLength": 1 } } });
    serde_json::json!([named("user"), named("client"), named("session")])
}

fn channel_schema() -> serde_json::Value {
    serde_json::json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": ASCII })
}
