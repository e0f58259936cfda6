//! Over a real loopback server: what a caller without our libraries sees.

use std::sync::Arc;
use std::time::Duration;

use plenum_api::Page;
use plenum_http::{Router, Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fixture::{KEY, fixture};

struct Running {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn serve() -> Running {
    let fixture = fixture();
    let router: Router = Arc::new(move |request, _| {
        let (api, operations) = (fixture.api.clone(), fixture.operations.clone());
        Box::pin(async move {
            match request.uri().path() {
                path if api.owns(path) => api.route(request).await,
                path if operations.owns(path) => operations.route(request).await,
                _ => Page.route(&request),
            }
        })
    });
    let server = Server::bind(([127, 0, 0, 1], 0).into(), ServerConfig::default()).unwrap();
    let (address, stop) = (server.local_addr(), CancellationToken::new());
    let task = tokio::spawn(server.run(router, stop.clone(), Duration::from_secs(1)));
    Running { address, stop, task }
}

impl Running {
    /// Sends the request as it is and returns status, head and body.
    async fn exchange(&self, head: &str, body: &str) -> (u16, String, String) {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{head}\r\nHost: test\r\nConnection: close\r\n{length}\r\n{body}");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        let reading = socket.read_to_string(&mut reply);
        tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap().unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn keys_are_taken_where_they_are_published_and_needed_everywhere() {
    let server = serve();
    let body = r#"{"channel":"log:a","data":{}}"#;
    for head in [
        format!("POST /api/publish HTTP/1.1\r\nX-API-Key: {KEY}"),
        format!("POST /api/publish HTTP/1.1\r\nAuthorization: apikey {KEY}"),
        "POST /api/publish?api_key=key+of%20the+tests HTTP/1.1".to_owned(),
    ] {
        let (status, _, reply) = server.exchange(&head, body).await;
        assert_eq!((status, reply.starts_with("{\"result\":{\"offset\":")), (200, true), "{reply}");
    }
    for head in [
        "POST /api/publish HTTP/1.1",
        "POST /api/publish HTTP/1.1\r\nX-API-Key: wrong",
        "POST /api/publish HTTP/1.1\r\nAuthorization: Bearer key of the tests",
        "POST /api/nonsense HTTP/1.1",
        "GET /api/publish HTTP/1.1",
    ] {
        let (status, head, reply) = server.exchange(head, "").await;
        assert_eq!(status, 401, "{reply}");
        assert!(head.contains("www-authenticate: apikey") && reply.contains("\"code\":101"), "{head}\n{reply}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let server = serve();
    let post = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nX-API-Key: {KEY}{more}");
    let large = format!(r#"{{"channel":"log:a","data":"{}"}}"#, "x".repeat(300_000));
    for (head, body, status, named) in [
        (post("/api/nonsense", ""), "{}", 404, "nonsense"),
        (post("/api/", ""), "{}", 404, "no method"),
        (post("/api", ""), "{}", 404, "no method"),
        (post("/api/publish/", ""), "{}", 404, "publish/"),
        (format!("GET /api/publish HTTP/1.1\r\nX-API-Key: {KEY}"), "", 405, "POST"),
        (post("/api/publish", ""), "", 400, "EOF"),
        (post("/api/publish", ""), "{\"channel\": 5}", 400, "invalid type: integer `5`, expected a string"),
        (post("/api/publish", ""), "[", 400, "an object"),
        (post("/api/publish", ""), r#"{"channel":"log:a""#, 400, "EOF"),
        (post("/api/info", ""), "[]", 400, "an object"),
        (post("/api/history", ""), r#"{"channel":"log:a","since":[1,"x"]}"#, 400, "an object"),
        (post("/api/batch", ""), r#"{"commands":[[]]}"#, 400, "an object"),
        (post("/api/publish", ""), large.as_str(), 413, "262144"),
        (post("/api/publish", ""), "{}", 200, "{\"error\":{\"code\":107"),
        (post("/api/publish", "\r\nX-Centrifugo-Error-Mode: transport"), "{}", 400, "{\"code\":107"),
        (
            post("/api/publish", "\r\nX-Centrifugo-Error-Mode: transport"),
            r#"{"channel":"unknown:a","data":1}"#,
            404,
            "{\"code\":102",
        ),
        (
            post("/api/history", "\r\nX-Centrifugo-Error-Mode: transport"),
            r#"{"channel":"log:a","limit":1,"since":{"offset":1,"epoch":"x"}}"#,
            416,
            "{\"code\":112",
        ),
    ] {
        let (given, head_in, reply) = server.exchange(&head, body).await;
        assert!(given == status && reply.contains(named), "{head}\n{given} {head_in}\n{reply}");
        if status == 405 {
            assert!(head_in.contains("allow: post"), "{head_in}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn the_document_the_page_and_the_metrics_need_no_key() {
    let server = serve();
    for (path, holds) in [
        ("/api/openapi.json", "\"openapi\":\"3.1.0\""),
        ("/", "<title>Plenum</title>"),
        ("/centrifuge.js", "Centrifuge"),
        ("/metrics", "plenum_build_info{version="),
        ("/health", "\"status\":\"ok\""),
        ("/livez", "ok"),
    ] {
        let (status, head, body) = server.exchange(&format!("GET {path} HTTP/1.1"), "").await;
        assert!(status == 200 && body.contains(holds), "{path}: {head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        let (status, head, body) = server.exchange(&format!("HEAD {path} HTTP/1.1"), "").await;
        assert_eq!((status, body.as_str()), (200, ""), "{path}: {head}");
    }
    server.stop().await;
}
