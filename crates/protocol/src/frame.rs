//! How messages stand in a frame, and what can be wrong with them.

use std::iter::FusedIterator;

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::Encoding;

/// Why a frame could not be decoded. The session that met it closes with 3501.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// The frame holds no message at all.
    #[error("empty frame")]
    Empty,
    /// A line is not the JSON form of a message.
    #[error("malformed JSON message: {source}")]
    Json {
        /// What is wrong, and in which column.
        #[source]
        source: serde_json::Error,
    },
    /// The bytes are not the Protobuf form of a message.
    #[error("malformed Protobuf message: {source}")]
    Protobuf {
        /// What is wrong.
        #[source]
        source: prost::DecodeError,
    },
    /// A length prefix is cut off, or longer than ten bytes.
    #[error("malformed length prefix")]
    LengthPrefix,
    /// A message is announced longer than what is left of the frame.
    #[error("message of {announced} bytes announced, {left} left in the frame")]
    Truncated {
        /// Bytes that the prefix announces.
        announced: u64,
        /// Bytes that follow it.
        left: usize,
    },
    /// A reply that carries nothing we know.
    #[error("reply {id} of an unknown kind")]
    UnknownReply {
        /// Id of the command that it answers; 0 for a push.
        id: u32,
    },
}

/// Why a message could not be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// A payload is not JSON and the connection speaks JSON. The session closes with 3506.
    #[error("payload is not JSON: {source}")]
    NotJson {
        /// What is wrong with the payload.
        #[source]
        source: serde_json::Error,
    },
}

/// The encoded messages of one frame.
#[derive(Debug, Clone)]
pub(crate) struct Messages<'a> {
    encoding: Encoding,
    rest: &'a [u8],
    /// Nothing was found so far, so the end of the frame would be an error.
    fresh: bool,
    done: bool,
}

impl<'a> Messages<'a> {
    pub(crate) fn new(encoding: Encoding, frame: &'a [u8]) -> Self {
        Messages { encoding, rest: frame, fresh: true, done: false }
    }

    /// Next message, decoded; nothing comes after an error.
    pub(crate) fn next_as<T: prost::Message + Default + DeserializeOwned>(&mut self) -> Option<Result<T, DecodeError>> {
        if self.done {
            return None;
        }
        let message = match self.encoding {
            Encoding::Json => self.line().map(Ok),
            Encoding::Protobuf => self.delimited().transpose(),
        };
        let result = match message {
            Some(Ok(bytes)) => {
                self.fresh = false;
                match self.encoding {
                    Encoding::Json => serde_json::from_slice(bytes).map_err(|source| DecodeError::Json { source }),
                    Encoding::Protobuf => T::decode(bytes).map_err(|source| DecodeError::Protobuf { source }),
                }
            }
            Some(Err(error)) => Err(error),
            None => {
                self.done = true;
                return self.fresh.then_some(Err(DecodeError::Empty));
            }
        };
        self.done = result.is_err();
        Some(result)
    }

    /// Nothing can follow: called when a decoded message turned out to be meaningless.
    pub(crate) fn end(&mut self) {
        self.done = true;
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            // Most frames hold one message; `contains` looks for its end many bytes at a time.
            let (line, rest) = match self.rest.contains(&b'\n').then(|| self.rest.iter().position(|b| *b == b'\n')) {
                Some(Some(at)) => (&self.rest[..at], &self.rest[at + 1..]),
                _ => (self.rest, &self.rest[self.rest.len()..]),
            };
            self.rest = rest;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(line);
            }
        }
    }

    fn delimited(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let mut after = self.rest;
        let announced = prost::encoding::decode_varint(&mut after).map_err(|_| DecodeError::LengthPrefix)?;
        let truncated = DecodeError::Truncated { announced, left: after.len() };
        let length = usize::try_from(announced).map_err(|_| DecodeError::LengthPrefix)?;
        let (message, rest) = after.split_at_checked(length).ok_or(truncated)?;
        self.rest = rest;
        Ok(Some(message))
    }
}

/// The commands of a frame, in order; ends after the first error.
#[derive(Debug, Clone)]
pub struct Commands<'a>(pub(crate) Messages<'a>);

/// The replies of a frame, in order; ends after the first error.
#[derive(Debug, Clone)]
pub struct Replies<'a>(pub(crate) Messages<'a>);

impl FusedIterator for Commands<'_> {}
impl FusedIterator for Replies<'_> {}
