//! What the section `client.token` (and `client.subscription_token`) of the configuration says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Keys and checks for tokens; names, types and meaning are those of Centrifugo v6 unless marked as ours.
///
/// Once `jwks_public_endpoint` is set, every token is verified with keys from there and the other keys are not used.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenConfig {
    /// Secret for HS256, HS384 and HS512; empty: tokens with these algorithms are refused.
    pub hmac_secret_key: String,
    /// The secret before the last rotation, accepted too; empty for none.
    pub hmac_previous_secret_key: String,
    /// Unix seconds after which the previous secret is not accepted any more; 0: without end.
    pub hmac_previous_secret_key_valid_until: i64,
    /// PEM for RS256, RS384 and RS512, 2048 to 8192 bits; empty for none.
    pub rsa_public_key: String,
    /// PEM for ES256, ES384 or ES512, as its curve says; empty for none.
    pub ecdsa_public_key: String,
    /// PEM for EdDSA (ours); empty for none.
    pub ed25519_public_key: String,
    /// `http` or `https` URL of a JSON Web Key Set; `{{name}}` stands for a named group of `issuer_regex` or
    /// `audience_regex`.
    pub jwks_public_endpoint: String,
    /// Allows named groups in the endpoint that match more than an explicit list of values. A client chooses the
    /// claim before anything is verified: it could then choose where keys are fetched from.
    pub insecure_skip_jwks_endpoint_safety_check: bool,
    /// The `aud` claim must hold this value; empty: not checked.
    pub audience: String,
    /// A value of the `aud` claim must match this pattern; empty: not checked.
    pub audience_regex: String,
    /// The `iss` claim must be this value; empty: not checked.
    pub issuer: String,
    /// The `iss` claim must match this pattern; empty: not checked.
    pub issuer_regex: String,
    /// The claim that holds the user, letters and underscores; empty: `sub`.
    pub user_id_claim: String,
}

impl fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |text: &str| if text.is_empty() { "" } else { "[set]" };
        f.debug_struct("TokenConfig")
            .field("hmac_secret_key", &secret(&self.hmac_secret_key))
            .field("hmac_previous_secret_key", &secret(&self.hmac_previous_secret_key))
            .field("hmac_previous_secret_key_valid_until", &self.hmac_previous_secret_key_valid_until)
            .field("rsa_public_key", &self.rsa_public_key)
            .field("ecdsa_public_key", &self.ecdsa_public_key)
            .field("ed25519_public_key", &self.ed25519_public_key)
            .field("jwks_public_endpoint", &self.jwks_public_endpoint)
            .field("insecure_skip_jwks_endpoint_safety_check", &self.insecure_skip_jwks_endpoint_safety_check)
            .field("audience", &self.audience)
            .field("audience_regex", &self.audience_regex)
            .field("issuer", &self.issuer)
            .field("issuer_regex", &self.issuer_regex)
            .field("user_id_claim", &self.user_id_claim)
            .finish()
    }
}

/// Why a [`TokenConfig`] cannot be used; says the field, and never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenConfigError {
    /// A key is not what its field asks for.
    #[error("{field}: {reason}; expected {expected}")]
    Key {
        /// The option.
        field: &'static str,
        /// What is wrong.
        reason: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A secret that anybody knows would let anybody sign.
    #[error("{field}: it is a public key, and whoever has it could sign tokens; expected a random secret")]
    PublicSecret {
        /// The option.
        field: &'static str,
    },
    /// The end of the previous secret lies before 1970.
    #[error("hmac_previous_secret_key_valid_until: {value} is not allowed; expected Unix seconds, or 0 for no end")]
    ValidUntil {
        /// The value given.
        value: i64,
    },
    /// A pattern does not compile.
    #[error("{field}: {reason}")]
    Pattern {
        /// The option.
        field: &'static str,
        /// The pattern compiler's message.
        reason: String,
    },
    /// Two options that exclude each other.
    #[error("{first} and {second} are both set; set only one of them")]
    Both {
        /// One option.
        first: &'static str,
        /// The other option.
        second: &'static str,
    },
    /// The endpoint is not a URL that can be fetched.
    #[error("jwks_public_endpoint: {reason}")]
    Endpoint {
        /// What is wrong.
        reason: String,
    },
    /// A placeholder could take values that nobody listed.
    #[error(
        "{field}: the named group {group:?} is used in jwks_public_endpoint and must be a list of fixed values such \
         as value1|value2; insecure_skip_jwks_endpoint_safety_check allows more"
    )]
    OpenPlaceholder {
        /// The option with the pattern.
        field: &'static str,
        /// The named group.
        group: String,
    },
    /// The user claim's name has other characters.
    #[error("user_id_claim: {value:?} is not allowed; expected letters and underscores")]
    UserIdClaim {
        /// The value given.
        value: String,
    },
}
