//! Verification: signature by the key that the algorithm belongs to, then times, then what the token grants.

use plenum_channels::{ConnectionClaims, SubscribeOptions, SubscriptionClaims, TokenError};

use crate::algorithm::{Algorithm, KeyError, PublicKey, Secret};
use crate::claims::{Claim, RawClaims};
use crate::clock::Clock;
use crate::config::{TokenConfig, TokenConfigError};
use crate::endpoint::Endpoint;
use crate::jose::{Parts, invalid};
use crate::jwks::{Cache, Fetcher, Times};
use crate::rules::Rules;

/// Verifies tokens with one set of keys and rules.
pub struct Verifier {
    keys: Keys,
    rules: Rules,
    /// The claim with the user, where it is not `sub`.
    user_claim: Option<String>,
    clock: Clock,
}

enum Keys {
    Fixed(Box<FixedKeys>),
    Fetched { endpoint: Endpoint, cache: Cache },
}

/// Keys from the configuration; each verifies the algorithms of its own type only.
#[derive(Default)]
struct FixedKeys {
    secret: Option<Secret>,
    /// With the Unix second after which it does not count any more, if it ends.
    previous: Option<(Secret, Option<u64>)>,
    rsa: Option<PublicKey>,
    ecdsa: Option<PublicKey>,
    ed25519: Option<PublicKey>,
}

impl Verifier {
    /// Reads keys and patterns. Without any key every token is refused.
    ///
    /// # Errors
    /// The first option that cannot be used.
    pub fn new(config: TokenConfig) -> Result<Self, TokenConfigError> {
        Self::with(&config, Clock::System, Times::default(), None)
    }

