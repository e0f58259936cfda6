//! What others ask of a session: the server API, the log and the presence lease.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{Disconnect, Publication, Push, PushEvent, Reply, SubscribePush, encode, encode_publication};
use plenum_telemetry::Recovery;

use super::connect::server_plan;
use super::establish::{CatchUpOutcome, Established, catch_up, establish};
use super::flight::{Done, Flight};
use super::{Caller, Phase, Session, Subscription, frame};
use crate::error::Failure;
use crate::outbox::{MAX_MAIL, Mail};
use crate::{Order, Outbox, SubscribeOptions};

impl Session {
    /// Takes up what was left for the session.
    pub(super) fn read_mail(&mut self) {
        for mail in self.outbox.take_mail() {
            match mail {
                Mail::Lost { channel, member } => {
                    let current = self.subscription(&channel).is_some_and(|held| held.membership.member == member);
                    if current {
                        self.end_insufficient(&channel);
                    }
                }
                Mail::Announce => self.announce_again(),
                Mail::Move => self.leaving = true,
                Mail::Order(order) => self.obey(order),
            }
        }
    }

    /// Obeys what has waited for a command that has ended.
    pub(super) fn obey_waiting(&mut self) {
        let Some(flight) = self.flight.as_mut().filter(|flight| !flight.orders.is_empty()) else { return };
        for order in std::mem::take(&mut flight.orders) {
            self.obey(order);
        }
    }

    /// An order waits for a connect, a subscribe or an unsubscribe that is under way, else it would find nothing to change, and
    /// what it was to end would stand a moment later.
    fn obey(&mut self, order: Arc<Order>) {
        if self.is_too_early(&order) {
            let flight = self.flight.get_or_insert_default();
            if flight.orders.len() < MAX_MAIL {
                flight.orders.push(order);
            } else {
                self.close(Disconnect::SLOW);
            }
            return;
        }
        match order.as_ref() {
            Order::Subscribe { channel, options, .. } => self.subscribe_by_server(channel, options.as_ref().clone()),
            Order::Unsubscribe { target, channel, code, reason } if channel.is_empty() => {
                for channel in self.channels() {
                    let (target, channel, reason) = (target.clone(), channel.to_string(), reason.clone());
                    self.obey(Arc::new(Order::Unsubscribe { target, channel, code: *code, reason }));
                }
            }
            Order::Unsubscribe { channel, code, reason, .. } => {
                self.unsubscribe_by_server(channel, &Unsubscribed { code: *code, reason: reason.clone().into() });
            }
            Order::Refresh { expired, expire_at, info, .. } => {
                self.refresh_by_server(*expired, *expire_at, info.as_deref());
            }
            // Closes the outbox where the order arrives.
            Order::Disconnect { .. } => {}
        }
    }

    /// Of a channel that is entered or left. One that stands is not waited for, whatever else is under way there.
    fn is_too_early(&self, order: &Order) -> bool {
        let moving = |channel: &str| {
            self.flight.as_ref().is_some_and(|flight| flight.is_busy(channel)) && self.subscription(channel).is_none()
        };
        match (&self.phase, order) {
            (Phase::Connecting, _) => true,
            (Phase::Connected(_), Order::Subscribe { channel, .. } | Order::Unsubscribe { channel, .. }) => {
                moving(channel)
            }
            _ => false,
        }
    }

    fn unsubscribe_by_server(&mut self, channel: &str, unsubscribed: &Unsubscribed) {
        // What the client asked for it does not ask for again.
        if self.subscription(channel).is_some_and(|subscription| subscription.server_side) {
            self.note(channel, None);
        }
        self.end_subscription(channel, unsubscribed);
    }

    /// A resume shall know of it.
    fn note(&mut self, channel: &str, options: Option<SubscribeOptions>) {
        let settings = self.node.settings();
        let Phase::Connected(connected) = &mut self.phase else { return };
        if !settings.client.resume.enabled {
            return;
        }
        let noted = connected.noted.get_or_insert_default().clone();
        if noted.add(channel, options) {
            let (resume, client, step, ttl) =
                (self.node.resume.clone(), self.client, connected.identity.step, settings.client.resume.ttl);
            tokio::spawn(async move { resume.note(client, step, &noted, ttl).await });
        }
    }

    /// With a subscription, or a command under way that may make one.
    fn channels(&self) -> Vec<Arc<str>> {
        let Phase::Connected(connected) = &self.phase else { return Vec::new() };
        let standing = connected.subscriptions.iter().map(|subscription| subscription.channel().clone());
        let mut channels: Vec<_> = standing.collect();
        for busy in self.flight.iter().flat_map(|flight| flight.busy()) {
            if !channels.contains(busy) {
                channels.push(busy.clone());
            }
        }
        channels
    }

