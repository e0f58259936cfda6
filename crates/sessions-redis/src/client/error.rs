use super::Address;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing was executed; it may work again soon.
    #[error("Redis is unavailable: {reason}")]
    Unavailable {
        /// For operators; holds no data.
        reason: String,
    },
    /// Sent, but nobody knows whether it was executed.
    #[error("Redis did not answer in time: {reason}")]
    Indeterminate {
        /// For operators; holds no data.
        reason: String,
    },
    /// The server refused the command for good: a right is missing, or a key holds something else.
    #[error("Redis refused: {reply}")]
    Refused {
        /// The server's words.
        reply: String,
    },
}

impl CallError {
    /// The same in words for a port's error.
    pub fn reason(self) -> String {
        match self {
            CallError::Unavailable { reason } | CallError::Indeterminate { reason } => reason,
            CallError::Refused { reply } => reply,
        }
    }
}

/// What became of one attempt on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing left this process.
    NotSent(String),
    /// Nothing left, and waiting would not help: too many calls are under way.
    Full(String),
    /// Left, and no answer came.
    Unknown(String),
    /// The server said no and did nothing.
    Reply(Reply),
}

/// An error that a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The slot belongs to another.
    Moved(Address),
    /// This key is with another while its slot moves.
    Ask(Address),
    /// The script is not loaded.
    NoScript,
    /// It passes: loading, failing over, moving a slot.
    Temporary(String),
    /// For good.
    Final(String),
}

impl Reply {
    /// From a server's error line; `asked` replaces an empty host, which means "the one you asked".
    pub fn parse(text: &str, asked: &Address) -> Reply {
        let mut words = text.split_whitespace();
        let redirected = |words: &mut std::str::SplitWhitespace<'_>| {
            let (host, port) = words.nth(1)?.rsplit_once(':')?;
            let host = if host.is_empty() { &asked.host } else { host };
            Some(Address::new(host, port.parse().ok()?))
        };
        let reply = match words.next().unwrap_or_default() {
            "MOVED" => redirected(&mut words).map(Reply::Moved),
            "ASK" => redirected(&mut words).map(Reply::Ask),
            "NOSCRIPT" => Some(Reply::NoScript),
            "TRYAGAIN" | "LOADING" | "MASTERDOWN" | "READONLY" | "BUSY" | "NOREPLICAS" => {
                Some(Reply::Temporary(text.to_owned()))
            }
            _ => None,
        };
        reply.unwrap_or_else(|| Reply::Final(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let asked = Address::new("a", 1);
        let parse = |text| Reply::parse(text, &asked);
        assert_eq!(parse("MOVED 3999 127.0.0.1:6381"), Reply::Moved(Address::new("127.0.0.1", 6381)));
        assert_eq!(parse("MOVED 3999 :6381"), Reply::Moved(Address::new("a", 6381)));
        assert_eq!(parse("ASK 1 ::1:6381"), Reply::Ask(Address::new("::1", 6381)));
        assert_eq!(parse("NOSCRIPT No matching script."), Reply::NoScript);
        assert!(matches!(parse("LOADING Redis is loading"), Reply::Temporary(_)));
        for text in ["MOVED 1", "MOVED 1 nowhere", "ERR unknown command", ""] {
            assert!(matches!(parse(text), Reply::Final(_)), "{text}");
        }
    }
}
