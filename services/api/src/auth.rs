//! Who may call the API.

use std::fmt;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq};

/// The keys that open the API; none opens nothing. Never printed.
#[derive(Clone, Default)]
pub struct Keys(Vec<Box<[u8]>>);

impl Keys {
    /// Empty keys are left out: an empty key opens nothing.
    pub fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self(keys.into_iter().filter(|key| !key.as_ref().is_empty()).map(|key| key.as_ref().into()).collect())
    }

    /// Whether the request carries one of the keys: in `X-API-Key`, else in `Authorization: apikey …`, else in the
    /// query as `api_key`. The time it takes tells nothing of a key but its length.
    pub fn admit(&self, headers: &HeaderMap, query: Option<&str>) -> bool {
        if let Some(given) = headers.get("x-api-key") {
            return self.contain(given.as_bytes());
        }
        if let Some(given) = headers.get(AUTHORIZATION).and_then(|value| apikey(value.as_bytes())) {
            return self.contain(given);
        }
        let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        pairs.find(|(name, _)| name == "api_key").is_some_and(|(_, given)| self.contain(given.as_bytes()))
    }

    fn contain(&self, given: &[u8]) -> bool {
        let matches = self.0.iter().map(|key| key.as_ref().ct_eq(given));
        matches.fold(Choice::from(0), |found, matched| found | matched).into()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}

/// The key in the value of an Authorization header; the scheme's case does not matter.
fn apikey(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.trim_ascii().split_at_checked(6)?;
    let key = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"apikey") && key.len() < rest.len()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(keys: &Keys, name: &'static str, value: &str, query: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if !name.is_empty() {
            headers.insert(name, value.parse().unwrap());
        }
        keys.admit(&headers, query)
    }

    #[test]
    fn every_published_place_is_read() {
        let keys = Keys::new(["old", "s3cret key"]);
        assert!(admits(&keys, "x-api-key", "old", None));
        assert!(admits(&keys, "authorization", "apikey s3cret key", None));
        assert!(admits(&keys, "authorization", "APIKey  old", None));
        assert!(admits(&keys, "", "", Some("a=b&api_key=s3cret%20key")));
    }

    #[test]
    fn nothing_else_is_admitted() {
        let keys = Keys::new(["old"]);
        for value in ["", "ol", "oldd", "OLD"] {
            assert!(!admits(&keys, "x-api-key", value, None), "{value}");
        }
        for value in ["old", "Bearer old", "apikey", "apikeyold", "apikey "] {
            assert!(!admits(&keys, "authorization", value, None), "{value}");
        }
        assert!(!admits(&keys, "", "", None));
        assert!(!admits(&keys, "", "", Some("api_key=")));
        assert!(!admits(&keys, "x-api-key", "wrong", Some("api_key=old")), "the header decides where there is one");
    }

    #[test]
    fn no_key_opens_nothing() {
        let keys = Keys::new([""]);
        assert!(!admits(&keys, "x-api-key", "", None));
        assert!(!admits(&keys, "", "", Some("api_key=")));
        assert!(!admits(&Keys::default(), "authorization", "apikey ", None));
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", Keys::new(["s3cret"])), "Keys(1)");
    }
}
