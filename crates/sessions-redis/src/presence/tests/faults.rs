//! A Redis that dies, freezes, forgets or is rebuilt lets nobody leave.

use super::*;
use crate::testing::RedisCluster;

const CHANNELS: u32 = 60;

fn channel(n: u32) -> String {
    format!("channel {n}")
}

/// Redis is what fails here: nobody is to be taken for gone because the machine is busy.
type Rig = super::Rig<Listed>;

/// Two members in each channel, one on each replica, of one user.
async fn populate(rig: &Rig) {
    for n in 0..CHANNELS {
        for (index, replica) in rig.replicas.iter().enumerate() {
            join(replica, n, &format!("{index}"), "ann").await;
        }
    }
}

/// Joins, also where Redis is slow to answer.
async fn join(replica: &RedisPresence, n: u32, client: &str, user: &str) {
    until("joined", async || replica.join(&channel(n), info(client, user)).await.is_ok()).await;
}

/// Whether everybody is there. A read that fails is allowed; one that shows somebody as gone is not.
async fn whole(rig: &Rig) -> bool {
    for n in 0..CHANNELS {
        for replica in &rig.replicas {
            match (replica.stats(&channel(n)).await, clients(replica, &channel(n)).await) {
                (Ok(stats), Ok(clients)) => {
                    let generations: Vec<_> = rig.sides.iter().map(|side| side.census().own.generation).collect();
                    let expected = (counts(2, 1), vec!["0".into(), "1".into()]);
                    assert_eq!((Ok(stats), clients), expected, "{n}, generations {generations:?}")
                }
                (stats, clients) => {
                    eprintln!("channel {n}: {:?} {:?}", stats.err(), clients.err());
                    return false;
                }
            }
        }
    }
    true
}

/// The same where Redis lost data, so that people may be missing until they are written again.
async fn rebuilt(rig: &Rig) -> bool {
    for n in 0..CHANNELS {
        let both = ["0".to_owned(), "1".to_owned()];
        if rig.replicas[0].stats(&channel(n)).await != counts(2, 1)
            || clients(&rig.replicas[1], &channel(n)).await.is_ok_and(|clients| clients != both)
        {
            return false;
        }
    }
    true
}

