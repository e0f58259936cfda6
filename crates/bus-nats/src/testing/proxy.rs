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

/// How slow the link is.
#[derive(Default)]
struct Pace {
    delay_us: AtomicU64,
    /// Bytes a second in each direction; 0 for as many as come.
    rate: AtomicU64,
}

/// Bytes passed on at once on a link with a limited rate.
const PIECE: usize = 4096;

/// A TCP proxy on a free loopback port whose link a test can slow down, stall and cut.
pub struct Proxy {
    port: u16,
    flow: watch::Sender<Flow>,
    pace: Arc<Pace>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to `target` (`host:port`), which need not listen yet.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let (flow, watched) = watch::channel(Flow::Open);
        let pace = Arc::new(Pace::default());
        let task = tokio::spawn(accept(listener, target.into(), watched, pace.clone()));
        Ok(Proxy { port, flow, pace, task })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Each byte arrives this much later, in both directions.
    pub fn set_delay(&self, delay: Duration) {
        self.pace.delay_us.store(delay.as_micros() as u64, Ordering::Relaxed);
    }

    /// At most this many bytes pass in a second, in each direction; 0 for no limit. What is more waits in the proxy.
    pub fn set_rate(&self, bytes: u64) {
        self.pace.rate.store(bytes, Ordering::Relaxed);
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

async fn accept(listener: TcpListener, target: String, flow: watch::Receiver<Flow>, pace: Arc<Pace>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((inbound, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        if *flow.borrow() == Flow::Cut {
            continue;
        }
        connections.spawn(forward(inbound, target.clone(), flow.clone(), pace.clone()));
    }
}

async fn forward(inbound: TcpStream, target: String, mut flow: watch::Receiver<Flow>, pace: Arc<Pace>) {
    // A stalled network does not let a connection come about.
    if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() {
        return;
    }
    let Ok(outbound) = TcpStream::connect(&target).await else { return };
    // Both are loopback sockets; without it the test is only slower.
    let _ = (inbound.set_nodelay(true), outbound.set_nodelay(true));
    let (client_read, client_write) = inbound.into_split();
    let (server_read, server_write) = outbound.into_split();
    let up = pipe(client_read, server_write, flow.clone(), pace.clone());
    let down = pipe(server_read, client_write, flow.clone(), pace);
    let mut cut = flow;
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = cut.wait_for(|flow| *flow == Flow::Cut) => {}
    }
}

/// One direction; a queue between reader and writer keeps the delay from limiting the bandwidth.
async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>, pace: Arc<Pace>) {
    let pace = &pace;
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_micros(pace.delay_us.load(Ordering::Relaxed));
            if sender.send((due, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            let rate = pace.rate.load(Ordering::Relaxed);
            for piece in bytes.chunks(if rate == 0 { bytes.len() } else { PIECE }) {
                // What a stalled network holds is lost when it is cut.
                let passes = flow.wait_for(|flow| *flow != Flow::Stalled).await.is_ok_and(|flow| *flow == Flow::Open);
                if !passes || to.write_all(piece).await.is_err() {
                    return;
                }
                if rate > 0 {
                    tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
                }
            }
        }
    };
    tokio::join!(read, write);
}
