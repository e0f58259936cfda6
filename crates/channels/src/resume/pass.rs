//! What a client carries from one connection to the next, sealed so that only replicas can read or make it.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce as AeadNonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use uuid::Uuid;

use super::Nonce;
use crate::{ConnectionClaims, SubscribeOptions, SubscribeOverrides};

const VERSION: u8 = 1;
const PURPOSE: &[u8] = b"plenum resume 1";

/// The state of a connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pass {
    pub(crate) client: Uuid,
    /// 1 for the first connection of a client id, one more with each resume.
    pub(crate) generation: u32,
    pub(crate) nonce: Nonce,
    /// Unix seconds.
    pub(crate) sealed_at: u64,
    /// Of the connection token, see [`token_mark`].
    pub(crate) token: [u8; 16],
    pub(crate) claims: ConnectionClaims,
}

/// Recognizes a connection token without keeping it; zeros for none.
pub(crate) fn token_mark(token: &str) -> [u8; 16] {
    let mut mark = [0; 16];
    if !token.is_empty() {
        mark.copy_from_slice(&digest(&SHA256, token.as_bytes()).as_ref()[..16]);
    }
    mark
}

/// Seals and opens passes with one key. AES-GCM-SIV bears random nonces for any number of passes.
pub(crate) struct Sealer(LessSafeKey);

impl Sealer {
    pub(crate) fn new(secret: &[u8]) -> Option<Self> {
        let key = digest(&SHA256, &[PURPOSE, secret].concat());
        UnboundKey::new(&AES_256_GCM_SIV, key.as_ref()).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    pub(crate) fn seal(&self, pass: &Pass) -> Option<String> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = pass.encode();
        let tag = self
            .0
            .seal_in_place_separate_tag(AeadNonce::assume_unique_for_key(nonce), Aad::from(PURPOSE), &mut sealed)
            .ok()?;
        let bytes = [&nonce[..], &sealed, tag.as_ref()].concat();
        Some(BASE64_URL_SAFE_NO_PAD.encode(bytes))
    }

    /// `None` for what was not sealed with this key, or was changed since.
    pub(crate) fn open(&self, text: &str) -> Option<Pass> {
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk_mut::<NONCE_LEN>()?;
        let opened = self.0.open_in_place(AeadNonce::assume_unique_for_key(*nonce), Aad::from(PURPOSE), sealed).ok()?;
        Pass::decode(opened)
    }
}

impl Pass {
    /// Whether the time is over that its own claims grant.
    pub(crate) fn is_expired(&self, now: u64) -> bool {
        self.claims.expire_at > 0 && self.claims.expire_at <= now
    }

    fn encode(&self) -> Vec<u8> {
        let claims = &self.claims;
        let mut out = Writer(vec![VERSION]);
        out.0.extend(self.client.as_bytes());
        out.0.extend(self.generation.to_le_bytes());
        out.0.extend(self.nonce);
        out.number(self.sealed_at);
        out.0.extend(self.token);
        out.bytes(claims.user.as_bytes());
        out.number(claims.expire_at);
        out.number(claims.issued_at);
        out.bytes(claims.token_id.as_bytes());
        out.bytes(&claims.info);
        out.bytes(&claims.meta);
        out.number(claims.subscriptions.len() as u64);
        for (channel, options) in &claims.subscriptions {
            out.bytes(channel.as_bytes());
            out.options(options);
        }
        out.0
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        if from.array::<1>()? != [VERSION] {
            return None;
        }
        let mut pass = Pass {
            client: Uuid::from_bytes(from.array()?),
            generation: u32::from_le_bytes(from.array()?),
            nonce: from.array()?,
            sealed_at: from.number()?,
            token: from.array()?,
            claims: ConnectionClaims::default(),
        };
        let claims = &mut pass.claims;
        claims.user = from.text()?;
        claims.expire_at = from.number()?;
        claims.issued_at = from.number()?;
        claims.token_id = from.text()?;
        claims.info = from.bytes()?;
        claims.meta = from.bytes()?;
        let mut subscriptions = BTreeMap::new();
        for _ in 0..from.number()? {
            let channel = from.text()?;
            subscriptions.insert(channel, from.options()?);
        }
        claims.subscriptions = subscriptions;
        from.0.is_empty().then_some(pass)
    }
}

pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend((bytes.len() as u32).to_le_bytes());
        self.0.extend(bytes);
    }

    pub(super) fn options(&mut self, options: &SubscribeOptions) {
        self.bytes(&options.info);
        self.bytes(&options.data);
        self.number(options.expire_at);
        self.overrides(&options.overrides);
    }

    fn overrides(&mut self, it: &SubscribeOverrides) {
        let options = [it.presence, it.join_leave, it.force_push_join_leave, it.force_recovery, it.force_positioning];
        self.0.extend(options.map(|option| option.map_or(2, u8::from)));
    }
}

pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let (first, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Bytes::copy_from_slice(first))
    }

    pub(super) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    pub(super) fn options(&mut self) -> Option<SubscribeOptions> {
        Some(SubscribeOptions {
            info: self.bytes()?,
            data: self.bytes()?,
            expire_at: self.number()?,
            overrides: self.overrides()?,
            since: None,
        })
    }

    fn overrides(&mut self) -> Option<SubscribeOverrides> {
        let [presence, join_leave, force_push_join_leave, force_recovery, force_positioning] =
            self.array::<5>()?.map(|option| (option < 2).then_some(option == 1));
        Some(SubscribeOverrides { presence, join_leave, force_push_join_leave, force_recovery, force_positioning })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> Pass {
        let overrides = SubscribeOverrides { presence: Some(true), force_recovery: Some(false), ..Default::default() };
        let options = SubscribeOptions { info: "{}".into(), data: "1".into(), expire_at: 7, overrides, since: None };
        Pass {
            client: Uuid::new_v4(),
            generation: 3,
            nonce: rand::random(),
            sealed_at: 1_700_000_000,
            token: token_mark("token"),
            claims: ConnectionClaims {
                user: "änna".into(),
                expire_at: 5,
                info: "{\"a\":1}".into(),
                meta: Bytes::new(),
                subscriptions: [("room:a".to_owned(), options), ("b".to_owned(), SubscribeOptions::default())].into(),
                token_id: "id".into(),
                issued_at: 4,
            },
        }
    }

    #[test]
    fn what_was_sealed_is_opened_with_the_same_key_only() {
        let (pass, sealer) = (pass(), Sealer::new(b"secret").unwrap());
        let text = sealer.seal(&pass).unwrap();
        assert_eq!(sealer.open(&text), Some(pass.clone()));
        assert_ne!(sealer.seal(&pass).unwrap(), text, "two seals do not look alike");
        assert_eq!(Sealer::new(b"other").unwrap().open(&text), None);
        for index in 0..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[index] = if altered[index] == b'A' { b'B' } else { b'A' };
            // The last character holds bits that mean nothing; base64 refuses them.
            assert_eq!(sealer.open(std::str::from_utf8(&altered).unwrap()), None, "altered at {index}");
            assert_eq!(sealer.open(&text[..index]), None, "cut at {index}");
        }
    }
}
