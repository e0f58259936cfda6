//! Configurations that cannot be used, and what stands on top of verifiers.

use plenum_channels::Tokens;
use serde_json::value::RawValue;

use super::*;
use crate::{
    Authority, ConnectionTokenSpec, SubscriptionTokenSpec, TokenKind, check, sign_connection, sign_subscription,
};

#[test]
fn an_error_names_its_field() {
    let base = TokenConfig::default;
    let rsa = RSA.signer("RS256").pem;
    let p256 = ecdsa("ES256").pem;
    let text = str::to_owned;
    for (field, config) in [
        ("rsa_public_key", TokenConfig { rsa_public_key: text("nonsense"), ..base() }),
        ("rsa_public_key", TokenConfig { rsa_public_key: p256.clone(), ..base() }),
        ("ecdsa_public_key", TokenConfig { ecdsa_public_key: rsa.clone(), ..base() }),
        ("ed25519_public_key", TokenConfig { ed25519_public_key: p256.clone(), ..base() }),
        ("hmac_secret_key", TokenConfig { hmac_secret_key: rsa.clone(), ..base() }),
        ("hmac_previous_secret_key", TokenConfig { hmac_previous_secret_key: rsa.clone(), ..base() }),
        ("hmac_previous_secret_key_valid_until", TokenConfig { hmac_previous_secret_key_valid_until: -1, ..base() }),
        ("issuer_regex", TokenConfig { issuer_regex: text("("), ..base() }),
        ("audience_regex", TokenConfig { audience_regex: text("("), ..base() }),
        ("issuer and issuer_regex", TokenConfig { issuer: text("a"), issuer_regex: text("a"), ..base() }),
        ("audience and audience_regex", TokenConfig { audience: text("a"), audience_regex: text("a"), ..base() }),
        ("jwks_public_endpoint", TokenConfig { jwks_public_endpoint: text("keys.example"), ..base() }),
        ("user_id_claim", TokenConfig { user_id_claim: text("a.b"), ..base() }),
    ] {
        let message = Verifier::new(config).err().expect(field).to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
}

#[test]
fn a_weak_or_false_key_is_refused() {
    assert_eq!(PublicKey::rsa(&[0xff; 128], &[1, 0, 1], Algorithm::RSA_PKCS1).err(), Some(KeyError::RsaSize));
    let mut point = [7; 65];
    point[0] = 4;
    assert_eq!(PublicKey::ec(&point).err(), Some(KeyError::Malformed), "not on the curve");
    assert_eq!(PublicKey::ec(&point[..64]).err(), Some(KeyError::Curve));
    assert_eq!(PublicKey::ed25519(&point).err(), Some(KeyError::Malformed));
}

#[test]
fn secrets_are_not_printed() {
    let config = TokenConfig { hmac_previous_secret_key: SECRET.to_owned(), ..with_secret() };
    assert!(!format!("{config:?}").contains(SECRET));
}

#[tokio::test]
async fn subscription_tokens_have_their_own_keys_if_configured() {
    let spec = SubscriptionTokenSpec { user: "u".to_owned(), channel: "c".to_owned(), ..Default::default() };
    let (mine, other) = (sign_subscription(SECRET, &spec).unwrap(), sign_subscription("other", &spec).unwrap());
    let shared = Authority::new(verifier(&with_secret()), None);
    assert!(shared.subscription(&mine).await.is_ok());
    assert!(shared.subscription(&other).await.is_err());
    let own = TokenConfig { hmac_secret_key: "other".to_owned(), ..TokenConfig::default() };
    let separate = Authority::new(verifier(&with_secret()), Some(verifier(&own)));
    assert!(separate.subscription(&mine).await.is_err());
    assert!(separate.subscription(&other).await.is_ok());
    assert!(separate.connection(&sign_connection(SECRET, &Default::default()).unwrap()).await.is_ok());
}

#[tokio::test]
async fn what_is_signed_is_read_back() {
    let info = RawValue::from_string(r#"{"big":12345678901234567890}"#.to_owned()).unwrap();
    let mut spec = ConnectionTokenSpec {
        user: "u".to_owned(),
        exp: Some(now() + 60),
        expire_at: Some(0),
        info: Some(info.clone()),
        meta: Some(info.clone()),
        ..Default::default()
    };
    let sub = spec.subs.entry("c".to_owned()).or_default();
    sub.data = Some(info.clone());
    sub.overrides.presence = Some(true);
    let authority = Authority::new(verifier(&with_secret()), None);
    let claims = authority.connection(&sign_connection(SECRET, &spec).unwrap()).await.unwrap();
    assert_eq!((&*claims.user, claims.expire_at), ("u", 0));
    assert_eq!(claims.info, info.get());
    assert_eq!(claims.meta, info.get());
    assert_eq!(claims.subscriptions["c"].data, info.get());
    assert_eq!(claims.subscriptions["c"].overrides.presence, Some(true));
    let mut sub = SubscriptionTokenSpec { channel: "c".to_owned(), ..Default::default() };
    sub.options.info = Some(info.clone());
    sub.options.overrides.join_leave = Some(false);
    let claims = authority.subscription(&sign_subscription(SECRET, &sub).unwrap()).await.unwrap();
    assert_eq!(claims.options.info, info.get());
    assert_eq!(claims.options.overrides.join_leave, Some(false));
    assert!(sign_connection("", &spec).is_err());
    assert!(sign_subscription(SECRET, &SubscriptionTokenSpec::default()).is_err());
    spec.meta = Some(RawValue::from_string("1".to_owned()).unwrap());
    assert!(sign_connection(SECRET, &spec).is_err());
}

#[tokio::test]
async fn a_report_says_why_a_token_is_refused() {
    let authority = Authority::new(verifier(&with_secret()), None);
    let signer = hmac("HS256", SECRET);
    let report = check(&authority, &signer.token(r#"{"sub":"u","channels":["a"]}"#), None).await;
    assert!(report.is_accepted() && report.to_string().contains("user \"u\""), "{report}");
    let report = check(&authority, &signer.token(r#"{"sub":"u","channel":"c"}"#), None).await;
    assert_eq!(report.kind, TokenKind::Subscription);
    assert!(report.is_accepted(), "{report}");
    let report = check(&authority, &signer.token(r#"{"sub":"u","exp":5}"#), None).await;
    assert_eq!(report.verdict, Err(TokenError::Expired));
    assert!(report.to_string().contains("expired"), "{report}");
    let report = check(&authority, "nonsense", Some(TokenKind::Connection)).await;
    assert!(report.to_string().contains("three parts"), "{report}");
}
