//! Tokens: what an application's signed token grants.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How a server-side subscription differs from what its namespace says; absent fields follow the namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SubscribeOptions {
    /// Channel information of the subscriber, raw bytes; empty for none.
    pub info: Bytes,
    /// Custom data for the client, raw bytes; empty for none.
    pub data: Bytes,
    /// When the subscription expires, Unix seconds; 0: never.
    pub expire_at: u64,
    /// Overrides of namespace options.
    #[serde(rename = "override")]
    pub overrides: SubscribeOverrides,
    /// Recover since this position, for a subscription made by API.
    pub since: Option<(u64, String)>,
}

/// Namespace options that a token or the API may override for one subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeOverrides {
    /// `presence`
    pub presence: Option<bool>,
    /// `join_leave`
    pub join_leave: Option<bool>,
    /// `force_push_join_leave`
    pub force_push_join_leave: Option<bool>,
    /// `force_recovery`
    pub force_recovery: Option<bool>,
    /// `force_positioning`
    pub force_positioning: Option<bool>,
}

/// What a valid connection token says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConnectionClaims {
    /// `sub`; empty for an anonymous user.
    pub user: String,
    /// When the connection expires, Unix seconds; 0: never (`expire_at` when given, else `exp`).
    pub expire_at: u64,
    /// `info` or `b64info`: connection information that others may see.
    pub info: Bytes,
    /// `meta`: for the server only, never sent to any client.
    pub meta: Bytes,
    /// `subs` and `channels`: server-side subscriptions.
    pub subscriptions: BTreeMap<String, SubscribeOptions>,
    /// `jti`: by which the token can be revoked; empty for none.
    pub token_id: String,
    /// `iat`, Unix seconds; 0 when the token does not say.
    pub issued_at: u64,
}

/// What a valid subscription token says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscriptionClaims {
    /// `sub`; must equal the connection's user.
    pub user: String,
    /// `channel`; must equal the channel asked for.
    pub channel: String,
    /// `client`; when not empty it must equal the connection's client id.
    pub client: String,
    /// `expire_at` (else `exp`), info and overrides.
    pub options: SubscribeOptions,
    /// `jti`: by which the token can be revoked; empty for none.
    pub token_id: String,
    /// `iat`, Unix seconds; 0 when the token does not say.
    pub issued_at: u64,
}

/// Why a token grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was valid and its time is over: the client should get a new one.
    #[error("token expired")]
    Expired,
    /// It is not acceptable; the reason is for logs and holds nothing of the token.
    #[error("invalid token: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// Its key could not be fetched now.
    #[error("token keys are unavailable: {reason}")]
    Unavailable {
        /// For operators.
        reason: String,
    },
}

/// Verifies tokens.
#[async_trait]
pub trait Tokens: Send + Sync + 'static {
    /// Verifies a connection token (connect, refresh).
    async fn connection(&self, token: &str) -> Result<ConnectionClaims, TokenError>;

    /// Verifies a subscription token (subscribe, sub_refresh).
    async fn subscription(&self, token: &str) -> Result<SubscriptionClaims, TokenError>;
}
