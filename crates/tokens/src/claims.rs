//! Claims: read strictly, each with the type it must have, payloads as the bytes they are.
//!
//! A claim that is `null` counts as absent. Reasons name claims and never say their values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use plenum_channels::{SubscribeOptions, SubscribeOverrides, TokenError};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::jose::invalid;

/// The largest time accepted: beyond it JSON numbers are not exact.
pub(crate) const MAX_TIME: u64 = (1 << 53) - 1;

macro_rules! claims {
    ($($variant:ident = $name:literal,)+) => {
        /// A claim that means something here.
        #[derive(Clone, Copy)]
        pub(crate) enum Claim { $($variant),+ }

        impl Claim {
            const NAMES: &'static [&'static str] = &[$($name),+];

            pub(crate) fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }
        }

        const CLAIMS: usize = Claim::NAMES.len();
    };
}

claims! {
    Sub = "sub",
    Exp = "exp",
    Nbf = "nbf",
    Iat = "iat",
    Jti = "jti",
    Aud = "aud",
    Iss = "iss",
    Info = "info",
    B64Info = "b64info",
    Data = "data",
    B64Data = "b64data",
    Meta = "meta",
    Channels = "channels",
    Subs = "subs",
    ExpireAt = "expire_at",
    Channel = "channel",
    Client = "client",
    Override = "override",
}

/// A text that is borrowed unless it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The claims of a token as raw JSON, each at most once.
pub(crate) struct RawClaims<'a> {
    values: [Option<&'a RawValue>; CLAIMS],
    /// The value of the configured user claim, where that is not `sub`.
    user: Option<&'a RawValue>,
}

impl<'a> RawClaims<'a> {
    /// `user_claim` is the configured name of the claim with the user, if it is not `sub`.
    pub(crate) fn parse(payload: &'a str, user_claim: Option<&str>) -> Result<Self, TokenError> {
        let mut json = serde_json::Deserializer::from_str(payload);
        let read = ReadClaims { user_claim }.deserialize(&mut json);
        let read = read.and_then(|read| json.end().map(|()| read));
        let (claims, duplicate) = read.map_err(|_| invalid("the payload is not a JSON object"))?;
        match duplicate {
            Some(name) => Err(invalid(format!("the claim {name} stands there more than once"))),
            None => Ok(claims),
        }
    }

