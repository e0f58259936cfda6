//! A session over TLS.
#![allow(clippy::unwrap_used)] // Functions that tests share say what they expect by unwrapping.

mod common;

use std::sync::Arc;

use common::*;
use futures_util::{SinkExt, StreamExt};
use plenum_http::Tls;
use rcgen::generate_simple_self_signed;
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn messages_of_every_size_pass_and_the_end_is_orderly() {
    let pair = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = std::env::temp_dir().join(format!("plenum-websocket-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let tls = Tls::load(&certificate, &key).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();

    let node = node(|settings| settings.client.queue_max_size = 16 << 20);
    let rig = serve_with(node.clone(), config(), node.metrics().clone(), Some(Arc::new(tls)));
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let (mut client, _) = client_async(rig.request(""), stream).await.unwrap();

    let commands = "{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"a\"}}";
    client.send(Message::text(commands)).await.unwrap();
    let mut lines = Vec::new();
    for size in [1, 10_000, 60_000] {
        let publish = format!("{{\"id\":3,\"publish\":{{\"channel\":\"a\",\"data\":\"{}\"}}}}", "z".repeat(size));
        client.send(Message::text(publish)).await.unwrap();
    }
    // Two replies, and a reply and a publication for each publish.
    while lines.len() < 8 {
        match timeout(LONG, client.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => lines.extend(text.lines().map(str::len)),
            other => panic!("not text: {other:?}"),
        }
    }
    assert!(
        lines.iter().any(|length| *length > 60_000) && lines.iter().any(|length| (10_000..11_000).contains(length))
    );
    client.close(None).await.unwrap();
    while let Some(message) = timeout(LONG, client.next()).await.unwrap() {
        message.expect("the stream ends without close_notify");
    }
    timeout(LONG, rig.websocket.closed()).await.unwrap();
}
