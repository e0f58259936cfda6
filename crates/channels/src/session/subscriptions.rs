//! A connection's subscriptions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::Caller;
use crate::hub::Lease;
use crate::{Announcement, NamespaceOptions, Position};

/// The subscriptions of one connection, few enough to be searched one by one.
#[derive(Default)]
pub(super) struct Subscriptions(Vec<Subscription>);

/// One subscription that the client knows of.
pub(crate) struct Subscription {
    pub(super) membership: Membership,
    pub(super) namespace: Arc<NamespaceOptions>,
    /// What others may see of the subscriber in this channel.
    pub(super) info: Option<Box<Bytes>>,
    /// Unix seconds; 0: never.
    pub(super) expire_at: u64,
    pub(super) server_side: bool,
    pub(super) seat: Option<Box<Seat>>,
    /// Set while publications that the client missed are still being read.
    pub(super) catch_up: Option<Box<CatchUp>>,
}

/// How far a subscription has caught up.
#[derive(Clone, Debug)]
pub(super) struct CatchUp {
    pub(super) read: Position,
    pub(super) deadline: Instant,
}

/// A place among a channel's local members, given up when dropped.
pub(crate) struct Membership {
    pub(super) lease: Lease,
    pub(super) member: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.lease.channel().leave(self.member);
    }
}

/// What other clients see of a subscription: presence and the leave message, taken back when dropped.
pub(crate) struct Seat {
    caller: Caller,
    channel: Arc<str>,
    info: Bytes,
    presence: bool,
    announces: bool,
}

impl Seat {
    /// Takes presence; the returned seat gives it back. `announces` is set by [`Seat::announce`].
    pub(super) async fn take(
        caller: &Caller,
        channel: &Arc<str>,
        info: Bytes,
        presence: bool,
    ) -> Result<Self, crate::PresenceError> {
        let seat = Self { caller: caller.clone(), channel: channel.clone(), info, presence, announces: false };
        seat.join().await?;
        Ok(seat)
    }

    /// Enters or renews the presence entry.
    pub(super) async fn join(&self) -> Result<(), crate::PresenceError> {
        if self.presence {
            let member = Arc::new(self.caller.identity.member(self.info.clone()));
            self.caller.node.presence.join(&self.channel, member).await?;
        }
        Ok(())
    }

    /// Tells the others; at most once, so a failure is only logged.
    pub(super) async fn announce(&mut self) {
        self.announces = true;
        let join = Announcement::Join(self.caller.identity.member(self.info.clone()));
        if let Err(error) = self.caller.node.log.announce(&self.channel, join).await {
            tracing::debug!(%error, "a join was not announced");
        }
    }

    /// Joins again under a changed identity or a new lease.
    pub(super) fn renewed(&self, caller: Caller) -> Seat {
        Seat {
            caller,
            channel: self.channel.clone(),
            info: self.info.clone(),
            presence: self.presence,
            announces: false,
        }
    }

    /// Gives the seat up.
    pub(super) async fn vacate(mut self: Box<Self>) {
        self.leave().await;
    }

    async fn leave(&mut self) {
        let (presence, announces) = (std::mem::take(&mut self.presence), std::mem::take(&mut self.announces));
        let node = &self.caller.node;
        if presence {
            let client = self.caller.identity.client.to_string();
            if let Err(error) = node.presence.leave(&self.channel, &client).await {
                tracing::warn!(%error, "a presence entry was not removed: it ends with this replica's lease");
            }
        }
        if announces {
            let leave = Announcement::Leave(self.caller.identity.member(self.info.clone()));
            if let Err(error) = node.log.announce(&self.channel, leave).await {
                tracing::debug!(%error, "a leave was not announced");
            }
        }
    }

    /// Drops the seat without leaving: another one stands for the same entry.
    pub(super) fn forget(&mut self) {
        self.presence = false;
        self.announces = false;
    }

    /// Hands the duty to announce the leave over.
    pub(super) fn take_over(&mut self, old: &mut Seat) {
        self.announces = old.announces;
        old.forget();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.presence && !self.announces {
            return;
        }
        let mut left = Seat {
            caller: self.caller.clone(),
            channel: self.channel.clone(),
            info: std::mem::take(&mut self.info),
            presence: self.presence,
            announces: self.announces,
        };
        // Outside a runtime the process is ending; the replica's lease takes the entry with it.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(async move { left.leave().await });
            }
            Err(_) => left.forget(),
        }
    }
}

impl Subscription {
    pub(super) fn channel(&self) -> &Arc<str> {
        &self.membership.lease.channel().name
    }
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, channel: &str) -> Option<&Subscription> {
        self.0.iter().find(|subscription| subscription.channel().as_ref() == channel)
    }

    pub(super) fn get_mut(&mut self, channel: &str) -> Option<&mut Subscription> {
        self.0.iter_mut().find(|subscription| subscription.channel().as_ref() == channel)
    }

    pub(super) fn insert(&mut self, subscription: Subscription) {
        if self.0.is_empty() {
            // Most connections have one.
            self.0.reserve_exact(1);
        }
        self.0.push(subscription);
    }

    pub(super) fn remove(&mut self, channel: &str) -> Option<Subscription> {
        let index = self.0.iter().position(|subscription| subscription.channel().as_ref() == channel)?;
        Some(self.0.swap_remove(index))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.0.iter_mut()
    }
}
