//! What runs beside joins and leaves, and reads of a slow server.

use std::sync::atomic::AtomicU64;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::client::Address;
use crate::presence::calls;
use crate::testing::RedisServer;

async fn whole(replica: &RedisPresence, call: &Call) -> Value {
    let start = Instant::now();
    loop {
        match replica.inner.background.call(call.clone()).await {
            Ok(answer) => return answer,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{error}"),
        }
    }
}

/// A piece of a sweep, of fewer users and clients than in earnest.
fn piece(base: &Key, of: Incarnation, limit: i64) -> Call {
    let of = Value::String(incarnation(of).as_str().into());
    Call::script(calls::SCRIPTS[4], &[base], [of, Value::Integer(limit)]).repeatable()
}

async fn join(replica: &RedisPresence, n: u32, user: u32) {
    let member = info(&n.to_string(), &user.to_string());
    until("the join is made", async || replica.join("room", member.clone()).await.is_ok()).await;
}

/// What a replica left is removed while its clients come to another, and leave it: exactly those that stay are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_beside_joins_takes_nobody_along() {
    let server = RedisServer::start().await.unwrap();
    let mut rig = Rig::new(server.config(), PresenceConfig::default(), 2).ready().await;
    for n in 0..200 {
        join(&rig.replicas[0], n, n % 40).await;
    }
    let gone = rig.sides[0].census().own;
    drop((rig.sides.remove(0), rig.replicas.remove(0)));
    let replica = &rig.replicas[0];
    let base = replica.inner.base("room");
    let moving = async {
        for n in 0..200 {
            join(replica, n, n % 40).await;
            if n % 3 == 0 {
                replica.leave("room", &n.to_string()).await.unwrap();
            }
        }
    };
    let sweeping = async { while whole(replica, &piece(&base, gone, 2)).await.as_i64() != Some(1) {} };
    tokio::join!(moving, sweeping);
    while whole(replica, &piece(&base, gone, 2)).await.as_i64() != Some(1) {}
    until("leaves are made", async || replica.state().doubtful == 0).await;
    let mut stay: Vec<_> = (0..200).filter(|n| n % 3 != 0).map(|n: u32| n.to_string()).collect();
    stay.sort_unstable();
    assert_eq!(clients(replica, "room").await, Ok(stay.clone()));
    assert_eq!(replica.stats("room").await, counts(stay.len() as u32, 40));
    let key = |part: &str| format!("{}:{part}", base.as_str());
    for left in [key("d"), key(&format!("m:{}", incarnation(gone))), key(&format!("u:{}", incarnation(gone)))] {
        assert_eq!(server.ask(&["EXISTS", &left]).await.unwrap().number(), 0, "{left}");
    }
    let users = server.ask(&["HVALS", &key("u")]).await.unwrap();
    assert!(users.list().iter().all(|count| count.text() == "1"), "each user is with one replica: {users:?}");
}

/// Touches the channel all the time until the changes are made.
async fn beside_touches(replica: &RedisPresence, touch: &Call, changes: impl Future<Output = ()>) {
    let touching = async {
        for _ in 0..u32::MAX {
            whole(replica, touch).await;
        }
    };
    tokio::select! {
        () = changes => {}
        () = touching => {}
    }
}

/// Keys are given their whole life again while members come and go: nobody is kept by it, and no key stays for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn touches_beside_leaves_keep_nobody() {
    let server = RedisServer::start().await.unwrap();
    let rig = Rig::new(server.config(), PresenceConfig::default(), 1).ready().await;
    let (replica, own) = (&rig.replicas[0], rig.sides[0].census().own);
    let base = replica.inner.base("room");
    let touch = calls::touch(&base, own, replica.inner.config.life);
    let coming = async {
        for n in 0..150 {
            join(replica, n, n % 10).await;
            if n % 2 == 0 {
                replica.leave("room", &n.to_string()).await.unwrap();
            }
        }
    };
    beside_touches(replica, &touch, coming).await;
    until("leaves are made", async || replica.state().doubtful == 0).await;
    assert_eq!(replica.stats("room").await, counts(75, 5));
    assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
    let going = async {
        for n in 0..150 {
            replica.leave("room", &n.to_string()).await.unwrap();
        }
    };
    beside_touches(replica, &touch, going).await;
    until("nothing is left", async || {
        whole(replica, &touch).await;
        server.ask(&["KEYS", &format!("{}*", base.as_str())]).await.unwrap().list().is_empty()
    })
    .await;
}

/// Clients that two replicas have are looked at one by one. Many of them make no long script: counts are kept for a moment,
/// and a sweep takes them in pieces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_of_two_replicas_make_no_long_script() {
    let server = RedisServer::start().await.unwrap();
    let mut rig = Rig::new(server.config(), PresenceConfig::default(), 2).ready().await;
    for replica in &rig.replicas {
        for n in 0..300 {
            join(replica, n, 7).await;
        }
    }
    let replica = rig.replicas[1].clone();
    assert_eq!(replica.stats("room").await, counts(300, 1));
    assert!(replica.inner.corrected.lock().contains_key("room"), "the answer is not kept");
    let gone = rig.sides[0].census().own;
    drop((rig.sides.remove(0), rig.replicas.remove(0)));
    let base = replica.inner.base("room");
    let double = format!("{}:d", base.as_str());
    let mut left = vec![server.ask(&["SCARD", &double]).await.unwrap().number()];
    while whole(&replica, &piece(&base, gone, 100)).await.as_i64() != Some(1) {
        left.push(server.ask(&["SCARD", &double]).await.unwrap().number());
    }
    assert_eq!(left, [300, 200, 100], "clients looked at by each call");
    assert_eq!(server.ask(&["SCARD", &double]).await.unwrap().number(), 0);
    assert_eq!(clients(&replica, "room").await.unwrap().len(), 300);
    until("they count once", async || replica.stats("room").await == counts(300, 1)).await;
}

/// Passes everything on, answers after `delay` milliseconds.
async fn slow_road(to: Address, delay: Arc<AtomicU64>) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect((to.host.as_str(), to.port)).await.unwrap();
            let ((mut asks, mut hears), (mut answers, mut told)) = (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut asks, &mut told).await });
            let delay = delay.clone();
            tokio::spawn(async move {
                let mut piece = vec![0; 65_536];
                while let Ok(count @ 1..) = answers.read(&mut piece).await {
                    sleep(Duration::from_millis(delay.load(Ordering::Relaxed))).await;
                    if hears.write_all(&piece[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Address::new("127.0.0.1", port)
}

/// The list of members takes two calls, one after the other: they share one deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_members_has_one_deadline() {
    let server = RedisServer::start().await.unwrap();
    let delay = Arc::new(AtomicU64::new(0));
    let road = slow_road(server.address(), delay.clone()).await;
    let (command_timeout, deadline) = (Duration::from_millis(1800), Duration::from_secs(2));
    let config = RedisConfig { command_timeout, deadline, ..RedisConfig::standalone(road) };
    let rig = Rig::new(config, PresenceConfig::default(), 1).ready().await;
    join(&rig.replicas[0], 1, 1).await;
    assert_eq!(clients(&rig.replicas[0], "room").await, Ok(vec!["1".to_owned()]));
    // One call is answered in time, and two are not.
    delay.store(1200, Ordering::Relaxed);
    let answer = clients(&rig.replicas[0], "room").await;
    assert!(matches!(answer, Err(PresenceError::Unavailable { .. })), "{answer:?}");
}
