//! Writing one message: an optional id, or a channel, around one body.

use bytes::BufMut;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message, uint32};
use serde::Serialize;

use crate::{EncodeError, Encoding};

/// Name of a body in JSON and its number in Protobuf.
#[derive(Clone, Copy)]
pub(crate) struct Slot(pub &'static str, pub u32);

const PUSH: Slot = Slot("push", 4);
const ID_TAG: u32 = 1;
const CHANNEL_TAG: u32 = 2;

/// A message without anything in it: a ping or a pong.
pub(crate) fn put_empty(encoding: Encoding, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Json => out.extend_from_slice(b"{}"),
        Encoding::Protobuf => out.push(0),
    }
}

/// A message that has an id and nothing that we know.
pub(crate) fn put_bare(encoding: Encoding, id: u32, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Json => {
            put_json_id(id, out);
            // The body's comma has nothing to part here.
            if out.last() == Some(&b',') {
                out.pop();
            }
            out.push(b'}');
        }
        Encoding::Protobuf => {
            encode_varint(id_len(id) as u64, out);
            put_proto_id(id, out);
        }
    }
}

/// A command or a reply; id 0 is left out, as the default that it is.
pub(crate) fn put<T: Message + Serialize>(
    encoding: Encoding,
    id: u32,
    slot: Slot,
    body: &T,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    match encoding {
        Encoding::Json => whole_or_nothing(out, |out| {
            put_json_id(id, out);
            put_json_body(slot, body, out)?;
            out.push(b'}');
            Ok(())
        }),
        Encoding::Protobuf => {
            encode_varint((id_len(id) + message::encoded_len(slot.1, body)) as u64, out);
            put_proto_id(id, out);
            message::encode(slot.1, body, out);
            Ok(())
        }
    }
}

/// A push; an empty channel is left out.
pub(crate) fn put_push<T: Message + Serialize>(
    encoding: Encoding,
    channel: &str,
    slot: Slot,
    body: &T,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    match encoding {
        Encoding::Json => whole_or_nothing(out, |out| {
            out.extend_from_slice(b"{\"push\":{");
            if !channel.is_empty() {
                out.extend_from_slice(b"\"channel\":");
                serde_json::to_writer(&mut *out, channel)?;
                out.push(b',');
            }
            put_json_body(slot, body, out)?;
            out.extend_from_slice(b"}}");
            Ok(())
        }),
        Encoding::Protobuf => {
            let body_len = body.encoded_len();
            let channel_len = if channel.is_empty() { 0 } else { prefixed_len(CHANNEL_TAG, channel.len()) };
            let push_len = channel_len + prefixed_len(slot.1, body_len);
            out.reserve(push_len + 16);
            encode_varint(prefixed_len(PUSH.1, push_len) as u64, out);
            encode_key(PUSH.1, WireType::LengthDelimited, out);
            encode_varint(push_len as u64, out);
            if !channel.is_empty() {
                encode_key(CHANNEL_TAG, WireType::LengthDelimited, out);
                encode_varint(channel.len() as u64, out);
                out.put_slice(channel.as_bytes());
            }
            encode_key(slot.1, WireType::LengthDelimited, out);
            encode_varint(body_len as u64, out);
            body.encode_raw(out);
            Ok(())
        }
    }
}

/// Undoes what `write` wrote when it fails. Writing to memory cannot fail, so the one cause is a payload.
fn whole_or_nothing(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), serde_json::Error>,
) -> Result<(), EncodeError> {
    let start = out.len();
    write(out).map_err(|source| {
        out.truncate(start);
        EncodeError::NotJson { source }
    })
}

fn put_json_id(id: u32, out: &mut Vec<u8>) {
    use std::io::Write;
    out.push(b'{');
    if id != 0 {
        // A Vec takes everything it is given.
        let _ = write!(out, "\"id\":{id},");
    }
}

fn put_json_body<T: Serialize>(slot: Slot, body: &T, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    out.push(b'"');
    out.extend_from_slice(slot.0.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(out, body)
}

fn id_len(id: u32) -> usize {
    if id == 0 { 0 } else { uint32::encoded_len(ID_TAG, &id) }
}

fn put_proto_id(id: u32, out: &mut Vec<u8>) {
    if id != 0 {
        uint32::encode(ID_TAG, &id, out);
    }
}

fn prefixed_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}
