//! Making a subscription: permission is settled, now history and live stream are joined.
//!
//! A member enters the channel first and gets nothing yet; then history is read; then it goes live under the channel's
//! lock, which hands it whatever was delivered since the read. What the client missed beyond the first chunk is read
//! page by page as its outbox drains; until the last page it is not live and costs nobody memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{Disconnect, Publication, SubscribeResult};
use plenum_telemetry::Recovery;
use tokio::time::{Instant, timeout};

use super::subscriptions::{CatchUp, Membership, Seat, Subscription};
use super::{Caller, time_to_live};
use crate::burst::publication_frame;
use crate::channel::{GoLive, MemberTraits};
use crate::error::{Failure, LIMITS_AWAY, SLOW};
use crate::limits::{Counted, Refused};
use crate::{NamespaceOptions, OperationError, Page, Position, Quota, Read, RecoveryMode, Since, SubscribeOverrides};

/// Payload bytes of one page of a catch-up.
const PAGE_BYTES: usize = 64 * 1024;
/// Publications of one page of a catch-up. A log may hold up those who publish beside it for as long as a page takes to read.
const PAGE_LIMIT: usize = 128;
/// A long catch-up rests after each page for as long as that took to read, times the number of these steps behind it, so that
/// those who are live have most of the log's and the replica's time.
const STEP: u32 = 64;
/// Most of those times.
const RESTS: u32 = 3;
/// Longest rest.
const REST: Duration = Duration::from_millis(100);
/// A client that has not caught up by then never will: it gets "insufficient state".
const CATCH_UP_TIME: Duration = Duration::from_secs(300);
/// A subscribe that takes longer fails for the moment, and is tried again by its client after a pause. JavaScript clients that
/// wait 5 s for the reply give up the whole connection instead: where many wait for the same reason, all of them would connect,
/// resume and ask again, and none get further.
const PATIENCE: Duration = Duration::from_secs(4);
/// Tries to go live before a subscribe gives up; each needs more than a thousand publications to come between.
const ATTEMPTS: usize = 100;

/// What a subscription is to become.
pub(super) struct Plan {
    pub(super) channel: Arc<str>,
    pub(super) namespace: Arc<NamespaceOptions>,
    pub(super) server_side: bool,
    /// What others may see of the subscriber here.
    pub(super) info: Bytes,
    /// Payload for the subscriber.
    pub(super) data: Bytes,
    /// Unix seconds; 0: never.
    pub(super) expire_at: u64,
    /// Asked for and permitted, besides what the namespace forces.
    pub(super) wants: Wants,
    pub(super) overrides: SubscribeOverrides,
    /// Offset and epoch from which to recover.
    pub(super) recover: Option<(u64, String)>,
    /// Answer a failed recovery with an error instead of `recovered: false`.
    pub(super) reject_unrecovered: bool,
    /// Most payload bytes of the first chunk.
    pub(super) chunk_bytes: usize,
}

/// What a client asked for and may have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wants {
    pub(super) positioned: bool,
    pub(super) recoverable: bool,
    pub(super) join_leave: bool,
}

/// A subscription that stands, and what its client was or will be told.
pub(super) struct Established {
    pub(super) subscription: Subscription,
    pub(super) result: SubscribeResult,
}

/// Where a catch-up stands after a page.
pub(super) enum CatchUpOutcome {
    /// The client has everything and is live.
    Live,
    /// There is more after this position.
    More(Position),
    /// What follows is lost, or the client is too slow.
    Insufficient,
    /// The log could not be read; try again after this position.
    Failed(Position),
}

/// How the subscription turns out, from namespace, token and wishes.
#[derive(Clone, Copy)]
struct Terms {
    positioned: bool,
    recoverable: bool,
    presence: bool,
    announces: bool,
    traits: MemberTraits,
}

