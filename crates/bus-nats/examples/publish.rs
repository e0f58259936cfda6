//! Acknowledged publishes a second of the three ways, beside a bare loop on the client library, on a server of its own
//! with file storage. One line of JSON.
//!
//!     cargo run --release -p plenum-bus-nats --features testing --example publish -- [messages] [window]

use std::collections::VecDeque;
use std::error::Error;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use plenum_bus_nats::pool::{Pool, PoolConfig};
use plenum_bus_nats::publish::{Outgoing, Publisher, PublisherConfig};
use plenum_bus_nats::testing::NatsServer;

const SIZE: usize = 128;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (messages, window) = (number(200_000)?, number(1_024)?);
    let server = NatsServer::start().await?;
    let pool = Pool::connect(PoolConfig::new([server.url()])).await?;
    pool.wait_ready(Duration::from_secs(10)).await?;
    let context = jetstream::new(async_nats::connect(server.url()).await?);
    let stream = jetstream::stream::Config { name: "B".into(), subjects: vec!["b.*".into()], ..Default::default() };
    context.create_stream(stream).await?;

    let bare = bare_loop(&context, messages, window).await?;
    let failures = Arc::new(AtomicU64::new(0));
    let counted = failures.clone();
    let config = PublisherConfig { max_unacknowledged: window, ..PublisherConfig::default() };
    let publisher = Publisher::new(pool, config, move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let payload = Bytes::from_static(&[b'x'; SIZE]);
    let message = |key: usize| Outgoing::new(["b.0", "b.1", "b.2", "b.3"][key % 4], payload.clone());

    let started = Instant::now();
    for key in 0..messages {
        publisher.publish_async(message(key)).await?;
    }
    publisher.settled(Duration::from_secs(10)).await;
    let asynchronous = messages as f64 / started.elapsed().as_secs_f64();

    let started = Instant::now();
    let report = publisher.publish_batch((0..messages / 4).map(message).collect()).await;
    let batch = report.acknowledged as f64 / started.elapsed().as_secs_f64();

    let started = Instant::now();
    for key in 0..messages / 40 {
        publisher.publish_sync(message(key)).await?;
    }
    let synchronous = (messages / 40) as f64 / started.elapsed().as_secs_f64();
    let failed = failures.load(Ordering::Relaxed) + report.failed.len() as u64;
    println!(
        r#"{{"messages":{messages},"bytes":{SIZE},"window":{window},"bare_loop":{bare:.0},"publish_async":{asynchronous:.0},"publish_batch":{batch:.0},"publish_sync":{synchronous:.0},"failed":{failed}}}"#
    );
    Ok(())
}

/// The client library's own publish with the same window.
async fn bare_loop(
    context: &jetstream::Context,
    messages: usize,
    window: usize,
) -> Result<f64, Box<dyn Error + Send + Sync>> {
    let payload = Bytes::from_static(&[b'x'; SIZE]);
    let mut waiting = VecDeque::with_capacity(window);
    let started = Instant::now();
    for key in 0..messages {
        if waiting.len() == window
            && let Some(first) = waiting.pop_front()
        {
            let first: async_nats::jetstream::context::PublishAckFuture = first;
            first.into_future().await?;
        }
        let sent = context.publish(["b.0", "b.1", "b.2", "b.3"][key % 4], payload.clone()).await?;
        waiting.push_back(sent);
    }
    for sent in waiting {
        sent.await?;
    }
    Ok(messages as f64 / started.elapsed().as_secs_f64())
}
