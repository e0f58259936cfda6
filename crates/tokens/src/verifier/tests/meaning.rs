//! What accepted tokens grant.

use plenum_channels::SubscribeOverrides;

use super::*;

async fn connection(claims: &str) -> Result<ConnectionClaims, TokenError> {
    verifier(&with_secret()).connection(&hmac("HS256", SECRET).token(claims)).await
}

async fn subscription(claims: &str) -> Result<SubscriptionClaims, TokenError> {
    verifier(&with_secret()).subscription(&hmac("HS256", SECRET).token(claims)).await
}

#[tokio::test]
async fn an_empty_token_is_an_anonymous_user_without_end() {
    assert_eq!(connection("{}").await.unwrap(), ConnectionClaims::default());
    let nulls = r#"{"sub":null,"exp":null,"info":null,"meta":null,"channels":null,"subs":null,"expire_at":null}"#;
    assert_eq!(connection(nulls).await.unwrap(), ConnectionClaims::default());
}

#[tokio::test]
async fn payloads_stay_as_they_are() {
    let info = r#"{ "big":123456789012345678901234567890,"b":1.10,"a":"\u00e4" }"#;
    let meta = r#"{"z":1, "a":[ 2 ]}"#;
    let claims = connection(&format!(r#"{{"sub":"u", "info" : {info} ,"meta":{meta}}}"#)).await.unwrap();
    assert_eq!(claims.info, info);
    assert_eq!(claims.meta, meta);
    let claims = connection(r#"{"info":"text","b64info":"AP8="}"#).await.unwrap();
    assert_eq!(&claims.info[..], [0, 255]);
    let claims = connection(r#"{"info":"text","b64info":""}"#).await.unwrap();
    assert_eq!(claims.info, "\"text\"");
}

#[tokio::test]
async fn server_side_subscriptions_come_from_subs_or_channels() {
    let claims = connection(r#"{"channels":["a","b","a"]}"#).await.unwrap();
    assert_eq!(claims.subscriptions.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(claims.subscriptions["a"], SubscribeOptions::default());
    let subs = r#"{"x":{"info":{"i":1},"b64data":"YWI=","expire_at":5,"later":"ignored",
        "override":{"presence":{"value":true},"join_leave":{"value":false},"force_push_join_leave":{},
        "force_recovery":{"value":true},"later":{"value":1}}},"y":null}"#;
    let claims = connection(&format!(r#"{{"channels":["a"],"subs":{subs}}}"#)).await.unwrap();
    assert_eq!(claims.subscriptions.keys().collect::<Vec<_>>(), ["x", "y"]);
    let x = &claims.subscriptions["x"];
    assert_eq!((&x.info[..], &x.data[..], x.expire_at), (&br#"{"i":1}"#[..], &b"ab"[..], 5));
    let expected = SubscribeOverrides {
        presence: Some(true),
        join_leave: Some(false),
        force_push_join_leave: Some(false),
        force_recovery: Some(true),
        force_positioning: None,
    };
    assert_eq!(x.overrides, expected);
    let claims = connection(r#"{"channels":["a"],"subs":{}}"#).await.unwrap();
    assert_eq!(claims.subscriptions.len(), 1);
}

#[tokio::test]
async fn a_subscription_token_names_its_channel() {
    let claims = subscription(
        r#"{"sub":"u","channel":"c","client":"id","info":1,"data":[2],"override":{"force_positioning":{"value":true}},
            "expire_at":7,"channels":["ignored"]}"#,
    )
    .await
    .unwrap();
    assert_eq!((&*claims.user, &*claims.channel, &*claims.client), ("u", "c", "id"));
    assert_eq!((&claims.options.info[..], &claims.options.data[..]), (&b"1"[..], &b"[2]"[..]));
    assert_eq!((claims.options.expire_at, claims.options.overrides.force_positioning), (7, Some(true)));
    assert!(matches!(subscription(r#"{"sub":"u"}"#).await, Err(TokenError::Invalid { .. })));
    assert!(matches!(connection(r#"{"sub":"u","channel":"c"}"#).await, Err(TokenError::Invalid { .. })));
}

#[tokio::test]
async fn expiry_of_token_and_connection_are_apart() {
    let soon = now() + 100;
    assert_eq!(connection(&format!(r#"{{"exp":{soon}}}"#)).await.unwrap().expire_at, soon);
    assert_eq!(connection(&format!(r#"{{"exp":{soon}.75}}"#)).await.unwrap().expire_at, soon);
    assert_eq!(connection(&format!(r#"{{"exp":{soon},"expire_at":0}}"#)).await.unwrap().expire_at, 0);
    assert_eq!(connection(&format!(r#"{{"exp":{soon},"expire_at":5}}"#)).await.unwrap().expire_at, 5);
    assert_eq!(connection(r#"{"exp":9007199254740991}"#).await.unwrap().expire_at, 9_007_199_254_740_991);
    let this_second = format!(r#"{{"exp":{}}}"#, now());
    for expired in [r#"{"exp":0}"#, &this_second, r#"{"exp":1e9,"expire_at":0}"#] {
        assert_eq!(connection(expired).await, Err(TokenError::Expired), "{expired}");
    }
    assert_eq!(connection(&format!(r#"{{"nbf":{soon}}}"#)).await, Err(TokenError::Expired));
    assert!(connection(&format!(r#"{{"nbf":{},"iat":{soon}}}"#, now())).await.is_ok(), "iat is not checked");
    let forged = hmac("HS256", "other").token(r#"{"exp":1}"#);
    assert!(matches!(verifier(&with_secret()).connection(&forged).await, Err(TokenError::Invalid { .. })));
}

#[tokio::test]
async fn the_user_may_stand_in_another_claim() {
    let verifier = verifier(&TokenConfig { user_id_claim: "user_id".to_owned(), ..with_secret() });
    let signer = hmac("HS256", SECRET);
    for (claims, user) in [
        (r#"{"sub":"a","user_id":"b"}"#, "b"),
        (r#"{"user_id":42}"#, "42"),
        (r#"{"user_id":12345678901234567890123}"#, "12345678901234567890123"),
        (r#"{"sub":"a"}"#, ""),
        (r#"{"sub":"a","user_id":null}"#, ""),
    ] {
        assert_eq!(verifier.connection(&signer.token(claims)).await.unwrap().user, user, "{claims}");
    }
    for claims in [r#"{"user_id":["marker"]}"#, r#"{"user_id":-1}"#, r#"{"user_id":"marker","user_id":"marker"}"#] {
        refusal(&verifier, &signer.token(claims)).await;
    }
}

#[tokio::test]
async fn issuer_and_audience_are_checked_when_configured() {
    let signer = hmac("HS256", SECRET);
    let exact = TokenConfig { issuer: "app".to_owned(), audience: "plenum".to_owned(), ..with_secret() };
    let pattern =
        TokenConfig { issuer_regex: "^a.p$".to_owned(), audience_regex: "^plenum".to_owned(), ..with_secret() };
    for verifier in [verifier(&exact), verifier(&pattern)] {
        for good in [r#"{"iss":"app","aud":"plenum"}"#, r#"{"iss":"app","aud":["x","plenum"]}"#] {
            assert!(verifier.connection(&signer.token(good)).await.is_ok(), "{good}");
        }
        for bad in [
            "{}",
            r#"{"iss":"app"}"#,
            r#"{"aud":"plenum"}"#,
            r#"{"iss":"marker","aud":"plenum"}"#,
            r#"{"iss":"app","aud":"marker"}"#,
            r#"{"iss":"app","aud":[]}"#,
            r#"{"iss":"appx","aud":"plenum"}"#,
        ] {
            refusal(&verifier, &signer.token(bad)).await;
        }
    }
}

#[tokio::test]
async fn the_previous_secret_counts_until_its_time() {
    let until = i64::try_from(now() + 50).unwrap();
    let config = TokenConfig {
        hmac_previous_secret_key: "old".to_owned(),
        hmac_previous_secret_key_valid_until: until,
        ..with_secret()
    };
    let (clock, ahead) = clock();
    let verifier = Verifier::with(&config, clock, Times::default(), None).unwrap();
    let (old, new) = (hmac("HS384", "old").token("{}"), hmac("HS256", SECRET).token("{}"));
    assert!(verifier.connection(&old).await.is_ok());
    assert!(verifier.connection(&new).await.is_ok());
    advance(&ahead, 60);
    refusal(&verifier, &old).await;
    assert!(verifier.connection(&new).await.is_ok());
}
