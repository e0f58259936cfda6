//! What a dead letter says.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use plenum_bus_nats::publish::{Envelope, EnvelopeError};
use plenum_bus_nats::subscriber::Received;
use serde::Serialize;
use serde_json::value::RawValue;

/// Version of the payload's form.
const VERSION: u32 = 1;

/// A command that was given up.
pub(crate) struct Failure<'a> {
    pub consumer: &'a str,
    pub stream: &'a str,
    pub message: &'a Received,
    pub reasons: &'a [String],
}

/// The payload of the envelope.
#[derive(Serialize)]
struct Letter<'a> {
    consumer: &'a str,
    stream: &'a str,
    sequence: u64,
    subject: &'a str,
    /// Deliveries by NATS, this one among them.
    deliveries: u64,
    reasons: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
    /// The message when it is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a RawValue>,
    /// The message in base64 when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    command_b64: Option<String>,
    /// Its size, where it did not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    omitted_bytes: Option<usize>,
}

/// The envelope; without the message itself unless `whole`.
pub(crate) fn envelope(id: &str, failure: &Failure<'_>, whole: bool) -> Result<Envelope, EnvelopeError> {
    let Failure { consumer, stream, message, reasons } = *failure;
    let json = serde_json::from_slice::<&RawValue>(&message.payload).ok().filter(|_| whole);
    let headers = message.headers.iter().flat_map(|headers| headers.iter());
    let headers = headers.filter_map(|(name, values)| Some((name.as_ref(), values.first()?.as_str())));
    let letter = Letter {
        consumer,
        stream,
        sequence: message.delivery.map_or(0, |delivery| delivery.sequence),
        subject: message.subject.as_str(),
        deliveries: message.delivery.map_or(0, |delivery| delivery.attempt),
        reasons,
        headers: if whole { headers.collect() } else { BTreeMap::new() },
        command: json,
        command_b64: (whole && json.is_none()).then(|| STANDARD.encode(&message.payload)),
        omitted_bytes: (!whole).then_some(message.payload.len()),
    };
    let mut envelope = Envelope::new(consumer, "command.failed", VERSION, &letter)?;
    envelope.id = id.to_owned();
    envelope.traceparent = message.traceparent().map(str::to_owned);
    Ok(envelope)
}
