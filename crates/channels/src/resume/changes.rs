//! What the server API changed of a connection's server-side subscriptions: the fence holds it, because the pass that the
//! client carries was sealed before.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::pass::{Reader, Writer};
use crate::SubscribeOptions;

/// Most bytes of them in a fence, which must fit into a register.
const MAX_BYTES: usize = 3 * 1024;

/// Subscriptions that were made and ended since the first connect of a client id.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    /// By channel; `None`: ended.
    channels: BTreeMap<String, Option<SubscribeOptions>>,
    /// They are more than a fence holds, and were dropped: nobody knows what the connection was.
    pub(super) dropped: bool,
}

impl Changes {
    /// A later change counts. False when it says nothing more: too many were there before.
    pub(super) fn note(&mut self, channel: &str, options: Option<SubscribeOptions>) -> bool {
        if self.dropped {
            return false;
        }
        let options = options.map(|options| SubscribeOptions { since: None, ..options });
        self.channels.insert(channel.to_owned(), options);
        self.bound();
        true
    }

    /// Adds what came after these.
    pub(super) fn extend(&mut self, later: &Changes) {
        self.dropped |= later.dropped;
        self.channels.extend(later.channels.clone());
        self.bound();
    }

    /// Keeps nothing of what a fence would not hold: connections last for days, and their channels come and go.
    fn bound(&mut self) {
        self.dropped |= self.write().len() > MAX_BYTES;
        if self.dropped {
            self.channels.clear();
        }
    }

    /// Whether the channel's subscription was ended, and not made again.
    pub(crate) fn ended(&self, channel: &str) -> bool {
        matches!(self.channels.get(channel), Some(None))
    }

    /// Carries them out on what a token or a pass grants. `now` in Unix seconds: what has expired is not made again.
    pub(crate) fn apply(&self, subscriptions: &mut BTreeMap<String, SubscribeOptions>, now: u64) {
        for (channel, options) in &self.channels {
            match options {
                Some(options) if options.expire_at == 0 || options.expire_at > now => {
                    subscriptions.insert(channel.clone(), options.clone());
                }
                _ => {
                    subscriptions.remove(channel);
                }
            }
        }
    }

    /// Nothing for none.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self.dropped {
            true => vec![1],
            false if self.channels.is_empty() => Vec::new(),
            false => self.write(),
        }
    }

    fn write(&self) -> Vec<u8> {
        let mut out = Writer(vec![0]);
        out.number(self.channels.len() as u64);
        for (channel, options) in &self.channels {
            out.bytes(channel.as_bytes());
            out.0.push(u8::from(options.is_some()));
            if let Some(options) = options {
                out.options(options);
            }
        }
        out.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut changes = Self::default();
        let mut from = match bytes {
            [] => return Some(changes),
            [1] => return Some(Self { dropped: true, ..changes }),
            [0, rest @ ..] => Reader(rest),
            _ => return None,
        };
        for _ in 0..from.number()? {
            let channel = from.text()?;
            let options = match from.array::<1>()? {
                [0] => None,
                [1] => Some(from.options()?),
                _ => return None,
            };
            changes.channels.insert(channel, options);
        }
        from.0.is_empty().then_some(changes)
    }
}

/// Changes of one connection on their way to its fence: written one after the other, several of them at once.
#[derive(Debug, Default)]
pub(crate) struct Noted(Mutex<Noting>);

#[derive(Debug, Default)]
struct Noting {
    changes: Changes,
    /// Not written yet.
    due: bool,
    /// Somebody writes.
    writing: bool,
}

impl Noted {
    /// True when the caller is the one who has to write: [`Noted::next`] until there is none.
    pub(crate) fn add(&self, channel: &str, options: Option<SubscribeOptions>) -> bool {
        let mut noting = self.0.lock();
        if !noting.changes.note(channel, options) {
            return false;
        }
        noting.due = true;
        !std::mem::replace(&mut noting.writing, true)
    }

    pub(super) fn next(&self) -> Option<Changes> {
        let mut noting = self.0.lock();
        noting.writing = std::mem::take(&mut noting.due);
        noting.writing.then(|| noting.changes.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_later_change_counts_and_what_is_too_much_is_known_to_be() {
        let mut changes = Changes::default();
        assert_eq!(changes.encode(), b"");
        changes.note("a", Some(SubscribeOptions { since: Some((1, "e".into())), ..SubscribeOptions::default() }));
        changes.note("b", None);
        let mut later = Changes::default();
        later.note("a", None);
        later.note("c", Some(SubscribeOptions { expire_at: 10, ..SubscribeOptions::default() }));
        changes.extend(&later);
        assert_eq!(Changes::decode(&changes.encode()), Some(changes.clone()));
        assert!(changes.ended("a") && changes.ended("b") && !changes.ended("c") && !changes.ended("d"));
        let granted: BTreeMap<_, _> =
            ["a", "d"].map(|channel| (channel.to_owned(), SubscribeOptions::default())).into();
        for (now, expected) in [(9, vec!["c", "d"]), (10, vec!["d"])] {
            let mut subscriptions = granted.clone();
            changes.apply(&mut subscriptions, now);
            assert_eq!(subscriptions.keys().collect::<Vec<_>>(), expected, "at {now}");
        }
        changes
            .note("d", Some(SubscribeOptions { data: Bytes::from(vec![b'1'; 4000]), ..SubscribeOptions::default() }));
        assert_eq!(Changes::decode(&changes.encode()).map(|changes| changes.dropped), Some(true));
        assert_eq!(Changes::decode(b"\x02"), None);
    }

    /// A connection that lasts for long has had any number of channels.
    #[test]
    fn no_more_is_kept_of_a_connection_than_a_fence_holds() {
        let noted = Noted::default();
        let mut writes = 0;
        for n in 0..1000 {
            writes += usize::from(noted.add(&format!("room:{n}"), Some(SubscribeOptions::default())));
            writes += usize::from(noted.add(&format!("room:{n}"), None));
            let kept = noted.0.lock().changes.write().len();
            assert!(kept <= MAX_BYTES, "{kept} bytes after {n} channels");
        }
        assert_eq!(writes, 1, "the writer has not begun yet");
        let last = noted.next().expect("due");
        assert_eq!((last.dropped, last.channels.len(), last.encode()), (true, 0, vec![1]));
        assert!(noted.next().is_none());
        assert!(!noted.add("room:a", None), "there is nothing more to write");
        let mut fence = Changes::default();
        fence.note("a", None);
        fence.extend(&last);
        assert_eq!((fence.dropped, fence.channels.len()), (true, 0));
    }
}
