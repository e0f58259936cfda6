//! Against a real server on this machine.

mod keys;
mod server;

use std::sync::atomic::AtomicU64;

use serde_json::json;

use self::server::{Answer, KeyServer};
use super::*;
use crate::testing::*;
use crate::{TokenConfig, Verifier};

fn times() -> Times {
    // Fetches have time on a busy machine.
    Times { interval: Duration::from_millis(300), fetch: Duration::from_secs(20), ..Times::default() }
}

/// A verifier whose clock can be put ahead.
fn verifier(config: TokenConfig, times: Times) -> (Verifier, Arc<AtomicU64>) {
    let (clock, ahead) = clock();
    (Verifier::with(&config, clock, times, None).unwrap(), ahead)
}

fn at(server: &KeyServer) -> TokenConfig {
    TokenConfig { jwks_public_endpoint: server.url("/jwks"), ..TokenConfig::default() }
}

fn unavailable(result: Result<plenum_channels::ConnectionClaims, TokenError>) -> String {
    match result {
        Err(TokenError::Unavailable { reason }) => reason,
        other => panic!("expected unavailable, got {other:?}"),
    }
}

fn refused(result: Result<plenum_channels::ConnectionClaims, TokenError>) -> String {
    match result {
        Err(TokenError::Invalid { reason }) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

const CLAIMS: &str = r#"{"sub":"u"}"#;

#[tokio::test]
async fn a_new_key_counts_at_once_and_an_old_one_until_the_set_is_fetched_again() {
    let (old, new) = (ed25519(), ed25519());
    let server = KeyServer::start().await;
    server.answer("/jwks", Answer::keys([old.jwk("old", json!({}))]));
    let (verifier, ahead) = verifier(at(&server), times());
    let (old, new_token) = (old.token_with_kid("old", CLAIMS), new.token_with_kid("new", CLAIMS));
    for _ in 0..10 {
        assert!(verifier.connection(&old).await.is_ok());
    }
    assert_eq!(server.hits("/jwks"), 1);
    server.answer("/jwks", Answer::keys([new.jwk("new", json!({}))]));
    assert!(verifier.connection(&new_token).await.is_ok(), "fetched for the unknown kid");
    assert_eq!(server.hits("/jwks"), 2);
    refused(verifier.connection(&old).await);
    advance(&ahead, 3601);
    let before = server.hits("/jwks");
    assert!(verifier.connection(&new_token).await.is_ok());
    assert_eq!(server.hits("/jwks"), before + 1, "an hour later it is fetched again");
}

#[tokio::test]
async fn a_storm_of_unknown_kids_makes_one_fetch_per_interval() {
    let key = ed25519();
    let server = KeyServer::start().await;
    server.answer("/jwks", Answer::keys([key.jwk("known", json!({}))]));
    let (verifier, _) = verifier(at(&server), times());
    let known = key.token_with_kid("known", CLAIMS);
    // Before the first fetch: the next one comes an interval after its end, which is not seen from here.
    let begun = Instant::now();
    assert!(verifier.connection(&known).await.is_ok());
    let verifier = Arc::new(verifier);
    for round in 0..3 {
        let before = server.hits("/jwks");
        let storm: Vec<_> = (0..200)
            .map(|index| {
                let (verifier, token) = (verifier.clone(), key.token_with_kid(&format!("{round}-{index}"), CLAIMS));
                tokio::spawn(async move { verifier.connection(&token).await })
            })
            .collect();
        assert!(verifier.connection(&known).await.is_ok(), "a known key does not wait");
        for token in storm {
            assert!(refused(token.await.unwrap()).contains("no key of this kid"));
        }
        assert_eq!(server.hits("/jwks"), before + 1);
    }
    assert!(begun.elapsed() >= times().interval * 3, "each fetch came an interval after the one before");
}

#[tokio::test]
async fn many_at_once_share_one_flight_and_outlive_who_asked_first() {
    let key = ecdsa("ES256");
    let server = KeyServer::start().await;
    let gate = server.gated("/jwks", Answer::keys([key.jwk("k", json!({}))]));
    let (verifier, _) = verifier(at(&server), times());
    let verifier = Arc::new(verifier);
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), key.token_with_kid("k", CLAIMS));
            tokio::spawn(async move { verifier.connection(&token).await })
        })
        .collect();
    server.wait_for_hits("/jwks", 1).await;
    tasks[0].abort();
    gate.add_permits(1);
    for (index, task) in tasks.into_iter().enumerate() {
        match task.await {
            Ok(result) => assert_eq!(result.unwrap().user, "u"),
            Err(error) => assert!(index == 0 && error.is_cancelled()),
        }
    }
    assert_eq!(server.hits("/jwks"), 1);
}

