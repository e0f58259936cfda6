//! What is accepted and what is refused.

mod attacks;
mod configuration;
mod meaning;
mod mutations;

use plenum_channels::TokenError;

use super::*;
use crate::testing::*;

/// The reason of a refusal, which must hold nothing of the token.
async fn refusal(verifier: &Verifier, token: &str) -> String {
    let checked = |error: Option<TokenError>| match error {
        Some(TokenError::Invalid { reason }) => {
            assert!(!reason.contains("marker") && !reason.contains(SECRET), "{reason}");
            reason
        }
        other => panic!("expected a refusal of {token}, got {other:?}"),
    };
    checked(verifier.subscription(token).await.err());
    checked(verifier.connection(token).await.err())
}
