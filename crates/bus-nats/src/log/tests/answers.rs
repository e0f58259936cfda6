//! Answers of direct get that lose a part on their way.

use std::time::Duration;

use super::servers::{config, prefix, publish, replica};
use crate::log::faults::BELIEVE_PARTS;
use crate::log::jetstream::{RequestError, Stored, get_batch};
use crate::testing::{NatsCluster, Proxy};

/// How often a schedule is tried.
const ATTEMPTS: usize = 20;

const COUNT: usize = 100;
const BYTES: usize = 4096;

/// The connection breaks while the answer trickles over a slow route, and comes back at once: the client library
/// subscribes again, and what came to its server meanwhile is gone. One thread, because the rule is switched off by it.
#[tokio::test]
async fn an_answer_that_lost_its_middle_is_not_believed() {
    let cluster = NatsCluster::start_proxied().await.unwrap();
    let log = replica(cluster.urls(), config(&prefix(), 1)).await;
    for n in 0..COUNT {
        let mut data = format!("{n} ").into_bytes();
        data.resize(BYTES, b'x');
        publish(&log, "channel", data).await;
    }
    let stream = log.shard("channel").current().stream.clone();
    let subject = log.shard("channel").names.publication("channel");
    let probe = async_nats::connect(cluster.urls()).await.unwrap();
    let leader = cluster.leader_of(&probe, &stream).await.unwrap();
    let away = (leader + 1) % 3;
    let proxy = Proxy::start(cluster.servers[away].address()).await.unwrap();
    let client = async_nats::ConnectOptions::new()
        .ignore_discovered_servers()
        .reconnect_delay_callback(|_| Duration::from_millis(20))
        .connect(format!("nats://{}", proxy.address()))
        .await
        .unwrap();
    let whole = get_batch(&client, &stream, &subject, 1, COUNT).await.unwrap();
    assert_eq!(whole.len(), COUNT);
    // The answer takes 1.4 s; requests end after 2 s.
    cluster.route(leader, away).unwrap().set_rate(300_000);
    let seqs = |messages: &[Stored]| messages.iter().map(|stored| stored.seq).collect::<Vec<_>>();
    let whole = seqs(&whole);
    let mut came_about = [false, false];
    // On a busy machine the cut may come before the answer or after it; then the attempt is made again.
    for _ in 0..ATTEMPTS {
        let Some(rule) = came_about.iter().position(|done| !done) else { break };
        BELIEVE_PARTS.set(rule == 0);
        let cut = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.cut();
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.restore();
        };
        let (answer, ()) = tokio::join!(get_batch(&client, &stream, &subject, 1, COUNT), cut);
        came_about[rule] = match answer {
            Err(RequestError::Unavailable(reason)) => rule == 1 && reason.contains("a part"),
            Err(_) => false,
            Ok(messages) => {
                let (parts, rule) = (seqs(&messages), rule == 1);
                assert!(!rule || parts == whole, "{} messages of {COUNT} are believed", parts.len());
                parts.len() < COUNT && parts.first() == whole.first() && parts.last() == whole.last()
            }
        };
        // What is still on its way has arrived before the next request.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(came_about, [true, true], "without and with the rule in {ATTEMPTS} attempts");
    BELIEVE_PARTS.set(false);
}
