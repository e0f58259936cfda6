//! New leaders of a shard's stream: what the old one had not republished when it went is looked up at once.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::delivery::Delivery;
use super::jetstream::REQUEST_TIMEOUT;
use super::links::Links;
use super::setup::{StreamInfo, stream_info};
use super::shard::Shard;

/// A new leader may not answer at once; after so many tries the look-up goes on without its answer.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Pause before the advisories are subscribed to again.
const AGAIN: Duration = Duration::from_millis(500);

/// The advisory that the new leader of a stream publishes (ADR-2 of the NATS project).
const ADVISORY: &str = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED";

/// Notices new leaders by the server's advisory, and by the leader's name whenever the stream is inspected, because an
/// advisory may be lost with the route that it came by.
pub(super) struct Elections {
    shard: Arc<Shard>,
    links: Arc<dyn Links>,
    /// The stream that `advisories` are about.
    stream: String,
    advisories: Option<Subscriber>,
    leader: Option<String>,
    /// There was one that was not looked after yet.
    due: bool,
}

impl Elections {
    pub fn of(shard: Arc<Shard>, links: Arc<dyn Links>) -> Self {
        Self { shard, links, stream: String::new(), advisories: None, leader: None, due: false }
    }

    /// Waits for a new leader. Loses nothing when it is dropped before it is ready.
    pub async fn next(&mut self) {
        while !self.due {
            let current = self.shard.current();
            if self.advisories.is_none() || self.stream != current.stream {
                // Whoever drops this while it waits must not leave the advisories of another stream under the new name.
                self.advisories = None;
                self.stream.clone_from(&current.stream);
                self.advisories = self.listen().await;
            }
            match &mut self.advisories {
                Some(advisories) => match advisories.next().await {
                    Some(_) => self.due = true,
                    None => self.advisories = None,
                },
                None => sleep(AGAIN).await,
            }
        }
        self.due = false;
    }

    async fn listen(&self) -> Option<Subscriber> {
        let client = self.links.subscribing(self.shard.index as u64);
        match timeout(REQUEST_TIMEOUT, client.subscribe(format!("{ADVISORY}.{}", self.stream))).await {
            Ok(Ok(subscriber)) => Some(subscriber),
            _ => None,
        }
    }

    /// What the stream's leader says of itself.
    pub fn seen(&mut self, info: &StreamInfo) {
        let Some(leader) = info.cluster.as_ref().and_then(|cluster| cluster.leader.as_ref()) else { return };
        let before = self.leader.replace(leader.clone());
        self.due |= before.is_some_and(|before| before != *leader);
    }
}

/// Has the shard's channels looked up as far as the new leader knows the stream: a server that lags must not say that
/// there is nothing.
pub(super) async fn look_after(shard: Arc<Shard>, links: Arc<dyn Links>, delivery: Arc<Delivery>) {
    #[cfg(test)]
    if super::faults::Faults::on(&shard.faults.ignore_elections) {
        return;
    }
    let mut required = 0;
    for _ in 0..TRIES {
        if let Ok(info) = stream_info(&links.any(), &shard.current().stream).await {
            required = info.state.last_seq;
            break;
        }
        sleep(PAUSE).await;
    }
    tracing::info!(stream = shard.current().stream, required, "a new leader; the stream's channels are looked up");
    delivery.verify_shard(&shard, shard.chain().through, required);
}
