//! Who may enter: credentials, TLS, permissions.

use std::time::Duration;

use super::tests::{PATIENCE, core, open, until};
use super::{Credentials, Pool, PoolConfig, PoolError, Reloaded, Tls};
use crate::testing::{NatsServer, ServerOptions};

#[tokio::test]
async fn tokens_and_nkeys_open_the_door() {
    let key = nkeys::KeyPair::new_user();
    let nkey = format!("authorization {{ users: [{{nkey: {}}}] }}", key.public_key());
    let file = std::env::temp_dir().join(format!("plenum-nats-{}.nk", uuid::Uuid::new_v4().simple()));
    std::fs::write(&file, format!("{}\n", key.seed().unwrap())).unwrap();
    let cases = [
        ("authorization { token: s3cret }".to_owned(), Credentials::Token("s3cret".into())),
        (nkey, Credentials::NKeyFile(file.clone())),
    ];
    for (settings, credentials) in cases {
        let server = NatsServer::start_with(ServerOptions { settings, ..core() }).await.unwrap();
        let denied = Pool::connect(PoolConfig::new([server.url()])).await.unwrap();
        until("it is known why", || denied.stats().connections.iter().all(|one| one.error.is_some())).await;
        let refused = denied.wait_ready(Duration::from_millis(10)).await.unwrap_err().to_string();
        assert!(refused.contains("uthorization"), "{refused}");
        open(PoolConfig { credentials, ..PoolConfig::new([server.url()]) }).await;
    }
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let settings = r#"authorization { users: [
        {user: full, password: pw, permissions: {publish: ["p.probe.*"], subscribe: ["p.probe.*", "_INBOX_p.>"]}}
        {user: less, password: pw, permissions: {publish: [">"], subscribe: ["_INBOX_p.>"]}}
    ] }"#;
    let server = NatsServer::start_with(ServerOptions { settings: settings.into(), ..core() }).await.unwrap();
    let config = |user: &str, probe_timeout| PoolConfig {
        credentials: Credentials::UserPassword { user: user.into(), password: "pw".into() },
        probe_subject: "p.probe".into(),
        inbox_prefix: "_INBOX_p".into(),
        probe_every: Duration::from_millis(20),
        probe_timeout,
        ..PoolConfig::new([server.url()])
    };
    let pool = open(config("full", Duration::from_secs(2))).await;
    let mut events = pool.events();
    until("round trips are known", || pool.stats().connections.iter().all(|one| one.round_trip_ms.is_some())).await;
    assert!(events.try_recv().is_err(), "nothing is refused");

    let pool = open(config("less", Duration::from_millis(50))).await;
    until("probes fail", || pool.stats().connections.iter().all(|one| one.failed_probes > 5)).await;
    assert!(pool.stats().connections.iter().all(|one| one.healthy && one.reconnects == 0), "and nothing else");
}

