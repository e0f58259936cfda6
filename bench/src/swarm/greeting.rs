//! What a connection says first.

use anyhow::Result;
use bytes::Bytes;
use plenum_protocol::{Command, ConnectRequest, Encoding, Request, SubscribeRequest, encode_command};

use crate::websocket::text_frame;

/// The first frame of a connection: connect, and the subscribe along with it, as the JavaScript SDK sends them.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The frame, masked.
    pub(super) frame: Vec<u8>,
    /// Replies that must come.
    pub(super) replies: u32,
}

impl Greeting {
    /// Connects with `token` (empty: as the anonymous user) and subscribes to `channel`.
    pub fn new(token: &str, channel: Option<&str>) -> Result<Self> {
        Self::resuming(token, Bytes::new(), channel)
    }

    /// The same with `data`, in which a client carries its resume token.
    pub fn resuming(token: &str, data: Bytes, channel: Option<&str>) -> Result<Self> {
        let (token, name) = (token.to_owned(), "bench".to_owned());
        let connect = ConnectRequest { token, name, data, ..ConnectRequest::default() };
        let subscribe = channel.map(|channel| {
            Request::Subscribe(Box::new(SubscribeRequest { channel: channel.to_owned(), ..Default::default() }))
        });
        let requests: Vec<_> = std::iter::once(Request::Connect(Box::new(connect))).chain(subscribe).collect();
        Ok(Self { frame: text_frame(&commands(1, &requests)?), replies: requests.len() as u32 })
    }
}

/// Commands with ids from `first` on, a line each.
pub fn commands(first: u32, requests: &[Request]) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    for (id, request) in (first..).zip(requests) {
        if !payload.is_empty() {
            payload.extend_from_slice(Encoding::Json.separator());
        }
        encode_command(Encoding::Json, &Command { id, request: request.clone() }, &mut payload)?;
    }
    Ok(payload)
}
