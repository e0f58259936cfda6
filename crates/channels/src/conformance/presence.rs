//! Conformance of [`Presence`].

use std::sync::Arc;
use std::time::Duration;

use plenum_protocol::ClientInfo;

use super::{Isolating, PATIENCE, run_timed_cases};
use crate::{Lease, Presence, PresenceStats};

/// All cases of the port [`Presence`]. A replica that is cut off must have lost its lease after 5 s without a renewal; what
/// others do while it has it is theirs.
pub async fn presence_suite(make: impl AsyncFn(usize) -> Isolating<dyn Presence>) {
    // A replica that stands still for seconds loses its lease, and whom it had joined.
    run_timed_cases!("presence", make,
        members_come_and_go => 2,
        joining_again_replaces_the_information => 2,
        a_client_on_two_replicas_counts_once => 2,
        a_join_after_a_leave_stays => 2,
        users_count_once_on_any_number_of_replicas => 3,
        many_members => 2,
        channels_are_kept_apart => 1,
        a_renewed_lease_keeps_its_members => 2,
        a_lapsed_replica_does_not_count => 2,
        a_reader_judges_by_itself => 2,
        a_replica_that_resigned_does_not_count => 2,
    );
}

fn info(client: &str, user: &str) -> Arc<ClientInfo> {
    Arc::new(ClientInfo { client: client.into(), user: user.into(), ..ClientInfo::default() })
}

async fn clients(presence: &Arc<dyn Presence>, channel: &str) -> Vec<String> {
    let members = presence.members(channel).await.expect("presence answers");
    let mut clients: Vec<String> = members.iter().map(|info| format!("{}/{}", info.client, info.user)).collect();
    clients.sort_unstable();
    clients
}

async fn stats(presence: &Arc<dyn Presence>, channel: &str) -> (u32, u32) {
    let PresenceStats { clients, users } = presence.stats(channel).await.expect("presence answers");
    (clients, users)
}

/// Members and counts are the same on every replica, after each join and leave.
async fn members_come_and_go(fixture: &Isolating<dyn Presence>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!((clients(one, "c").await, stats(one, "c").await), (vec![], (0, 0)));
    one.join("c", info("1", "ann")).await.unwrap();
    one.join("c", info("2", "bob")).await.unwrap();
    other.join("c", info("3", "ann")).await.unwrap();
    other.join("c", info("4", "")).await.unwrap();
    for replica in [one, other] {
        assert_eq!(clients(replica, "c").await, ["1/ann", "2/bob", "3/ann", "4/"]);
        assert_eq!(stats(replica, "c").await, (4, 3));
    }
    one.leave("c", "2").await.unwrap();
    other.leave("c", "3").await.unwrap();
    other.leave("c", "3").await.unwrap();
    other.leave("c", "1").await.unwrap();
    for replica in [one, other] {
        assert_eq!(clients(replica, "c").await, ["1/ann", "4/"], "a leave removes what its own replica joined");
        assert_eq!(stats(replica, "c").await, (2, 2));
    }
    one.leave("c", "1").await.unwrap();
    other.leave("c", "4").await.unwrap();
    assert_eq!((clients(one, "c").await, stats(other, "c").await), (vec![], (0, 0)));
}

/// "Joining again replaces its information", the user included.
async fn joining_again_replaces_the_information(fixture: &Isolating<dyn Presence>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    one.join("c", info("1", "ann")).await.unwrap();
    let renewed = ClientInfo { chan_info: "{}".into(), ..(*info("1", "bob")).clone() };
    one.join("c", Arc::new(renewed.clone())).await.unwrap();
    let members = other.members("c").await.unwrap();
    assert_eq!(members.iter().map(|member| (**member).clone()).collect::<Vec<_>>(), [renewed]);
    assert_eq!(stats(other, "c").await, (1, 1));
    one.leave("c", "1").await.unwrap();
    assert_eq!(stats(other, "c").await, (0, 0));
}

