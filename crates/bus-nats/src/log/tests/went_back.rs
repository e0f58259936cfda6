//! Appends to a stream that went back behind what it had acknowledged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::Client;
use plenum_channels::{Append, AppendError, Log, Since};

use super::servers::{Witness, config, faulty, history, prefix, publish, request, until};
use crate::log::NatsLog;
use crate::testing::NatsServer;

const PATIENCE: Duration = Duration::from_secs(30);

async fn ask(client: &Client, subject: String, body: &serde_json::Value) -> serde_json::Value {
    let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
    let answer = client.request(format!("$JS.API.{subject}"), body.into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Takes the shard's stream away and puts an empty one of the same name in its place, as an old backup would.
async fn set_back(client: &Client, log: &NatsLog, channel: &str) {
    let stream = log.shard(channel).current().stream.clone();
    let info = ask(client, format!("STREAM.INFO.{stream}"), &serde_json::Value::Null).await;
    ask(client, format!("STREAM.DELETE.{stream}"), &serde_json::Value::Null).await;
    let made = ask(client, format!("STREAM.CREATE.{stream}"), &info["config"]).await;
    assert!(made["error"].is_null(), "{made}");
}

/// An acknowledgement at a sequence that had been given out is no success: the append is in the stream that takes the old
/// one's place, or nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_from_the_past_does_not_count() {
    let server = NatsServer::start().await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    for rule in [false, true] {
        let (log, faults) = faulty(vec![server.url()], config(&prefix(), 1)).await;
        let witness = Witness::on(&log, "channel").await;
        for n in 0..50 {
            publish(&log, "channel", n.to_string()).await;
        }
        let before = log.append(request("channel", "before")).await.unwrap().position;
        assert!(witness.gets(before.offset, PATIENCE).await);
        faults.believe_old.store(!rule, Ordering::SeqCst);
        set_back(&client, &log, "channel").await;
        let appends: Vec<_> = (0..20).map(|n| log.append(request("channel", format!("after {n}")))).collect();
        // Its position is one of the old stream's.
        let conditional = Append { expected: Some(before.offset), ..request("channel", "conditional") };
        let conditional = log.append(conditional);
        let mut wrong = 0;
        let mut positions = Vec::new();
        for append in appends {
            let position = append.await.unwrap().position;
            wrong += usize::from(position.epoch == before.epoch && position.offset <= before.offset);
            positions.push(position);
        }
        let conditional = conditional.await;
        assert!(conditional.is_err(), "{conditional:?}");
        assert_eq!(wrong > 0, !rule, "rule {rule}: {positions:?}");
        if !rule {
            continue;
        }
        assert!(positions.iter().all(|position| position.epoch != before.epoch && position.offset > before.offset));
        assert!(positions.is_sorted_by(|a, b| a.offset < b.offset));
        assert!(
            until(PATIENCE, || witness.losses().iter().any(|lost| lost.epoch == positions[0].epoch)).await,
            "not told"
        );
        let page = history(&log, "channel", Since::End).await;
        let got: Vec<_> = page.entries.iter().map(|entry| entry.publication.data.to_vec()).collect();
        let wanted: Vec<_> = (0..20).map(|n| format!("after {n}").into_bytes()).collect();
        assert_eq!(got, wanted);
    }
}

/// Retried appends are believed after a look at how far the stream reaches, and intact streams pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intact_stream_is_not_taken_for_one_that_went_back() {
    let server = NatsServer::start().await.unwrap();
    let (log, faults) = faulty(vec![server.url()], config(&prefix(), 1)).await;
    let epoch = log.append(request("channel", "first")).await.unwrap().position.epoch;
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut round = 0;
    while Instant::now() < deadline || round < 2 {
        // Unheard, repeated, acknowledged as duplicates below what others got meanwhile.
        faults.deafen.store(round % 4, Ordering::SeqCst);
        let appends: Vec<_> = (0..200).map(|n| log.append(request(&format!("channel {}", n % 20), "x"))).collect();
        for append in appends {
            match append.await {
                Ok(appended) => assert_eq!(appended.position.epoch, epoch),
                Err(error) => assert_eq!(error, AppendError::Indeterminate),
            }
        }
        round += 1;
    }
    assert!(round > 1);
    assert_eq!(log.append(request("channel", "last")).await.unwrap().position.epoch, epoch);
}
