//! Signature algorithms and the keys that each of them may be used with.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, VerificationAlgorithm,
};

/// The `alg` values that are understood (RFC 7518, RFC 8037); `none` is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

impl Algorithm {
    pub(crate) const RSA_PKCS1: &'static [Self] = &[Self::RS256, Self::RS384, Self::RS512];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self::HS256,
            "HS384" => Self::HS384,
            "HS512" => Self::HS512,
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "ES512" => Self::ES512,
            "EdDSA" => Self::EdDSA,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::RS256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    /// The curve that the algorithm is for, with the length of its uncompressed point in bytes.
    fn curve(self) -> Option<(&'static dyn VerificationAlgorithm, usize)> {
        Some(match self {
            Self::ES256 => (&ECDSA_P256_SHA256_FIXED, 65),
            Self::ES384 => (&ECDSA_P384_SHA384_FIXED, 97),
            Self::ES512 => (&ECDSA_P521_SHA512_FIXED, 133),
            _ => return None,
        })
    }
}

/// A secret in the three forms that HMAC algorithms use it in.
pub(crate) struct Secret {
    hs256: hmac::Key,
    hs384: hmac::Key,
    hs512: hmac::Key,
}

impl Secret {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self {
            hs256: hmac::Key::new(hmac::HMAC_SHA256, secret),
            hs384: hmac::Key::new(hmac::HMAC_SHA384, secret),
            hs512: hmac::Key::new(hmac::HMAC_SHA512, secret),
        }
    }

    /// Compares in constant time. False for an algorithm that is not HMAC.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let key = match algorithm {
            Algorithm::HS256 => &self.hs256,
            Algorithm::HS384 => &self.hs384,
            Algorithm::HS512 => &self.hs512,
            _ => return false,
        };
        hmac::verify(key, message, signature).is_ok()
    }
}

/// Why bytes are not a key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("it is not a public key of the expected type")]
    Malformed,
    #[error("an RSA key must have 2048 to 8192 bits")]
    RsaSize,
    #[error("the curve must be P-256, P-384 or P-521")]
    Curve,
}

/// A public key, parsed once for each algorithm that it may verify; it verifies no other.
pub(crate) struct PublicKey(Vec<(Algorithm, ParsedPublicKey)>);

impl PublicKey {
    /// `n` and `e` are big-endian; leading zeros are allowed.
    pub(crate) fn rsa(n: &[u8], e: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        let n = without_leading_zeros(n);
        if !(256..=1024).contains(&n.len()) {
            return Err(KeyError::RsaSize);
        }
        let components = RsaPublicKeyComponents { n, e: without_leading_zeros(e) };
        let mut parsed = Vec::with_capacity(algorithms.len());
        for algorithm in algorithms {
            let parameters = algorithm.rsa().ok_or(KeyError::Malformed)?;
            let key = components.to_parsed_public_key(parameters).map_err(|_| KeyError::Malformed)?;
            parsed.push((*algorithm, key));
        }
        Ok(Self(parsed))
    }

    /// `der` is an `RSAPublicKey` (RFC 8017) or a `SubjectPublicKeyInfo`.
    pub(crate) fn rsa_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = aws_lc_rs::rsa::PublicKey::from_der(der).map_err(|_| KeyError::Malformed)?;
        let components = RsaPublicKeyComponents::<Vec<u8>>::from(&key);
        Self::rsa(&components.n, &components.e, Algorithm::RSA_PKCS1)
    }

    /// `point` is uncompressed (SEC 1, 2.3.3); its length tells the curve, and the curve the algorithm.
    pub(crate) fn ec(point: &[u8]) -> Result<(Algorithm, Self), KeyError> {
        for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::ES512] {
            if let Some((curve, length)) = algorithm.curve()
                && point.len() == length
            {
                let key = ParsedPublicKey::new(curve, point).map_err(|_| KeyError::Malformed)?;
                return Ok((algorithm, Self(vec![(algorithm, key)])));
            }
        }
        Err(KeyError::Curve)
    }

    pub(crate) fn ed25519(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() != 32 {
            return Err(KeyError::Malformed);
        }
        let key = ParsedPublicKey::new(&ED25519, bytes).map_err(|_| KeyError::Malformed)?;
        Ok(Self(vec![(Algorithm::EdDSA, key)]))
    }

    pub(crate) fn allows(&self, algorithm: Algorithm) -> bool {
        self.0.iter().any(|(allowed, _)| *allowed == algorithm)
    }

    /// False for an algorithm that the key is not for.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.0
            .iter()
            .find(|(allowed, _)| *allowed == algorithm)
            .is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
    }
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}
