//! The built binary as its users run it: command line, refusals, signals, reloading.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use common::{DEADLINE, Folder, Server, output, plenum};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

#[test]
fn roles_that_need_nats_say_so() {
    for command in ["websocket", "api", "worker"] {
        let (code, _, error) = output(&[command]);
        assert_eq!(code, Some(2), "{command}");
        assert!(error.contains("nats.servers") && error.contains("plenum serve"), "{error}");
    }
}

#[test]
fn small_commands() {
    let (code, text, _) = output(&["version"]);
    assert_eq!((code, text.as_str()), (Some(0), concat!("plenum ", env!("CARGO_PKG_VERSION"), "\n")));
    let (code, text, _) = output(&["completions", "bash"]);
    assert!(code == Some(0) && text.contains("complete -F"), "{text}");
    let (code, text, _) = output(&["config", "doc"]);
    assert!(code == Some(0) && text.contains("channel.namespaces[].history_size"), "{text}");
    assert_eq!(output(&["no-such-command"]).0, Some(2));
}

#[test]
fn the_printed_default_file_is_accepted() {
    let folder = Folder::new();
    let (_, text, _) = output(&["config", "default"]);
    let path = folder.write("plenum.toml", &text);
    let (code, text, error) = output(&["config", "check", "--config", &path]);
    assert_eq!(code, Some(0), "{error}");
    assert!(text.ends_with("plenum.toml: ok\n") && text.contains("warning: no client can connect"), "{text}");
}

#[test]
fn a_bad_configuration_ends_before_a_port_is_bound() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let path = folder.write("plenum.json", r#"{"clinet": {}, "websocket": {"compression": true}}"#);
    let (code, _, error) = output(&["serve", "--config", &path, "--address", "127.0.0.1", "--port", &port]);
    assert_eq!(code, Some(1));
    assert!(error.contains("clinet") && error.contains("websocket.compression = true"), "{error}");
    assert!(!error.contains("listen"), "the taken port was never tried: {error}");
    let (code, _, error) = output(&["serve", "--address", "127.0.0.1", "--port", &port]);
    assert!(code == Some(1) && error.contains("http_server.port") && error.contains(&port), "{error}");
}

#[test]
fn tokens_can_be_made_and_checked() {
    let run = |arguments: &[&str]| {
        let mut command = plenum(arguments);
        let output = command.env("PLENUM_CLIENT__TOKEN__HMAC_SECRET_KEY", "a secret of this test only").output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, token) = run(&["token", "make", "--user", "42"]);
    assert_eq!(code, Some(0));
    assert_eq!(run(&["token", "check", token.trim()]).0, Some(0));
    assert_eq!(run(&["token", "check", &token.trim()[1..]]).0, Some(1));
    assert_eq!(output(&["token", "make", "--user", "42"]).0, Some(1), "no secret is configured");
}

#[test]
fn a_hangup_reloads_keys_and_refuses_a_bad_file() {
    let folder = Folder::new();
    let path = folder.write("plenum.toml", "[http_api]\nkey = \"first\"\n");
    let mut server = Server::start(&["--config", &path]);
    assert_eq!((server.info("first"), server.info("second")), (200, 401));

    folder.write("plenum.toml", "[http_api]\nkey = \"second\"\n[websocket]\nmessage_size_limit = 70000\n");
    server.signal("HUP");
    server.logged("\"configuration reloaded\"", |_| Some(()));
    assert_eq!((server.info("first"), server.info("second")), (401, 200));
    server.logged("after a restart", |line| line.contains("websocket.message_size_limit").then_some(()));

    folder.write("plenum.toml", "[http_api]\nkey = \"third\"\n[[channel.namespaces]]\nname = \"!\"\n");
    server.signal("HUP");
    server.logged("the old one stays", |line| line.contains("channel.namespaces[0].name").then_some(()));
    assert_eq!((server.info("second"), server.info("third")), (200, 401));

    server.signal("TERM");
    assert_eq!(server.wait(), Some(0));
    for secret in ["first", "second", "third"] {
        assert!(!server.log.lock().unwrap().contains(secret));
    }
}

#[tokio::test]
async fn termination_closes_connections_so_that_clients_come_back() {
    let mut server = Server::start(&["--set", "client.allow_anonymous_connect_without_token=true"]);
    let stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let url = format!("ws://{}/connection/websocket", server.address);
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    socket.send(Message::text(r#"{"id":1,"connect":{}}"#)).await.unwrap();
    let reply = socket.next().await.unwrap().unwrap();
    assert!(reply.to_text().unwrap().contains("\"client\""), "{reply}");

    server.signal("TERM");
    let close = loop {
        match tokio::time::timeout(DEADLINE, socket.next()).await.expect("a close frame") {
            Some(Ok(Message::Close(Some(frame)))) => break frame,
            Some(Ok(_)) => {}
            other => panic!("no close frame: {other:?}"),
        }
    };
    assert_eq!(u16::from(close.code), 3001);
    drop(socket);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn development_mode_serves_its_page_and_prints_its_secrets_once() {
    let mut command = plenum(&["serve", "--dev", "--port", "0", "--internal-port", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let page = lines.find_map(|line| Some(line.split_once("http://")?.1.split_once('/')?.0.to_owned())).unwrap();
    assert!(page.starts_with("127.0.0.1:"), "{page}");
    let secret = lines.find(|line| line.contains("token secret")).unwrap();
    assert!(secret.split_whitespace().nth(2).unwrap().len() >= 40, "{secret}");
    let mut stream = TcpStream::connect(&page).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("<html"), "{reply}");
    child.kill().unwrap();
    child.wait().unwrap();
}
