//! The commands of a connection that are under way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use plenum_protocol::{Command, ReplyResult};
use plenum_telemetry::Method;

use super::connect::Admitted;
use super::establish::{CatchUpOutcome, Established};
use crate::error::Failure;
use crate::{ConnectionClaims, Order, SubscribeOptions, SubscriptionClaims};

/// A command that has ended, as the session takes it up.
pub(super) enum Done {
    Connected { id: u32, outcome: Result<Box<Admitted>, Failure> },
    Replied { id: u32, method: Method, result: Result<ReplyResult, Failure> },
    Subscribed { id: u32, channel: Arc<str>, outcome: Result<Box<Established>, Failure> },
    ServerSubscribed { channel: Arc<str>, options: Box<SubscribeOptions>, outcome: Result<Box<Established>, Failure> },
    Refreshed { id: u32, outcome: Result<Box<ConnectionClaims>, Failure> },
    SubscriptionRefreshed { id: u32, channel: Arc<str>, outcome: Result<Box<SubscriptionClaims>, Failure> },
    CaughtUp { channel: Arc<str>, member: u64, outcome: CatchUpOutcome },
    Released { channel: Arc<str>, reply: Option<u32> },
}

/// Commands under way and commands that wait for them.
#[derive(Default)]
pub(super) struct Flight {
    futures: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Channels with a command under way that later ones on the channel must wait for.
    busy: Vec<Arc<str>>,
    /// Subscriptions that are being made.
    pub(super) subscribing: usize,
    /// Commands that wait, in order.
    pub(super) waiting: VecDeque<Command>,
    /// Orders that wait until their channel, or the connect, has no command under way; in order.
    pub(super) orders: Vec<Arc<Order>>,
    /// Whether a page of a catch-up is being read; one at a time keeps the outbox within its bound.
    pub(super) catching_up: bool,
}

impl Flight {
    pub(super) fn len(&self) -> usize {
        self.futures.len()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.futures.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, future: BoxFuture<'static, Done>) {
        self.futures.push(future);
    }

    pub(super) fn is_busy(&self, channel: &str) -> bool {
        self.busy.iter().any(|busy| busy.as_ref() == channel)
    }

    /// Channels with a command under way; one of several commands is there several times.
    pub(super) fn busy(&self) -> &[Arc<str>] {
        &self.busy
    }

    pub(super) fn block(&mut self, channel: Arc<str>) {
        self.busy.push(channel);
    }

    /// A subscription is being made in the channel.
    pub(super) fn begin(&mut self, channel: Arc<str>) {
        self.subscribing += 1;
        self.block(channel);
    }

    /// It was made, or was not.
    pub(super) fn finish(&mut self, channel: &str) {
        self.subscribing = self.subscribing.saturating_sub(1);
        self.unblock(channel);
    }

    pub(super) fn unblock(&mut self, channel: &str) {
        if let Some(index) = self.busy.iter().position(|busy| busy.as_ref() == channel) {
            self.busy.swap_remove(index);
        }
    }

    /// The next command that ended, if one has.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Done> {
        match self.futures.poll_next_unpin(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => None,
        }
    }
}