    fn get(&self, claim: Claim) -> Option<&'a RawValue> {
        self.values[claim as usize].filter(|value| value.get() != "null")
    }

    pub(crate) fn text(&self, claim: Claim) -> Result<Option<Cow<'a, str>>, TokenError> {
        self.get(claim).map(|raw| text(raw, claim.name())).transpose()
    }

    /// One text or a list of texts; none when the claim is absent.
    pub(crate) fn texts(&self, claim: Claim) -> Result<Vec<Cow<'a, str>>, TokenError> {
        match self.get(claim) {
            None => Ok(Vec::new()),
            Some(raw) if raw.get().starts_with('"') => Ok(vec![text(raw, claim.name())?]),
            Some(raw) => self::texts(raw, claim.name()),
        }
    }

    pub(crate) fn time(&self, claim: Claim) -> Result<Option<u64>, TokenError> {
        self.get(claim).map(|raw| time(raw, claim.name())).transpose()
    }

    /// The user: `sub`, or the configured claim, which may also be a whole number.
    pub(crate) fn user(&self, user_claim: Option<&str>) -> Result<String, TokenError> {
        let sub = self.text(Claim::Sub)?;
        let Some(name) = user_claim else { return Ok(sub.unwrap_or_default().into_owned()) };
        match self.user.filter(|value| value.get() != "null") {
            None => Ok(String::new()),
            Some(raw) if raw.get().bytes().all(|byte| byte.is_ascii_digit()) => Ok(raw.get().to_owned()),
            Some(raw) => text(raw, name).map(Cow::into_owned),
        }
    }

    /// The token's id, by which it can be called back; empty for none. What is not a text counts as it is written.
    pub(crate) fn token_id(&self) -> Result<String, TokenError> {
        match self.get(Claim::Jti) {
            None => Ok(String::new()),
            Some(raw) if raw.get().starts_with('"') => text(raw, Claim::Jti.name()).map(Cow::into_owned),
            Some(raw) => Ok(raw.get().to_owned()),
        }
    }

    /// When what the token grants ends, Unix seconds: `expire_at` when given, else `exp`; 0: never.
    pub(crate) fn expire_at(&self) -> Result<u64, TokenError> {
        let exp = self.time(Claim::Exp)?;
        Ok(self.time(Claim::ExpireAt)?.or(exp).unwrap_or(0))
    }

    /// Base64 in one claim, or else raw JSON in the other.
    pub(crate) fn bytes(&self, json: Claim, base64: Claim) -> Result<Bytes, TokenError> {
        let encoded = self.text(base64)?;
        payload(self.get(json), encoded.as_deref(), base64.name())
    }

    /// A JSON object, raw; empty when absent.
    pub(crate) fn meta(&self) -> Result<Bytes, TokenError> {
        match self.get(Claim::Meta) {
            None => Ok(Bytes::new()),
            Some(raw) if raw.get().starts_with('{') => Ok(Bytes::copy_from_slice(raw.get().as_bytes())),
            Some(_) => Err(invalid("the claim meta is not a JSON object")),
        }
    }

    pub(crate) fn overrides(&self) -> Result<SubscribeOverrides, TokenError> {
        overrides(self.get(Claim::Override))
    }

    /// Server-side subscriptions: `subs`, or `channels` when `subs` names none.
    pub(crate) fn subscriptions(&self) -> Result<BTreeMap<String, SubscribeOptions>, TokenError> {
        let channels = match self.get(Claim::Channels) {
            None => Vec::new(),
            Some(raw) => texts(raw, "channels")?,
        };
        let mut subscriptions = BTreeMap::new();
        if let Some(raw) = self.get(Claim::Subs) {
            let subs: RawMap<'_> = object(raw).map_err(|()| invalid("the claim subs is not a JSON object"))?;
            for (channel, raw) in subs.0 {
                let options = subscription(raw)?;
                if subscriptions.insert(channel.into_owned(), options).is_some() {
                    return Err(invalid("the claim subs has a channel more than once"));
                }
            }
        }
        if subscriptions.is_empty() {
            subscriptions.extend(channels.into_iter().map(|name| (name.into_owned(), SubscribeOptions::default())));
        }
        Ok(subscriptions)
    }
}

struct ReadClaims<'n> {
    user_claim: Option<&'n str>,
}

impl<'de> DeserializeSeed<'de> for ReadClaims<'_> {
    type Value = (RawClaims<'de>, Option<String>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ReadClaims<'_> {
    type Value = (RawClaims<'de>, Option<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut claims = RawClaims { values: [None; CLAIMS], user: None };
        let mut duplicate = None;
        while let Some(Text(name)) = map.next_key()? {
            let value: &'de RawValue = map.next_value()?;
            let mut seen = false;
            if let Some(index) = Claim::NAMES.iter().position(|known| *known == name) {
                seen |= claims.values[index].replace(value).is_some();
            }
            if self.user_claim == Some(&*name) {
                seen |= claims.user.replace(value).is_some();
            }
            if seen {
                duplicate = Some(name.into_owned());
            }
        }
        Ok((claims, duplicate))
    }
}

/// Names and raw values of an object, in its order.
struct RawMap<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawMap<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = RawMap<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    entries.push((name, value));
                }
                Ok(RawMap(entries))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Serde reads a struct from a list as well; here an object is meant.
fn object<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, ()> {
    if !raw.get().starts_with('{') {
        return Err(());
    }
    serde_json::from_str(raw.get()).map_err(|_| ())
}

fn text<'a>(raw: &'a RawValue, name: &str) -> Result<Cow<'a, str>, TokenError> {
    let read: Result<Text<'a>, _> = serde_json::from_str(raw.get());
    read.map(|text| text.0).map_err(|_| invalid(format!("the claim {name} is not a text")))
}