impl Plan {
    fn terms(&self) -> Terms {
        let (namespace, overrides) = (&self.namespace, &self.overrides);
        let history = namespace.keeps_history();
        let forced_recovery = overrides.force_recovery.unwrap_or(namespace.force_recovery);
        let forced_positioning = overrides.force_positioning.unwrap_or(namespace.force_positioning);
        let recoverable = history && (forced_recovery || self.wants.recoverable);
        let positioned = history && (recoverable || forced_positioning || self.wants.positioned);
        let announces = overrides.join_leave.unwrap_or(namespace.join_leave);
        let pushes = overrides.force_push_join_leave.unwrap_or(namespace.force_push_join_leave);
        Terms {
            positioned,
            recoverable,
            presence: overrides.presence.unwrap_or(namespace.presence),
            announces,
            traits: MemberTraits { join_leave: pushes || (announces && self.wants.join_leave), positioned },
        }
    }
}

/// Makes the subscription. `announce` encodes what the client is told; it is queued ahead of the first publication.
/// Dropping the future undoes everything.
pub(super) async fn establish(
    caller: Caller,
    plan: Plan,
    announce: impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
) -> Result<Established, Failure> {
    let terms = plan.terms();
    let mut seat = None;
    let began = timeout(PATIENCE, begin(&caller, &plan, terms, &announce, &mut seat)).await;
    let Began { counted, membership, result, catch_up } = began.unwrap_or(Err(Failure::temporary(SLOW)))?;
    // The client has its reply: from here on nothing fails.
    let mut seat = seat.map(Box::new);
    if let Some(seat) = seat.as_mut().filter(|_| terms.announces) {
        seat.announce().await;
    }
    let subscription = Subscription {
        membership,
        namespace: plan.namespace,
        info: (!plan.info.is_empty()).then(|| Box::new(plan.info)),
        expire_at: plan.expire_at,
        server_side: plan.server_side,
        seat,
        _counted: counted,
        catch_up: catch_up.map(|read| Box::new(CatchUp { read, pages: 1, deadline: Instant::now() + CATCH_UP_TIME })),
    };
    Ok(Established { subscription, result })
}

/// A subscription whose client was answered.
struct Began {
    counted: Option<Counted>,
    membership: Membership,
    result: SubscribeResult,
    catch_up: Option<Position>,
}

/// Up to the reply, which is queued with the last step: whoever stops waiting before has told the client nothing.
async fn begin(
    caller: &Caller,
    plan: &Plan,
    terms: Terms,
    announce: &impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
    seat: &mut Option<Seat>,
) -> Result<Began, Failure> {
    let node = &caller.node;
    let (expires, ttl) = time_to_live(plan.expire_at)?;
    let counted = count(caller, plan).await?;
    let lease = node.hub.acquire(&plan.channel).await.map_err(OperationError::from)?;
    lease.channel().show_offsets(plan.namespace.keeps_history());
    if terms.presence || terms.announces {
        let seat = seat.insert(Seat::reserve(caller, &plan.channel, plan.info.clone(), terms.presence));
        seat.enter().await.map_err(OperationError::from)?;
    }
    let member = lease.channel().join(caller.outbox.clone(), terms.traits);
    let membership = Membership { lease, member };
    let mut result = SubscribeResult {
        expires,
        ttl,
        recoverable: terms.recoverable,
        positioned: terms.positioned,
        data: plan.data.clone(),
        was_recovering: plan.recover.is_some() && terms.recoverable,
        ..SubscribeResult::default()
    };
    let joining = Joining { caller, plan, membership: &membership };
    let catch_up = match &plan.recover {
        _ if !terms.positioned => joining.anywhere(&result, announce).map(|()| None),
        Some((offset, epoch)) if terms.recoverable => {
            let since = node.position(&plan.channel, *offset, epoch).await?;
            joining.recover(since, &mut result, announce).await
        }
        _ => joining.at_top(&mut result, announce).await.map(|()| None),
    }?;
    Ok(Began { counted, membership, result, catch_up })
}

