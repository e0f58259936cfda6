//! The built binary on a real NATS server: roles, contact that comes, goes and returns, refusals, reloading.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::time::Instant;

use common::{DEADLINE, Folder, Server, plenum};
use plenum_bus_nats::testing::{NatsServer, ServerOptions};

const KEY: &str = "key of this test only";

fn arguments(nats: &NatsServer) -> Vec<String> {
    let servers = nats.url();
    ["--nats", &servers, "--set", &format!("http_api.key={KEY}"), "--set", "nats.max_bytes=0"]
        .into_iter()
        .chain(["--set", "client.allow_anonymous_connect_without_token=true", "--set", "nats.pool.backoff_max=1s"])
        .chain(["--set", "channel.without_namespace.history_size=10"])
        .chain(["--set", "channel.without_namespace.history_ttl=60s"])
        .map(str::to_owned)
        .collect()
}

fn start(role: &str, arguments: &[String]) -> Server {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Server::start_as(role, &arguments)
}

#[tokio::test]
async fn contact_may_come_late_and_go_and_return() {
    let mut nats = NatsServer::start().await.unwrap();
    nats.kill().unwrap();
    let mut server = start("serve", &arguments(&nats));
    assert_eq!(server.get("/readyz"), (503, "waiting for the broker\n".into()));
    assert_eq!((server.get("/livez").0, server.get("/health").0), (200, 503));
    assert_eq!(server.get("/connection/websocket"), (503, "waiting for NATS\n".into()));
    let (_, refused) = server.api(KEY, "publish", r#"{"channel": "a", "data": 1}"#);
    assert!(refused.contains("\"error\""), "{refused}");

    nats.restart().await.unwrap();
    server.until("/readyz", 200);
    server.until("/health", 200);
    let (_, first) = server.api(KEY, "publish", r#"{"channel": "a", "data": 1}"#);
    assert!(first.contains("\"offset\""), "{first}");
    assert!(server.get("/metrics").1.contains("plenum_nats_log_ready 1"));
    assert!(server.get("/report").1.contains("\"pools\""));

    nats.kill().unwrap();
    server.until("/health", 503);
    assert_eq!(server.get("/readyz").0, 200, "all replicas would turn red together");
    server.logged("delivery is in doubt", |_| Some(()));
    server.shows("/metrics", "plenum_nats_connection_up{place=\"0\",role=\"subscribing\"} 0");

    nats.restart().await.unwrap();
    server.until("/health", 200);
    server.logged("delivery is in order", |_| Some(()));
    server.answers(KEY, "history", r#"{"channel": "a", "limit": 10}"#, "\"data\":1");
    server.signal("USR1");
    server.logged("resource report", |_| Some(()));
    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
}

#[tokio::test]
async fn roles_share_the_work() {
    let nats = NatsServer::start().await.unwrap();
    let roles = ["websocket", "api", "worker"].map(|role| start(role, &arguments(&nats)));
    for server in &roles {
        server.until("/readyz", 200);
        assert_eq!(server.get("/metrics").0, 200);
    }
    let [websocket, api, worker] = &roles;
    let statuses = |path: &str| [websocket.get(path).0, api.get(path).0, worker.get(path).0];
    // A plain request to the WebSocket endpoint is a bad one, where it is.
    let [there, not_api, not_worker] = statuses("/connection/websocket");
    assert!(there != 404 && not_api == 404 && not_worker == 404);
    assert_eq!([websocket.info(KEY), api.info(KEY), worker.info(KEY)], [404, 200, 404]);
    let end = Instant::now() + DEADLINE;
    loop {
        let (_, info) = api.api(KEY, "info", "{}");
        if info.matches("\"uid\"").count() == 3 {
            break;
        }
        assert!(Instant::now() < end, "each process answers: {info}");
    }
}

#[tokio::test]
async fn what_contradicts_the_cluster_ends_the_process_with_the_setting() {
    let nats = NatsServer::start().await.unwrap();
    let first = start("serve", &arguments(&nats));
    first.until("/readyz", 200);
    let mut arguments = arguments(&nats);
    arguments.extend(["--set".into(), "nats.shards=2".into()]);
    let mut second = start("serve", &arguments);
    assert_eq!(second.wait(), Some(1));
    second.logged("shards", |line| line.contains("cannot be changed").then_some(()));
}

#[tokio::test]
async fn a_hangup_reloads_the_pool_and_names_what_needs_a_restart() {
    let nats = NatsServer::start().await.unwrap();
    let folder = Folder::new();
    let file = |more: &str| {
        let text = format!("[nats]\nservers = [{:?}]\nmax_bytes = 0\n{more}", nats.url());
        folder.write("plenum.toml", &text)
    };
    let path = file("");
    let server = Server::start(&["--config", &path]);
    server.until("/readyz", 200);
    file("[nats.pool]\npublishing = 3\n");
    server.signal("HUP");
    server.logged("\"configuration reloaded\"", |_| Some(()));
    let up = "plenum_nats_connection_up{place=\"2\",role=\"publishing\"} 1";
    server.shows("/metrics", up);
    file("prefix = \"other\"\n[nats.pool]\npublishing = 3\n");
    server.signal("HUP");
    server.logged("after a restart", |line| line.contains("nats.prefix").then_some(()));
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn a_bad_credentials_file_is_told_before_a_port_is_bound() {
    let folder = Folder::new();
    let path = folder.write("a.creds", "nothing");
    let output =
        plenum(&["serve", "--nats", "nats://127.0.0.1:1", "--set", &format!("nats.creds_file={path}")]).output();
    let error = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(error.contains("nats") && error.contains("JWT"), "{error}");
}

#[tokio::test]
async fn a_password_or_a_token_is_needed_where_the_server_asks_for_one() {
    for (settings, good) in [
        ("authorization { user: u, password: p }", ["nats.user=u", "nats.password=p"]),
        ("authorization { token: t }", ["nats.token=t", "log.level=info"]),
    ] {
        let options = ServerOptions { settings: settings.into(), ..ServerOptions::default() };
        let nats = NatsServer::start_with(options).await.unwrap();
        let stranger = start("serve", &arguments(&nats));
        stranger.logged("waiting for NATS", |_| Some(()));
        assert_eq!(stranger.get("/readyz").0, 503, "{settings}");
        let mut arguments = arguments(&nats);
        arguments.extend(good.iter().flat_map(|one| ["--set".to_owned(), (*one).to_owned()]));
        start("serve", &arguments).until("/readyz", 200);
    }
}