fn texts<'a>(raw: &'a RawValue, name: &str) -> Result<Vec<Cow<'a, str>>, TokenError> {
    let read: Result<Vec<Text<'a>>, _> = serde_json::from_str(raw.get());
    read.map(|texts| texts.into_iter().map(|text| text.0).collect())
        .map_err(|_| invalid(format!("the claim {name} is not a list of texts")))
}

/// A `NumericDate` (RFC 7519, 2), which may have a fraction: it is cut off.
fn time(raw: &RawValue, name: &str) -> Result<u64, TokenError> {
    let number = raw.get();
    let seconds = match number.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) if number.starts_with(|first: char| first.is_ascii_digit()) => {
            number.parse::<f64>().ok().filter(|seconds| *seconds <= MAX_TIME as f64).map(|seconds| seconds as u64)
        }
        Err(_) => None,
    };
    seconds
        .filter(|seconds| *seconds <= MAX_TIME)
        .ok_or_else(|| invalid(format!("the claim {name} is not a number of seconds from 0 to 2^53-1")))
}

fn payload(json: Option<&RawValue>, base64: Option<&str>, name: &str) -> Result<Bytes, TokenError> {
    match (base64, json) {
        (Some(encoded), _) if !encoded.is_empty() => {
            let decoded = STANDARD.decode(encoded);
            decoded.map(Bytes::from).map_err(|_| invalid(format!("the claim {name} is not base64")))
        }
        (_, Some(raw)) => Ok(Bytes::copy_from_slice(raw.get().as_bytes())),
        (_, None) => Ok(Bytes::new()),
    }
}

#[derive(Deserialize)]
struct RawSubscription<'a> {
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    #[serde(borrow, rename = "override")]
    overrides: Option<&'a RawValue>,
    #[serde(borrow)]
    expire_at: Option<&'a RawValue>,
}

fn subscription(raw: &RawValue) -> Result<SubscribeOptions, TokenError> {
    if raw.get() == "null" {
        return Ok(SubscribeOptions::default());
    }
    let raw: RawSubscription<'_> =
        object(raw).map_err(|()| invalid("the claim subs has a subscription that is not an object of its options"))?;
    Ok(SubscribeOptions {
        info: payload(raw.info, raw.b64info.as_deref(), "subs.b64info")?,
        data: payload(raw.data, raw.b64data.as_deref(), "subs.b64data")?,
        expire_at: raw.expire_at.map(|raw| time(raw, "subs.expire_at")).transpose()?.unwrap_or(0),
        overrides: overrides(raw.overrides)?,
        since: None,
    })
}

#[derive(Deserialize)]
struct BoolValue {
    #[serde(default)]
    value: bool,
}

#[derive(Deserialize)]
struct RawOverrides<'a> {
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
    #[serde(borrow)]
    join_leave: Option<&'a RawValue>,
    #[serde(borrow)]
    force_push_join_leave: Option<&'a RawValue>,
    #[serde(borrow)]
    force_recovery: Option<&'a RawValue>,
    #[serde(borrow)]
    force_positioning: Option<&'a RawValue>,
}

fn overrides(raw: Option<&RawValue>) -> Result<SubscribeOverrides, TokenError> {
    let Some(raw) = raw else { return Ok(SubscribeOverrides::default()) };
    let wrong = |()| invalid("the claim override is not an object of options, each an object with a bool value");
    let raw: RawOverrides<'_> = object(raw).map_err(wrong)?;
    let option = |raw: Option<&RawValue>| {
        raw.map(object::<BoolValue>).transpose().map(|read| read.map(|read| read.value)).map_err(wrong)
    };
    Ok(SubscribeOverrides {
        presence: option(raw.presence)?,
        join_leave: option(raw.join_leave)?,
        force_push_join_leave: option(raw.force_push_join_leave)?,
        force_recovery: option(raw.force_recovery)?,
        force_positioning: option(raw.force_positioning)?,
    })
}
