//! The cases in `cases/*.json`, run through encoders and decoders of both encodings.
//!
//! `check` says what a case is about: `both` (the two texts mean the same and are what the encoders write), `decode`
//! (the given texts decode to what `means` decodes to), `to_json` (the Protobuf text encodes to the JSON text),
//! `not_json` (it cannot be encoded as JSON) and `error` (decoding gives `good` messages, then the named error).

#![allow(clippy::unwrap_used)]

use plenum_protocol::{
    Command, DecodeError, EncodeError, Encoding, Reply, commands, encode, encode_command, encode_publication, replies,
};
use plenum_protocol::{Push, PushEvent};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    kind: Kind,
    check: Check,
    json: Option<String>,
    protobuf: Option<String>,
    means: Option<String>,
    error: Option<String>,
    good: Option<usize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Command,
    Reply,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Check {
    Both,
    Decode,
    ToJson,
    NotJson,
    Error,
}

#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant)]
enum Message {
    Command(Command),
    Reply(Reply),
}

impl Kind {
    fn decode(self, encoding: Encoding, frame: &[u8]) -> Vec<Result<Message, DecodeError>> {
        match self {
            Kind::Command => commands(encoding, frame).map(|m| m.map(Message::Command)).collect(),
            Kind::Reply => replies(encoding, frame).map(|m| m.map(Message::Reply)).collect(),
        }
    }

    fn decode_all(self, encoding: Encoding, frame: &[u8]) -> Vec<Message> {
        self.decode(encoding, frame).into_iter().collect::<Result<_, _>>().unwrap()
    }
}

fn encode_all(encoding: Encoding, messages: &[Message]) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    for (i, message) in messages.iter().enumerate() {
        if i > 0 {
            out.extend_from_slice(encoding.separator());
        }
        match message {
            Message::Command(command) => encode_command(encoding, command, &mut out)?,
            Message::Reply(reply) => encode(encoding, reply, &mut out)?,
        }
    }
    Ok(out)
}

impl Case {
    fn frame(&self, encoding: Encoding) -> Option<Vec<u8>> {
        match encoding {
            Encoding::Json => self.json.as_ref().map(|text| text.clone().into_bytes()),
            Encoding::Protobuf => self.protobuf.as_ref().map(|hex| from_hex(hex)),
        }
    }

    fn frames(&self) -> Vec<(Encoding, Vec<u8>)> {
        Encoding::ALL.into_iter().filter_map(|encoding| Some((encoding, self.frame(encoding)?))).collect()
    }

    fn run(&self) {
        match self.check {
            Check::Both => self.run_both(),
            Check::Decode => self.run_decode(),
            Check::ToJson => {
                let messages = self.kind.decode_all(Encoding::Protobuf, &self.frame(Encoding::Protobuf).unwrap());
                let json = encode_all(Encoding::Json, &messages).unwrap();
                assert_eq!(String::from_utf8(json).unwrap(), *self.json.as_ref().unwrap());
                assert_eq!(Some(encode_all(Encoding::Protobuf, &messages).unwrap()), self.frame(Encoding::Protobuf));
            }
            Check::NotJson => self.run_not_json(),
            Check::Error => self.run_error(),
        }
    }

    fn run_both(&self) {
        let decoded: Vec<_> =
            self.frames().into_iter().map(|(encoding, frame)| self.kind.decode_all(encoding, &frame)).collect();
        assert_eq!(decoded.len(), 2, "a case of both encodings has both texts");
        assert_eq!(decoded[0], decoded[1]);
        assert!(!decoded[0].is_empty());
        for (encoding, frame) in self.frames() {
            let encoded = encode_all(encoding, &decoded[0]).unwrap();
            assert_eq!(encoded, frame, "{}", String::from_utf8_lossy(&encoded));
        }
    }

    fn run_decode(&self) {
        let means = self.means.as_ref().unwrap();
        let expected = self.kind.decode_all(Encoding::Json, means.as_bytes());
        assert_eq!(String::from_utf8(encode_all(Encoding::Json, &expected).unwrap()).unwrap(), *means);
        assert!(!self.frames().is_empty());
        for (encoding, frame) in self.frames() {
            assert_eq!(self.kind.decode_all(encoding, &frame), expected, "{encoding:?}");
        }
    }

