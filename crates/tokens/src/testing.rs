//! Fresh keys of every type, tokens signed with them, and a key set server, for tests.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, atomic::Ordering};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::jwks::Times;
use crate::{TokenConfig, Verifier};

pub(crate) const SECRET: &str = "a-secret-that-must-never-show";

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// A key pair that can sign with one algorithm.
pub(crate) struct Signer {
    pub(crate) algorithm: &'static str,
    /// Public key; the secret for HMAC.
    pub(crate) pem: String,
    /// Public key as JWK without `kid`, `alg` and `use`.
    pub(crate) jwk: Value,
    sign: Sign,
}

impl Signer {
    pub(crate) fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", base64url(header), base64url(claims));
        let signature = (self.sign)(message.as_bytes());
        format!("{message}.{}", base64url(signature))
    }

    pub(crate) fn token(&self, claims: &str) -> String {
        self.raw(&json!({"alg": self.algorithm, "typ": "JWT"}).to_string(), claims)
    }

    pub(crate) fn token_with_kid(&self, kid: &str, claims: &str) -> String {
        self.raw(&json!({"alg": self.algorithm, "kid": kid}).to_string(), claims)
    }

    /// The public key as it stands in a key set.
    pub(crate) fn jwk(&self, kid: &str, more: Value) -> Value {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = json!(kid);
        for (name, value) in more.as_object().unwrap() {
            jwk[name] = value.clone();
        }
        jwk
    }
}

pub(crate) fn hmac(algorithm: &'static str, secret: impl AsRef<[u8]>) -> Signer {
    let kind = match algorithm {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        _ => hmac::HMAC_SHA512,
    };
    let jwk = json!({"kty": "oct", "k": base64url(&secret)});
    let key = hmac::Key::new(kind, secret.as_ref());
    let sign = Box::new(move |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec());
    Signer { algorithm, pem: String::new(), jwk, sign }
}

pub(crate) struct RsaPair(Arc<RsaKeyPair>);

impl RsaPair {
    pub(crate) fn generate() -> Self {
        Self(Arc::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.0.public_key()).unwrap().as_ref().to_vec()
    }

    pub(crate) fn signer(&self, algorithm: &'static str) -> Signer {
        let encoding: &'static dyn RsaEncoding = match algorithm {
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS384" => &signature::RSA_PKCS1_SHA384,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            "PS384" => &signature::RSA_PSS_SHA384,
            _ => &signature::RSA_PSS_SHA512,
        };
        let components = RsaPublicKeyComponents::<Vec<u8>>::from(self.0.public_key());
        let jwk = json!({"kty": "RSA", "n": base64url(components.n), "e": base64url(components.e)});
        let pair = self.0.clone();
        let sign = Box::new(move |message: &[u8]| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        });
        Signer { algorithm, pem: pem(&self.der()), jwk, sign }
    }
}

pub(crate) fn ecdsa(algorithm: &'static str) -> Signer {
    let (kind, curve) = match algorithm {
        "ES256" => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        "ES384" => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        _ => (&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
    };
    let pair = EcdsaKeyPair::generate(kind).unwrap();
    let der = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
    let jwk = json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)});
    let pem = pem(der.as_ref());
    let sign = Box::new(move |message: &[u8]| pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec());
    Signer { algorithm, pem, jwk, sign }
}

pub(crate) fn ed25519() -> Signer {
    let pair = Ed25519KeyPair::generate().unwrap();
    let der = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key())});
    let pem = pem(der.as_ref());
    let sign = Box::new(move |message: &[u8]| pair.sign(message).as_ref().to_vec());
    Signer { algorithm: "EdDSA", pem, jwk, sign }
}

pub(crate) static RSA: LazyLock<RsaPair> = LazyLock::new(RsaPair::generate);

/// A clock that runs ahead by so many seconds.
pub(crate) fn clock() -> (Clock, Arc<AtomicU64>) {
    let ahead = Arc::new(AtomicU64::new(0));
    (Clock::Ahead(ahead.clone()), ahead)
}

pub(crate) fn advance(ahead: &AtomicU64, seconds: u64) {
    ahead.fetch_add(seconds, Ordering::SeqCst);
}

pub(crate) fn now() -> u64 {
    Clock::System.unix()
}

pub(crate) fn verifier(config: &TokenConfig) -> Verifier {
    Verifier::with(config, Clock::System, Times::default(), None).unwrap()
}

pub(crate) fn with_secret() -> TokenConfig {
    TokenConfig { hmac_secret_key: SECRET.to_owned(), ..TokenConfig::default() }
}
