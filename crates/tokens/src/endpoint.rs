//! The key set's URL: fixed, or with places for values from unverified claims.
//!
//! Whoever connects chooses `iss` and `aud` before anything is verified. So a place in the URL may only take values
//! that the configuration lists, and what is put there can neither leave its host label nor its path segment.

use std::borrow::Cow;

use http::Uri;
use plenum_channels::TokenError;
use regex_syntax::ast::{Ast, GroupKind, parse::Parser};

use crate::config::{TokenConfig, TokenConfigError};
use crate::jose::invalid;
use crate::rules::Variables;

/// Longest value put into a URL, bytes.
const MAX_VALUE: usize = 255;

enum Piece {
    Text(String),
    Place(String),
}

/// The configured endpoint, taken apart.
pub(crate) struct Endpoint {
    pieces: Vec<Piece>,
}

impl Endpoint {
    /// `groups` are the named groups that places may refer to.
    pub(crate) fn new<'a>(
        config: &TokenConfig,
        groups: impl Iterator<Item = &'a str>,
    ) -> Result<Self, TokenConfigError> {
        let endpoint = Self { pieces: split(&config.jwks_public_endpoint)? };
        let groups: Vec<&str> = groups.collect();
        for place in endpoint.places() {
            match groups.iter().filter(|group| **group == place).count() {
                1 => {}
                0 => return Err(wrong(format!("{{{{{place}}}}} is no named group of issuer_regex or audience_regex"))),
                _ => return Err(wrong(format!("{{{{{place}}}}} is a named group of both patterns"))),
            }
        }
        if !config.insecure_skip_jwks_endpoint_safety_check {
            let places: Vec<&str> = endpoint.places().collect();
            only_listed_values("issuer_regex", &config.issuer_regex, &places)?;
            only_listed_values("audience_regex", &config.audience_regex, &places)?;
        }
        let example = endpoint.fill(|_| Some("x")).unwrap_or_default();
        check_url(&example)?;
        if !config.jwks_public_endpoint.starts_with("http://") && !config.jwks_public_endpoint.starts_with("https://") {
            return Err(wrong("it must start with http:// or https://".to_owned()));
        }
        Ok(endpoint)
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Place(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    pub(crate) fn is_https(&self) -> bool {
        matches!(self.pieces.first(), Some(Piece::Text(text)) if text.starts_with("https://"))
    }

    fn fill<'v>(&self, mut value: impl FnMut(&str) -> Option<&'v str>) -> Option<String> {
        let mut url = String::new();
        for piece in &self.pieces {
            url.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Place(name) => value(name)?,
            });
        }
        Some(url)
    }

    /// The URL for a token, from what the patterns' groups matched in it.
    pub(crate) fn resolve(&self, variables: &Variables) -> Result<Cow<'_, str>, TokenError> {
        if let [Piece::Text(url)] = self.pieces.as_slice() {
            return Ok(Cow::Borrowed(url));
        }
        let value = |name: &str| {
            let (_, value) = variables.iter().find(|(group, _)| group == name)?;
            is_safe(value).then_some(value.as_str())
        };
        self.fill(value)
            .map(Cow::Owned)
            .ok_or_else(|| invalid("issuer or audience hold a value that cannot stand in the key set's URL"))
    }
}

fn wrong(reason: String) -> TokenConfigError {
    TokenConfigError::Endpoint { reason }
}

fn split(template: &str) -> Result<Vec<Piece>, TokenConfigError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or_else(|| wrong("{{ without }}".to_owned()))?;
        if !text.is_empty() {
            pieces.push(Piece::Text(text.to_owned()));
        }
        pieces.push(Piece::Place(name.to_owned()));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

fn check_url(url: &str) -> Result<(), TokenConfigError> {
    let uri: Uri = url.parse().map_err(|error| wrong(format!("it is not a URL: {error}")))?;
    let Some(authority) = uri.authority() else { return Err(wrong("it has no host".to_owned())) };
    if authority.as_str().contains('@') {
        return Err(wrong("user and password in it are not supported".to_owned()));
    }
    Ok(())
}