async fn rig(cluster: &RedisCluster) -> Rig {
    let rig = Rig::listed(cluster.config(), PresenceConfig::default(), 2).ready().await;
    populate(&rig).await;
    until("everybody is there", async || whole(&rig).await).await;
    let knows = |replica: &Arc<RedisPresence>| replica.inner.told.lock().tellers() == rig.replicas.len();
    until("all know who announces", async || rig.replicas.iter().all(knows)).await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_takes_nobody_along() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    cluster.servers[0].kill().unwrap();
    let start = Instant::now();
    let (mut refused, mut answered) = (0, 0);
    while start.elapsed() < Duration::from_secs(8) {
        if whole(&rig).await { answered += 1 } else { refused += 1 }
    }
    eprintln!("whole answers {answered}, refused {refused}");
    assert!(refused > 0, "the primary's channels were unavailable for a while");
    until("everybody is there", async || whole(&rig).await).await;
    assert_eq!(rig.replicas[0].renew().await, Ok(Lease::Held));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_takes_nobody_along() {
    let cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    cluster.servers[1].pause().unwrap();
    let (stalls, start) = (Stalls::watch(), Instant::now());
    let took = until("its replica took over", async || whole(&rig).await).await;
    let stood = stalls.since(start);
    eprintln!("presence was there again after {took:?}");
    assert!(took < Duration::from_secs(10) + stood, "{took:?}, of which it stood still for {stood:?}");
    cluster.servers[1].resume().unwrap();
    for _ in 0..10 {
        sleep(Duration::from_millis(100)).await;
        whole(&rig).await;
    }
    until("everybody is there", async || whole(&rig).await).await;
}

/// What a failover brings back or forgets is put right: a leave that is undone, a join that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_writes_is_repaired() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    let replica = cluster.cut_replica(0).await.unwrap();
    for n in 0..CHANNELS {
        rig.replicas[0].leave(&channel(n), "0").await.unwrap();
        join(&rig.replicas[1], n, "late", "bob").await;
        rig.replicas[0].leave(&channel(n), "unknown").await.unwrap();
    }
    rig.replicas[1].leave(&channel(7), "1").await.unwrap();
    rig.replicas[1].leave(&channel(7), "late").await.unwrap();
    cluster.servers[0].kill().unwrap();
    cluster.servers[replica].resume().unwrap();
    // Whoever reads meanwhile gets an error, never what the replica had.
    let right = async || {
        let mut whole = true;
        for n in 0..CHANNELS {
            let (expected, names) = if n == 7 { (counts(0, 0), vec![]) } else { (counts(2, 2), vec!["1", "late"]) };
            let reader = &rig.replicas[n as usize % 2];
            let (stats, clients) = (reader.stats(&channel(n)).await, clients(reader, &channel(n)).await);
            whole &= stats.is_ok() && clients.is_ok();
            assert!(stats.is_err() || stats == expected, "{n}: {stats:?}");
            assert!(clients.as_ref().map_or(true, |clients| *clients == names), "{n}: {clients:?}");
        }
        whole
    };
    let took = until("everything is right again", right).await;
    eprintln!("right again {took:?} after the kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_rebuilt_after_a_flush() {
    let cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    for round in 0..3 {
        cluster.flush().await.unwrap();
        let (stalls, start) = (Stalls::watch(), Instant::now());
        let took = until("everybody is there", async || rebuilt(&rig).await).await;
        let stood = stalls.since(start);
        eprintln!("round {round}: rebuilt after {took:?}");
        assert!(took < Duration::from_secs(4) + stood, "{took:?}, of which it stood still for {stood:?}");
        until("everybody is there", async || whole(&rig).await).await;
    }
}

/// Two primaries that come back with nothing answer before anybody was written again, and before anybody looked at them.
/// A primary may come back empty before a replica's first read: that has to wait for those who have been there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_is_known_before_the_first_read() {
    let cluster = RedisCluster::start().await.unwrap();
    let rig = Rig::listed(cluster.config(), PresenceConfig::default(), 2);
    let knows = |replica: &Arc<RedisPresence>| replica.inner.told.lock().tellers() == rig.replicas.len();
    until("all know who announces", async || rig.replicas.iter().all(knows)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primaries_that_come_back_empty_show_nobody_as_gone() {
    let mut cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    for round in 0..2 {
        cluster.servers[0].kill().unwrap();
        cluster.servers[1].kill().unwrap();
        until("they are missed", async || !whole(&rig).await).await;
        for server in &mut cluster.servers[..2] {
            server.restart().await.unwrap();
        }
        let took = until("everybody is there", async || whole(&rig).await).await;
        eprintln!("round {round}: whole {took:?} after the primaries were back");
        cluster.ready(Duration::from_secs(90)).await.unwrap();
        until("everybody is there", async || whole(&rig).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_nobody_is_known_and_nobody_leaves() {
    let cluster = RedisCluster::start().await.unwrap();
    let rig = rig(&cluster).await;
    for server in &cluster.servers {
        server.pause().unwrap();
    }
    let stalls = Stalls::watch();
    until("it is away", async || rig.replicas[0].stats(&channel(0)).await.is_err()).await;
    for _ in 0..3 {
        let start = Instant::now();
        assert!(matches!(rig.replicas[1].members(&channel(1)).await, Err(PresenceError::Unavailable { .. })));
        let (took, stood) = (start.elapsed(), stalls.since(start));
        assert!(took < Duration::from_millis(1500) + stood, "{took:?}, of which it stood still for {stood:?}");
        sleep(Duration::from_secs(2)).await;
    }
    rig.replicas[0].leave(&channel(1), "0").await.unwrap();
    assert!(rig.replicas[0].join(&channel(1), info("new", "bob")).await.is_err());
    assert!(rig.replicas[0].renew().await.is_err());
    rig.replicas[1].leave(&channel(2), "1").await.unwrap();
    assert!(rig.replicas[1].join(&channel(2), info("1", "bob")).await.is_err());
    for server in &cluster.servers {
        server.resume().unwrap();
    }
    until("what was done meanwhile holds", async || {
        let one = clients(&rig.replicas[1], &channel(1)).await == Ok(vec!["1".into(), "new".into()]);
        one && rig.replicas[0].stats(&channel(2)).await == counts(2, 2)
    })
    .await;
    until("it answers", async || match clients(&rig.replicas[0], &channel(2)).await {
        Err(_) => false,
        listed => {
            assert_eq!(listed.unwrap(), ["0", "1"]);
            true
        }
    })
    .await;
    rig.replicas[0].leave(&channel(1), "new").await.unwrap();
    join(&rig.replicas[0], 1, "0", "ann").await;
    join(&rig.replicas[1], 2, "1", "ann").await;
    until("everybody is there", async || rebuilt(&rig).await).await;
    until("nothing is in doubt", async || rig.replicas.iter().all(|replica| replica.state().doubtful == 0)).await;
    until("everybody is there", async || whole(&rig).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_and_nobody_notices() {
    // A failover in the middle of a move leaves slots in dispute.
    let cluster = RedisCluster::start_steady().await.unwrap();
    let rig = rig(&cluster).await;
    for n in 0..12 {
        let slot = rig.replicas[0].inner.base(&channel(n)).slot();
        let to = (cluster.owner(slot).await.unwrap() + 1) % 3;
        cluster.begin_move(slot, to).await.unwrap();
        join(&rig.replicas[0], n, "0", "ann").await;
        cluster.move_slot(slot, to).await.unwrap();
        join(&rig.replicas[1], n, "1", "ann").await;
        until("both count", async || match rig.replicas[0].stats(&channel(n)).await {
            Err(_) => false,
            counted => {
                assert_eq!(counted, counts(2, 1));
                true
            }
        })
        .await;
    }
    until("everybody is there", async || whole(&rig).await).await;
}
