//! Incremental decoder of client frames.

use std::borrow::Cow;
use std::mem;

use super::mask::unmask;
use super::{Event, FrameError, Kind, Opcode};

/// Longest header of a masked frame: two bytes, a length of eight, a key of four.
const MAX_HEADER: usize = 14;

/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// Decodes a client's bytes, however they are split, and keeps only what is incomplete: between messages it holds no
/// heap memory.
///
/// Bad bytes are refused as soon as they are seen, also in the middle of a message. After an error it is not used again.
#[derive(Debug)]
pub(crate) struct Decoder {
    partial: Option<Box<Partial>>,
    max_message: usize,
}

/// A message, frame or header of which something is missing.
#[derive(Debug, Default)]
struct Partial {
    /// Header bytes that do not make a header yet.
    head: [u8; MAX_HEADER],
    head_length: usize,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// The kind of the data message that is under way, and its payload so far.
    kind: Option<Kind>,
    message: Vec<u8>,
    /// How much of a text message is known to be UTF-8; ends at a character.
    valid: usize,
    /// The payload so far of a control frame.
    control: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    last: bool,
    opcode: Opcode,
    key: [u8; 4],
    /// Payload bytes that are still missing.
    missing: usize,
}

impl Decoder {
    /// Refuses messages of more than `max_message` bytes.
    pub(crate) fn new(max_message: usize) -> Self {
        Self { partial: None, max_message }
    }

    /// Decodes up to one event from the front of `input`: how many bytes it took, and the event unless bytes are missing
    /// (then all of `input` was taken). The taken bytes may be changed.
    pub(crate) fn decode<'a>(&mut self, input: &'a mut [u8]) -> Result<(usize, Option<Event<'a>>), FrameError> {
        if input.is_empty() {
            return Ok((0, None));
        }
        match self.partial.take() {
            Some(partial) => self.resume(partial, input),
            None => self.fresh(input),
        }
    }

    #[cfg(test)]
    pub(super) fn holds_memory(&self) -> bool {
        self.partial.is_some()
    }

    /// Nothing is under way: a whole message is handed out without a copy.
    fn fresh<'a>(&mut self, input: &'a mut [u8]) -> Result<(usize, Option<Event<'a>>), FrameError> {
        if let Some((frame, start)) = parse_header(input)? {
            let whole = frame.last && frame.opcode != Opcode::Continuation;
            if whole && input.len() - start >= frame.missing {
                self.check_length(0, frame)?;
                let taken = start + frame.missing;
                let payload = &mut input[start..taken];
                unmask(payload, frame.key);
                return Ok((taken, Some(event(frame.opcode, Cow::Borrowed(payload))?)));
            }
        }
        self.resume(Box::default(), input)
    }

    fn resume<'a>(
        &mut self,
        mut partial: Box<Partial>,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Event<'a>>), FrameError> {
        let mut taken = 0;
        loop {
            let frame = match partial.frame {
                Some(frame) => frame,
                None => {
                    let Some(frame) = partial.take_header(input, &mut taken)? else { break };
                    self.start(&mut partial, frame)?
                }
            };
            let rest = &mut input[taken..];
            let arrived = rest.len().min(frame.missing);
            let (complete, frame) = partial.take_payload(frame, &mut rest[..arrived])?;
            taken += arrived;
            if !complete {
                break;
            }
            if frame.opcode.is_control() {
                let event = event(frame.opcode, Cow::Owned(mem::take(&mut partial.control)))?;
                if partial.kind.is_some() {
                    self.partial = Some(partial);
                }
                return Ok((taken, Some(event)));
            }
            if let (true, Some(kind)) = (frame.last, partial.kind) {
                return Ok((taken, Some(Event::Message(kind, Cow::Owned(mem::take(&mut partial.message))))));
            }
        }
        self.partial = Some(partial);
        Ok((taken, None))
    }

    /// Checks a frame against the message that is under way.
    fn start(&self, partial: &mut Partial, frame: Frame) -> Result<Frame, FrameError> {
        if !frame.opcode.is_control() {
            self.check_length(partial.message.len(), frame)?;
            match (frame.opcode, partial.kind) {
                (Opcode::Text, None) => partial.kind = Some(Kind::Text),
                (Opcode::Binary, None) => partial.kind = Some(Kind::Binary),
                (Opcode::Continuation, Some(_)) => {}
                _ => return Err(FrameError::Fragments),
            }
        }
        Ok(frame)
    }

    fn check_length(&self, before: usize, frame: Frame) -> Result<(), FrameError> {
        if frame.opcode.is_control() || frame.missing <= self.max_message.saturating_sub(before) {
            return Ok(());
        }
        Err(FrameError::TooLong { limit: self.max_message })
    }
}

