//! The built binary on a Redis Cluster that speaks TLS only, as the user of the access control list that `deploy/redis` ships; and
//! without any Redis at the configured addresses.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::time::{Duration, Instant};

use common::{Folder, Server};
use futures_util::{SinkExt, StreamExt};
use plenum_bus_nats::testing::NatsServer;
use plenum_sessions_redis::testing::{ClusterOptions, RedisCluster, ServerOptions, TestTls};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

const KEY: &str = "key of this test only";
const USERS: &str = include_str!("../../../deploy/redis/users.conf");
/// For what follows a start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An authority, and a certificate of it for servers on loopback and their clients.
fn certificates() -> TestTls {
    let (authority_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    // With the authority's name it would pass for self-signed.
    params.distinguished_name.push(rcgen::DnType::CommonName, "redis");
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    TestTls { authority, certificate, key: key.serialize_pem() }
}

async fn cluster(tls: &TestTls) -> RedisCluster {
    let mut users = USERS.to_owned();
    for name in ["plenum", "replication", "operator"] {
        users = users.replace(&format!("#@{}_SHA256@", name.to_uppercase()), &format!(">{name}-password"));
    }
    let server = ServerOptions {
        settings: format!("{users}\nmasteruser replication\nmasterauth replication-password\n"),
        tls: Some(tls.clone()),
        auth: Some(("operator".into(), "operator-password".into())),
    };
    // Failover is not the subject: a server that stands still for a moment keeps its part.
    let node_timeout = Duration::from_secs(15);
    RedisCluster::start_with(&ClusterOptions { server, node_timeout, ..ClusterOptions::default() }).await.unwrap()
}

/// A configuration file, all of Redis but the authority's certificate and the password as it should be.
fn configuration(
    folder: &Folder,
    name: &str,
    places: (&NatsServer, &RedisCluster),
    authority: &str,
    password: &str,
) -> String {
    let servers: Vec<String> = places.1.addresses().iter().map(ToString::to_string).collect();
    let settings = json!({
        "http_api": { "key": KEY },
        "client": { "allow_anonymous_connect_without_token": true },
        "channel": { "without_namespace": {
            "presence": true, "history_size": 10, "history_ttl": "60s",
            "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
        } },
        "nats": { "servers": [places.0.url()], "max_bytes": 0 },
        "redis": {
            "servers": servers, "user": "plenum", "password": password,
            "tls": {
                "enabled": true, "server_ca_pem": authority,
                "cert_pem": folder.path("cert.pem"), "key_pem": folder.path("key.pem"),
            },
        },
    });
    folder.write(name, &settings.to_string())
}

async fn subscriber(server: &Server, channel: &str) -> WebSocketStream<TcpStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        let url = format!("ws://{}/connection/websocket", server.address);
        let (mut socket, _) = client_async(url, stream).await.unwrap();
        let text = format!("{{\"id\":1,\"connect\":{{}}}}\n{{\"id\":2,\"subscribe\":{{\"channel\":\"{channel}\"}}}}");
        socket.send(Message::text(text)).await.unwrap();
        let mut replies = String::new();
        while !replies.contains("\"id\":2") {
            replies += &socket.next().await.unwrap().unwrap().to_string();
        }
        if replies.contains("\"subscribe\"") {
            return socket;
        }
        assert!(Instant::now() < end, "{replies}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn presence(server: &Server, channel: &str) -> Value {
    serde_json::from_str(&server.api(KEY, "presence", &json!({ "channel": channel }).to_string()).1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_shared_over_tls_as_the_user_that_is_shipped() {
    let (tls, folder, nats) = (certificates(), Folder::new(), NatsServer::start().await.unwrap());
    let redis = cluster(&tls).await;
    let authority = folder.write("ca.pem", &tls.authority);
    folder.write("cert.pem", &tls.certificate);
    folder.write("key.pem", &tls.key);
    let good = configuration(&folder, "good.json", (&nats, &redis), &authority, "plenum-password");
    let servers = [0, 1].map(|_| Server::start(&["--config", &good]));
    for server in &servers {
        server.until("/readyz", 200);
    }
    let _member = subscriber(&servers[0], "room").await;
    let end = Instant::now() + PATIENCE;
    let shown = |answer: &Value| answer["result"]["presence"].as_object().is_some_and(|members| members.len() == 1);
    while !servers.iter().all(|server| shown(&presence(server, "room"))) {
        assert!(Instant::now() < end, "{:?}", [presence(&servers[0], "room"), presence(&servers[1], "room")]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A key of the API, which another replica knows beyond the log's own window, is written and asked for.
    let body = json!({ "channel": "room", "data": 1, "idempotency_key": "k" }).to_string();
    assert_eq!(servers[0].api(KEY, "publish", &body).1, servers[1].api(KEY, "publish", &body).1);
    for server in &servers {
        let metrics = server.get("/metrics").1;
        assert!(
            metrics.contains("plenum_redis_slots 16384") && metrics.contains("plenum_redis_primaries 3"),
            "{metrics}"
        );
        let refused = metrics.lines().filter(|line| line.contains("result=\"refused\""));
        assert!(
            refused.clone().all(|line| line.ends_with(" 0")),
            "a right is missing: {:?}",
            refused.collect::<Vec<_>>()
        );
    }

    // Neither a wrong password nor a foreign authority stops delivery; what needs Redis says that it is away.
    let foreign = folder.write("foreign.pem", &certificates().authority);
    for (name, authority, password) in
        [("password.json", &authority, "wrong"), ("authority.json", &foreign, "plenum-password")]
    {
        let server = Server::start(&["--config", &configuration(&folder, name, (&nats, &redis), authority, password)]);
        server.until("/readyz", 200);
        let (_, published) = server.api(KEY, "publish", r#"{"channel": "room", "data": 2}"#);
        assert!(published.contains("\"offset\""), "{name}: {published}");
        let answer = presence(&server, "room");
        assert_eq!(answer["error"]["code"], 100, "{name}: {answer}");
    }
}

/// Sends a command and gives its reply.
async fn ask(socket: &mut WebSocketStream<TcpStream>, id: u32, method: &str, request: Value) -> Value {
    let mut command = json!({ "id": id });
    command[method] = request;
    socket.send(Message::text(command.to_string())).await.unwrap();
    loop {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap().to_string();
        let replies = frame.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(reply) = replies.into_iter().find(|reply| reply["id"] == id) {
            return reply;
        }
    }
}

/// Addresses at which nobody listens, nor ever will.
const NOBODY: [&str; 3] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];

#[tokio::test(flavor = "multi_thread")]
async fn without_any_redis_messages_flow_and_clients_read_what_is_away() {
    let (folder, nats) = (Folder::new(), NatsServer::start().await.unwrap());
    let open = |name: &str, presence: bool| {
        json!({
            "name": name, "presence": presence, "allow_presence_for_client": presence, "allow_presence_for_anonymous": presence,
            "history_size": 10, "history_ttl": "60s", "allow_subscribe_for_client": true, "allow_subscribe_for_anonymous": true,
            "allow_publish_for_client": true, "allow_publish_for_anonymous": true,
        })
    };
    let mut meeting = open("meeting", false);
    meeting["session"] = true.into();
    let settings = json!({
        "http_api": { "key": KEY },
        "client": { "allow_anonymous_connect_without_token": true, "on_unavailable": { "subscribers": "closed" } },
        "channel": { "namespaces": [open("quiet", false), open("room", true), meeting] },
        "nats": { "servers": [nats.url()], "max_bytes": 0 },
        "redis": { "servers": NOBODY, "key_secret": "a secret of this test, long enough" },
    });
    let server = Server::start(&["--config", &folder.write("away.json", &settings.to_string())]);
    server.until("/readyz", 200);
    let mut socket = subscriber(&server, "quiet:a").await;
    let published = ask(&mut socket, 3, "publish", json!({ "channel": "quiet:a", "data": { "n": 1 } })).await;
    assert!(published.get("error").is_none(), "{published}");
    let (_, published) = server.api(KEY, "publish", r#"{"channel": "quiet:a", "data": {"n":2}}"#);
    assert!(published.contains("\"offset\""), "{published}");
    let history = server.answers(KEY, "history", r#"{"channel": "quiet:a", "limit": 10}"#, "\"publications\"");
    assert!(history.contains("{\"n\":1}") && history.contains("{\"n\":2}"), "{history}");

    let presence_away =
        json!({ "code": 100, "message": "presence is unavailable: Redis does not answer", "temporary": true });
    let limit_away =
        json!({ "code": 100, "message": "the limit cannot be checked: Redis does not answer", "temporary": true });
    for (id, method, channel, error) in [
        (4, "subscribe", "room:a", &presence_away),
        (5, "presence", "room:a", &presence_away),
        (6, "subscribe", "meeting:a", &limit_away),
    ] {
        let reply = ask(&mut socket, id, method, json!({ "channel": channel })).await;
        assert_eq!(&reply["error"], error, "{method} {channel}: {reply}");
    }
    // What happened in between was delivered, and the connection stayed.
    assert!(ask(&mut socket, 7, "publish", json!({ "channel": "quiet:a", "data": 3 })).await.get("error").is_none());
    assert_eq!(server.get("/readyz").0, 200);
}
