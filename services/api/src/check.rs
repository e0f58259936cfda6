//! From requests as they were sent to what the domain is asked; every refusal names field, value and what is allowed.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use plenum_channels::{MAX_CHANNEL_BYTES, SubscribeOptions, SubscribeOverrides, Target};
use plenum_protocol::{Disconnect, ErrorCode};

use crate::ApiError;
use crate::request::{BoolValue, DisconnectSpec, Json, StreamPosition, SubscribeOverride, SubscribeRequest};

/// Longest idempotency key and version epoch, in bytes.
const MAX_KEY_BYTES: usize = 255;
/// Longest reason that fits into a WebSocket close frame, in bytes (RFC 6455, 5.5).
const MAX_REASON_BYTES: usize = 123;
/// Most client ids in a whitelist.
const MAX_WHITELIST: usize = 10_000;

/// Bits behind the last whole byte are ignored, as published.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

const CHANNEL_RULE: &str = "a string of 1 to 255 bytes";
const USER_RULE: &str = "a user id that is not empty";

type Checked<T> = Result<T, ApiError>;

pub(crate) fn channel(value: Option<String>) -> Checked<String> {
    let value = value.ok_or_else(|| ApiError::missing("channel", CHANNEL_RULE))?;
    channel_name("channel", value)
}

pub(crate) fn channel_name(field: &str, value: String) -> Checked<String> {
    match value.len() {
        1..=MAX_CHANNEL_BYTES => Ok(value),
        _ => Err(ApiError::value(field, value, CHANNEL_RULE)),
    }
}

/// A channel, or the empty string for every channel.
pub(crate) fn channel_or_all(value: Option<String>) -> Checked<String> {
    const RULE: &str = "a string of 1 to 255 bytes, or the empty string for every channel";
    let value = value.ok_or_else(|| ApiError::missing("channel", RULE))?;
    if value.len() > MAX_CHANNEL_BYTES {
        return Err(ApiError::value("channel", value, RULE));
    }
    Ok(value)
}

/// A user or token id.
pub(crate) fn id(field: &str, value: Option<String>) -> Checked<String> {
    const RULE: &str = "a string of 1 to 1024 characters";
    let value = value.ok_or_else(|| ApiError::missing(field, RULE))?;
    match value.chars().count() {
        1..=1024 => Ok(value),
        _ => Err(ApiError::value(field, value, RULE)),
    }
}

/// Connections of a user, or one by its client or session id alone.
pub(crate) fn any_target(user: Option<String>, client: Option<String>, session: Option<String>) -> Checked<Target> {
    let given = |id: &Option<String>| id.as_ref().is_some_and(|id| !id.is_empty());
    if given(&client) || given(&session) {
        let (user, client, session) =
            (user.unwrap_or_default(), client.unwrap_or_default(), session.unwrap_or_default());
        return Ok(Target { user, client, session });
    }
    target(user, client, session)
}

pub(crate) fn target(user: Option<String>, client: Option<String>, session: Option<String>) -> Checked<Target> {
    let user = user.ok_or_else(|| ApiError::missing("user", USER_RULE))?;
    if user.is_empty() {
        return Err(ApiError::value("user", user, USER_RULE));
    }
    Ok(Target { user, client: client.unwrap_or_default(), session: session.unwrap_or_default() })
}

/// What a publication carries besides its channel.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    pub data: Bytes,
    pub tags: std::collections::BTreeMap<String, String>,
    pub idempotency_key: String,
    pub skip_history: bool,
    pub version: u64,
    pub version_epoch: String,
}

macro_rules! payload_of {
    ($request:ident) => {{
        if $request.delta == Some(true) {
            let details = "field delta is true, and delta compression is not supported; allowed: false";
            return Err(ApiError::new(ErrorCode::NOT_AVAILABLE, details));
        }
        let data = bytes("data", $request.data, "b64data", $request.b64data)?;
        Ok(Payload {
            data: data.ok_or_else(|| ApiError::missing("data", "any JSON, or base64 in b64data"))?,
            tags: $request.tags.unwrap_or_default(),
            idempotency_key: key("idempotency_key", $request.idempotency_key)?,
            skip_history: $request.skip_history.unwrap_or_default(),
            version: $request.version.unwrap_or_default(),
            version_epoch: key("version_epoch", $request.version_epoch)?,
        })
    }};
}

pub(crate) fn publish(request: crate::request::PublishRequest) -> Checked<(String, Payload)> {
    let channel = channel(request.channel)?;
    let payload: Checked<Payload> = (|| payload_of!(request))();
    Ok((channel, payload?))
}

