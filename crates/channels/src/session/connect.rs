//! Connect and refresh: who the client is, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{
    ConnectRequest, ConnectResult, Disconnect, RefreshRequest, RefreshResult, Reply, ReplyResult, SubscribeRequest,
};
use plenum_telemetry::Method;

use super::establish::{Established, Plan, Wants, establish};
use super::flight::Done;
use super::{Caller, Connected, Identity, Phase, Session, frame, time_to_live};
use crate::error::Failure;
use crate::node::unix_now_ms;
use crate::{Compiled, ConnectionClaims, SubscribeOptions, TokenError};

/// A connect that may go on: the session takes it up and opens the outbox with the reply.
pub(super) struct Admitted {
    identity: Arc<Identity>,
    expire_at: u64,
    established: Vec<Established>,
    result: ConnectResult,
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => ErrorCode::TOKEN_EXPIRED.into(),
            TokenError::Invalid { reason } => {
                tracing::debug!(reason, "a token was refused");
                Disconnect::INVALID_TOKEN.into()
            }
            TokenError::Unavailable { reason } => {
                tracing::warn!(reason, "a token could not be checked");
                ErrorCode::INTERNAL.into()
            }
        }
    }
}

impl Session {
    pub(super) fn connect(&mut self, id: u32, request: ConnectRequest) {
        self.phase = Phase::Connecting;
        let future = admit(
            self.node.clone(),
            self.outbox.clone(),
            self.client,
            self.vouched.as_deref().map(Into::into),
            request,
        );
        let future = async move { Done::Connected { id, outcome: future.await } };
        self.flight.get_or_insert_default().push(future.boxed());
    }

    pub(super) fn connected(&mut self, id: u32, outcome: Result<Box<Admitted>, Failure>) {
        let admitted = match outcome {
            Ok(admitted) => *admitted,
            Err(failure) => {
                self.phase = Phase::Refused;
                let Failure::Error(error) = failure else {
                    return self.reply(id, Method::Connect, Err(failure));
                };
                self.count(Method::Connect, error.code);
                match frame(&self.outbox, &Reply::Error { id, error }) {
                    Some(frame) => self.outbox.open(frame),
                    None => self.close(Disconnect::INAPPROPRIATE_PROTOCOL),
                }
                return;
            }
        };
        let reply = Reply::Result { id, result: ReplyResult::Connect(Box::new(admitted.result)) };
        let Some(frame) = frame(&self.outbox, &reply) else {
            return self.close(Disconnect::INAPPROPRIATE_PROTOCOL);
        };
        self.count(Method::Connect, 0);
        self.phase = Phase::Connected(Box::new(Connected {
            identity: admitted.identity,
            subscriptions: super::Subscriptions::default(),
            expire_at: admitted.expire_at,
        }));
        self.outbox.open(frame);
        for established in admitted.established {
            self.adopt(established.subscription);
        }
        self.start_beat();
    }

    pub(super) fn refresh(&mut self, id: u32, request: RefreshRequest) {
        if request.token.is_empty() {
            return self.reply(id, Method::Refresh, Err(ErrorCode::BAD_REQUEST.into()));
        }
        let tokens = self.node.tokens();
        let future = async move {
            let outcome = tokens.connection(&request.token).await;
            let outcome = outcome.map(Box::new).map_err(|error| match error {
                // A client that heard 109 here would stay away; told this, it comes back with a new token.
                TokenError::Expired => Disconnect::EXPIRED.into(),
                error => Failure::from(error),
            });
            Done::Refreshed { id, outcome }
        };
        self.flight.get_or_insert_default().push(future.boxed());
    }

    pub(super) fn refreshed(&mut self, id: u32, outcome: Result<Box<ConnectionClaims>, Failure>) {
        let result = outcome.and_then(|claims| self.extend(*claims));
        self.reply(id, Method::Refresh, result);
        self.schedule();
    }
}

impl Session {
    /// Takes over what a newer token of the same user grants.
    fn extend(&mut self, claims: ConnectionClaims) -> Result<ReplyResult, Failure> {
        let Phase::Connected(connected) = &mut self.phase else { return Err(ErrorCode::INTERNAL.into()) };
        if *claims.user != *connected.identity.user {
            return Err(Disconnect::INVALID_TOKEN.into());
        }
        let (expires, ttl) = time_to_live(claims.expire_at)?;
        connected.expire_at = claims.expire_at;
        self.adopt_info(claims.info);
        let (client, version) = (self.client.to_string(), self.node.version.clone());
        Ok(ReplyResult::Refresh(RefreshResult { client, version, expires, ttl }))
    }
}

