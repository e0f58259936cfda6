//! What the server API and its process say: who the replicas are, their clock, their open files.

use std::time::Duration;

use plenum_load::HttpTarget;
use plenum_telemetry::Finding;
use serde::Deserialize;

use super::{clocks, files};
use crate::cli::Doctor;
use crate::config::Config;

/// What was found.
#[derive(Default)]
pub struct Checked {
    pub message: Vec<Finding>,
    pub clocks: Vec<Finding>,
    pub files: Vec<Finding>,
}

/// A process of the cluster, as `info` names it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    pub uid: String,
    pub version: String,
    #[serde(default)]
    pub num_clients: u64,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<Nodes>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Refused {
    code: u32,
    message: String,
}

/// Asks the API of `--api`, and the metrics beside it.
pub async fn check(arguments: &Doctor, config: &Config, limit: Duration) -> Checked {
    let mut checked = Checked::default();
    let Some(url) = &arguments.api else { return checked };
    let subject = format!("server API {url}");
    let target = match HttpTarget::new(url, arguments.ca.as_deref()) {
        Ok(target) => target,
        Err(error) => {
            checked.message.push(Finding::failed(subject, error.to_string(), "name it as http://HOST:PORT/api"));
            return checked;
        }
    };
    match nodes(&target, config, limit).await {
        Ok(nodes) => checked.message.push(versions(subject, &nodes)),
        Err(error) => {
            let advice = "is it the port of the API, and does http_api.key of this configuration fit?";
            checked.message.push(Finding::failed(subject, error, advice));
        }
    }
    // Where the API is reached directly, metrics are on the same port.
    let metrics = target.at(&config.prometheus.handler_prefix);
    if let Ok(answer) = metrics.get(limit).await {
        checked.clocks.extend(clocks::by_date(format!("clock behind {url}"), &answer.date));
        let text = String::from_utf8_lossy(&answer.body);
        checked.files.extend(files::of_process(format!("open files of the process behind {url}"), &text));
    }
    checked
}

fn versions(subject: String, nodes: &[Node]) -> Finding {
    let mut versions: Vec<&str> = nodes.iter().map(|node| node.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    let found = format!("{} processes, version {}", nodes.len(), versions.join(", "));
    match versions.len() {
        0 | 1 => Finding::good(subject, found),
        _ => Finding::warning(subject, found, "an update is under way, or one stopped half-way"),
    }
}

/// The cluster's processes.
pub async fn nodes(target: &HttpTarget, config: &Config, limit: Duration) -> Result<Vec<Node>, String> {
    let text = call(target, "info", "{}", config, limit).await?;
    let answer: Answer = serde_json::from_slice(&text).map_err(|error| format!("not the answer of an API: {error}"))?;
    match answer {
        Answer { error: Some(Refused { code, message }), .. } => Err(format!("error {code}: {message}")),
        Answer { result: Some(Nodes { nodes }), .. } => Ok(nodes),
        Answer { .. } => Err("the answer holds neither a result nor an error".into()),
    }
}

/// Publishes JSON through the API.
pub async fn publish(
    target: &HttpTarget,
    channel: &str,
    data: &str,
    config: &Config,
    limit: Duration,
) -> Result<(), String> {
    let body = format!("{{\"channel\": {channel:?}, \"data\": {data}}}");
    let text = call(target, "publish", &body, config, limit).await?;
    #[derive(Deserialize)]
    struct Published {
        error: Option<Refused>,
    }
    let answer: Published =
        serde_json::from_slice(&text).map_err(|error| format!("not the answer of an API: {error}"))?;
    answer.error.map_or(Ok(()), |error| Err(format!("error {}: {}", error.code, error.message)))
}

async fn call(
    target: &HttpTarget,
    method: &str,
    body: &str,
    config: &Config,
    limit: Duration,
) -> Result<bytes::Bytes, String> {
    let at = target.at(&format!("{}/{method}", target.path()));
    let answer = at.post(body.to_owned(), config.http_api.key.expose(), limit).await?;
    match answer.status.as_u16() {
        200 => Ok(answer.body),
        401 | 403 => Err(format!("{}: the key is refused", answer.status)),
        _ => Err(format!("status {}", answer.status)),
    }
}
