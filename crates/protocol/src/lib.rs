//! The Centrifuge client protocol: messages, codecs for its two encodings, and codes. No I/O.
//!
//! A frame is what one WebSocket message carries. [`commands`] takes a client's frame apart; [`encode`] appends a
//! server's message to one. [`encode_command`] and [`replies`] are the client's side, for tests and measurements.
//! `docs/protocol.md` says what we speak and where we go beyond the published protocol.

pub mod codes;
mod command;
mod envelope;
mod field;
mod frame;
mod message;
mod reply;
mod wire;

pub use codes::{Disconnect, ErrorCode, Unsubscribed};
pub use command::{Command, Request, commands, encode_command};
pub use frame::{Commands, DecodeError, EncodeError, Replies};
pub use message::*;
pub use reply::{ErrorReply, Push, PushEvent, Reply, ReplyResult, encode, encode_publication, replies};

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// One message per line, in text frames.
    Json,
    /// Each message behind its length as a varint, in binary frames.
    Protobuf,
}

impl Encoding {
    /// Both, for those who prepare something for each.
    pub const ALL: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

    /// What stands between two encoded messages in one frame.
    pub fn separator(self) -> &'static [u8] {
        match self {
            Encoding::Json => b"\n",
            Encoding::Protobuf => b"",
        }
    }

    /// Name for metric labels and logs; the second is also the value of `cf_protocol`.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Json => "json",
            Encoding::Protobuf => "protobuf",
        }
    }
}