/// Counts the client among the channel's subscribers, where these are limited.
async fn count(caller: &Caller, plan: &Plan) -> Result<Option<Counted>, Failure> {
    let max = plan.namespace.subscriber_limit;
    if max == 0 {
        return Ok(None);
    }
    let fallback = caller.node.settings().client.on_unavailable.subscribers;
    let place = (Quota::ChannelSubscribers, plan.channel.clone());
    match caller.node.limits.enter(place, caller.identity.client, max, fallback).await {
        Ok(counted) => Ok(Some(counted)),
        Err(Refused::Full) => Err(ErrorCode::LIMIT_EXCEEDED.into()),
        Err(Refused::Unknown) => Err(Failure::temporary(LIMITS_AWAY)),
    }
}

/// A member that is not live yet.
struct Joining<'a> {
    caller: &'a Caller,
    plan: &'a Plan,
    membership: &'a Membership,
}

impl Joining<'_> {
    fn go_live(&self, read: Option<&Position>, reply: &mut Option<Bytes>) -> GoLive {
        self.membership.lease.channel().go_live(self.membership.member, read, reply)
    }

    /// Without positions the subscription starts wherever the channel is.
    fn anywhere(
        &self,
        result: &SubscribeResult,
        announce: &impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
    ) -> Result<(), Failure> {
        let mut reply = announce(result)?;
        self.go_live(None, &mut reply);
        Ok(())
    }

    /// Starts at the log's end.
    async fn at_top(
        &self,
        result: &mut SubscribeResult,
        announce: &impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
    ) -> Result<(), Failure> {
        let node = &self.caller.node;
        for _ in 0..ATTEMPTS {
            let top = node.log.tail(&self.plan.channel).await.map_err(OperationError::from)?.position;
            tell_position(result, &top);
            let mut reply = announce(result)?;
            if self.go_live(Some(&top), &mut reply) == GoLive::Done {
                return Ok(());
            }
        }
        Err(ErrorCode::INTERNAL.into())
    }

    /// Starts after `since` if nothing was lost since. Returns the position to read on from when there is more than
    /// the first chunk holds.
    async fn recover(
        &self,
        since: Position,
        result: &mut SubscribeResult,
        announce: &impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
    ) -> Result<Option<Position>, Failure> {
        if self.plan.namespace.force_recovery_mode == RecoveryMode::Cache {
            self.latest(since, result, announce).await?;
            return Ok(None);
        }
        let node = &self.caller.node;
        let settings = node.settings();
        // A connection that has much to read already gets its share page by page.
        let room = settings.client.queue_max_size.saturating_sub(self.caller.outbox.pending_bytes()) / 4;
        let chunk = self.plan.chunk_bytes.min(room);
        let limit = match settings.client.recovery_max_publication_limit {
            0 => usize::MAX,
            limit => limit,
        };
        let read = Read {
            since: Since::Position(since.clone()),
            reverse: false,
            limit,
            max_bytes: chunk,
            retention: self.plan.namespace.retention(),
        };
        let page = node.read(&self.plan.channel, read).await.map_err(OperationError::from)?;
        if !page.complete {
            node.metrics.recoveries(Recovery::NotRecovered).inc();
            if self.plan.reject_unrecovered {
                return Err(ErrorCode::UNRECOVERABLE_POSITION.into());
            }
            self.at_top(result, announce).await?;
            return Ok(None);
        }
        node.metrics.recoveries(Recovery::Recovered).inc();
        result.recovered = true;
        let (read, fits) = first_chunk(page, &since, chunk, result);
        let mut reply = announce(result)?;
        if fits && self.go_live(Some(&read), &mut reply) == GoLive::Done {
            return Ok(None);
        }
        if let Some(reply) = reply {
            self.caller.outbox.push(reply);
        }
        Ok(Some(read))
    }

    /// Mode `cache`: the latest publication only, if the client does not have it.
    async fn latest(
        &self,
        since: Position,
        result: &mut SubscribeResult,
        announce: &impl Fn(&SubscribeResult) -> Result<Option<Bytes>, Failure>,
    ) -> Result<(), Failure> {
        let node = &self.caller.node;
        for _ in 0..ATTEMPTS {
            let read = Read {
                since: Since::End,
                reverse: true,
                limit: 1,
                max_bytes: usize::MAX,
                retention: self.plan.namespace.retention(),
            };
            let page = node.read(&self.plan.channel, read).await.map_err(OperationError::from)?;
            let up_to_date = since == page.top;
            result.recovered = up_to_date || !page.entries.is_empty();
            tell_position(result, &page.top);
            result.publications = match page.entries.first() {
                Some(entry) if !up_to_date => vec![entry.publication.clone()],
                _ => Vec::new(),
            };
            if !result.recovered && self.plan.reject_unrecovered {
                node.metrics.recoveries(Recovery::NotRecovered).inc();
                return Err(ErrorCode::UNRECOVERABLE_POSITION.into());
            }
            let mut reply = announce(result)?;
            if self.go_live(Some(&page.top), &mut reply) == GoLive::Done {
                let outcome = if result.recovered { Recovery::Recovered } else { Recovery::NotRecovered };
                node.metrics.recoveries(outcome).inc();
                return Ok(());
            }
        }
        Err(ErrorCode::INTERNAL.into())
    }
}

