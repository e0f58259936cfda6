//! Live delivery.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use plenum_protocol::ClientInfo;

use super::super::{Fixture, Recorder};
use super::{KEEP, append, fill, publication, request, texts};
use crate::{Announcement, Append, Log, Retention, Since};

const CHANNELS: [&str; 4] = ["c0", "c1", "c2", "c3"];

/// "An append that was acknowledged is delivered exactly once to every `Live` subscribed to its channel before it, on
/// every replica, in the order of offsets": eight publishers on three replicas, four channels.
pub async fn all_replicas_get_everything_once_in_order(fixture: &Fixture<dyn Log>) {
    const EACH: usize = 100;
    const PUBLISHERS: usize = 8;
    let mut recorders: HashMap<(usize, &str), Arc<Recorder>> = HashMap::new();
    for (replica, log) in fixture.replicas.iter().enumerate() {
        for channel in CHANNELS {
            let recorder = Recorder::new();
            log.subscribe(channel, recorder.clone()).await.unwrap();
            recorders.insert((replica, channel), recorder);
        }
    }
    let publisher = |publisher: usize| {
        let log = fixture.replicas[publisher % fixture.replicas.len()].clone();
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0..EACH {
                let calls = CHANNELS.map(|channel| log.append(request(channel, format!("{publisher} {n}"))));
                let done = join_all(calls).await;
                acknowledged.push(done.into_iter().map(|done| done.unwrap().position.offset).collect::<Vec<_>>());
            }
            acknowledged
        })
    };
    let acknowledged: Vec<_> =
        join_all((0..PUBLISHERS).map(publisher)).await.into_iter().flat_map(Result::unwrap).collect();
    for (index, channel) in CHANNELS.into_iter().enumerate() {
        let mut expected: Vec<u64> = acknowledged.iter().map(|offsets| offsets[index]).collect();
        expected.sort_unstable();
        for replica in 0..fixture.replicas.len() {
            let recorder = &recorders[&(replica, channel)];
            recorder.until(channel, |seen| seen.entries().len() >= expected.len()).await;
            assert_eq!(recorder.offsets(), expected, "replica {replica}, channel {channel}");
            publishers_keep_their_order(recorder);
        }
    }
}

fn publishers_keep_their_order(recorder: &Recorder) {
    let mut next: HashMap<String, usize> = HashMap::new();
    for entry in recorder.entries() {
        let text = String::from_utf8(entry.publication.data.to_vec()).unwrap();
        let (publisher, n) = text.split_once(' ').unwrap();
        let expected = next.entry(publisher.to_owned()).or_default();
        assert_eq!(n, expected.to_string(), "publisher {publisher}");
        *expected += 1;
    }
}

/// `subscribe` "returns the position after which every append is delivered": nothing before it, nothing missing after
/// it, while four publishers go on and subscriptions replace each other.
pub async fn a_subscription_starts_exactly_after_its_position(fixture: &Fixture<dyn Log>) {
    let publisher = |publisher: usize| {
        let log = fixture.replicas[publisher % 2].clone();
        tokio::spawn(async move {
            let mut offsets = Vec::new();
            for n in 0..300 {
                offsets.push(append(&log, request("channel", format!("{publisher} {n}"))).await.position.offset);
                tokio::task::yield_now().await;
            }
            offsets
        })
    };
    let publishers: Vec<_> = (0..4).map(publisher).collect();
    let mut subscriptions = Vec::new();
    while !publishers.iter().all(|task| task.is_finished()) || subscriptions.is_empty() {
        let recorder = Recorder::new();
        let position = fixture.replicas[1].subscribe("channel", recorder.clone()).await.unwrap();
        subscriptions.push((position.offset, recorder));
        for _ in 0..subscriptions.len() % 40 {
            tokio::task::yield_now().await;
        }
    }
    let mut all: Vec<u64> = join_all(publishers).await.into_iter().flat_map(Result::unwrap).collect();
    all.push(append(&fixture.replicas[0], request("channel", "last")).await.position.offset);
    all.sort_unstable();
    let (_, last) = &subscriptions[subscriptions.len() - 1];
    last.until_offset(all[all.len() - 1]).await;
    for (index, (position, recorder)) in subscriptions.iter().enumerate() {
        let due = &all[all.partition_point(|offset| offset <= position)..];
        let got = recorder.offsets();
        assert!(due.starts_with(&got), "subscription {index} after {position} got {got:?} of {due:?}");
        assert!(index + 1 < subscriptions.len() || got.len() == due.len(), "the last subscription gets everything");
    }
}

/// `previous` is the offset of the publication before it on the channel.
pub async fn entries_name_their_predecessor(fixture: &Fixture<dyn Log>) {
    let recorder = Recorder::new();
    fixture.replicas[1].subscribe("channel", recorder.clone()).await.unwrap();
    for _ in 0..5 {
        fill(&fixture.replicas[0], "channel", 1, KEEP).await;
        fill(&fixture.replicas[0], "neighbour", 3, KEEP).await;
    }
    recorder.until("5 publications", |seen| seen.entries().len() == 5).await;
    let entries = recorder.entries();
    assert_eq!(entries[0].previous, 0);
    assert!(entries.windows(2).all(|pair| pair[1].previous == pair[0].offset), "{entries:?}");
}

