use std::sync::Arc;

use fred::types::Value;

use super::link::Wire;
use crate::keys::Key;
use crate::script::Script;

/// One call on keys of one slot.
#[derive(Clone)]
pub struct Call {
    pub(super) slot: u16,
    what: What,
    arguments: Arc<[Value]>,
    pub(super) repeatable: bool,
    pub(super) reads: bool,
}

#[derive(Clone, Copy)]
enum What {
    Command(&'static str),
    Script(&'static Script, usize),
}

impl Call {
    /// A command with one key, which comes before the arguments. It writes and is not repeated unless said otherwise.
    pub fn command(name: &'static str, key: &Key, arguments: impl IntoIterator<Item = Value>) -> Self {
        let all = std::iter::once(text(key.as_str())).chain(arguments);
        Call { slot: key.slot(), what: What::Command(name), arguments: all.collect(), repeatable: false, reads: false }
    }

    /// A script; all keys must be in the slot of the first (share its tag), and there is at least one.
    pub fn script(script: &'static Script, keys: &[&Key], arguments: impl IntoIterator<Item = Value>) -> Self {
        let slot = keys.first().map_or(0, |key| key.slot());
        debug_assert!(!keys.is_empty() && keys.iter().all(|key| key.slot() == slot), "{}", script.name());
        let all = keys.iter().map(|key| text(key.as_str())).chain(arguments);
        let what = What::Script(script, keys.len());
        Call { slot, what, arguments: all.collect(), repeatable: false, reads: false }
    }

    /// Changes nothing: repeated freely, and without an answer merely unavailable.
    pub fn reading(mut self) -> Self {
        (self.repeatable, self.reads) = (true, true);
        self
    }

    /// Doing it twice is as good as once: repeated when nobody knows whether it was executed.
    pub fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// As it goes out; `whole` sends a script's text instead of its digest, which also loads it.
    pub(super) fn wire(&self, whole: bool) -> Wire {
        match self.what {
            What::Command(name) => Wire { name, arguments: self.arguments.to_vec() },
            What::Script(script, keys) => {
                let (name, body) = if whole { ("EVAL", script.text()) } else { ("EVALSHA", script.digest()) };
                let head = [text(body), Value::Integer(keys as i64)];
                Wire { name, arguments: head.into_iter().chain(self.arguments.iter().cloned()).collect() }
            }
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}
