//! Live events from stored messages, and announcements as messages.

use std::sync::Arc;

use plenum_channels::{Announcement, Entry, LiveEvent};

use super::entry::Record;
use super::jetstream::Stored;
use super::shard::Shard;

/// The event of a stored publication; none for what does not count.
pub(super) fn publication(shard: &Shard, seq: u64, previous: u64, stored: &Stored) -> Option<LiveEvent> {
    entry(shard, seq, previous, stored).map(|entry| LiveEvent::Publication(Arc::new(entry)))
}

/// A stored publication as the port knows it; `None` when it is void or of an unknown format.
pub(super) fn entry(shard: &Shard, seq: u64, previous: u64, stored: &Stored) -> Option<Entry> {
    match Record::decode(stored.payload.clone()) {
        Ok(record) if record.is_void(stored.time_ms, shard.void_after_ms()) => None,
        Ok(Record { mut publication, .. }) => {
            publication.offset = seq;
            Some(Entry { offset: seq, previous, publication, stored_at_ms: stored.time_ms })
        }
        Err(error) => {
            tracing::warn!(stream = stored.stream, seq, %error, "an entry cannot be read and is passed over");
            None
        }
    }
}

/// The payload of an announcement: its kind, then the publication or the client as Protobuf.
pub(super) fn encode_announcement(announcement: &Announcement) -> Vec<u8> {
    use prost::Message;
    let (kind, body) = match announcement {
        Announcement::Publication(publication) => (b'p', publication.encode_to_vec()),
        Announcement::Join(info) => (b'j', info.encode_to_vec()),
        Announcement::Leave(info) => (b'l', info.encode_to_vec()),
    };
    [&[kind], body.as_slice()].concat()
}

/// Reads what [`encode_announcement`] wrote.
pub(super) fn decode_announcement(payload: &[u8]) -> Option<Announcement> {
    use plenum_protocol::{ClientInfo, Publication};
    use prost::Message;
    let (kind, body) = payload.split_first()?;
    match kind {
        b'p' => Publication::decode(body).ok().map(Announcement::Publication),
        b'j' => ClientInfo::decode(body).ok().map(Announcement::Join),
        b'l' => ClientInfo::decode(body).ok().map(Announcement::Leave),
        _ => None,
    }
}
