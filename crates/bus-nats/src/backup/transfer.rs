//! One stream out of JetStream and into it: `$JS.API.STREAM.SNAPSHOT` and `$JS.API.STREAM.RESTORE` (ADR-9 of the NATS project).

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::folder::{Folder, PART};
use super::{BackupError, Saved};
use crate::log::js_answer;

/// Longest silence of a server while a stream is on its way.
const SILENCE: Duration = Duration::from_secs(60);

/// Writes a stream's snapshot into the folder.
pub(super) async fn save(client: &Client, stream: &str, folder: &Folder) -> Result<Saved, BackupError> {
    let doing = format!("saving stream {stream}");
    let failed = |reason: String| BackupError::Request { doing: doing.clone(), reason };
    let inbox = client.new_inbox();
    let mut parts = client.subscribe(inbox.clone()).await.map_err(|error| failed(error.to_string()))?;
    let request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": PART });
    let head = ask(client, &format!("$JS.API.STREAM.SNAPSHOT.{stream}"), &request).await.map_err(failed)?;
    let file = format!("{stream}.snapshot");
    let mut writer = folder.writer(&file).await?;
    loop {
        let part = match timeout(SILENCE, parts.next()).await {
            Ok(Some(part)) => part,
            Ok(None) => return Err(failed("the connection was closed".into())),
            Err(_) => return Err(failed(format!("nothing came for {} s", SILENCE.as_secs()))),
        };
        if part.payload.is_empty() {
            match part.status.map(|status| status.as_u16()) {
                None | Some(200 | 204) => break,
                Some(status) => return Err(failed(format!("{status} {}", part.description.unwrap_or_default()))),
            }
        }
        writer.write(&part.payload).await?;
        if let Some(reply) = part.reply {
            // The server goes on when it hears that this part has arrived.
            client.publish(reply, Bytes::new()).await.map_err(|error| failed(error.to_string()))?;
        }
    }
    let (bytes, sha256) = writer.finish().await?;
    let (config, state) = (head["config"].clone(), head["state"].clone());
    Ok(Saved { stream: stream.to_owned(), file, bytes, sha256, config, state })
}

/// Makes a stream named `stream` of a snapshot. Returns its first and last sequence.
pub(super) async fn restore(
    client: &Client,
    saved: &Saved,
    stream: &str,
    replicas: u32,
    folder: &Folder,
) -> Result<(u64, u64), BackupError> {
    let doing = format!("restoring stream {stream}");
    let failed = |reason: String| BackupError::Request { doing: doing.clone(), reason };
    let mut config = saved.config.clone();
    config["name"] = stream.into();
    config["num_replicas"] = replicas.into();
    let request = json!({ "config": config, "state": saved.state });
    let begun = ask(client, &format!("$JS.API.STREAM.RESTORE.{stream}"), &request).await.map_err(failed)?;
    let target = begun["deliver_subject"].as_str().ok_or_else(|| failed("the server named no subject".into()))?;
    let mut parts = folder.reader(saved).await?;
    while let Some(part) = parts.next().await? {
        let answer = exchange(client, target, part.into()).await.map_err(failed)?;
        if !answer.is_empty() && !answer.starts_with(b"+OK") {
            js_answer::<Value>(&answer).map_err(|error| failed(error.to_string()))?;
        }
    }
    let answer = exchange(client, target, Bytes::new()).await.map_err(failed)?;
    let done: Value = js_answer(&answer).map_err(|error| failed(error.to_string()))?;
    let end = |answer: &Value, name: &str| answer["state"][name].as_u64().unwrap_or(0);
    let (first, last) = (end(&done, "first_seq"), end(&done, "last_seq"));
    let wanted = saved.state["last_seq"].as_u64().unwrap_or(0);
    if last != wanted {
        return Err(failed(format!("it ends at {last}, the snapshot at {wanted}")));
    }
    Ok((first, last))
}

/// A request whose answer may take long.
async fn ask(client: &Client, subject: &str, body: &Value) -> Result<Value, String> {
    let answer = exchange(client, subject, body.to_string().into()).await?;
    js_answer(&answer).map_err(|error| error.to_string())
}

async fn exchange(client: &Client, subject: &str, body: Bytes) -> Result<Bytes, String> {
    let request = async_nats::Request::new().payload(body).timeout(Some(SILENCE));
    match client.send_request(subject.to_owned(), request).await {
        Ok(answer) => Ok(answer.payload),
        Err(error) => Err(format!("{error}; may the user publish on {subject}?")),
    }
}
