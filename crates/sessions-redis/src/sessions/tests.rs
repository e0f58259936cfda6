//! The store against real servers.

use std::time::Instant as Clock;

use futures_util::future::join_all;
use plenum_channels::conformance::{Fixture, sessions_suite};

use super::*;
use crate::client::RedisConfig;
use crate::testing::{RedisCluster, RedisServer};

mod rebuilding;

const TTL: Duration = Duration::from_secs(600);

fn open(config: RedisConfig) -> Arc<Redis> {
    Redis::open(config, RedisMetrics::new().unwrap()).unwrap()
}

fn state(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Repeats while the store is away.
async fn patiently<T>(what: impl AsyncFn() -> Result<T, SessionError>) -> Result<T, SessionError> {
    let started = Clock::now();
    loop {
        match what().await {
            Err(SessionError::Unavailable { .. } | SessionError::Indeterminate)
                if started.elapsed() < Duration::from_secs(90) => {}
            outcome => return outcome,
        }
    }
}

async fn conform(config: RedisConfig) {
    let n = std::sync::atomic::AtomicU32::new(0);
    sessions_suite(async |replicas| {
        let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let redis = open(RedisConfig { prefix: format!("p{n}"), ..config.clone() });
        let all: Vec<_> = (0..replicas).map(|_| RedisSessions::new(&redis)).collect();
        for one in &all {
            // The layout is known and a connection there, as in a process that runs.
            let _ = patiently(async || one.get("warm").await).await;
        }
        assert_eq!(redis.metrics().sessions_went_back.get(), 0);
        let all = all.into_iter().map(|one| one as Arc<dyn Sessions>).collect();
        Fixture { guard: Box::new(redis), ..Fixture::with_tokio_time(all) }
    })
    .await;
}

#[tokio::test]
async fn sessions_conform_on_a_cluster() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    conform(cluster.patient()).await;
    for server in &cluster.servers {
        assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    }
}

#[tokio::test]
async fn sessions_conform_on_one_server() {
    let server = RedisServer::start().await.unwrap();
    conform(server.patient()).await;
    assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
}

/// A cut-off replica takes over without the last write: whoever knows of that write is told, once.
#[tokio::test]
async fn a_failover_that_took_a_version_back_is_told() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let redis = open(cluster.patient());
    let (one, other, third) = (RedisSessions::new(&redis), RedisSessions::new(&redis), RedisSessions::new(&redis));
    patiently(async || one.create("s", "ann", state("1"), TTL).await).await.unwrap();
    let slot = one.session("s").unwrap().1.slot();
    // Another session in the slots of the same server, to be created after the cut.
    let lost = (0..).map(|n| format!("lost{n}")).find(|id| one.session(id).unwrap().1.slot() / 2000 == slot / 2000);
    let lost = lost.unwrap();
    assert_eq!(one.update("s", 1, state("2"), TTL).await, Ok(2));
    let primary = cluster.owner(slot).await.unwrap();
    assert_eq!(cluster.owner(one.session(&lost).unwrap().1.slot()).await.unwrap(), primary);
    cluster.servers[primary].ask(&["WAIT", "1", "2000"]).await.unwrap();
    let replica = cluster.cut_replica(primary).await.unwrap();
    assert_eq!(one.update("s", 2, state("3"), TTL).await, Ok(3));
    assert_eq!(one.update("s", 3, state("4"), TTL).await, Ok(4));
    one.create(&lost, "ann", state("x"), TTL).await.unwrap();
    assert_eq!(other.get("s").await.unwrap().version, 4);
    cluster.servers[primary].kill().unwrap();
    cluster.servers[replica].resume().unwrap();
    cluster.ready(Duration::from_secs(90)).await.unwrap();

    assert_eq!(patiently(async || one.get("s").await).await, Err(SessionError::WentBack { known: 4, found: 2 }));
    assert_eq!(one.get("s").await.map(|there| (there.version, there.state)), Ok((2, state("2"))), "told once");
    assert_eq!(patiently(async || one.get(&lost).await).await, Err(SessionError::WentBack { known: 1, found: 0 }));
    assert_eq!(one.get(&lost).await, Err(SessionError::NotFound));
    // A replica that knew nothing goes on from what is there; the other notices although versions overtook its own.
    for version in 2..=5 {
        assert_eq!(patiently(async || third.update("s", version, state("new"), TTL).await).await, Ok(version + 1));
    }
    let went_back = Err(SessionError::WentBack { known: 4, found: 6 });
    assert_eq!(patiently(async || other.update("s", 4, state("old"), TTL).await).await, went_back);
    assert_eq!(other.update("s", 6, state("7"), TTL).await, Ok(7));
    assert_eq!(redis.metrics().sessions_went_back.get(), 3);
}

