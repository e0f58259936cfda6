//! History, positions, completeness.

use std::time::Duration;

use plenum_protocol::Publication;

use super::super::Fixture;
use super::{KEEP, append, fill, publication, read, read_after, request, texts};
use crate::{Announcement, Append, Epoch, Log, Page, Position, Read, Retention, Since};

fn sized(size: usize) -> Retention {
    Retention { size, ..KEEP }
}

fn offsets(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.offset).collect()
}

fn numbers(positions: &[Position]) -> Vec<u64> {
    positions.iter().map(|position| position.offset).collect()
}

/// Nothing was published: offset 0, nothing to read, and a client that was there has lost nothing.
pub async fn an_unknown_channel_is_empty_and_complete(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let page = read(log, "channel", Since::End, false, KEEP).await;
    assert_eq!((page.entries.len(), page.top.offset, page.more), (0, 0, false));
    let again = read_after(log, "channel", 0, &page.top, KEEP).await;
    assert!(again.complete && again.entries.is_empty());
    assert_eq!(again.top, page.top);
    assert_eq!(log.tail("channel").await.unwrap().position, page.top);
}

/// Both directions, from the end and from a position, which is exclusive; fresh on every replica.
pub async fn forwards_and_backwards(fixture: &Fixture<dyn Log>) {
    let positions = fill(&fixture.replicas[0], "channel", 5, KEEP).await;
    fill(&fixture.replicas[0], "neighbour", 5, KEEP).await;
    let all = numbers(&positions);
    let mut reversed = all.clone();
    reversed.reverse();
    for log in &fixture.replicas {
        let page = read(log, "channel", Since::End, false, KEEP).await;
        assert_eq!((offsets(&page), &page.top, page.more), (all.clone(), &positions[4], false));
        assert_eq!(offsets(&read(log, "channel", Since::End, true, KEEP).await), reversed);
        let since = || Since::Position(positions[2].clone());
        let after = read(log, "channel", since(), false, KEEP).await;
        assert_eq!((offsets(&after), after.complete), (all[3..].to_vec(), true));
        let before = read(log, "channel", since(), true, KEEP).await;
        assert_eq!((offsets(&before), before.complete), (vec![all[1], all[0]], true));
    }
}

/// Pages of two, each from the last entry of the one before, give everything once; `more` says when to stop.
pub async fn pages_follow_each_other(fixture: &Fixture<dyn Log>) {
    let positions = fill(&fixture.replicas[0], "channel", 7, KEEP).await;
    for reverse in [false, true] {
        let (mut since, mut got, mut pages) = (Since::End, Vec::new(), 0);
        loop {
            let call = Read { since, reverse, limit: 2, max_bytes: usize::MAX, retention: KEEP };
            let page = fixture.replicas[1].read("channel", call).await.unwrap();
            pages += 1;
            assert!(page.complete && pages <= 4, "{page:?}");
            got.extend(offsets(&page));
            if !page.more {
                break;
            }
            let offset = page.entries.last().expect("more follow something").offset;
            since = Since::Position(Position { offset, epoch: page.top.epoch });
        }
        let mut expected = numbers(&positions);
        if reverse {
            expected.reverse();
        }
        assert_eq!((got, pages), (expected, 4));
    }
}

/// Limit 0 is the top alone; the byte bound ends a page after the publication that passes it, never before the first.
pub async fn limit_and_bytes_bound_a_page(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    for _ in 0..4 {
        append(log, request("channel", [b'x'; 100])).await;
    }
    let page = async |limit, max_bytes| {
        let call = Read { since: Since::End, reverse: false, limit, max_bytes, retention: KEEP };
        let page = log.read("channel", call).await.unwrap();
        (page.entries.len(), page.more)
    };
    assert_eq!(page(0, usize::MAX).await, (0, true));
    assert_eq!(page(3, usize::MAX).await, (3, true));
    assert_eq!(page(4, usize::MAX).await, (4, false));
    assert_eq!(page(10, 0).await, (1, true));
    assert_eq!(page(10, 99).await, (1, true));
    assert_eq!(page(10, 150).await, (2, true));
    assert_eq!(page(10, 399).await, (4, false));
    // Tags count like payload.
    let tags = [("k".to_owned(), "v".repeat(999))].into();
    append(log, Append { publication: Publication { tags, ..publication("x") }, ..request("channel", "") }).await;
    append(log, request("channel", "y")).await;
    assert_eq!(page(10, 1_400).await, (5, true));
}

