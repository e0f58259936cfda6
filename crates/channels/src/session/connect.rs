//! Connect and refresh: who the client is, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use plenum_protocol::codes::ErrorCode;
use plenum_protocol::{
    ConnectRequest, ConnectResult, Disconnect, RefreshRequest, RefreshResult, Reply, ReplyResult, SubscribeRequest,
};
use plenum_telemetry::{Connect as ConnectOutcome, Method, Resume as Resumed};
use uuid::Uuid;

use super::establish::{Established, Plan, Wants, establish};
use super::flight::Done;
use super::{Caller, Connected, Identity, Phase, Session, frame, time_to_live};
use crate::access::Refusal;
use crate::error::{BLOCKS_UNKNOWN, Failure, LIMITS_AWAY, RESUME_AWAY, SLOW};
use crate::limits::{Counted, Limited, Refused};
use crate::node::{unix_now, unix_now_ms};
use crate::resume::{Nonce, Pass, Resumption, Won, token_mark};
use crate::{Compiled, ConnectionClaims, Quota, SubscribeOptions, TokenError};

/// A connect that takes longer fails for the moment: released clients wait 5 s for the reply.
pub(super) const PATIENCE: Duration = Duration::from_millis(4500);

/// A connect that may go on: the session takes it up and opens the outbox with the reply.
pub(super) struct Admitted {
    identity: Arc<Identity>,
    expire_at: u64,
    counted: Option<Counted>,
    established: Vec<Established>,
    result: ConnectResult,
    /// Of a resumed connection.
    won: Option<Won>,
}

/// Who knocks.
struct Newcomer {
    node: Arc<crate::Node>,
    outbox: Arc<crate::Outbox>,
    /// Id of the connection, and its client id unless it resumes.
    connection: Uuid,
    vouched: Option<String>,
}

/// What a connection is made of, whether anew or resumed.
struct Grant {
    claims: ConnectionClaims,
    /// Of the connection token that it stands on, whether shown now or at an earlier connect; zeros for none.
    token: [u8; 16],
    client: Uuid,
    generation: u32,
    nonce: Nonce,
    won: Option<Won>,
}