/// "An entry that another replica made for the same client id stays": a client that moved is present all the time.
async fn a_client_on_two_replicas_counts_once(fixture: &Isolating<dyn Presence>) {
    let [old, new] = [&fixture.replicas[0], &fixture.replicas[1]];
    old.join("c", info("2", "bob")).await.unwrap();
    for (moves_to, stays, user) in [(new, old, "ann"), (old, new, "ann"), (new, old, "bob")] {
        let both = [format!("1/{user}"), "2/bob".to_owned()];
        let counts = if user == "bob" { (2, 1) } else { (2, 2) };
        moves_to.join("c", info("1", user)).await.unwrap();
        stays.join("c", info("1", user)).await.unwrap();
        assert_eq!((clients(old, "c").await, stats(new, "c").await), (both.to_vec(), counts));
        for _ in 0..2 {
            stays.leave("c", "1").await.unwrap();
            assert_eq!((clients(old, "c").await, stats(new, "c").await), (both.to_vec(), counts));
        }
        moves_to.leave("c", "1").await.unwrap();
        assert_eq!((clients(old, "c").await, stats(new, "c").await), (vec!["2/bob".to_owned()], (1, 1)));
    }
}

/// Leaving takes back what was joined before, and nothing that came after.
async fn a_join_after_a_leave_stays(fixture: &Isolating<dyn Presence>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    for round in 0..50 {
        one.join("c", info("1", "ann")).await.unwrap();
        one.leave("c", "1").await.unwrap();
        one.join("c", info("1", "ann")).await.unwrap();
        other.leave("c", "1").await.unwrap();
        assert_eq!((clients(other, "c").await, stats(one, "c").await), (vec!["1/ann".into()], (1, 1)), "{round}");
    }
}

/// Users are counted exactly while replicas that have some of them, or all of one, come and go.
async fn users_count_once_on_any_number_of_replicas(fixture: &Isolating<dyn Presence>) {
    for replica in &fixture.replicas {
        replica.renew().await.unwrap();
    }
    // User n has a connection on each replica whose bit is set in n + 1, and user 7 two on each.
    for n in 0..7u32 {
        for (bit, replica) in fixture.replicas.iter().enumerate() {
            if (n + 1) & (1 << bit) != 0 {
                replica.join("c", info(&format!("{n}-{bit}"), &n.to_string())).await.unwrap();
            }
        }
    }
    for (bit, replica) in fixture.replicas.iter().enumerate() {
        for connection in ["a", "b"] {
            replica.join("c", info(&format!("{connection}{bit}"), "7")).await.unwrap();
        }
    }
    for replica in &fixture.replicas {
        assert_eq!(stats(replica, "c").await, (12 + 6, 8));
    }
    (fixture.cut)(2, true);
    for _ in 0..5 {
        fixture.let_pass(Duration::from_secs(1)).await;
        for replica in &fixture.replicas[..2] {
            assert_eq!(replica.renew().await, Ok(Lease::Held));
        }
    }
    let left = async || stats(&fixture.replicas[0], "c").await == (8 + 4, 7);
    fixture.soon("user 3 was on the third alone", left).await;
    fixture.replicas[1].resign().await.unwrap();
    assert_eq!(stats(&fixture.replicas[0], "c").await, (4 + 2, 5), "0, 2, 4, 6 and 7");
    for connection in ["a0", "b0", "0-0"] {
        fixture.replicas[0].leave("c", connection).await.unwrap();
    }
    assert_eq!(stats(&fixture.replicas[0], "c").await, (3, 3), "2, 4 and 6");
}

/// Nothing is cut off, and counts are those of the list.
async fn many_members(fixture: &Isolating<dyn Presence>) {
    const MEMBERS: usize = 2000;
    for first in (0..MEMBERS).step_by(100) {
        let join = |n: usize| fixture.replicas[n % 2].join("c", info(&n.to_string(), &(n / 4).to_string()));
        for joined in futures_util::future::join_all((first..first + 100).map(join)).await {
            joined.unwrap();
        }
    }
    let mut listed = clients(&fixture.replicas[0], "c").await;
    listed.dedup();
    assert_eq!((listed.len(), stats(&fixture.replicas[1], "c").await), (MEMBERS, (2000, 500)));
    for n in 0..MEMBERS - 1 {
        fixture.replicas[n % 2].leave("c", &n.to_string()).await.unwrap();
    }
    assert_eq!((clients(&fixture.replicas[0], "c").await.len(), stats(&fixture.replicas[0], "c").await), (1, (1, 1)));
}