/// The same where nobody uses the sessions any more: who wrote or read them reports each loss once, and the next caller is
/// told all the same.
#[tokio::test]
async fn a_failover_that_took_versions_back_is_reported_though_nobody_asks() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let (writing, reading) = (open(cluster.patient()), open(cluster.patient()));
    let (writer, reader) = (RedisSessions::new(&writing), RedisSessions::new(&reading));
    let mut losses = [writer.losses(), reader.losses()];
    patiently(async || writer.create("s", "ann", state("1"), TTL).await).await.unwrap();
    let primary = cluster.owner(writer.session("s").unwrap().1.slot()).await.unwrap();
    let mut lost = Vec::new();
    for id in (0..).map(|n| format!("lost{n}")) {
        if cluster.owner(writer.session(&id).unwrap().1.slot()).await.unwrap() == primary {
            lost.push(id);
        }
        if lost.len() == 3 {
            break;
        }
    }
    // One that is gone, one that expires meanwhile, one that was deleted.
    let [lost, expired, deleted] = lost.try_into().unwrap();
    patiently(async || writer.create(&deleted, "ann", state("x"), TTL).await).await.unwrap();
    writer.delete(&deleted, Some(1)).await.unwrap();
    cluster.servers[primary].ask(&["WAIT", "1", "2000"]).await.unwrap();
    let replica = cluster.cut_replica(primary).await.unwrap();
    assert_eq!(writer.update("s", 1, state("2"), TTL).await, Ok(2));
    assert_eq!(writer.update("s", 2, state("3"), TTL).await, Ok(3));
    writer.create(&lost, "ann", state("x"), TTL).await.unwrap();
    writer.create(&expired, "ann", state("x"), Duration::from_millis(1000)).await.unwrap();
    for id in ["s", &lost] {
        patiently(async || reader.get(id).await).await.unwrap();
    }
    cluster.servers[primary].kill().unwrap();
    cluster.servers[replica].resume().unwrap();

    for losses in &mut losses {
        let mut told = Vec::new();
        for _ in 0..2 {
            let loss = tokio::time::timeout(Duration::from_secs(60), losses.recv()).await;
            told.push(loss.expect("the loss is reported").unwrap());
        }
        told.sort_by_key(|loss| loss.known);
        let loss = |id: &str, known, found| SessionLoss { id: id.into(), known, found };
        assert_eq!(told, [loss(&lost, 1, 0), loss("s", 3, 1)]);
    }
    assert_eq!(patiently(async || reader.get("s").await).await, Err(SessionError::WentBack { known: 3, found: 1 }));
    assert_eq!(patiently(async || writer.get(&lost).await).await, Err(SessionError::WentBack { known: 1, found: 0 }));
    let conflict = patiently(async || writer.update("s", 3, state("4"), TTL).await).await;
    assert_eq!(conflict, Err(SessionError::WentBack { known: 3, found: 1 }));
    assert_eq!(patiently(async || reader.get("s").await).await.map(|there| there.version), Ok(1));
    for (redis, losses) in [&writing, &reading].into_iter().zip(&mut losses) {
        assert_eq!((redis.metrics().sessions_went_back.get(), losses.try_recv().is_err()), (2, true), "once");
    }
}

