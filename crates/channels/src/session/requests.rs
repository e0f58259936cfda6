//! The commands of a connected client.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{
    Command, Disconnect, HistoryRequest, HistoryResult, PresenceResult, PresenceStatsResult, PublishRequest, Reply,
    ReplyResult, Request, SubRefreshRequest, SubRefreshResult, SubscribeRequest, SubscribeResult,
};
use plenum_protocol::{subscribe_flag, subscription_type};
use plenum_telemetry::Method;

use super::establish::{Established, Plan, Wants, establish};
use super::flight::Done;
use super::{Caller, Connected, Phase, Session, frame, method, time_to_live};
use crate::error::Failure;
use crate::limits::Limited;
use crate::{
    ChannelKind, Compiled, HistoryQuery, NamespaceOptions, OperationError, Publish, Resolved, SubscribeOptions,
    SubscriptionClaims, TokenError,
};

/// Payload bytes after which a page of history for a client ends.
const HISTORY_BYTES: usize = 512 * 1024;

/// Who may do something in a channel: `allow_…_for_client`, `…_for_subscriber`, `…_for_anonymous`.
struct Allowed {
    /// The namespace has it at all; what it has not is said before who may.
    available: bool,
    client: bool,
    subscriber: bool,
    anonymous: bool,
}

impl Session {
    /// Runs a command that nothing holds up.
    pub(super) fn run(&mut self, command: Command) {
        let Command { id, request } = command;
        let method = method(&request);
        if self.is_too_often(&request) {
            return self.reply(id, method, Err(ErrorCode::TOO_MANY_REQUESTS.into()));
        }
        match request {
            Request::Connect(request) if matches!(self.phase, Phase::Unauthenticated) => {
                return self.connect(id, *request);
            }
            Request::Send(_) => {
                self.count(Method::Send, 0);
                return self.close(Disconnect::NOT_AVAILABLE);
            }
            Request::Ping => return self.reply(id, method, Ok(ReplyResult::Ping)),
            Request::Rpc(_) => return self.reply(id, method, Err(ErrorCode::NOT_AVAILABLE.into())),
            Request::Refresh(request) => return self.refresh(id, request),
            Request::Connect(_) | Request::Unknown | Request::Pong => return self.close(Disconnect::BAD_REQUEST),
            _ => {}
        }
        let Phase::Connected(connected) = &self.phase else { return };
        let settings = self.node.settings();
        let caller = self.caller(&connected.identity);
        let started = match request {
            Request::Subscribe(request) => self.subscribe(id, *request, &settings, caller),
            Request::Unsubscribe(request) => self.unsubscribe(id, &request.channel),
            Request::SubRefresh(request) => self.refresh_subscription(id, request),
            Request::Publish(request) => publish(connected, &settings, &caller, request),
            Request::Presence(request) => presence(connected, &settings, &caller, request.channel),
            Request::PresenceStats(request) => presence_stats(connected, &settings, &caller, request.channel),
            Request::History(request) => history(connected, &settings, &caller, request),
            _ => return,
        };
        match started {
            Ok(Started::Replying(future)) => self.start(id, method, future),
            Ok(Started::Done(future)) => self.flight.get_or_insert_default().push(future),
            Err(failure) => self.reply(id, method, Err(failure)),
        }
    }

    fn is_too_often(&self, request: &Request) -> bool {
        let limited = match request {
            Request::Subscribe(_) => Limited::Subscribe,
            Request::Publish(_) => Limited::Publish,
            Request::Rpc(_) => Limited::Rpc,
            _ => return false,
        };
        let Phase::Connected(connected) = &self.phase else { return false };
        !self.node.rates.take(limited, &connected.identity.user, self.origin, &self.node.settings().client)
    }

    /// Runs a command whose outcome is its reply; one that is ready at once never enters the flight.
    fn start(&mut self, id: u32, method: Method, mut future: BoxFuture<'static, Result<ReplyResult, Failure>>) {
        match (&mut future).now_or_never() {
            Some(result) => self.reply(id, method, result),
            None => {
                let done = async move { Done::Replied { id, method, result: future.await } };
                self.flight.get_or_insert_default().push(done.boxed());
            }
        }
    }

