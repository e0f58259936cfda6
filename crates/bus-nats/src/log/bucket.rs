//! A key-value bucket (ADR-8 of the NATS project): what all replicas agree on.

use async_nats::Client;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::jetstream::{REQUEST_TIMEOUT, RequestError, api, parse_api};

/// A key-value bucket, written by compare-and-set and read from its leader.
pub(super) struct Bucket<'a> {
    pub client: &'a Client,
    pub name: String,
}

impl Bucket<'_> {
    pub async fn create(&self, replicas: u32) -> Result<(), RequestError> {
        let config = json!({
            "name": format!("KV_{}", self.name),
            "subjects": [format!("$KV.{}.>", self.name)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": replicas,
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msgs_per_subject": 8,
            "max_msg_size": -1,
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
        });
        match api::<Value>(self.client, &format!("STREAM.CREATE.KV_{}", self.name), &config).await {
            Ok(_) => Ok(()),
            // There already, perhaps with more copies.
            Err(error) if error.code() == Some(10058) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The value and its revision.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, RequestError> {
        #[derive(Deserialize)]
        struct Found {
            message: FoundMessage,
        }
        #[derive(Deserialize)]
        struct FoundMessage {
            seq: u64,
            #[serde(default)]
            data: String,
        }
        let malformed = |error: &dyn std::fmt::Display| RequestError::Malformed(error.to_string());
        let request = json!({ "last_by_subj": format!("$KV.{}.{key}", self.name) });
        match api::<Found>(self.client, &format!("STREAM.MSG.GET.KV_{}", self.name), &request).await {
            Ok(found) => {
                let data = BASE64_STANDARD.decode(&found.message.data).map_err(|error| malformed(&error))?;
                let value = serde_json::from_slice(&data).map_err(|error| malformed(&error))?;
                Ok(Some((value, found.message.seq)))
            }
            // No message found.
            Err(error) if error.code() == Some(10037) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes if the key's revision is `expected` (0: there is none). Returns the new revision.
    pub async fn put(&self, key: &str, value: &impl Serialize, expected: u64) -> Result<u64, RequestError> {
        #[derive(Deserialize)]
        struct Ack {
            seq: u64,
        }
        let body = serde_json::to_vec(value).map_err(|error| RequestError::Malformed(error.to_string()))?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let request = self.client.request_with_headers(format!("$KV.{}.{key}", self.name), headers, body.into());
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
        match answer {
            Ok(Ok(answer)) => parse_api::<Ack>(&answer.payload).map(|ack| ack.seq),
            _ => Err(RequestError::Unavailable("the write was not acknowledged")),
        }
    }
}
