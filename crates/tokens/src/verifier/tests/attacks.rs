//! Tokens made to be accepted wrongly.

use super::*;

const CLAIMS: &str = r#"{"sub":"marker","channel":""}"#;

fn all_keys() -> (TokenConfig, Vec<Signer>) {
    let ecdsa = ecdsa("ES256");
    let ed25519 = ed25519();
    let config = TokenConfig {
        rsa_public_key: RSA.signer("RS256").pem,
        ecdsa_public_key: ecdsa.pem.clone(),
        ed25519_public_key: ed25519.pem.clone(),
        ..with_secret()
    };
    let mut signers = vec![ecdsa, ed25519];
    signers.extend(["HS256", "HS384", "HS512"].map(|algorithm| hmac(algorithm, SECRET)));
    signers.extend(["RS256", "RS384", "RS512"].map(|algorithm| RSA.signer(algorithm)));
    (config, signers)
}

#[tokio::test]
async fn all_key_types_are_accepted_side_by_side() {
    let (config, signers) = all_keys();
    let all = verifier(&config);
    for signer in &signers {
        let claims = all.connection(&signer.token(CLAIMS)).await.expect(signer.algorithm);
        assert_eq!(claims.user, "marker", "{}", signer.algorithm);
    }
    for algorithm in ["ES384", "ES512"] {
        let signer = ecdsa(algorithm);
        let config = TokenConfig { ecdsa_public_key: signer.pem.clone(), ..TokenConfig::default() };
        assert!(verifier(&config).connection(&signer.token(CLAIMS)).await.is_ok(), "{algorithm}");
    }
}

