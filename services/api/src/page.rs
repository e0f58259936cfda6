//! The page that `--dev` shows at `/`: a chat between browser windows that survives going offline.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Request, StatusCode};

use crate::http_reply::{HttpReply, TEXT, reply, unless_get};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path, type and text of each file; the licence goes with the SDK.
const FILES: [(&str, &str, &str); 5] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
    ("/page.css", STYLE, include_str!("page/page.css")),
    ("/centrifuge.js", SCRIPT, include_str!("page/centrifuge.js")),
    ("/THIRD_PARTY", "text/plain; charset=utf-8", include_str!("page/THIRD_PARTY")),
];

/// Nothing but our own files and connections back to where the page came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Serves the files of the page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page;

impl Page {
    /// Whether the path is one of the page's files.
    pub fn owns(&self, path: &str) -> bool {
        file(path).is_some()
    }

    /// Answers one request.
    pub fn route<B>(&self, request: &Request<B>) -> HttpReply {
        if let Some(refused) = unless_get(request.method()) {
            return refused;
        }
        let Some((_, content_type, text)) = file(request.uri().path()) else {
            return reply(StatusCode::NOT_FOUND, TEXT, "not found\n");
        };
        let mut reply = reply(StatusCode::OK, HeaderValue::from_static(content_type), *text);
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        for (name, value) in [
            ("content-security-policy", POLICY),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        reply
    }
}

fn file(path: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    FILES.iter().find(|(own, _, _)| *own == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> HttpReply {
        Page.route(&Request::get(path).body(()).unwrap())
    }

    #[test]
    fn everything_that_the_page_names_is_served() {
        let html = FILES[0].2;
        let mut named = 0;
        for part in html.split(['"']).filter(|part| part.starts_with('/')) {
            assert_eq!(get(part).status(), StatusCode::OK, "{part}");
            named += 1;
        }
        assert!(named >= 3, "{named}");
    }

    #[test]
    fn the_policy_forbids_inline_scripts_and_the_page_has_none() {
        let html = FILES[0].2;
        assert!(!POLICY.contains("unsafe-inline"));
        for script in html.split("<script").skip(1) {
            let inner = script.split_once('>').unwrap().1.split_once("</script>").unwrap().0;
            assert_eq!(inner, "");
        }
        assert!(!html.contains("style=") && !html.contains(" onclick"));
        let reply = get("/");
        for header in ["content-security-policy", "x-content-type-options", "referrer-policy"] {
            assert!(reply.headers().contains_key(header), "{header}");
        }
    }

    #[test]
    fn nothing_else_is_served() {
        assert_eq!(get("/../Cargo.toml").status(), StatusCode::NOT_FOUND);
        assert!(!Page.owns("/api"));
        let post = Page.route(&Request::post("/").body(()).unwrap());
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(post.headers()["allow"], "GET, HEAD");
    }
}