impl Grant {
    fn has_token(&self) -> bool {
        self.token != token_mark("")
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Blocked => Disconnect::PERMISSION_DENIED.into(),
            Refusal::Revoked => ErrorCode::TOKEN_REVOKED.into(),
        }
    }
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
        let settings = self.node.settings();
        if !self.node.rates.take_address(Limited::Connect, self.origin, &settings.client) {
            return self.connected(id, Err(ErrorCode::TOO_MANY_REQUESTS.into()));
        }
        let newcomer = Newcomer {
            node: self.node.clone(),
            outbox: self.outbox.clone(),
            connection: self.connection,
            vouched: self.vouched.as_deref().map(Into::into),
        };
        let future = tokio::time::timeout(PATIENCE, newcomer.admit(request));
        let future = async move {
            let outcome = future.await.unwrap_or_else(|_| {
                tracing::warn!("a connect took too long: its client is told to try again");
                Err(Failure::temporary(SLOW))
            });
            Done::Connected { id, outcome }
        };
        self.flight.get_or_insert_default().push(future.boxed());
    }

    pub(super) fn connected(&mut self, id: u32, outcome: Result<Box<Admitted>, Failure>) {
        let result = if outcome.is_ok() { ConnectOutcome::Accepted } else { ConnectOutcome::Refused };
        self.node.metrics.connects(result).inc();
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
        self.client = admitted.identity.client;
        let resumed = admitted.won.is_some();
        self.phase = Phase::Connected(Box::new(Connected {
            identity: admitted.identity,
            subscriptions: super::Subscriptions::default(),
            expire_at: admitted.expire_at,
            _counted: admitted.counted,
            unconfirmed: admitted.won.map(Box::new),
            noted: None,
        }));
        self.outbox.open(frame);
        for established in admitted.established {
            self.adopt(established.subscription);
        }
        self.start_beat();
        if resumed {
            self.ask_for_a_sign();
        }
    }

    pub(super) fn refresh(&mut self, id: u32, request: RefreshRequest) {
        if request.token.is_empty() {
            return self.reply(id, Method::Refresh, Err(ErrorCode::BAD_REQUEST.into()));
        }
        let node = self.node.clone();
        let future = async move {
            let outcome = node.tokens().connection(&request.token).await;
            let outcome = outcome.map(Box::new).map_err(|error| match error {
                // A client that heard 109 here would stay away; told this, it comes back with a new token.
                TokenError::Expired => Disconnect::EXPIRED.into(),
                error => Failure::from(error),
            });
            let outcome = outcome.and_then(|claims| {
                node.access.check(&claims, true)?;
                Ok(claims)
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
        let info = connected.identity.info.clone();
        let token = Some((claims.token_id.as_str(), claims.issued_at));
        connected.identity = Arc::new(connected.identity.refreshed(info, token));
        self.node.registry.describe(self.connection, &connected.identity);
        // Again: an entry that came after the first look may not have found the connection by its new token.
        self.node.access.check(&claims, true).map_err(|refusal| match refusal {
            Refusal::Blocked => Disconnect::PERMISSION_DENIED,
            Refusal::Revoked => Disconnect::INVALID_TOKEN,
        })?;
        self.adopt_info(claims.info);
        let (client, version) = (self.client.to_string(), self.node.version.clone());
        Ok(ReplyResult::Refresh(RefreshResult { client, version, expires, ttl }))
    }
}

impl Newcomer {
    async fn admit(self, mut request: ConnectRequest) -> Result<Box<Admitted>, Failure> {
        let Self { node, outbox, connection, .. } = &self;
        let settings = node.settings();
        if !node.access.is_known().await {
            tracing::warn!("a connect is refused: it is not known yet who is blocked");
            return Err(Failure::temporary(BLOCKS_UNKNOWN));
        }
        let grant = self.grant(&settings, &request).await?;
        let claims = &grant.claims;
        if !node.rates.take_user(Limited::Connect, &claims.user, &settings.client) {
            return Err(ErrorCode::TOO_MANY_REQUESTS.into());
        }
        let (expires, ttl) = time_to_live(claims.expire_at)?;
        let app = (std::mem::take(&mut request.name), std::mem::take(&mut request.version));
        let step = grant.won.as_ref().map_or(0, |won| won.fence.step);
        let mut identity = Identity::new(grant.client, claims, grant.has_token(), app, step);
        let mut registered = Arc::new(identity.clone());
        if !node.registry.identify(*connection, &registered, settings.client.user_connection_limit) {
            return Err(Disconnect::CONNECTION_LIMIT.into());
        }
        let counted = count(node, &settings, &registered).await?;
        // Only now: an entry that comes after this look finds the connection.
        node.access.check(claims, grant.has_token())?;
        if grant.won.is_some() {
            identity.resumption = Some(Resumption::begin(node, &registered));
            registered = Arc::new(identity);
            node.registry.describe(*connection, &registered);
        }
        let caller = Caller { node: node.clone(), outbox: outbox.clone(), identity: registered.clone() };
        let pass = Pass {
            client: grant.client,
            generation: grant.generation,
            nonce: grant.nonce,
            sealed_at: unix_now(),
            token: grant.token,
            claims: grant.claims.clone(),
        };
        let mut subscriptions = grant.claims.subscriptions;
        if let Some(channel) = settings.personal_channel(&registered.user)
            && grant.won.as_ref().is_none_or(|won| !won.fence.changes.ended(&channel))
        {
            subscriptions.entry(channel).or_default();
        }
        let established = subscribe_all(&caller, &settings, subscriptions, request.subs).await?;
        let subs = established
            .iter()
            .map(|established| (established.subscription.channel().to_string(), established.result.clone()))
            .collect();
        let result = ConnectResult {
            client: grant.client.to_string(),
            version: node.version.clone(),
            expires,
            ttl,
            subs,
            data: node.resume.enclose(&Bytes::new(), &settings.client.resume, &pass).unwrap_or_default(),
            ping: u32::try_from(settings.client.ping_interval.as_secs()).unwrap_or(u32::MAX),
            pong: true,
            time: if settings.client.connect_include_server_time { unix_now_ms() } else { 0 },
            ..ConnectResult::default()
        };
        let expire_at = pass.claims.expire_at;
        Ok(Box::new(Admitted { identity: registered, expire_at, counted, established, result, won: grant.won }))
    }

    /// What the client may be: who it was, if it carries a pass that opens, or else who its token says.
    async fn grant(&self, settings: &Compiled, request: &ConnectRequest) -> Result<Grant, Failure> {
        let resume = &settings.client.resume;
        let pass = match self.node.resume.open(&request.data, resume, unix_now()) {
            None => None,
            Some(Ok(pass)) => Some(pass),
            Some(Err(outcome)) => {
                self.count(outcome);
                None
            }
        };
        let Some(pass) = pass else { return self.fresh(self.authenticate(settings, request).await?, request) };
        // The token that the connection was made with was verified then; any other one speaks for itself.
        let same = (request.token.is_empty() || token_mark(&request.token) == pass.token)
            && self.vouched.as_ref().is_none_or(|user| *user == pass.claims.user);
        if same && pass.is_expired(unix_now()) {
            self.count(Resumed::Expired);
            return self.fresh(self.authenticate(settings, request).await?, request);
        }
        let mut claims = if same { pass.claims.clone() } else { self.authenticate(settings, request).await? };
        let token = if request.token.is_empty() { pass.token } else { token_mark(&request.token) };
        let outcome = if claims.user != pass.claims.user {
            Err(Resumed::Foreign)
        } else if self.node.access.check(&claims, token != token_mark("")).is_err() {
            Err(Resumed::Denied)
        } else {
            self.node.resume.take(&pass, resume).await
        };
        match outcome {
            Ok(won) => {
                self.count(Resumed::Accepted);
                let generation = won.fence.generation.saturating_add(1);
                let (client, nonce) = (pass.client, won.fence.successor);
                won.fence.changes.apply(&mut claims.subscriptions, unix_now());
                Ok(Grant { claims, token, client, generation, nonce, won: Some(won) })
            }
            Err(Resumed::Unavailable) if self.node.resume.is_interrupted() => {
                self.count(Resumed::Unavailable);
                Err(Failure::temporary(RESUME_AWAY))
            }
            Err(outcome) => {
                self.count(outcome);
                self.fresh(self.authenticate(settings, request).await?, request)
            }
        }
    }

    fn fresh(&self, claims: ConnectionClaims, request: &ConnectRequest) -> Result<Grant, Failure> {
        let token = token_mark(&request.token);
        Ok(Grant { claims, token, client: self.connection, generation: 1, nonce: rand::random(), won: None })
    }

    fn count(&self, outcome: Resumed) {
        self.node.metrics.resumes(outcome).inc();
    }

    async fn authenticate(&self, settings: &Compiled, request: &ConnectRequest) -> Result<ConnectionClaims, Failure> {
        if !request.token.is_empty() {
            let claims = self.node.tokens().connection(&request.token).await?;
            if claims.user.is_empty() && settings.client.disallow_anonymous_connection_tokens {
                return Err(Disconnect::PERMISSION_DENIED.into());
            }
            // As published: in the insecure mode no connection expires.
            let expire_at = if settings.client.insecure { 0 } else { claims.expire_at };
            return Ok(ConnectionClaims { expire_at, ..claims });
        }
        let anonymous = settings.client.insecure || settings.client.allow_anonymous_connect_without_token;
        match &self.vouched {
            Some(user) => Ok(ConnectionClaims { user: user.clone(), ..ConnectionClaims::default() }),
            None if anonymous => Ok(ConnectionClaims::default()),
            None => Err(Disconnect::BAD_REQUEST.into()),
        }
    }
}

/// Counts the connection among its user's, where that is limited.
async fn count(node: &Arc<crate::Node>, settings: &Compiled, identity: &Identity) -> Result<Option<Counted>, Failure> {
    let (max, fallback) = (settings.client.user_connection_limit, settings.client.on_unavailable.user_connections);
    if max == 0 || identity.user.is_empty() {
        return Ok(None);
    }
    let place = (Quota::UserConnections, identity.user.clone());
    match node.limits.enter(place, identity.client, max, fallback).await {
        Ok(counted) => Ok(Some(counted)),
        Err(Refused::Full) => Err(Disconnect::CONNECTION_LIMIT.into()),
        Err(Refused::Unknown) => Err(Failure::temporary(LIMITS_AWAY)),
    }
}

/// The server-side subscriptions of a new connection, all or none.
async fn subscribe_all(
    caller: &Caller,
    settings: &Compiled,
    subscriptions: BTreeMap<String, SubscribeOptions>,
    mut positions: BTreeMap<String, SubscribeRequest>,
) -> Result<Vec<Established>, Failure> {
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