    fn subscription(&self, channel: &str) -> Option<&super::Subscription> {
        match &self.phase {
            Phase::Connected(connected) => connected.subscriptions.get(channel),
            _ => None,
        }
    }

    /// Ends a subscription and tells the client.
    pub(super) fn end_subscription(&mut self, channel: &str, unsubscribed: &Unsubscribed) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        if connected.subscriptions.remove(channel).is_none() {
            return;
        }
        let event =
            PushEvent::Unsubscribe { code: unsubscribed.code, reason: unsubscribed.reason.clone().into_owned() };
        self.push(channel, event);
    }

    /// The published "insufficient state": the client subscribes, or reconnects, and learns whether it recovered.
    fn end_insufficient(&mut self, channel: &str) {
        match self.subscription(channel).map(|subscription| subscription.server_side) {
            Some(true) => self.close(Disconnect::INSUFFICIENT_STATE),
            Some(false) => self.end_subscription(channel, &Unsubscribed::INSUFFICIENT_STATE),
            None => {}
        }
    }

    fn push(&self, channel: &str, event: PushEvent) {
        match frame(&self.outbox, &Reply::Push(Push { channel: channel.to_owned(), event })) {
            Some(frame) => self.outbox.push(frame),
            None => self.close(Disconnect::INAPPROPRIATE_PROTOCOL),
        }
    }

    fn subscribe_by_server(&mut self, channel: &str, options: SubscribeOptions) {
        let Phase::Connected(connected) = &self.phase else { return };
        if connected.subscriptions.get(channel).is_some() {
            return;
        }
        let settings = self.node.settings();
        let under_way = self.flight.as_ref().map_or(0, |flight| flight.subscribing);
        let limit = settings.client.channel_limit;
        if limit > 0 && connected.subscriptions.len() + under_way >= limit {
            return self.close(Disconnect::CHANNEL_LIMIT);
        }
        let plan = match server_plan(&settings, channel, options.clone(), None, settings.client.recovery_max_bytes) {
            Ok(plan) => plan,
            Err(_) => return,
        };
        let caller = self.caller(&connected.identity);
        let outbox = self.outbox.clone();
        let channel: Arc<str> = channel.into();
        let flight = self.flight.get_or_insert_default();
        flight.begin(channel.clone());
        let name = channel.to_string();
        let future = async move {
            let outcome = establish(caller, plan, move |result| {
                let event = PushEvent::Subscribe(SubscribePush {
                    recoverable: result.recoverable,
                    epoch: result.epoch.clone(),
                    offset: result.offset,
                    positioned: result.positioned,
                    data: result.data.clone(),
                });
                server_subscription(&outbox, &name, event, &result.publications)
                    .map(Some)
                    .ok_or_else(|| Disconnect::INAPPROPRIATE_PROTOCOL.into())
            })
            .await
            .map(Box::new);
            Done::ServerSubscribed { channel, options: Box::new(options), outcome }
        };
        flight.push(future.boxed());
    }

    pub(super) fn server_subscribed(
        &mut self,
        channel: &str,
        options: SubscribeOptions,
        outcome: Result<Box<Established>, Failure>,
    ) {
        if let Some(flight) = &mut self.flight {
            flight.finish(channel);
        }
        match outcome {
            Ok(established) => {
                self.note(channel, Some(options));
                self.adopt(established.subscription);
            }
            Err(Failure::Disconnect(disconnect)) => self.close(disconnect),
            Err(Failure::Error(error)) => {
                tracing::warn!(client = %self.client, code = error.code, "a server-side subscription failed");
            }
        }
    }

    /// Takes up a subscription that was made.
    pub(super) fn adopt(&mut self, subscription: Subscription) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        let membership = &subscription.membership;
        // Mail about a loss that came before this found no subscription.
        let lost = membership.lease.channel().is_lost(membership.member);
        let channel = subscription.channel().clone();
        connected.subscriptions.insert(subscription);
        if lost {
            self.end_insufficient(&channel);
        }
        self.schedule();
    }

    fn refresh_by_server(&mut self, expired: bool, expire_at: u64, info: Option<&[u8]>) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        if expired {
            return self.close(Disconnect::EXPIRED);
        }
        let Ok((expires, ttl)) = super::time_to_live(expire_at) else {
            return self.close(Disconnect::EXPIRED);
        };
        connected.expire_at = expire_at;
        if let Some(info) = info {
            self.adopt_info(Bytes::copy_from_slice(info));
        }
        self.push("", PushEvent::Refresh { expires, ttl });
        self.schedule();
    }

    /// What others see of the user changed: presence entries follow.
    pub(super) fn adopt_info(&mut self, info: Bytes) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        if info == connected.identity.info {
            return;
        }
        connected.identity = Arc::new(connected.identity.refreshed(info, None));
        self.node.registry.describe(self.connection, &connected.identity);
        let caller =
            Caller { node: self.node.clone(), outbox: self.outbox.clone(), identity: connected.identity.clone() };
        for seat in connected.subscriptions.iter_mut().filter_map(|subscription| subscription.seat.as_mut()) {
            seat.identify(caller.clone());
        }
        self.announce_again();
    }

    /// What others see of the subscriber in one channel changed: its presence entry follows.
    pub(super) fn adopt_channel_info(&mut self, channel: &str, info: Bytes) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        let Some(subscription) = connected.subscriptions.get_mut(channel) else { return };
        if info == subscription.info.as_deref().map_or(&[][..], |held| held) {
            return;
        }
        subscription.info = (!info.is_empty()).then(|| Box::new(info.clone()));
        if let Some(seat) = &mut subscription.seat {
            seat.describe(info);
            enter_again(self.flight.get_or_insert_default(), subscription);
        }
    }

    /// Enters every presence entry of this connection again.
    fn announce_again(&mut self) {
        let Phase::Connected(connected) = &mut self.phase else { return };
        for subscription in connected.subscriptions.iter_mut().filter(|subscription| subscription.seat.is_some()) {
            enter_again(self.flight.get_or_insert_default(), subscription);
        }
    }

    /// Reads the next page for one subscription that has not caught up, if none is being read.
    pub(super) fn catch_up(&mut self) {
        let Phase::Connected(connected) = &self.phase else { return };
        let Some((subscription, state)) = connected.subscriptions.catching_up() else { return };
        let flight = self.flight.get_or_insert_default();
        if flight.catching_up {
            return;
        }
        flight.catching_up = true;
        let caller =
            Caller { node: self.node.clone(), outbox: self.outbox.clone(), identity: connected.identity.clone() };
        let channel = subscription.membership.lease.channel().clone();
        let (member, namespace, state) =
            (subscription.membership.member, subscription.namespace.clone(), state.clone());
        let future = async move {
            let name = channel.name.clone();
            let outcome = catch_up(caller, channel, member, namespace, state).await;
            Done::CaughtUp { channel: name, member, outcome }
        };
        flight.push(future.boxed());
    }

    pub(super) fn caught_up(&mut self, channel: &str, member: u64, outcome: CatchUpOutcome) {
        if let Some(flight) = &mut self.flight {
            flight.catching_up = false;
        }
        let Phase::Connected(connected) = &mut self.phase else { return };
        let Some(subscription) = connected.subscriptions.get_mut(channel) else { return };
        if subscription.membership.member != member {
            return;
        }
        match outcome {
            CatchUpOutcome::Live => connected.subscriptions.caught_up(channel),
            CatchUpOutcome::More(read) | CatchUpOutcome::Failed(read) => {
                if let Some(state) = &mut subscription.catch_up {
                    state.read = read;
                    state.pages += 1;
                }
            }
            CatchUpOutcome::Insufficient => {
                self.node.metrics.recoveries(Recovery::Overtaken).inc();
                self.end_insufficient(channel);
            }
        }
    }
}

/// Makes a subscription's presence entry again; commands on its channel wait for that.
fn enter_again(flight: &mut Flight, subscription: &mut Subscription) {
    let channel = subscription.channel().clone();
    let Some(seat) = &mut subscription.seat else { return };
    let entering = seat.enter_again();
    flight.block(channel.clone());
    let future = async move {
        if let Err(error) = entering.await {
            tracing::warn!(%error, "a presence entry was not renewed");
        }
        Done::Released { channel, reply: None }
    };
    flight.push(future.boxed());
}

/// The push that tells of a server-side subscription, and behind it, as one message, what was recovered.
fn server_subscription(outbox: &Outbox, channel: &str, event: PushEvent, recovered: &[Publication]) -> Option<Bytes> {
    let encoding = outbox.encoding();
    let mut frame = Vec::new();
    encode(encoding, &Reply::Push(Push { channel: channel.to_owned(), event }), &mut frame).ok()?;
    for publication in recovered {
        frame.extend_from_slice(encoding.separator());
        encode_publication(encoding, channel, publication, &mut frame).ok()?;
    }
    Some(frame.into())
}
