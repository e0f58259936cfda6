//! Lua scripts: short, all keys in one slot, called by their digest and loaded where a server does not know them.

use std::sync::OnceLock;

/// A script with its version in its name. Scripts do all their reading and checking before the first write, so that one
/// which fails has written nothing.
pub struct Script {
    name: &'static str,
    text: &'static str,
    digest: OnceLock<String>,
}

impl Script {
    /// `name` ends with the version (`session_update/1`): a script whose text changes gets a new one.
    pub const fn new(name: &'static str, text: &'static str) -> Self {
        Script { name, text, digest: OnceLock::new() }
    }

    /// Name with version.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The Lua text.
    pub fn text(&self) -> &'static str {
        self.text
    }

    /// SHA-1 of the text, in hex.
    pub fn digest(&self) -> &str {
        self.digest.get_or_init(|| fred::util::sha1_hash(self.text))
    }
}
