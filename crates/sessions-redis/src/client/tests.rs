//! The client against real servers.

use std::time::{Duration, Instant};

use plenum_channels::conformance::Stalls;

use super::*;
use crate::keys::Key;
use crate::script::Script;
use crate::testing::{ClusterOptions, RedisCluster, RedisServer, ServerOptions};

mod stalls;

static ADD: Script = Script::new(
    "test_add/1",
    "local n = redis.call('INCRBY', KEYS[1], ARGV[1]) redis.call('PEXPIRE', KEYS[1], 600000) return n",
);

fn open(config: RedisConfig) -> std::sync::Arc<Redis> {
    Redis::open(config, RedisMetrics::new().unwrap()).unwrap()
}

fn key(redis: &Redis, id: &str) -> Key {
    redis.keys().key("test", &redis.keys().tag(&[id]))
}

/// A key in a slot of this server.
async fn key_of(redis: &Redis, cluster: &RedisCluster, server: usize) -> Key {
    let mut known = redis.watch_slots();
    known.wait_for(|slots| slots.covered() == 16_384).await.unwrap();
    let address = cluster.servers[server].address();
    let tag = redis.keys().tag_in(|slot| redis.slots().owner(slot).is_some_and(|node| node.address == address));
    redis.keys().key("test", &tag.unwrap())
}

fn add(key: &Key, by: i64) -> Call {
    Call::script(&ADD, &[key], [Value::Integer(by)])
}

/// The bound holds for the time that this process could run.
fn within(bound: Duration, started: Instant, stalls: &Stalls) {
    let (took, stood) = (started.elapsed(), stalls.since(started));
    assert!(took < bound + stood, "{took:?}, of which it stood still for {stood:?}");
}

/// Repeats until it works.
async fn patiently(client: &Client, call: Call) -> Value {
    let started = Instant::now();
    loop {
        match client.call(call.clone()).await {
            Ok(value) => return value,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(90), "{error}"),
        }
    }
}

#[tokio::test]
async fn scripts_are_loaded_where_they_are_missing() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.patient());
    let client = redis.client(Purpose::Sessions);
    let key = key(&redis, "a");
    assert_eq!(patiently(&client, add(&key, 1)).await, Value::Integer(1));
    assert_eq!(client.call(add(&key, 2)).await, Ok(Value::Integer(3)));
    server.ask(&["SCRIPT", "FLUSH"]).await.unwrap();
    let both = client.call_all(vec![add(&key, 3), add(&key, 4), Call::command("GET", &key, []).reading()]).await;
    let sum: i64 = patiently(&client, Call::command("GET", &key, []).reading()).await.as_i64().unwrap();
    assert_eq!((both.iter().filter(|answer| answer.is_ok()).count(), sum), (3, 10), "{both:?}");
    let wrong = client.call(Call::command("LPUSH", &key, [Value::from("x")])).await;
    assert!(matches!(wrong, Err(CallError::Refused { .. })), "{wrong:?}");
    assert_eq!(redis.metrics().calls(Purpose::Sessions)[3], 1);
    assert_eq!(server.keys_without_expiry().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let mut server = RedisServer::start().await.unwrap();
    server.kill().unwrap();
    let redis = open(server.config());
    let client = redis.client(Purpose::Sessions);
    let key = key(&redis, "a");
    let (stalls, started) = (Stalls::watch(), Instant::now());
    let away = client.call(add(&key, 1)).await;
    within(Duration::from_millis(1000), started, &stalls);
    assert!(matches!(away, Err(CallError::Unavailable { .. })), "nothing can have been executed: {away:?}");
    assert!(!client.servers()[0].connected);
    server.restart().await.unwrap();
    patiently(&client, add(&key, 1)).await;
    assert!(client.servers()[0].connected);
}

