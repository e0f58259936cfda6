//! What a hostile frame can cost: stack, memory and the neighbours in its frame.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use plenum_protocol::*;

/// Runs with far less stack than a worker thread has, so that a decoder that recurses with its input is seen.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(512 * 1024).spawn(test).unwrap().join().unwrap();
}

fn decode(encoding: Encoding, frame: &[u8]) -> Result<Command, DecodeError> {
    commands(encoding, frame).next().unwrap()
}

#[test]
fn a_deep_payload_passes() {
    on_a_small_stack(|| {
        let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
        let frame = format!(r#"{{"id":1,"publish":{{"channel":"a","data":{deep}}}}}"#);
        let Request::Publish(publish) = decode(Encoding::Json, frame.as_bytes()).unwrap().request else {
            panic!("a publish")
        };
        assert_eq!(publish.data, deep.as_bytes());
        let mut out = Vec::new();
        let publication = Publication { data: publish.data, ..Default::default() };
        encode_publication(Encoding::Json, "a", &publication, &mut out).unwrap();
        assert!(out.len() > deep.len());
    });
}

#[test]
fn a_deep_unknown_field_is_skipped() {
    on_a_small_stack(|| {
        let frame = format!(r#"{{"id":1,"later":{}1{},"ping":{{}}}}"#, "[".repeat(300_000), "]".repeat(300_000));
        assert_eq!(decode(Encoding::Json, frame.as_bytes()).unwrap(), Command { id: 1, request: Request::Ping });
    });
}

#[test]
fn a_deep_filter_is_refused() {
    on_a_small_stack(|| {
        let frame = format!(
            r#"{{"id":1,"subscribe":{{"channel":"a","tf":{}{{}}{}}}}}"#,
            r#"{"nodes":["#.repeat(5_000),
            "]}".repeat(5_000)
        );
        assert!(matches!(decode(Encoding::Json, frame.as_bytes()), Err(DecodeError::Json { .. })));

        let nested = |depth: usize| {
            let mut message = Vec::new();
            for (i, tag) in std::iter::repeat_n(0x32, depth).chain([0x6a, 0x2a]).enumerate() {
                let mut outer = Vec::new();
                if i == depth + 1 {
                    outer.extend_from_slice(&[0x08, 1]);
                }
                outer.push(tag);
                prost::encoding::encode_varint(message.len() as u64, &mut outer);
                outer.extend_from_slice(&message);
                message = outer;
            }
            let mut frame = Vec::new();
            prost::encoding::encode_varint(message.len() as u64, &mut frame);
            frame.extend_from_slice(&message);
            frame
        };
        let Request::Subscribe(shallow) = decode(Encoding::Protobuf, &nested(20)).unwrap().request else {
            panic!("a subscribe")
        };
        assert!(shallow.tf.is_some());
        assert!(matches!(decode(Encoding::Protobuf, &nested(5_000)), Err(DecodeError::Protobuf { .. })));
    });
}

/// What costs a client least per element that we have to keep: two bytes in Protobuf for an empty element of a list,
/// six for an entry of a map. A frame of 64 KiB must stay within some megabytes.
#[test]
fn elements_stay_small() {
    assert!(size_of::<FilterNode>() <= 2 * 80);
    assert!(size_of::<TrackBatch>() <= 2 * 80);
    assert!(size_of::<(String, SubscribeRequest)>() <= 6 * 80);
    assert!(size_of::<Command>() <= 256, "commands are moved about: {}", size_of::<Command>());
}

/// A length that the frame does not hold is refused before memory is set aside for it.
#[test]
fn announced_lengths_are_not_believed() {
    // publish.data announces 2 GiB.
    let message = [0x08, 1, 0x3a, 0x07, 0x12, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
    let mut frame = vec![message.len() as u8];
    frame.extend_from_slice(&message);
    assert!(matches!(decode(Encoding::Protobuf, &frame), Err(DecodeError::Protobuf { .. })));
}

#[test]
fn payloads_do_not_keep_the_frame() {
    let frame = br#"{"id":1,"rpc":{"data":{"a":1}}}"#.to_vec();
    let command = decode(Encoding::Json, &frame).unwrap();
    drop(frame);
    assert_eq!(command.request, Request::Rpc(RpcRequest { data: Bytes::from_static(b"{\"a\":1}"), method: "".into() }));
}

#[test]
fn nothing_follows_an_error() {
    let mut iterator = commands(Encoding::Json, b"{bad}\n{\"id\":1,\"ping\":{}}");
    assert!(iterator.next().unwrap().is_err());
    assert!(iterator.next().is_none());
    assert!(iterator.next().is_none());
}

#[test]
fn a_message_is_appended() {
    for encoding in Encoding::ALL {
        let mut out = b"before".to_vec();
        encode(encoding, &Reply::Ping, &mut out).unwrap();
        assert!(out.starts_with(b"before"));
        assert_eq!(replies(encoding, &out[6..]).next().unwrap().unwrap(), Reply::Ping);
    }
}

/// Messages are also read and written apart from frames, by other parts of the server.
#[test]
fn client_info_by_itself() {
    let text = r#"{"user":"1","client":"c","conn_info":{"b":1,"a":2}}"#;
    let info: ClientInfo = serde_json::from_str(text).unwrap();
    assert_eq!(info.conn_info.as_ref(), br#"{"b":1,"a":2}"#);
    assert_eq!(serde_json::to_string(&info).unwrap(), text);
    let info: ClientInfo = serde_json::from_value(serde_json::to_value(&info).unwrap()).unwrap();
    assert_eq!(info.user, "1");
}
