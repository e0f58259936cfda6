//! Events of a channel in the encodings of its subscribers, each encoded at most once and shared.

use std::sync::Arc;

use bytes::Bytes;
use plenum_protocol::{Disconnect, Encoding, Publication, Push, PushEvent, Reply, encode, encode_publication};

use crate::{Entry, Outbox};

/// Bytes of one message that carries several publications.
const MAX_BURST_BYTES: usize = 16 * 1024;

/// Publications of one run in one encoding.
pub(crate) struct Burst {
    /// One behind the other, in as few messages as [`MAX_BURST_BYTES`] allows.
    messages: Vec<Bytes>,
    /// False when one could not be encoded; those before it are in `messages`.
    fits: bool,
}

impl Burst {
    pub(crate) fn new(encoding: Encoding, channel: &str, entries: &[&Arc<Entry>], shows_offset: bool) -> Self {
        let mut burst = Burst { messages: Vec::new(), fits: true };
        let mut message = Vec::new();
        for entry in entries {
            let Some(frame) = publication_frame(encoding, channel, &entry.publication, shows_offset) else {
                burst.fits = false;
                break;
            };
            if message.is_empty() && entries.len() == 1 {
                burst.messages.push(frame);
                return burst;
            }
            if !message.is_empty() && message.len() + frame.len() > MAX_BURST_BYTES {
                burst.messages.push(std::mem::take(&mut message).into());
            }
            if !message.is_empty() {
                message.extend_from_slice(encoding.separator());
            }
            message.extend_from_slice(&frame);
        }
        if !message.is_empty() {
            burst.messages.push(message.into());
        }
        burst
    }

    pub(crate) fn push(&self, outbox: &Outbox) {
        outbox.push_all(self.messages.iter().cloned());
        if !self.fits {
            outbox.close(Disconnect::INAPPROPRIATE_PROTOCOL);
        }
    }
}

/// One run, encoded at most once per encoding.
#[derive(Default)]
pub(crate) struct Bursts {
    json: Option<Burst>,
    protobuf: Option<Burst>,
}

impl Bursts {
    pub(crate) fn get(&mut self, encoding: Encoding, make: impl FnOnce() -> Burst) -> &Burst {
        match encoding {
            Encoding::Json => self.json.get_or_insert_with(make),
            Encoding::Protobuf => self.protobuf.get_or_insert_with(make),
        }
    }
}

/// One event, encoded at most once per encoding; `Some(None)`: cannot be encoded.
#[derive(Default)]
pub(crate) struct Frames {
    json: Option<Option<Bytes>>,
    protobuf: Option<Option<Bytes>>,
}

impl Frames {
    fn slot(&mut self, encoding: Encoding) -> &mut Option<Option<Bytes>> {
        match encoding {
            Encoding::Json => &mut self.json,
            Encoding::Protobuf => &mut self.protobuf,
        }
    }

    pub(crate) fn publication(
        &mut self,
        encoding: Encoding,
        channel: &str,
        publication: &Publication,
        shows_offset: bool,
    ) -> Option<Bytes> {
        self.slot(encoding)
            .get_or_insert_with(|| publication_frame(encoding, channel, publication, shows_offset))
            .clone()
    }

    pub(crate) fn event(
        &mut self,
        encoding: Encoding,
        channel: &str,
        event: impl FnOnce() -> PushEvent,
    ) -> Option<Bytes> {
        self.slot(encoding).get_or_insert_with(|| push_frame(encoding, channel, event())).clone()
    }
}

/// A publication push in one encoding; `None` when the payload does not fit the encoding.
pub(crate) fn publication_frame(
    encoding: Encoding,
    channel: &str,
    publication: &Publication,
    shows_offset: bool,
) -> Option<Bytes> {
    let mut frame = Vec::with_capacity(publication.data.len() + channel.len() + 64);
    let encoded = if shows_offset || publication.offset == 0 {
        encode_publication(encoding, channel, publication, &mut frame)
    } else {
        encode_publication(encoding, channel, &Publication { offset: 0, ..publication.clone() }, &mut frame)
    };
    encoded.ok().map(|()| frame.into())
}

/// Any other push in one encoding.
pub(crate) fn push_frame(encoding: Encoding, channel: &str, event: PushEvent) -> Option<Bytes> {
    let mut frame = Vec::new();
    encode(encoding, &Reply::Push(Push { channel: channel.to_owned(), event }), &mut frame).ok().map(|()| frame.into())
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use plenum_protocol::{PushEvent, replies};

    use super::*;
    use crate::{OutboxLimits, Work};

    fn entries(payloads: &[&str]) -> Vec<Arc<Entry>> {
        let entry = |(index, data): (usize, &&str)| {
            let offset = index as u64 + 1;
            let publication = Publication { data: data.as_bytes().to_vec().into(), offset, ..Publication::default() };
            Arc::new(Entry { offset, previous: offset - 1, publication, stored_at_ms: 0 })
        };
        payloads.iter().enumerate().map(entry).collect()
    }

    /// What a connection gets: texts of the publications, number of messages, and how it was closed.
    fn received(encoding: Encoding, entries: &[Arc<Entry>]) -> (Vec<String>, usize, Option<Disconnect>) {
        let outbox = Outbox::new(encoding, OutboxLimits { max_bytes: 1 << 24 });
        outbox.open(Bytes::new());
        Burst::new(encoding, "c", &entries.iter().collect::<Vec<_>>(), true).push(&outbox);
        let mut work = Work::default();
        let _ = outbox.poll_work(&mut Context::from_waker(Waker::noop()), &mut work, usize::MAX, usize::MAX);
        let messages = &work.messages[1..];
        let texts = messages.iter().flat_map(|message| replies(encoding, message)).map(|reply| match reply.unwrap() {
            Reply::Push(Push { event: PushEvent::Publication(publication), .. }) => {
                String::from_utf8(publication.data.to_vec()).unwrap()
            }
            other => panic!("{other:?}"),
        });
        (texts.collect(), messages.len(), work.close)
    }

    #[test]
    fn a_burst_is_few_messages_with_everything_in_order() {
        let payloads: Vec<String> = (0..100).map(|number| format!("\"{number}{}\"", "x".repeat(1000))).collect();
        let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
        for encoding in Encoding::ALL {
            let (texts, messages, close) = received(encoding, &entries(&payloads));
            assert_eq!(texts, payloads);
            assert!((6..10).contains(&messages), "{messages}");
            assert_eq!(close, None);
            assert_eq!(received(encoding, &entries(&payloads[..1])).1, 1);
        }
    }

    #[test]
    fn what_is_not_json_ends_a_json_connection_after_what_came_before() {
        let mixed = entries(&["1", "2", "not json", "4"]);
        let (texts, _, close) = received(Encoding::Json, &mixed);
        assert_eq!((texts, close), (vec!["1".into(), "2".into()], Some(Disconnect::INAPPROPRIATE_PROTOCOL)));
        assert_eq!(received(Encoding::Protobuf, &mixed).0, ["1", "2", "not json", "4"]);
    }
}
