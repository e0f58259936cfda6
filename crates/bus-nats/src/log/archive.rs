//! Which streams a backup of the log holds, and how restored ones become a log of their own.
//!
//! A restored stream ends earlier than the one that it was copied from, so positions that clients hold may lie beyond its end,
//! or name other entries than they did. It is therefore another incarnation, with another name and epoch: whoever comes with
//! an older position is told that it cannot be recovered.

use async_nats::Client;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bucket::Bucket;
use super::jetstream::RequestError;
use super::names;
use super::setup::{Layout, ShardRecord, record_key};

/// What a log consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// What replicas agree on.
    layout: Value,
    /// Every shard's stream.
    pub shards: Vec<ShardStream>,
}

/// The stream of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardStream {
    pub group: String,
    pub shard: u32,
    pub stream: String,
}

/// What stands in the cluster's record; `None` where no replica ever started.
pub(crate) async fn contents(client: &Client, prefix: &str) -> Result<Option<Contents>, RequestError> {
    let bucket = Bucket { client, name: names::bucket(prefix) };
    let layout = match bucket.get::<Layout>("layout").await {
        Ok(Some((layout, _))) => layout,
        Ok(None) => return Ok(None),
        // The bucket itself is missing.
        Err(error) if error.code() == Some(10059) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut shards = Vec::new();
    for (group, count) in &layout.groups {
        for shard in 0..*count {
            let record = bucket.get::<ShardRecord>(&record_key(group, shard)).await?;
            // A group that a replica added and has not set up yet.
            let Some((record, _)) = record.filter(|(record, _)| record.ready) else { continue };
            let stream = names::stream(prefix, group, shard, &layout.incarnation, record.regress);
            shards.push(ShardStream { group: group.clone(), shard, stream });
        }
    }
    Ok(Some(Contents { layout: to_value(&layout)?, shards }))
}

impl Contents {
    /// The same as another incarnation, whose streams have other names.
    pub fn anew(&self, prefix: &str) -> Result<Self, RequestError> {
        let mut layout = self.layout()?;
        layout.incarnation = format!("{:08x}", rand::random::<u32>());
        let shards = self.shards.iter().map(|shard| ShardStream {
            stream: names::stream(prefix, &shard.group, shard.shard, &layout.incarnation, 0),
            ..shard.clone()
        });
        Ok(Self { shards: shards.collect(), layout: to_value(&layout)? })
    }

    fn layout(&self) -> Result<Layout, RequestError> {
        serde_json::from_value(self.layout.clone()).map_err(|error| RequestError::Malformed(error.to_string()))
    }

    /// Makes these the log that replicas start with; `ends` are the first and last sequence of each shard's stream, in
    /// order. Fails if there is a log already.
    pub async fn adopt(
        &self,
        client: &Client,
        prefix: &str,
        replicas: u32,
        ends: &[(u64, u64)],
    ) -> Result<(), RequestError> {
        let bucket = Bucket { client, name: names::bucket(prefix) };
        bucket.create(replicas).await?;
        for (shard, (first_seq, high)) in self.shards.iter().zip(ends) {
            let record = ShardRecord { regress: 0, first_seq: *first_seq, ready: true, high: *high };
            bucket.put(&record_key(&shard.group, shard.shard), &record, 0).await?;
        }
        // Last: a replica that starts now finds everything.
        bucket.put("layout", &self.layout()?, 0).await.map(drop)
    }
}

/// The stream that holds the cluster's record.
pub(crate) fn record_stream(prefix: &str) -> String {
    format!("KV_{}", names::bucket(prefix))
}

fn to_value(layout: &Layout) -> Result<Value, RequestError> {
    serde_json::to_value(layout).map_err(|error| RequestError::Malformed(error.to_string()))
}
