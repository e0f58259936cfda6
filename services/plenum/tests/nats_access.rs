//! The built binary at the doors of NATS: every kind of credentials, TLS, what is wrong with them, and their rotation.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::net::TcpListener;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Folder, Server, plenum};
use nkeys::KeyPair;
use plenum_bus_nats::testing::{NatsServer, ServerOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::json;

const KEY: &str = "key of this test only";

async fn nats(settings: String) -> NatsServer {
    NatsServer::start_with(ServerOptions { settings, ..ServerOptions::default() }).await.unwrap()
}

fn start(role: &str, url: &str, options: &[(&str, &str)]) -> Server {
    let set = |(key, value): &(&str, &str)| ["--set".to_owned(), format!("{key}={value}")];
    let always = [("nats.max_bytes", "0"), ("nats.pool.backoff_max", "1s"), ("http_api.key", KEY)];
    let arguments: Vec<String> = always.iter().chain(options).flat_map(set).collect();
    let arguments: Vec<&str> = ["--nats", url].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    Server::start_as(role, &arguments)
}

/// The server refuses: that is said with the option's name, nothing is given away, and the process waits.
fn stays_outside(server: &Server, option: &str, secrets: &[&str]) {
    server.logged("waiting for NATS", |line| line.contains(option).then_some(()));
    assert_eq!(server.get("/readyz").0, 503);
    server.shows("/health", option);
    assert_eq!(server.get("/health").0, 503);
    gives_nothing_away(server, secrets);
}

fn gives_nothing_away(server: &Server, secrets: &[&str]) {
    let told = [server.get("/health").1, server.get("/metrics").1, server.get("/report").1].concat();
    let told = told + &server.log.lock().unwrap();
    for secret in secrets {
        assert!(!told.contains(secret), "{secret} is shown: {told}");
    }
}

/// What was wrong is put right, and the process comes in by itself.
fn comes_in(server: &Server, secrets: &[&str]) {
    server.until("/readyz", 200);
    server.until("/health", 200);
    gives_nothing_away(server, secrets);
}

#[tokio::test]
async fn a_user_and_a_password() {
    let nats = nats("authorization { users: [{user: plenum, password: another}] }".into()).await;
    let options = [("nats.user", "plenum"), ("nats.password", "p4ssw0rd-of-test")];
    let server = start("serve", &nats.url(), &options);
    stays_outside(&server, "nats.password", &["p4ssw0rd-of-test"]);
    nats.edit_config(|text| text.replace("password: another", "password: p4ssw0rd-of-test")).unwrap();
    nats.reload().unwrap();
    comes_in(&server, &["p4ssw0rd-of-test"]);
}

#[tokio::test]
async fn a_token() {
    let nats = nats("authorization { token: another }".into()).await;
    let server = start("websocket", &nats.url(), &[("nats.token", "t0ken-of-test")]);
    stays_outside(&server, "nats.token", &["t0ken-of-test"]);
    nats.edit_config(|text| text.replace("token: another", "token: t0ken-of-test")).unwrap();
    nats.reload().unwrap();
    comes_in(&server, &["t0ken-of-test"]);
}

#[tokio::test]
async fn no_credentials_where_some_are_asked_for() {
    let nats = nats("authorization { token: another }".into()).await;
    let server = start("api", &nats.url(), &[]);
    stays_outside(&server, "none of nats.user, nats.token", &[]);
}

#[tokio::test]
async fn an_nkey() {
    let (known, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let seeds = [known.seed().unwrap(), stranger.seed().unwrap()];
    let nats = nats(format!("authorization {{ users: [{{nkey: {}}}] }}", known.public_key())).await;
    let folder = Folder::new();
    let file = folder.write("seed.nk", &seeds[1]);
    let server = start("serve", &nats.url(), &[("nats.nkey_seed_file", &file)]);
    let secrets = [seeds[0].as_str(), &seeds[1]];
    stays_outside(&server, "nats.nkey_seed_file", &secrets);
    folder.write("seed.nk", &format!("{}\n", seeds[0]));
    comes_in(&server, &secrets);
}

/// A JWT as NATS has them: claims signed by an nkey (the server project's ADR-14).
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: serde_json::Value) -> String {
    let claims =
        json!({ "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "test", "nats": nats });
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let signed = format!("{}.{}", part(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#.into()), part(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Two accounts under an operator, one for the server itself.
fn operated(operator: &KeyPair, account: &KeyPair) -> String {
    let system = KeyPair::new_account();
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let about = |account: &KeyPair, limits: &serde_json::Value| {
        let token = jwt(operator, account, json!({ "type": "account", "version": 2, "limits": limits }));
        format!("{}: {token}", account.public_key())
    };
    let mut plain = limits.clone();
    for storage in ["mem_storage", "disk_storage", "streams", "consumer"] {
        plain[storage] = 0.into();
    }
    format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}\n{}\n}}",
        jwt(operator, operator, json!({ "type": "operator", "version": 2, "system_account": system.public_key() })),
        system.public_key(),
        about(&system, &plain),
        about(account, &limits),
    )
}

#[tokio::test]
async fn a_creds_file() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let nats = nats(operated(&operator, &account)).await;
    let about = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let seed = user.seed().unwrap();
    let creds = |token: &str| {
        format!(
            "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    };
    // Of an account that the operator does not know.
    let stranger = jwt(&KeyPair::new_account(), &user, about.clone());
    let good = jwt(&account, &user, about);
    let folder = Folder::new();
    let file = folder.write("plenum.creds", &creds(&stranger));
    let server = start("websocket", &nats.url(), &[("nats.creds_file", &file)]);
    let secrets = [seed.as_str(), &stranger, &good];
    stays_outside(&server, "nats.creds_file", &secrets);
    folder.write("plenum.creds", &creds(&good));
    comes_in(&server, &secrets);
}

/// A CA, and certificates for `localhost` of it: names of the files without their ends.
fn certificates(folder: &Folder, ca_name: &str, names: &[&str]) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, ca_name);
    folder.write(&format!("{ca_name}.pem"), &ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    for name in names {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        folder.write(&format!("{name}.pem"), &certificate.pem());
        folder.write(&format!("{name}.key"), &key.serialize_pem());
    }
}

fn copy(folder: &Folder, from: &str, to: &str) {
    std::fs::copy(folder.path(from), folder.path(to)).unwrap();
}

#[tokio::test]
async fn tls_with_an_own_ca_and_client_certificates() {
    let folder = Folder::new();
    certificates(&folder, "ours", &["server", "client"]);
    certificates(&folder, "theirs", &["stranger"]);
    let path = |name: &str| folder.path(name);
    let tls = format!(
        "cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true",
        path("server.pem"),
        path("server.key"),
        path("ours.pem")
    );
    for first in ["false", "true"] {
        let nats = nats(format!("tls {{ {tls}, handshake_first: {first} }}")).await;
        let url = nats.url().replace("127.0.0.1", "localhost");
        let begin = |ca: &str, client: &str| {
            let [ca, certificate, key] = [format!("{ca}.pem"), format!("{client}.pem"), format!("{client}.key")];
            let [ca, certificate, key] = [path(&ca), path(&certificate), path(&key)];
            let options = [
                ("nats.tls.enabled", "true"),
                ("nats.tls.handshake_first", first),
                ("nats.tls.server_ca_pem", &ca),
                ("nats.tls.cert_pem", &certificate),
                ("nats.tls.key_pem", &key),
                ("nats.pool.discover_servers", "false"),
            ];
            start("serve", &url, &options)
        };
        copy(&folder, "theirs.pem", "ca.pem");
        let wrong_ca = begin("ca", "client");
        for end in ["pem", "key"] {
            copy(&folder, &format!("stranger.{end}"), &format!("mine.{end}"));
        }
        let wrong_client = begin("ours", "mine");
        let secret = std::fs::read_to_string(path("client.key")).unwrap();
        let secret = secret.lines().nth(1).unwrap();
        stays_outside(&wrong_ca, "nats.tls.server_ca_pem", &[secret]);
        stays_outside(&wrong_client, "nats.tls.cert_pem", &[]);
        copy(&folder, "ours.pem", "ca.pem");
        for end in ["pem", "key"] {
            copy(&folder, &format!("client.{end}"), &format!("mine.{end}"));
        }
        comes_in(&wrong_ca, &[secret]);
        comes_in(&wrong_client, &[secret]);
    }
}

/// Ends with an error that holds all of `texts`, before it takes its port, which is taken.
fn is_refused(options: &[(&str, &str)], texts: &[&str], secrets: &[&str]) {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = plenum(&["serve", "--nats", "nats://127.0.0.1:1", "--address", "127.0.0.1", "--port", &port]);
    for (key, value) in options {
        command.args(["--set", &format!("{key}={value}")]);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8([output.stderr, output.stdout].concat()).unwrap();
    assert!(!output.status.success(), "{options:?}");
    assert!(texts.iter().all(|text| error.contains(text)) && !error.contains("in use"), "{options:?}: {error}");
    assert!(!secrets.iter().any(|secret| error.contains(secret)), "{error}");
}

#[test]
fn files_that_cannot_be_used_end_the_start_before_a_port_is_bound() {
    let folder = Folder::new();
    certificates(&folder, "ours", &["client", "other"]);
    let path = |name: &str| folder.path(name);
    let [ca, certificate, key, other] = ["ours.pem", "client.pem", "client.key", "other.key"].map(path);
    let nonsense = folder.write("nonsense", "s3cret-nonsense");
    let missing = path("missing");
    let directory = path("");
    for bad in [&missing, &directory, &nonsense] {
        for option in ["nats.nkey_seed_file", "nats.creds_file", "nats.tls.server_ca_pem"] {
            is_refused(&[(option, bad)], &[option], &["s3cret-nonsense"]);
        }
        is_refused(&[("nats.tls.cert_pem", bad), ("nats.tls.key_pem", &key)], &["nats.tls.cert_pem"], &["s3cret"]);
        is_refused(
            &[("nats.tls.cert_pem", &certificate), ("nats.tls.key_pem", bad)],
            &["nats.tls.key_pem"],
            &["s3cret"],
        );
    }
    let pair = [("nats.tls.server_ca_pem", &*ca), ("nats.tls.cert_pem", &certificate), ("nats.tls.key_pem", &other)];
    is_refused(&pair, &["nats.tls.key_pem"], &[]);
    is_refused(&[("nats.tls.cert_pem", &certificate)], &["nats.tls.cert_pem", "nats.tls.key_pem"], &[]);
    is_refused(&[("nats.user", "u"), ("nats.token", "s3cret")], &["nats.token", "nats.user"], &["s3cret"]);
}

#[tokio::test]
async fn credentials_are_rotated_with_and_without_contact() {
    let mut nats = nats("authorization { users: [{user: one, password: first-s3cret}] }".into()).await;
    let folder = Folder::new();
    let url = nats.url();
    let file = |user: &str, password: &str| {
        let text = format!(
            "[nats]\nservers = [{url:?}]\nmax_bytes = 0\nuser = {user:?}\npassword = {password:?}\n\
             [nats.pool]\nbackoff_max = \"1s\"\n[http_api]\nkey = {KEY:?}\n\
             [channel.without_namespace]\nhistory_size = 10\nhistory_ttl = \"60s\"\n"
        );
        folder.write("plenum.toml", &text)
    };
    let path = file("one", "first-s3cret");
    let server = Server::start(&["--config", &path]);
    server.until("/readyz", 200);
    let publish = || server.api(KEY, "publish", r#"{"channel": "a", "data": 1}"#).1;
    assert!(publish().contains("\"offset\""));

    file("one", "wrong-s3cret");
    server.signal("HUP");
    server.logged("stay as they were", |line| line.contains("nats.user, nats.password").then_some(()));
    server.until("/health", 200);
    assert!(publish().contains("\"offset\""));

    nats.kill().unwrap();
    server.until("/health", 503);
    file("two", "second-s3cret");
    server.signal("HUP");
    server.logged("in force without contact", |_| Some(()));
    nats.edit_config(|text| text.replace("one, password: first-s3cret", "two, password: second-s3cret")).unwrap();
    nats.restart().await.unwrap();
    server.until("/health", 200);
    assert!(publish().contains("\"offset\""));
    let history = server.answers(KEY, "history", r#"{"channel": "a", "limit": 10}"#, "\"publications\"");
    assert_eq!(history.matches("\"data\":1").count(), 3, "{history}");
    gives_nothing_away(&server, &["s3cret"]);
}