/// Live delivery does not depend on history.
pub async fn delivery_needs_no_retention(fixture: &Fixture<dyn Log>) {
    let recorder = Recorder::new();
    fixture.replicas[1].subscribe("channel", recorder.clone()).await.unwrap();
    let positions = fill(&fixture.replicas[0], "channel", 10, Retention::NONE).await;
    let expected: Vec<u64> = positions.iter().map(|position| position.offset).collect();
    recorder.until_offset(expected[9]).await;
    assert_eq!(recorder.offsets(), expected);
}

/// What is appended after `unsubscribe` returned does not arrive; other replicas are not touched.
pub async fn unsubscribed_replicas_get_no_more(fixture: &Fixture<dyn Log>) {
    let recorders = [Recorder::new(), Recorder::new()];
    for (log, recorder) in fixture.replicas.iter().zip(&recorders) {
        log.subscribe("channel", recorder.clone()).await.unwrap();
    }
    let first = append(&fixture.replicas[0], request("channel", "1")).await.position.offset;
    for recorder in &recorders {
        recorder.until_offset(first).await;
    }
    fixture.replicas[1].unsubscribe("channel");
    fixture.replicas[1].unsubscribe("never subscribed");
    let second = append(&fixture.replicas[0], request("channel", "2")).await.position.offset;
    recorders[0].until_offset(second).await;
    // A new subscription works, and what it gets shows that everything before has passed.
    let again = Recorder::new();
    let position = fixture.replicas[1].subscribe("channel", again.clone()).await.unwrap();
    assert!(position.offset >= second);
    let third = append(&fixture.replicas[1], request("channel", "3")).await.position.offset;
    again.until_offset(third).await;
    assert_eq!((again.offsets(), recorders[1].offsets()), (vec![third], vec![first]));
}

/// A replica has at most one subscription to a channel.
pub async fn a_second_subscription_replaces_the_first(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[1];
    let (old, new) = (Recorder::new(), Recorder::new());
    log.subscribe("channel", old.clone()).await.unwrap();
    let first = append(&fixture.replicas[0], request("channel", "1")).await.position.offset;
    old.until_offset(first).await;
    let position = log.subscribe("channel", new.clone()).await.unwrap();
    assert_eq!(position.offset, first);
    let second = append(&fixture.replicas[0], request("channel", "2")).await.position.offset;
    new.until_offset(second).await;
    assert_eq!((old.offsets(), new.offsets()), (vec![first], vec![second]));
    let page = super::read(log, "channel", Since::End, false, KEEP).await;
    assert_eq!(texts(&page), ["1", "2"]);
}

/// An announcement reaches each subscribed replica at most once, in a healthy system exactly once, and nobody else.
pub async fn announcements_reach_everybody_once(fixture: &Fixture<dyn Log>) {
    let recorders = [Recorder::new(), Recorder::new()];
    for (log, recorder) in fixture.replicas.iter().zip(&recorders) {
        log.subscribe("channel", recorder.clone()).await.unwrap();
    }
    let elsewhere = Recorder::new();
    fixture.replicas[2].subscribe("neighbour", elsewhere.clone()).await.unwrap();
    let info = ClientInfo { user: "u".into(), client: "c".into(), ..ClientInfo::default() };
    let sent = [
        Announcement::Publication(publication("live only")),
        Announcement::Join(info.clone()),
        Announcement::Leave(info),
    ];
    for announcement in sent.clone() {
        fixture.replicas[2].announce("channel", announcement).await.unwrap();
    }
    // Publications behind them show that nothing more is to come.
    let last = append(&fixture.replicas[2], request("channel", "fence")).await.position.offset;
    append(&fixture.replicas[2], request("neighbour", "fence")).await;
    for recorder in &recorders {
        recorder.until_offset(last).await;
        recorder.until("three announcements", |seen| seen.announcements().len() >= 3).await;
        let got: Vec<Announcement> = recorder.announcements().iter().map(|one| (**one).clone()).collect();
        assert_eq!(got, sent);
    }
    elsewhere.until("the fence", |seen| !seen.entries().is_empty()).await;
    assert!(elsewhere.announcements().is_empty());
    fixture.replicas[0].announce("nobody is here", sent[0].clone()).await.unwrap();
}

/// Live subscribers notice nothing of `remove`.
pub async fn removing_history_disturbs_nobody(fixture: &Fixture<dyn Log>) {
    let recorder = Recorder::new();
    fixture.replicas[1].subscribe("channel", recorder.clone()).await.unwrap();
    let first = append(&fixture.replicas[0], request("channel", "1")).await.position.offset;
    fixture.replicas[0].remove("channel").await.unwrap();
    let call = Append { expected: Some(first), ..request("channel", "2") };
    let second = append(&fixture.replicas[0], call).await.position.offset;
    recorder.until_offset(second).await;
    let entries = recorder.entries();
    assert_eq!(recorder.offsets(), [first, second]);
    assert_eq!(entries[1].previous, first);
}
