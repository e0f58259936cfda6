//! Seeded loops over both decoders: generated messages come back as they were, and mutated frames neither panic nor
//! decode to something that cannot be encoded again. The number of iterations is fixed, so every run is the same.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use plenum_protocol::*;

const ROUND_TRIPS: usize = 4_000;
const MUTATIONS: usize = 200_000;

/// SplitMix64: eight lines that will give the same numbers for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Small numbers, numbers at the ends of the range and numbers between, and often the default.
    fn number(&mut self) -> u64 {
        match self.below(5) {
            0 => 0,
            1 => self.next() % 300,
            2 => u64::MAX - self.next() % 3,
            3 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    fn id(&mut self) -> u32 {
        (self.number() as u32).max(1)
    }

    fn text(&mut self) -> String {
        const PIECES: [&str; 10] =
            ["", "a", "news:room", "\n", "\"\\", "é", "😀", "\u{0}\u{1f}", "\u{2028}", "x_-.#$&"];
        (0..self.below(4)).map(|_| PIECES[self.below(PIECES.len())]).collect()
    }

    fn payload(&mut self) -> Bytes {
        const VALUES: [&str; 8] = [
            "",
            "1",
            "{}",
            "\"text\\n\"",
            "{\"b\": 1, \"a\":[null]}",
            "123456789012345678901234567890",
            "[[[]]]",
            "true",
        ];
        Bytes::from(VALUES[self.below(VALUES.len())])
    }

    fn list<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(3)).map(|_| make(self)).collect()
    }

    fn map<T>(&mut self, make: impl Fn(&mut Self) -> T) -> BTreeMap<String, T> {
        (0..self.below(3)).map(|_| (self.text(), make(self))).collect()
    }

    fn option<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn client_info(&mut self) -> ClientInfo {
        ClientInfo { user: self.text(), client: self.text(), conn_info: self.payload(), chan_info: self.payload() }
    }

    fn publication(&mut self) -> Publication {
        Publication {
            data: self.payload(),
            info: self.option(Self::client_info),
            offset: self.number(),
            tags: self.map(Self::text),
            delta: self.flag(),
            time: self.number() as i64,
            channel: self.text(),
            key: self.text(),
            removed: self.flag(),
            score: self.number() as i64,
            epoch: self.text(),
            prev_data: self.payload(),
            version: self.number(),
        }
    }

    fn filter(&mut self) -> FilterNode {
        FilterNode {
            op: self.text(),
            key: self.text(),
            cmp: self.text(),
            val: self.text(),
            vals: self.list(Self::text),
            nodes: if self.below(3) == 0 { self.list(Self::filter) } else { Vec::new() },
        }
    }

    fn subscribe_request(&mut self) -> SubscribeRequest {
        SubscribeRequest {
            channel: self.text(),
            token: self.text(),
            recover: self.flag(),
            epoch: self.text(),
            offset: self.number(),
            data: self.payload(),
            positioned: self.flag(),
            recoverable: self.flag(),
            join_leave: self.flag(),
            delta: self.text(),
            tf: self.option(Self::filter),
            flag: self.number() as i64,
            kind: self.number() as i32,
            phase: self.number() as i32,
            cursor: self.text(),
            limit: self.number() as i32,
            asc: self.flag(),
        }
    }

    fn subscribe_result(&mut self) -> SubscribeResult {
        SubscribeResult {
            expires: self.flag(),
            ttl: self.number() as u32,
            recoverable: self.flag(),
            epoch: self.text(),
            publications: self.list(Self::publication),
            recovered: self.flag(),
            offset: self.number(),
            positioned: self.flag(),
            data: self.payload(),
            was_recovering: self.flag(),
            delta: self.flag(),
            id: self.number() as i64,
            kind: self.number() as i32,
            phase: self.number() as i32,
            cursor: self.text(),
            state: self.list(Self::publication),
            publish_debounce: self.number() as u32,
        }
    }

    fn connect_result(&mut self) -> Box<ConnectResult> {
        Box::new(ConnectResult {
            client: self.text(),
            version: self.text(),
            expires: self.flag(),
            ttl: self.number() as u32,
            data: self.payload(),
            subs: self.map(Self::subscribe_result),
            ping: self.number() as u32,
            pong: self.flag(),
            session: self.text(),
            node: self.text(),
            time: self.number() as i64,
        })
    }

    fn track(&mut self) -> TrackBatch {
        TrackBatch {
            signature: self.text(),
            items: self.list(|random| KeyedItem { key: random.text(), version: random.number() }),
        }
    }

    fn command(&mut self) -> Command {
        let request = match self.below(13) {
            0 => return Command::default(),
            1 => Request::Connect(Box::new(ConnectRequest {
                token: self.text(),
                data: self.payload(),
                subs: self.map(Self::subscribe_request),
                name: self.text(),
                version: self.text(),
                headers: self.map(Self::text),
                flag: self.number() as i64,
            })),
            2 => Request::Subscribe(Box::new(self.subscribe_request())),
            3 => Request::Unsubscribe(UnsubscribeRequest { channel: self.text() }),
            4 => Request::Publish(PublishRequest {
                channel: self.text(),
                data: self.payload(),
                kind: self.number() as i32,
                key: self.text(),
                removed: self.flag(),
            }),
            5 => Request::Presence(PresenceRequest { channel: self.text() }),
            6 => Request::PresenceStats(PresenceStatsRequest { channel: self.text() }),
            7 => Request::History(HistoryRequest {
                channel: self.text(),
                limit: self.number() as i32,
                since: self.option(|random| StreamPosition { offset: random.number(), epoch: random.text() }),
                reverse: self.flag(),
            }),
            8 => Request::Ping,
            9 => Request::Send(SendRequest { data: self.payload() }),
            10 => Request::Rpc(RpcRequest { data: self.payload(), method: self.text() }),
            11 => Request::Refresh(RefreshRequest { token: self.text() }),
            _ => Request::SubRefresh(SubRefreshRequest {
                channel: self.text(),
                token: self.text(),
                kind: self.number() as i32,
                track: self.list(Self::track),
                untrack: self.list(Self::text),
            }),
        };
        Command { id: self.id(), request }
    }

    fn result(&mut self) -> ReplyResult {
        match self.below(11) {
            0 => ReplyResult::Connect(self.connect_result()),
            1 => ReplyResult::Subscribe(Box::new(self.subscribe_result())),
            2 => ReplyResult::Unsubscribe,
            3 => ReplyResult::Publish,
            4 => ReplyResult::Presence(PresenceResult { presence: self.map(Self::client_info) }),
            5 => ReplyResult::PresenceStats(PresenceStatsResult {
                num_clients: self.number() as u32,
                num_users: self.number() as u32,
            }),
            6 => ReplyResult::History(HistoryResult {
                publications: self.list(Self::publication),
                epoch: self.text(),
                offset: self.number(),
            }),
            7 => ReplyResult::Ping,
            8 => ReplyResult::Rpc(RpcResult { data: self.payload() }),
            9 => ReplyResult::Refresh(RefreshResult {
                client: self.text(),
                version: self.text(),
                expires: self.flag(),
                ttl: self.number() as u32,
            }),
            _ => ReplyResult::SubRefresh(SubRefreshResult {
                expires: self.flag(),
                ttl: self.number() as u32,
                items: self.list(Self::publication),
            }),
        }
    }

    fn event(&mut self) -> PushEvent {
        match self.below(9) {
            0 => PushEvent::Publication(self.publication()),
            1 => PushEvent::Join(self.client_info()),
            2 => PushEvent::Leave(self.client_info()),
            3 => PushEvent::Unsubscribe { code: self.number() as u32, reason: self.text() },
            4 => PushEvent::Message { data: self.payload() },
            5 => PushEvent::Subscribe(SubscribePush {
                recoverable: self.flag(),
                epoch: self.text(),
                offset: self.number(),
                positioned: self.flag(),
                data: self.payload(),
            }),
            6 => PushEvent::Connect(self.connect_result()),
            7 => PushEvent::Disconnect { code: self.number() as u32, reason: self.text(), reconnect: self.flag() },
            _ => PushEvent::Refresh { expires: self.flag(), ttl: self.number() as u32 },
        }
    }

    fn reply(&mut self) -> Reply {
        match self.below(8) {
            0 => Reply::Ping,
            1 => Reply::Error {
                id: self.id(),
                error: ErrorReply { code: self.number() as u32, message: self.text().into(), temporary: self.flag() },
            },
            2..5 => Reply::Result { id: self.id(), result: self.result() },
            _ => Reply::Push(Push { channel: self.text(), event: self.event() }),
        }
    }

    /// Changes `frame` in one to four places, sometimes with bytes of `other`.
    fn mutate(&mut self, frame: &mut Vec<u8>, other: &[u8]) {
        const INTERESTING: [u8; 16] =
            [0, 1, 0x7f, 0x80, 0xff, b'"', b'\\', b'{', b'}', b'[', b']', b',', b':', b'\n', b'0', b'-'];
        for _ in 0..=self.below(3) {
            let at = self.below(frame.len() + 1);
            match self.below(6) {
                0 if at < frame.len() => frame[at] ^= 1 << self.below(8),
                1 if at < frame.len() => frame[at] = INTERESTING[self.below(INTERESTING.len())],
                2 => frame.insert(at, INTERESTING[self.below(INTERESTING.len())]),
                3 if at < frame.len() => drop(frame.remove(at)),
                4 => frame.truncate(at),
                _ if !other.is_empty() => {
                    let from = self.below(other.len());
                    let to = from + self.below((other.len() - from).min(24) + 1);
                    frame.splice(at..at, other[from..to].iter().copied());
                }
                _ => {}
            }
        }
    }
}

