//! Checks of issuer and audience, and what their patterns' named groups matched.

use plenum_channels::TokenError;
use regex::{Captures, Regex};

use crate::claims::{Claim, RawClaims};
use crate::config::{TokenConfig, TokenConfigError};
use crate::jose::invalid;

/// What a text claim must be.
pub(crate) enum Rule {
    Any,
    Exact(String),
    Pattern(Regex),
}

impl Rule {
    fn new(
        exact: &str,
        pattern: &str,
        exact_field: &'static str,
        pattern_field: &'static str,
    ) -> Result<Self, TokenConfigError> {
        match (exact.is_empty(), pattern.is_empty()) {
            (true, true) => Ok(Self::Any),
            (false, true) => Ok(Self::Exact(exact.to_owned())),
            (true, false) => Regex::new(pattern)
                .map(Self::Pattern)
                .map_err(|error| TokenConfigError::Pattern { field: pattern_field, reason: error.to_string() }),
            (false, false) => Err(TokenConfigError::Both { first: exact_field, second: pattern_field }),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &str> {
        let pattern = if let Self::Pattern(pattern) = self { Some(pattern) } else { None };
        pattern.into_iter().flat_map(|pattern| pattern.capture_names().flatten())
    }
}

/// Values of named groups, which may stand in the key set's URL.
pub(crate) type Variables = Vec<(String, String)>;

/// The configured checks of `iss` and `aud`.
pub(crate) struct Rules {
    issuer: Rule,
    audience: Rule,
}

impl Rules {
    pub(crate) fn new(config: &TokenConfig) -> Result<Self, TokenConfigError> {
        Ok(Self {
            issuer: Rule::new(&config.issuer, &config.issuer_regex, "issuer", "issuer_regex")?,
            audience: Rule::new(&config.audience, &config.audience_regex, "audience", "audience_regex")?,
        })
    }

    /// Names of the groups of both patterns.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.issuer.groups().chain(self.audience.groups())
    }

    /// Checks both claims and returns what named groups matched.
    pub(crate) fn check(&self, claims: &RawClaims<'_>) -> Result<Variables, TokenError> {
        let mut variables = Vec::new();
        let issuer = claims.text(Claim::Iss)?;
        match &self.issuer {
            Rule::Any => {}
            Rule::Exact(expected) if issuer.as_deref() == Some(expected) => {}
            Rule::Exact(_) => return Err(invalid("the issuer (iss) is not the configured one")),
            Rule::Pattern(pattern) => {
                let captures = issuer.as_deref().and_then(|issuer| pattern.captures(issuer));
                let captures = captures.ok_or_else(|| invalid("the issuer (iss) does not match issuer_regex"))?;
                remember(pattern, &captures, &mut variables);
            }
        }
        let audience = claims.texts(Claim::Aud)?;
        match &self.audience {
            Rule::Any => {}
            Rule::Exact(expected) if audience.iter().any(|value| value == expected) => {}
            Rule::Exact(_) => return Err(invalid("the audience (aud) does not hold the configured one")),
            Rule::Pattern(pattern) => {
                let captures = audience.iter().find_map(|value| pattern.captures(value));
                let captures = captures.ok_or_else(|| invalid("the audience (aud) does not match audience_regex"))?;
                remember(pattern, &captures, &mut variables);
            }
        }
        Ok(variables)
    }
}

fn remember(pattern: &Regex, captures: &Captures<'_>, variables: &mut Variables) {
    for name in pattern.capture_names().flatten() {
        let value = captures.name(name).map_or("", |value| value.as_str());
        variables.push((name.to_owned(), value.to_owned()));
    }
}
