//! Ticks: what changed in a shard since the tick before, as an entry of the shard itself.
//!
//! A tick covers the sequences (`from`, `through`] and names, by hash, every channel that got an entry in them with its
//! last sequence there. Ticks chain by `from`: when each is read in turn, nothing of any channel can be missed.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hashbrown::HashMap;

const FORMAT: u8 = 1;

/// Most channels in one tick, 12–17 bytes each; a busier second makes several ticks.
pub(super) const MAX_CHANGES: usize = 40_000;

/// The content of one tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    /// Everything after this sequence …
    pub from: u64,
    /// … through this one is covered.
    pub through: u64,
    /// Who wrote it; a random number of one run of a replica.
    pub writer: u64,
    /// Hash of the channel and its last sequence in the range.
    pub changes: Vec<(u64, u64)>,
}

impl Digest {
    /// The payload.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(29 + self.changes.len() * 13);
        out.put_u8(FORMAT);
        out.put_u64_le(self.from);
        out.put_u64_le(self.through);
        out.put_u64_le(self.writer);
        out.put_u32_le(self.changes.len() as u32);
        for &(hash, last) in &self.changes {
            out.put_u64_le(hash);
            let mut distance = self.through.saturating_sub(last);
            while distance >= 128 {
                out.put_u8(distance as u8 | 128);
                distance >>= 7;
            }
            out.put_u8(distance as u8);
        }
        out.freeze()
    }

    /// Reads a payload; `None` when it is no tick that this version knows.
    pub fn decode(mut payload: Bytes) -> Option<Self> {
        if payload.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let (from, through) = (payload.try_get_u64_le().ok()?, payload.try_get_u64_le().ok()?);
        let writer = payload.try_get_u64_le().ok()?;
        let count = payload.try_get_u32_le().ok()? as usize;
        if through < from || count > payload.len() / 9 {
            return None;
        }
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            let hash = payload.try_get_u64_le().ok()?;
            let (mut distance, mut shift) = (0, 0);
            loop {
                let byte = payload.try_get_u8().ok()?;
                distance |= u64::from(byte & 127).checked_shl(shift)?;
                shift += 7;
                if byte < 128 {
                    break;
                }
            }
            changes.push((hash, through.checked_sub(distance)?));
        }
        Some(Self { from, through, writer, changes })
    }
}

/// Collects what a contiguous range of a shard changed.
#[derive(Debug)]
pub(super) struct Collector {
    from: u64,
    through: u64,
    changes: HashMap<u64, u64>,
}

impl Collector {
    /// Nothing after `from` is known yet.
    pub fn after(from: u64) -> Self {
        Self { from, through: from, changes: HashMap::new() }
    }

    /// Notes the sequence `seq`, and the channel if it is a publication. False when a sequence before it is missing:
    /// then it was not noted.
    pub fn note(&mut self, seq: u64, channel: Option<u64>) -> bool {
        if seq <= self.through {
            return true;
        }
        if seq != self.through + 1 {
            return false;
        }
        self.through = seq;
        if let Some(hash) = channel {
            self.changes.insert(hash, seq);
        }
        true
    }

    /// Everything through here is noted.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// As many channels as one tick takes.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= MAX_CHANGES
    }

    /// The digest of what was noted.
    pub fn digest(self, writer: u64) -> Digest {
        Digest { from: self.from, through: self.through, writer, changes: self.changes.into_iter().collect() }
    }
}

/// What a replica knows of a shard's chain of ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TickChain {
    /// Sequence of the newest tick taken in.
    pub newest: u64,
    /// Through here every channel's changes were seen.
    pub through: u64,
}

/// What a tick means to a replica's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The next one: its changes may be taken in.
    Next,
    /// An old one.
    Known,
    /// One before it is missing: everything after `through` must be read first.
    Missing,
}

impl TickChain {
    /// Says what a tick at sequence `seq` is, and takes it in when it is the next.
    pub fn take(&mut self, seq: u64, digest: &Digest) -> Link {
        if seq <= self.newest {
            return Link::Known;
        }
        if digest.from > self.through {
            return Link::Missing;
        }
        self.newest = seq;
        self.through = self.through.max(digest.through);
        Link::Next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_come_back() {
        let changes = vec![(u64::MAX, 11), (0, 1000), (7, 500)];
        let digest = Digest { from: 10, through: 1000, writer: 3, changes };
        assert_eq!(Digest::decode(digest.encode()), Some(digest.clone()));
        let bytes = digest.encode();
        for end in 0..bytes.len() {
            assert_eq!(Digest::decode(bytes.slice(..end)), None, "{end}");
        }
        let huge = Digest { from: 0, through: u64::MAX, writer: 0, changes: vec![(1, 0)] };
        assert_eq!(Digest::decode(huge.encode()), Some(huge));
        assert_eq!(Digest::decode(Bytes::from_static(&[255; 64])), None);
    }

    #[test]
    fn a_full_digest_fits_into_one_message() {
        let changes = (0..MAX_CHANGES as u64).map(|n| (n, 0)).collect();
        let digest = Digest { from: 0, through: 1 << 40, writer: 1, changes };
        assert!(digest.encode().len() < 900 << 10);
    }

    #[test]
    fn the_collector_takes_no_hole() {
        let mut collector = Collector::after(5);
        assert!(collector.note(6, Some(1)) && collector.note(7, None) && !collector.note(9, Some(2)));
        assert_eq!(collector.through(), 7);
        assert!(collector.note(6, Some(9)) && collector.note(8, Some(1)) && collector.note(9, Some(2)));
        let mut digest = collector.digest(4);
        digest.changes.sort_unstable();
        assert_eq!(digest, Digest { from: 5, through: 9, writer: 4, changes: vec![(1, 8), (2, 9)] });
    }

    #[test]
    fn ticks_chain_by_what_they_cover() {
        let tick = |from, through| Digest { from, through, ..Digest::default() };
        let mut chain = TickChain { newest: 10, through: 9 };
        assert_eq!(chain.take(10, &tick(0, 9)), Link::Known);
        assert_eq!(chain.take(30, &tick(20, 29)), Link::Missing);
        assert_eq!(chain, TickChain { newest: 10, through: 9 });
        assert_eq!(chain.take(20, &tick(9, 19)), Link::Next);
        assert_eq!(chain.take(30, &tick(19, 29)), Link::Next);
        assert_eq!(chain, TickChain { newest: 30, through: 29 });
    }
}
