//! Names of keys: `<prefix>:<kind>:{<tag>}[:<part>]`. The tag is a keyed hash of the id, so that nobody can choose a slot,
//! break a key or tell ids from keys; everything of one session, user or channel shares its tag and so its slot.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::client::RedisConfig;

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// Names keys. Clones are cheap.
#[derive(Clone)]
pub struct Keys {
    prefix: Arc<str>,
    secret: Arc<hmac::Key>,
}

/// An id as keys show it: 22 characters of the URL-safe alphabet, 128 bits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tag(Box<str>);

/// A key and its slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    name: String,
    slot: u16,
}

impl Keys {
    /// Keys under a configuration's prefix and secret.
    pub fn new(config: &RedisConfig) -> Self {
        let secret = config.key_secret.as_ref().map_or(config.prefix.as_str(), |secret| secret.expose());
        Keys {
            prefix: config.prefix.as_str().into(),
            secret: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())),
        }
    }

    /// The tag of an id; its parts are kept apart whatever bytes they hold.
    pub fn tag(&self, parts: &[&str]) -> Tag {
        let mut context = hmac::Context::with_key(&self.secret);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        Tag(URL_SAFE_NO_PAD.encode(&context.sign().as_ref()[..16]).into())
    }

    /// `<prefix>:<kind>:{<tag>}`.
    pub fn key(&self, kind: &str, tag: &Tag) -> Key {
        self.part(kind, tag, "")
    }

    /// `<prefix>:<kind>:{<tag>}:<part>`; without the last colon when `part` is empty. It must hold no user's choice.
    pub fn part(&self, kind: &str, tag: &Tag, part: &str) -> Key {
        let colon = if part.is_empty() { "" } else { ":" };
        Key { name: format!("{}:{kind}:{{{}}}{colon}{part}", self.prefix, tag.0), slot: tag.slot() }
    }

    /// A tag whose slot `wanted` accepts; for keys that watch one server. `None` when it accepts none.
    pub fn tag_in(&self, wanted: impl Fn(u16) -> bool) -> Option<Tag> {
        // Each try meets a given slot with 1/16,384; 2^20 tries miss one with e^-64.
        (0..1u32 << 20).map(|n| Tag(n.to_string().into())).find(|tag| wanted(tag.slot()))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Tag {
    /// The slot of all keys with this tag.
    pub fn slot(&self) -> u16 {
        fred::util::redis_keyslot(self.0.as_bytes())
    }

    /// As it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Its slot.
    pub fn slot(&self) -> u16 {
        self.slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Address;

    fn keys(secret: &str) -> Keys {
        let config = RedisConfig::standalone(Address::new("h", 1));
        Keys::new(&RedisConfig { key_secret: Some(secret.into()), ..config })
    }

    #[test]
    fn ids_cannot_break_a_key_or_choose_a_slot() {
        let keys = keys("s");
        for id in ["", "{a}b", "}", "a:b", "*", "\0\r\n", "日本語"] {
            let key = keys.part("s", &keys.tag(&[id]), "x");
            assert_eq!(key.as_str().len(), "plenum:s:{}:x".len() + 22, "{id:?}");
            assert!(key.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*'), "{key:?}");
            assert_eq!(key.slot(), fred::util::redis_keyslot(key.as_str().as_bytes()));
        }
        assert_ne!(keys.tag(&["ab", "c"]), keys.tag(&["a", "bc"]));
        assert_ne!(keys.tag(&["a"]), keys.tag(&["a", ""]));
        assert_ne!(keys.tag(&["a"]), self::keys("t").tag(&["a"]), "the secret decides");
    }

    #[test]
    fn a_tag_is_found_for_any_slot() {
        let keys = keys("s");
        for slot in [0, 1, 8191, SLOTS - 1] {
            assert_eq!(keys.tag_in(|found| found == slot).unwrap().slot(), slot);
        }
        assert_eq!(keys.tag_in(|_| false), None);
    }
}