/// A writer that expects a version which the replica knows to be over is refused even where the store went back to it.
#[tokio::test]
async fn an_outdated_writer_is_refused_by_a_store_that_went_back() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let sessions = RedisSessions::new(&redis);
    patiently(async || sessions.create("s", "ann", state("1"), TTL).await).await.unwrap();
    let key = sessions.session("s").unwrap().1;
    let copy = format!("{}copy", key.as_str());
    server.ask(&["COPY", key.as_str(), &copy]).await.unwrap();
    assert_eq!(sessions.update("s", 1, state("2"), TTL).await, Ok(2));
    server.ask(&["COPY", &copy, key.as_str(), "REPLACE"]).await.unwrap();
    let outcome = sessions.update("s", 1, state("other"), TTL).await;
    assert_eq!(outcome, Err(SessionError::WentBack { known: 2, found: 1 }));
    assert_eq!(sessions.get("s").await.map(|there| there.state), Ok(state("1")));
    // Deleted, and back from the dead.
    sessions.delete("s", Some(1)).await.unwrap();
    server.ask(&["COPY", &copy, key.as_str(), "REPLACE"]).await.unwrap();
    assert_eq!(sessions.get("s").await, Err(SessionError::WentBack { known: 2, found: 1 }));
    server.ask(&["FLUSHALL"]).await.unwrap();
    let outcome = sessions.get("s").await;
    assert_eq!(outcome, Err(SessionError::WentBack { known: 1, found: 0 }), "what was only read is known to last");
    assert_eq!(sessions.get("s").await, Err(SessionError::NotFound));
    sessions.create("s", "ann", state("1"), TTL).await.unwrap();
    server.ask(&["FLUSHALL"]).await.unwrap();
    assert_eq!(sessions.get("s").await, Err(SessionError::WentBack { known: 1, found: 0 }));
}

/// Each script, executed again by a client that had no answer, does it once.
#[tokio::test]
async fn repeated_attempts_of_one_call_count_once() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let sessions = RedisSessions::new(&redis);
    let _ = patiently(async || sessions.get("warm").await).await;
    let (_, key) = sessions.session("s").unwrap();
    let twice = async |call: Call| {
        let first = sessions.change(call.clone()).await.unwrap();
        (first.done, sessions.change(call).await.unwrap().done)
    };
    let record = record::record(&Header::first(1, [1; 4], "ann"), "ann", b"x");
    let create = Call::script(&scripts::CREATE, &[&key], [Value::Bytes(record), millis(TTL)]);
    assert_eq!(twice(create.clone()).await, (1, 1));
    let update = |expected: u64, mark: Mark| {
        let arguments = [text(&expected.to_string()), text(""), bytes(&mark), text("y"), millis(TTL)];
        Call::script(&scripts::UPDATE, &[&key], arguments)
    };
    assert_eq!(twice(update(1, [2; 4])).await, (1, 2));
    assert_eq!(twice(update(2, [3; 4])).await, (1, 2));
    assert_eq!(sessions.change(update(1, [2; 4])).await.unwrap().done, 2, "also after others wrote");
    assert_eq!(sessions.change(create.clone()).await.unwrap().done, 1, "also after others wrote");
    assert_eq!(sessions.change(update(1, [9; 4])).await.unwrap().done, 0, "another writer of version 2");
    assert_eq!(sessions.get("s").await.map(|there| there.version), Ok(3));
    let arguments = [text("3"), text(""), bytes(&[4; 4]), millis(HORIZON)];
    let delete = Call::script(&scripts::DELETE, &[&key], arguments);
    assert_eq!(twice(delete).await, (1, 2));
    assert_eq!(sessions.change(create).await.unwrap().done, 1, "what was deleted since stays deleted");
    assert_eq!(sessions.get("s").await, Err(SessionError::NotFound));
}

