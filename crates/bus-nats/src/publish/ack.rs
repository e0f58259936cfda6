use async_nats::{Message, StatusCode};
use serde::Deserialize;

/// JetStream's acknowledgement: the message is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Name of the stream.
    pub stream: Box<str>,
    /// Its sequence there.
    pub sequence: u64,
    /// A message with the same id was stored before; `sequence` is that one's.
    pub duplicate: bool,
}

/// Why a publish has no acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Over the server's limit; nothing was sent.
    #[error("message of {size} bytes is over the server's limit of {max}")]
    TooLarge {
        /// Bytes of the payload.
        size: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// As many as allowed wait for an acknowledgement; nothing was sent.
    #[error("the window of unacknowledged publishes is full")]
    WindowFull,
    /// No stream takes the subject now: it does not exist, or has no leader for a few seconds. Nothing was stored.
    #[error("no stream answers on the subject")]
    NoStream,
    /// JetStream refused it; nothing was stored.
    #[error("JetStream refused the message: {description} (code {code}, error {err_code})")]
    Refused {
        /// HTTP-like code.
        code: u16,
        /// JetStream's error number.
        err_code: u32,
        /// JetStream's words.
        description: String,
    },
    /// Nobody knows whether it was stored; sending it again with the same message id is safe.
    #[error("no acknowledgement in time: the message may have been stored")]
    Indeterminate,
    /// No contact with NATS in time; nothing was sent, trying again makes sense.
    #[error("no contact with NATS")]
    Unavailable,
    /// The connection or the publisher was closed; nothing was sent.
    #[error("the connection is closed")]
    Closed,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// Reads the answer to a publish.
pub(super) fn read(message: &Message) -> Result<Ack, PublishError> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(PublishError::NoStream);
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(&message.payload) else {
        return Err(PublishError::Indeterminate);
    };
    match answer.error {
        Some(ApiError { code, err_code, description }) => Err(PublishError::Refused { code, err_code, description }),
        None if answer.seq == 0 => Err(PublishError::Indeterminate),
        None => Ok(Ack { stream: answer.stream.into(), sequence: answer.seq, duplicate: answer.duplicate }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static str, status: Option<StatusCode>) -> Message {
        Message {
            subject: "inbox".into(),
            reply: None,
            payload: payload.into(),
            headers: None,
            status,
            description: None,
            length: payload.len(),
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let stored = read(&message(r#"{"stream":"S","seq":7,"duplicate":true,"domain":"d"}"#, None));
        assert_eq!(stored, Ok(Ack { stream: "S".into(), sequence: 7, duplicate: true }));
        let refused =
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"S","seq":0}"#;
        assert!(matches!(read(&message(refused, None)), Err(PublishError::Refused { err_code: 10071, .. })));
        assert_eq!(read(&message("", Some(StatusCode::NO_RESPONDERS))), Err(PublishError::NoStream));
        assert_eq!(read(&message("garbage", None)), Err(PublishError::Indeterminate));
    }
}
