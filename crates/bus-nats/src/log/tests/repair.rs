//! Live messages that never arrive: found by ticks and by what follows, and repaired.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::servers::{Witness, config, faulty, prefix, publish, replica, request, until};
use crate::log::shard::DOUBTFUL_AFTER;
use crate::report::{Limits, Reporter};
use crate::testing::NatsServer;
use plenum_channels::Log;
use plenum_channels::conformance::Stalls;

const PATIENCE: Duration = Duration::from_secs(30);

/// In which a lost message is found: by the second tick after it.
const FOUND: Duration = Duration::from_secs(3);

/// Nothing follows a lost last message and betrays it; the tick does, within 2 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_last_message_is_found_by_the_tick() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let (log, faults) = faulty(vec![server.url()], config(&prefix, 1)).await;
    let witness = Witness::on(&log, "channel").await;
    let reporter = Reporter::new(Limits::default());
    reporter.add_log("log", &log);
    faults.lose_live.store(1000, Ordering::SeqCst);
    let (stalls, mut times) = (Stalls::watch(), Vec::new());
    for n in 0..5 {
        let offset = publish(&publisher, "channel", n.to_string()).await;
        let acknowledged = Instant::now();
        assert!(witness.gets(offset, PATIENCE).await, "publication {n} never came");
        let time = witness.arrival(offset).unwrap().duration_since(acknowledged);
        assert!(time < FOUND + stalls.since(acknowledged), "{time:?}");
        times.push(time);
    }
    eprintln!("lost last messages arrived after {times:?}");
    assert!(faults.lost.load(Ordering::SeqCst) >= 5, "the messages were lost");
    let report = reporter.report();
    let stats = &report.logs[0].stats.delivery;
    assert_eq!([stats.channels as u64, stats.delivered, stats.gaps, stats.lost], [1, 5, 5, 0], "{report:?}");
    // Without the rule it stays lost.
    faults.ignore_ticks.store(true, Ordering::SeqCst);
    let offset = publish(&publisher, "channel", "x").await;
    assert!(!witness.gets(offset, FOUND).await, "found without ticks");
}

/// Over a slow connection each tick may be read before it comes live; that it came is a sign of life all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_that_was_read_before_is_a_sign_of_life() {
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let _writer = replica(vec![server.url()], config(&prefix, 1)).await;
    let (log, faults) = faulty(vec![server.url()], config(&prefix, 1)).await;
    Witness::on(&log, "channel").await;
    faults.read_ticks_first.store(true, Ordering::SeqCst);
    let (shard, start) = (log.shard("channel").clone(), Instant::now());
    let alive = || start.elapsed() > DOUBTFUL_AFTER + Duration::from_secs(1) && !shard.is_doubtful();
    assert!(until(Duration::from_secs(30), alive).await, "no sign of life");
}

/// A third of all live messages is lost; everything arrives once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_of_lost_messages_is_repaired_in_order() {
    const CHANNELS: usize = 8;
    const EACH: usize = 200;
    let server = NatsServer::start().await.unwrap();
    let prefix = prefix();
    let publisher = replica(vec![server.url()], config(&prefix, 1)).await;
    let (log, faults) = faulty(vec![server.url()], config(&prefix, 1)).await;
    let mut witnesses = Vec::new();
    for channel in 0..CHANNELS {
        witnesses.push(Witness::on(&log, &format!("channel {channel}")).await);
    }
    faults.lose_live.store(333, Ordering::SeqCst);
    let (stalls, start) = (Stalls::watch(), Instant::now());
    let mut acknowledged: Vec<Vec<(u64, Instant)>> = vec![Vec::new(); CHANNELS];
    for n in 0..EACH {
        let calls =
            (0..CHANNELS).map(|channel| publisher.append(request(&format!("channel {channel}"), n.to_string())));
        for (channel, done) in futures_util::future::join_all(calls).await.into_iter().enumerate() {
            acknowledged[channel].push((done.unwrap().position.offset, Instant::now()));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut delays = Vec::new();
    for (witness, expected) in witnesses.iter().zip(&acknowledged) {
        assert!(witness.gets(expected[EACH - 1].0, PATIENCE).await, "the last one never came");
        assert_eq!(witness.offsets(), expected.iter().map(|(offset, _)| *offset).collect::<Vec<_>>());
        assert!(witness.losses().is_empty());
        let delay = |(offset, at): &(u64, Instant)| witness.arrival(*offset).unwrap().saturating_duration_since(*at);
        delays.extend(expected.iter().map(delay));
    }
    delays.sort_unstable();
    let lost = faults.lost.load(Ordering::SeqCst) as usize;
    let (p50, p99, max) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100], delays[delays.len() - 1]);
    eprintln!(
        "{lost} of {} live messages lost; after the acknowledgement: p50 {p50:?}, p99 {p99:?}, max {max:?}",
        CHANNELS * EACH
    );
    assert!(lost > CHANNELS * EACH / 5);
    assert!(max < FOUND + stalls.since(start), "{max:?}");
}
