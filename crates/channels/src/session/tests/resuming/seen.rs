//! What others see of clients that come back, and of those who do not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use plenum_protocol::{Disconnect, Request};

use super::{Client, Cluster, LOST, present, room, seen, settings};
use crate::CLOSED_BY_CLIENT;

#[tokio::test(start_paused = true)]
async fn who_resumes_neither_leaves_nor_joins() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(present(&other, &id).await);
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        client.subscribe("room:a", None).await.unwrap();
        assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
        assert!(present(&one, &id).await && present(&other, &id).await);
        client.end(CLOSED_BY_CLIENT);
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
        assert!(!present(&one, &id).await);
    }
}

/// The first attempt to enter presence fails: the second one must not tell of a join again, and without a second one the
/// leave is told.
#[tokio::test(start_paused = true)]
async fn who_cannot_enter_presence_at_first_has_neither_left_nor_joined() {
    for (elsewhere, again) in [(false, true), (true, true), (false, false)] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.away.store(true, Ordering::Relaxed);
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        assert_eq!(client.subscribe("room:a", None).await.unwrap_err().code, 100);
        cluster.away.store(false, Ordering::Relaxed);
        if again {
            client.subscribe("room:a", None).await.unwrap();
            assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
            assert!(present(&one, &id).await && present(&other, &id).await);
            client.end(CLOSED_BY_CLIENT);
        }
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())), "again: {again}");
        assert!(!present(&one, &id).await);
    }
}

/// The old socket is not known to be dead when the client is back.
#[tokio::test(start_paused = true)]
async fn who_resumes_before_the_old_socket_has_ended_neither_leaves_nor_joins() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, mut old, id, pass) = room(&one, &one).await;
        let ending = tokio::spawn(async move {
            let reason = old.close().await;
            old.end(reason);
        });
        let node = if elsewhere { &other } else { &one };
        let (mut client, ..) = Client::connect_with(node, "anna", &pass).await;
        client.subscribe("room:a", None).await.unwrap();
        ending.await.unwrap();
        assert_eq!(seen(&mut observer).await, None, "elsewhere: {elsewhere}");
        assert!(present(&one, &id).await && present(&other, &id).await);
        drop(client);
        assert_eq!(seen(&mut observer).await, Some(("leave", id)));
    }
}

/// What the client sent before it gave the connection up is read late: when it is long back elsewhere.
#[tokio::test(start_paused = true)]
async fn who_gave_up_a_replica_that_stood_still_has_not_left() {
    for (released, back) in [(true, true), (false, true), (false, false)] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, old, id, pass) = room(&other, &one).await;
        one.pulse.wake();
        let mut old = Some(old);
        if !released {
            old.take().unwrap().end(CLOSED_BY_CLIENT);
        }
        let mut client = None;
        if back {
            let (mut again, ..) = Client::connect_with(&other, "anna", &pass).await;
            again.subscribe("room:a", None).await.unwrap();
            client = Some(again);
        }
        if let Some(old) = old {
            old.end(CLOSED_BY_CLIENT);
        }
        let expected = (!back).then(|| ("leave", id.clone()));
        assert_eq!(seen(&mut observer).await, expected, "released: {released}, back: {back}");
        assert_eq!(present(&other, &id).await, back);
        drop(client);
    }
}

/// It resumes and does not enter the channel again: others see it leave, once.
#[tokio::test(start_paused = true)]
async fn a_channel_that_is_not_entered_again_is_left() {
    for elsewhere in [false, true] {
        let mut cluster = Cluster::new();
        let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
        let (mut observer, client, id, pass) = room(&one, &one).await;
        client.end(LOST);
        let (_client, ..) = Client::connect_with(if elsewhere { &other } else { &one }, "anna", &pass).await;
        assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())), "elsewhere: {elsewhere}");
        assert_eq!(seen(&mut observer).await, None);
        assert!(!present(&other, &id).await);
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_after_the_grace_has_left_and_joins() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, client, id, pass) = room(&one, &one).await;
    let began = tokio::time::Instant::now();
    client.end(Disconnect::SHUTDOWN);
    assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
    let after = began.elapsed();
    assert!((2900..3300).contains(&after.as_millis()), "{after:?}");
    let (mut client, ..) = Client::connect_with(&other, "anna", &pass).await;
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", id)));
}

#[tokio::test(start_paused = true)]
async fn another_connection_of_the_user_joins_before_the_old_one_leaves() {
    let mut cluster = Cluster::new();
    let one = cluster.replica(settings());
    let (mut observer, client, id, _) = room(&one, &one).await;
    client.end(LOST);
    let (mut other, result, _) = Client::connect_with(&one, "anna", "").await;
    other.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client)));
    assert_eq!(seen(&mut observer).await, Some(("leave", id)));
}

#[tokio::test(start_paused = true)]
async fn who_means_to_go_leaves_at_once() {
    for reason in [CLOSED_BY_CLIENT, Disconnect::FORCE_NO_RECONNECT] {
        let mut cluster = Cluster::new();
        let one = cluster.replica(settings());
        let (mut observer, client, id, _) = room(&one, &one).await;
        let began = tokio::time::Instant::now();
        client.end(reason);
        assert_eq!(seen(&mut observer).await, Some(("leave", id)));
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}

/// Unsubscribing and subscribing again on a resumed connection is seen as on any other.
#[tokio::test(start_paused = true)]
async fn a_resumed_connection_leaves_and_joins_by_itself() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, client, id, pass) = room(&one, &one).await;
    client.end(LOST);
    let (mut client, ..) = Client::connect_with(&other, "anna", &pass).await;
    client.subscribe("room:a", None).await.unwrap();
    client.idle(5).await;
    let leave = plenum_protocol::UnsubscribeRequest { channel: "room:a".into() };
    client.call(Request::Unsubscribe(leave)).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("leave", id.clone())));
    client.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", id)));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_stops_tells_the_leaves_of_those_who_did_not_come_back() {
    let mut cluster = Cluster::new();
    let (one, other) = (cluster.replica(settings()), cluster.replica(settings()));
    let (mut observer, mut gone, id, _) = room(&other, &one).await;
    let (mut back, result, pass) = Client::connect_with(&one, "bert", "").await;
    back.subscribe("room:a", None).await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("join", result.client.clone())));
    let stopping = {
        let one = one.clone();
        tokio::spawn(async move { one.shutdown(Duration::from_secs(30)).await })
    };
    let (left, moved) = (gone.close().await, back.close().await);
    assert_eq!((&left, &moved), (&Disconnect::SHUTDOWN, &Disconnect::SHUTDOWN));
    gone.end(left);
    back.end(moved);
    let (mut back, again, _) = Client::connect_with(&other, "bert", &pass).await;
    back.subscribe("room:a", None).await.unwrap();
    assert_eq!(again.client, result.client);
    stopping.await.unwrap();
    assert_eq!(seen(&mut observer).await, Some(("leave", id)));
    assert_eq!(seen(&mut observer).await, None);
    assert!(present(&other, &result.client).await);
}
