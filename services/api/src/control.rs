//! User control: who is kept out, and who is there. Names and fields are those of Centrifugo PRO.

use std::collections::BTreeMap;
use std::sync::Arc;

use plenum_channels::Node;
use plenum_telemetry::ApiMethod;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ApiError;
use crate::check;
use crate::decode::integer;
use crate::methods::Call;
use crate::request::ASCII;
use crate::response::{Empty, RawJson};

/// Keeps a user out.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct BlockUserRequest {
    /// User id, 1 to 1024 characters.
    #[schemars(required, length(min = 1, max = 1024))]
    pub user: Option<String>,
    /// When the block ends, Unix seconds; 0 or absent: when the user is unblocked.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub expire_at: Option<i64>,
}

/// Lets a user in again.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct UnblockUserRequest {
    /// User id, 1 to 1024 characters.
    #[schemars(required, length(min = 1, max = 1024))]
    pub user: Option<String>,
}

/// Calls a token back.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct RevokeTokenRequest {
    /// Id of the token, its claim `jti`; 1 to 1024 characters.
    #[schemars(required, length(min = 1, max = 1024))]
    pub uid: Option<String>,
    /// When the entry may be forgotten, Unix seconds: the token's own expiry; 0 or absent: never.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub expire_at: Option<i64>,
}

/// Calls a user's older tokens back.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct InvalidateUserTokensRequest {
    /// User id, 1 to 1024 characters.
    #[schemars(required, length(min = 1, max = 1024))]
    pub user: Option<String>,
    /// When the entry may be forgotten, Unix seconds; 0 or absent: never.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub expire_at: Option<i64>,
    /// Tokens whose claim `iat` is before this are void, Unix seconds; 0 or absent: now.
    #[schemars(range(min = 0, max = 9223372036854775807u64))]
    #[serde(default, deserialize_with = "integer")]
    pub issued_before: Option<i64>,
    /// Subscription tokens of this channel, at most 255 bytes, instead of connection tokens.
    #[schemars(length(max = 255), extend("pattern" = ASCII))]
    pub channel: Option<String>,
}

/// Asks for a user's connections.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct ConnectionsRequest {
    /// User id, 1 to 1024 characters.
    #[schemars(required, length(min = 1, max = 1024))]
    pub user: Option<String>,
}

/// A user's connections.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConnectionsResult {
    /// By client id.
    pub connections: BTreeMap<String, ConnectionInfo>,
}

/// One connection.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConnectionInfo {
    /// Name that the client gave for its program or SDK.
    pub app_name: String,
    /// Version that the client gave.
    pub app_version: String,
    /// How it is carried: `websocket`.
    pub transport: String,
    /// How messages are encoded: `json` or `protobuf`.
    pub protocol: String,
    /// User id.
    pub user: String,
    /// What else is known.
    pub state: ConnectionState,
}

/// What else is known of a connection.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConnectionState {
    /// The connection token, if it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_token: Option<ConnectionTokenInfo>,
    /// `meta` of the token: for the server only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<RawJson>,
}

/// About a connection token.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ConnectionTokenInfo {
    /// Its id, the claim `jti`; empty for none.
    pub uid: String,
    /// When it was issued, the claim `iat`; 0 for none.
    pub issued_at: u64,
}

impl Call for BlockUserRequest {
    const METHOD: ApiMethod = ApiMethod::BlockUser;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let user = check::id("user", self.user)?;
        node.block_user(&user, check::unix_time("expire_at", self.expire_at)?).await?;
        Ok(Empty {})
    }
}

impl Call for UnblockUserRequest {
    const METHOD: ApiMethod = ApiMethod::UnblockUser;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        node.unblock_user(&check::id("user", self.user)?).await?;
        Ok(Empty {})
    }
}

impl Call for RevokeTokenRequest {
    const METHOD: ApiMethod = ApiMethod::RevokeToken;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let uid = check::id("uid", self.uid)?;
        node.revoke_token(&uid, check::unix_time("expire_at", self.expire_at)?).await?;
        Ok(Empty {})
    }
}

impl Call for InvalidateUserTokensRequest {
    const METHOD: ApiMethod = ApiMethod::InvalidateUserTokens;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let user = check::id("user", self.user)?;
        let channel = check::channel_or_all(Some(self.channel.unwrap_or_default()))?;
        let issued_before = check::unix_time("issued_before", self.issued_before)?;
        let expire_at = check::unix_time("expire_at", self.expire_at)?;
        node.invalidate_user_tokens(&user, &channel, issued_before, expire_at).await?;
        Ok(Empty {})
    }
}

impl Call for ConnectionsRequest {
    const METHOD: ApiMethod = ApiMethod::Connections;
    type Result = ConnectionsResult;

    async fn call(self, node: &Arc<Node>) -> Result<ConnectionsResult, ApiError> {
        let found = node.connections(&check::id("user", self.user)?).await?;
        let connections = found.into_iter().map(|(client, found)| (client, found.into()));
        Ok(ConnectionsResult { connections: connections.collect() })
    }
}

impl From<plenum_channels::ConnectionInfo> for ConnectionInfo {
    fn from(found: plenum_channels::ConnectionInfo) -> Self {
        let token =
            |token: plenum_channels::TokenInfo| ConnectionTokenInfo { uid: token.uid, issued_at: token.issued_at };
        Self {
            app_name: found.app_name,
            app_version: found.app_version,
            transport: found.transport,
            protocol: found.protocol,
            user: found.user,
            state: ConnectionState {
                connection_token: found.token.map(token),
                meta: RawJson::or_base64(&found.meta.into()),
            },
        }
    }
}
