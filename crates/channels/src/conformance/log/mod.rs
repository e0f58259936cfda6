//! Conformance of a [`Log`].

mod append;
mod live;
mod read;

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::Publication;

use super::{Fixture, run_cases};
use crate::{Append, Appended, Log, Page, Position, Read, Retention, Since};

/// Keeps everything that a case publishes, for longer than a case takes.
const KEEP: Retention = Retention { size: 100_000, ttl: Duration::from_secs(300), meta_ttl: Duration::from_secs(3600) };

/// All cases of the port [`Log`].
pub async fn log_suite(make: impl AsyncFn(usize) -> Fixture<dyn Log>) {
    append_suite(&make).await;
    read_suite(&make).await;
    live_suite(&make).await;
}

/// Cases of acknowledgement, order, idempotency and conditions.
pub async fn append_suite(make: impl AsyncFn(usize) -> Fixture<dyn Log>) {
    run_cases!("log", make,
        append::offsets_increase_in_one_epoch => 2,
        append::pipelined_appends_take_effect_in_the_order_of_the_calls => 1,
        append::a_polled_append_proceeds_by_itself => 1,
        append::an_idempotency_key_appends_once_on_any_replica => 2,
        append::idempotency_keys_of_others_do_not_collide => 2,
        append::concurrent_retries_append_once => 2,
        append::expected_offset_decides => 2,
        append::a_retry_of_a_conditional_append_is_a_duplicate => 2,
        append::of_two_concurrent_conditional_appends_one_wins => 2,
        append::too_large_is_refused_and_harmless => 1,
        append::publications_come_back_untouched => 2,
        append::any_channel_name_is_a_channel_of_its_own => 2,
        append::the_tail_has_the_newest_version => 2,
    );
}

/// Cases of history, positions and the proof of completeness.
pub async fn read_suite(make: impl AsyncFn(usize) -> Fixture<dyn Log>) {
    run_cases!("log", make,
        read::an_unknown_channel_is_empty_and_complete => 1,
        read::forwards_and_backwards => 2,
        read::pages_follow_each_other => 2,
        read::limit_and_bytes_bound_a_page => 1,
        read::completeness_ends_at_the_edge_of_the_window => 2,
        read::one_publication_over_the_size_is_told => 2,
        read::positions_beyond_the_top_and_of_other_epochs_are_incomplete => 1,
        read::without_retention_nothing_is_read => 1,
        read::expired_history_is_complete_for_who_was_at_its_end => 2,
        read::an_expiry_behind_the_end_of_a_page_hides_it => 1,
        read::each_publication_prolongs_the_whole_history => 1,
        read::a_forgotten_tail_proves_nothing_to_those_before_it => 2,
        read::removed_history_is_lost_only_to_those_before_its_end => 2,
        read::announcements_leave_no_trace => 2,
    );
}

/// Cases of live delivery.
pub async fn live_suite(make: impl AsyncFn(usize) -> Fixture<dyn Log>) {
    run_cases!("log", make,
        live::all_replicas_get_everything_once_in_order => 3,
        live::a_subscription_starts_exactly_after_its_position => 2,
        live::entries_name_their_predecessor => 2,
        live::delivery_needs_no_retention => 2,
        live::unsubscribed_replicas_get_no_more => 2,
        live::a_second_subscription_replaces_the_first => 2,
        live::announcements_reach_everybody_once => 3,
        live::removing_history_disturbs_nobody => 2,
    );
}

fn publication(data: impl Into<Vec<u8>>) -> Publication {
    Publication { data: data.into().into(), ..Publication::default() }
}

fn request(channel: &str, data: impl Into<Vec<u8>>) -> Append {
    Append {
        channel: channel.into(),
        publication: publication(data),
        retention: KEEP,
        idempotency: None,
        expected: None,
        version: None,
    }
}

async fn append(log: &Arc<dyn Log>, request: Append) -> Appended {
    log.append(request).await.expect("the append is acknowledged")
}

/// Appends `count` publications "0", "1", … one after the other.
async fn fill(log: &Arc<dyn Log>, channel: &str, count: usize, retention: Retention) -> Vec<Position> {
    let mut positions = Vec::with_capacity(count);
    for n in 0..count {
        let request = Append { retention, ..request(channel, n.to_string()) };
        positions.push(append(log, request).await.position);
    }
    positions
}

async fn read(log: &Arc<dyn Log>, channel: &str, since: Since, reverse: bool, retention: Retention) -> Page {
    let read = Read { since, reverse, limit: 100_000, max_bytes: usize::MAX, retention };
    log.read(channel, read).await.expect("the log answers")
}

async fn read_after(log: &Arc<dyn Log>, channel: &str, offset: u64, of: &Position, retention: Retention) -> Page {
    let since = Position { offset, epoch: of.epoch.clone() };
    read(log, channel, Since::Position(since), false, retention).await
}

fn texts(page: &Page) -> Vec<String> {
    page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.publication.data).into_owned()).collect()
}
