//! What the server API does, with the same checks and bounds that clients meet.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use plenum_protocol::codes::Unsubscribed;
use plenum_protocol::{ClientInfo, Disconnect, Publication};
use plenum_telemetry::AppendFailure;
use tokio::time::Instant;

use crate::pattern::Pattern;
use crate::recall::Place;
use crate::{
    Announcement, Answer, Append, AppendError, Appended, ClusterStats, Durability, IdempotencyKey, NamespaceOptions,
    Node, NodeInfo, OperationError, Order, Page, Position, PresenceStats, Question, Read, ReadError, Since,
    SubscribeOptions, Target, Version,
};

/// Attempts to publish a version while others publish on the same channel.
const VERSION_ATTEMPTS: usize = 16;
/// Scope of the idempotency keys of the server API.
const API: &str = "api";
/// Longest idempotency key, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// A publication that the server API asks for.
#[derive(Clone, Debug, Default)]
pub struct Publish {
    /// Channel.
    pub channel: String,
    /// Payload, not empty.
    pub data: Bytes,
    /// Tags that go with it.
    pub tags: BTreeMap<String, String>,
    /// Publishes once for the same key on the same channel; empty for none. At most 255 bytes.
    pub idempotency_key: String,
    /// Live only: no history, no position.
    pub skip_history: bool,
    /// Not published when a publication of the same `version_epoch` had this number or a higher one; 0 for none.
    pub version: u64,
    /// What `version` counts in.
    pub version_epoch: String,
}

/// A publication that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its position, or the channel's if an older version was not published; `None` where the channel has no history.
    pub position: Option<Position>,
}

/// Which part of a history.
#[derive(Clone, Debug, Default)]
pub struct HistoryQuery {
    /// At most this many publications; 0: only the position; negative: as many as
    /// `client.history_max_publication_limit` allows.
    pub limit: i64,
    /// Next to this position.
    pub since: Option<(u64, String)>,
    /// Newest first.
    pub reverse: bool,
}

/// A part of a history.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// In the order asked for.
    pub publications: Vec<Publication>,
    /// The channel's last position.
    pub position: Position,
}

pub(crate) type Publishing = BoxFuture<'static, Result<Published, OperationError>>;

impl Node {
    /// Publishes; resolves when the log has acknowledged it (or, without history, when it was sent).
    pub async fn publish(self: &Arc<Self>, request: Publish) -> Result<Published, OperationError> {
        self.start_publish(API, request, None).await
    }

    /// Publishes. The call itself fixes the order among publications of this node and scope to the same channel; only a
    /// publication with a version is ordered when the future runs.
    pub(crate) fn start_publish(
        self: &Arc<Self>,
        scope: &str,
        request: Publish,
        info: Option<ClientInfo>,
    ) -> Publishing {
        let namespace = match self.check_publish(&request) {
            Ok(namespace) => namespace,
            Err(error) => return std::future::ready(Err(error)).boxed(),
        };
        let publication = Publication { data: request.data, tags: request.tags, info, ..Publication::default() };
        let idempotency = (!request.idempotency_key.is_empty())
            .then(|| IdempotencyKey { scope: scope.to_owned(), key: request.idempotency_key });
        if request.skip_history || namespace.durability == Durability::None {
            return announce(self.clone(), request.channel, publication, idempotency).boxed();
        }
        let append = Append {
            channel: request.channel.into(),
            publication,
            retention: namespace.retention(),
            idempotency,
            expected: None,
            version: (request.version > 0).then_some(Version { number: request.version, scope: request.version_epoch }),
        };
        let shows_position = namespace.keeps_history();
        if append.version.is_some() {
            return publish_version(self.clone(), append, shows_position).boxed();
        }
        // Clients give no keys, and one connection's publications never wait for another's.
        let place = (scope == API).then(|| self.recall.queue(&append.channel, append.idempotency.as_ref())).flatten();
        if let Some(place) = place {
            return publish_in_line(self.clone(), append, place, shows_position).boxed();
        }
        let appending = self.append(append);
        async move { Ok(Published { position: shows_position.then_some(appending.await?.position) }) }.boxed()
    }

