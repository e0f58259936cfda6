//! A connection's subscriptions.

use std::sync::Arc;

use bytes::Bytes;
use plenum_protocol::Disconnect;
use tokio::time::Instant;

use super::Caller;
use crate::hub::Lease;
use crate::limits::Counted;
use crate::resume::{Join, NewLeave};
use crate::{Announcement, CLOSED_BY_CLIENT, NamespaceOptions, Position, PresenceError, SUPERSEDED};

/// The subscriptions of one connection, few enough to be searched one by one.
#[derive(Default)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
    /// How many of them have not caught up, so that nobody has to look while it is none.
    catching_up: usize,
}

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
    /// Its place among the channel's subscribers, where these are limited.
    pub(super) _counted: Option<Counted>,
    /// Set while publications that the client missed are still being read.
    pub(super) catch_up: Option<Box<CatchUp>>,
}

/// How far a subscription has caught up.
#[derive(Clone, Debug)]
pub(super) struct CatchUp {
    pub(super) read: Position,
    /// Pages that were asked for.
    pub(super) pages: u32,
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

/// What other clients see of a subscription: its presence entry, and the leave message that it owes. Taken back when
/// dropped.
pub(crate) struct Seat(Option<Visible>);

#[derive(Clone)]
struct Visible {
    caller: Caller,
    channel: Arc<str>,
    info: Bytes,
    presence: bool,
    /// A join was announced, so a leave is due.
    announced: bool,
    /// Whether others have to be told of the join.
    join: Join,
    /// The session has the subscription.
    adopted: bool,
    /// There once the entry was made again.
    renewal: Option<Arc<Renewal>>,
}

/// Whether the entry was taken back, which one that is still being made must not outlive.
type Renewal = tokio::sync::Mutex<bool>;

/// What becomes of seats when their connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client or the server meant it: they are given up at once.
    Leave,
    /// The connection was lost, or the server moves it: the client may come back.
    Hold,
    /// The client meant it, or it gave up a replica that stood still, and may be back elsewhere.
    Unsure,
    /// It has come back already.
    TakenOver,
}

impl Fate {
    pub(super) fn of(reason: &Disconnect) -> Self {
        match reason {
            reason if *reason == SUPERSEDED => Fate::TakenOver,
            reason if *reason == CLOSED_BY_CLIENT || !reason.reconnects() => Fate::Leave,
            _ => Fate::Hold,
        }
    }
}

impl Seat {
    /// A place that has not entered presence yet. Dropping it takes the entry back, whether it was made or not.
    pub(super) fn reserve(caller: &Caller, channel: &Arc<str>, info: Bytes, presence: bool) -> Self {
        let join = match &caller.identity.resumption {
            None => Join::Announce,
            Some(resumption) => {
                let held = caller.node.grace.enter(caller.identity.client, channel);
                resumption.enter(channel, held)
            }
        };
        let (caller, channel) = (caller.clone(), channel.clone());
        Seat(Some(Visible { caller, channel, info, presence, announced: false, join, adopted: false, renewal: None }))
    }

    /// The session has the subscription: from here on the seat ends as the subscription does.
    fn adopt(&mut self) {
        if let Some(visible) = &mut self.0 {
            visible.adopted = true;
        }
    }

    /// Makes the presence entry, if the subscription has one.
    pub(super) fn enter(&self) -> impl Future<Output = Result<(), PresenceError>> + Send + 'static {
        let entering = self.0.as_ref().map(Visible::enter);
        async move {
            match entering {
                Some(entering) => entering.await,
                None => Ok(()),
            }
        }
    }

    /// Makes the presence entry again, unless the seat is given up before: for a new lease, or with other information.
    pub(super) fn enter_again(&mut self) -> impl Future<Output = Result<(), PresenceError>> + Send + 'static {
        let entering = self.0.as_mut().map(|visible| {
            let renewal = visible.renewal.get_or_insert_default().clone();
            (visible.enter(), renewal)
        });
        async move {
            let Some((entering, renewal)) = entering else { return Ok(()) };
            let taken_back = renewal.lock().await;
            if *taken_back { Ok(()) } else { entering.await }
        }
    }

    /// Tells the others; at most once, so a failure is only logged.
    pub(super) async fn announce(&mut self) {
        let Some(visible) = &mut self.0 else { return };
        visible.announced = true;
        match (visible.join, &visible.caller.identity.resumption) {
            (Join::Announce, _) | (_, None) => visible.tell_join().await,
            (Join::Keep, _) => {}
            (Join::Later, Some(resumption)) => {
                let (resumption, visible) = (resumption.clone(), visible.clone());
                tokio::spawn(async move {
                    let Caller { node, identity, .. } = &visible.caller;
                    if resumption.settled(&visible.channel).await
                        && !node.grace.is_known(identity.client, &visible.channel)
                    {
                        visible.tell_join().await;
                    }
                });
            }
        }
    }

    /// The connection has ended.
    fn end(mut self, fate: Fate) {
        let Some(visible) = self.0.take() else { return };
        let grace = visible.caller.node.presence_grace();
        if fate == Fate::Leave || (fate == Fate::Hold && grace.is_zero()) {
            self.0 = Some(visible);
            return;
        }
        if !visible.exit() {
            return;
        }
        let Visible { caller, channel, info, presence, announced, .. } = visible;
        let silent = fate == Fate::TakenOver;
        caller.node.leave_later(NewLeave { identity: caller.identity, channel, info, presence, announced, silent });
    }

    /// What others see of the user changed.
    pub(super) fn identify(&mut self, caller: Caller) {
        if let Some(visible) = &mut self.0 {
            visible.caller = caller;
        }
    }

    /// What others see of the subscriber in this channel changed.
    pub(super) fn describe(&mut self, info: Bytes) {
        if let Some(visible) = &mut self.0 {
            visible.info = info;
        }
    }

    /// Gives the seat up.
    pub(super) async fn vacate(mut self: Box<Self>) {
        if let Some(visible) = self.0.take() {
            visible.leave().await;
        }
    }
}

