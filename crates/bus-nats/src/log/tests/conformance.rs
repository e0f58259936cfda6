//! The conformance suite of the port on one server and on three.

use std::sync::Arc;

use plenum_channels::Log;
use plenum_channels::conformance::{Fixture, append_suite, live_suite, read_suite};

use super::servers::{Servers, replicas};

async fn fixture(servers: &Arc<Servers>, count: usize, copies: u32) -> Fixture<dyn Log> {
    let logs = replicas(servers, count, copies).await;
    let logs: Vec<Arc<dyn Log>> = logs.into_iter().map(|log| -> Arc<dyn Log> { log }).collect();
    Fixture { guard: Box::new(servers.clone()), ..Fixture::with_tokio_time(logs) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_on_a_single_server() {
    let servers = Servers::start(1).await;
    append_suite(async |count| fixture(&servers, count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_on_a_single_server() {
    let servers = Servers::start(1).await;
    read_suite(async |count| fixture(&servers, count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_delivery_on_a_single_server() {
    let servers = Servers::start(1).await;
    live_suite(async |count| fixture(&servers, count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_on_three_servers() {
    let servers = Servers::start(3).await;
    append_suite(async |count| fixture(&servers, count, 3).await).await;
    read_suite(async |count| fixture(&servers, count, 3).await).await;
    live_suite(async |count| fixture(&servers, count, 3).await).await;
}
