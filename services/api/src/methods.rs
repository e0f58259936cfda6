//! What each method does: check the request, ask the node, answer in the published form.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{Either, ready};
use futures_util::stream::{self, StreamExt};
use plenum_channels::{HistoryQuery, Node, NodeStats, OperationError, Publish, Published};
use plenum_protocol::{ErrorCode, Unsubscribed};
use plenum_telemetry::{ApiMethod, Metrics, ResultCode};

use crate::check::{self, Payload};
use crate::request::*;
use crate::response::*;
use crate::{ApiError, request, response};

/// Most channels in one broadcast, and operations in one batch.
pub(crate) const MAX_OPERATIONS: usize = 10_000;
/// Publications of one request that wait for the log at the same time; well below what the log lets wait.
pub(crate) const MAX_STARTED: usize = 1024;

/// Carries calls out on a node and counts them.
#[derive(Clone)]
pub(crate) struct Calls {
    pub node: Arc<Node>,
    pub metrics: Arc<Metrics>,
}

/// A request that is a method by itself.
pub(crate) trait Call {
    const METHOD: ApiMethod;
    type Result: serde::Serialize;

    fn call(self, node: &Arc<Node>) -> impl Future<Output = Result<Self::Result, ApiError>> + Send;
}

impl Calls {
    /// Carries one call out.
    pub(crate) async fn call<C: Call>(&self, call: C) -> Result<C::Result, ApiError> {
        let started = Instant::now();
        let result = call.call(&self.node).await;
        let code = result.as_ref().err().map_or(0, |error| error.code);
        self.metrics.api_requests(C::METHOD, ResultCode::new(code)).inc();
        self.metrics.api_seconds(C::METHOD).observe(started.elapsed().as_secs_f64());
        result
    }
}

/// Begins what the future does: publications that are begun one after the other are ordered by that, whenever they are
/// waited for.
pub(crate) fn begin<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let mut begun = Box::pin(future);
    match begun.as_mut().now_or_never() {
        Some(output) => Either::Left(ready(output)),
        None => Either::Right(begun),
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        let code = error.code();
        if code == ErrorCode::INTERNAL {
            tracing::warn!(%error, "an API call failed");
        }
        ApiError::new(code, error)
    }
}

impl Call for PublishRequest {
    const METHOD: ApiMethod = ApiMethod::Publish;
    type Result = PublishResult;

    async fn call(self, node: &Arc<Node>) -> Result<PublishResult, ApiError> {
        let (channel, payload) = check::publish(self)?;
        Ok(node.publish(publication(channel, payload)).await?.into())
    }
}

impl Call for BroadcastRequest {
    const METHOD: ApiMethod = ApiMethod::Broadcast;
    type Result = BroadcastResult;

    async fn call(self, node: &Arc<Node>) -> Result<BroadcastResult, ApiError> {
        let (channels, payload) = check::broadcast(self, MAX_OPERATIONS)?;
        // All begin in the order of the request; a channel that is named twice gets both in this order.
        let publishing = channels.into_iter().map(|channel| {
            let (node, payload) = (node.clone(), payload.clone());
            begin(async move {
                let channel = check::channel_name("channels", channel)?;
                let published = node.publish(publication(channel, payload)).await?;
                Ok::<PublishResult, ApiError>(published.into())
            })
        });
        let publishing = stream::iter(publishing).buffered(MAX_STARTED);
        Ok(BroadcastResult { responses: publishing.map(Response::from).collect().await })
    }
}

impl Call for SubscribeRequest {
    const METHOD: ApiMethod = ApiMethod::Subscribe;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let (target, channel, options) = check::subscribe(self)?;
        node.subscribe(target, &channel, options).await?;
        Ok(Empty {})
    }
}

impl Call for UnsubscribeRequest {
    const METHOD: ApiMethod = ApiMethod::Unsubscribe;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let target = check::target(self.user, self.client, self.session)?;
        let channel = check::channel_or_all(self.channel)?;
        if !channel.is_empty() {
            node.settings().resolve(&channel).map_err(OperationError::from)?;
        }
        node.unsubscribe(target, &channel, Unsubscribed::SERVER).await?;
        Ok(Empty {})
    }
}

impl Call for DisconnectRequest {
    const METHOD: ApiMethod = ApiMethod::Disconnect;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let target = check::any_target(self.user, self.client, self.session)?;
        let disconnect = check::disconnect(self.disconnect)?;
        node.disconnect(target, disconnect, check::whitelist(self.whitelist)?).await?;
        Ok(Empty {})
    }
}

impl Call for RefreshRequest {
    const METHOD: ApiMethod = ApiMethod::Refresh;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        let target = check::target(self.user, self.client, self.session)?;
        let expire_at = check::unix_time("expire_at", self.expire_at)?;
        node.refresh(target, self.expired.unwrap_or_default(), expire_at, self.info.map(check::raw)).await?;
        Ok(Empty {})
    }
}