#[tokio::test]
async fn a_fetch_that_began_before_a_token_came_does_not_refuse_it() {
    let (old, new) = (ed25519(), ed25519());
    let server = KeyServer::start().await;
    let gate = server.gated("/jwks", Answer::keys([old.jwk("old", json!({}))]));
    let verifier = Arc::new(verifier(at(&server), times()).0);
    let ask = |token: String| {
        let verifier = verifier.clone();
        tokio::spawn(async move { verifier.connection(&token).await })
    };
    let first = ask(old.token_with_kid("old", CLAIMS));
    server.wait_for_hits("/jwks", 1).await;
    let second = ask(new.token_with_kid("new", CLAIMS));
    // So that it waits with the first one.
    tokio::task::yield_now().await;
    server.answer("/jwks", Answer::keys([new.jwk("new", json!({}))]));
    gate.add_permits(1);
    assert!(first.await.unwrap().is_ok());
    assert!(second.await.unwrap().is_ok());
    assert_eq!(server.hits("/jwks"), 2);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_well_is_unavailable() {
    let token = ed25519().token_with_kid("k", CLAIMS);
    let mut large = br#"{"keys":[],"more":""#.to_vec();
    large.resize(1024 * 1024 + 1, b'x');
    for (answer, part) in [
        (Answer::Status(500), "status 500"),
        (Answer::Status(204), "status 204"),
        (Answer::Redirect, "status 302"),
        (Answer::Body(b"marker <html>".to_vec()), "not a JSON Web Key Set"),
        (Answer::Body(b"{}".to_vec()), "not a JSON Web Key Set"),
        (Answer::Body(br#"{"keys":{}}"#.to_vec()), "not a JSON Web Key Set"),
        (Answer::Body(Vec::new()), "not a JSON Web Key Set"),
        (Answer::Body(large), "larger than"),
        (Answer::Never, "no complete answer"),
    ] {
        let server = KeyServer::start().await;
        server.answer("/jwks", answer);
        let fetch = if part.starts_with("no complete") { Duration::from_secs(1) } else { times().fetch };
        let (verifier, _) = verifier(at(&server), Times { interval: Duration::from_secs(60), fetch, ..times() });
        let reason = unavailable(verifier.connection(&token).await);
        assert!(reason.contains(part) && !reason.contains("marker"), "{part}: {reason}");
        for _ in 0..20 {
            unavailable(verifier.connection(&token).await);
        }
        assert_eq!(server.hits("/jwks"), 1, "{part}: tried again within the interval");
    }
    let config = TokenConfig { jwks_public_endpoint: "http://127.0.0.1:1/jwks".to_owned(), ..TokenConfig::default() };
    let (verifier, _) = verifier(config, times());
    unavailable(verifier.connection(&token).await);
}

#[tokio::test]
async fn known_keys_are_used_for_a_day_while_the_endpoint_is_down() {
    let key = ed25519();
    let token = key.token_with_kid("k", CLAIMS);
    let server = KeyServer::start().await;
    server.answer("/jwks", Answer::keys([key.jwk("k", json!({}))]));
    let (verifier, ahead) = verifier(at(&server), Times { interval: Duration::from_secs(60), ..times() });
    assert!(verifier.connection(&token).await.is_ok());
    server.answer("/jwks", Answer::Status(503));
    for hours in 1..=5 {
        advance(&ahead, 3600 + 1);
        for _ in 0..10 {
            assert!(verifier.connection(&token).await.is_ok(), "{hours} h");
        }
        assert_eq!(server.hits("/jwks"), 1 + hours, "one try per interval");
        unavailable(verifier.connection(&key.token_with_kid("other", CLAIMS)).await);
    }
    advance(&ahead, 20 * 3600);
    unavailable(verifier.connection(&token).await);
    server.answer("/jwks", Answer::keys([key.jwk("k", json!({}))]));
    advance(&ahead, 61);
    assert!(verifier.connection(&token).await.is_ok());
}

#[tokio::test]
async fn a_key_of_one_issuer_verifies_no_token_of_another() {
    let (a, b) = (ed25519(), ed25519());
    let server = KeyServer::start().await;
    server.answer("/a/jwks", Answer::keys([a.jwk("same", json!({}))]));
    server.answer("/b/jwks", Answer::keys([b.jwk("same", json!({}))]));
    let config = TokenConfig {
        jwks_public_endpoint: server.url("/{{tenant}}/jwks"),
        issuer_regex: "^https://iss/(?P<tenant>a|b)$".to_owned(),
        ..TokenConfig::default()
    };
    let (verifier, _) = verifier(config, times());
    let claims = |tenant: &str| format!(r#"{{"sub":"u","iss":"https://iss/{tenant}"}}"#);
    assert!(verifier.connection(&a.token_with_kid("same", &claims("a"))).await.is_ok());
    assert!(verifier.connection(&b.token_with_kid("same", &claims("b"))).await.is_ok());
    refused(verifier.connection(&a.token_with_kid("same", &claims("b"))).await);
    refused(verifier.connection(&b.token_with_kid("same", &claims("a"))).await);
    refused(verifier.connection(&a.token_with_kid("same", &claims("c"))).await);
    refused(verifier.connection(&a.token_with_kid("same", &claims("../a"))).await);
    assert_eq!((server.hits("/a/jwks"), server.hits("/b/jwks")), (1, 1));
}

#[tokio::test]
async fn endpoints_are_remembered_up_to_a_bound() {
    let key = ed25519();
    let server = KeyServer::start().await;
    let config = TokenConfig {
        jwks_public_endpoint: server.url("/{{tenant}}"),
        issuer_regex: "^(?P<tenant>.+)$".to_owned(),
        insecure_skip_jwks_endpoint_safety_check: true,
        ..TokenConfig::default()
    };
    let (clock, _) = clock();
    let fetcher = Fetcher::new(false, Duration::from_secs(2)).unwrap();
    let cache = Cache::new(fetcher, times(), clock);
    for index in 0..MAX_ENDPOINTS + 10 {
        cache.source(&server.url(&format!("/{index}"))).unwrap();
    }
    assert_eq!(cache.sources.lock().len(), MAX_ENDPOINTS);
    let (verifier, _) = verifier(config, times());
    for issuer in ["a/b", "..", "a?b", "a b", "a#", "x@y"] {
        let claims = json!({"iss": issuer}).to_string();
        refused(verifier.connection(&key.token_with_kid("k", &claims)).await);
    }
}