    fn run_not_json(&self) {
        let frame = self.frame(Encoding::Protobuf).unwrap();
        let messages = self.kind.decode_all(Encoding::Protobuf, &frame);
        let Message::Reply(reply) = &messages[0] else { panic!("only replies carry payloads to clients") };
        let mut out = b"before".to_vec();
        let error = encode(Encoding::Json, reply, &mut out).unwrap_err();
        assert!(matches!(error, EncodeError::NotJson { .. }));
        assert_eq!(out, b"before", "nothing is left of a message that failed");
        assert_eq!(encode_all(Encoding::Protobuf, &messages).unwrap(), frame, "Protobuf carries any bytes");
    }

    fn run_error(&self) {
        assert_eq!(self.frames().len(), 1, "an error case is about one encoding");
        for (encoding, frame) in self.frames() {
            let mut decoded = self.kind.decode(encoding, &frame);
            let last = decoded.pop().expect("something comes out of a malformed frame");
            assert_eq!(decoded.iter().filter(|m| m.is_ok()).count(), self.good.unwrap());
            assert_eq!(decoded.len(), self.good.unwrap(), "an error is the last item");
            let name = match last.expect_err("decoding fails") {
                DecodeError::Empty => "empty",
                DecodeError::Json { .. } => "json",
                DecodeError::Protobuf { .. } => "protobuf",
                DecodeError::LengthPrefix => "length_prefix",
                DecodeError::Truncated { .. } => "truncated",
                DecodeError::UnknownReply { .. } => "unknown_reply",
            };
            assert_eq!(name, self.error.as_ref().unwrap());
        }
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn run_file(file: &str, text: &str) {
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 10, "{file} holds its cases");
    for case in &cases {
        println!("{file}: {}", case.name);
        case.run();
    }
}

/// One test a file, under the file's name.
mod file {
    macro_rules! case_files {
        ($($name:ident)*) => {$(
            #[test]
            fn $name() {
                super::run_file(stringify!($name), include_str!(concat!("../cases/", stringify!($name), ".json")));
            }
        )*};
    }

    case_files!(commands replies pushes decode payloads malformed);
}

/// Every kind of command, reply and push has a case; a new one without a case fails here.
#[test]
fn every_kind_has_a_case() {
    let mut seen = std::collections::BTreeSet::new();
    for text in [
        include_str!("../cases/commands.json"),
        include_str!("../cases/replies.json"),
        include_str!("../cases/pushes.json"),
    ] {
        for case in serde_json::from_str::<Vec<Case>>(text).unwrap() {
            for message in case.kind.decode_all(Encoding::Json, case.json.as_ref().unwrap().as_bytes()) {
                seen.insert(match message {
                    Message::Command(command) => format!("command {}", command.request.method_name()),
                    Message::Reply(Reply::Ping) => "reply Ping".into(),
                    Message::Reply(Reply::Error { .. }) => "reply Error".into(),
                    Message::Reply(Reply::Result { result, .. }) => format!("result {}", variant(&result)),
                    Message::Reply(Reply::Push(push)) => format!("push {}", variant(&push.event)),
                });
            }
        }
    }
    // 14 commands with pong and unknown, ping and error, 11 results, 9 pushes.
    assert_eq!(seen.len(), 14 + 2 + 11 + 9, "{seen:#?}");
}

fn variant(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// The two ways to encode a publication give the same bytes.
#[test]
fn publication_by_reference() {
    for case in serde_json::from_str::<Vec<Case>>(include_str!("../cases/pushes.json")).unwrap() {
        for message in case.kind.decode_all(Encoding::Json, case.json.as_ref().unwrap().as_bytes()) {
            let Message::Reply(Reply::Push(Push { channel, event: PushEvent::Publication(publication) })) = &message
            else {
                continue;
            };
            for encoding in Encoding::ALL {
                let mut out = Vec::new();
                encode_publication(encoding, channel, publication, &mut out).unwrap();
                assert_eq!(out, encode_all(encoding, std::slice::from_ref(&message)).unwrap());
            }
        }
    }
}
