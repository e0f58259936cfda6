//! The servers that are measured. They tell their port, then obey orders on standard input.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use plenum_channels::memory::{MemoryControl, MemoryLog, MemoryPresence};
use plenum_channels::{
    AcceptError, ConnectionClaims, Link, Node, Outbox, OutboxLimits, Parts, Publish, Settings, SubscriptionClaims,
    TokenError, Tokens, Work,
};
use plenum_http::{Router, Server, ServerConfig};
use plenum_protocol::{Disconnect, Encoding};
use plenum_telemetry::Metrics;
use plenum_websocket::{Door, Endpoint, Kind, Websocket, WebsocketConfig};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig as TungsteniteConfig;
use tokio_util::sync::CancellationToken;

use crate::Failure;

/// 128 bytes with one `#`.
fn message() -> Bytes {
    Bytes::from(format!("{{\"push\":{{\"channel\":\"all\",\"pub\":{{\"data\":\"#{}\"}}}}}}", "d".repeat(80)))
}

type Outboxes = Arc<Mutex<Vec<Arc<Outbox>>>>;

pub fn run(kind: &str) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let outboxes = Outboxes::default();
        match kind {
            "session" => {
                let node = node()?;
                serve(node.clone())?;
                return orders(|burst| {
                    let node = node.clone();
                    async move {
                        for _ in 0..burst {
                            node.publish(publication()).await?;
                        }
                        Ok(())
                    }
                })
                .await;
            }
            "thin" => serve(Sinks(outboxes.clone()))?,
            "tungstenite-1024" => tungstenite(1024, outboxes.clone()).await?,
            _ => tungstenite(128 * 1024, outboxes.clone()).await?,
        }
        let message = message();
        orders(|burst| {
            for outbox in outboxes.lock().iter() {
                outbox.push_all((0..burst).map(|_| message.clone()));
            }
            std::future::ready(Ok(()))
        })
        .await
    })
}

async fn orders<F: Future<Output = Result<(), Failure>>>(mut obey: impl FnMut(usize) -> F) -> Result<(), Failure> {
    let (lines, mut orders) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(order) = orders.recv().await {
        let burst = order.strip_prefix("burst ").ok_or("unknown order")?.parse()?;
        obey(burst).await?;
        println!("done");
    }
    Ok(())
}

fn serve<D: Door>(door: D) -> Result<(), Failure> {
    let websocket = Websocket::new(door, WebsocketConfig::default(), Metrics::new()?);
    let router: Router = Arc::new(move |request, remote| {
        let reply = websocket.upgrade(request, remote);
        Box::pin(async move { reply })
    });
    let server = Server::bind("127.0.0.1:0".parse()?, ServerConfig::default())?;
    tell(server.local_addr().port())?;
    tokio::spawn(server.run(router, CancellationToken::new(), std::time::Duration::ZERO));
    Ok(())
}

fn tell(port: u16) -> Result<(), Failure> {
    println!("{port}");
    Ok(std::io::stdout().flush()?)
}

/// Connections without a session.
struct Sinks(Outboxes);

struct Sink(Arc<Outbox>);

fn outbox(outboxes: &Outboxes) -> Arc<Outbox> {
    let outbox = Arc::new(Outbox::new(Encoding::Json, OutboxLimits { max_bytes: 1 << 20 }));
    outbox.open(Bytes::from_static(b"{}"));
    outboxes.lock().push(outbox.clone());
    outbox
}

impl Door for Sinks {
    type Endpoint = Sink;

    fn accept(&self, _: Link) -> Result<Sink, AcceptError> {
        Ok(Sink(outbox(&self.0)))
    }
}

impl Endpoint for Sink {
    fn outbox(&self) -> &Arc<Outbox> {
        &self.0
    }

    fn receive(&mut self, _: Kind, _: &[u8]) {}

    fn wants_frames(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) {}

    fn on_timer(&mut self) {}

    fn on_flushed(&mut self) {}

    fn end(self, _: Disconnect) {}
}

async fn tungstenite(read_buffer: usize, outboxes: Outboxes) -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    tell(listener.local_addr()?.port())?;
    let config = TungsteniteConfig::default().read_buffer_size(read_buffer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let outboxes = outboxes.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Ok(socket) = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await {
                    tokio::spawn(pump(socket, outbox(&outboxes)));
                }
            });
        }
    });
    Ok(())
}

/// The same queue and the same coalescing as the thin connection, on tokio-tungstenite's stream.
async fn pump(mut socket: WebSocketStream<TcpStream>, outbox: Arc<Outbox>) {
    loop {
        let mut work = Work::default();
        let ready = std::future::poll_fn(|cx| {
            while let Poll::Ready(message) = socket.poll_next_unpin(cx) {
                if !matches!(message, Some(Ok(_))) {
                    return Poll::Ready(false);
                }
            }
            outbox.poll_work(cx, &mut work, 64, 64 * 1024).map(|()| true)
        });
        if !ready.await {
            return;
        }
        let (count, bytes) = (work.messages.len(), work.messages.iter().map(Bytes::len).sum());
        for message in work.messages.drain(..) {
            if socket.feed(Message::binary(message)).await.is_err() {
                return;
            }
        }
        if socket.flush().await.is_err() {
            return;
        }
        outbox.written(count, bytes);
    }
}

struct NoTokens;

#[async_trait::async_trait]
impl Tokens for NoTokens {
    async fn connection(&self, _: &str) -> Result<ConnectionClaims, TokenError> {
        Err(TokenError::Expired)
    }

    async fn subscription(&self, _: &str) -> Result<SubscriptionClaims, TokenError> {
        Err(TokenError::Expired)
    }
}

fn node() -> Result<Arc<Node>, Failure> {
    let mut settings = Settings::default();
    settings.client.insecure = true;
    let node = Node::new(Parts {
        settings,
        log: MemoryLog::single(),
        presence: MemoryPresence::single(),
        control: MemoryControl::single(),
        tokens: Arc::new(NoTokens),
        metrics: Metrics::new()?,
        name: "measure".into(),
        version: "0".into(),
    })?;
    node.start();
    Ok(node)
}

fn publication() -> Publish {
    Publish {
        channel: "all".into(),
        data: Bytes::from(format!("\"#{}\"", "d".repeat(80))),
        tags: Default::default(),
        idempotency_key: String::new(),
        skip_history: false,
        version: 0,
        version_epoch: String::new(),
    }
}