    fn subscribe(
        &mut self,
        id: u32,
        request: SubscribeRequest,
        settings: &Arc<Compiled>,
        caller: Caller,
    ) -> Result<Started, Failure> {
        let Phase::Connected(connected) = &self.phase else { return Err(ErrorCode::INTERNAL.into()) };
        if request.kind != subscription_type::STREAM || request.tf.is_some() {
            return Err(ErrorCode::NOT_AVAILABLE.into());
        }
        let resolved = settings.resolve(&request.channel).map_err(OperationError::from)?;
        if connected.subscriptions.get(&request.channel).is_some() {
            return Err(ErrorCode::ALREADY_SUBSCRIBED.into());
        }
        let under_way = self.flight.as_ref().map_or(0, |flight| flight.subscribing);
        let limit = settings.client.channel_limit;
        if limit > 0 && connected.subscriptions.len() + under_way >= limit {
            return Err(ErrorCode::LIMIT_EXCEEDED.into());
        }
        if request.token.is_empty() && !may_subscribe(settings, &resolved, &caller) {
            return Err(ErrorCode::PERMISSION_DENIED.into());
        }
        let channel: Arc<str> = request.channel.as_str().into();
        let flight = self.flight.get_or_insert_default();
        flight.begin(channel.clone());
        let wants = wants(settings, &resolved.namespace, &caller, &request);
        let chunk_bytes = settings.client.recovery_max_bytes;
        let future = async move {
            let outcome = subscribe(id, request, resolved.namespace, wants, chunk_bytes, caller).await.map(Box::new);
            Done::Subscribed { id, channel, outcome }
        };
        Ok(Started::Done(future.boxed()))
    }

    pub(super) fn subscribed(&mut self, id: u32, channel: &str, outcome: Result<Box<Established>, Failure>) {
        if let Some(flight) = &mut self.flight {
            flight.finish(channel);
        }
        match outcome {
            // The reply was queued when the subscription went live.
            Ok(established) => {
                self.count(Method::Subscribe, 0);
                self.adopt(established.subscription);
            }
            Err(failure) => self.reply(id, Method::Subscribe, Err(failure)),
        }
    }

    fn unsubscribe(&mut self, id: u32, channel: &str) -> Result<Started, Failure> {
        let Phase::Connected(connected) = &mut self.phase else { return Err(ErrorCode::INTERNAL.into()) };
        let Some(mut subscription) = connected.subscriptions.remove(channel) else {
            return Ok(Started::replying(std::future::ready(Ok(ReplyResult::Unsubscribe))));
        };
        let channel = subscription.channel().clone();
        let Some(seat) = subscription.seat.take() else {
            return Ok(Started::replying(std::future::ready(Ok(ReplyResult::Unsubscribe))));
        };
        drop(subscription);
        self.flight.get_or_insert_default().block(channel.clone());
        let future = async move {
            seat.vacate().await;
            Done::Released { channel, reply: Some(id) }
        };
        Ok(Started::Done(future.boxed()))
    }

