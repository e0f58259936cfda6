//! One client connection.

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use plenum_protocol::{Encoding, Reply, replies};

use super::{Greeting, Listener, Tally};
use crate::websocket::{CLOSE, PING, PONG, first_frame, put_frame, text_frame, upgraded};

/// How far a connection is.
enum Stage {
    /// TCP handshake.
    Connecting,
    /// The opening request is sent.
    Upgrading,
    /// Connect and subscribe are sent; so many replies are missing.
    Greeting { missing: u32 },
    /// All of that is answered.
    Live,
}

pub(super) struct Connection {
    stream: TcpStream,
    stage: Stage,
    greeting: Greeting,
    /// The start of a frame whose end has not come.
    input: Vec<u8>,
    /// What the socket has not taken.
    output: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, greeting: Greeting) -> Self {
        Self { stream, stage: Stage::Connecting, greeting, input: Vec::new(), output: Vec::new() }
    }

    /// Sends bytes, or keeps them until the socket takes them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        if self.output.is_empty() {
            let sent = match self.stream.write(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error).context("cannot write"),
            };
            self.output.extend_from_slice(&bytes[sent..]);
        } else {
            self.output.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The socket takes bytes: the TCP handshake is over, or waiting bytes can go on.
    pub(super) fn on_writable(&mut self, upgrade: &[u8]) -> Result<()> {
        if matches!(self.stage, Stage::Connecting) {
            if let Some(error) = self.stream.take_error()? {
                return Err(error).context("cannot connect");
            }
            self.stage = Stage::Upgrading;
            return self.send(upgrade);
        }
        if !self.output.is_empty() {
            let waiting = std::mem::take(&mut self.output);
            self.send(&waiting)?;
        }
        Ok(())
    }

    /// Reads all there is. `buffer` holds nothing between calls.
    pub(super) fn on_readable(
        &mut self,
        index: usize,
        buffer: &mut [u8],
        tally: &mut Tally,
        listener: &mut impl Listener,
    ) -> Result<()> {
        loop {
            let held = self.input.len();
            buffer[..held].copy_from_slice(&self.input);
            ensure!(held < buffer.len(), "connection {index}: a frame longer than {} bytes", buffer.len());
            let got = match self.stream.read(&mut buffer[held..]) {
                Ok(0) => bail!("connection {index}: the server closed the socket"),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("connection {index}")),
            };
            tally.reads += 1;
            let all = &buffer[..held + got];
            let used = self.take(index, all, tally, listener)?;
            self.input.clear();
            self.input.extend_from_slice(&all[used..]);
            // A short read has emptied the socket: the next edge comes with the next bytes.
            if held + got < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Takes whole frames off the front and says how many bytes they were.
    fn take(&mut self, index: usize, input: &[u8], tally: &mut Tally, listener: &mut impl Listener) -> Result<usize> {
        let mut used = 0;
        if let Stage::Upgrading = self.stage {
            let Some(length) = upgraded(input)? else { return Ok(0) };
            used = length;
            self.stage = Stage::Greeting { missing: self.greeting.replies };
            let frame = std::mem::take(&mut self.greeting.frame);
            self.send(&frame)?;
        }
        while let Some(frame) = first_frame(&input[used..])? {
            used += frame.length;
            match frame.opcode {
                PONG => {}
                PING => {
                    let mut pong = Vec::new();
                    put_frame(PONG, frame.payload, &mut pong);
                    self.send(&pong)?;
                }
                CLOSE => bail!("connection {index}: closed by the server: {}", close_text(frame.payload)),
                _ => {
                    tally.frames += 1;
                    self.messages(index, frame.payload, tally, listener)?;
                }
            }
        }
        Ok(used)
    }

    fn messages(
        &mut self,
        index: usize,
        payload: &[u8],
        tally: &mut Tally,
        listener: &mut impl Listener,
    ) -> Result<()> {
        for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match &mut self.stage {
                // A ping; any other message with nothing in it would be one too.
                _ if line == b"{}" => {
                    tally.pings += 1;
                    self.send(&text_frame(b"{}"))?;
                }
                Stage::Greeting { missing } => {
                    expect_success(line).with_context(|| format!("connection {index}"))?;
                    listener.greeted(index, line);
                    *missing -= 1;
                    if *missing == 0 {
                        self.stage = Stage::Live;
                        tally.live += 1;
                    }
                }
                _ => listener.line(index, line)?,
            }
        }
        Ok(())
    }
}

/// Whether a reply says that its command succeeded.
fn expect_success(line: &[u8]) -> Result<()> {
    for reply in replies(Encoding::Json, line) {
        match reply? {
            Reply::Result { .. } => {}
            other => bail!("refused: {other:?}"),
        }
    }
    Ok(())
}

fn close_text(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => {
            format!("{} {}", u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason))
        }
        _ => "without a code".to_owned(),
    }
}