/// Letters, digits and `-._~` (RFC 3986, unreserved), and no segment that climbs up.
fn is_safe(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= MAX_VALUE
        && !value.bytes().all(|byte| byte == b'.')
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

fn only_listed_values(field: &'static str, pattern: &str, places: &[&str]) -> Result<(), TokenConfigError> {
    if pattern.is_empty() || places.is_empty() {
        return Ok(());
    }
    let ast =
        Parser::new().parse(pattern).map_err(|error| TokenConfigError::Pattern { field, reason: error.to_string() })?;
    match open_group(&ast, places) {
        None => Ok(()),
        Some(group) => Err(TokenConfigError::OpenPlaceholder { field, group }),
    }
}

/// The first group named in `places` that matches more than fixed values.
fn open_group(ast: &Ast, places: &[&str]) -> Option<String> {
    match ast {
        Ast::Group(group) => {
            if let GroupKind::CaptureName { name, .. } = &group.kind
                && places.contains(&name.name.as_str())
                && !is_fixed(&group.ast)
            {
                return Some(name.name.clone());
            }
            open_group(&group.ast, places)
        }
        Ast::Repetition(repetition) => open_group(&repetition.ast, places),
        Ast::Alternation(alternation) => alternation.asts.iter().find_map(|ast| open_group(ast, places)),
        Ast::Concat(concat) => concat.asts.iter().find_map(|ast| open_group(ast, places)),
        _ => None,
    }
}

fn is_fixed(ast: &Ast) -> bool {
    match ast {
        Ast::Empty(_) | Ast::Literal(_) => true,
        Ast::Group(group) => is_fixed(&group.ast),
        Ast::Alternation(alternation) => alternation.asts.iter().all(is_fixed),
        Ast::Concat(concat) => concat.asts.iter().all(is_fixed),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, issuer: &str) -> Result<Endpoint, TokenConfigError> {
        let config = TokenConfig {
            jwks_public_endpoint: url.to_owned(),
            issuer_regex: issuer.to_owned(),
            ..TokenConfig::default()
        };
        let pattern = regex::Regex::new(issuer).unwrap();
        Endpoint::new(&config, pattern.capture_names().flatten())
    }

    fn variables(value: &str) -> Variables {
        vec![("realm".to_owned(), value.to_owned())]
    }

    #[test]
    fn a_place_takes_the_value_of_its_group() {
        let fixed = endpoint("https://keys.example/jwks", "").unwrap();
        assert_eq!(fixed.resolve(&Vec::new()).unwrap(), "https://keys.example/jwks");
        assert!(fixed.is_https());
        let open = endpoint("http://keys.example/{{realm}}/jwks", "^https://iss/(?P<realm>a|b1)$").unwrap();
        assert_eq!(open.resolve(&variables("b1")).unwrap(), "http://keys.example/b1/jwks");
        assert!(!open.is_https());
    }

    #[test]
    fn a_value_cannot_leave_its_place() {
        let endpoint = endpoint("https://{{realm}}.keys.example/jwks", "(?P<realm>a)").unwrap();
        for value in ["", ".", "..", "a/b", "a@b", "a:1", "a?b", "a#b", "a\\b", "a%2f", "ä", "a b", "a\r\n"] {
            assert!(endpoint.resolve(&variables(value)).is_err(), "{value:?}");
        }
        assert!(endpoint.resolve(&variables(&"a".repeat(MAX_VALUE + 1))).is_err());
        assert!(endpoint.resolve(&Vec::new()).is_err());
    }

    #[test]
    fn a_group_that_matches_more_than_listed_values_is_refused() {
        for open in [".*", "[ab]", r"\w+", "a+", "a|b.", "(?:x|[0-9])", r"\pL", "^a"] {
            let pattern = format!("^(?:iss-(?P<realm>{open}))?$");
            let error = endpoint("https://keys.example/{{realm}}", &pattern).err().expect(open);
            assert!(matches!(error, TokenConfigError::OpenPlaceholder { field: "issuer_regex", .. }), "{error}");
        }
        for fixed in ["a", "a|b", "a(?:b|c)d", r"a\.b"] {
            assert!(endpoint("https://keys.example/{{realm}}", &format!("(?P<realm>{fixed}).*")).is_ok(), "{fixed}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_fetched_is_refused() {
        for url in [
            "keys.example/jwks",
            "ftp://keys.example/",
            "https://user:password@keys.example/",
            "https://",
            "https://keys.example/{{realm",
            "https://keys.example/{{other}}",
            "{{realm}}://keys.example/",
            "https://keys example/",
        ] {
            assert!(endpoint(url, "(?P<realm>a)").is_err(), "{url}");
        }
    }
}
