//! Seeded changes of valid tokens: nothing panics, nothing that differs is accepted.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Changes per token; a run takes a few seconds.
const ROUNDS: usize = 4000;

fn mutate(random: &mut StdRng, token: &str, other: &str) -> String {
    let mut bytes = token.as_bytes().to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..7),
            1 => bytes[at] = b"ABab01-_.="[random.random_range(0..10)],
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.random_range(32..127)),
            4 => bytes.truncate(at),
            5 => {
                let from = random.random_range(0..other.len());
                bytes.splice(at.., other.as_bytes()[from..].iter().copied());
            }
            _ => bytes.swap(at, 0),
        }
        if bytes.is_empty() {
            bytes.push(b'.');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_changed_token_is_never_accepted() {
    let (ecdsa, ed25519) = (ecdsa("ES256"), ed25519());
    let config = TokenConfig {
        rsa_public_key: RSA.signer("RS256").pem,
        ecdsa_public_key: ecdsa.pem.clone(),
        ed25519_public_key: ed25519.pem.clone(),
        ..with_secret()
    };
    let verifier = verifier(&config);
    let claims = r#"{"sub":"u","exp":9999999999,"info":{"a":[1]},"subs":{"c":{"b64info":"YQ=="}}}"#;
    let signers = [hmac("HS256", SECRET), RSA.signer("RS256"), ecdsa, ed25519];
    let tokens: Vec<String> = signers.iter().map(|signer| signer.token(claims)).collect();
    let mut random = StdRng::seed_from_u64(0x706c_656e_756d);
    for (index, token) in tokens.iter().enumerate() {
        assert!(verifier.connection(token).await.is_ok());
        for round in 0..ROUNDS {
            let other = &tokens[(index + round) % tokens.len()];
            let changed = mutate(&mut random, token, other);
            if tokens.contains(&changed) {
                continue;
            }
            let result = verifier.connection(&changed).await;
            assert!(matches!(result, Err(TokenError::Invalid { .. })), "round {round}: {changed}: {result:?}");
            assert!(verifier.subscription(&changed).await.is_err());
        }
    }
}

/// The same with a valid signature over changed claims: whatever stands in them, reading ends.
#[tokio::test]
async fn any_claims_are_read_without_panic() {
    let verifier = verifier(&with_secret());
    let signer = hmac("HS256", SECRET);
    let claims = r#"{"sub":"u","exp":9999999999.5,"nbf":1,"aud":["a"],"info":{"a":[1]},"meta":{},"channels":["c"],
        "subs":{"c":{"b64info":"YQ==","override":{"presence":{"value":true}}}},"channel":"","expire_at":0}"#;
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..ROUNDS {
        let changed = mutate(&mut random, claims, claims);
        let token = signer.token(&changed);
        let _ = verifier.connection(&token).await;
        let _ = verifier.subscription(&token).await;
    }
}