/// No name is another's pattern or encoding.
async fn channels_are_kept_apart(fixture: &Isolating<dyn Presence>) {
    let presence = &fixture.replicas[0];
    let long = "x".repeat(crate::MAX_CHANNEL_BYTES);
    let names =
        ["a", "A", "a b", "a.b", "*", ">", "{a}", "b{a}", "a}", "\0", "日本語", "a:1", "a%3A1", &long, &long[1..]];
    for name in names {
        presence.join(name, info("1", name)).await.unwrap();
    }
    for name in names {
        assert_eq!(clients(presence, name).await, [format!("1/{name}")]);
    }
}

/// "While it renews at least each second its entries count."
async fn a_renewed_lease_keeps_its_members(fixture: &Isolating<dyn Presence>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(one.renew().await, Ok(Lease::Held), "the first renewal begins the lease");
    one.join("c", info("1", "ann")).await.unwrap();
    for second in 0..8 {
        fixture.let_pass(Duration::from_millis(900)).await;
        assert_eq!(one.renew().await, Ok(Lease::Held), "second {second}");
        assert_eq!(stats(other, "c").await, (1, 1), "second {second}");
    }
}

/// 5 s after its last renewal a replica's entries count for no reader, and never again before they are joined anew.
async fn a_lapsed_replica_does_not_count(fixture: &Isolating<dyn Presence>) {
    let [gone, reader] = [&fixture.replicas[0], &fixture.replicas[1]];
    for replica in [gone, reader] {
        replica.renew().await.unwrap();
    }
    gone.join("c", info("1", "ann")).await.unwrap();
    gone.join("c", info("2", "bob")).await.unwrap();
    reader.join("c", info("2", "bob")).await.unwrap();
    gone.join("unwatched", info("1", "ann")).await.unwrap();
    (fixture.cut)(0, true);
    for _ in 0..5 {
        fixture.let_pass(Duration::from_secs(1)).await;
        assert_eq!(reader.renew().await, Ok(Lease::Held));
    }
    fixture.soon("what lapsed does not count", async || stats(reader, "c").await == (1, 1)).await;
    assert_eq!((clients(reader, "c").await, stats(reader, "unwatched").await), (vec!["2/bob".to_owned()], (0, 0)));
    (fixture.cut)(0, false);
    assert_eq!(gone.renew().await, Ok(Lease::Lapsed));
    assert_eq!(stats(reader, "c").await, (1, 1), "what lapsed does not come back");
    assert_eq!(stats(gone, "unwatched").await, (0, 0));
    gone.join("c", info("1", "ann")).await.unwrap();
    assert_eq!(gone.renew().await, Ok(Lease::Held));
    // It may take a moment until the reader hears of the new lease.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while stats(reader, "c").await != (2, 2) {
        assert!(tokio::time::Instant::now() < deadline, "the new lease does not count");
        fixture.let_pass(Duration::from_millis(50)).await;
    }
    assert_eq!((clients(reader, "c").await, stats(gone, "c").await), (vec!["1/ann".into(), "2/bob".into()], (2, 2)));
}

/// A lapsed lease does not count, whether or not the reader's own renewals go on.
async fn a_reader_judges_by_itself(fixture: &Isolating<dyn Presence>) {
    let [gone, reader] = [&fixture.replicas[0], &fixture.replicas[1]];
    gone.join("c", info("1", "ann")).await.unwrap();
    assert_eq!(stats(reader, "c").await, (1, 1));
    (fixture.cut)(0, true);
    fixture.let_pass(Duration::from_secs(5)).await;
    fixture.soon("what lapsed does not count", async || stats(reader, "c").await == (0, 0)).await;
    assert_eq!(clients(reader, "c").await, [""; 0]);
}

/// "All entries of this replica stop counting at once", and no others.
async fn a_replica_that_resigned_does_not_count(fixture: &Isolating<dyn Presence>) {
    let [gone, reader] = [&fixture.replicas[0], &fixture.replicas[1]];
    gone.join("c", info("1", "ann")).await.unwrap();
    gone.join("c", info("2", "ann")).await.unwrap();
    reader.join("c", info("3", "bob")).await.unwrap();
    gone.resign().await.unwrap();
    assert_eq!((clients(reader, "c").await, stats(reader, "c").await), (vec!["3/bob".to_owned()], (1, 1)));
    assert_eq!(stats(gone, "c").await, (1, 1));
}