#[tokio::test]
async fn a_frozen_server_leaves_writes_indeterminate_and_reads_unavailable() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(server.config());
    let client = redis.client(Purpose::Sessions);
    let key = key(&redis, "a");
    // An attempt without an answer may count as well.
    patiently(&client, add(&key, 1)).await;
    let before = server.ask(&["GET", key.as_str()]).await.unwrap().text().parse::<i64>().unwrap();
    server.pause().unwrap();
    let (stalls, started) = (Stalls::watch(), Instant::now());
    let (wrote, read) = tokio::join!(client.call(add(&key, 1)), client.call(Call::command("GET", &key, []).reading()));
    within(Duration::from_millis(1000), started, &stalls);
    assert!(matches!(wrote, Err(CallError::Indeterminate { .. })), "{wrote:?}");
    assert!(matches!(read, Err(CallError::Unavailable { .. })), "{read:?}");
    server.resume().unwrap();
    // What is asked for next comes after what was under way.
    let value = patiently(&client, Call::command("GET", &key, []).reading()).await;
    assert!([before, before + 1].contains(&value.as_i64().unwrap()), "{value:?} after {before}");
}

#[tokio::test]
async fn too_many_calls_under_way_fail_at_once() {
    let server = RedisServer::start().await.unwrap();
    let redis = open(RedisConfig { max_in_flight: 8, ..server.patient() });
    let client = redis.client(Purpose::Sessions);
    let key = key(&redis, "a");
    patiently(&client, add(&key, 1)).await;
    server.pause().unwrap();
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (client, call) = (client.clone(), add(&key, 1));
            tokio::spawn(async move { client.call(call).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let started = Instant::now();
    let refused = client.call(add(&key, 1)).await;
    assert!(matches!(refused, Err(CallError::Unavailable { .. })), "{refused:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "long before its deadline: {:?}", started.elapsed());
    server.resume().unwrap();
    for one in waiting {
        one.await.unwrap().unwrap();
    }
}

/// Waits until what is said of Redis is as wanted.
async fn said(redis: &Redis, wanted: impl Fn(Option<&str>) -> bool) {
    let started = Instant::now();
    loop {
        let said = redis.trouble();
        if wanted(said.as_deref()) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{said:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = open(server.config());
    said(&redis, |trouble| trouble.is_none()).await;
    for frozen in [true, false] {
        if frozen {
            server.pause().unwrap();
        } else {
            server.kill().unwrap();
        }
        said(&redis, |trouble| trouble.is_some_and(|trouble| trouble.starts_with("no answer for"))).await;
        let started = Instant::now();
        while redis.metrics().slots.get() != 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "the gauge stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if frozen {
            server.resume().unwrap();
        } else {
            server.restart().await.unwrap();
        }
        said(&redis, |trouble| trouble.is_none()).await;
    }
}

/// Without replicas nobody takes the slots over: first one primary is dead, then two, so that nobody can say so any more, then
/// all.
#[tokio::test]
async fn primaries_that_are_away_are_told() {
    let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
    let mut cluster = RedisCluster::start_with(&options).await.unwrap();
    let redis = open(cluster.config());
    said(&redis, |trouble| trouble.is_none()).await;
    let lost = |thirds: usize| {
        move |trouble: Option<&str>| {
            let slots = trouble.and_then(|trouble| trouble.strip_suffix(" of 16384 slots have no primary"));
            slots.and_then(|slots| slots.parse().ok()).is_some_and(|slots: usize| slots / 5400 == thirds)
        }
    };
    cluster.servers[0].kill().unwrap();
    said(&redis, lost(1)).await;
    cluster.servers[1].kill().unwrap();
    said(&redis, lost(2)).await;
    cluster.servers[2].kill().unwrap();
    said(&redis, |trouble| trouble.is_some_and(|trouble| trouble.starts_with("no answer for"))).await;
}

#[tokio::test]
async fn moved_and_moving_slots_are_followed() {
    let cluster = RedisCluster::start_steady().await.unwrap();
    let redis = open(cluster.patient());
    let client = redis.client(Purpose::Sessions);
    let key = key_of(&redis, &cluster, 0).await;
    assert_eq!(client.call(add(&key, 1)).await, Ok(Value::Integer(1)));
    cluster.move_slot(key.slot(), 1).await.unwrap();
    assert_eq!(client.call(add(&key, 1)).await, Ok(Value::Integer(2)), "MOVED");
    let moved = cluster.servers[1].address();
    let mut slots = redis.watch_slots();
    let seen = slots.wait_for(|slots| slots.owner(key.slot()).is_some_and(|node| node.address == moved));
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap().unwrap();
    cluster.begin_move(key.slot(), 2).await.unwrap();
    let absent = redis.keys().part("test", &redis.keys().tag_in(|slot| slot == key.slot()).unwrap(), "absent");
    assert_eq!(client.call(add(&key, 1)).await, Ok(Value::Integer(3)), "still there");
    assert_eq!(client.call(add(&absent, 5)).await, Ok(Value::Integer(5)), "ASK");
    let answers = client.call_all(vec![add(&absent, 1), add(&key, 1)]).await;
    assert_eq!(answers, [Ok(Value::Integer(6)), Ok(Value::Integer(4))]);
}

#[tokio::test]
async fn a_failover_in_good_order_is_hardly_seen() {
    let cluster = RedisCluster::start().await.unwrap();
    let redis = open(cluster.config());
    let client = redis.client(Purpose::Sessions);
    let key = key_of(&redis, &cluster, 0).await;
    patiently(&client, add(&key, 1)).await;
    let calls = tokio::spawn(async move {
        let (mut longest, stalls) = (Duration::ZERO, Stalls::watch());
        for _ in 0..400 {
            let started = Instant::now();
            patiently(&client, Call::command("GET", &key, []).reading()).await;
            longest = longest.max(started.elapsed().saturating_sub(stalls.since(started)));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    });
    cluster.fail_over(0).await.unwrap();
    let longest = calls.await.unwrap();
    eprintln!("longest read during a failover in good order: {longest:?}");
    assert!(longest < Duration::from_secs(3), "{longest:?}");
}

#[tokio::test]
async fn a_user_of_the_access_control_list_and_tls() {
    let (authority_key, key_pair) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, authority_key);
    let mut params = rcgen::CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    // With the authority's name it would pass for self-signed.
    params.distinguished_name.push(rcgen::DnType::CommonName, "redis");
    let certificate = params.signed_by(&key_pair, &issuer).unwrap().pem();
    let tls = crate::testing::TestTls { authority, certificate, key: key_pair.serialize_pem() };
    let settings = "user default off\nuser admin on >root ~* &* +@all\n\
                    user plenum on >secret resetkeys ~plenum:* resetchannels -@all +@read +@write +@connection +@scripting \
                    +info +cluster|nodes\nmasteruser admin\nmasterauth root\n";
    let server = ServerOptions {
        settings: settings.into(),
        tls: Some(tls.clone()),
        auth: Some(("admin".into(), "root".into())),
    };
    let cluster = RedisCluster::start_with(&ClusterOptions { server, ..ClusterOptions::default() }).await.unwrap();
    let config = |password: &str, prefix: &str| RedisConfig {
        username: Some("plenum".into()),
        password: Some(password.into()),
        tls: Some(tls.client()),
        prefix: prefix.into(),
        ..cluster.patient()
    };
    let redis = open(config("secret", "plenum"));
    let client = redis.client(Purpose::Sessions);
    for id in ["a", "b", "c", "d"] {
        assert_eq!(patiently(&client, add(&key(&redis, id), 1)).await, Value::Integer(1));
    }
    let started = Instant::now();
    let info = loop {
        match client.ask_server(&client.servers()[0].address, "INFO", vec![Value::from("server")]).await {
            Ok(info) => break info,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{error}"),
        }
    };
    assert!(info.as_str().unwrap().contains("run_id"));
    let other = open(config("secret", "other"));
    let refused = loop {
        match other.client(Purpose::Sessions).call(add(&key(&other, "a"), 1)).await {
            Err(CallError::Unavailable { .. }) => {}
            outcome => break outcome,
        }
    };
    assert!(matches!(&refused, Err(CallError::Refused { reply }) if reply.starts_with("NOPERM")), "{refused:?}");
    let short = |config| RedisConfig { deadline: Duration::from_millis(900), ..config };
    let wrong = open(short(config("wrong", "plenum")));
    let outcome = wrong.client(Purpose::Sessions).call(add(&key(&wrong, "a"), 1)).await;
    assert!(matches!(outcome, Err(CallError::Unavailable { .. })), "{outcome:?}");
    let alone = open(RedisConfig {
        layout: Layout::Standalone,
        servers: vec![cluster.servers[0].address()],
        ..short(config("wrong", "plenum"))
    });
    // Until the server was heard, that it was not.
    let started = Instant::now();
    loop {
        let outcome = alone.client(Purpose::Sessions).call(add(&key(&alone, "a"), 1)).await;
        let Err(CallError::Unavailable { reason }) = outcome else { panic!("{outcome:?}") };
        if reason.contains("WRONGPASS") {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{reason}");
    }
}