    /// Appends and counts. The call itself fixes the order.
    fn append(
        self: &Arc<Self>,
        append: Append,
    ) -> impl Future<Output = Result<Appended, AppendError>> + Send + 'static {
        let node = self.clone();
        let started = Instant::now();
        let appending = self.log.append(append);
        async move {
            let appended = appending.await;
            node.metrics.log_append_seconds.observe(started.elapsed().as_secs_f64());
            appended.inspect_err(|error| node.count_failure(error))
        }
    }

    fn count_failure(&self, error: &AppendError) {
        let reason = match error {
            AppendError::Conflict { .. } => AppendFailure::Conflict,
            AppendError::TooLarge { .. } => AppendFailure::TooLarge,
            AppendError::Unavailable { .. } => AppendFailure::Unavailable,
            AppendError::Indeterminate => AppendFailure::Indeterminate,
        };
        self.metrics.append_failures(reason).inc();
    }

    /// Reads the log and measures how long that takes.
    pub(crate) async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        let started = Instant::now();
        let page = self.log.read(channel, read).await;
        self.metrics.log_read_seconds.observe(started.elapsed().as_secs_f64());
        page
    }

    fn check_publish(&self, request: &Publish) -> Result<Arc<NamespaceOptions>, OperationError> {
        let settings = self.settings();
        let namespace = settings.resolve(&request.channel)?.namespace;
        let (size, max) = (request.data.len(), settings.channel.max_publication_size);
        if size == 0 {
            return Err(OperationError::BadRequest { field: "data", reason: "empty, a payload is required".into() });
        }
        let size = size + request.tags.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        if size > max {
            return Err(OperationError::TooLarge { size, max });
        }
        let key = request.idempotency_key.len();
        if key > MAX_KEY_BYTES {
            let reason = format!("{key} bytes, allowed are at most {MAX_KEY_BYTES}");
            return Err(OperationError::BadRequest { field: "idempotency_key", reason });
        }
        Ok(namespace)
    }

    /// Reads history; a page ends after 16 MiB of payload.
    pub async fn history(&self, channel: &str, query: HistoryQuery) -> Result<History, OperationError> {
        self.history_within(channel, query, MAX_HISTORY_BYTES).await
    }

    pub(crate) async fn history_within(
        &self,
        channel: &str,
        query: HistoryQuery,
        max_bytes: usize,
    ) -> Result<History, OperationError> {
        let settings = self.settings();
        let namespace = settings.resolve(channel)?.namespace;
        if !namespace.keeps_history() {
            return Err(not_enabled("history_size", &namespace));
        }
        let max = settings.client.history_max_publication_limit;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let limit = if max > 0 { limit.min(max) } else { limit };
        let since = match query.since {
            None => Since::End,
            Some((offset, epoch)) => Since::Position(self.position(channel, offset, &epoch).await?),
        };
        let strict = matches!(&since, Since::Position(_)) && !query.reverse;
        let epoch = match &since {
            Since::Position(position) => Some(position.epoch.clone()),
            Since::End => None,
        };
        let read = Read { since, reverse: query.reverse, limit, max_bytes, retention: namespace.retention() };
        let page = self.read(channel, read).await?;
        if epoch.is_some_and(|epoch| epoch != page.top.epoch) || (strict && !page.complete) {
            return Err(OperationError::Unrecoverable);
        }
        let publications = page.entries.iter().map(|entry| entry.publication.clone()).collect();
        Ok(History { publications, position: page.top })
    }

    /// A client's position; an empty epoch stands for the current one.
    pub(crate) async fn position(&self, channel: &str, offset: u64, epoch: &str) -> Result<Position, OperationError> {
        if epoch.is_empty() {
            let tail = self.log.tail(channel).await?;
            return Ok(Position { offset, epoch: tail.position.epoch });
        }
        Ok(Position { offset, epoch: epoch.into() })
    }

    /// Hides a channel's history.
    pub async fn history_remove(&self, channel: &str) -> Result<(), OperationError> {
        let namespace = self.settings().resolve(channel)?.namespace;
        if !namespace.keeps_history() {
            return Err(not_enabled("history_size", &namespace));
        }
        self.log.remove(channel).await?;
        Ok(())
    }

    /// Who is present.
    pub async fn presence(&self, channel: &str) -> Result<Vec<Arc<ClientInfo>>, OperationError> {
        let namespace = self.settings().resolve(channel)?.namespace;
        if !namespace.presence {
            return Err(not_enabled("presence", &namespace));
        }
        Ok(self.presence.members(channel).await?)
    }

    /// How many are present.
    pub async fn presence_stats(&self, channel: &str) -> Result<PresenceStats, OperationError> {
        let namespace = self.settings().resolve(channel)?.namespace;
        if !namespace.presence {
            return Err(not_enabled("presence", &namespace));
        }
        Ok(self.presence.stats(channel).await?)
    }

    /// Subscribes a user's connections on the server's side.
    pub async fn subscribe(
        &self,
        target: Target,
        channel: &str,
        options: SubscribeOptions,
    ) -> Result<(), OperationError> {
        check_target(&target)?;
        self.settings().resolve(channel)?;
        let order = Order::Subscribe { target, channel: channel.to_owned(), options: Box::new(options) };
        Ok(self.control.broadcast(order).await?)
    }

    /// Ends a user's subscriptions to a channel, or to every channel if it is empty.
    pub async fn unsubscribe(
        &self,
        target: Target,
        channel: &str,
        unsubscribed: Unsubscribed,
    ) -> Result<(), OperationError> {
        check_target(&target)?;
        let order = Order::Unsubscribe {
            target,
            channel: channel.to_owned(),
            code: unsubscribed.code,
            reason: unsubscribed.reason.into_owned(),
        };
        Ok(self.control.broadcast(order).await?)
    }

    /// Closes a user's connections.
    pub async fn disconnect(
        &self,
        target: Target,
        disconnect: Disconnect,
        whitelist: Vec<String>,
    ) -> Result<(), OperationError> {
        check_target(&target)?;
        if !(3000..5000).contains(&disconnect.code) {
            let reason = format!("{}, allowed are 3000 to 4999", disconnect.code);
            return Err(OperationError::BadRequest { field: "disconnect.code", reason });
        }
        // SDKs take a close without a reason for a lost connection and come back whatever the code says.
        let reason = match disconnect.reason.into_owned() {
            reason if reason.is_empty() => "disconnect".to_owned(),
            reason => reason,
        };
        let order = Order::Disconnect { target, code: disconnect.code, reason, whitelist };
        Ok(self.control.broadcast(order).await?)
    }

    /// Changes when a user's connections expire, and what others see of them.
    pub async fn refresh(
        &self,
        target: Target,
        expired: bool,
        expire_at: u64,
        info: Option<Bytes>,
    ) -> Result<(), OperationError> {
        check_target(&target)?;
        let order = Order::Refresh { target, expired, expire_at, info: info.map(|info| info.to_vec()) };
        Ok(self.control.broadcast(order).await?)
    }

    /// Channels with subscribers anywhere, with how many.
    pub async fn channels(&self, pattern: &str) -> Result<BTreeMap<String, u32>, OperationError> {
        if !Pattern::is_valid(pattern) {
            let reason = format!("{pattern:?} is no glob pattern (`*`, `?`, `[a-z]`, `{{a,b}}`)");
            return Err(OperationError::BadRequest { field: "pattern", reason });
        }
        let mut channels = BTreeMap::new();
        for answer in self.control.survey(Question::Channels { pattern: pattern.to_owned() }).await? {
            let Answer::Channels(found) = answer else { continue };
            for (channel, members) in found {
                *channels.entry(channel).or_insert(0) += members;
            }
        }
        Ok(channels)
    }

    /// What every replica is doing, and all together.
    pub async fn stats(&self) -> Result<ClusterStats, OperationError> {
        let answers = self.control.survey(Question::Stats).await?;
        let nodes = answers.into_iter().filter_map(|answer| match answer {
            Answer::Stats(stats) => Some(*stats),
            _ => None,
        });
        Ok(ClusterStats::new(nodes.collect()))
    }

    /// What every replica says of itself.
    pub async fn info(&self) -> Result<Vec<NodeInfo>, OperationError> {
        let answers = self.control.survey(Question::Info).await?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                Answer::Info(info) => Some(*info),
                _ => None,
            })
            .collect())
    }
}

