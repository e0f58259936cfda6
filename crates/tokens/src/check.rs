//! A report about a token, for the operator who holds it.

use std::fmt;

use plenum_channels::{ConnectionClaims, SubscriptionClaims, TokenError, Tokens};

use crate::Authority;
use crate::claims::{Claim, RawClaims};
use crate::clock::Clock;
use crate::jose::{Parts, unverified};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// To connect.
    Connection,
    /// To subscribe to one channel.
    Subscription,
}

/// What a token says and whether it is accepted. Its `Display` shows claims, as the one who asks holds the token: it is
/// for a terminal, not for logs.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenReport {
    /// What it was checked as.
    pub kind: TokenKind,
    /// The header as JSON text, not verified.
    pub header: Option<String>,
    /// The claims as JSON text, not verified.
    pub claims: Option<String>,
    /// What was seen on the way.
    pub notes: Vec<String>,
    /// What it grants, in a line, or why it is refused.
    pub verdict: Result<String, TokenError>,
}

impl TokenReport {
    /// Whether the token is accepted.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.verdict.is_ok()
    }
}

/// Verifies a token as a client's would be and says what is in it. Without a `kind`, a token with a `channel` counts
/// as a subscription token.
pub async fn check(authority: &Authority, token: &str, kind: Option<TokenKind>) -> TokenReport {
    let token = token.trim();
    let (header, claims) = unverified(token);
    let raw = claims.as_deref().and_then(|claims| RawClaims::parse(claims, None).ok());
    let has_channel = raw.as_ref().is_some_and(|raw| matches!(raw.text(Claim::Channel), Ok(Some(_))));
    let guess = if has_channel { TokenKind::Subscription } else { TokenKind::Connection };
    let kind = kind.unwrap_or(guess);
    let mut notes = Vec::new();
    if let Ok(parts) = Parts::parse(token) {
        let kid = parts.kid.map_or(String::new(), |kid| format!(", key {kid:?}"));
        notes.push(format!("algorithm {}{kid}", parts.algorithm.name()));
    }
    if let Some(raw) = &raw {
        notes.extend(times(raw));
    }
    let verdict = match kind {
        TokenKind::Connection => authority.connection(token).await.map(|claims| connection(&claims)),
        TokenKind::Subscription => authority.subscription(token).await.map(|claims| subscription(&claims)),
    };
    TokenReport { kind, header, claims, notes, verdict }
}

fn times(raw: &RawClaims<'_>) -> Vec<String> {
    let now = Clock::System.unix();
    let mut notes = Vec::new();
    match raw.time(Claim::Exp) {
        Ok(Some(exp)) if exp <= now => notes.push(format!("exp: expired {} s ago", now - exp)),
        Ok(Some(exp)) => notes.push(format!("exp: expires in {} s", exp - now)),
        Ok(None) => notes.push("exp: absent, the token never expires".to_owned()),
        Err(error) => notes.push(error.to_string()),
    }
    if let Ok(Some(nbf)) = raw.time(Claim::Nbf)
        && nbf > now
    {
        notes.push(format!("nbf: valid only in {} s", nbf - now));
    }
    match raw.time(Claim::ExpireAt) {
        Ok(Some(0)) => notes.push("expire_at: what it grants never expires".to_owned()),
        Ok(Some(at)) => notes.push(format!("expire_at: what it grants expires at {at}")),
        _ => {}
    }
    notes
}

fn connection(claims: &ConnectionClaims) -> String {
    let user = if claims.user.is_empty() { "an anonymous user".to_owned() } else { format!("user {:?}", claims.user) };
    let mut line = format!("connection token of {user}");
    if !claims.subscriptions.is_empty() {
        let channels: Vec<&str> = claims.subscriptions.keys().map(String::as_str).collect();
        line.push_str(&format!(", subscribed by the server to {}", channels.join(", ")));
    }
    line
}

fn subscription(claims: &SubscriptionClaims) -> String {
    let mut line = format!("subscription token of user {:?} for channel {:?}", claims.user, claims.channel);
    if !claims.client.is_empty() {
        line.push_str(&format!(", for client {:?} only", claims.client));
    }
    line
}

impl fmt::Display for TokenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "header:  {}", self.header.as_deref().unwrap_or("not readable"))?;
        writeln!(f, "claims:  {}", self.claims.as_deref().unwrap_or("not readable"))?;
        for note in &self.notes {
            writeln!(f, "         {note}")?;
        }
        match &self.verdict {
            Ok(grants) => write!(f, "valid:   {grants}"),
            Err(error) => {
                let kind = match self.kind {
                    TokenKind::Connection => "connection",
                    TokenKind::Subscription => "subscription",
                };
                write!(f, "refused: as a {kind} token: {error}")
            }
        }
    }
}