/// A position at the edge of the window is complete, one publication before it is not; so in both directions.
pub async fn completeness_ends_at_the_edge_of_the_window(fixture: &Fixture<dyn Log>) {
    let all = fill(&fixture.replicas[0], "channel", 6, KEEP).await;
    for log in &fixture.replicas {
        // Three are visible: [3], [4], [5]. The reader's retention decides, whatever the log still holds.
        for (since, complete, first) in
            [(5, true, 6), (4, true, 5), (3, true, 4), (2, true, 3), (1, false, 3), (0, false, 3)]
        {
            let page = read_after(log, "channel", all[since].offset, &all[since], sized(3)).await;
            assert_eq!((page.complete, offsets(&page)), (complete, numbers(&all[first..])), "since [{since}]");
        }
        let page = read_after(log, "channel", 0, &all[0], sized(3)).await;
        assert!(!page.complete, "from the very beginning");
        let page = read_after(log, "channel", 0, &all[0], KEEP).await;
        assert!(page.complete && page.entries.len() == 6, "from the very beginning, everything kept");
        for (since, complete, count) in [(5, true, 2), (4, true, 1), (3, false, 0), (1, false, 0)] {
            let page = read(log, "channel", Since::Position(all[since].clone()), true, sized(3)).await;
            assert_eq!((page.complete, page.entries.len()), (complete, count), "backwards from [{since}]");
        }
    }
}

/// Who missed exactly `size` publications gets them all; one more, and it is told.
pub async fn one_publication_over_the_size_is_told(fixture: &Fixture<dyn Log>) {
    let size = 5;
    let start = fill(&fixture.replicas[0], "channel", 1, sized(size)).await.remove(0);
    fill(&fixture.replicas[0], "channel", size, sized(size)).await;
    let page = read_after(&fixture.replicas[1], "channel", start.offset, &start, sized(size)).await;
    assert_eq!((page.complete, page.entries.len()), (true, size));
    fill(&fixture.replicas[0], "channel", 1, sized(size)).await;
    let page = read_after(&fixture.replicas[1], "channel", start.offset, &start, sized(size)).await;
    assert_eq!((page.complete, page.entries.len()), (false, size));
}

/// A position must lie in this epoch and not beyond the top.
pub async fn positions_beyond_the_top_and_of_other_epochs_are_incomplete(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let last = fill(log, "channel", 3, KEEP).await.remove(2);
    for (offset, complete) in [(last.offset, true), (last.offset + 1, false), (u64::MAX, false)] {
        let page = read_after(log, "channel", offset, &last, KEEP).await;
        assert_eq!((page.complete, page.entries.len(), &page.top), (complete, 0, &last), "{offset}");
    }
    for epoch in ["", "other"] {
        for offset in [0, last.offset] {
            let since = Position { offset, epoch: Epoch::from(epoch) };
            assert!(!read(log, "channel", Since::Position(since), false, KEEP).await.complete, "{epoch:?} {offset}");
        }
    }
    let unknown = read_after(log, "never", u64::MAX, &last, KEEP).await;
    assert!(!unknown.complete && unknown.top.offset < u64::MAX);
}

/// A namespace without history shows none, whatever was written; positions are given all the same.
pub async fn without_retention_nothing_is_read(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let kept = fill(log, "kept", 2, KEEP).await;
    assert!(read(log, "kept", Since::End, false, Retention::NONE).await.entries.is_empty());
    assert!(!read_after(log, "kept", kept[0].offset, &kept[0], Retention::NONE).await.complete);
    let plain = fill(log, "plain", 2, Retention::NONE).await;
    assert!(plain[0].offset < plain[1].offset);
    let page = read_after(log, "plain", plain[0].offset, &plain[0], Retention::NONE).await;
    assert!(page.entries.is_empty() && !page.complete);
}

/// After `ttl` nothing is visible; who was at the end has lost nothing while the tail is remembered, others have.
pub async fn expired_history_is_complete_for_who_was_at_its_end(fixture: &Fixture<dyn Log>) {
    let retention = Retention { ttl: Duration::from_secs(5), ..KEEP };
    let all = fill(&fixture.replicas[0], "channel", 3, retention).await;
    fixture.let_pass(Duration::from_millis(5500)).await;
    for log in &fixture.replicas {
        for (since, complete) in [(2, true), (1, false), (0, false)] {
            let page = read_after(log, "channel", all[since].offset, &all[since], retention).await;
            assert_eq!((page.complete, page.entries.len(), &page.top), (complete, 0, &all[2]), "since [{since}]");
        }
        assert!(read(log, "channel", Since::End, true, retention).await.entries.is_empty());
    }
    let next = fill(&fixture.replicas[0], "channel", 1, retention).await.remove(0);
    let page = read_after(&fixture.replicas[1], "channel", all[2].offset, &all[2], retention).await;
    assert_eq!((page.complete, offsets(&page)), (true, vec![next.offset]));
    let page = read_after(&fixture.replicas[1], "channel", all[1].offset, &all[1], retention).await;
    assert!(!page.complete, "what expired stays lost");
}