/// Creators and deleters of one id at the same time: one session at a time, one winner each.
#[tokio::test]
async fn one_of_many_creators_and_one_of_many_deleters_wins() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    let redis = open(cluster.patient());
    let all: Vec<_> = (0..3).map(|_| RedisSessions::new(&redis)).collect();
    let _ = patiently(async || all[0].get("s").await).await;
    for _ in 0..5 {
        let create = |n: usize| {
            let sessions = all[n % 3].clone();
            async move { patiently(async || sessions.create("s", "ann", state(&n.to_string()), TTL).await).await }
        };
        let created = join_all((0..30).map(create)).await;
        assert_eq!(created.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{created:?}");
        let winner = created.iter().position(Result::is_ok).unwrap();
        assert_eq!(all[2].get("s").await.map(|there| there.state), Ok(state(&winner.to_string())));
        let delete = |n: usize| {
            let sessions = all[n % 3].clone();
            async move { patiently(async || sessions.delete("s", Some(1)).await).await }
        };
        let deleted = join_all((0..30).map(delete)).await;
        assert_eq!(deleted.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{deleted:?}");
    }
    assert_eq!(redis.metrics().sessions_went_back.get(), 0);
}

/// Entries that lead nowhere, or to a session that somebody else made under the same id, are not shown and removed.
#[tokio::test]
async fn a_list_is_cleaned_when_it_is_read() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let sessions = RedisSessions::new(&redis);
    for id in ["a", "b", "c"] {
        patiently(async || sessions.create(id, "ann", state("x"), TTL).await).await.unwrap();
    }
    let list = sessions.list_of("ann");
    let length = async || server.ask(&["ZCARD", list.as_str()]).await.unwrap().number();
    for id in ["a", "c"] {
        server.ask(&["DEL", sessions.session(id).unwrap().1.as_str()]).await.unwrap();
    }
    sessions.create("c", "bob", state("x"), TTL).await.unwrap();
    assert_eq!(length().await, 3);
    assert_eq!(sessions.of_user("ann", 10).await, Ok(vec!["b".to_owned()]));
    assert_eq!(length().await, 1);
    assert_eq!(sessions.of_user("bob", 10).await, Ok(vec!["c".to_owned()]));
    // Lost with a failover: the next update that is due enters it again.
    server.ask(&["DEL", list.as_str()]).await.unwrap();
    let fresh = RedisSessions::new(&redis);
    assert_eq!(patiently(async || fresh.update("b", 1, state("y"), TTL).await).await, Ok(2));
    assert_eq!(fresh.of_user("ann", 10).await, Ok(vec!["b".to_owned()]));
    // The bound: those that expire first are not listed.
    let add = |n: usize| {
        Call::script(&scripts::LIST, &[&list], [text(&format!("n{n}")), millis(TTL * 2), Value::Integer(1000)])
    };
    for answer in sessions.client.call_all((0..1200).map(add).collect()).await {
        answer.unwrap();
    }
    assert_eq!(length().await, 1000);
    let left = server.ask(&["ZRANGE", list.as_str(), "0", "-1"]).await.unwrap();
    assert!(left.list().iter().all(|entry| entry.text().starts_with('n')), "b expires first");
}

/// What a delete takes out of the list is never the session that was made under the same id right after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_deleted_and_made_again_at_once_is_listed() {
    let server = RedisServer::start().await.unwrap();
    let (maker, deleter) = (RedisSessions::new(&open(server.patient())), RedisSessions::new(&open(server.patient())));
    for sessions in [&maker, &deleter] {
        let _ = patiently(async || sessions.get("warm").await).await;
    }
    for round in 0..60 {
        maker.create("s", "ann", state("x"), TTL).await.unwrap();
        let again = async {
            while let Err(error) = maker.create("s", "ann", state("y"), TTL).await {
                assert!(matches!(error, SessionError::Exists { .. }), "{error}");
            }
        };
        let (deleted, ()) = tokio::join!(deleter.delete("s", None), again);
        deleted.unwrap();
        assert_eq!(deleter.of_user("ann", 10).await, Ok(vec!["s".to_owned()]), "round {round}");
        maker.delete("s", None).await.unwrap();
    }
    assert_eq!(deleter.of_user("ann", 10).await, Ok(vec![]));
    assert_eq!(server.ask(&["ZCARD", maker.list_of("ann").as_str()]).await.unwrap().number(), 0);
}

