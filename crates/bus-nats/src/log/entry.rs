//! What the payload of a stored message is: a publication with what belongs to it, or a tick.
//!
//! A publication: format 1, flags, Unix milliseconds of the first attempt in stream time (8 bytes, little endian, 0 for
//! unknown), with flag 1 the attempt's nonce (16 bytes), with flag 2 the version (number 8 bytes, length of the scope 2
//! bytes, scope), then the publication as Protobuf. The channel stands in the subject, the id in `Nats-Msg-Id`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use plenum_channels::Version;
use plenum_protocol::Publication;
use prost::Message;

/// First byte of every payload.
const FORMAT: u8 = 1;
const HAS_NONCE: u8 = 1;
const HAS_VERSION: u8 = 2;
const KNOWN_FLAGS: u8 = HAS_NONCE | HAS_VERSION;

/// An entry that was stored more than this after its first attempt does not count: the caller has long been told that
/// the outcome is unknown, and may have published again.
pub(super) const VOID_AFTER_MS: u64 = 60_000;

/// A publication as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// When the publisher first tried, Unix milliseconds in stream time; 0 for unknown.
    pub first_attempt_ms: u64,
    /// Tells this append from others with the same idempotency key.
    pub nonce: Option<u128>,
    /// For the channel's tail.
    pub version: Option<Version>,
    /// The publication; its offset is not stored.
    pub publication: Publication,
}

/// Why a payload cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    /// Written by a newer version of the program, or by somebody else.
    #[error("unknown format")]
    Unknown,
    /// Ends early or is no Protobuf.
    #[error("malformed")]
    Malformed,
}

impl Record {
    /// The payload, with room for nothing more.
    pub fn encode(&self) -> Bytes {
        let version = self.version.as_ref().map_or(0, |version| 10 + version.scope.len());
        let mut out = BytesMut::with_capacity(26 + version + self.publication.encoded_len());
        out.put_u8(FORMAT);
        out.put_u8(if self.nonce.is_some() { HAS_NONCE } else { 0 } | if version > 0 { HAS_VERSION } else { 0 });
        out.put_u64_le(self.first_attempt_ms);
        if let Some(nonce) = self.nonce {
            out.put_u128_le(nonce);
        }
        if let Some(version) = &self.version {
            let scope = cut(&version.scope, usize::from(u16::MAX));
            out.put_u64_le(version.number);
            out.put_u16_le(scope.len() as u16);
            out.put_slice(scope.as_bytes());
        }
        self.publication.encode_raw(&mut out);
        out.freeze()
    }

    /// Reads a payload without copying the publication's data.
    pub fn decode(mut payload: Bytes) -> Result<Self, FormatError> {
        let flags = match (payload.try_get_u8(), payload.try_get_u8()) {
            (Ok(FORMAT), Ok(flags)) if flags & !KNOWN_FLAGS == 0 => flags,
            (Ok(_), _) => return Err(FormatError::Unknown),
            _ => return Err(FormatError::Malformed),
        };
        let mut read = || -> Result<_, bytes::TryGetError> {
            let first_attempt_ms = payload.try_get_u64_le()?;
            let nonce = if flags & HAS_NONCE != 0 { Some(payload.try_get_u128_le()?) } else { None };
            let version = if flags & HAS_VERSION != 0 {
                let (number, length) = (payload.try_get_u64_le()?, usize::from(payload.try_get_u16_le()?));
                if payload.len() < length {
                    return Err(bytes::TryGetError { requested: length, available: payload.len() });
                }
                Some((number, payload.split_to(length)))
            } else {
                None
            };
            Ok((first_attempt_ms, nonce, version))
        };
        let (first_attempt_ms, nonce, version) = read().map_err(|_| FormatError::Malformed)?;
        let version = match version {
            Some((number, scope)) => {
                let scope = String::from_utf8(scope.into()).map_err(|_| FormatError::Malformed)?;
                Some(Version { number, scope })
            }
            None => None,
        };
        let publication = Publication::decode(payload).map_err(|_| FormatError::Malformed)?;
        Ok(Self { first_attempt_ms, nonce, version, publication })
    }