impl Partial {
    /// Collects header bytes from `input` at `taken`; `None` while some are missing.
    fn take_header(&mut self, input: &[u8], taken: &mut usize) -> Result<Option<Frame>, FrameError> {
        let known = self.head_length;
        let rest = &input[*taken..];
        let copied = rest.len().min(MAX_HEADER - known);
        self.head[known..known + copied].copy_from_slice(&rest[..copied]);
        match parse_header(&self.head[..known + copied])? {
            Some((frame, length)) => {
                *taken += length - known;
                self.head_length = 0;
                Ok(Some(frame))
            }
            None => {
                *taken += copied;
                self.head_length += copied;
                Ok(None)
            }
        }
    }

    /// Unmasks and keeps a piece of the frame's payload; true when the frame is complete.
    fn take_payload(&mut self, mut frame: Frame, piece: &mut [u8]) -> Result<(bool, Frame), FrameError> {
        unmask(piece, frame.key);
        frame.key.rotate_left(piece.len() % 4);
        frame.missing -= piece.len();
        if frame.opcode.is_control() {
            self.control.extend_from_slice(piece);
        } else {
            self.message.extend_from_slice(piece);
            if self.kind == Some(Kind::Text) {
                self.check_text(frame.last && frame.missing == 0)?;
            }
        }
        let complete = frame.missing == 0;
        self.frame = if complete { None } else { Some(frame) };
        Ok((complete, frame))
    }

    fn check_text(&mut self, end: bool) -> Result<(), FrameError> {
        match std::str::from_utf8(&self.message[self.valid..]) {
            Ok(_) => self.valid = self.message.len(),
            // A character may be cut between two pieces, not at the end of the message.
            Err(error) if error.error_len().is_none() && !end => self.valid += error.valid_up_to(),
            Err(_) => return Err(FrameError::Utf8),
        }
        Ok(())
    }
}

/// The header at the front of `bytes` and its length; `None` if it is not complete.
fn parse_header(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let [first, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = Opcode::from_bits(first & 0x0F)?;
    let last = first & 0x80 != 0;
    let [second, rest @ ..] = rest else { return Ok(None) };
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let short = usize::from(second & 0x7F);
    if opcode.is_control() && (!last || short > MAX_CONTROL) {
        return Err(FrameError::Control);
    }
    let (missing, rest) = match short {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (usize::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            // What does not fit is over every limit.
            Some((length, rest)) => (usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX), rest),
            None => return Ok(None),
        },
        short => (short, rest),
    };
    let Some((key, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some((Frame { last, opcode, key: *key, missing }, bytes.len() - rest.len())))
}

/// A complete control frame or unfragmented message.
fn event(opcode: Opcode, payload: Cow<'_, [u8]>) -> Result<Event<'_>, FrameError> {
    Ok(match opcode {
        Opcode::Text => {
            std::str::from_utf8(&payload).map_err(|_| FrameError::Utf8)?;
            Event::Message(Kind::Text, payload)
        }
        Opcode::Binary => Event::Message(Kind::Binary, payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong,
        Opcode::Close => Event::Close(close_code(&payload)?),
        Opcode::Continuation => return Err(FrameError::Fragments),
    })
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(FrameError::Close) };
    };
    let code = u16::from_be_bytes(*code);
    // 1004 to 1006 and 1015 never travel; 1012 to 1014 were registered after the RFC.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(FrameError::Close);
    }
    std::str::from_utf8(reason).map_err(|_| FrameError::Utf8)?;
    Ok(Some(code))
}
