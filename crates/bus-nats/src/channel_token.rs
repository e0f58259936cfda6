//! Channel names as one token of a NATS subject.
//!
//! The encoding is injective and reversible, so no channel name can reach another subject, a wildcard or a system
//! subject: letters, digits and a few signs stand for themselves, every other byte of the UTF-8 text is `=` and two
//! hexadecimal digits, and the empty name is a lone `=`. A name of 255 bytes makes a token of at most 765 bytes, far
//! below the server's default of 4,096 bytes for a protocol line.

const ESCAPE: u8 = b'=';
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// The token of a channel name.
pub fn encode(channel: &str) -> String {
    if channel.is_empty() {
        return char::from(ESCAPE).into();
    }
    let mut token = String::with_capacity(channel.len() + 16);
    for &byte in channel.as_bytes() {
        if is_plain(byte) {
            token.push(char::from(byte));
        } else {
            token.push(char::from(ESCAPE));
            token.push(char::from(HEX[usize::from(byte >> 4)]));
            token.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    token
}

/// The channel name of a token; `None` for text that [`encode`] never makes.
pub fn decode(token: &str) -> Option<String> {
    if token.as_bytes() == [ESCAPE] {
        return Some(String::new());
    }
    let mut channel = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let [first, after @ ..] = rest {
        rest = match (*first, after) {
            (ESCAPE, [high, low, after @ ..]) => {
                let byte = digit(*high)? << 4 | digit(*low)?;
                if is_plain(byte) {
                    return None;
                }
                channel.push(byte);
                after
            }
            (plain, after) if is_plain(plain) => {
                channel.push(plain);
                after
            }
            _ => return None,
        };
    }
    if channel.is_empty() { None } else { String::from_utf8(channel).ok() }
}

/// A hash of channel names that is the same in every process and version: it chooses shards and stands in ticks.
pub fn hash(channel: &str) -> u64 {
    // FNV-1a, then the finalizer of SplitMix64, because the low bits of FNV alone are poor.
    let mut hash = channel
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'/' | b'#' | b'@' | b'+' | b',' | b'~' | b'!')
}

fn digit(hex: u8) -> Option<u8> {
    HEX.iter().position(|&one| one == hex).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use plenum_channels::MAX_CHANNEL_BYTES;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn check(channel: &str) -> String {
        let token = encode(channel);
        assert_eq!(decode(&token).as_deref(), Some(channel), "{channel:?} -> {token}");
        assert!(!token.is_empty() && token.bytes().all(|byte| byte == ESCAPE || is_plain(byte)), "{token:?}");
        assert!(token.len() <= 3 * channel.len().max(1));
        token
    }

    #[test]
    fn every_character_of_unicode_comes_back() {
        for character in '\0'..=char::MAX {
            check(character.encode_utf8(&mut [0; 4]));
        }
    }

    #[test]
    fn hostile_names_are_one_harmless_token_each() {
        let names = [
            "",
            "=",
            "==",
            "=2E",
            ".",
            "..",
            "*",
            ">",
            "a.>",
            "a.*",
            "$JS.API.>",
            "_INBOX.x",
            "$SYS",
            "\0",
            " ",
            "\r\n",
            "\t",
            "a b",
            "ü",
            "日本語",
            "🂡",
            "{tag}",
            "\u{feff}",
            "\u{202e}",
        ];
        let mut seen = HashMap::new();
        for name in names {
            assert_eq!(seen.insert(check(name), name), None);
        }
    }

    #[test]
    fn random_names_are_injective_and_fit() {
        let mut rng = StdRng::seed_from_u64(4);
        let alphabet: Vec<char> = "ab=2E.*>$_ \0\u{7f}ü日🂡".chars().collect();
        let mut seen: HashMap<String, String> = HashMap::new();
        for _ in 0..100_000 {
            let mut name = String::new();
            for _ in 0..rng.random_range(0..12) {
                name.push(if rng.random_bool(0.8) {
                    alphabet[rng.random_range(0..alphabet.len())]
                } else {
                    rng.random()
                });
            }
            let before = seen.insert(check(&name), name.clone());
            assert!(before.is_none_or(|before| before == name));
        }
        for longest in
            ["x".repeat(MAX_CHANNEL_BYTES), "\0".repeat(MAX_CHANNEL_BYTES), "ü".repeat(MAX_CHANNEL_BYTES / 2)]
        {
            assert!(check(&longest).len() <= 3 * MAX_CHANNEL_BYTES);
        }
    }

    #[test]
    fn text_that_no_name_encodes_to_is_refused() {
        for token in ["", "=2", "=2e", "=41", "=GG", "a.b", "a b", "=FF", "a=", "é", "*", ">"] {
            assert_eq!(decode(token), None, "{token:?}");
        }
    }

    #[test]
    fn the_hash_is_fixed_and_spreads() {
        // Another value would move every channel to another shard.
        assert_eq!(hash(""), 0xf52a_15e9_a9b5_e89b);
        let mut counts = [0_u32; 4];
        for n in 0..40_000 {
            counts[(hash(&format!("room:{n}")) % 4) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
