//! How members and incarnations are written.

use bytes::{BufMut, Bytes};
use plenum_channels::Incarnation;
use plenum_protocol::ClientInfo;

/// Orders what one replica writes, and tells which of two entries of a client is newer: microseconds since 1970, made to
/// grow. Lua reads it as a double, which is exact until the year 2255.
pub(super) type Stamp = u64;

/// `stamp (8) | user length (4) | user | connection's info length (4) | connection's info | channel's info`; the scripts
/// read stamp and user.
pub(super) fn encode(stamp: Stamp, member: &ClientInfo) -> Bytes {
    let size = 16 + member.user.len() + member.conn_info.len() + member.chan_info.len();
    let mut bytes = Vec::with_capacity(size);
    bytes.put_u64(stamp);
    bytes.put_u32(member.user.len() as u32);
    bytes.put_slice(member.user.as_bytes());
    bytes.put_u32(member.conn_info.len() as u32);
    bytes.put_slice(&member.conn_info);
    bytes.put_slice(&member.chan_info);
    bytes.into()
}

/// The stamp alone.
pub(super) fn stamp(bytes: &[u8]) -> Option<Stamp> {
    Some(u64::from_be_bytes(*bytes.first_chunk()?))
}

/// `None` for what no version of this program wrote.
pub(super) fn decode(client: String, bytes: &Bytes) -> Option<(Stamp, ClientInfo)> {
    let part = |from: usize| {
        let length = u32::from_be_bytes(*bytes.get(from..)?.first_chunk()?) as usize;
        let start = from + 4;
        let end = start.checked_add(length).filter(|end| *end <= bytes.len())?;
        Some((bytes.slice(start..end), end))
    };
    let (user, end) = part(8)?;
    let (conn_info, end) = part(end)?;
    let user = std::str::from_utf8(&user).ok()?.to_owned();
    Some((stamp(bytes)?, ClientInfo { client, user, conn_info, chan_info: bytes.slice(end..) }))
}

/// `<replica in hex>.<generation>`.
pub(crate) fn incarnation(of: Incarnation) -> String {
    format!("{:016x}.{}", of.replica, of.generation)
}

/// Reads what [`incarnation`] wrote.
pub(super) fn parse_incarnation(text: &str) -> Option<Incarnation> {
    let (replica, generation) = text.split_once('.')?;
    Some(Incarnation { replica: u64::from_str_radix(replica, 16).ok()?, generation: generation.parse().ok()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn entries_are_read_back_and_broken_ones_are_not() {
        for info in ["", "{}", "\0\u{ff}"] {
            let member = ClientInfo {
                client: "c".into(),
                user: format!("ann{info}"),
                conn_info: Bytes::from(info.as_bytes().to_vec()),
                chan_info: "[1]".into(),
            };
            let bytes = encode(7, &member);
            assert_eq!((decode("c".into(), &bytes), stamp(&bytes)), (Some((7, member)), Some(7)));
            for end in 0..bytes.len() - 3 {
                assert_eq!(decode("c".into(), &bytes.slice(..end)), None, "{end}");
            }
        }
        assert_eq!(decode("c".into(), &Bytes::from_static(&[0xff; 40])), None);
    }

    #[test]
    fn incarnations_are_read_back() {
        let own = Incarnation { replica: 0xab, generation: 12 };
        assert_eq!(incarnation(own), "00000000000000ab.12");
        assert_eq!(parse_incarnation(&incarnation(own)), Some(own));
        assert_eq!(parse_incarnation("ab"), None);
    }
}
