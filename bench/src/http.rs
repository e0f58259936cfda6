//! HTTP/1.1 clients with kept connections, for the server API.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::Value;

use crate::server::API_KEY;

/// Most bytes of a response.
const BUFFER: usize = 1024 * 1024;

/// A request of the server API, whole.
pub fn request(host: SocketAddr, method: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /api/{method} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {API_KEY}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Whether `/readyz` says so.
pub fn is_ready(server: SocketAddr) -> Result<bool> {
    let mut stream = std::net::TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

/// The body of the response that `input` is; none while it is not whole.
///
/// # Errors
/// Any status but 200, or a body without a length.
fn body(input: &[u8]) -> Result<Option<&[u8]>> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&input[..end]).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "the API answered {}", String::from_utf8_lossy(input));
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("no Content-Length")?;
    let length: usize = length.trim().parse()?;
    Ok(input.get(end + 4..end + 4 + length))
}

/// Counts the commands that a response says were carried out.
///
/// # Errors
/// One of them failed.
fn done(body: &[u8]) -> Result<u64> {
    let value: Value = serde_json::from_slice(body).context("the response is not JSON")?;
    let failed = |reply: &Value| reply.get("error").is_some();
    match value.get("replies").and_then(Value::as_array) {
        Some(replies) if !replies.iter().any(failed) => Ok(replies.len() as u64),
        None if value.get("result").is_some() && !failed(&value) => Ok(1),
        _ => bail!("the API answered {}", String::from_utf8_lossy(body)),
    }
}

/// One connection that sends a request and waits for the response.
pub struct Caller {
    stream: std::net::TcpStream,
    input: Vec<u8>,
}

impl Caller {
    /// Connects.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let stream = std::net::TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, input: vec![0; BUFFER] })
    }

    /// Sends a request.
    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request)?)
    }

    /// Waits for its response and counts the commands carried out.
    pub fn receive(&mut self) -> Result<u64> {
        let mut length = 0;
        loop {
            let got = self.stream.read(&mut self.input[length..]).context("no response")?;
            ensure!(got > 0, "the API closed the connection");
            length += got;
            if let Some(body) = body(&self.input[..length])? {
                return done(body);
            }
        }
    }
}

/// What [`load`] did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Commands carried out.
    pub commands: u64,
    /// Time from first request to last response.
    pub time: Duration,
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
}

/// Sends `requests` requests over kept connections, one connection for each of `each`'s requests, which it repeats; each
/// connection has one request under way. Every response is checked: the first in full, others in full where they
/// differ from it.
///
/// # Errors
/// A request failed, or `limit` is over.
pub fn load(server: SocketAddr, each: Vec<Vec<u8>>, requests: u64, limit: Duration) -> Result<Load> {
    let mut poll = Poll::new()?;
    let mut connections = Vec::with_capacity(each.len());
    for (index, request) in each.into_iter().enumerate() {
        let stream = std::net::TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        connections.push(Connection { stream, request, sent: 0, input: Vec::new() });
    }
    let mut known: Option<(Vec<u8>, u64)> = None;
    let mut events = Events::with_capacity(256);
    let mut buffer = vec![0; BUFFER];
    let (start, mut started, mut ended, mut commands) = (Instant::now(), 0, 0, 0);
    for connection in connections.iter_mut().take(usize::try_from(requests)?) {
        started += 1;
        connection.write()?;
    }
    while ended < requests {
        match poll.poll(&mut events, Some(Duration::from_millis(200))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_writable() && connection.sent > 0 && connection.sent < connection.request.len() {
                connection.write()?;
            }
            let Some(body) = connection.read(&mut buffer)? else { continue };
            commands += match &known {
                Some((same, count)) if *same == body => *count,
                _ => {
                    let count = done(&body)?;
                    known = known.or(Some((body, count)));
                    count
                }
            };
            ended += 1;
            if started < requests {
                started += 1;
                connection.sent = 0;
                connection.write()?;
            }
        }
        ensure!(start.elapsed() < limit, "{ended} of {requests} requests after {limit:?}");
    }
    Ok(Load { commands, time: start.elapsed() })
}

impl Connection {
    fn write(&mut self) -> Result<()> {
        match self.stream.write(&self.request[self.sent..]) {
            Ok(sent) => self.sent += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("cannot write to the API"),
        }
        Ok(())
    }

    /// The body of the response once it is whole.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<Vec<u8>>> {
        let got = match self.stream.read(buffer) {
            Ok(0) => bail!("the API closed a connection"),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("cannot read from the API"),
        };
        if self.input.is_empty()
            && let Some(body) = body(&buffer[..got])?
        {
            return Ok(Some(body.to_vec()));
        }
        self.input.extend_from_slice(&buffer[..got]);
        let body = body(&self.input)?.map(<[u8]>::to_vec);
        if body.is_some() {
            self.input.clear();
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_cut_by_their_length() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"result\":{}}";
        assert_eq!(body(response).unwrap(), Some(&b"{\"result\":{}}"[..]));
        assert_eq!(body(&response[..response.len() - 1]).unwrap(), None);
        assert!(body(b"HTTP/1.1 401 Unauthorized\r\n\r\n").is_err());
    }

    #[test]
    fn only_success_counts() {
        assert_eq!(done(br#"{"result":{}}"#).unwrap(), 1);
        assert_eq!(done(br#"{"replies":[{"publish":{}},{"publish":{}}]}"#).unwrap(), 2);
        assert!(done(br#"{"error":{"code":102}}"#).is_err());
        assert!(done(br#"{"replies":[{"publish":{}},{"error":{"code":102}}]}"#).is_err());
        assert!(done(b"{}").is_err());
    }
}
