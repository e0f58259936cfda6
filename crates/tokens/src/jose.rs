//! The outside of a token: three base64url parts, of which the first names algorithm and key (RFC 7515).

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use plenum_channels::TokenError;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::algorithm::Algorithm;

pub(crate) fn invalid(reason: impl Into<String>) -> TokenError {
    TokenError::Invalid { reason: reason.into() }
}

/// A token taken apart; nothing of it is verified yet. Its size is bounded by the frame that it came in.
pub(crate) struct Parts<'a> {
    pub(crate) algorithm: Algorithm,
    /// Names the key in a key set.
    pub(crate) kid: Option<String>,
    /// What is signed: the first two parts as they stand.
    pub(crate) message: &'a [u8],
    pub(crate) signature: Vec<u8>,
    payload: &'a str,
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    kid: Option<String>,
    /// Names extensions that must be understood (RFC 7515, 4.1.11); none is.
    crit: Option<IgnoredAny>,
}

impl<'a> Parts<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, TokenError> {
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("a token must have three parts"));
        };
        let message = &token.as_bytes()[..header.len() + 1 + payload.len()];
        let header = decode(header, "header")?;
        if header.trim_ascii_start().first() != Some(&b'{') {
            return Err(invalid("the header is not a JSON object"));
        }
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|_| {
            invalid("the header is not JSON with one text alg, at most one text kid and at most one crit")
        })?;
        if header.crit.is_some() {
            return Err(invalid("the header asks for an extension (crit) that is not known"));
        }
        let algorithm =
            Algorithm::parse(&header.alg).ok_or_else(|| invalid("the algorithm (alg) is none or not known"))?;
        Ok(Self { algorithm, kid: header.kid, message, signature: decode(signature, "signature")?, payload })
    }

    /// The claims as JSON text.
    pub(crate) fn payload(&self) -> Result<String, TokenError> {
        String::from_utf8(decode(self.payload, "payload")?).map_err(|_| invalid("the payload is not UTF-8"))
    }
}

fn decode(part: &str, name: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| invalid(format!("the {name} is not base64url")))
}

/// Header and payload as text, for a report; nothing of them is verified.
pub(crate) fn unverified(token: &str) -> (Option<String>, Option<String>) {
    let mut texts = token.split('.').map(|part| String::from_utf8(decode(part, "part").ok()?).ok());
    (texts.next().flatten(), texts.next().flatten())
}
