//! Results of the server API, with the field names of Centrifugo's.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::ApiError;

/// `{"result": …}` or `{"error": …}`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "{T}Response")]
pub enum Response<T> {
    /// It was done.
    Result(T),
    /// It was not.
    Error(ApiError),
}

impl<T> From<Result<T, ApiError>> for Response<T> {
    fn from(result: Result<T, ApiError>) -> Self {
        match result {
            Ok(result) => Response::Result(result),
            Err(error) => Response::Error(error),
        }
    }
}

/// An empty object.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Empty {}

/// Where a publication stands; empty in a channel without history.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct PublishResult {
    /// Offset in the channel's stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Incarnation of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
}

/// One answer per channel, in the order of the request.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BroadcastResult {
    /// Each says whether its publication was published.
    pub responses: Vec<Response<PublishResult>>,
}

/// Who is subscribed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PresenceResult {
    /// By client id.
    pub presence: BTreeMap<String, ClientInfo>,
}

/// How many are subscribed.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct PresenceStatsResult {
    /// Connections.
    pub num_clients: u32,
    /// Distinct users.
    pub num_users: u32,
}

/// A page of a channel's stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HistoryResult {
    /// In the order asked for.
    pub publications: Vec<Publication>,
    /// Offset of the newest publication.
    pub offset: u64,
    /// Incarnation of the stream.
    pub epoch: String,
}

/// One publication.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Publication {
    /// Offset in the stream.
    pub offset: u64,
    /// Payload as it was published; null when `b64data` holds it.
    pub data: Option<RawJson>,
    /// Payload that is not JSON, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("contentEncoding" = "base64"))]
    pub b64data: Option<String>,
    /// Tags given by the publisher.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Who published, when a client did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<ClientInfo>,
}

/// Who a client is.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ClientInfo {
    /// Id of the connection.
    pub client: String,
    /// User id; empty for an anonymous user.
    pub user: String,
    /// What the connection's token says about the user: any JSON, or base64 of what is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conn_info: Option<RawJson>,
    /// What the subscription's token says about the user: any JSON, or base64 of what is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chan_info: Option<RawJson>,
}

/// Channels with subscribers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChannelsResult {
    /// By name.
    pub channels: BTreeMap<String, ChannelInfo>,
}

/// About one channel.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct ChannelInfo {
    /// Subscribed connections.
    pub num_clients: u32,
}

/// About the cluster.
#[derive(Debug, Serialize, JsonSchema)]
pub struct InfoResult {
    /// Every node that answered.
    pub nodes: Vec<Node>,
}

/// About one node.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Node {
    /// Id of this run of the node.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Connections.
    pub num_clients: u32,
    /// Distinct users.
    pub num_users: u32,
    /// Subscriptions.
    pub num_subs: u32,
    /// Channels with a subscriber on this node.
    pub num_channels: u32,
    /// Seconds since it started.
    pub uptime: u32,
    /// Distinct client ids; a connection that moves has the same id twice for a moment.
    pub num_sessions: u32,
    /// What the process uses.
    pub process: Process,
    /// Rates of the last minute.
    pub metrics: NodeMetrics,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Process {
    /// Processor use over the last minute in percent; 100 is one core.
    pub cpu: f64,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// Numbers by name.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NodeMetrics {
    /// Seconds that they are over; a younger node's are since its start.
    pub interval: f64,
    /// Rates per second and percentiles, named as in `GET /api/stats`; percentiles only with deliveries.
    pub items: BTreeMap<String, f64>,
}

/// One reply per command, in the order of the commands.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BatchResult {
    /// Each holds the result under the method's name, or `error`.
    #[schemars(with = "Vec<crate::Reply>")]
    pub replies: Vec<Box<RawValue>>,
}

/// Valid JSON as it was written.
#[derive(Clone, Debug)]
pub struct RawJson(Bytes);

impl RawJson {
    /// The bytes themselves when they are JSON.
    pub fn new(bytes: &Bytes) -> Option<Self> {
        json(bytes).is_some().then(|| Self(bytes.clone()))
    }

    /// The bytes when they are JSON, else their base64 as a JSON string; `None` for no bytes.
    pub fn or_base64(bytes: &Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        // The alphabet of base64 holds nothing that a JSON string would have to escape.
        Some(Self::new(bytes).unwrap_or_else(|| Self(format!("\"{}\"", STANDARD.encode(bytes)).into())))
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_slice(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl JsonSchema for RawJson {
    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        Schema::from(true)
    }
}

fn json(bytes: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(bytes).ok()
}

impl From<&plenum_protocol::Publication> for Publication {
    fn from(publication: &plenum_protocol::Publication) -> Self {
        let data = RawJson::new(&publication.data);
        Self {
            offset: publication.offset,
            b64data: data.is_none().then(|| STANDARD.encode(&publication.data)),
            data,
            tags: publication.tags.clone(),
            info: publication.info.as_ref().map(ClientInfo::from),
        }
    }
}

impl From<&plenum_protocol::ClientInfo> for ClientInfo {
    fn from(info: &plenum_protocol::ClientInfo) -> Self {
        Self {
            client: info.client.clone(),
            user: info.user.clone(),
            conn_info: RawJson::or_base64(&info.conn_info),
            chan_info: RawJson::or_base64(&info.chan_info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(data: &'static [u8]) -> String {
        let publication = plenum_protocol::Publication { data: data.into(), offset: 7, ..Default::default() };
        serde_json::to_string(&Publication::from(&publication)).unwrap()
    }

    #[test]
    fn a_payload_is_not_written_anew() {
        let data = r#"{"z":1.0,"a":123456789012345678901234567890}"#;
        assert_eq!(publication(data.as_bytes()), format!(r#"{{"offset":7,"data":{data}}}"#));
    }

    #[test]
    fn bytes_that_are_not_json_are_base64() {
        assert_eq!(publication(b"\xff\x00"), r#"{"offset":7,"data":null,"b64data":"/wA="}"#);
        let info = plenum_protocol::ClientInfo { conn_info: Bytes::from_static(b"\xff"), ..Default::default() };
        let text = serde_json::to_string(&ClientInfo::from(&info)).unwrap();
        assert_eq!(text, r#"{"client":"","user":"","conn_info":"/w=="}"#);
    }

    #[test]
    fn a_response_is_a_result_or_an_error() {
        let done: Response<Empty> = Ok(Empty {}).into();
        assert_eq!(serde_json::to_string(&done).unwrap(), r#"{"result":{}}"#);
        let failed: Response<Empty> = Err(ApiError { code: 107, message: "bad request".into() }).into();
        assert_eq!(serde_json::to_string(&failed).unwrap(), r#"{"error":{"code":107,"message":"bad request"}}"#);
        assert_eq!(serde_json::to_string(&PublishResult::default()).unwrap(), "{}");
    }
}
