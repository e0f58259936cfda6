//! The envelope that services put around their events.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Outgoing;

/// An event of a service, as JSON on the wire. A reader ignores fields it does not know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique id of the event.
    pub id: String,
    /// Id of the thing that it happened to; events of one aggregate keep their order.
    pub aggregate_id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// Version of the payload's form.
    pub version: u32,
    /// When it happened, Unix milliseconds.
    #[serde(rename = "time")]
    pub time_ms: u64,
    /// The event's own data.
    pub payload: Box<RawValue>,
    /// W3C trace context of what caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Why an envelope cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The payload or the envelope is not the JSON it should be.
    #[error("envelope: {0}")]
    Json(#[from] serde_json::Error),
}

impl Envelope {
    /// An event that happens now, with a new id.
    pub fn new(
        aggregate_id: impl Into<String>,
        kind: impl Into<String>,
        version: u32,
        payload: &impl Serialize,
    ) -> Result<Self, EnvelopeError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Ok(Envelope {
            id: uuid::Uuid::new_v4().to_string(),
            aggregate_id: aggregate_id.into(),
            kind: kind.into(),
            version,
            time_ms: now.as_millis() as u64,
            payload: serde_json::value::to_raw_value(payload)?,
            traceparent: None,
        })
    }

    /// Reads an envelope.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Ok(serde_json::from_slice(bytes)?)
    }

    /// Reads its payload.
    pub fn payload<'a, T: Deserialize<'a>>(&'a self) -> Result<T, EnvelopeError> {
        Ok(serde_json::from_str(self.payload.get())?)
    }

    /// The message for it: ordered by aggregate, no headers. With `headers` it also has its id as `Nats-Msg-Id`, so
    /// that sending it again stores it once, and `traceparent` where readers of other systems look for it.
    pub fn message(&self, subject: &str, headers: bool) -> Result<Outgoing, EnvelopeError> {
        let key = super::key_of(&self.aggregate_id);
        let message = Outgoing::new(subject.to_owned(), Bytes::from(serde_json::to_vec(self)?)).key(key);
        Ok(match (headers, &self.traceparent) {
            (false, _) => message,
            (true, None) => message.message_id(&self.id),
            (true, Some(traceparent)) => message.message_id(&self.id).traceparent(traceparent),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_comes_back_as_it_went() {
        let mut envelope = Envelope::new("room-7", "vote.cast", 2, &serde_json::json!({"card": 5})).unwrap();
        envelope.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        let message = envelope.message("events.votes", true).unwrap();
        let headers = message.headers.as_ref().unwrap();
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), envelope.id);
        assert_eq!(headers.get("traceparent").map(|value| value.as_str()), envelope.traceparent.as_deref());
        let read = Envelope::decode(&message.payload).unwrap();
        assert_eq!(
            (&read.id, &read.kind, read.version, read.time_ms),
            (&envelope.id, &envelope.kind, 2, envelope.time_ms)
        );
        assert_eq!(read.payload::<serde_json::Value>().unwrap()["card"], 5);
        assert!(envelope.message("events.votes", false).unwrap().headers.is_none());
        assert!(Envelope::decode(b"{}").is_err());
    }
}
