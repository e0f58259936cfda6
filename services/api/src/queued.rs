//! Commands that wait in a queue instead of coming by HTTP: the same requests, carried out by the same methods.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plenum_channels::Node;
use plenum_protocol::ErrorCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ApiError;
use crate::control::*;
use crate::decode;
use crate::methods::{Call, Calls, MAX_OPERATIONS};
use crate::request::*;

/// Carries queued commands out on a node.
#[derive(Clone)]
pub struct Commands {
    calls: Calls,
}

/// A payload that is published as it is, with what its message says about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueuedPublication {
    /// Where to.
    pub channels: Vec<String>,
    /// What: JSON, or any bytes.
    pub data: Vec<u8>,
    /// As in [`PublishRequest`]; empty for none.
    pub idempotency_key: String,
    /// As in [`PublishRequest`].
    pub delta: bool,
    /// As in [`PublishRequest`].
    pub tags: BTreeMap<String, String>,
    /// As in [`PublishRequest`]; 0 for none.
    pub version: u64,
    /// As in [`PublishRequest`].
    pub version_epoch: String,
}

/// `{"method": …, "payload": …}`
#[derive(Deserialize)]
struct Form {
    method: String,
    payload: Box<RawValue>,
}

macro_rules! queued {
    ($($name:literal $variant:ident $request:ident [$($by:ident),+],)*) => {
        /// A command that was read.
        #[derive(Clone, Debug)]
        pub struct QueuedCommand(Queued);

        #[derive(Clone, Debug)]
        enum Queued {
            Publish(PublishRequest),
            Broadcast(BroadcastRequest),
            $($variant($request),)*
        }

        /// Methods that a queued command may name.
        const METHODS: &[&str] = &["publish", "broadcast", $($name),*];

        impl QueuedCommand {
            /// Reads the request of a method.
            pub fn with_method(method: &str, request: &[u8]) -> Result<Self, ApiError> {
                Ok(Self(match method {
                    "publish" => Queued::Publish(read(request)?),
                    "broadcast" => Queued::Broadcast(read(request)?),
                    $($name => Queued::$variant(read(request)?),)*
                    _ => return Err(unknown(method)),
                }))
            }

            /// What it is about: a channel or a user; commands about the same keep their order. One for each part, and a
            /// broadcast has as many parts as channels.
            pub fn subjects(&self) -> Vec<&str> {
                match &self.0 {
                    Queued::Publish(request) => vec![request.channel.as_deref().unwrap_or_default()],
                    Queued::Broadcast(request) => match channels(request) {
                        Some(channels) => channels.iter().map(String::as_str).collect(),
                        None => vec![""],
                    },
                    $(Queued::$variant(request) => {
                        let about = [$(request.$by.as_deref()),+];
                        vec![about.into_iter().flatten().find(|one| !one.is_empty()).unwrap_or_default()]
                    })*
                }
            }
        }

        impl Commands {
            /// Carries one part of a command out. A publication without an idempotency key of its own gets one of `key`, so
            /// that the same part publishes once, however often it is called.
            pub async fn run(&self, command: &QueuedCommand, part: usize, key: &str) -> Result<(), ApiError> {
                match &command.0 {
                    Queued::Publish(request) => self.publish(request, key).await,
                    Queued::Broadcast(request) => self.broadcast(request, part, key).await,
                    $(Queued::$variant(request) => self.call(request.clone()).await,)*
                }
            }
        }
    };
}

queued! {
    "subscribe" Subscribe SubscribeRequest [channel, user],
    "unsubscribe" Unsubscribe UnsubscribeRequest [channel, user],
    "disconnect" Disconnect DisconnectRequest [user, client, session],
    "refresh" Refresh RefreshRequest [user, client, session],
    "history_remove" HistoryRemove HistoryRemoveRequest [channel],
    "block_user" BlockUser BlockUserRequest [user],
    "unblock_user" UnblockUser UnblockUserRequest [user],
    "revoke_token" RevokeToken RevokeTokenRequest [uid],
    "invalidate_user_tokens" InvalidateUserTokens InvalidateUserTokensRequest [user],
}

impl QueuedCommand {
    /// Reads `{"method": …, "payload": …}`.
    pub fn decode(message: &[u8]) -> Result<Self, ApiError> {
        let form: Form = read(message)?;
        Self::with_method(&form.method, form.payload.get().as_bytes())
    }

    /// The channel of a part of a broadcast into several.
    pub fn channel(&self, part: usize) -> Option<&str> {
        match &self.0 {
            Queued::Broadcast(request) => channels(request).filter(|all| all.len() > 1)?.get(part).map(String::as_str),
            _ => None,
        }
    }