    pub(crate) fn with(
        config: &TokenConfig,
        clock: Clock,
        times: Times,
        fetcher: Option<Fetcher>,
    ) -> Result<Self, TokenConfigError> {
        let rules = Rules::new(config)?;
        let user_claim = config.user_id_claim.as_str();
        if !user_claim.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_') {
            return Err(TokenConfigError::UserIdClaim { value: user_claim.to_owned() });
        }
        let fixed = FixedKeys::new(config)?;
        let keys = if config.jwks_public_endpoint.is_empty() {
            Keys::Fixed(Box::new(fixed))
        } else {
            if !fixed.is_empty() {
                tracing::warn!("jwks_public_endpoint is set: the other token keys are not used");
            }
            let endpoint = Endpoint::new(config, rules.groups())?;
            let fetcher = match fetcher {
                Some(fetcher) => fetcher,
                None => Fetcher::new(endpoint.is_https(), times.fetch).map_err(|error| TokenConfigError::Endpoint {
                    reason: format!("no trusted certificates on this machine: {error}"),
                })?,
            };
            Keys::Fetched { endpoint, cache: Cache::new(fetcher, times, clock.clone()) }
        };
        let user_claim = Some(user_claim).filter(|name| !name.is_empty() && *name != "sub").map(str::to_owned);
        Ok(Self { keys, rules, user_claim, clock })
    }

    /// Verifies a connection token.
    ///
    /// # Errors
    /// `Expired` past `exp` or before `nbf` (no leeway), `Unavailable` when its key cannot be fetched now, else
    /// `Invalid`.
    pub async fn connection(&self, token: &str) -> Result<ConnectionClaims, TokenError> {
        let parts = Parts::parse(token)?;
        let payload = parts.payload()?;
        let claims = self.verified(&parts, &payload).await?;
        if claims.text(Claim::Channel)?.is_some_and(|channel| !channel.is_empty()) {
            return Err(invalid("a connection token must not have a channel: it is a subscription token"));
        }
        Ok(ConnectionClaims {
            user: claims.user(self.user_claim.as_deref())?,
            expire_at: claims.expire_at()?,
            info: claims.bytes(Claim::Info, Claim::B64Info)?,
            meta: claims.meta()?,
            subscriptions: claims.subscriptions()?,
            token_id: claims.token_id()?,
            issued_at: claims.time(Claim::Iat)?.unwrap_or(0),
        })
    }

    /// Verifies a subscription token. That user, channel and client are those of the connection is the caller's to see.
    ///
    /// # Errors
    /// As [`Verifier::connection`].
    pub async fn subscription(&self, token: &str) -> Result<SubscriptionClaims, TokenError> {
        let parts = Parts::parse(token)?;
        let payload = parts.payload()?;
        let claims = self.verified(&parts, &payload).await?;
        let channel = claims.text(Claim::Channel)?.unwrap_or_default().into_owned();
        if channel.is_empty() {
            return Err(invalid("a subscription token must have a channel"));
        }
        Ok(SubscriptionClaims {
            user: claims.user(self.user_claim.as_deref())?,
            channel,
            client: claims.text(Claim::Client)?.unwrap_or_default().into_owned(),
            options: SubscribeOptions {
                info: claims.bytes(Claim::Info, Claim::B64Info)?,
                data: claims.bytes(Claim::Data, Claim::B64Data)?,
                expire_at: claims.expire_at()?,
                overrides: claims.overrides()?,
                since: None,
            },
            token_id: claims.token_id()?,
            issued_at: claims.time(Claim::Iat)?.unwrap_or(0),
        })
    }

    /// Signature, issuer, audience and times. Times come last: only who can sign is told that a token expired.
    async fn verified<'a>(&self, parts: &Parts<'_>, payload: &'a str) -> Result<RawClaims<'a>, TokenError> {
        let claims = match &self.keys {
            Keys::Fixed(keys) => {
                keys.verify(parts, self.clock.unix())?;
                let claims = RawClaims::parse(payload, self.user_claim.as_deref())?;
                self.rules.check(&claims)?;
                claims
            }
            Keys::Fetched { endpoint, cache } => {
                let claims = RawClaims::parse(payload, self.user_claim.as_deref())?;
                let variables = self.rules.check(&claims)?;
                let kid = parts.kid.as_deref().filter(|kid| !kid.is_empty());
                let kid = kid.ok_or_else(|| invalid("the header has no kid"))?;
                let keys = cache.find(&endpoint.resolve(&variables)?, kid).await?;
                let key = keys.iter().find(|key| key.allows(parts.algorithm));
                check(key, parts)?;
                claims
            }
        };
        let now = self.clock.unix();
        let (exp, nbf, _) = (claims.time(Claim::Exp)?, claims.time(Claim::Nbf)?, claims.time(Claim::Iat)?);
        if exp.is_some_and(|exp| exp <= now) || nbf.is_some_and(|nbf| nbf > now) {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }
}

fn check(key: Option<&PublicKey>, parts: &Parts<'_>) -> Result<(), TokenError> {
    let key = key.ok_or_else(|| no_key(parts.algorithm))?;
    if key.verify(parts.algorithm, parts.message, &parts.signature) { Ok(()) } else { Err(wrong_signature()) }
}

fn no_key(algorithm: Algorithm) -> TokenError {
    invalid(format!("there is no key for the algorithm {}", algorithm.name()))
}

fn wrong_signature() -> TokenError {
    invalid("the signature is wrong")
}

impl FixedKeys {
    fn new(config: &TokenConfig) -> Result<Self, TokenConfigError> {
        let previous_until = u64::try_from(config.hmac_previous_secret_key_valid_until)
            .map_err(|_| TokenConfigError::ValidUntil { value: config.hmac_previous_secret_key_valid_until })?;
        let previous = secret("hmac_previous_secret_key", &config.hmac_previous_secret_key)?;
        Ok(Self {
            secret: secret("hmac_secret_key", &config.hmac_secret_key)?,
            previous: previous.map(|secret| (secret, Some(previous_until).filter(|until| *until > 0))),
            rsa: rsa_from_pem(&config.rsa_public_key)?,
            ecdsa: ecdsa_from_pem(&config.ecdsa_public_key)?,
            ed25519: ed25519_from_pem(&config.ed25519_public_key)?,
        })
    }

