//! How a session lies in Redis: one string with a header of fixed length, which scripts read without the state.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | 1: a session, 0: one that was deleted |
//! | 8 | incarnation: random, made with the session |
//! | 8 | version, big-endian |
//! | 64 | marks of the newest 16 versions, 4 random bytes each, the newest last |
//! | 1 | length of the user id |
//! | … | user id, then state; nothing where it was deleted |

use bytes::{Bytes, BytesMut};

pub(super) const MARKS: usize = 16;
/// Bytes before the user id.
pub(super) const HEADER: usize = 82;

const LIVE: u8 = 1;
const MARKS_AT: usize = 17;
const USER_LENGTH_AT: usize = HEADER - 1;

pub(super) type Mark = [u8; 4];

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub live: bool,
    pub incarnation: u64,
    pub version: u64,
    marks: [u8; 4 * MARKS],
    user_length: u8,
}

impl Header {
    /// Of a session at version 1.
    pub fn first(incarnation: u64, mark: Mark, user: &str) -> Self {
        let mut marks = [0; 4 * MARKS];
        marks[4 * (MARKS - 1)..].copy_from_slice(&mark);
        // The port bounds user ids to 255 bytes.
        Header { live: true, incarnation, version: 1, marks, user_length: user.len() as u8 }
    }

    /// `None` for what is no record, also when nothing is there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER)?;
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        Some(Header {
            live: bytes[0] == LIVE,
            incarnation: number(1)?,
            version: number(9)?,
            marks: bytes[MARKS_AT..USER_LENGTH_AT].try_into().ok()?,
            user_length: bytes[USER_LENGTH_AT],
        })
    }

    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = u8::from(self.live);
        bytes[1..9].copy_from_slice(&self.incarnation.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.version.to_be_bytes());
        bytes[MARKS_AT..USER_LENGTH_AT].copy_from_slice(&self.marks);
        bytes[USER_LENGTH_AT] = self.user_length;
        bytes
    }

    /// The mark with which a version was written; `None` when it is too long ago or not written yet.
    pub fn mark_of(&self, version: u64) -> Option<Mark> {
        let back = self.version.checked_sub(version).filter(|_| version > 0)?;
        let back = usize::try_from(back).ok().filter(|back| *back < MARKS)?;
        let at = 4 * (MARKS - 1 - back);
        self.marks[at..at + 4].try_into().ok()
    }

    /// The next version.
    pub fn next(mut self, mark: Mark) -> Self {
        self.version += 1;
        self.marks.copy_within(4.., 0);
        self.marks[4 * (MARKS - 1)..].copy_from_slice(&mark);
        self
    }

    /// As the record of its deletion.
    pub fn deleted(self) -> Self {
        Header { live: false, user_length: 0, ..self }
    }

    /// User and state of a whole record; `None` when it is shorter than its header says.
    pub fn body(&self, record: &Bytes) -> Option<(String, Bytes)> {
        let start = HEADER + usize::from(self.user_length);
        let user = std::str::from_utf8(record.get(HEADER..start)?).ok()?.to_owned();
        Some((user, record.slice(start..)))
    }
}

/// A whole record.
pub(super) fn record(header: &Header, user: &str, state: &[u8]) -> Bytes {
    let mut record = BytesMut::with_capacity(HEADER + user.len() + state.len());
    record.extend_from_slice(&header.bytes());
    record.extend_from_slice(user.as_bytes());
    record.extend_from_slice(state);
    record.freeze()
}

/// A session's entry among its user's: incarnation in 16 hex digits, id. So an entry is of one session and not of another
/// that was made under the same id.
pub(super) fn listed(incarnation: u64, id: &str) -> String {
    format!("{incarnation:016x}{id}")
}

/// Incarnation and id of what [`listed`] made.
pub(super) fn listed_parts(entry: &str) -> Option<(u64, &str)> {
    let (incarnation, id) = entry.split_at_checked(16)?;
    Some((u64::from_str_radix(incarnation, 16).ok()?, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut header = Header::first(u64::MAX - 1, [1; 4], "änn");
        for n in 2..=20 {
            header = header.next([n; 4]);
        }
        let bytes = record(&header, "änn", b"state");
        assert_eq!(Header::parse(&bytes), Some(header));
        assert_eq!(header.body(&bytes), Some(("änn".into(), Bytes::from_static(b"state"))));
        assert_eq!((header.mark_of(20), header.mark_of(5)), (Some([20; 4]), Some([5; 4])));
        assert_eq!((header.mark_of(4), header.mark_of(21), header.mark_of(0)), (None, None, None));
        assert_eq!(Header::parse(&bytes[..HEADER - 1]), None);
        assert_eq!(header.body(&bytes.slice(..HEADER + 3)), None);
    }

    #[test]
    fn entries_of_lists_are_read_as_they_were_written() {
        for (incarnation, id) in [(7, "ä"), (u64::MAX, "0123456789abcdef0123456789abcdef")] {
            assert_eq!(listed_parts(&listed(incarnation, id)), Some((incarnation, id)));
        }
        assert_eq!((listed_parts("short"), listed_parts("123456789012345ä")), (None, None));
    }
}
