//! Attempts that failed, appends that nobody answers, and what the servers said.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use hashbrown::HashMap;
use plenum_channels::{AppendError, Appended};
use tokio::time::Instant;

use super::contact::RECENT;
use super::{ATTEMPT_TIMEOUT, Lane, Resolved};
use crate::log::ack;
use crate::log::line::{FIRST_PAUSE, Op, State};
use crate::log::shard::Shard;

/// A server's reason explains for this long why a stream has no leader: one that is out of storage says so once and
/// gives the lead up.
const EXPLAINS: Duration = Duration::from_secs(60);

/// Trouble is told once in this time.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Attempts that fail sooner belong to an election's beginning and are not told.
const WORTH_TELLING: Duration = Duration::from_secs(2);

/// The servers' own words.
#[derive(Default)]
pub(super) struct Words {
    /// By shard.
    said: HashMap<usize, (Instant, String)>,
    told: Option<Instant>,
}

impl Words {
    /// A server refused an append of this shard.
    pub fn said(&mut self, shard: &Shard, now: Instant, words: &str) {
        self.said.insert(shard.index, (now, words.to_owned()));
    }

    /// Why nobody takes appends for a shard.
    pub fn of_no_leader(&self, shard: &Shard, now: Instant) -> String {
        match self.said.get(&shard.index) {
            Some((at, said)) if now.saturating_duration_since(*at) < EXPLAINS => {
                format!("the stream has no leader; before that the server said: {said}")
            }
            _ => "the stream has no leader".into(),
        }
    }
}

impl Lane {
    /// An attempt failed; `maybe_stored` when nobody knows how far it came.
    pub(super) fn failed(&mut self, at: usize, number: u64, trouble: String, maybe_stored: bool) {
        let now = self.now;
        let Some(line) = self.lines.get(at) else { return };
        let Some(place) = line.place(number) else { return };
        let Some(op) = line.get(place) else { return };
        if !matches!(op.state(), State::InFlight(_)) {
            return;
        }
        op.maybe_stored |= maybe_stored;
        let waited = now.saturating_duration_since(op.request.called);
        if waited > WORTH_TELLING && self.words.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.words.told = Some(now);
            let stream = &op.request.shard.current().stream;
            tracing::warn!(stream, reason = trouble, ?waited, "appends fail and are repeated");
        }
        op.trouble = trouble;
        line.fail(place, now);
        self.in_flight -= 1;
    }

    /// What stays without an answer, what was tried long enough, what may go on.
    pub(super) async fn check_time(&mut self) {
        let now = self.now;
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        let broken = connects != self.connects || !self.connected;
        if broken {
            self.contact.renewed(now);
        }
        self.connects = connects;
        let (mut silent, mut over, mut due) = (Vec::new(), Vec::new(), Vec::new());
        for (at, line) in self.lines.iter() {
            for op in line.ops() {
                match op.state() {
                    State::InFlight(since) if broken || now.saturating_duration_since(since) > ATTEMPT_TIMEOUT => {
                        silent.push((at, op.number));
                    }
                    State::InFlight(_) => {}
                    _ if now.saturating_duration_since(op.request.called) > self.patience
                        || op.overtaken_by.is_some() =>
                    {
                        over.push((at, op.number));
                    }
                    _ => {}
                }
            }
            due.push(at);
        }
        for (at, number) in silent {
            self.failed(at, number, "no acknowledgement in time".into(), true);
        }
        for (at, number) in over {
            let after = self.lines.get(at).map_or(0, |line| line.last_acknowledged);
            if let Some(op) = self.take(at, number) {
                self.give_up(op, after);
            }
        }
        self.leave_if_useless();
        for at in due {
            self.pump(at).await;
        }
        if self.lines.is_empty() {
            self.contact.idle();
        }
    }

    /// Moves to another server when this one leads to no stream.
    fn leave_if_useless(&mut self) {
        let now = self.now;
        let lives = || {
            let mut oldest = self.lines.iter().filter_map(|(_, line)| line.ops().next());
            oldest.any(|op| {
                now.saturating_duration_since(op.request.called) > RECENT && op.request.shard.silence().0 < RECENT
            })
        };
        #[cfg(test)]
        {
            let mut ops = self.lines.iter().flat_map(|(_, line)| line.ops());
            if ops.any(|op| crate::log::faults::Faults::on(&op.request.shard.faults.stay)) {
                self.contact.renewed(now);
            }
        }
        if self.contact.is_due(now, lives) {
            let connection = self.client.connection();
            tracing::warn!(connection, "no stream takes appends here; moving to another server");
            self.links.leave(connection);
        }
    }

    /// Ends an append that may not be sent again; `after` was acknowledged on its channel before it.
    pub(super) fn give_up(&mut self, op: Op, after: u64) {
        let (Some(by), true) = (op.overtaken_by, op.maybe_stored) else {
            op.finish_unanswered();
            return;
        };
        // Whether it was stored before the one that overtook it can be read.
        let after = after.min(by).saturating_sub(1);
        let (client, current) = (self.links.any(), op.request.shard.current());
        let lookup = async move {
            let found = ack::before(&client, &op.request.shard, &current, &op.request, after, by).await;
            let result = match found {
                Some(seq) => Ok(Appended { position: current.position(seq), duplicate: false }),
                None => Err(AppendError::Indeterminate),
            };
            Resolved::Done(op.request.reply, result)
        };
        self.lookups.push(lookup.boxed());
    }

    /// Keeps an append whose acknowledgement does not count: it is repeated under its id when the stream proves to be
    /// intact, or in the stream that takes its place. There a condition on a position of the old one means nothing.
    pub(super) fn hold(&mut self, mut op: Op) {
        op.maybe_stored = true;
        if op.request.shard.current().has_gone_back() {
            if op.request.expected.is_some() {
                op.finish_unanswered();
                return;
            }
            // What the old stream has of it is out of everybody's reach.
            op.stream = None;
            op.overtaken_by = None;
        }
        op.trouble = "the stream went back behind what it had acknowledged".into();
        self.put_back(op);
    }

    /// Puts an append back into its line, to be tried again.
    pub(super) fn put_back(&mut self, op: Op) -> usize {
        let at = self.lines.of(&op.request.channel);
        if let Some(line) = self.lines.get(at) {
            let number = op.number;
            line.insert(op);
            if let Some(place) = line.place(number) {
                line.change(place, State::Failed);
            }
            line.recovering = Some(self.now + FIRST_PAUSE);
        }
        at
    }
}
