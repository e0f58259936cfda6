//! The decoder against streams that this file encodes: fixed cases, and seeded random ones.

use std::borrow::Cow;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const LIMIT: usize = 100_000;

/// A masked frame; `first` is the first header byte.
fn frame(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(key);
    out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]));
    out
}

fn owned(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Message(kind, payload) => Event::Message(kind, Cow::Owned(payload.into_owned())),
        Event::Ping(payload) => Event::Ping(Cow::Owned(payload.into_owned())),
        Event::Pong => Event::Pong,
        Event::Close(code) => Event::Close(code),
    }
}

fn feed(decoder: &mut Decoder, bytes: &[u8], events: &mut Vec<Event<'static>>) -> Result<(), FrameError> {
    let mut bytes = bytes.to_vec();
    let mut used = 0;
    while used < bytes.len() {
        let (taken, event) = decoder.decode(&mut bytes[used..])?;
        assert!(taken > 0);
        used += taken;
        match event {
            Some(event) => events.push(owned(event)),
            None => assert_eq!(used, bytes.len()),
        }
    }
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Vec<Event<'static>>, FrameError> {
    let mut events = Vec::new();
    feed(&mut Decoder::new(LIMIT), bytes, &mut events)?;
    Ok(events)
}

fn text(payload: &str) -> Event<'static> {
    Event::Message(Kind::Text, Cow::Owned(payload.as_bytes().to_vec()))
}

#[test]
fn a_whole_message_is_borrowed_and_leaves_nothing_behind() {
    let mut decoder = Decoder::new(LIMIT);
    let mut bytes = frame(0x81, b"hello", [1, 2, 3, 4]);
    let length = bytes.len();
    let (taken, event) = decoder.decode(&mut bytes).unwrap();
    assert_eq!(taken, length);
    assert!(matches!(event, Some(Event::Message(Kind::Text, Cow::Borrowed(b"hello")))));
    assert!(!decoder.holds_memory());
}

#[test]
fn an_incomplete_message_is_kept_until_it_is_complete() {
    let mut decoder = Decoder::new(LIMIT);
    let bytes = frame(0x82, &[7; 300], [9, 8, 7, 6]);
    let mut events = Vec::new();
    feed(&mut decoder, &bytes[..200], &mut events).unwrap();
    assert!(decoder.holds_memory() && events.is_empty());
    feed(&mut decoder, &bytes[200..], &mut events).unwrap();
    assert_eq!(events, [Event::Message(Kind::Binary, Cow::Owned(vec![7; 300]))]);
    assert!(!decoder.holds_memory());
}

#[test]
fn control_frames_stand_between_fragments() {
    let key = [0xAA, 0x55, 0, 0xFF];
    let stream = [
        frame(0x01, "grü".as_bytes(), key),
        frame(0x89, b"are you there", key),
        frame(0x00, b"", key),
        frame(0x8A, b"", key),
        frame(0x80, "ß".as_bytes(), key),
        frame(0x88, &[0x03, 0xE8, b'b'], key),
    ]
    .concat();
    let ping = Event::Ping(Cow::Owned(b"are you there".to_vec()));
    assert_eq!(decode(&stream).unwrap(), [ping, Event::Pong, text("grüß"), Event::Close(Some(1000))]);
}

#[test]
fn what_breaks_the_protocol_is_named() {
    let key = [1; 4];
    let error = |stream: &[u8]| decode(stream).unwrap_err();
    assert_eq!(error(&frame(0xC1, b"x", key)), FrameError::ReservedBits);
    assert_eq!(error(&frame(0x83, b"x", key)), FrameError::ReservedOpcode { opcode: 3 });
    assert_eq!(error(&frame(0x8B, b"x", key)), FrameError::ReservedOpcode { opcode: 11 });
    assert_eq!(error(&[0x81, 0x01, b'x']), FrameError::Unmasked);
    assert_eq!(error(&frame(0x09, b"x", key)), FrameError::Control);
    assert_eq!(error(&frame(0x89, &[0; 126], key)), FrameError::Control);
    assert_eq!(error(&frame(0x80, b"x", key)), FrameError::Fragments);
    assert_eq!(error(&[frame(0x01, b"x", key), frame(0x81, b"y", key)].concat()), FrameError::Fragments);
    assert_eq!(error(&frame(0x88, &[3], key)), FrameError::Close);
    for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        assert_eq!(error(&frame(0x88, &code.to_be_bytes(), key)), FrameError::Close, "{code}");
    }
    assert_eq!(error(&frame(0x88, &[0x0F, 0xA0, 0xFF], key)), FrameError::Utf8);
    assert_eq!(error(&frame(0x81, &[0xC3], key)), FrameError::Utf8);
}