/// Readers that remove what leads nowhere from a list, while the same sessions are made again: all that are there are listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_made_again_beside_readers_stays_listed() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let readers = RedisSessions::new(&redis);
    let _ = patiently(async || readers.get("warm").await).await;
    let ids: Vec<String> = (0..20).map(|n| format!("s{n:02}")).collect();
    let (again, list) = (TTL * 2, readers.list_of("ann"));
    for round in 0..10 {
        // Another replica each time, which remembers nothing of what expired.
        let maker = RedisSessions::new(&redis);
        let create = |id: &String| {
            let (maker, id) = (maker.clone(), id.clone());
            async move { patiently(async || maker.create(&id, "ann", state("x"), again).await).await }
        };
        let read = |_| patiently(async || readers.of_user("ann", 100).await);
        let (made, read) = tokio::join!(join_all(ids.iter().map(create)), join_all((0..20).map(read)));
        for (id, made) in ids.iter().zip(made) {
            // There already: an attempt without an answer had made it, and nobody entered it.
            if made != Ok(()) {
                assert_eq!(made, Err(SessionError::Exists { version: 1 }));
                patiently(async || maker.update(id, 1, state("x"), again).await).await.unwrap();
            }
        }
        assert!(read.iter().all(Result::is_ok), "{read:?}");
        let mut listed = patiently(async || readers.of_user("ann", 100).await).await.unwrap();
        listed.sort_unstable();
        assert_eq!(listed, ids, "round {round}");
        for id in &ids {
            server.ask(&["DEL", readers.session(id).unwrap().1.as_str()]).await.unwrap();
        }
        assert_eq!(server.ask(&["ZCARD", list.as_str()]).await.unwrap().number(), 20, "entries that lead nowhere");
    }
}

/// What `docs/redis.md` says of memory: 200 bytes of state and a user of 10 bytes.
#[tokio::test]
async fn a_session_takes_less_than_the_manual_says() {
    const COUNT: usize = 5_000;
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let sessions = RedisSessions::new(&redis);
    let _ = patiently(async || sessions.get("warm").await).await;
    let used = async || {
        let info = server.ask(&["INFO", "memory"]).await.unwrap();
        let line = info.text().lines().find_map(|line| line.strip_prefix("used_memory:").map(str::to_owned));
        line.unwrap().parse::<usize>().unwrap()
    };
    let before = used().await;
    let create = |n: usize| {
        let sessions = sessions.clone();
        let (id, user, content) = (format!("session-{n:08}"), format!("user{n:06}"), Bytes::from(vec![b'x'; 200]));
        async move { patiently(async || sessions.create(&id, &user, content.clone(), TTL).await).await }
    };
    for first in (0..COUNT).step_by(500) {
        for outcome in join_all((first..first + 500).map(create)).await {
            // There already: an attempt without an answer had made it.
            assert!(matches!(outcome, Ok(()) | Err(SessionError::Exists { version: 1 })), "{outcome:?}");
        }
    }
    let each = (used().await - before) / COUNT;
    let (_, key) = sessions.session("session-00000000").unwrap();
    let own = server.ask(&["MEMORY", "USAGE", key.as_str()]).await.unwrap().number();
    let list = server.ask(&["MEMORY", "USAGE", sessions.list_of("user000000").as_str()]).await.unwrap().number();
    eprintln!(
        "memory of a session with 200 bytes of state: {each} bytes in all; its key {own}, its user's list {list}"
    );
    assert!((400..800).contains(&each) && own < 450 && list < 200, "{each} {own} {list}");
}