    fn refresh_subscription(&mut self, id: u32, request: SubRefreshRequest) -> Result<Started, Failure> {
        let Phase::Connected(connected) = &self.phase else { return Err(ErrorCode::INTERNAL.into()) };
        if request.kind != 0 {
            return Err(ErrorCode::NOT_AVAILABLE.into());
        }
        if request.token.is_empty() || connected.subscriptions.get(&request.channel).is_none() {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        let channel: Arc<str> = request.channel.as_str().into();
        let caller = self.caller(&connected.identity);
        self.flight.get_or_insert_default().block(channel.clone());
        let future = async move {
            let outcome = verify(&caller, &channel, &request.token).await.map(Box::new).map_err(Failure::from);
            Done::SubscriptionRefreshed { id, channel, outcome }
        };
        Ok(Started::Done(future.boxed()))
    }

    pub(super) fn subscription_refreshed(
        &mut self,
        id: u32,
        channel: &str,
        outcome: Result<Box<SubscriptionClaims>, Failure>,
    ) {
        if let Some(flight) = &mut self.flight {
            flight.unblock(channel);
        }
        let result = outcome.and_then(|claims| self.extend_subscription(channel, claims.options));
        self.reply(id, Method::SubRefresh, result);
        self.schedule();
    }

    /// Takes over what a newer token of the same subscription grants.
    fn extend_subscription(&mut self, channel: &str, options: SubscribeOptions) -> Result<ReplyResult, Failure> {
        let Phase::Connected(connected) = &mut self.phase else { return Err(ErrorCode::INTERNAL.into()) };
        let (expires, ttl) = time_to_live(options.expire_at)?;
        let subscription = connected.subscriptions.get_mut(channel).ok_or(ErrorCode::BAD_REQUEST)?;
        subscription.expire_at = options.expire_at;
        self.adopt_channel_info(channel, options.info);
        Ok(ReplyResult::SubRefresh(SubRefreshResult { expires, ttl, ..SubRefreshResult::default() }))
    }
}

/// How a command goes on.
enum Started {
    /// Its outcome is its reply.
    Replying(BoxFuture<'static, Result<ReplyResult, Failure>>),
    /// Its outcome changes the session.
    Done(BoxFuture<'static, Done>),
}

impl Started {
    fn replying(future: impl Future<Output = Result<ReplyResult, Failure>> + Send + 'static) -> Self {
        Started::Replying(future.boxed())
    }
}

async fn subscribe(
    id: u32,
    request: SubscribeRequest,
    namespace: Arc<NamespaceOptions>,
    wants: Wants,
    chunk_bytes: usize,
    caller: Caller,
) -> Result<Established, Failure> {
    let claims = match request.token.as_str() {
        "" => SubscriptionClaims::default(),
        token => verify(&caller, &request.channel, token).await.map_err(|failure| match failure {
            // A subscribe fails for itself; connect and the refreshes end the connection.
            TokenFailure::Refused(TokenError::Invalid { reason }) => {
                tracing::debug!(reason, "a subscription token was refused");
                ErrorCode::PERMISSION_DENIED.into()
            }
            failure => Failure::from(failure),
        })?,
    };
    let plan = Plan {
        channel: request.channel.into(),
        namespace,
        server_side: false,
        info: claims.options.info,
        data: claims.options.data,
        expire_at: claims.options.expire_at,
        wants,
        overrides: claims.options.overrides,
        recover: request.recover.then_some((request.offset, request.epoch)),
        reject_unrecovered: request.flag & subscribe_flag::REJECT_UNRECOVERED != 0,
        chunk_bytes,
    };
    let outbox = caller.outbox.clone();
    establish(caller, plan, move |result: &SubscribeResult| {
        let result = ReplyResult::Subscribe(Box::new(result.clone()));
        match frame(&outbox, &Reply::Result { id, result }) {
            Some(frame) => Ok(Some(frame)),
            None => Err(Disconnect::INAPPROPRIATE_PROTOCOL.into()),
        }
    })
    .await
}

/// Why a subscription token does not serve.
enum TokenFailure {
    /// It is not valid.
    Refused(TokenError),
    /// It is for another user, connection or channel.
    Foreign,
    /// It was called back.
    Revoked,
}

impl From<TokenFailure> for Failure {
    fn from(failure: TokenFailure) -> Self {
        match failure {
            TokenFailure::Refused(error) => error.into(),
            TokenFailure::Foreign => Disconnect::INVALID_TOKEN.into(),
            TokenFailure::Revoked => ErrorCode::TOKEN_REVOKED.into(),
        }
    }
}

/// A subscription token that is for this user, connection and channel; as published, one for another ends the
/// connection.
async fn verify(caller: &Caller, channel: &str, token: &str) -> Result<SubscriptionClaims, TokenFailure> {
    let claims = caller.node.tokens().subscription(token).await.map_err(TokenFailure::Refused)?;
    if caller.node.access.check_subscription(&claims).is_err() {
        return Err(TokenFailure::Revoked);
    }
    let client = &claims.client;
    if claims.channel != channel
        || claims.user != *caller.identity.user
        || !(client.is_empty() || *client == caller.identity.client.to_string())
    {
        return Err(TokenFailure::Foreign);
    }
    Ok(claims)
}

fn may_subscribe(settings: &Compiled, resolved: &Resolved, caller: &Caller) -> bool {
    let (user, options) = (&caller.identity.user, &resolved.namespace);
    match &resolved.kind {
        // As published, also in the insecure mode.
        ChannelKind::Private => false,
        _ if settings.client.insecure => true,
        ChannelKind::UserLimited(users) => options.allow_user_limited_channels && users.contains(user),
        ChannelKind::Public => {
            options.allow_subscribe_for_client && (!user.is_empty() || options.allow_subscribe_for_anonymous)
        }
    }
}

/// What the client asked for and may have. As published, whoever may read a channel's history may have positions and
/// recovery as well, and nobody without access to presence sees who joins and leaves on request.
fn wants(settings: &Compiled, options: &NamespaceOptions, caller: &Caller, request: &SubscribeRequest) -> Wants {
    let user = &caller.identity.user;
    let history = history_allowed(options).holds(settings, user, true);
    let presence = presence_allowed(options).holds(settings, user, true);
    Wants {
        positioned: request.positioned && (options.allow_positioning || history),
        recoverable: request.recoverable && (options.allow_recovery || history),
        join_leave: request.join_leave && presence,
    }
}

impl Allowed {
    fn holds(&self, settings: &Compiled, user: &str, subscribed: bool) -> bool {
        let known = !user.is_empty() || self.anonymous;
        settings.client.insecure || (known && (self.client || (self.subscriber && subscribed)))
    }
}

/// Resolves a channel and checks that this client may do something there.
fn permitted(
    connected: &Connected,
    settings: &Compiled,
    channel: &str,
    allowed: impl Fn(&NamespaceOptions) -> Allowed,
) -> Result<Resolved, Failure> {
    let resolved = settings.resolve(channel).map_err(OperationError::from)?;
    let allowed = allowed(&resolved.namespace);
    if !allowed.available {
        return Err(ErrorCode::NOT_AVAILABLE.into());
    }
    let subscribed = connected.subscriptions.get(channel).is_some();
    if allowed.holds(settings, &connected.identity.user, subscribed) {
        Ok(resolved)
    } else {
        Err(ErrorCode::PERMISSION_DENIED.into())
    }
}

fn publish(
    connected: &Connected,
    settings: &Compiled,
    caller: &Caller,
    request: PublishRequest,
) -> Result<Started, Failure> {
    if request.kind != 0 || request.removed {
        return Err(ErrorCode::NOT_AVAILABLE.into());
    }
    permitted(connected, settings, &request.channel, |options| Allowed {
        available: true,
        client: options.allow_publish_for_client,
        subscriber: options.allow_publish_for_subscriber,
        anonymous: options.allow_publish_for_anonymous,
    })?;
    let channel_info = connected
        .subscriptions
        .get(&request.channel)
        .and_then(|subscription| subscription.info.as_deref().cloned())
        .unwrap_or_default();
    let info = caller.identity.member(channel_info);
    let publish = Publish { channel: request.channel, data: request.data, ..Publish::default() };
    // Started here and not in the future, so that a client's publications keep their order.
    let publishing = caller.node.start_publish("client", publish, Some(info));
    Ok(Started::replying(async move {
        publishing.await?;
        Ok(ReplyResult::Publish)
    }))
}

fn presence(connected: &Connected, settings: &Compiled, caller: &Caller, channel: String) -> Result<Started, Failure> {
    permitted(connected, settings, &channel, presence_allowed)?;
    let node = caller.node.clone();
    Ok(Started::replying(async move {
        let members = node.presence(&channel).await?;
        let presence: BTreeMap<_, _> =
            members.iter().map(|member| (member.client.clone(), member.as_ref().clone())).collect();
        Ok(ReplyResult::Presence(PresenceResult { presence }))
    }))
}

fn presence_stats(
    connected: &Connected,
    settings: &Compiled,
    caller: &Caller,
    channel: String,
) -> Result<Started, Failure> {
    permitted(connected, settings, &channel, presence_allowed)?;
    let node = caller.node.clone();
    Ok(Started::replying(async move {
        let stats = node.presence_stats(&channel).await?;
        let result = PresenceStatsResult { num_clients: stats.clients, num_users: stats.users };
        Ok(ReplyResult::PresenceStats(result))
    }))
}

fn presence_allowed(options: &NamespaceOptions) -> Allowed {
    Allowed {
        available: options.presence,
        client: options.allow_presence_for_client,
        subscriber: options.allow_presence_for_subscriber,
        anonymous: options.allow_presence_for_anonymous,
    }
}

fn history_allowed(options: &NamespaceOptions) -> Allowed {
    Allowed {
        available: options.keeps_history(),
        client: options.allow_history_for_client,
        subscriber: options.allow_history_for_subscriber,
        anonymous: options.allow_history_for_anonymous,
    }
}

fn history(
    connected: &Connected,
    settings: &Compiled,
    caller: &Caller,
    request: HistoryRequest,
) -> Result<Started, Failure> {
    permitted(connected, settings, &request.channel, history_allowed)?;
    let node = caller.node.clone();
    // A reply has to fit the outbox with room to spare, and what SDKs take as one frame.
    let max_bytes = HISTORY_BYTES.min(settings.client.queue_max_size / 4);
    Ok(Started::replying(async move {
        let query = HistoryQuery {
            limit: i64::from(request.limit),
            since: request.since.map(|since| (since.offset, since.epoch)),
            reverse: request.reverse,
        };
        let history = node.history_within(&request.channel, query, max_bytes).await?;
        Ok(ReplyResult::History(HistoryResult {
            publications: history.publications,
            epoch: history.position.epoch.as_str().to_owned(),
            offset: history.position.offset,
        }))
    }))
}
