//! JSON Web Key Sets (RFC 7517): which keys of a document may verify tokens, and with which algorithms.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::algorithm::{Algorithm, PublicKey};

/// Keys by `kid`; a `kid` may name several keys of different types.
pub(crate) type Keys = Arc<Vec<PublicKey>>;

/// The usable keys of one document.
#[derive(Default)]
pub(crate) struct KeySet(HashMap<String, Keys>);

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Keys that are not for verifying, not understood or not named are left out, so that one of them does not spoil
    /// the others.
    ///
    /// # Errors
    /// When the document is not a key set; the text holds nothing of it.
    pub(crate) fn parse(document: &[u8]) -> Result<Self, &'static str> {
        let document: Document<'_> =
            serde_json::from_slice(document).map_err(|_| "the answer is not a JSON Web Key Set")?;
        let mut keys: HashMap<String, Vec<PublicKey>> = HashMap::new();
        for raw in document.keys {
            if let Ok(key) = serde_json::from_str::<Key>(raw.get())
                && let Some(public) = key.public()
                && let Some(kid) = key.kid
            {
                keys.entry(kid).or_default().push(public);
            }
        }
        Ok(Self(keys.into_iter().map(|(kid, keys)| (kid, Arc::new(keys))).collect()))
    }

    pub(crate) fn get(&self, kid: &str) -> Option<&Keys> {
        self.0.get(kid)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Key {
    /// None for a key that is for something else or not supported, symmetric ones (`oct`) included.
    fn public(&self) -> Option<PublicKey> {
        let for_verifying = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
        if !for_verifying {
            return None;
        }
        let algorithm = match &self.alg {
            None => None,
            Some(name) => Some(Algorithm::parse(name)?),
        };
        match self.kty.as_str() {
            "RSA" => {
                let pinned = algorithm.map(|algorithm| [algorithm]);
                let algorithms = pinned.as_ref().map_or(Algorithm::RSA_PKCS1, |pinned| pinned.as_slice());
                PublicKey::rsa(&decode(&self.n)?, &decode(&self.e)?, algorithms).ok()
            }
            "EC" => {
                let (of_curve, length) = match self.crv.as_deref()? {
                    "P-256" => (Algorithm::ES256, 32),
                    "P-384" => (Algorithm::ES384, 48),
                    "P-521" => (Algorithm::ES512, 66),
                    _ => return None,
                };
                let (x, y) = (decode(&self.x)?, decode(&self.y)?);
                if algorithm.is_some_and(|pinned| pinned != of_curve) || x.len() != length || y.len() != length {
                    return None;
                }
                let point = [&[4][..], &x, &y].concat();
                PublicKey::ec(&point).ok().map(|(_, key)| key)
            }
            "OKP" if self.crv.as_deref() == Some("Ed25519") => {
                if algorithm.is_some_and(|pinned| pinned != Algorithm::EdDSA) {
                    return None;
                }
                PublicKey::ed25519(&decode(&self.x)?).ok()
            }
            _ => None,
        }
    }
}

fn decode(field: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(field.as_deref()?).ok()
}
