//! What the server API changed of a connection since its pass was sealed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use plenum_protocol::codes::Unsubscribed;
use plenum_telemetry::Resume;

use super::super::ledger::FarLedger;
use super::{Client, Cluster, LOST, channels, confirm, outcomes, settings};
use crate::resume::FENCES;
use crate::{Ledger, SubscribeOptions, Target};

fn anna() -> Target {
    Target { user: "anna".into(), ..Target::default() }
}

fn ended() -> Unsubscribed {
    Unsubscribed { code: 2000, reason: "".into() }
}

/// The pass was sealed before: what the API ended must not come back with it, and what it made must not be lost.
#[tokio::test(start_paused = true)]
async fn what_the_api_subscribed_and_unsubscribed_holds_over_resumes() {
    for away in [false, true] {
        let ledger = FarLedger::new();
        let mut cluster = Cluster::on(ledger.clone());
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut client, first, pass) = Client::connect_with(&one, "anna;subs=log:a,log:b", "").await;
        ledger.set_away(away);
        let target = anna();
        let code = ended();
        let options = SubscribeOptions { data: "1".into(), ..SubscribeOptions::default() };
        other.subscribe(target.clone(), "log:c", options).await.unwrap();
        assert_eq!(client.push().await.channel, "log:c");
        other.unsubscribe(target.clone(), "log:a", code.clone()).await.unwrap();
        assert_eq!(client.push().await.channel, "log:a");
        client.end(LOST);
        if away {
            tokio::time::sleep(Duration::from_secs(5)).await;
            ledger.set_away(false);
        }
        tokio::time::sleep(Duration::from_secs(11)).await;
        // Its reply is lost: the same pass comes again.
        let (_, lost, _) = Client::connect_with(&other, "", &pass).await;
        assert_eq!((&lost.client, channels(&lost)), (&first.client, vec!["log:b", "log:c"]), "away: {away}");
        let (mut client, again, pass) = Client::connect_with(&other, "", &pass).await;
        assert_eq!((&again.client, channels(&again)), (&first.client, vec!["log:b", "log:c"]));
        assert_eq!(again.subs["log:c"].data, "1");
        confirm(&mut client).await;
        one.unsubscribe(target, "", code).await.unwrap();
        client.idle(1).await;
        client.end(LOST);
        // The token of the first connect, which grants log:a and log:b.
        let (_client, third, _) = Client::connect_with(&one, "anna;subs=log:a,log:b", &pass).await;
        assert_eq!((&third.client, channels(&third)), (&first.client, vec![]));
    }
}

/// More changes than a register holds: what the connection was is not known any more.
#[tokio::test(start_paused = true)]
async fn who_was_changed_too_much_connects_anew() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (mut client, first, pass) = Client::connect_with(&node, "anna", "").await;
    let target = anna();
    let options = SubscribeOptions { data: Bytes::from(format!("\"{}\"", "x".repeat(4000))), ..Default::default() };
    node.subscribe(target, "log:a", options).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    client.idle(1).await;
    client.end(LOST);
    let (_client, again, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_ne!(again.client, first.client);
    assert_eq!((channels(&again), outcomes(&node, Resume::Outdated)), (vec![], 1));
}

/// A user's own channel is granted by the configuration, not by a token.
#[tokio::test(start_paused = true)]
async fn who_was_taken_out_of_their_own_channel_does_not_come_back_to_it() {
    let mut personal = settings();
    personal.client.subscribe_to_user_personal_channel.enabled = true;
    personal.client.subscribe_to_user_personal_channel.personal_channel_namespace = "log".into();
    let mut cluster = Cluster::new();
    let node = cluster.replica(personal);
    let (mut client, first, pass) = Client::connect_with(&node, "anna;subs=log:a", "").await;
    assert_eq!(channels(&first), ["log:#anna", "log:a"]);
    node.unsubscribe(anna(), "log:#anna", ended()).await.unwrap();
    assert_eq!(client.push().await.channel, "log:#anna");
    client.idle(1).await;
    client.end(LOST);
    let (_client, again, _) = Client::connect_with(&node, "", &pass).await;
    assert_eq!((&again.client, channels(&again)), (&first.client, vec!["log:a"]));
}

/// Both write the fence: one that was changed meanwhile is confirmed all the same, and loses no change by it.
#[tokio::test(start_paused = true)]
async fn a_resume_is_confirmed_though_the_api_changed_it_meanwhile() {
    let mut cluster = Cluster::new();
    let node = cluster.replica(settings());
    let (_, first, pass) = Client::connect_with(&node, "anna", "").await;
    let (mut client, _, next) = Client::connect_with(&node, "anna", &pass).await;
    node.subscribe(anna(), "log:a", SubscribeOptions::default()).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    confirm(&mut client).await;
    client.end(LOST);
    let (_thief, copied, _) = Client::connect_with(&node, "anna", &pass).await;
    assert_ne!(copied.client, first.client);
    assert_eq!(outcomes(&node, Resume::Outdated), 1);
    let (_client, again, _) = Client::connect_with(&node, "anna", &next).await;
    assert_eq!((&again.client, channels(&again)), (&first.client, vec!["log:a"]));
}

/// What a client asked for itself it does not ask for again: nothing is to be remembered.
#[tokio::test(start_paused = true)]
async fn the_end_of_what_the_client_asked_for_is_not_written_down() {
    let ledger = FarLedger::new();
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (mut client, ..) = Client::connect_with(&node, "anna", "").await;
    client.subscribe("log:a", None).await.unwrap();
    node.unsubscribe(anna(), "", ended()).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    client.idle(5).await;
    let written = ledger.inner().changes(0, 100).await.unwrap();
    assert!(!written.iter().any(|record| record.key.starts_with(FENCES)), "{written:?}");
}

/// While the ledger is full the client id does not come back. Once there is room it does, and then as the API left it.
#[tokio::test(start_paused = true)]
async fn what_the_api_ended_while_the_ledger_was_full_does_not_come_back() {
    let ledger = FarLedger::new();
    ledger.percent.store(81, Ordering::Relaxed);
    let mut cluster = Cluster::on(ledger.clone());
    let node = cluster.replica(settings());
    let (mut client, first, pass) = Client::connect_with(&node, "anna;subs=log:a,log:b", "").await;
    client.idle(11).await;
    node.unsubscribe(anna(), "log:a", ended()).await.unwrap();
    assert_eq!(client.push().await.channel, "log:a");
    client.end(LOST);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(ledger.looks(), 0, "who waits for room asks for nothing");
    let (stranger, other, _) = Client::connect_with(&node, "", &pass).await;
    assert_ne!(other.client, first.client);
    assert_eq!(outcomes(&node, Resume::Full), 1);
    stranger.end(LOST);
    ledger.percent.store(79, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (_client, again, _) = Client::connect_with(&node, "", &pass).await;
    assert_eq!((&again.client, channels(&again)), (&first.client, vec!["log:b"]));
}
