//! Many client connections in one thread: they shake hands, connect, subscribe, answer pings and hand over what comes.
//!
//! Cheap on purpose, since clients and server share the machine: edge-triggered polling, one read buffer for all, frames
//! prepared once, lines compared rather than parsed.

mod connection;
mod greeting;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use connection::Connection;
pub use greeting::{Greeting, commands};

/// Shared read buffer: what one connection may have waiting before it takes a second read.
const BUFFER: usize = 256 * 1024;

/// Where the server listens for WebSocket connections.
const PATH: &str = "/connection/websocket";

/// Who takes the messages of connections whose greeting is answered.
pub trait Listener {
    /// One message in its JSON form, not a ping.
    ///
    /// # Errors
    /// The message should not have come; the measurement ends.
    fn line(&mut self, connection: usize, line: &[u8]) -> Result<()>;

    /// One reply to a greeting, which succeeded.
    fn greeted(&mut self, _connection: usize, _line: &[u8]) {}
}

/// Expects nothing but pings.
pub struct Quiet;

impl Listener for Quiet {
    fn line(&mut self, connection: usize, line: &[u8]) -> Result<()> {
        bail!("connection {connection} got what nobody sent: {}", String::from_utf8_lossy(line))
    }
}

/// What the connections saw, all together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Connections whose greeting is answered.
    pub live: usize,
    /// Pings of the protocol, answered.
    pub pings: u64,
    /// WebSocket frames with messages, greetings included.
    pub frames: u64,
    /// Reads that gave something.
    pub reads: u64,
}

/// Client connections to one server.
pub struct Swarm {
    server: SocketAddr,
    upgrade: Vec<u8>,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    tally: Tally,
}

impl Swarm {
    /// No connections yet.
    pub fn new(server: SocketAddr) -> Result<Self> {
        Ok(Self {
            server,
            upgrade: crate::websocket::upgrade_request(&server.to_string(), PATH),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            buffer: vec![0; BUFFER],
            tally: Tally::default(),
        })
    }

    /// What was seen so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Opens `count` more connections, `concurrent` at a time, and waits until each greeting is answered.
    ///
    /// # Errors
    /// A refusal, or `time` is over.
    pub fn open(
        &mut self,
        count: usize,
        concurrent: usize,
        time: Duration,
        mut greeting: impl FnMut(usize) -> Greeting,
        listener: &mut impl Listener,
    ) -> Result<()> {
        let all = self.connections.len() + count;
        let deadline = Instant::now() + time;
        while self.tally.live < all {
            while self.connections.len() < all && self.connections.len() - self.tally.live < concurrent {
                let greeting = greeting(self.connections.len());
                self.connect(greeting)?;
            }
            self.turn(Duration::from_millis(100), listener)?;
            ensure!(Instant::now() < deadline, "{} of {all} connections after {time:?}", self.tally.live);
        }
        Ok(())
    }

    /// Sends one frame.
    pub fn send(&mut self, connection: usize, frame: &[u8]) -> Result<()> {
        self.connections[connection].send(frame)
    }

    /// Takes what has come, waiting up to `wait` for something.
    pub fn turn(&mut self, wait: Duration, listener: &mut impl Listener) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &self.events {
            let Token(index) = event.token();
            let connection = &mut self.connections[index];
            if event.is_writable() {
                connection.on_writable(&self.upgrade)?;
            }
            if event.is_readable() {
                connection.on_readable(index, &mut self.buffer, &mut self.tally, listener)?;
            }
        }
        Ok(())
    }

    /// Takes what comes, for a while.
    pub fn stay(&mut self, time: Duration, listener: &mut impl Listener) -> Result<()> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.turn(left, listener)?;
        }
    }

    fn connect(&mut self, greeting: Greeting) -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        // Ends by a reset: closed in order, each port would wait for a minute, and looking for a free one among
        // thousands of those takes the kernel longer than everything that is measured.
        socket.set_linger(Some(Duration::ZERO))?;
        // Linux's EINPROGRESS has no name of its own in `io::ErrorKind` on all toolchains.
        const IN_PROGRESS: i32 = 115;
        match socket.connect(&self.server.into()) {
            Err(error) if error.raw_os_error() != Some(IN_PROGRESS) => return Err(error.into()),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let token = Token(self.connections.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.connections.push(Connection::new(stream, greeting));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
