//! Why an operation failed, and which code tells a client or an API caller so.

use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{Disconnect, ErrorReply};

use crate::{AppendError, ControlError, LedgerError, PresenceError, ReadError, ResolveError};

/// Why an operation on channels or connections failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OperationError {
    /// The channel's name or namespace is not acceptable.
    #[error(transparent)]
    Channel(#[from] ResolveError),
    /// The channel's namespace does not have what was asked for.
    #[error("`{option}` is not enabled for the channel's namespace `{namespace}`")]
    NotEnabled {
        /// The namespace option that would enable it.
        option: &'static str,
        /// The namespace; empty for channels without one.
        namespace: String,
    },
    /// A field holds a value that is not allowed.
    #[error("{field}: {reason}")]
    BadRequest {
        /// The field.
        field: &'static str,
        /// The value and what is allowed.
        reason: String,
    },
    /// The publication is larger than allowed.
    #[error("data: {size} bytes, allowed are at most {max} (channel.max_publication_size)")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The bound.
        max: usize,
    },
    /// A position that the channel's history does not reach back to, or of another epoch.
    #[error("the history does not hold everything since the position asked for")]
    Unrecoverable,
    /// Another publication was faster too often.
    #[error("the channel changed too often while the version was being compared")]
    Contended,
    /// The log failed to append.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Presence is not known.
    #[error(transparent)]
    Presence(#[from] PresenceError),
    /// Other replicas could not be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The ledger took nothing, or did not say whether it did.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl OperationError {
    /// The published code.
    pub fn code(&self) -> ErrorCode {
        match self {
            OperationError::Channel(error) if error.code() == ErrorCode::UNKNOWN_CHANNEL => ErrorCode::UNKNOWN_CHANNEL,
            OperationError::Channel(_) | OperationError::BadRequest { .. } | OperationError::TooLarge { .. } => {
                ErrorCode::BAD_REQUEST
            }
            OperationError::Append(AppendError::TooLarge { .. }) => ErrorCode::BAD_REQUEST,
            OperationError::NotEnabled { .. } => ErrorCode::NOT_AVAILABLE,
            OperationError::Unrecoverable => ErrorCode::UNRECOVERABLE_POSITION,
            OperationError::Contended
            | OperationError::Append(_)
            | OperationError::Read(_)
            | OperationError::Presence(_)
            | OperationError::Control(_)
            | OperationError::Ledger(_) => ErrorCode::INTERNAL,
        }
    }
}

/// Why a client's command has no result.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// An error reply.
    Error(ErrorReply),
    /// The connection ends.
    Disconnect(Disconnect),
}

/// What clients read while entries of presence cannot be reached; without addresses.
const PRESENCE_AWAY: &str = "presence is unavailable: Redis does not answer";
/// The same for a limit of all replicas together that fails closed.
pub(crate) const LIMITS_AWAY: &str = "the limit cannot be checked: Redis does not answer";

/// What a client reads that connects before a replica that has just started knows who is blocked.
pub(crate) const BLOCKS_UNKNOWN: &str = "it is not known yet who is blocked: the log does not answer";

/// What a client reads whose resume token cannot be judged for the moment.
pub(crate) const RESUME_AWAY: &str = "the resume token cannot be checked: the log does not answer";

/// What a client reads whose command took longer than it may.
pub(crate) const SLOW: &str = "the server is too busy, or waits for one that is: try again";

impl Failure {
    /// A temporary error that names its reason.
    pub(crate) fn temporary(reason: &'static str) -> Self {
        Failure::Error(ErrorReply { message: reason.into(), ..ErrorCode::INTERNAL.into() })
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Failure::Error(code.into())
    }
}

impl From<Disconnect> for Failure {
    fn from(disconnect: Disconnect) -> Self {
        Failure::Disconnect(disconnect)
    }
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Self {
        let code = error.code();
        let mut reply = ErrorReply::from(code);
        match &error {
            // Details of what the client itself sent help it; those of our inside are for the log.
            OperationError::BadRequest { .. } | OperationError::TooLarge { .. } => {
                reply.message = format!("{}: {error}", code.message).into();
            }
            OperationError::Append(AppendError::Indeterminate) => {
                reply.message = error.to_string().into();
            }
            OperationError::Presence(error) => {
                tracing::warn!(%error, "a client's command failed");
                reply.message = PRESENCE_AWAY.into();
            }
            _ if code == ErrorCode::INTERNAL => tracing::warn!(%error, "a client's command failed"),
            _ => {}
        }
        Failure::Error(reply)
    }
}
