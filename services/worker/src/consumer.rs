//! One consumer: from a message to a command, from the command to the node, or to the dead letters.

use std::sync::Arc;

use async_trait::async_trait;
use plenum_api::{ApiError, Commands, QueuedCommand, QueuedPublication};
use plenum_bus_nats::publish::{DeadLetterError, DeadLetters, PublishError, key_of};
use plenum_bus_nats::subscriber::{Assignment, ProcessError, ProcessInOrder, Received};

use crate::config::{ConsumerConfig, Mode, PublicationHeaders};
use crate::letter::{self, Failure};

/// What a consumer does with its messages.
pub(crate) struct Consumer {
    pub(crate) config: ConsumerConfig,
    pub(crate) commands: Commands,
    pub(crate) dead_letters: Arc<DeadLetters>,
}

impl Consumer {
    /// Names a message for ever; at most 200 bytes.
    fn key(&self, message: &Received) -> String {
        let (sequence, stored) = message.delivery.map_or((0, 0), |delivery| (delivery.sequence, delivery.stored_ns));
        format!("queue:{}:{sequence}:{stored}", self.config.source.stream)
    }

    fn command(&self, message: &Received) -> Result<QueuedCommand, ApiError> {
        match &self.config.mode {
            Mode::Commands { method_header } => match header(message, method_header) {
                "" => QueuedCommand::decode(&message.payload),
                method => QueuedCommand::with_method(method, &message.payload),
            },
            Mode::Publications(headers) => Ok(QueuedCommand::publication(publication(message, headers)?)),
        }
    }
}

#[async_trait]
impl ProcessInOrder for Consumer {
    type Job = QueuedCommand;

    fn read(&self, message: &Received) -> Result<Assignment<QueuedCommand>, ProcessError> {
        let (size, most) = (message.payload.len(), self.config.max_message_bytes);
        if size > most {
            return Err(ProcessError::Permanent(format!("{size} bytes; allowed: at most {most}")));
        }
        let command = self.command(message).map_err(|error| ProcessError::Permanent(error.message))?;
        let keys = command.subjects().into_iter().map(key_of).collect();
        Ok(Assignment { job: command, keys })
    }

    async fn process(&self, message: &Received, command: &QueuedCommand, part: usize) -> Result<(), ProcessError> {
        let Err(error) = self.commands.run(command, part, &self.key(message)).await else { return Ok(()) };
        let about = match command.channel(part) {
            Some(channel) => format!("{channel}: {}", error.message),
            None => error.message.clone(),
        };
        Err(if error.is_temporary() { ProcessError::Temporary(about) } else { ProcessError::Permanent(about) })
    }

    async fn exhausted(&self, message: &Received, reasons: &[String]) -> bool {
        let key = self.key(message);
        let failure = Failure { consumer: &self.config.name, stream: &self.config.source.stream, message, reasons };
        let put = async |whole: bool| -> Result<(), DeadLetterError> {
            self.dead_letters.put(&letter::envelope(&key, &failure, whole)?).await
        };
        let outcome = match put(true).await {
            // The envelope does not fit where the command did.
            Err(DeadLetterError::Publish(PublishError::TooLarge { .. })) => put(false).await,
            outcome => outcome,
        };
        let (consumer, sequence) = (&self.config.name, message.delivery.map_or(0, |delivery| delivery.sequence));
        let reason = reasons.first().map_or("", String::as_str);
        match outcome {
            Ok(()) => {
                tracing::error!(consumer, sequence, reason, "a command failed and is among the dead letters");
                true
            }
            Err(error) => {
                tracing::warn!(consumer, sequence, reason, %error, "a command failed, is not put aside, and comes again");
                false
            }
        }
    }
}

/// The value of a header; empty where there is none, or where no name is configured.
fn header<'a>(message: &'a Received, name: &str) -> &'a str {
    if name.is_empty() {
        return "";
    }
    message.headers.as_ref().and_then(|headers| headers.get(name)).map_or("", |value| value.as_str())
}

fn publication(message: &Received, names: &PublicationHeaders) -> Result<QueuedPublication, ApiError> {
    let refused = |name: &str, value: &str, allowed: &str| {
        let value: String = value.chars().take(80).collect();
        let details = format!("header {name} is {value:?}; allowed: {allowed}");
        ApiError::new(plenum_protocol::ErrorCode::BAD_REQUEST, details)
    };
    let channels = header(message, &names.channels).split(',').map(str::trim).filter(|channel| !channel.is_empty());
    let delta = match header(message, &names.delta) {
        "" | "false" | "0" => false,
        "true" | "1" => true,
        other => return Err(refused(&names.delta, other, "true or false")),
    };
    let version = match header(message, &names.version) {
        "" => 0,
        text => text.parse().map_err(|_| refused(&names.version, text, "a whole number"))?,
    };
    let tag = |name: &str| name.strip_prefix(names.tags_prefix.as_str()).map(str::to_owned);
    let tags = message
        .headers
        .iter()
        .flat_map(|headers| headers.iter())
        .filter_map(|(name, values)| Some((tag(name.as_ref())?, values.first()?.as_str().to_owned())));
    Ok(QueuedPublication {
        channels: channels.map(str::to_owned).collect(),
        data: message.payload.to_vec(),
        idempotency_key: header(message, &names.idempotency_key).to_owned(),
        delta,
        tags: if names.tags_prefix.is_empty() { Default::default() } else { tags.collect() },
        version,
        version_epoch: header(message, &names.version_epoch).to_owned(),
    })
}