/// Payload bytes after which a page of history ends.
const MAX_HISTORY_BYTES: usize = 16 * 1024 * 1024;

/// Sends a publication that the log does not keep, once for the same key on this replica.
async fn announce(
    node: Arc<Node>,
    channel: String,
    publication: Publication,
    key: Option<IdempotencyKey>,
) -> Result<Published, OperationError> {
    let mut id = None;
    if let Some(key) = key {
        let (mut announced, now) = (node.announced.lock(), node.uptime_ms());
        let known = announced.id(&channel, &key);
        if announced.get(known, now).is_some() {
            return Ok(Published { position: None });
        }
        announced.insert(known, 0, now);
        id = Some(known);
    }
    if let Err(error) = node.log.announce(&channel, Announcement::Publication(publication)).await {
        node.count_failure(&error);
        if let Some(id) = id {
            node.announced.lock().remove(id);
        }
        return Err(error.into());
    }
    Ok(Published { position: None })
}

/// Appends in the order of the line, unless the key was published before.
async fn publish_in_line(
    node: Arc<Node>,
    append: Append,
    place: Place,
    shows_position: bool,
) -> Result<Published, OperationError> {
    let (channel, key) = (append.channel.clone(), append.idempotency.clone());
    if let Some(position) = node.recall.turn(&place, key.as_ref()).await {
        return Ok(Published { position: shows_position.then_some(position) });
    }
    let appending = node.append(append);
    drop(place);
    let position = appending.await?.position;
    let ttl = node.settings().channel.idempotent_result_ttl;
    node.recall.keep(&channel, key.as_ref(), &position, ttl);
    Ok(Published { position: shows_position.then_some(position) })
}

