//! Sends every message back: the server that the Autobahn test suite runs against.
//!
//! `cargo run -p plenum-websocket --example echo -- 127.0.0.1:9001`

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use plenum_channels::{AcceptError, Link, Outbox, OutboxLimits};
use plenum_http::{Router, Server, ServerConfig};
use plenum_protocol::{Disconnect, Encoding};
use plenum_telemetry::Metrics;
use plenum_websocket::{Door, Endpoint, Framing, Kind, Origins, Websocket, WebsocketConfig};
use tokio_util::sync::CancellationToken;

/// The suite's largest message, and room for several of them.
const MESSAGE: usize = 16 << 20;

struct Echo {
    outbox: Arc<Outbox>,
    kind: Kind,
    opened: bool,
}

impl Endpoint for Echo {
    fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn receive(&mut self, kind: Kind, payload: &[u8]) {
        self.kind = kind;
        let message = Bytes::copy_from_slice(payload);
        if self.opened {
            self.outbox.push(message);
        } else {
            self.opened = true;
            self.outbox.open(message);
        }
    }

    fn wants_frames(&self) -> bool {
        self.outbox.pending_bytes() < MESSAGE
    }

    fn poll(&mut self, _: &mut Context<'_>) {}

    fn on_timer(&mut self) {}

    fn on_flushed(&mut self) {}

    fn end(self, _: Disconnect) {}

    fn framing(&self) -> Framing {
        Framing::Single(self.kind)
    }
}

struct Open;

impl Door for Open {
    type Endpoint = Echo;

    fn accept(&self, _: Link) -> Result<Echo, AcceptError> {
        let outbox = Outbox::new(Encoding::Json, OutboxLimits { max_bytes: 4 * MESSAGE });
        Ok(Echo { outbox: Arc::new(outbox), kind: Kind::Text, opened: false })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: echo ADDRESS:PORT")?.parse()?;
    let config = WebsocketConfig {
        allowed_origins: Origins::new(["*"])?,
        message_size_limit: MESSAGE,
        ..WebsocketConfig::default()
    };
    let websocket = Arc::new(Websocket::new(Open, config, Metrics::new()?));
    let router: Router = {
        let websocket = websocket.clone();
        Arc::new(move |request, remote| {
            let reply = websocket.upgrade(request, remote);
            Box::pin(async move { reply })
        })
    };
    let server = Server::bind(address, ServerConfig::default())?;
    println!("listening on {}", server.local_addr());
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        }
    });
    server.run(router, stop, Duration::from_secs(1)).await;
    Ok(())
}