    fn is_empty(&self) -> bool {
        self.secret.is_none()
            && self.previous.is_none()
            && self.rsa.is_none()
            && self.ecdsa.is_none()
            && self.ed25519.is_none()
    }

    /// The algorithm says which key is asked, and that key says which algorithms it is for.
    fn verify(&self, parts: &Parts<'_>, now: u64) -> Result<(), TokenError> {
        let key = match parts.algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => return self.verify_secret(parts, now),
            Algorithm::ES256 | Algorithm::ES384 | Algorithm::ES512 => &self.ecdsa,
            Algorithm::EdDSA => &self.ed25519,
            _ => &self.rsa,
        };
        check(key.as_ref().filter(|key| key.allows(parts.algorithm)), parts)
    }

    fn verify_secret(&self, parts: &Parts<'_>, now: u64) -> Result<(), TokenError> {
        let previous = self.previous.as_ref().filter(|(_, until)| until.is_none_or(|until| now <= until));
        let secrets = self.secret.iter().chain(previous.map(|(secret, _)| secret));
        let mut result = Err(no_key(parts.algorithm));
        for secret in secrets {
            if secret.verify(parts.algorithm, parts.message, &parts.signature) {
                return Ok(());
            }
            result = Err(wrong_signature());
        }
        result
    }
}

fn secret(field: &'static str, value: &str) -> Result<Option<Secret>, TokenConfigError> {
    let public = ["-----BEGIN PUBLIC KEY", "-----BEGIN RSA PUBLIC KEY", "-----BEGIN CERTIFICATE"];
    if public.iter().any(|label| value.contains(label)) {
        return Err(TokenConfigError::PublicSecret { field });
    }
    Ok(Some(value).filter(|value| !value.is_empty()).map(|value| Secret::new(value.as_bytes())))
}

fn key_error(field: &'static str, expected: &'static str) -> impl Fn(KeyError) -> TokenConfigError {
    move |error| TokenConfigError::Key { field, reason: error.to_string(), expected }
}

fn rsa_from_pem(pem: &str) -> Result<Option<PublicKey>, TokenConfigError> {
    if pem.is_empty() {
        return Ok(None);
    }
    let error = key_error("rsa_public_key", "the PEM text of an RSA public key");
    let key = jsonwebtoken::DecodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| error(KeyError::Malformed))?;
    let der = key.try_get_as_bytes().map_err(|_| error(KeyError::Malformed))?;
    PublicKey::rsa_der(der).map(Some).map_err(error)
}

fn ecdsa_from_pem(pem: &str) -> Result<Option<PublicKey>, TokenConfigError> {
    if pem.is_empty() {
        return Ok(None);
    }
    let error = key_error("ecdsa_public_key", "the PEM text of an ECDSA public key on P-256, P-384 or P-521");
    let key = jsonwebtoken::DecodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| error(KeyError::Malformed))?;
    let point = key.try_get_as_bytes().map_err(|_| error(KeyError::Malformed))?;
    PublicKey::ec(point).map(|(_, key)| Some(key)).map_err(error)
}

fn ed25519_from_pem(pem: &str) -> Result<Option<PublicKey>, TokenConfigError> {
    if pem.is_empty() {
        return Ok(None);
    }
    let error = key_error("ed25519_public_key", "the PEM text of an Ed25519 public key");
    let key = jsonwebtoken::DecodingKey::from_ed_pem(pem.as_bytes()).map_err(|_| error(KeyError::Malformed))?;
    let bytes = key.try_get_as_bytes().map_err(|_| error(KeyError::Malformed))?;
    PublicKey::ed25519(bytes).map(Some).map_err(error)
}

#[cfg(test)]
mod tests;