/// Appends unless the channel holds this version or a newer one, or the key was published before; decided against the
/// tail by a conditional append.
async fn publish_version(node: Arc<Node>, append: Append, shows_position: bool) -> Result<Published, OperationError> {
    let key = append.idempotency.as_ref();
    if let Some(position) = node.recall.first(&append.channel, key).await {
        return Ok(Published { position: shows_position.then_some(position) });
    }
    for _ in 0..VERSION_ATTEMPTS {
        let tail = node.log.tail(&append.channel).await?;
        if let (Some(held), Some(new)) = (&tail.version, &append.version)
            && held.scope == new.scope
            && held.number >= new.number
        {
            return Ok(Published { position: shows_position.then_some(tail.position) });
        }
        let attempt = Append { expected: Some(tail.position.offset), ..append.clone() };
        match node.append(attempt).await {
            Ok(appended) => {
                let ttl = node.settings().channel.idempotent_result_ttl;
                node.recall.keep(&append.channel, key, &appended.position, ttl);
                return Ok(Published { position: shows_position.then_some(appended.position) });
            }
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(OperationError::Contended)
}

fn not_enabled(option: &'static str, namespace: &NamespaceOptions) -> OperationError {
    OperationError::NotEnabled { option, namespace: namespace.name().to_owned() }
}

fn check_target(target: &Target) -> Result<(), OperationError> {
    if target.user.is_empty() && target.client.is_empty() && target.session.is_empty() {
        let reason = "empty, a user id is required where neither client nor session is given".into();
        return Err(OperationError::BadRequest { field: "user", reason });
    }
    Ok(())
}
