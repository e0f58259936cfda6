//! Which pages may open a connection.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use http::HeaderMap;
use http::header::ORIGIN;

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed origin {pattern:?}: {found:?} is not supported; patterns are exact origins, with * for any characters and ? for one"
)]
pub struct OriginError {
    /// The pattern.
    pub pattern: String,
    /// The character in it.
    pub found: char,
}

/// The list `client.allowed_origins`, with Centrifugo's meaning: patterns such as `https://app.example.com`,
/// `https://*.example.com` or `*`, compared without regard to case. A request without Origin does not come from a browser
/// and is allowed; an empty list allows no other.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    patterns: Vec<String>,
}

impl Origins {
    /// Checks the patterns. Classes and alternatives (`[ab]`, `{a,b}`) are refused; an IPv6 address may stand in brackets.
    pub fn new<I, P>(patterns: I) -> Result<Self, OriginError>
    where
        I: IntoIterator<Item = P>,
        P: AsRef<str>,
    {
        let check = |pattern: P| {
            let pattern = pattern.as_ref();
            let plain = without_address(pattern);
            match plain.chars().find(|found| "[]{}\\".contains(*found)) {
                Some(found) => Err(OriginError { pattern: pattern.to_owned(), found }),
                None => Ok(pattern.to_ascii_lowercase()),
            }
        };
        Ok(Self { patterns: patterns.into_iter().map(check).collect::<Result<_, _>>()? })
    }

    /// Whether a request with these headers is allowed.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        match headers.get(ORIGIN).map(|origin| origin.to_str()) {
            None | Some(Ok("")) => true,
            Some(Ok(origin)) => {
                let origin = origin.to_ascii_lowercase();
                self.patterns.iter().any(|pattern| matches(pattern.as_bytes(), origin.as_bytes()))
            }
            Some(Err(_)) => false,
        }
    }
}

/// The pattern without an IPv6 address in brackets.
fn without_address(pattern: &str) -> Cow<'_, str> {
    if let Some((scheme, rest)) = pattern.split_once("://[")
        && let Some((address, port)) = rest.split_once(']')
        && address.parse::<Ipv6Addr>().is_ok()
    {
        return Cow::Owned(format!("{scheme}://{port}"));
    }
    Cow::Borrowed(pattern)
}

/// Whether `text` as a whole fits `pattern`; linear in memory, at most pattern × text steps.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when a guess at the length of the last star's match fails.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((after_star, from)) = retry else { return false };
                retry = Some((after_star, from + 1));
                (p, t) = (after_star, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn allows(patterns: &[&str], origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        Origins::new(patterns).unwrap().allow(&headers)
    }

    #[test]
    fn a_request_without_origin_is_allowed() {
        assert!(allows(&[], None));
        assert!(allows(&["https://app.example.com"], None));
    }

    #[test]
    fn an_empty_list_allows_no_page() {
        assert!(!allows(&[], Some("https://app.example.com")));
    }

    #[test]
    fn exact_origins_include_scheme_and_port() {
        let list = ["https://app.example.com", "http://localhost:3000", "http://[::1]:3000"];
        assert!(allows(&list, Some("https://app.example.com")));
        assert!(allows(&list, Some("HTTPS://APP.example.com")));
        assert!(allows(&list, Some("http://[::1]:3000")));
        assert!(!allows(&list, Some("http://app.example.com")));
        assert!(!allows(&list, Some("https://app.example.com:8443")));
        assert!(!allows(&list, Some("https://app.example.com.evil.org")));
        assert!(!allows(&list, Some("null")));
    }

    #[test]
    fn wildcards() {
        assert!(allows(&["*"], Some("https://anything")));
        assert!(allows(&["https://*.example.com"], Some("https://a.b.example.com")));
        assert!(!allows(&["https://*.example.com"], Some("https://example.com")));
        assert!(!allows(&["https://*.example.com"], Some("https://a.example.com.evil.org")));
        assert!(allows(&["http://localhost:300?"], Some("http://localhost:3001")));
        assert!(!allows(&["http://localhost:300?"], Some("http://localhost:300")));
        assert!(allows(&["*a*b*"], Some("xxaxxabx")));
    }

    #[test]
    fn unsupported_patterns_are_named() {
        let error = Origins::new(["https://{a,b}.example.com"]).unwrap_err();
        assert_eq!(error.found, '{');
        assert!(Origins::new(["https://[ab].example.com"]).is_err());
        assert!(Origins::new(["https://[::1"]).is_err());
    }
}
