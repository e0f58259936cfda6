use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What becomes of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// Nothing passes and nothing is closed, as in a network that drops every packet.
    Stalled,
    /// Connections are closed and new ones, too.
    Cut,
}

/// A TCP proxy on a free loopback port whose link a test can slow down, stall and cut.
pub struct Proxy {
    port: u16,
    flow: watch::Sender<Flow>,
    delay_us: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to `target` (`host:port`), which need not listen yet.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let (flow, watched) = watch::channel(Flow::Open);
        let delay_us = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, target.into(), watched, delay_us.clone()));
        Ok(Proxy { port, flow, delay_us, task })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Each byte arrives this much later, in both directions.
    pub fn set_delay(&self, delay: Duration) {
        self.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// Nothing passes and nothing is closed; what was sent meanwhile arrives after [`restore`](Self::restore).
    pub fn stall(&self) {
        self.flow.send_replace(Flow::Stalled);
    }

    /// Closes every connection and each new one.
    pub fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    /// Traffic passes again.
    pub fn restore(&self) {
        self.flow.send_replace(Flow::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: String, flow: watch::Receiver<Flow>, delay_us: Arc<AtomicU64>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((inbound, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        if *flow.borrow() == Flow::Cut {
            continue;
        }
        connections.spawn(forward(inbound, target.clone(), flow.clone(), delay_us.clone()));
    }
}

async fn forward(inbound: TcpStream, target: String, mut flow: watch::Receiver<Flow>, delay_us: Arc<AtomicU64>) {
    // A stalled network does not let a connection come about.
    if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() {
        return;
    }
    let Ok(outbound) = TcpStream::connect(&target).await else { return };
    // Both are loopback sockets; without it the test is only slower.
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let (client_read, client_write) = inbound.into_split();
    let (server_read, server_write) = outbound.into_split();
    let up = pipe(client_read, server_write, flow.clone(), delay_us.clone());
    let down = pipe(server_read, client_write, flow.clone(), delay_us);
    let mut cut = flow;
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// One direction; a queue between reader and writer keeps the delay from limiting the bandwidth.
async fn pipe(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut flow: watch::Receiver<Flow>,
    delay_us: Arc<AtomicU64>,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_micros(delay_us.load(Ordering::Relaxed));
            if sender.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
