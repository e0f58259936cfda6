//! Signing with HS256, for the command line and for tests: applications sign their own tokens.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use plenum_channels::SubscribeOverrides;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// What a connection token should say; absent fields are left out of it. Times are Unix seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConnectionTokenSpec {
    /// `sub`; empty for an anonymous user.
    #[serde(rename = "sub")]
    pub user: String,
    /// When the token expires; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When it was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// When the connection expires, if not at `exp`; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<u64>,
    /// `aud`.
    #[serde(rename = "aud", skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `iss`.
    #[serde(rename = "iss", skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// JSON that others may see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Box<RawValue>>,
    /// JSON object that stays on the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<Box<RawValue>>,
    /// Server-side subscriptions without options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
    /// Server-side subscriptions with options; when there are any, `channels` does not count.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subs: BTreeMap<String, SubscriptionSpec>,
}

/// Options of a subscription in a token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SubscriptionSpec {
    /// JSON that other subscribers may see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<Box<RawValue>>,
    /// JSON for the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// Overrides of namespace options.
    #[serde(rename = "override", skip_serializing_if = "no_overrides", serialize_with = "serialize_overrides")]
    pub overrides: SubscribeOverrides,
}

/// What a subscription token should say; absent fields are left out of it. Times are Unix seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SubscriptionTokenSpec {
    /// `sub`: the connection's user.
    #[serde(rename = "sub")]
    pub user: String,
    /// The channel it is for; must not be empty.
    pub channel: String,
    /// The client id it is bound to; empty for any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client: String,
    /// When the token expires; absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// When it was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// When the subscription expires, if not at `exp`; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_at: Option<u64>,
    /// `aud`.
    #[serde(rename = "aud", skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `iss`.
    #[serde(rename = "iss", skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Info, data and overrides.
    #[serde(flatten)]
    pub options: SubscriptionSpec,
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Without a secret anybody could sign.
    #[error("the secret is empty")]
    EmptySecret,
    /// A subscription token is for one channel.
    #[error("the channel is empty")]
    EmptyChannel,
    /// `meta` is an object.
    #[error("meta must be a JSON object")]
    Meta,
    /// The claims could not be encoded.
    #[error("cannot encode the token")]
    Encode(#[source] jsonwebtoken::errors::Error),
}

/// Makes a connection token, signed with HS256.
///
/// # Errors
/// An empty secret, or a `meta` that is not an object.
pub fn sign_connection(secret: &str, spec: &ConnectionTokenSpec) -> Result<String, SignError> {
    if spec.meta.as_ref().is_some_and(|meta| !meta.get().starts_with('{')) {
        return Err(SignError::Meta);
    }
    sign(secret, spec)
}

/// Makes a subscription token, signed with HS256.
///
/// # Errors
/// An empty secret or channel.
pub fn sign_subscription(secret: &str, spec: &SubscriptionTokenSpec) -> Result<String, SignError> {
    if spec.channel.is_empty() {
        return Err(SignError::EmptyChannel);
    }
    sign(secret, spec)
}

fn sign<T: Serialize>(secret: &str, claims: &T) -> Result<String, SignError> {
    if secret.is_empty() {
        return Err(SignError::EmptySecret);
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).map_err(SignError::Encode)
}

fn no_overrides(overrides: &SubscribeOverrides) -> bool {
    *overrides == SubscribeOverrides::default()
}

/// Each option is an object with a `value`, as tokens have it.
fn serialize_overrides<S: Serializer>(overrides: &SubscribeOverrides, serializer: S) -> Result<S::Ok, S::Error> {
    let options = [
        ("presence", overrides.presence),
        ("join_leave", overrides.join_leave),
        ("force_push_join_leave", overrides.force_push_join_leave),
        ("force_recovery", overrides.force_recovery),
        ("force_positioning", overrides.force_positioning),
    ];
    let given = options.into_iter().filter_map(|(name, value)| Some((name, BTreeMap::from([("value", value?)]))));
    serializer.collect_map(given)
}
