//! Tokens: JSON Web Tokens that say who connects and what they may subscribe to.
//!
//! [`Authority`] implements the port [`Tokens`]; a [`Verifier`] holds the keys and rules of one configuration section.
//! An algorithm is bound to its key: a token's header chooses among configured keys and never how a key is used.
//! No error, log line or reason holds a token, a claim's value or a key.
//!
//! Sources: RFC 7515 to 7519, RFC 8037, and the published claims of Centrifugo v6 (connection and subscription JWT).

mod algorithm;
mod check;
mod claims;
mod clock;
mod config;
mod endpoint;
mod jose;
mod jwks;
mod rules;
mod sign;
mod verifier;

#[cfg(test)]
mod testing;

use async_trait::async_trait;
use plenum_channels::{ConnectionClaims, SubscriptionClaims, TokenError, Tokens};

pub use check::{TokenKind, TokenReport, check};
pub use config::{TokenConfig, TokenConfigError};
pub use sign::{
    ConnectionTokenSpec, SignError, SubscriptionSpec, SubscriptionTokenSpec, sign_connection, sign_subscription,
};
pub use verifier::Verifier;

/// Verifies connection and subscription tokens.
pub struct Authority {
    connection: Verifier,
    /// For subscription tokens, where they have keys of their own.
    subscription: Option<Verifier>,
}

impl Authority {
    /// Without `subscription` (`client.subscription_token.enabled` is false) the connection's keys and rules hold for
    /// subscription tokens too.
    #[must_use]
    pub fn new(connection: Verifier, subscription: Option<Verifier>) -> Self {
        Self { connection, subscription }
    }
}

#[async_trait]
impl Tokens for Authority {
    async fn connection(&self, token: &str) -> Result<ConnectionClaims, TokenError> {
        self.connection.connection(token).await
    }

    async fn subscription(&self, token: &str) -> Result<SubscriptionClaims, TokenError> {
        self.subscription.as_ref().unwrap_or(&self.connection).subscription(token).await
    }
}