/// What had expired when a publication came stays hidden, also where that lies behind the end of the page.
pub async fn an_expiry_behind_the_end_of_a_page_hides_it(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let retention = Retention { ttl: Duration::from_secs(8), ..KEEP };
    let gone = fill(log, "channel", 3, retention).await;
    fixture.let_pass(Duration::from_millis(8500)).await;
    let kept = fill(log, "channel", 3, retention).await;
    // Less than a time to live between them: nothing expires.
    fixture.let_pass(Duration::from_millis(2200)).await;
    let later = fill(log, "channel", 2, retention).await;
    let since = |position: &Position| Since::Position(position.clone());
    for (start, reverse, first) in [
        (Since::End, false, Some(&kept[0])),
        (since(&gone[0]), false, Some(&kept[0])),
        (since(&kept[0]), false, Some(&kept[1])),
        (since(&kept[1]), true, Some(&kept[0])),
        (since(&later[0]), true, Some(&kept[2])),
        (since(&gone[2]), true, None),
    ] {
        let lost = start == since(&gone[0]);
        let read = Read { since: start.clone(), reverse, limit: 1, max_bytes: usize::MAX, retention };
        let page = log.read("channel", read).await.expect("the log answers");
        let found = page.entries.first().map(|entry| entry.offset);
        assert_eq!(found, first.map(|position| position.offset), "{start:?} reverse {reverse}: {page:?}");
        assert!(!(lost && page.complete), "{start:?}: {page:?}");
    }
}

/// `ttl` counts from the newest publication, for the whole history.
pub async fn each_publication_prolongs_the_whole_history(fixture: &Fixture<dyn Log>) {
    let log = &fixture.replicas[0];
    let retention = Retention { ttl: Duration::from_secs(9), ..KEEP };
    let first = fill(log, "channel", 1, retention).await.remove(0);
    for _ in 0..2 {
        fixture.let_pass(Duration::from_secs(5)).await;
        fill(log, "channel", 1, retention).await;
    }
    let page = read_after(log, "channel", 0, &first, retention).await;
    assert_eq!((page.complete, page.entries.len()), (true, 3));
}

/// Beyond `meta_ttl` a log may have forgotten the channel. It must not take losses for nothing lost, nor go back.
pub async fn a_forgotten_tail_proves_nothing_to_those_before_it(fixture: &Fixture<dyn Log>) {
    let second = Duration::from_secs(1);
    let retention = Retention { size: 10, ttl: 5 * second, meta_ttl: 6 * second };
    let all = fill(&fixture.replicas[0], "channel", 3, retention).await;
    fixture.let_pass(7 * second).await;
    for log in &fixture.replicas {
        for early in [0, all[0].offset, all[1].offset] {
            assert!(!read_after(log, "channel", early, &all[0], retention).await.complete, "{early}");
        }
        let at_end = read_after(log, "channel", all[2].offset, &all[2], retention).await;
        assert!(at_end.entries.is_empty() && at_end.top.offset >= all[2].offset, "{at_end:?}");
    }
    let next = fill(&fixture.replicas[0], "channel", 1, retention).await.remove(0);
    assert!(next.offset > all[2].offset);
    let page = read_after(&fixture.replicas[1], "channel", all[1].offset, &all[1], retention).await;
    assert_eq!((page.complete, offsets(&page)), (false, vec![next.offset]));
}

/// `remove` hides what there is: lost to those before its end, nothing to those at it; the position stays.
pub async fn removed_history_is_lost_only_to_those_before_its_end(fixture: &Fixture<dyn Log>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let all = fill(one, "channel", 3, KEEP).await;
    let kept = fill(one, "neighbour", 3, KEEP).await;
    let marker = other.remove("channel").await.unwrap();
    assert!(marker.epoch == all[2].epoch && marker.offset >= all[2].offset);
    for log in &fixture.replicas {
        assert_eq!(log.tail("channel").await.unwrap().position, all[2]);
        assert!(read(log, "channel", Since::End, false, KEEP).await.entries.is_empty());
        for (since, complete) in [(2, true), (1, false), (0, false)] {
            let page = read_after(log, "channel", all[since].offset, &all[since], KEEP).await;
            assert_eq!((page.complete, page.entries.len()), (complete, 0), "since [{since}]");
        }
        assert_eq!(read(log, "neighbour", Since::End, false, KEEP).await.entries.len(), kept.len());
    }
    let call = Append { expected: Some(all[2].offset), ..request("channel", "new") };
    append(other, call).await;
    for (since, complete) in [(2, true), (1, false)] {
        let page = read_after(one, "channel", all[since].offset, &all[since], KEEP).await;
        assert_eq!((page.complete, texts(&page)), (complete, vec!["new".to_owned()]), "since [{since}]");
    }
    assert_eq!(one.remove("never").await.unwrap().epoch, marker.epoch, "an empty channel can be removed too");
}

/// An announcement has no position and is in no history.
pub async fn announcements_leave_no_trace(fixture: &Fixture<dyn Log>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    let position = fill(one, "channel", 1, KEEP).await.remove(0);
    one.announce("channel", Announcement::Publication(publication("live only"))).await.unwrap();
    assert_eq!(other.tail("channel").await.unwrap().position, position);
    assert_eq!(texts(&read(other, "channel", Since::End, false, KEEP).await), ["0"]);
    assert!(read_after(other, "channel", position.offset, &position, KEEP).await.complete);
}
