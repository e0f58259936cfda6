//! Which keys of a set verify which tokens; and TLS.

use super::*;

async fn with_keys<const N: usize>(keys: [serde_json::Value; N]) -> (Verifier, KeyServer) {
    let server = KeyServer::start().await;
    server.answer("/jwks", Answer::keys(keys));
    (verifier(at(&server), times()).0, server)
}

#[tokio::test]
async fn every_asymmetric_key_type_is_understood() {
    let signers = [RSA.signer("RS256"), RSA.signer("RS512"), ecdsa("ES256"), ecdsa("ES384"), ecdsa("ES512"), ed25519()];
    for signer in signers {
        let (verifier, _server) = with_keys([json!({"kty": "?"}), json!(5), signer.jwk("k", json!({}))]).await;
        assert!(verifier.connection(&signer.token_with_kid("k", CLAIMS)).await.is_ok(), "{}", signer.algorithm);
        refused(verifier.connection(&signer.token(CLAIMS)).await);
        refused(verifier.connection(&signer.token_with_kid("", CLAIMS)).await);
    }
}

#[tokio::test]
async fn the_algorithm_of_a_key_is_pinned() {
    for pinned in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        let (verifier, _server) = with_keys([RSA.signer(pinned).jwk("k", json!({"alg": pinned, "use": "sig"}))]).await;
        for used in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
            let result = verifier.connection(&RSA.signer(used).token_with_kid("k", CLAIMS)).await;
            assert_eq!(result.is_ok(), used == pinned, "{used} with a key for {pinned}");
        }
    }
    let (verifier, _server) = with_keys([RSA.signer("RS256").jwk("k", json!({}))]).await;
    refused(verifier.connection(&RSA.signer("PS256").token_with_kid("k", CLAIMS)).await);
}

#[tokio::test]
async fn keys_that_are_not_for_verifying_tokens_are_left_out() {
    let (rsa, es256, ed) = (RSA.signer("RS256"), ecdsa("ES256"), ed25519());
    let secret = hmac("HS256", "shared");
    let mut off_curve = es256.jwk.clone();
    off_curve["x"] = off_curve["y"].clone();
    for (signer, more) in [
        (&rsa, json!({"use": "enc"})),
        (&rsa, json!({"key_ops": ["encrypt"]})),
        (&rsa, json!({"alg": "HS256"})),
        (&rsa, json!({"alg": "ES256"})),
        (&rsa, json!({"alg": "RSA-OAEP"})),
        (&rsa, json!({"alg": "none"})),
        (&rsa, json!({"kid": null})),
        (&rsa, json!({"n": base64url([0xff; 128])})),
        (&es256, json!({"alg": "ES384"})),
        (&es256, json!({"crv": "P-384"})),
        (&es256, json!({"crv": "secp256k1"})),
        (&es256, off_curve),
        (&ed, json!({"alg": "ES256"})),
        (&ed, json!({"crv": "X25519"})),
        (&ed, json!({"x": "AA"})),
        (&secret, json!({})),
        (&secret, json!({"alg": "HS256", "use": "sig"})),
    ] {
        let mut key = signer.jwk("k", more.clone());
        if more.get("kid").is_none() {
            key["kid"] = json!("k");
        }
        let (verifier, _server) = with_keys([key]).await;
        refused(verifier.connection(&signer.token_with_kid("k", CLAIMS)).await);
    }
}

#[tokio::test]
async fn a_public_key_of_the_set_is_no_secret() {
    let rsa = RSA.signer("RS256");
    let (verifier, server) = with_keys([rsa.jwk("k", json!({}))]).await;
    for secret in [rsa.pem.as_bytes().to_vec(), RSA.der(), rsa.jwk["n"].as_str().unwrap().as_bytes().to_vec()] {
        refused(verifier.connection(&hmac("HS256", secret).token_with_kid("k", CLAIMS)).await);
    }
    // Once there is an endpoint, the other keys are not used.
    let both = TokenConfig { hmac_secret_key: SECRET.to_owned(), ..at(&server) };
    let (verifier, _) = super::verifier(both, times());
    refused(verifier.connection(&hmac("HS256", SECRET).token_with_kid("k", CLAIMS)).await);
    assert!(verifier.connection(&rsa.token_with_kid("k", CLAIMS)).await.is_ok());
}

#[tokio::test]
async fn one_kid_may_name_keys_of_several_types() {
    let (rsa, ed) = (RSA.signer("RS256"), ed25519());
    let (verifier, _server) = with_keys([rsa.jwk("k", json!({})), ed.jwk("k", json!({}))]).await;
    assert!(verifier.connection(&rsa.token_with_kid("k", CLAIMS)).await.is_ok());
    assert!(verifier.connection(&ed.token_with_kid("k", CLAIMS)).await.is_ok());
}

#[tokio::test]
async fn https_is_believed_only_with_a_trusted_certificate() {
    let key = ed25519();
    let token = key.token_with_kid("k", CLAIMS);
    let (server, root) = KeyServer::start_tls().await;
    server.answer("/jwks", Answer::keys([key.jwk("k", json!({}))]));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    for (roots, trusted) in [(roots, true), (rustls::RootCertStore::empty(), false)] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let fetcher = Fetcher::with_tls(tls, Duration::from_secs(10));
        let verifier = Verifier::with(&at(&server), Clock::System, times(), Some(fetcher)).unwrap();
        let result = verifier.connection(&token).await;
        if trusted {
            assert_eq!(result.unwrap().user, "u");
        } else {
            unavailable(result);
        }
    }
    assert_eq!(server.hits("/jwks"), 1);
}