impl Visible {
    fn enter(&self) -> impl Future<Output = Result<(), PresenceError>> + Send + 'static {
        let member = Arc::new(self.caller.identity.member(self.info.clone()));
        let (node, channel, presence) = (self.caller.node.clone(), self.channel.clone(), self.presence);
        async move { if presence { node.presence.join(&channel, member).await } else { Ok(()) } }
    }

    async fn tell_join(&self) {
        let join = Announcement::Join(self.caller.identity.member(self.info.clone()));
        if let Err(error) = self.caller.node.log.announce(&self.channel, join).await {
            tracing::debug!(%error, "a join was not announced");
        }
    }

    /// Gives the seat of a resumed connection up; false while a newer connection of the client has one here.
    fn exit(&self) -> bool {
        let Caller { node, identity, .. } = &self.caller;
        identity.resumption.is_none() || node.grace.exit(identity.client, &self.channel)
    }

    /// The subscription of a resumed connection was not made, whatever ended the attempt: the next one finds what this one had
    /// taken over, and without one the leave that was held back is told after all.
    fn give_back(self) {
        let known = self.caller.identity.resumption.as_ref().is_some_and(|it| it.retract(&self.channel));
        if !self.exit() {
            return;
        }
        let announced = self.announced || self.join == Join::Keep || (self.join == Join::Later && known);
        let Self { caller, channel, info, presence, .. } = self;
        let silent = caller.outbox.was_superseded();
        caller.node.leave_later(NewLeave { identity: caller.identity, channel, info, presence, announced, silent });
    }

    async fn leave(self) {
        if !self.exit() {
            return;
        }
        let mut renewal = match &self.renewal {
            Some(renewal) => Some(renewal.lock().await),
            None => None,
        };
        if let Some(taken_back) = &mut renewal {
            **taken_back = true;
        }
        let Caller { node, identity, .. } = &self.caller;
        if self.presence
            && let Err(error) = node.presence.leave(&self.channel, &identity.client.to_string()).await
        {
            tracing::warn!(%error, "a presence entry was not removed: it ends with this replica's lease");
        }
        if self.announced {
            let leave = Announcement::Leave(identity.member(self.info));
            if let Err(error) = node.log.announce(&self.channel, leave).await {
                tracing::debug!(%error, "a leave was not announced");
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(visible) = self.0.take() else { return };
        // Outside a runtime the process is ending; the replica's lease takes the entry with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !visible.adopted && visible.caller.identity.resumption.is_some() {
            visible.give_back();
        } else {
            runtime.spawn(visible.leave());
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
        self.list.len()
    }

    pub(super) fn get(&self, channel: &str) -> Option<&Subscription> {
        self.list.iter().find(|subscription| subscription.channel().as_ref() == channel)
    }

    pub(super) fn get_mut(&mut self, channel: &str) -> Option<&mut Subscription> {
        self.list.iter_mut().find(|subscription| subscription.channel().as_ref() == channel)
    }

    pub(super) fn insert(&mut self, mut subscription: Subscription) {
        if let Some(seat) = &mut subscription.seat {
            seat.adopt();
        }
        if self.list.is_empty() {
            // Most connections have one.
            self.list.reserve_exact(1);
        }
        self.catching_up += usize::from(subscription.catch_up.is_some());
        self.list.push(subscription);
    }

    pub(super) fn remove(&mut self, channel: &str) -> Option<Subscription> {
        let index = self.list.iter().position(|subscription| subscription.channel().as_ref() == channel)?;
        let subscription = self.list.swap_remove(index);
        self.catching_up -= usize::from(subscription.catch_up.is_some());
        Some(subscription)
    }

    /// One that has not caught up, if there is any.
    pub(super) fn catching_up(&self) -> Option<(&Subscription, &CatchUp)> {
        if self.catching_up == 0 {
            return None;
        }
        self.list.iter().find_map(|subscription| Some((subscription, subscription.catch_up.as_deref()?)))
    }

    /// A subscription has caught up.
    pub(super) fn caught_up(&mut self, channel: &str) {
        if let Some(subscription) = self.get_mut(channel)
            && subscription.catch_up.take().is_some()
        {
            self.catching_up -= 1;
        }
    }

    /// The connection has ended.
    pub(super) fn end(&mut self, fate: Fate) {
        for seat in self.list.iter_mut().filter_map(|subscription| subscription.seat.take()) {
            (*seat).end(fate);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.list.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.list.iter_mut()
    }
}
