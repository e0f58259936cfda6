//! WebSocket frames (RFC 6455) as the server side of a connection needs them.

mod decode;
mod encode;
mod mask;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub(crate) use decode::Decoder;
pub(crate) use encode::{close_frame, header};

/// What a data frame or a message is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
}

/// RFC 6455, section 5.2; the four bits of the first header byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, FrameError> {
        Ok(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            opcode => return Err(FrameError::ReservedOpcode { opcode }),
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

impl From<Kind> for Opcode {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Text => Opcode::Text,
            Kind::Binary => Opcode::Binary,
        }
    }
}

/// Something complete that a client sent. Payloads are unmasked, and borrowed where they arrived in one piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    Message(Kind, Cow<'a, [u8]>),
    Ping(Cow<'a, [u8]>),
    Pong,
    /// The code, if the client gave one.
    Close(Option<u16>),
}

/// Why a client's bytes end its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A bit of an extension that was not agreed on.
    #[error("reserved bits are set")]
    ReservedBits,
    /// An opcode that RFC 6455 does not define.
    #[error("opcode {opcode:#x} is reserved")]
    ReservedOpcode {
        /// Its four bits.
        opcode: u8,
    },
    /// A client has to mask every frame.
    #[error("frame is not masked")]
    Unmasked,
    /// A control frame in fragments, or longer than 125 bytes.
    #[error("control frame is fragmented or too long")]
    Control,
    /// A continuation of nothing, or a new message inside a fragmented one.
    #[error("fragments are out of order")]
    Fragments,
    /// A code that may not be sent, or a payload of one byte.
    #[error("close frame is invalid")]
    Close,
    /// Text, or the reason of a close, is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// The message, all its fragments together, is longer than allowed.
    #[error("message is longer than {limit} bytes")]
    TooLong {
        /// The bound in bytes.
        limit: usize,
    },
}

impl FrameError {
    /// The close code of RFC 6455, section 7.4.1.
    pub fn close_code(self) -> u16 {
        match self {
            FrameError::Utf8 => 1007,
            FrameError::TooLong { .. } => 1009,
            _ => 1002,
        }
    }
}
