//! The side of a replica that gives a client id away, and the leaves that it holds back meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::Encoding;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Leave, NewLeave};
use crate::{Announcement, ConnectionInfo, Node, Released, ReleasedSeat, TokenInfo};

/// How long a connection that was replaced may take to end before the newer one stops waiting for it.
const ENDING: Duration = Duration::from_millis(500);
/// A connection that was taken over leaves its presence entry at least so long, so that the newer one can make its own; one
/// that ended while this replica stood still is not told of before the ledger was asked who has come back.
const OVERLAP: Duration = Duration::from_secs(1);

impl Node {
    /// `client.presence_grace`
    pub(crate) fn presence_grace(&self) -> Duration {
        self.settings().client.presence_grace
    }

    /// Closes what this replica holds of a client id from before `step`, and hands over what others see of it.
    pub(crate) async fn release(&self, client: Uuid, step: u32) -> Released {
        self.supersede(client, step);
        let deadline = Instant::now() + ENDING;
        let mut pending = !self.registry.older(client, step).is_empty();
        while pending && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
            pending = !self.registry.older(client, step).is_empty();
        }
        let seats = self.grace.release(client).into_iter();
        let seats = seats.map(|(channel, info)| ReleasedSeat { channel: channel.to_string(), info: info.to_vec() });
        Released { seats: seats.collect(), pending }
    }

    /// Holds a leave back for the grace, or tells it at once where there is none.
    pub(crate) fn leave_later(self: &Arc<Self>, leave: NewLeave) {
        let grace = self.presence_grace();
        let doubtful = leave.silent || self.pulse.stood_still();
        let grace = if doubtful { grace.max(OVERLAP) } else { grace };
        if let Some(leave) = self.grace.hold(leave, grace) {
            let node = self.clone();
            tokio::spawn(async move { node.tell_leave(leave).await });
        }
    }

    /// Tells the leaves whose time has come by `now`.
    pub(crate) fn tell_due_leaves(self: &Arc<Self>, now: Instant) {
        for leave in self.grace.due(now) {
            let node = self.clone();
            tokio::spawn(async move { node.tell_leave(leave).await });
        }
    }

    /// Waits until no leave is held back or the time is over, and tells those that are left.
    pub(crate) async fn finish_leaves(&self, until: Instant) {
        let until = until.min(Instant::now() + self.presence_grace());
        while self.grace.len() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for leave in self.grace.due(Instant::now() + Duration::from_secs(3600)) {
            self.tell_leave(leave).await;
        }
    }

    pub(crate) async fn tell_leave(&self, leave: Leave) {
        let identity = &leave.identity;
        if leave.presence
            && let Err(error) = self.presence.leave(&leave.channel, &identity.client.to_string()).await
        {
            tracing::warn!(%error, "a presence entry was not removed: it ends with this replica's lease");
        }
        if leave.announced {
            let gone = Announcement::Leave(identity.member(leave.info));
            if let Err(error) = self.log.announce(&leave.channel, gone).await {
                tracing::debug!(%error, "a leave was not announced");
            }
        }
    }

    /// A user's connections here, by client id.
    pub(crate) fn describe_connections(&self, user: &str) -> BTreeMap<String, ConnectionInfo> {
        let target = crate::Target { user: user.to_owned(), ..crate::Target::default() };
        let found = self.registry.find(&target).into_iter();
        let describe = |found: crate::registry::Registered| {
            let (identity, outbox) = (found.identity, found.outbox);
            let token = || TokenInfo { uid: identity.token_id().to_owned(), issued_at: identity.issued_at() };
            let info = ConnectionInfo {
                user: identity.user.to_string(),
                app_name: identity.app().0.to_owned(),
                app_version: identity.app().1.to_owned(),
                transport: "websocket".to_owned(),
                protocol: match outbox.encoding() {
                    Encoding::Json => "json".to_owned(),
                    Encoding::Protobuf => "protobuf".to_owned(),
                },
                token: identity.has_token().then(token),
                meta: identity.meta().to_vec(),
                node: self.name.clone(),
            };
            (identity.client.to_string(), info)
        };
        found.map(describe).collect()
    }
}