fn tell_position(result: &mut SubscribeResult, position: &Position) {
    result.offset = position.offset;
    result.epoch = position.epoch.as_str().to_owned();
}

/// Fills the reply with what fits and says up to where that reaches, and whether it is all.
///
/// The reply's offset stays the one that was asked for: the client moves on with each publication it takes, so a cut in
/// the middle of a reply loses nothing.
fn first_chunk(page: Page, since: &Position, chunk: usize, result: &mut SubscribeResult) -> (Position, bool) {
    tell_position(result, since);
    let Some(last) = page.entries.last() else {
        // Nothing lies between: the client may as well remember the newer position.
        tell_position(result, &page.top);
        return (page.top, true);
    };
    let bytes = page.entries.iter().map(|entry| entry.bytes()).sum::<usize>();
    if bytes > chunk && page.entries.len() == 1 && chunk < PAGE_BYTES {
        return (since.clone(), false);
    }
    let read = Position { offset: last.offset, epoch: since.epoch.clone() };
    result.publications = page.entries.iter().map(|entry| entry.publication.clone()).collect::<Vec<Publication>>();
    (read, !page.more)
}

/// Reads the next page for a member that is not live yet, and goes live after the last.
pub(super) async fn catch_up(
    caller: Caller,
    channel: Arc<crate::channel::Channel>,
    member: u64,
    namespace: Arc<NamespaceOptions>,
    state: CatchUp,
) -> CatchUpOutcome {
    let start = Instant::now();
    if start > state.deadline {
        return CatchUpOutcome::Insufficient;
    }
    let read = Read {
        since: Since::Position(state.read.clone()),
        reverse: false,
        limit: PAGE_LIMIT,
        max_bytes: PAGE_BYTES,
        retention: namespace.retention(),
    };
    let page = match caller.node.read(&channel.name, read).await {
        Ok(page) if page.complete => page,
        Ok(_) => return CatchUpOutcome::Insufficient,
        Err(error) => {
            tracing::warn!(%error, "a catch-up waits");
            tokio::time::sleep(Duration::from_secs(1)).await;
            return CatchUpOutcome::Failed(state.read);
        }
    };
    let took = start.elapsed();
    let outbox = &caller.outbox;
    let mut frames = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        match publication_frame(outbox.encoding(), &channel.name, &entry.publication, true) {
            Some(frame) => frames.push(frame),
            None => {
                outbox.close(Disconnect::INAPPROPRIATE_PROTOCOL);
                return CatchUpOutcome::Insufficient;
            }
        }
    }
    let reached = match page.entries.last() {
        Some(last) => Position { offset: last.offset, epoch: state.read.epoch },
        None => page.top,
    };
    outbox.push_all(frames);
    if !page.more && channel.go_live(member, Some(&reached), &mut None) == GoLive::Done {
        return CatchUpOutcome::Live;
    }
    // Half of the time is enough, unless the log is slow.
    if start + CATCH_UP_TIME / 2 < state.deadline {
        tokio::time::sleep((took * (state.pages / STEP).min(RESTS)).min(REST)).await;
    }
    CatchUpOutcome::More(reached)
}
