//! Subscribers that check each delivery: the right publications, all of them, in order, once.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use plenum_protocol::{Encoding, PushEvent, Reply, replies};

use crate::swarm::Listener;

/// The payload of publication `number`: a JSON object of exactly `size` bytes.
pub fn payload(number: u64, size: usize) -> Bytes {
    let head = format!("{{\"n\":{number},\"pad\":\"");
    let pad = size.saturating_sub(head.len() + 2);
    Bytes::from(format!("{head}{}\"}}", "x".repeat(pad)))
}

/// Smallest payload that holds any number.
pub const SMALLEST_PAYLOAD: usize = 40;

/// Connections 0 to `next.len() - 1` are subscribers of one channel; further ones publish and get replies.
pub struct Audience {
    channel: String,
    size: usize,
    /// Number of the publication that each subscriber must get next.
    next: Vec<u64>,
    /// Number of the first publication of this round.
    first: u64,
    /// Its publications as the first subscriber got them, taken apart and checked; the others must get the same bytes.
    lines: Vec<Vec<u8>>,
    /// All deliveries so far.
    pub delivered: u64,
    /// Replies to publish commands so far.
    pub replies: u64,
}

impl Audience {
    /// Subscribers who have got nothing yet; publications are numbered from 0.
    pub fn new(channel: &str, subscribers: usize, size: usize) -> Self {
        Self {
            channel: channel.to_owned(),
            size,
            next: vec![0; subscribers],
            first: 0,
            lines: Vec::new(),
            delivered: 0,
            replies: 0,
        }
    }

    /// Everybody has everything up to `first`, exclusively.
    ///
    /// # Errors
    /// Somebody has not.
    pub fn begin_round(&mut self, first: u64) -> Result<()> {
        ensure!(self.next.iter().all(|next| *next == first), "a subscriber is not at publication {first}");
        self.first = first;
        self.lines.clear();
        Ok(())
    }

    fn check(&self, line: &[u8], number: u64) -> Result<()> {
        for reply in replies(Encoding::Json, line) {
            match reply? {
                Reply::Push(push) if push.channel == self.channel => match push.event {
                    PushEvent::Publication(publication) if publication.data == payload(number, self.size) => {}
                    other => bail!("expected publication {number}, got {other:?}"),
                },
                other => bail!("expected publication {number}, got {other:?}"),
            }
        }
        Ok(())
    }
}

impl Listener for Audience {
    fn line(&mut self, connection: usize, line: &[u8]) -> Result<()> {
        let Some(&number) = self.next.get(connection) else {
            for reply in replies(Encoding::Json, line) {
                ensure!(matches!(reply?, Reply::Result { .. }), "{}", String::from_utf8_lossy(line));
                self.replies += 1;
            }
            return Ok(());
        };
        let at = usize::try_from(number - self.first)?;
        if self.lines.get(at).is_none_or(|known| known != line) {
            self.check(line, number)?;
            if at == self.lines.len() {
                self.lines.push(line.to_vec());
            }
        }
        self.next[connection] += 1;
        self.delivered += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64) -> Vec<u8> {
        let data = payload(number, 64);
        let data = String::from_utf8_lossy(&data);
        format!(r#"{{"push":{{"channel":"c","pub":{{"data":{data}}}}}}}"#).into_bytes()
    }

    #[test]
    fn payloads_have_the_size_that_was_asked_for() {
        for number in [0, 99, u64::MAX] {
            let data = payload(number, 128);
            assert_eq!(data.len(), 128);
            assert!(serde_json::from_slice::<serde_json::Value>(&data).is_ok());
            assert_eq!(payload(number, SMALLEST_PAYLOAD).len(), SMALLEST_PAYLOAD);
        }
    }

    #[test]
    fn only_the_right_sequence_passes() {
        let mut audience = Audience::new("c", 2, 64);
        for (connection, number) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            audience.line(connection, &line(number)).unwrap();
        }
        audience.begin_round(2).unwrap();
        audience.line(0, &line(2)).unwrap();
        assert!(audience.begin_round(3).is_err(), "the second subscriber is behind");
        assert!(audience.line(0, &line(2)).is_err(), "doubled");
        assert!(audience.line(1, &line(3)).is_err(), "lost one");
        assert!(audience.line(1, br#"{"push":{"channel":"c","unsubscribe":{"code":2500}}}"#).is_err());
        assert_eq!(audience.delivered, 5);
    }

    #[test]
    fn replies_go_to_publishers() {
        let mut audience = Audience::new("c", 1, 64);
        audience.line(1, br#"{"id":1,"publish":{}}"#).unwrap();
        assert_eq!(audience.replies, 1);
        assert!(audience.line(1, br#"{"id":2,"error":{"code":103,"message":"permission denied"}}"#).is_err());
    }
}
