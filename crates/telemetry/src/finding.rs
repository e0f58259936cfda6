//! What a check of a running system came to, for an operator to read.

/// How good it is; a later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Nothing is to be done.
    Good,
    /// It could not be looked at, and need not be.
    Skipped,
    /// It works, but an operator should know.
    Warning,
    /// Something is broken, or will be.
    Failed,
}

impl State {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            State::Good => "ok",
            State::Skipped => "skipped",
            State::Warning => "warning",
            State::Failed => "failed",
        }
    }
}

/// One line of a report. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How good it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
}

impl Finding {
    /// All is well.
    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(State::Good, subject, found, "")
    }

    /// Not looked at, and why; the advice says how it could be.
    pub fn skipped(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(State::Skipped, subject, found, advice)
    }

    /// It works, but.
    pub fn warning(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(State::Warning, subject, found, advice)
    }

    /// It does not work.
    pub fn failed(subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(State::Failed, subject, found, advice)
    }

    fn new(state: State, subject: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { subject: subject.into(), state, found: found.into(), advice: advice.into() }
    }
}
