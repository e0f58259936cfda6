//! Resuming while the ledger is away, elects or is nearly full.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_protocol::{ConnectRequest, Encoding, ErrorReply, Request};
use plenum_telemetry::Resume;
use tokio::time::sleep;

use super::super::control::connect;
use super::super::ledger::FarLedger;
use super::{Client, Cluster, LOST, confirm, outcomes, settings};
use crate::Node;

async fn refused(node: &Arc<Node>, pass: &str) -> ErrorReply {
    let data = serde_json::json!({ "plenum": { "resume": pass } }).to_string().into();
    let request = ConnectRequest { token: "anna".into(), data, ..ConnectRequest::default() };
    Client::attach(node, Encoding::Json).call(Request::Connect(Box::new(request))).await.unwrap_err()
}

/// For the time of an election a client is asked to come again; afterwards it connects as if it had no pass.
#[tokio::test(start_paused = true)]
async fn who_resumes_while_the_ledger_is_away_waits_for_an_election_and_no_longer() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    ledger.set_away(true);
    for _ in 0..4 {
        let error = refused(&node, &pass).await;
        assert_eq!((error.code, error.temporary), (100, true), "{error:?}");
        assert!(error.message.contains("resume token"), "{error:?}");
        sleep(Duration::from_secs(3)).await;
    }
    assert_eq!(outcomes(&node, Resume::Unavailable), 4);
    ledger.set_away(false);
    let (_, again, pass) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(again.client, first.client);
    ledger.set_away(true);
    refused(&node, &pass).await;
    sleep(Duration::from_secs(16)).await;
    let (_client, result, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_ne!(result.client, first.client);
    ledger.set_away(false);
    let (_client, result, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(result.client, first.client, "the pass was not used up");
}

/// Of most clients that come back it is the first time: one write of the ledger settles it.
#[tokio::test(start_paused = true)]
async fn the_first_resume_does_not_look_before_it_writes() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (_, lost, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!((lost.client == first.client, ledger.looks()), (true, 0));
    let (mut back, again, next) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!((again.client == first.client, ledger.looks()), (true, 1), "the reply was lost");
    back.idle(1).await;
    let (_, third, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!((third.client == first.client, ledger.looks()), (true, 2));
}

/// A pass that was used ends also when the ledger elected its leader, or was away for longer, while it was to be confirmed.
#[tokio::test(start_paused = true)]
async fn a_resume_is_confirmed_when_the_ledger_is_back() {
    for away in [8, 30] {
        let ledger = FarLedger::new();
        let mut cluster = Cluster::on(ledger.clone());
        let node = cluster.replica(settings());
        let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
        let (mut client, ..) = Client::connect_with(&node, "anna", &pass).await;
        ledger.set_away(true);
        confirm(&mut client).await;
        sleep(Duration::from_secs(away)).await;
        ledger.set_away(false);
        sleep(Duration::from_secs(11)).await;
        let (_thief, copied, _) = Client::connect_with(&node, "anna", &pass).await;
        assert_ne!(copied.client, first.client, "away for {away} s");
        assert_eq!(outcomes(&node, Resume::Outdated), 1);
    }
}

/// Fences leave a fifth of the ledger to blocks and revocations.
#[tokio::test(start_paused = true)]
async fn a_full_ledger_takes_no_further_client_ids_but_blocks() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, anna, first) = Client::connect_with(&node, "anna", "").await;
    let (_, bert, other) = Client::connect_with(&node, "bert", "").await;
    let (mut back, again, next) = Client::connect_with(&node, "anna", &first).await;
    assert_eq!(again.client, anna.client);
    back.idle(1).await;
    ledger.percent.store(85, Ordering::Relaxed);
    sleep(Duration::from_secs(11)).await;
    let (_, stranger, _) = Client::connect_with(&node, "bert", &other).await;
    assert_ne!(stranger.client, bert.client, "he connects as if he had none");
    assert_eq!(outcomes(&node, Resume::Full), 1);
    assert_eq!(node.metrics.ledger_fill_percent.get(), 85);
    let (_back, again, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!(again.client, anna.client, "she has a fence");
    node.block_user("carl", 0).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(connect(&node, "carl", String::new()).await, 3507);
    ledger.percent.store(70, Ordering::Relaxed);
    sleep(Duration::from_secs(11)).await;
    let (_client, again, _) = Client::connect_with(&node, "bert", &other).await;
    assert_eq!(again.client, bert.client, "the pass was not used up");
}

/// The reply to her first resume was lost before the ledger filled: her pass is the first one, and she has a fence.
#[tokio::test(start_paused = true)]
async fn a_full_ledger_lets_those_come_back_whose_reply_was_lost() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (_unheard, ..) = Client::connect_with(&node, "anna", &pass).await;
    ledger.percent.store(85, Ordering::Relaxed);
    sleep(Duration::from_secs(11)).await;
    let (_client, again, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_eq!(again.client, first.client);
}

/// What an older connection of the client id still has to write must not confirm the newer one, whose reply may be lost.
#[tokio::test(start_paused = true)]
async fn a_late_confirmation_is_not_that_of_the_next_resume() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (mut client, _, next) = Client::connect_with(&node, "anna", &pass).await;
    ledger.set_away(true);
    confirm(&mut client).await;
    client.end(LOST);
    sleep(Duration::from_secs(60)).await;
    ledger.set_away(false);
    let (unheard, again, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!(again.client, first.client);
    unheard.end(LOST);
    sleep(Duration::from_secs(11)).await;
    let (_client, again, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!(again.client, first.client, "nobody is locked out");
}

/// Once the pass that was used has ended by itself nobody asks the ledger any more.
#[tokio::test(start_paused = true)]
async fn a_confirmation_is_given_up_when_the_pass_has_ended() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let mut short = settings();
    short.client.resume.ttl = Duration::from_secs(60);
    let node = cluster.replica(short);
    let (_, _, pass) = Client::connect_with(&node, "anna", "").await;
    let (mut client, ..) = Client::connect_with(&node, "anna", &pass).await;
    ledger.set_away(true);
    confirm(&mut client).await;
    client.end(LOST);
    sleep(Duration::from_secs(80)).await;
    ledger.set_away(false);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ledger.looks(), 0);
}