async fn admit(
    node: Arc<crate::Node>,
    outbox: Arc<crate::Outbox>,
    client: uuid::Uuid,
    vouched: Option<String>,
    request: ConnectRequest,
) -> Result<Box<Admitted>, Failure> {
    let settings = node.settings();
    let claims = if !request.token.is_empty() {
        let claims = node.tokens().connection(&request.token).await?;
        if claims.user.is_empty() && settings.client.disallow_anonymous_connection_tokens {
            return Err(Disconnect::PERMISSION_DENIED.into());
        }
        // As published: in the insecure mode no connection expires.
        ConnectionClaims { expire_at: if settings.client.insecure { 0 } else { claims.expire_at }, ..claims }
    } else {
        let anonymous = settings.client.insecure || settings.client.allow_anonymous_connect_without_token;
        match vouched {
            Some(user) => ConnectionClaims { user, ..ConnectionClaims::default() },
            None if anonymous => ConnectionClaims::default(),
            None => return Err(Disconnect::BAD_REQUEST.into()),
        }
    };
    let (expires, ttl) = time_to_live(claims.expire_at)?;
    let user: Arc<str> = claims.user.into();
    if !node.registry.identify(client, &user, settings.client.user_connection_limit) {
        return Err(Disconnect::CONNECTION_LIMIT.into());
    }
    let identity = Arc::new(Identity { client, user, info: claims.info });
    let caller = Caller { node: node.clone(), outbox, identity: identity.clone() };
    let established = subscribe_all(&caller, &settings, claims.subscriptions, request.subs).await?;
    let subs = established
        .iter()
        .map(|established| (established.subscription.channel().to_string(), established.result.clone()))
        .collect();
    let result = ConnectResult {
        client: client.to_string(),
        version: node.version.clone(),
        expires,
        ttl,
        subs,
        ping: u32::try_from(settings.client.ping_interval.as_secs()).unwrap_or(u32::MAX),
        pong: true,
        time: if settings.client.connect_include_server_time { unix_now_ms() } else { 0 },
        ..ConnectResult::default()
    };
    Ok(Box::new(Admitted { identity, expire_at: claims.expire_at, established, result }))
}

/// The server-side subscriptions of a new connection, all or none.
async fn subscribe_all(
    caller: &Caller,
    settings: &Compiled,
    mut subscriptions: BTreeMap<String, SubscribeOptions>,
    mut positions: BTreeMap<String, SubscribeRequest>,
) -> Result<Vec<Established>, Failure> {
    if let Some(channel) = settings.personal_channel(&caller.identity.user) {
        subscriptions.entry(channel).or_default();
    }
    let limit = settings.client.channel_limit;
    if limit > 0 && subscriptions.len() > limit {
        return Err(Disconnect::CHANNEL_LIMIT.into());
    }
    let chunk_bytes = settings.client.recovery_max_bytes / subscriptions.len().max(1);
    let mut establishing = Vec::with_capacity(subscriptions.len());
    for (channel, options) in subscriptions {
        let position = positions.remove(&channel).filter(|request| request.recover);
        let recover = position.map(|request| (request.offset, request.epoch));
        let plan = server_plan(settings, &channel, options, recover, chunk_bytes)?;
        establishing.push(establish(caller.clone(), plan, |_| Ok(None)));
    }
    try_join_all(establishing).await
}

/// A subscription that the server makes; the channel must be acceptable.
pub(super) fn server_plan(
    settings: &Compiled,
    channel: &str,
    options: SubscribeOptions,
    recover: Option<(u64, String)>,
    chunk_bytes: usize,
) -> Result<Plan, Failure> {
    let resolved = settings.resolve(channel).map_err(|error| {
        tracing::warn!(%error, "a server-side subscription names a channel that cannot be");
        Failure::from(crate::OperationError::from(error))
    })?;
    // A server-side subscription cannot ask. It is recovered wherever the namespace allows that; joins and leaves come
    // only where the namespace or the subscription's options force them, as published.
    let wants = Wants {
        positioned: resolved.namespace.allow_positioning,
        recoverable: resolved.namespace.allow_recovery,
        join_leave: false,
    };
    Ok(Plan {
        channel: channel.into(),
        namespace: resolved.namespace,
        server_side: true,
        info: options.info,
        data: options.data,
        expire_at: options.expire_at,
        wants,
        overrides: options.overrides,
        recover: recover.or(options.since),
        reject_unrecovered: false,
        chunk_bytes,
    })
}
