//! Glob patterns over channel names, as Centrifugo's `channels` takes them.

use regex::Regex;

/// A compiled pattern: `*` any run of characters, `?` one character, `[a-z]` and `[!a-z]` sets, `{a,b}` alternatives,
/// `\` takes the next character as it is.
pub(crate) struct Pattern(Option<Regex>);

impl Pattern {
    /// An empty pattern matches everything; one that cannot be understood matches nothing.
    pub(crate) fn new(glob: &str) -> Self {
        if glob.is_empty() {
            return Self(None);
        }
        Self(Some(Self::compile(glob).unwrap_or_else(Self::nothing)))
    }

    /// Whether the pattern can be understood.
    pub(crate) fn is_valid(glob: &str) -> bool {
        glob.is_empty() || Self::compile(glob).is_some()
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.as_ref().is_none_or(|regex| regex.is_match(name))
    }

    #[allow(clippy::unwrap_used, reason = "a constant expression")]
    fn nothing() -> Regex {
        Regex::new(r"[^\s\S]").unwrap()
    }

    fn compile(glob: &str) -> Option<Regex> {
        let mut regex = String::from(r"(?s)\A");
        let mut chars = glob.chars().peekable();
        let mut braces = 0;
        while let Some(c) = chars.next() {
            match c {
                '*' => regex.push_str(".*"),
                '?' => regex.push('.'),
                '{' => {
                    braces += 1;
                    regex.push_str("(?:");
                }
                '}' if braces > 0 => {
                    braces -= 1;
                    regex.push(')');
                }
                ',' if braces > 0 => regex.push('|'),
                '[' => {
                    regex.push('[');
                    if chars.next_if(|c| *c == '!' || *c == '^').is_some() {
                        regex.push('^');
                    }
                    loop {
                        match chars.next()? {
                            ']' => break,
                            '-' => regex.push('-'),
                            c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
                        }
                    }
                    regex.push(']');
                }
                '\\' => regex.push_str(&regex::escape(chars.next()?.encode_utf8(&mut [0; 4]))),
                c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        regex.push_str(r"\z");
        regex::RegexBuilder::new(&regex).size_limit(1 << 20).build().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn globs() {
        for (glob, name, expected) in [
            ("", "anything", true),
            ("chat:*", "chat:1", true),
            ("chat:*", "chats:1", false),
            ("chat:?", "chat:12", false),
            ("chat:[0-9]", "chat:7", true),
            ("chat:[!0-9]", "chat:7", false),
            ("{chat,news}:*", "news:1", true),
            ("{chat,news}:*", "mews:1", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            ("a.c", "abc", false),
            ("line*", "line\nbreak", true),
        ] {
            assert!(Pattern::is_valid(glob), "{glob}");
            assert_eq!(Pattern::new(glob).matches(name), expected, "{glob} on {name:?}");
        }
        for glob in ["[a", r"a\", "{a"] {
            assert!(!Pattern::is_valid(glob), "{glob}");
            assert!(!Pattern::new(glob).matches("a"));
        }
    }
}
