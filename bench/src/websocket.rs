//! The client's side of RFC 6455, as little of it as a measurement needs.

use anyhow::{Result, bail, ensure};

/// Text message.
pub const TEXT: u8 = 1;
const BINARY: u8 = 2;
/// Close.
pub const CLOSE: u8 = 8;
/// Ping.
pub const PING: u8 = 9;
/// Pong.
pub const PONG: u8 = 10;

/// Nonce of the handshake, the one of RFC 6455, section 1.3; what servers answer to it stands there too.
const NONCE: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Any mask does for a client that is not a browser; it is not zero, so that the server has its work with it.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The opening request.
pub fn upgrade_request(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {NONCE}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// Length of the server's answer to the opening request; none while it is not whole.
///
/// # Errors
/// The answer is not the acceptance of the handshake.
pub fn upgraded(input: &[u8]) -> Result<Option<usize>> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&input[..end]);
    if !head.starts_with("HTTP/1.1 101 ") || !head.contains(ACCEPT) {
        bail!("handshake refused: {}", String::from_utf8_lossy(&input[..input.len().min(600)]));
    }
    Ok(Some(end + 4))
}

/// Appends a masked frame.
pub fn put_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A masked text frame.
pub fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    put_frame(TEXT, payload, &mut out);
    out
}

/// A frame of the server.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    /// What it is.
    pub opcode: u8,
    /// What it holds.
    pub payload: &'a [u8],
    /// Its length on the wire.
    pub length: usize,
}

/// The first frame of `input`; none while it is not whole.
///
/// # Errors
/// A frame that this server has no reason to send: masked, fragmented, or with reserved bits.
pub fn first_frame(input: &[u8]) -> Result<Option<Frame<'_>>> {
    let &[first, second, ref rest @ ..] = input else { return Ok(None) };
    ensure!(first & 0xf0 == 0x80 && second & 0x80 == 0, "unexpected frame head {first:02x} {second:02x}");
    let opcode = first & 0x0f;
    ensure!(matches!(opcode, TEXT | BINARY | CLOSE | PING | PONG), "unexpected opcode {opcode}");
    let (length, head): (usize, usize) = match (second, rest) {
        (126, &[a, b, ..]) => (usize::from(u16::from_be_bytes([a, b])), 4),
        (127, &[a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([a, b, c, d, e, f, g, h]) as usize, 10),
        (126 | 127, _) => return Ok(None),
        (short, _) => (usize::from(short), 2),
    };
    Ok(input.get(head..head.saturating_add(length)).map(|payload| Frame { opcode, payload, length: head + length }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmasked(payload: &[u8]) -> Vec<u8> {
        let mut frame = text_frame(payload);
        let head = frame.len() - payload.len() - 4;
        frame.drain(head..head + 4);
        frame[1] &= 0x7f;
        let start = frame.len() - payload.len();
        frame.truncate(start);
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn frames_of_all_lengths() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut input = unmasked(&payload);
            let whole = input.len();
            input.extend_from_slice(b"\x81");
            let frame = first_frame(&input).unwrap().unwrap();
            assert_eq!((frame.opcode, frame.payload, frame.length), (TEXT, payload.as_slice(), whole));
            assert_eq!(first_frame(&input[..whole - 1]).unwrap(), None);
        }
        assert_eq!(first_frame(b"\x81").unwrap(), None);
    }

    #[test]
    fn masked_frames_read_back() {
        let frame = text_frame(b"hello");
        let unmasked: Vec<u8> = frame[6..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!((&frame[..2], unmasked.as_slice()), (&b"\x81\x85"[..], &b"hello"[..]));
    }

    #[test]
    fn strange_frames_are_errors() {
        for input in [b"\x01\x00", b"\xc1\x00", b"\x81\x80", b"\x83\x00"] {
            assert!(first_frame(input).is_err(), "{input:x?}");
        }
    }

    #[test]
    fn the_handshake_needs_the_right_answer() {
        let good = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n\r\nrest");
        assert_eq!(upgraded(good.as_bytes()).unwrap(), Some(good.len() - 4));
        assert_eq!(upgraded(&good.as_bytes()[..20]).unwrap(), None);
        assert!(upgraded(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(upgraded(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").is_err());
    }
}
