//! What a connection costs: this crate's own against tokio-tungstenite's `WebSocketStream`, and with a session behind it.
//!
//! `cargo run --profile fast -p plenum-websocket --example measure` prints a table. Each server is a process of its own;
//! memory is its `RssAnon`, CPU time the kernel's account of it.

mod server;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const WARM: usize = 500;
const CONNECTIONS: usize = 10_000;
const LISTENERS: usize = 1_000;
const DELIVERIES: usize = 640_000;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("server") => server::run(&arguments.next().ok_or("which server?")?),
        None => table(),
        Some(other) => Err(format!("unknown argument {other}").into()),
    }
}

fn table() -> Result<(), Failure> {
    println!(
        "| server | bytes per idle connection | µs CPU per delivery at 1 | at 8 | at 32 | µs CPU per handshake | µs CPU per connection and idle second |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kind in ["thin", "tungstenite-1024", "tungstenite-default", "session"] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        println!("{}", runtime.block_on(measure(kind))?);
    }
    Ok(())
}

async fn measure(kind: &str) -> Result<String, Failure> {
    let server = Server::start(kind)?;
    let received = Arc::new(AtomicU64::new(0));
    open(&server, WARM, &received).await?;
    let (before, cpu) = (server.settled().await?, server.cpu()?);
    open(&server, CONNECTIONS, &received).await?;
    let handshake = (server.cpu()? - cpu).as_secs_f64() * 1e6 / CONNECTIONS as f64;
    let bytes = (server.settled().await? - before) / CONNECTIONS as u64;
    let (cpu, start) = (server.cpu()?, Instant::now());
    // One interval of the server's pings.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let idle = (server.cpu()? - cpu).as_secs_f64() * 1e6 / start.elapsed().as_secs_f64() / (WARM + CONNECTIONS) as f64;
    drop(server);

    let mut server = Server::start(kind)?;
    let received = Arc::new(AtomicU64::new(0));
    open(&server, LISTENERS, &received).await?;
    let mut line = format!("| {kind} | {bytes} |");
    for burst in [1, 8, 32] {
        let rounds = DELIVERIES / LISTENERS / burst;
        received.store(0, Ordering::Relaxed);
        let cpu = server.cpu()?;
        for _ in 0..rounds {
            let before = received.load(Ordering::Relaxed);
            server.order(&format!("burst {burst}"))?;
            // The next burst follows when this one has arrived.
            while received.load(Ordering::Relaxed) < before + (burst * LISTENERS) as u64 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let micros = (server.cpu()? - cpu).as_secs_f64() * 1e6 / (rounds * burst * LISTENERS) as f64;
        line += &format!(" {micros:.2} |");
    }
    Ok(format!("{line} {handshake:.0} | {idle:.2} |"))
}

/// Opens connections that count the messages they get.
async fn open(server: &Server, count: usize, received: &Arc<AtomicU64>) -> Result<(), Failure> {
    for n in 0..count {
        // Ports of closed connections rest for a minute: each server's clients come from addresses of their own.
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, server.number, 1 + (n / 5000) as u8], 0)))?;
        let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], server.port))).await?;
        stream
            .write_all(
                b"GET /connection/websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await?;
        read_until(&mut stream, b"\r\n\r\n").await?;
        if server.session {
            let hello = b"{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"all\"}}";
            stream.write_all(&[&[0x81, 0x80 | hello.len() as u8, 0, 0, 0, 0], &hello[..]].concat()).await?;
            read_until(&mut stream, b"\"id\":2").await?;
        }
        let received = received.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => {
                        // Each message holds this byte once.
                        let messages = buffer[..read].iter().filter(|byte| **byte == b'#').count();
                        received.fetch_add(messages as u64, Ordering::Relaxed);
                        // The server's ping is an empty reply, its answer an empty command.
                        if buffer[..read].ends_with(b"\x81\x02{}") {
                            let _ = stream.try_write(b"\x81\x82\0\0\0\0{}");
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
    }
    Ok(())
}

async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Result<(), Failure> {
    let mut answer = Vec::new();
    while !answer.windows(end.len()).any(|window| window == end) {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await? {
            0 => return Err(format!("closed: {}", String::from_utf8_lossy(&answer)).into()),
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(())
}

struct Server {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: u16,
    session: bool,
    /// Counts the servers of this run, from 1.
    number: u8,
}

impl Server {
    fn start(kind: &str) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["server", kind])
            .env("_RJEM_MALLOC_CONF", "dirty_decay_ms:500,muzzy_decay_ms:500,background_thread:true")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().ok_or("no stdin")?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        static NUMBER: AtomicU8 = AtomicU8::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Self { child, orders, answers, port: line.trim().parse()?, session: kind == "session", number })
    }

    fn order(&mut self, order: &str) -> Result<(), Failure> {
        writeln!(self.orders, "{order}")?;
        self.answers.read_line(&mut String::new())?;
        Ok(())
    }

    /// User memory after the allocator has given back what was freed.
    async fn settled(&self) -> Result<u64, Failure> {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon")?;
        Ok(line.split_whitespace().nth(1).ok_or("no figure")?.parse::<u64>()? * 1024)
    }

    /// User and system time so far, in the kernel's ticks of 10 ms.
    fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
