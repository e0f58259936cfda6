//! Looks for versions that a failover took back, also of sessions that nobody uses any more.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::record::Header;
use super::seen::Audit;
use super::{RedisSessions, live_version};
use crate::keys::Tag;
use crate::presence::Canaries;

/// Losses that wait for a receiver; one that is slower misses the oldest.
pub(super) const WAITING: usize = 1024;

/// How often the primaries are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Headers read in one write, and the rest after it: 65,536 sessions take about 6 s.
const AT_ONCE: usize = 256;
const REST: Duration = Duration::from_millis(20);

/// Acknowledged updates of a session that the store does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLoss {
    /// Whose.
    pub id: Arc<str>,
    /// The newest version that this replica knew.
    pub known: u64,
    /// What is there now; 0: nothing.
    pub found: u64,
}

impl RedisSessions {
    /// Each loss that this replica finds from now on, once, whether a caller met it or nobody. A receiver that lets more than
    /// 1,024 wait misses the oldest.
    pub fn losses(&self) -> tokio::sync::broadcast::Receiver<SessionLoss> {
        self.losses.subscribe()
    }

    pub(super) fn report(&self, loss: SessionLoss) {
        self.metrics.sessions_went_back.inc();
        let SessionLoss { id, known, found } = &loss;
        tracing::warn!(session = &**id, known, found, "a session went back behind an acknowledged version");
        // Nobody has to listen.
        let _ = self.losses.send(loss);
    }

    /// Reads the headers of sessions that this replica saw; those that have to be read again.
    async fn audit(&self, tags: Vec<Tag>) -> Vec<Tag> {
        let asked_at = Instant::now();
        let answers = self.client.call_all(tags.iter().map(|tag| self.header_of(tag)).collect()).await;
        let mut again = Vec::new();
        for (tag, answer) in tags.into_iter().zip(answers) {
            let Ok(answer) = answer else {
                again.push(tag);
                continue;
            };
            let header = answer.into_bytes().and_then(|bytes| Header::parse(&bytes));
            match self.seen.audit(&tag, header.as_ref(), asked_at) {
                Audit::Sound => {}
                Audit::Again => again.push(tag),
                Audit::Lost { id, known } => {
                    self.report(SessionLoss { id, known, found: live_version(header.as_ref()) });
                }
            }
        }
        again
    }
}

/// Goes on until the store is gone.
pub(super) async fn watch(sessions: Weak<RedisSessions>) {
    let mut canaries = Canaries::late(format!("sessions:{:016x}", rand::random::<u64>()));
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What is due now, and what is due once more: the last acknowledgements of a primary that was replaced may come late.
    let (mut due, mut once_more) = (VecDeque::new(), Vec::new());
    loop {
        rounds.tick().await;
        let Some(sessions) = sessions.upgrade() else { return };
        let changed = canaries.look(&sessions.redis, &sessions.client).await;
        queue(&mut due, std::mem::take(&mut once_more));
        if let Some(changed) = changed {
            let found = sessions.seen.in_slots(|slot| changed[usize::from(slot)]);
            if !found.is_empty() {
                tracing::info!(sessions = found.len(), "Redis may have lost sessions: their versions are compared");
            }
            queue(&mut due, found.clone());
            once_more = found;
        }
        let mut left = due.len();
        while left > 0 {
            let batch: Vec<_> = due.drain(..left.min(AT_ONCE)).collect();
            left -= batch.len();
            let count = batch.len();
            let again = sessions.audit(batch).await;
            // A slot without a primary holds up nobody for longer than one batch.
            let failing = again.len() == count;
            due.extend(again);
            if failing {
                break;
            }
            sleep(REST).await;
        }
    }
}

/// Each once: so there are never more than this replica remembers.
fn queue(due: &mut VecDeque<Tag>, more: Vec<Tag>) {
    let waiting: HashSet<Tag> = due.iter().cloned().collect();
    due.extend(more.into_iter().filter(|tag| !waiting.contains(tag)));
}
