//! Which channels of a shard have become quiet, as its ticks tell: what the port `Tails` is to remember.
//!
//! A channel's last position outlives its data if somebody can say that nothing followed it. Ticks say so, one after the
//! other; where one is missing everything is forgotten. A quiet channel is told once, and again before the stream's front
//! can reach what was said.

use std::collections::VecDeque;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::digest::Digest;

/// Channels of one shard that are followed, about 100 bytes each. Of more, those that are told next are forgotten.
const MAX_CHANNELS: usize = 100_000;

/// A channel is quiet after this.
const SETTLES: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(60) };

/// Bounds of the time after which a quiet channel is told again.
const RENEWED_EACH: [Duration; 2] =
    if cfg!(test) { [Duration::from_secs(1); 2] } else { [Duration::from_secs(60), Duration::from_secs(900)] };

/// See the module's description.
pub(super) struct Lasts {
    /// A channel that is quiet for longer is forgotten.
    ttl: Duration,
    renew: Duration,
    max: usize,
    known: HashMap<u64, Known>,
    /// Channels that may have become quiet, and quiet ones, by the time when they are looked at.
    settling: VecDeque<(Instant, u64)>,
    quiet: VecDeque<(Instant, u64)>,
    through: u64,
}

struct Known {
    last: u64,
    /// Its last sequence when it was looked at.
    seen: u64,
    changed: Instant,
}

impl Lasts {
    /// For a stream that keeps entries at most this long.
    pub fn new(ttl: Duration, max_age: Duration) -> Self {
        Self {
            ttl,
            renew: (max_age / 8).clamp(RENEWED_EACH[0], RENEWED_EACH[1]),
            max: MAX_CHANNELS,
            known: HashMap::new(),
            settling: VecDeque::new(),
            quiet: VecDeque::new(),
            through: 0,
        }
    }

    /// The next tick of the chain.
    pub fn note(&mut self, digest: &Digest) {
        let now = Instant::now();
        self.through = self.through.max(digest.through);
        for &(hash, last) in &digest.changes {
            if let Some(known) = self.known.get_mut(&hash) {
                if known.last < last {
                    (known.last, known.changed) = (last, now);
                }
                continue;
            }
            if self.known.len() >= self.max
                && let Some((_, hash)) = self.quiet.pop_front().or_else(|| self.settling.pop_front())
            {
                self.known.remove(&hash);
            }
            self.known.insert(hash, Known { last, seen: last, changed: now });
            self.settling.push_back((now + SETTLES, hash));
        }
    }

    /// A tick is missing, or the stream is another one: nothing is known any more.
    pub fn forget(&mut self) {
        self.known.clear();
        self.settling.clear();
        self.quiet.clear();
        self.through = 0;
    }

    /// At most `limit` quiet channels with their last sequences, and through where nothing followed these.
    pub fn due(&mut self, limit: usize) -> (u64, Vec<(u64, u64)>) {
        let (now, mut quiet) = (Instant::now(), Vec::new());
        for _ in 0..limit {
            let queue = match (self.settling.front(), self.quiet.front()) {
                (Some((due, _)), _) if *due <= now => &mut self.settling,
                (_, Some((due, _))) if *due <= now => &mut self.quiet,
                _ => break,
            };
            let Some((_, hash)) = queue.pop_front() else { break };
            let Some(known) = self.known.get_mut(&hash) else { continue };
            if known.seen != known.last {
                known.seen = known.last;
                self.settling.push_back((now + SETTLES, hash));
            } else if now.duration_since(known.changed) > self.ttl {
                self.known.remove(&hash);
            } else {
                quiet.push((hash, known.last));
                self.quiet.push_back((now + self.renew, hash));
            }
        }
        (self.through, quiet)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const TTL: Duration = Duration::from_secs(20);

    fn tick(through: u64, changes: &[(u64, u64)]) -> Digest {
        Digest { from: 0, through, writer: 1, changes: changes.to_vec() }
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_channels_are_told_and_told_again() {
        let mut lasts = Lasts::new(TTL, Duration::from_secs(8));
        lasts.note(&tick(10, &[(1, 9), (2, 10)]));
        assert_eq!(lasts.due(10), (10, vec![]), "not yet");
        advance(SETTLES / 2).await;
        lasts.note(&tick(12, &[(2, 12)]));
        advance(SETTLES / 2).await;
        assert_eq!(lasts.due(10), (12, vec![(1, 9)]), "the other one is busy");
        advance(SETTLES).await;
        assert_eq!(lasts.due(10), (12, vec![(2, 12)]));
        lasts.note(&tick(30, &[(1, 29)]));
        assert_eq!(lasts.due(10).1, vec![], "once");
        advance(lasts.renew).await;
        assert_eq!(lasts.due(10), (30, vec![(2, 12)]), "again; what changed has to become quiet");
        advance(SETTLES).await;
        assert_eq!(lasts.due(10), (30, vec![(1, 29)]));
        advance(TTL - lasts.renew - 2 * SETTLES).await;
        assert_eq!(lasts.due(10), (30, vec![(1, 29)]), "the older change is too long ago");
        advance(TTL).await;
        assert_eq!((lasts.due(10).1, lasts.known.len()), (vec![], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hole_forgets_and_the_bound_holds() {
        let mut lasts = Lasts::new(TTL, Duration::from_secs(8));
        lasts.note(&tick(10, &[(1, 9)]));
        lasts.forget();
        advance(TTL / 2).await;
        assert_eq!(lasts.due(10), (0, vec![]));
        lasts.max = 3;
        for hash in 0..10 {
            lasts.note(&tick(10 + hash, &[(hash, 10 + hash)]));
        }
        advance(SETTLES).await;
        assert_eq!(lasts.due(2), (19, vec![(7, 17), (8, 18)]), "no more than asked for");
        assert_eq!(lasts.due(2), (19, vec![(9, 19)]));
        assert_eq!((lasts.known.len(), lasts.quiet.len() + lasts.settling.len()), (3, 3));
    }
}
