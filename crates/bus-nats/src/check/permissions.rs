//! Which of the subjects that a replica needs are denied to it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use hashbrown::HashSet;
use plenum_telemetry::Finding;
use tokio::time::{Instant, timeout, timeout_at};

use crate::pool::{EventKind, Pool};

/// The server complains about what was published before it answers what was published after; the complaint then takes
/// another way within this process.
const COMPLAINTS: Duration = Duration::from_millis(300);

/// What was found.
pub(super) struct Permissions {
    pub findings: Vec<Finding>,
    /// Subjects that may not be published on, in lower case where they are ours to choose.
    pub denied: HashSet<String>,
}

/// Publishes harmless messages on every kind of subject and sees which ones the server complains about. What would reach a
/// stream carries a condition that cannot hold; what would reach a replica or JetStream means nothing to it.
pub(super) async fn check(pool: &Arc<Pool>, prefix: &str, limit: Duration) -> Permissions {
    let mut events = pool.events();
    let client = pool.subscribing(0);
    let mut impossible = HeaderMap::new();
    impossible.insert("Nats-Expected-Last-Sequence", u64::MAX.to_string());
    let mut held = Vec::new();
    for subject in subscribed(prefix) {
        if let Ok(Ok(subscription)) = timeout(limit, client.subscribe(subject)).await {
            held.push(subscription);
        }
    }
    for (subject, body) in published(prefix) {
        let send = client.publish_with_reply_and_headers(
            subject,
            client.new_inbox(),
            impossible.clone(),
            Bytes::from_static(body.as_bytes()),
        );
        // What cannot be sent is missed below.
        let _ = timeout(limit, send).await;
    }
    let echo = client.new_inbox();
    if let Ok(Ok(mut answers)) = timeout(limit, client.subscribe(echo.clone())).await {
        let _ = timeout(limit, client.publish(echo, Bytes::new())).await;
        let _ = timeout(limit, answers.next()).await;
    }
    let end = Instant::now() + COMPLAINTS;
    let mut complaints = Vec::new();
    while let Ok(Ok(event)) = timeout_at(end, events.recv()).await {
        if let EventKind::Error { message } = event.kind
            && message.to_lowercase().contains("permissions violation")
        {
            complaints.push(message);
        }
    }
    drop(held);
    judge(prefix, &complaints)
}

fn judge(prefix: &str, complaints: &[String]) -> Permissions {
    let quoted = |text: &str| text.split('"').nth(1).map(str::to_owned);
    let mut denied = HashSet::new();
    let mut findings = Vec::new();
    for message in complaints {
        let (Some(subject), to_publish) = (quoted(message), message.to_lowercase().contains("for publish")) else {
            continue;
        };
        if to_publish {
            denied.insert(subject.clone());
        }
        // Only this command needs it.
        if subject == "$JS.API.INFO" {
            continue;
        }
        let what = if to_publish { "publish on" } else { "subscribe to" };
        let advice = "deploy/nats/plenum.conf lists what a replica may do; docs/log.md says what for";
        let finding = Finding::failed("permissions", format!("the user may not {what} {subject}"), advice);
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    if findings.is_empty() {
        let count = published(prefix).count() - 1 + subscribed(prefix).len();
        findings.push(Finding::good("permissions", format!("all {count} that a replica needs")));
    }
    Permissions { findings, denied }
}

/// Subject and body of one message of each kind. A body that is no request is refused before anything happens.
fn published(prefix: &str) -> impl Iterator<Item = (String, &'static str)> {
    let ours = ["log.doctor", "live.doctor", "control.doctor", "probe.doctor"].map(|rest| format!("{prefix}.{rest}"));
    let buckets = ["cluster", "ledger"].map(|bucket| format!("$KV.{prefix}-{bucket}.doctor"));
    let requests = [
        ("STREAM.NAMES".to_owned(), ""),
        ("STREAM.INFO.doctor".to_owned(), ""),
        ("STREAM.CREATE.doctor".to_owned(), "{"),
        ("STREAM.UPDATE.doctor".to_owned(), "{"),
        (format!("STREAM.MSG.GET.KV_{prefix}-cluster"), "{"),
        ("DIRECT.GET.doctor".to_owned(), "{"),
        ("INFO".to_owned(), ""),
    ];
    let requests = requests.map(|(request, body)| (format!("$JS.API.{request}"), body));
    ours.into_iter()
        .chain([format!("_INBOX_{prefix}.doctor")])
        .chain(buckets)
        .map(|subject| (subject, ""))
        .chain(requests)
}

fn subscribed(prefix: &str) -> Vec<String> {
    vec![
        format!("{prefix}.live.doctor"),
        format!("{prefix}.control.doctor"),
        format!("{prefix}.probe.doctor"),
        "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.*".to_owned(),
    ]
}