/// A JWT as NATS has them: claims signed by an nkey (the server project's ADR-14).
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, nats: serde_json::Value) -> String {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let claims = serde_json::json!({
        "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats,
    });
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let signed = format!("{}.{}", part(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#.into()), part(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn a_creds_file_opens_the_door_and_is_read_at_every_connect() {
    use nkeys::KeyPair;
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let limits = serde_json::json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let about_account = serde_json::json!({"type": "account", "version": 2, "limits": limits});
    let about_user = serde_json::json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let settings = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}",
        jwt(&operator, &operator, serde_json::json!({"type": "operator", "version": 2})),
        account.public_key(),
        jwt(&operator, &account, about_account),
    );
    let server = NatsServer::start_with(ServerOptions { settings, ..core() }).await.unwrap();
    let file = std::env::temp_dir().join(format!("plenum-nats-{}.creds", uuid::Uuid::new_v4().simple()));
    let write = |token: &str, seed: &str| {
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&file, text).unwrap();
    };
    let seed = user.seed().unwrap();
    write("a.b.c", &seed);
    let config = PoolConfig { credentials: Credentials::CredsFile(file.clone()), ..PoolConfig::new([server.url()]) };
    let pool = Pool::connect(config).await.unwrap();
    assert!(pool.wait_ready(Duration::from_millis(300)).await.is_err(), "the token is none");
    write(&jwt(&account, &user, about_user), &seed);
    pool.wait_ready(PATIENCE).await.unwrap();
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn tls_with_an_own_ca_and_a_client_certificate() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let folder = std::env::temp_dir().join(format!("plenum-nats-tls-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name);
    let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
    let settings = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    let server = NatsServer::start_with(ServerOptions { settings, ..core() }).await.unwrap();
    let tls = Tls { required: true, first: false, ca_file: Some(path("ca.pem")), client_files: None };
    let url = server.url().replace("127.0.0.1", "localhost");
    let config = PoolConfig { tls: tls.clone(), discover_servers: false, ..PoolConfig::new([url]) };
    let without = Pool::connect(config.clone()).await.unwrap();
    assert!(without.wait_ready(Duration::from_millis(500)).await.is_err(), "the server asks for a certificate");
    let tls = Tls { client_files: Some((path("client.pem"), path("client.key"))), ..tls };
    open(PoolConfig { tls: tls.clone(), ..config.clone() }).await;
    let refused = async |tls: Tls| match Pool::connect(PoolConfig { tls, ..config.clone() }).await {
        Err(PoolError::Credentials { setting, .. }) => setting,
        _ => "nothing",
    };
    let files = |certificate: &str, key: &str| Some((path(certificate), path(key)));
    let pair = |certificate, key| Tls { client_files: files(certificate, key), ..tls.clone() };
    let ca = |name: &str| Tls { ca_file: Some(path(name)), ..tls.clone() };
    write("empty.pem", String::new());
    assert_eq!(refused(pair("client.pem", "server.key")).await, "tls.key", "of another certificate");
    assert_eq!(refused(pair("client.pem", "client.pem")).await, "tls.key");
    assert_eq!(refused(pair("client.key", "client.key")).await, "tls.certificate");
    assert_eq!(refused(ca("empty.pem")).await, "tls.ca_file");
    assert_eq!(refused(ca("missing.pem")).await, "tls.ca_file");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A server with one user, and the pool's settings as another.
async fn one_user(user: &str, password: &str) -> (NatsServer, impl Fn(&str, &str) -> PoolConfig) {
    let settings = format!("authorization {{ users: [{{user: {user}, password: {password}}}] }}");
    let server = NatsServer::start_with(ServerOptions { settings, ..core() }).await.unwrap();
    let url = server.url();
    let config = move |user: &str, password: &str| PoolConfig {
        credentials: Credentials::UserPassword { user: user.into(), password: password.into() },
        ..PoolConfig::new([&url])
    };
    (server, config)
}

#[tokio::test]
async fn settings_without_contact_are_refused_while_the_old_ones_have_it() {
    let (_server, config) = one_user("one", "first").await;
    let pool = open(config("one", "first")).await;
    let before: Vec<usize> = pool.stats().connections.iter().map(|one| one.connection).collect();
    let refused = pool.reload(config("one", "wrong")).await.unwrap_err().to_string();
    assert!(refused.contains("uthorization") && !refused.contains("wrong"), "{refused}");
    assert_eq!(*pool.config(), config("one", "first"));
    let after: Vec<usize> = pool.stats().connections.iter().map(|one| one.connection).collect();
    assert_eq!(before, after, "nothing was exchanged");
    pool.wait_ready(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn credentials_are_rotated_while_no_server_is_there() {
    let (mut server, config) = one_user("one", "first").await;
    let pool = open(PoolConfig { backoff_max: Duration::from_secs(600), ..config("one", "first") }).await;
    server.kill().unwrap();
    until("contact is lost", || pool.stats().healthy().0 == 0).await;
    let reloaded = pool.reload(PoolConfig { publishing: 3, ..config("two", "second") }).await.unwrap();
    assert_eq!(reloaded, Reloaded::Unproven);
    server.edit_config(|text| text.replace("user: one, password: first", "user: two, password: second")).unwrap();
    server.restart().await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    assert_eq!(pool.stats().healthy(), (4, 4));
}
