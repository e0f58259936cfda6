//! What a resumed connection takes over from the one before it: the others see it neither leave nor join.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::session::Identity;
use crate::{Answer, Node, Question};

/// While it is unknown whether a replica that did not answer has announced a leave, no join is announced for so long.
const DOUBT: Duration = Duration::from_secs(6);

/// The hand-over of one client id to a new connection.
#[derive(Debug)]
pub(crate) struct Resumption {
    began: Instant,
    done: watch::Receiver<bool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Channels that the new connection has entered.
    entered: HashSet<Arc<str>>,
    /// Channels in which others still take the client for present.
    inherited: HashSet<Arc<str>>,
    /// Every replica has answered.
    complete: bool,
    /// The answers that came are in.
    collected: bool,
}

/// Whether others are to be told that the client is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// They do not know it.
    Announce,
    /// They never saw it leave.
    Keep,
    /// It is known once [`Resumption::settled`] resolves.
    Later,
}

impl Resumption {
    /// Has every replica close what it holds of the client id and hand over what others see of it.
    pub(crate) fn begin(node: &Arc<Node>, identity: &Arc<Identity>) -> Arc<Self> {
        let (sender, done) = watch::channel(false);
        let resumption = Arc::new(Self { began: Instant::now(), done, state: Mutex::default() });
        let (node, identity, shared) = (node.clone(), identity.clone(), resumption.clone());
        tokio::spawn(async move {
            shared.collect(&node, identity).await;
            sender.send_replace(true);
        });
        resumption
    }

    async fn collect(&self, node: &Arc<Node>, identity: Arc<Identity>) {
        let (client, step) = (identity.client, identity.step);
        let question = Question::Release { client: client.to_string(), step };
        let answers = match node.control.survey(question).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!(%error, "older connections of a client are closed by its fence alone");
                self.state.lock().collected = true;
                return;
            }
        };
        let holder = match node.registry.identity_of(client, step) {
            None if answers.iter().any(|answer| matches!(answer, Answer::Released(it) if !it.seats.is_empty())) => {
                // The connection has ended already. Unless the client is back on a newer one, its leaves are due all the same.
                node.resume.is_newest(client, step).await.then_some(identity)
            }
            found => found,
        };
        let mut state = self.state.lock();
        let mut complete = answers.len() >= node.replicas.census().alive.len();
        for answer in answers {
            let Answer::Released(released) = answer else { continue };
            complete &= !released.pending;
            for seat in released.seats {
                let channel: Arc<str> = seat.channel.into();
                if !state.entered.contains(&channel)
                    && let Some(holder) = &holder
                {
                    node.grace.inherit(holder, channel.clone(), seat.info.into(), node.presence_grace());
                }
                state.inherited.insert(channel);
            }
        }
        (state.complete, state.collected) = (complete, true);
    }

    /// The connection enters a channel; `held` says that this replica had kept its leave back.
    pub(crate) fn enter(&self, channel: &Arc<str>, held: bool) -> Join {
        let mut state = self.state.lock();
        if !state.entered.insert(channel.clone()) {
            return Join::Announce;
        }
        if held {
            return Join::Keep;
        }
        if !*self.done.borrow() {
            return Join::Later;
        }
        if !state.complete && self.began.elapsed() < DOUBT { Join::Keep } else { Join::Announce }
    }

    /// The connection could not enter the channel. True when others, as far as is known, still take the client for
    /// present; false also before that is known: then the answers will be held back as the channel's leave.
    pub(crate) fn retract(&self, channel: &Arc<str>) -> bool {
        let mut state = self.state.lock();
        state.entered.remove(channel);
        state.collected && (state.inherited.contains(channel) || !state.complete)
    }

    /// For [`Join::Later`]: whether the join is to be announced.
    pub(crate) async fn settled(&self, channel: &Arc<str>) -> bool {
        let mut done = self.done.clone();
        let _ = done.wait_for(|done| *done).await;
        let state = self.state.lock();
        state.complete && !state.inherited.contains(channel)
    }
}