/// A decoder with its encoder.
trait Codec {
    type Message: PartialEq + std::fmt::Debug;
    fn generate(random: &mut Random) -> Self::Message;
    fn encode(encoding: Encoding, message: &Self::Message, out: &mut Vec<u8>) -> Result<(), EncodeError>;
    fn decode(encoding: Encoding, frame: &[u8]) -> Vec<Result<Self::Message, DecodeError>>;

    fn frame(encoding: Encoding, messages: &[Self::Message]) -> Vec<u8> {
        let mut frame = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if i > 0 {
                frame.extend_from_slice(encoding.separator());
            }
            Self::encode(encoding, message, &mut frame).unwrap();
        }
        frame
    }
}

struct CommandCodec;
struct ReplyCodec;

impl Codec for CommandCodec {
    type Message = Command;
    fn generate(random: &mut Random) -> Command {
        random.command()
    }
    fn encode(encoding: Encoding, message: &Command, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        encode_command(encoding, message, out)
    }
    fn decode(encoding: Encoding, frame: &[u8]) -> Vec<Result<Command, DecodeError>> {
        commands(encoding, frame).collect()
    }
}

impl Codec for ReplyCodec {
    type Message = Reply;
    fn generate(random: &mut Random) -> Reply {
        random.reply()
    }
    fn encode(encoding: Encoding, message: &Reply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        encode(encoding, message, out)
    }
    fn decode(encoding: Encoding, frame: &[u8]) -> Vec<Result<Reply, DecodeError>> {
        replies(encoding, frame).collect()
    }
}

