//! What the kernel alone takes for the same bytes: the cost below which no server can go.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use mio::{Events, Interest, Poll, Token};

use super::audience::payload;
use crate::report::{Line, Samples, number};

/// Equal parts of a run, each with sockets and threads of its own; the median counts.
const SAMPLES: u64 = 5;

/// CPU µs per delivery of a thread that only calls write(2) with prepared bytes, one call per socket and burst.
#[derive(Args, Clone, Debug)]
pub struct Floor {
    /// Messages in one write.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub burst: u64,
    /// Sockets.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=9000))]
    pub sockets: u64,
    /// Messages to each socket, rounded up to five parts of whole bursts.
    #[arg(long, default_value_t = 1000)]
    pub messages: u64,
}

impl Floor {
    /// With bursts of this size, everything else as it is by default.
    pub fn of(burst: u64) -> Self {
        Self { burst, sockets: 1000, messages: if burst == 1 { 1000 } else { 4000 } }
    }

    /// The command that measures this.
    pub fn command(&self) -> String {
        let Self { burst, sockets, messages } = self;
        format!("plenum-bench floor --burst {burst} --sockets {sockets} --messages {messages}")
    }

    /// Measures.
    pub fn measure(&self) -> Result<Vec<Line>> {
        let data = payload(0, 128);
        let push = format!(r#"{{"push":{{"channel":"bench","pub":{{"data":{}}}}}}}"#, String::from_utf8_lossy(&data));
        let mut burst = vec![0x81, 126];
        burst.extend_from_slice(&(push.len() as u16).to_be_bytes());
        burst.extend_from_slice(push.as_bytes());
        let burst = burst.repeat(usize::try_from(self.burst)?);
        let samples: Result<Vec<_>> = (0..SAMPLES).map(|_| self.sample(&burst)).collect();
        let samples = Samples::new(samples?);
        let how = if self.burst == 1 { "one at a time".to_owned() } else { format!("bursts of {}", self.burst) };
        let name = format!("bare write(2) to {} sockets, {how}", number(self.sockets as f64));
        let bytes = burst.len() as u64 / self.burst;
        let notes = format!("{}; messages of {bytes} bytes, for comparison", samples.spread());
        Ok(vec![Line::new(name, samples.median(), "µs CPU", None).notes(notes)])
    }

    /// CPU µs for each message.
    fn sample(&self, burst: &[u8]) -> Result<f64> {
        let rounds = self.messages.div_ceil(SAMPLES).div_ceil(self.burst);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut readers = Readers::new(listener.local_addr()?);
        let mut writers = Vec::new();
        for _ in 0..self.sockets {
            readers.connect()?;
            let socket = listener.accept()?.0;
            socket.set_nodelay(true)?;
            writers.push(socket);
        }
        let (go, start) = mpsc::channel::<()>();
        let bytes = burst.len();
        let burst = burst.to_vec();
        let writer = std::thread::spawn(move || write(writers, &burst, &start));
        for _ in 0..rounds {
            go.send(()).map_err(|_| anyhow!("the writer ended"))?;
            readers.take(bytes * usize::try_from(self.sockets)?)?;
        }
        drop(go);
        let nanos = writer.join().map_err(|_| anyhow!("the writer panicked"))??;
        Ok(nanos as f64 / 1000.0 / (rounds * self.burst * self.sockets) as f64)
    }
}

/// Writes the burst to each socket whenever told to; CPU nanoseconds of this thread in doing so.
fn write(mut sockets: Vec<TcpStream>, burst: &[u8], start: &mpsc::Receiver<()>) -> Result<u64> {
    let before = thread_nanos()?;
    while start.recv().is_ok() {
        for socket in &mut sockets {
            let sent = socket.write(burst)?;
            ensure!(sent == burst.len(), "a socket took only {sent} bytes");
        }
    }
    Ok(thread_nanos()? - before)
}

fn thread_nanos() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// The other ends.
struct Readers {
    server: SocketAddr,
    sockets: Vec<mio::net::TcpStream>,
    poll: Option<Poll>,
    buffer: Vec<u8>,
}

impl Readers {
    fn new(server: SocketAddr) -> Self {
        Self { server, sockets: Vec::new(), poll: None, buffer: vec![0; 64 * 1024] }
    }

    fn connect(&mut self) -> Result<()> {
        let stream = TcpStream::connect(self.server)?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let poll = match &mut self.poll {
            Some(poll) => poll,
            none => none.insert(Poll::new()?),
        };
        poll.registry().register(&mut stream, Token(self.sockets.len()), Interest::READABLE)?;
        self.sockets.push(stream);
        Ok(())
    }

    /// Reads until `bytes` have come.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut got = 0;
        while got < bytes {
            let poll = self.poll.as_mut().ok_or_else(|| anyhow!("no sockets"))?;
            poll.poll(&mut events, Some(Duration::from_secs(10)))?;
            ensure!(!events.is_empty(), "{got} of {bytes} bytes came");
            for event in &events {
                got += self.sockets[event.token().0].read(&mut self.buffer)?;
            }
        }
        Ok(())
    }
}