#[tokio::test]
async fn a_signature_counts_for_no_other_algorithm() {
    let (config, signers) = all_keys();
    let verifier = verifier(&config);
    let names = [
        "none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384",
        "PS512", "ES256", "ES384", "ES512", "EdDSA", "ES256K", "hs256", "HS256 ", "dir", "RSA-OAEP",
    ];
    for signer in &signers {
        for name in names.iter().filter(|name| **name != signer.algorithm) {
            let header = format!(r#"{{"alg":"{name}"}}"#);
            refusal(&verifier, &signer.raw(&header, CLAIMS)).await;
        }
    }
}

#[tokio::test]
async fn an_unsigned_token_is_refused() {
    let (config, _) = all_keys();
    let verifier = verifier(&config);
    for name in ["none", "None", "NONE", "HS256", "RS256", "ES256", "EdDSA"] {
        let header = base64url(format!(r#"{{"alg":"{name}","typ":"JWT"}}"#));
        let claims = base64url(CLAIMS);
        for token in [
            format!("{header}.{claims}."),
            format!("{header}.{claims}"),
            format!("{header}.{claims}.."),
            format!("{header}.{claims}.{}", base64url("x")),
            format!("{header}.{claims}.{}", base64url([0; 64])),
            format!("{header}.{claims}.{}", base64url([0; 256])),
        ] {
            refusal(&verifier, &token).await;
        }
    }
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let (config, _) = all_keys();
    let without_secret = TokenConfig { hmac_secret_key: String::new(), ..config.clone() };
    let mut secrets: Vec<Vec<u8>> = vec![Vec::new(), RSA.der()];
    for pem in [&config.rsa_public_key, &config.ecdsa_public_key, &config.ed25519_public_key] {
        secrets.push(pem.clone().into_bytes());
        secrets.push(pem.trim().as_bytes().to_vec());
    }
    for verifier in [verifier(&config), verifier(&without_secret)] {
        for secret in &secrets {
            for algorithm in ["HS256", "HS384", "HS512"] {
                refusal(&verifier, &hmac(algorithm, secret).token(CLAIMS)).await;
            }
        }
    }
}

#[tokio::test]
async fn an_algorithm_without_a_key_is_refused() {
    let (config, signers) = all_keys();
    let nothing = verifier(&TokenConfig::default());
    for signer in &signers {
        let reason = refusal(&nothing, &signer.token(CLAIMS)).await;
        assert!(reason.contains("no key"), "{reason}");
    }
    let only_hmac = verifier(&with_secret());
    for signer in signers.iter().filter(|signer| !signer.algorithm.starts_with("HS")) {
        refusal(&only_hmac, &signer.token(CLAIMS)).await;
    }
    let mine = verifier(&config);
    for stranger in [ecdsa("ES256"), ed25519(), RsaPair::generate().signer("RS256"), hmac("HS256", "other")] {
        let reason = refusal(&mine, &stranger.token(CLAIMS)).await;
        assert!(reason.contains("signature"), "{reason}");
    }
}

#[tokio::test]
async fn a_time_that_is_not_a_plain_number_is_refused() {
    let verifier = verifier(&with_secret());
    let signer = hmac("HS256", SECRET);
    let values = [
        r#""9999999999""#,
        r#""""#,
        "-1",
        "-0",
        "-0.0",
        "-1e3",
        "1e400",
        "1e17",
        "9007199254740992",
        "18446744073709551615",
        "18446744073709551616",
        "NaN",
        "Infinity",
        "true",
        "[]",
        "[9999999999]",
        "{}",
    ];
    for name in ["exp", "nbf", "iat", "expire_at"] {
        for value in values {
            // With a channel it would do as a subscription token, without one as a connection token.
            for rest in [r#""sub":"marker""#, r#""channel":"marker""#] {
                let token = signer.token(&format!(r#"{{{rest},"{name}":{value}}}"#));
                refusal(&verifier, &token).await;
            }
        }
    }
}

#[tokio::test]
async fn a_claim_that_stands_twice_is_refused() {
    let verifier = verifier(&with_secret());
    let signer = hmac("HS256", SECRET);
    for pair in [
        r#""sub":"marker","sub":"marker""#,
        r#""sub":"marker","su\u0062":"marker""#,
        r#""exp":1,"exp":9999999999"#,
        r#""exp":null,"exp":9999999999"#,
        r#""aud":"a","aud":"b""#,
        r#""info":1,"info":2"#,
        r#""channels":[],"channels":["marker"]"#,
        r#""subs":{},"subs":{}"#,
        r#""override":{},"override":{}"#,
        r#""meta":{},"meta":{}"#,
    ] {
        let reason = refusal(&verifier, &signer.token(&format!("{{{pair}}}"))).await;
        assert!(reason.contains("more than once"), "{reason}");
    }
    for subs in [r#"{"marker":{},"marker":{}}"#, r#"{"a":{"info":1,"info":2}}"#] {
        refusal(&verifier, &signer.token(&format!(r#"{{"subs":{subs}}}"#))).await;
    }
    refusal(&verifier, &signer.raw(r#"{"alg":"HS256","alg":"none"}"#, CLAIMS)).await;
    refusal(&verifier, &signer.raw(r#"{"alg":"HS256","kid":"a","kid":"b"}"#, CLAIMS)).await;
}

#[tokio::test]
async fn a_claim_of_another_type_is_refused() {
    let verifier = verifier(&with_secret());
    let signer = hmac("HS256", SECRET);
    for claim in [
        r#""sub":42"#,
        r#""sub":["marker"]"#,
        r#""sub":true"#,
        r#""aud":1"#,
        r#""aud":[1]"#,
        r#""aud":{}"#,
        r#""iss":1"#,
        r#""iss":["marker"]"#,
        r#""b64info":1"#,
        r#""b64info":"?""#,
        r#""b64info":"YQ""#,
        r#""meta":"marker""#,
        r#""meta":[]"#,
        r#""meta":1"#,
        r#""channels":"marker""#,
        r#""channels":[1]"#,
        r#""channels":{}"#,
        r#""subs":["marker"]"#,
        r#""subs":{"a":1}"#,
        r#""subs":{"a":[1,"",1,"",1,1]}"#,
        r#""subs":{"a":{"b64data":"?"}}"#,
        r#""subs":{"a":{"override":{"presence":true}}}"#,
        r#""subs":{"a":{"expire_at":"1"}}"#,
        r#""channel":1"#,
    ] {
        refusal(&verifier, &signer.token(&format!("{{{claim}}}"))).await;
    }
    for claim in [
        r#""client":1"#,
        r#""override":1"#,
        r#""override":[1,1,1,1,1]"#,
        r#""override":{"presence":true}"#,
        r#""override":{"presence":{"value":1}}"#,
        r#""override":{"force_recovery":[true]}"#,
        r#""b64data":"?""#,
    ] {
        refusal(&verifier, &signer.token(&format!(r#"{{"channel":"marker",{claim}}}"#))).await;
    }
}

#[tokio::test]
async fn a_token_of_another_shape_is_refused() {
    let verifier = verifier(&with_secret());
    let signer = hmac("HS256", SECRET);
    let good = signer.token(CLAIMS);
    let mut shapes: Vec<String> = ["", ".", "..", "...", "marker", "a.b.c"].map(str::to_owned).into();
    shapes.extend([&good[1..], &good[..good.len() - 1]].map(str::to_owned));
    shapes.extend([format!("{good}="), format!("{good}."), format!(".{good}"), format!(" {good}")]);
    shapes.extend([format!("{good}\n"), good.replace('.', "..")]);
    for token in shapes {
        refusal(&verifier, &token).await;
    }
    for header in [
        "",
        "null",
        "[]",
        r#"["HS256"]"#,
        r#"["HS256",null,null]"#,
        r#"{"alg":1}"#,
        r#"{"alg":null}"#,
        "{}",
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","kid":1}"#,
        r#"{"alg":"HS256"} x"#,
        "\u{0}",
        r#"{"alg":"HS256""#,
    ] {
        refusal(&verifier, &signer.raw(header, CLAIMS)).await;
    }
    for claims in ["", "null", "[]", "1", r#""marker""#, "{} {}", "{", r#"{"sub":"\ud800"}"#, r#"{"sub":"a",}"#] {
        refusal(&verifier, &signer.raw(r#"{"alg":"HS256"}"#, claims)).await;
    }
}

#[tokio::test]
async fn deep_nesting_does_not_overflow_the_stack() {
    let signer = hmac("HS256", SECRET);
    for name in ["info", "unknown", "subs", "aud", "channels", "override", "exp"] {
        let deep = format!(r#"{{"channel":"c","{name}":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let _ = verifier(&with_secret()).subscription(&signer.token(&deep)).await;
        let _ = verifier(&with_secret()).connection(&signer.token(&deep)).await;
    }
}