#[test]
fn bad_text_is_refused_before_the_message_is_complete() {
    let stream = frame(0x01, b"abc\xFFdef", [5; 4]);
    assert_eq!(decode(&stream[..10]).unwrap_err(), FrameError::Utf8);
    // A character that is cut by a fragment is none until its rest is missing.
    let cut = [frame(0x01, &[0xE2, 0x82], [5; 4]), frame(0x80, &[0xAC], [6; 4])].concat();
    assert_eq!(decode(&cut).unwrap(), [text("€")]);
}

#[test]
fn the_length_is_bounded_before_the_payload_is_taken() {
    let mut head = vec![0x82, 0xFF];
    head.extend((LIMIT as u64 + 1).to_be_bytes());
    head.extend([0; 4]);
    assert_eq!(decode(&head).unwrap_err(), FrameError::TooLong { limit: LIMIT });
    head[2..10].copy_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(decode(&head).unwrap_err(), FrameError::TooLong { limit: LIMIT });
    let halves = [frame(0x02, &vec![0; LIMIT], [0; 4]), frame(0x80, b"", [0; 4])].concat();
    assert_eq!(decode(&halves).unwrap().len(), 1);
    let over = [frame(0x02, &vec![0; LIMIT], [0; 4]), frame(0x80, b"x", [0; 4])].concat();
    assert_eq!(decode(&over).unwrap_err(), FrameError::TooLong { limit: LIMIT });
    assert_eq!(FrameError::TooLong { limit: LIMIT }.close_code(), 1009);
}

/// A valid stream and what it says.
fn stream(random: &mut StdRng) -> (Vec<u8>, Vec<Event<'static>>) {
    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    for _ in 0..random.random_range(1..6) {
        let message: Vec<u8> = if random.random() {
            let length = [0, 1, 125, 126, 400, 70_000][random.random_range(0..6usize)];
            (0..length).map(|_| random.random()).collect()
        } else {
            let characters = ['a', 'ß', '€', '😀', '\u{10FFFF}'];
            let length = random.random_range(0..200);
            (0..length).map(|_| characters[random.random_range(0..5usize)]).collect::<String>().into_bytes()
        };
        let kind = if std::str::from_utf8(&message).is_ok() && random.random() { Kind::Text } else { Kind::Binary };
        let mut rest = &message[..];
        let mut opcode = Opcode::from(kind) as u8;
        loop {
            let last = random.random();
            let (now, later) = rest.split_at(if last { rest.len() } else { random.random_range(0..=rest.len()) });
            bytes.extend(frame(if last { 0x80 } else { 0 } | opcode, now, random.random()));
            (rest, opcode) = (later, 0);
            if last {
                break;
            }
            if random.random() {
                bytes.extend(frame(0x89, now.get(..3).unwrap_or_default(), random.random()));
                events.push(Event::Ping(Cow::Owned(now.get(..3).unwrap_or_default().to_vec())));
            }
        }
        events.push(Event::Message(kind, Cow::Owned(message)));
    }
    (bytes, events)
}

#[test]
fn a_stream_means_the_same_however_it_is_split() {
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..400 {
        let (bytes, expected) = stream(&mut random);
        let mut decoder = Decoder::new(LIMIT);
        let mut events = Vec::new();
        let mut rest = &bytes[..];
        let most = [1, 7, 100, 100_000][round % 4];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(random.random_range(1..=most.min(rest.len())));
            feed(&mut decoder, now, &mut events).unwrap();
            rest = later;
        }
        assert!(events == expected, "round {round}");
        assert!(!decoder.holds_memory());
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let mut random = StdRng::seed_from_u64(8);
    for _ in 0..20_000 {
        let length = random.random_range(0..64);
        let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
        let _ = decode(&bytes);
    }
    for _ in 0..400 {
        let (mut bytes, _) = stream(&mut random);
        for _ in 0..random.random_range(1..5) {
            let place = random.random_range(0..bytes.len());
            bytes[place] = random.random();
        }
        let _ = decode(&bytes);
    }
}
