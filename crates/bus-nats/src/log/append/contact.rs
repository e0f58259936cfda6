//! Whether a lane's server leads to the streams, and when to leave it.
//!
//! A server that is cut off from its peers keeps its clients and answers at once: nobody is there, or nothing at all. An
//! election looks the same. Ticks that still arrive tell them apart: then the stream lives, and somewhere else.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::log::jetstream::RequestError;

/// A stream that shows signs of life takes no append of ours for this long: our server does not lead to it.
const LIVES_ELSEWHERE: Duration = Duration::from_secs(4);

/// A tick so recent is a sign of life.
pub(super) const RECENT: Duration = Duration::from_secs(2);

/// Longer than an election.
const ELECTION: Duration = Duration::from_secs(10);

/// After so many servers in a row that were no better, each of them gets more time than the one before.
const MANY: u32 = 3;
const LONGEST: Duration = Duration::from_secs(60);

/// What a lane knows of its way to the streams.
pub(super) struct Contact {
    /// Since when appends wait for a useful answer; none when nothing is due.
    waiting: Option<Instant>,
    /// Servers left since the last useful answer.
    left: u32,
    /// Lanes and replicas do not all leave at once.
    spread: f64,
}

impl Contact {
    pub fn new() -> Self {
        Self { waiting: None, left: 0, spread: rand::rng().random_range(1.0..1.2) }
    }

    /// An append was sent, or could not be.
    pub fn sent(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// A stream has answered; `more` appends are sent.
    pub fn useful(&mut self, now: Instant, more: bool) {
        self.waiting = more.then_some(now);
        self.left = 0;
    }

    /// Nothing is left to append.
    pub fn idle(&mut self) {
        self.waiting = None;
    }

    /// The connection was made anew: the server that it has now gets its time.
    pub fn renewed(&mut self, now: Instant) {
        self.waiting = self.waiting.map(|_| now);
    }

    /// Whether to leave the server now; the next one gets its time. `lives` says whether a stream that takes nothing of
    /// ours shows signs of life, and is asked only when it matters.
    pub fn is_due(&mut self, now: Instant, lives: impl FnOnce() -> bool) -> bool {
        let Some(waited) = self.waiting.map(|since| now - since) else { return false };
        let factor = self.spread * f64::from(1 << self.left.saturating_sub(MANY).min(8));
        let due = |patience: Duration| waited >= patience.mul_f64(factor).min(LONGEST);
        let due = due(ELECTION) || due(LIVES_ELSEWHERE) && lives();
        if due {
            self.waiting = Some(now);
            self.left += 1;
        }
        due
    }
}

/// Whether an answer comes from the stream, and not from a server that cannot reach it.
pub(super) fn is_of_the_stream(error: &RequestError) -> bool {
    // No JetStream on this server, in this account, in the cluster; no leader.
    matches!(error, RequestError::Refused { code, .. } if !matches!(code, 503 | 10008 | 10009 | 10039 | 10076))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the server is left, for a clock that looks every 100 ms, within two minutes.
    fn left(contact: &mut Contact, start: Instant, lives: bool) -> Vec<u64> {
        let ticks = (0..1200).map(|n| Duration::from_millis(100 * n));
        ticks.filter(|after| contact.is_due(start + *after, || lives)).map(|after| after.as_secs()).collect()
    }

    #[test]
    fn a_server_without_useful_answers_is_left() {
        let start = Instant::now();
        let mut contact = Contact { spread: 1.0, ..Contact::new() };
        contact.sent(start);
        // Refused again and again, in vain.
        contact.sent(start + Duration::from_secs(3));
        assert_eq!(left(&mut contact, start, true), [4, 8, 12, 16, 24, 40, 72]);
        let mut contact = Contact { spread: 1.0, ..Contact::new() };
        contact.sent(start);
        assert_eq!(left(&mut contact, start, false), [10, 20, 30, 40, 60, 100], "no storm in an election");
    }

    #[test]
    fn idleness_and_answers_are_no_reason() {
        let start = Instant::now();
        let mut contact = Contact { spread: 1.0, ..Contact::new() };
        assert!(left(&mut contact, start, true).is_empty());
        contact.sent(start);
        contact.useful(start, false);
        assert!(left(&mut contact, start, true).is_empty());
        // The first append after an hour gets as much time as any.
        let later = start + Duration::from_secs(3600);
        contact.sent(later);
        assert!(!contact.is_due(later + Duration::from_millis(3900), || true));
        contact.useful(later + Duration::from_millis(3950), true);
        assert!(!contact.is_due(later + Duration::from_secs(7), || true), "one answer, the rest is due");
        assert!(contact.is_due(later + Duration::from_secs(8), || true));
        contact.renewed(later + Duration::from_secs(11));
        assert!(!contact.is_due(later + Duration::from_secs(14), || true), "the new server gets its time");
        contact.idle();
        assert!(left(&mut contact, later, true).is_empty());
    }
}
