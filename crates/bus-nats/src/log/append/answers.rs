//! What the servers answered, and what look-ups came to.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode};
use futures_util::FutureExt;
use plenum_channels::{AppendError, Appended};

use super::contact::is_of_the_stream;
use super::{Lane, Resolved};
use crate::log::ack::{self, Ack, After, Found};
use crate::log::jetstream::RequestError;
use crate::log::line::{LONGEST_PAUSE, State};

/// An acknowledgement later than this after the first attempt counts for nothing: readers may hold the entry for void.
const TOO_LATE: Duration = Duration::from_secs(45);

/// Line, number and attempt that an answer is for, as its subject ends.
fn destination(subject: &str) -> Option<(usize, u64, u32)> {
    let mut parts = subject.rsplit(['.', '-']);
    let attempt = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    Some((parts.next()?.parse().ok()?, number, attempt))
}

impl Lane {
    pub(super) async fn answered(&mut self, message: Message) {
        let Some((at, number, attempt)) = destination(&message.subject) else { return };
        let Some(line) = self.lines.get(at) else { return };
        let Some(op) = line.place(number).and_then(|place| line.get(place)) else { return };
        #[cfg(test)]
        if message.status.is_none() && crate::log::faults::Faults::take(&op.request.shard.faults.deafen) {
            return;
        }
        // A refusal of an attempt that was given up says nothing of those after it.
        let newest = attempt == op.attempts;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            let reason = self.words.of_no_leader(&op.request.shard, self.now);
            if newest {
                self.failed(at, number, reason, false);
            }
        } else {
            let answer = Ack::parse(&message.payload);
            if answer.as_ref().map_or_else(is_of_the_stream, |_| true) {
                self.contact.useful(self.now, self.in_flight > 1);
            }
            match answer {
                Ok(ack) => self.acknowledged(at, number, attempt, ack),
                Err(error) if newest => self.refused(at, number, error),
                Err(_) => {}
            }
        }
        self.pump(at).await;
    }

    fn acknowledged(&mut self, at: usize, number: u64, attempt: u32, ack: Ack<'_>) {
        let Some(op) = self.take(at, number) else { return };
        let current = op.request.shard.current();
        // The first acknowledgement of an attempt is for what that very attempt stored.
        let exact = !ack.duplicate && attempt == op.attempts;
        let floor = if exact { op.floors.1 } else { op.floors.0 };
        let others = ack.duplicate && op.request.keyed;
        let here = current.stream == ack.stream;
        let proven = here && (current.has_gone_back() || ack.seq <= floor && !others);
        #[cfg(test)]
        let proven = proven && !crate::log::faults::Faults::on(&op.request.shard.faults.believe_old);
        if proven {
            current.goes_back();
            self.hold(op);
            return;
        }
        // An earlier attempt may have been stored before the stream went back, or after.
        let doubtful = !exact && ack.seq <= op.request.shard.seen();
        let Some(line) = self.lines.get(at) else { return };
        if here {
            op.request.shard.see(ack.stream, ack.seq);
            if !ack.duplicate {
                op.request.shard.note(ack.stream, ack.seq, line.hash);
            }
        }
        if !ack.duplicate {
            for earlier in line.ops_mut().take_while(|earlier| earlier.number < number) {
                #[cfg(test)]
                if crate::log::faults::Faults::on(&earlier.request.shard.faults.retry_overtaken) {
                    continue;
                }
                if earlier.attempts > 0 {
                    earlier.overtaken_by.get_or_insert(ack.seq);
                }
            }
        }
        line.recover(self.now);
        if !here || self.now.saturating_duration_since(op.request.called) > TOO_LATE {
            op.finish(Err(AppendError::Indeterminate));
            return;
        }
        line.last_acknowledged = line.last_acknowledged.max(ack.seq);
        let position = current.position(ack.seq);
        let known = !ack.duplicate || (!op.request.keyed && op.request.expected.is_none());
        #[cfg(test)]
        let known = known || crate::log::faults::Faults::on(&op.request.shard.faults.trust_duplicates);
        if known && !doubtful {
            op.finish(Ok(Appended { position, duplicate: false }));
            return;
        }
        let (client, seq) = (self.links.any(), ack.seq);
        let lookup = async move {
            if doubtful {
                // Is there a server that has everything that was seen?
                match op.request.shard.fresh(&client, &[], 0, 0).await {
                    Ok(fresh) if Arc::ptr_eq(&fresh.current, &current) && !current.has_gone_back() => {}
                    _ => return Resolved::Unproven(Box::new(op)),
                }
            }
            if known {
                return Resolved::Done(op.request.reply, Ok(Appended { position, duplicate: false }));
            }
            // Somebody's attempt with this id was stored there: whose, the entry says.
            let found = ack::at(&client, &current, &op.request, seq).await;
            let result = match found {
                Some(Found::Own) => Ok(Appended { position, duplicate: false }),
                Some(Found::SameKey) => Ok(Appended { position, duplicate: true }),
                Some(Found::Foreign) => {
                    Err(AppendError::Unavailable { reason: "the server knows the id for another entry".into() })
                }
                None => Err(AppendError::Indeterminate),
            };
            Resolved::Done(op.request.reply, result)
        };
        self.lookups.push(lookup.boxed());
    }

    fn refused(&mut self, at: usize, number: u64, error: RequestError) {
        let words = error.to_string();
        let (code, description) = match error {
            RequestError::Refused { code, description } => (code, description),
            _ => return self.failed(at, number, words, true),
        };
        match code {
            // Wrong last sequence: perhaps our own earlier attempt has made it so.
            10071 => self.wrong_last(at, number, &description),
            // An attempt with this id, or another condition on this subject, is under way.
            10158 | 10164 => self.failed(at, number, words, false),
            10054 => {
                if let Some(op) = self.take(at, number) {
                    let size = op.request.payload.len();
                    op.finish(Err(AppendError::TooLarge { size, max: size.saturating_sub(1) }));
                }
            }
            10060 => {
                if let Some(op) = self.take(at, number) {
                    op.request.shard.suspect.notify_one();
                    op.finish_unanswered();
                }
            }
            _ => {
                if let Some(line) = self.lines.get(at)
                    && let Some(op) = line.place(number).and_then(|place| line.get(place))
                {
                    self.words.said(&op.request.shard, self.now, &words);
                }
                self.failed(at, number, words, false);
            }
        }
    }

    fn wrong_last(&mut self, at: usize, number: u64, description: &str) {
        let Some(mut op) = self.take(at, number) else { return };
        let last = description.rsplit(' ').next().and_then(|last| last.parse().ok()).unwrap_or(0);
        let expected = op.request.expected.unwrap_or(0);
        let certain = op.attempts == 1 && !op.request.keyed && last > 0;
        #[cfg(test)]
        let certain = certain || crate::log::faults::Faults::on(&op.request.shard.faults.believe_refusals);
        if certain {
            op.finish(Err(AppendError::Conflict { expected, last }));
            return;
        }
        let (client, current) = (self.links.any(), op.request.shard.current());
        let lookup = async move {
            let shard = op.request.shard.clone();
            match ack::after(&client, &shard, &current, &op.request, expected).await {
                Ok(After::Ours { seq, found }) => {
                    let duplicate = found == Found::SameKey;
                    Resolved::Done(op.request.reply, Ok(Appended { position: current.position(seq), duplicate }))
                }
                Ok(After::Others { last }) => {
                    Resolved::Done(op.request.reply, Err(AppendError::Conflict { expected, last }))
                }
                Ok(After::Nothing) => {
                    // What was expected was trimmed away, or it is the front: for the server there is nothing.
                    op.request.expected = Some(0);
                    op.checked = true;
                    Resolved::Repeat(Box::new(op))
                }
                Err(error) => {
                    op.trouble = error.to_string();
                    Resolved::Repeat(Box::new(op))
                }
            }
        };
        self.lookups.push(lookup.boxed());
    }

    pub(super) async fn resolved(&mut self, resolved: Resolved) {
        match resolved {
            Resolved::Done(reply, result) => drop(reply.send(result)),
            Resolved::Checked { line, number, front } => self.checked(line, number, front).await,
            Resolved::Unproven(op) => self.hold(*op),
            Resolved::Repeat(op) => {
                let at = self.put_back(*op);
                self.pump(at).await;
            }
        }
    }

    async fn checked(&mut self, at: usize, number: u64, front: Result<u64, RequestError>) {
        let Some(line) = self.lines.get(at) else { return };
        let Some(place) = line.place(number) else { return };
        match front {
            Ok(0) => {
                if let Some(op) = line.get(place) {
                    op.checked = true;
                }
                let failed_before = line.recovering.is_some();
                line.change(place, if failed_before { State::Failed } else { State::Waits });
            }
            Ok(last) => {
                if let Some(op) = self.take(at, number) {
                    op.finish(Err(AppendError::Conflict { expected: 0, last }));
                }
            }
            Err(error) => {
                if let Some(op) = line.get(place) {
                    op.trouble = error.to_string();
                }
                line.change(place, State::Failed);
                line.recovering = Some(self.now + LONGEST_PAUSE);
            }
        }
        self.pump(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_what_they_are_for() {
        assert_eq!(destination("_INBOX.a-b.7-12-1"), Some((7, 12, 1)));
        for wrong in ["", "_INBOX.x.7", "_INBOX.x.a-1-1", "7-12", "_INBOX.x.7-12-"] {
            assert_eq!(destination(wrong), None, "{wrong}");
        }
    }
}