    /// Publishes a payload as it is.
    pub fn publication(publication: QueuedPublication) -> Self {
        let QueuedPublication { channels, data, idempotency_key, delta, tags, version, version_epoch } = publication;
        let json = String::from_utf8(data).map_err(|error| error.into_bytes());
        let json = json.and_then(|text| RawValue::from_string(text.clone()).map_err(|_| text.into_bytes()));
        let (data, b64data) = match json {
            Ok(json) => (Some(json), None),
            Err(bytes) => (None, Some(STANDARD.encode(bytes))),
        };
        Self(Queued::Broadcast(BroadcastRequest {
            channels: Some(channels),
            data,
            b64data,
            idempotency_key: Some(idempotency_key),
            delta: Some(delta),
            tags: Some(tags),
            version: Some(version),
            version_epoch: Some(version_epoch),
            ..BroadcastRequest::default()
        }))
    }
}

impl Commands {
    /// On this node.
    pub fn new(node: Arc<Node>) -> Self {
        let metrics = node.metrics().clone();
        Self { calls: Calls { node, metrics } }
    }

    async fn publish(&self, request: &PublishRequest, key: &str) -> Result<(), ApiError> {
        let mut request = request.clone();
        request.idempotency_key = own(&request.idempotency_key).or_else(|| Some(key.to_owned()));
        self.call(request).await
    }

    /// Publishes into one of the channels. It costs the same for each of them: there may be 10,000.
    async fn broadcast(&self, request: &BroadcastRequest, part: usize, key: &str) -> Result<(), ApiError> {
        match channels(request).and_then(|channels| channels.get(part)) {
            Some(channel) => {
                self.call(PublishRequest {
                    channel: Some(channel.clone()),
                    data: request.data.clone(),
                    b64data: request.b64data.clone(),
                    skip_history: request.skip_history,
                    tags: request.tags.clone(),
                    // A channel that is named twice gets both.
                    idempotency_key: own(&request.idempotency_key).or_else(|| Some(format!("{key}#{part}"))),
                    delta: request.delta,
                    version: request.version,
                    version_epoch: request.version_epoch.clone(),
                })
                .await
            }
            None => self.call(request.clone()).await,
        }
    }

    async fn call<C: Call>(&self, call: C) -> Result<(), ApiError> {
        self.calls.call(call).await.map(|_| ())
    }
}

/// The channels of a broadcast; `None` where it is refused as a whole.
fn channels(request: &BroadcastRequest) -> Option<&[String]> {
    request.channels.as_deref().filter(|channels| (1..=MAX_OPERATIONS).contains(&channels.len()))
}

/// A key that was given.
fn own(key: &Option<String>) -> Option<String> {
    key.clone().filter(|key| !key.is_empty())
}

fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, ApiError> {
    decode::whole(text).map_err(|error| ApiError::new(ErrorCode::BAD_REQUEST, error))
}

fn unknown(method: &str) -> ApiError {
    let method: String = method.chars().take(80).collect();
    let details = format!("{method:?} is no method of a queued command; allowed: {}", METHODS.join(", "));
    ApiError::new(ErrorCode::METHOD_NOT_FOUND, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_say_what_they_are_about() {
        for (text, subjects) in [
            (r#"{"method":"publish","payload":{"channel":"a","data":1}}"#, vec!["a"]),
            (r#"{"payload":{"channels":["a","b","a"],"data":1},"method":"broadcast"}"#, vec!["a", "b", "a"]),
            (r#"{"method":"broadcast","payload":{"channels":[],"data":1}}"#, vec![""]),
            (r#"{"method":"unsubscribe","payload":{"channel":"","user":"u"}}"#, vec!["u"]),
            (r#"{"method":"unsubscribe","payload":{"channel":"c","user":"u"}}"#, vec!["c"]),
            (r#"{"method":"disconnect","payload":{"client":"x"}}"#, vec!["x"]),
            (r#"{"method":"revoke_token","payload":{}}"#, vec![""]),
        ] {
            assert_eq!(QueuedCommand::decode(text.as_bytes()).unwrap().subjects(), subjects, "{text}");
        }
    }

    #[test]
    fn what_is_no_command_says_why() {
        for (text, code, says) in [
            ("", 107, "EOF"),
            ("[]", 107, "an object"),
            (r#"{"method":"publish"}"#, 107, "payload"),
            (r#"{"method":"publish","payload":{"channel":5}}"#, 107, "field channel"),
            (r#"{"method":"publish","payload":7}"#, 107, "an object"),
            (r#"{"method":"history","payload":{}}"#, 104, "history_remove"),
            (r#"{"method":"batch","payload":{}}"#, 104, "broadcast"),
        ] {
            let error = QueuedCommand::decode(text.as_bytes()).unwrap_err();
            assert!(error.code == code && error.message.contains(says), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_payload_is_json_or_bytes() {
        let of = |data: &[u8]| {
            let publication =
                QueuedPublication { channels: vec!["a".into()], data: data.to_vec(), ..QueuedPublication::default() };
            match QueuedCommand::publication(publication).0 {
                Queued::Broadcast(request) => (request.data.map(|json| json.get().to_owned()), request.b64data),
                _ => unreachable!(),
            }
        };
        assert_eq!(of(br#"{"a": 1.0}"#), (Some(r#"{"a": 1.0}"#.into()), None));
        assert_eq!(of(b"no json"), (None, Some("bm8ganNvbg==".into())));
        assert_eq!(of(b"\xff"), (None, Some("/w==".into())));
    }
}
