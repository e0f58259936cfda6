//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: the file cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's name does not say what it is.
    #[error("{}: the name must end in .toml, .json, .yaml or .yml", file.display())]
    Format {
        /// The file.
        file: PathBuf,
    },
    /// The file is not what its name says. Holds no text of the file, which may be a secret.
    #[error("{}:{line}:{column}: {reason}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1; 0: not known.
        line: usize,
        /// Column, from 1; 0: not known.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// Settings that cannot be used, all of them.
    #[error("{}", list(problems))]
    Problems {
        /// What is wrong; never empty.
        problems: Vec<Problem>,
    },
}

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, environment variable or flag that set it; empty where nobody did.
    pub source: String,
    /// Its path.
    pub key: String,
    /// Its value as text; `None` for secrets and where there is none.
    pub value: Option<String>,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source.is_empty() {
            write!(f, "{}: ", self.source)?;
        }
        match &self.value {
            Some(value) => write!(f, "{} = {value}: {}", self.key, self.text),
            None => write!(f, "{}: {}", self.key, self.text),
        }
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => {
            let lines = many.iter().map(|problem| format!("\n  {problem}"));
            format!("{} settings cannot be used:{}", many.len(), lines.collect::<String>())
        }
    }
}
