//! Errors of the server API.

use http::StatusCode;
use plenum_protocol::ErrorCode;
use schemars::JsonSchema;
use serde::Serialize;

/// Code of a version conflict in the server API. The client protocol gives 113 another meaning.
const CONFLICT: u32 = 113;

/// What went wrong, as callers read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub struct ApiError {
    /// 100 internal (worth trying again), 102 unknown channel, 104 not found, 106 limit exceeded, 107 bad request,
    /// 108 not available, 112 unrecoverable position, 113 conflict.
    #[schemars(range(min = 1))]
    pub code: u32,
    /// For people: what was wrong, and what is allowed.
    pub message: String,
}

/// How errors of a method reach the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorMode {
    /// Status 200 and `{"error": {"code", "message"}}`.
    #[default]
    Body,
    /// The status says it, the body is `{"code", "message"}`.
    Transport,
}

impl ApiError {
    /// An error of this kind with its details.
    pub fn new(code: ErrorCode, details: impl std::fmt::Display) -> Self {
        Self { code: code.code, message: format!("{}: {details}", code.message) }
    }

    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        [ErrorCode::INTERNAL.code, ErrorCode::TOO_MANY_REQUESTS.code].contains(&self.code)
    }

    /// A field holds what is not allowed.
    pub(crate) fn value(field: &str, value: impl std::fmt::Debug, allowed: &str) -> Self {
        let mut value = format!("{value:?}");
        if let Some((cut, _)) = value.char_indices().nth(80) {
            value.truncate(cut);
            value.push('…');
        }
        Self::new(ErrorCode::BAD_REQUEST, format_args!("field {field} is {value}; allowed: {allowed}"))
    }

    /// A field that must be there is not.
    pub(crate) fn missing(field: &str, allowed: &str) -> Self {
        Self::new(ErrorCode::BAD_REQUEST, format_args!("field {field} is missing; allowed: {allowed}"))
    }

    /// The status that stands for this error where statuses are asked for; the published mapping, and ours for codes
    /// that it leaves open.
    pub fn status(&self) -> StatusCode {
        match self.code {
            102 | 104 => StatusCode::NOT_FOUND,
            101 => StatusCode::UNAUTHORIZED,
            103 => StatusCode::FORBIDDEN,
            106..=108 => StatusCode::BAD_REQUEST,
            111 => StatusCode::TOO_MANY_REQUESTS,
            112 => StatusCode::RANGE_NOT_SATISFIABLE,
            CONFLICT => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_published_ones() {
        for (code, status) in [(100, 500), (102, 404), (104, 404), (107, 400), (108, 400), (112, 416), (113, 409)] {
            assert_eq!(ApiError { code, message: String::new() }.status().as_u16(), status, "code {code}");
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let error = ApiError::value("channel", "ä".repeat(500), "at most 255 bytes");
        assert!(error.message.len() < 300, "{}", error.message);
        assert!(error.message.starts_with("bad request: field channel is \"ää") && error.message.contains('…'));
    }
}