fn round_trips<C: Codec>(encoding: Encoding) {
    let mut random = Random(0x504c_454e_554d);
    for _ in 0..ROUND_TRIPS {
        let messages: Vec<_> = (0..=random.below(3)).map(|_| C::generate(&mut random)).collect();
        let frame = C::frame(encoding, &messages);
        let decoded: Vec<_> = C::decode(encoding, &frame).into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(decoded, messages);
    }
}

/// Frames are mutated over and over, so that changes pile up; a fresh one is taken every so often.
fn mutations<C: Codec>(encoding: Encoding) {
    let mut random = Random(0x6d75_7461_7465);
    let corpus: Vec<Vec<u8>> = (0..300)
        .map(|_| C::frame(encoding, &[C::generate(&mut random), C::generate(&mut random)]))
        .filter(|frame| frame.len() < 600)
        .collect();
    let (mut decoded, mut refused) = (0usize, 0usize);
    let mut frame = Vec::new();
    for i in 0..MUTATIONS {
        if i % 3 == 0 || frame.len() > 900 {
            frame.clone_from(&corpus[random.below(corpus.len())]);
        }
        let other = random.below(corpus.len());
        random.mutate(&mut frame, &corpus[other]);
        for item in C::decode(encoding, &frame) {
            let Ok(message) = item else {
                refused += 1;
                continue;
            };
            decoded += 1;
            // A part of them all the way round: what was decoded can be encoded and comes back the same.
            if i % 8 == 0 {
                let mut again = Vec::new();
                C::encode(encoding, &message, &mut again).unwrap();
                assert!(encoding != Encoding::Json || !again.contains(&b'\n'), "one message, one line");
                let back = C::decode(encoding, &again);
                assert!(matches!(back.as_slice(), [Ok(same)] if *same == message), "{message:?} became {back:?}");
            }
        }
    }
    assert!(decoded > MUTATIONS / 10 && refused > MUTATIONS / 10, "{decoded} decoded, {refused} refused");
}

macro_rules! fuzz {
    ($($name:ident: $what:ident, $codec:ident, $encoding:ident;)*) => {$(
        #[test]
        fn $name() {
            $what::<$codec>(Encoding::$encoding);
        }
    )*};
}

fuzz! {
    json_commands_come_back: round_trips, CommandCodec, Json;
    json_replies_come_back: round_trips, ReplyCodec, Json;
    protobuf_commands_come_back: round_trips, CommandCodec, Protobuf;
    protobuf_replies_come_back: round_trips, ReplyCodec, Protobuf;
    json_command_decoder_takes_anything: mutations, CommandCodec, Json;
    json_reply_decoder_takes_anything: mutations, ReplyCodec, Json;
    protobuf_command_decoder_takes_anything: mutations, CommandCodec, Protobuf;
    protobuf_reply_decoder_takes_anything: mutations, ReplyCodec, Protobuf;
}