impl Call for PresenceRequest {
    const METHOD: ApiMethod = ApiMethod::Presence;
    type Result = PresenceResult;

    async fn call(self, node: &Arc<Node>) -> Result<PresenceResult, ApiError> {
        let members = node.presence(&check::channel(self.channel)?).await?;
        let members = members.iter().map(|member| (member.client.clone(), ClientInfo::from(member.as_ref())));
        Ok(PresenceResult { presence: members.collect() })
    }
}

impl Call for PresenceStatsRequest {
    const METHOD: ApiMethod = ApiMethod::PresenceStats;
    type Result = PresenceStatsResult;

    async fn call(self, node: &Arc<Node>) -> Result<PresenceStatsResult, ApiError> {
        let stats = node.presence_stats(&check::channel(self.channel)?).await?;
        Ok(PresenceStatsResult { num_clients: stats.clients, num_users: stats.users })
    }
}

impl Call for HistoryRequest {
    const METHOD: ApiMethod = ApiMethod::History;
    type Result = HistoryResult;

    async fn call(self, node: &Arc<Node>) -> Result<HistoryResult, ApiError> {
        let channel = check::channel(self.channel)?;
        let query = HistoryQuery {
            limit: self.limit.unwrap_or_default().into(),
            since: check::since(self.since),
            reverse: self.reverse.unwrap_or_default(),
        };
        let history = node.history(&channel, query).await?;
        Ok(HistoryResult {
            publications: history.publications.iter().map(Publication::from).collect(),
            offset: history.position.offset,
            epoch: history.position.epoch.to_string(),
        })
    }
}

impl Call for HistoryRemoveRequest {
    const METHOD: ApiMethod = ApiMethod::HistoryRemove;
    type Result = Empty;

    async fn call(self, node: &Arc<Node>) -> Result<Empty, ApiError> {
        node.history_remove(&check::channel(self.channel)?).await?;
        Ok(Empty {})
    }
}

impl Call for ChannelsRequest {
    const METHOD: ApiMethod = ApiMethod::Channels;
    type Result = ChannelsResult;

    async fn call(self, node: &Arc<Node>) -> Result<ChannelsResult, ApiError> {
        let channels = node.channels(&self.pattern.unwrap_or_default()).await?;
        let channels = channels.into_iter().map(|(name, num_clients)| (name, ChannelInfo { num_clients }));
        Ok(ChannelsResult { channels: channels.collect() })
    }
}

impl Call for request::InfoRequest {
    const METHOD: ApiMethod = ApiMethod::Info;
    type Result = InfoResult;

    async fn call(self, node: &Arc<Node>) -> Result<InfoResult, ApiError> {
        let stats = node.stats().await?;
        Ok(InfoResult { nodes: stats.nodes.into_iter().map(response::Node::from).collect() })
    }
}

impl From<NodeStats> for response::Node {
    fn from(node: NodeStats) -> Self {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let (load, latency) = (node.load, node.delivery_latency_ms);
        let rates = [
            ("handshakes_per_second", load.handshakes_per_second),
            ("publications_per_second", load.publications_per_second),
            ("deliveries_per_second", load.deliveries_per_second),
            ("bytes_in_per_second", load.bytes_in_per_second),
            ("bytes_out_per_second", load.bytes_out_per_second),
        ];
        let percentiles = [
            ("delivery_latency_ms.p50", latency.p50),
            ("delivery_latency_ms.p95", latency.p95),
            ("delivery_latency_ms.p99", latency.p99),
        ];
        let percentiles = percentiles.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let items = rates.into_iter().chain(percentiles).map(|(name, value)| (name.to_owned(), value));
        Self {
            uid: node.uid,
            name: node.name,
            version: node.version,
            num_clients: count(load.connections),
            num_users: count(load.users),
            num_subs: count(load.subscriptions),
            num_channels: count(load.channels),
            uptime: node.uptime,
            num_sessions: count(load.sessions),
            process: Process { cpu: load.cpu * 100.0, rss: load.memory },
            metrics: NodeMetrics { interval: 60.0, items: items.collect() },
        }
    }
}

impl From<Published> for PublishResult {
    fn from(published: Published) -> Self {
        match published.position {
            Some(position) => Self { offset: Some(position.offset), epoch: Some(position.epoch.to_string()) },
            None => Self::default(),
        }
    }
}

fn publication(channel: String, payload: Payload) -> Publish {
    Publish {
        channel,
        data: payload.data,
        tags: payload.tags,
        idempotency_key: payload.idempotency_key,
        skip_history: payload.skip_history,
        version: payload.version,
        version_epoch: payload.version_epoch,
    }
}