    /// Stored so late after its first attempt (more than `after_ms`, [`VOID_AFTER_MS`]) that nobody may count on it.
    pub fn is_void(&self, stored_at_ms: u64, after_ms: u64) -> bool {
        self.first_attempt_ms != 0 && stored_at_ms > self.first_attempt_ms.saturating_add(after_ms)
    }
}

fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

/// Payload of a marker that hides everything before it on its channel.
pub(super) fn marker() -> Bytes {
    Bytes::from_static(&[FORMAT])
}

/// Unix milliseconds of a time as the server writes it: `2026-11-21T12:00:00.123456789Z`.
pub(super) fn parse_time_ms(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms = fraction.bytes().chain(*b"000").take(3).fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0'));
    // Days since 1970 by counting years from March, so that the leap day is the last of a year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    u64::try_from(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms).ok()
}

/// The other way round, to the millisecond.
pub(crate) fn format_time_ms(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the leap day is the last of a year; eras have 400 of them.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use plenum_protocol::ClientInfo;

    use super::*;

    fn record(nonce: Option<u128>, version: Option<Version>) -> Record {
        let info =
            ClientInfo { user: "ü".into(), client: "c".into(), conn_info: "{}".into(), chan_info: vec![0].into() };
        let tags = BTreeMap::from([("k".to_owned(), "\0".to_owned())]);
        let publication = Publication { data: "data".into(), info: Some(info), tags, ..Publication::default() };
        Record { first_attempt_ms: 1_790_000_000_000, nonce, version, publication }
    }

    #[test]
    fn records_come_back() {
        for nonce in [None, Some(u128::MAX)] {
            for version in [None, Some(Version { number: u64::MAX, scope: "日本".into() })] {
                let record = record(nonce, version.clone());
                assert_eq!(Record::decode(record.encode()), Ok(record));
            }
        }
        let long = Record { version: Some(Version { number: 1, scope: "ü".repeat(40_000) }), ..record(None, None) };
        let back = Record::decode(long.encode()).unwrap().version.unwrap().scope;
        assert!(long.version.unwrap().scope.starts_with(&back) && back.len() == 65_534);
    }

    #[test]
    fn every_truncation_and_foreign_text_is_refused() {
        let whole = record(Some(7), Some(Version { number: 1, scope: "s".into() }));
        let bytes = whole.encode();
        for end in 0..bytes.len() {
            // A cut between Protobuf fields cannot be seen; it must not look whole.
            assert_ne!(Record::decode(bytes.slice(..end)).ok(), Some(whole.clone()), "{end}");
        }
        assert_eq!(Record::decode(Bytes::from_static(b"{\"a\":1}")), Err(FormatError::Unknown));
        assert_eq!(Record::decode(Bytes::from_static(&[1, 128, 0])), Err(FormatError::Unknown));
        assert_eq!(Record::decode(Bytes::new()), Err(FormatError::Malformed));
    }

    #[test]
    fn an_entry_is_void_when_it_was_stored_too_late() {
        let record = record(None, None);
        assert!(!record.is_void(record.first_attempt_ms + VOID_AFTER_MS, VOID_AFTER_MS));
        assert!(record.is_void(record.first_attempt_ms + VOID_AFTER_MS + 1, VOID_AFTER_MS));
        assert!(!Record { first_attempt_ms: 0, ..record }.is_void(u64::MAX, VOID_AFTER_MS));
    }

    #[test]
    fn times_are_read_as_the_server_writes_them() {
        assert_eq!(parse_time_ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_time_ms("2026-11-21T12:34:56.7Z"), Some(1_795_264_496_700));
        assert_eq!(parse_time_ms("2024-02-29T23:59:59.999999999Z"), Some(1_709_251_199_999));
        assert_eq!(parse_time_ms("2000-03-01T00:00:00.0012Z"), Some(951_868_800_001));
        for day in 0..80_000 {
            let ms = day * 86_400_000 + day * 12_345 % 86_400_000;
            assert_eq!(parse_time_ms(&format_time_ms(ms)), Some(ms), "{}", format_time_ms(ms));
        }
        for text in ["", "Z", "2026-11-21", "2026-11-21T12:34:56", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00.-1Z"] {
            assert_eq!(parse_time_ms(text), None, "{text}");
        }
    }
}
