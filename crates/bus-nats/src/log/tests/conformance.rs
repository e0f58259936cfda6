//! The conformance suite of the port on one server and on three.

use std::sync::Arc;

use plenum_channels::Log;
use plenum_channels::conformance::{Fixture, append_suite, live_suite, log_suite, read_suite};

use super::servers::replicas;
use crate::testing::{NatsCluster, NatsServer, ServerOptions};

async fn fixture(urls: &[String], count: usize, copies: u32) -> Fixture<dyn Log> {
    let logs = replicas(urls, count, copies).await;
    Fixture::with_tokio_time(logs.into_iter().map(|log| -> Arc<dyn Log> { log }).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_on_a_single_server() {
    let server = NatsServer::start_with(ServerOptions::default()).await.unwrap();
    append_suite(async |count| fixture(&[server.url()], count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_on_a_single_server() {
    let server = NatsServer::start_with(ServerOptions::default()).await.unwrap();
    read_suite(async |count| fixture(&[server.url()], count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_delivery_on_a_single_server() {
    let server = NatsServer::start_with(ServerOptions::default()).await.unwrap();
    live_suite(async |count| fixture(&[server.url()], count, 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_on_three_servers() {
    let cluster = NatsCluster::start().await.unwrap();
    log_suite(async |count| fixture(&cluster.urls(), count, 3).await).await;
}