/// Names are not checked here: each channel has an answer of its own.
pub(crate) fn broadcast(
    request: crate::request::BroadcastRequest,
    max_channels: usize,
) -> Checked<(Vec<String>, Payload)> {
    let channels = request.channels.unwrap_or_default();
    if channels.is_empty() {
        return Err(ApiError::missing("channels", "at least one channel"));
    }
    if channels.len() > max_channels {
        let details = format!("field channels holds {} channels; allowed: at most {max_channels}", channels.len());
        return Err(ApiError::new(ErrorCode::LIMIT_EXCEEDED, details));
    }
    let payload: Checked<Payload> = (|| payload_of!(request))();
    Ok((channels, payload?))
}

pub(crate) fn subscribe(request: SubscribeRequest) -> Checked<(Target, String, SubscribeOptions)> {
    let target = target(request.user, request.client, request.session)?;
    let channel = channel(request.channel)?;
    let options = SubscribeOptions {
        info: bytes("info", request.info, "b64info", request.b64info)?.unwrap_or_default(),
        data: bytes("data", request.data, "b64data", request.b64data)?.unwrap_or_default(),
        expire_at: unix_time("expire_at", request.expire_at)?,
        overrides: request.overrides.map(overrides).unwrap_or_default(),
        since: since(request.recover_since),
    };
    Ok((target, channel, options))
}

pub(crate) fn since(position: Option<StreamPosition>) -> Option<(u64, String)> {
    position.map(|position| (position.offset, position.epoch))
}

/// 3503 unless something else is asked for.
pub(crate) fn disconnect(spec: Option<DisconnectSpec>) -> Checked<Disconnect> {
    const RULE: &str = "3000 to 4999";
    let Some(spec) = spec else { return Ok(Disconnect::FORCE_NO_RECONNECT) };
    let code = spec.code.ok_or_else(|| ApiError::missing("disconnect.code", RULE))?;
    let code = u16::try_from(code).ok().filter(|code| (3000..=4999).contains(code));
    let code = code.ok_or_else(|| ApiError::value("disconnect.code", spec.code.unwrap_or_default(), RULE))?;
    let reason = spec.reason.unwrap_or_default();
    if reason.len() > MAX_REASON_BYTES {
        return Err(ApiError::value("disconnect.reason", reason, "at most 123 bytes"));
    }
    Ok(Disconnect { code, reason: Cow::Owned(reason) })
}

pub(crate) fn whitelist(clients: Option<Vec<String>>) -> Checked<Vec<String>> {
    let clients = clients.unwrap_or_default();
    if clients.len() > MAX_WHITELIST {
        let details = format!("field whitelist holds {} client ids; allowed: at most {MAX_WHITELIST}", clients.len());
        return Err(ApiError::new(ErrorCode::LIMIT_EXCEEDED, details));
    }
    Ok(clients)
}

pub(crate) fn unix_time(field: &str, seconds: Option<i64>) -> Checked<u64> {
    let seconds = seconds.unwrap_or_default();
    u64::try_from(seconds).map_err(|_| ApiError::value(field, seconds, "Unix seconds, or 0 for never"))
}

pub(crate) fn raw(json: Json) -> Bytes {
    Bytes::from(Box::<str>::from(json).into_string())
}

fn bytes(json_field: &str, json: Option<Json>, field: &str, base64: Option<String>) -> Checked<Option<Bytes>> {
    let Some(text) = base64.filter(|text| !text.is_empty()) else { return Ok(json.map(raw)) };
    match BASE64.decode(&text) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(_) => {
            let allowed = format!("base64 with the standard alphabet and padding, or JSON in {json_field}");
            Err(ApiError::value(field, text, &allowed))
        }
    }
}

fn key(field: &str, value: Option<String>) -> Checked<String> {
    let value = value.unwrap_or_default();
    if value.len() > MAX_KEY_BYTES {
        return Err(ApiError::value(field, value, "at most 255 bytes"));
    }
    Ok(value)
}

fn overrides(given: SubscribeOverride) -> SubscribeOverrides {
    let value = |option: Option<BoolValue>| option.map(|option| option.value);
    SubscribeOverrides {
        presence: value(given.presence),
        join_leave: value(given.join_leave),
        force_push_join_leave: value(given.force_push_join_leave),
        force_recovery: value(given.force_recovery),
        force_positioning: value(given.force_positioning),
    }
}
