use std::sync::Arc;
use std::time::Duration;

use plenum_telemetry::{Finding, State};

use super::*;
use crate::control::NatsControl;
use crate::ledger::NatsLedger;
use crate::log::{GroupConfig, NatsLog, PoolLinks};
use crate::pool::Credentials;
use crate::replicas::NatsReplicas;
use crate::testing::{NatsCluster, NatsServer, ServerOptions};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(urls: Vec<String>, replicas: u32) -> CheckConfig {
    let groups = vec![GroupConfig { max_bytes: None, shards: 2, ..GroupConfig::default() }];
    CheckConfig {
        pool: PoolConfig { inbox_prefix: "_INBOX_plenum".into(), ..PoolConfig::new(urls) },
        log: LogConfig { replicas, groups, ..LogConfig::default() },
        ledger: LedgerConfig { prefix: "plenum".into(), replicas, max_bytes: None },
        largest: 65_536,
        limit: Duration::from_secs(20),
    }
}

/// A replica, as far as NATS is concerned.
struct Replica {
    _log: Arc<NatsLog>,
    _replicas: Arc<NatsReplicas>,
}

async fn replica(config: &CheckConfig) -> Replica {
    let pool = Pool::connect(config.pool.clone()).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let links = PoolLinks::new(pool);
    let replicas = NatsReplicas::start(links.clone(), "plenum");
    let end = Instant::now() + PATIENCE;
    let log = loop {
        match NatsLog::start(links.clone(), config.log.clone()).await {
            Ok(log) => break log,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    };
    while let Err(error) = NatsLedger::start(links.clone(), &config.ledger).await {
        assert!(Instant::now() < end, "{error}");
    }
    Replica { _log: log, _replicas: replicas }
}

fn bad(checked: &Checked) -> Vec<&Finding> {
    checked.nats.iter().filter(|finding| finding.state > State::Skipped).collect()
}

/// Until ticks and the servers' clocks are there, on a machine that is busy; gives the last result.
async fn until_good(config: &CheckConfig) -> Checked {
    let end = Instant::now() + PATIENCE;
    loop {
        let checked = check(config).await;
        let clocks = !checked.clocks.is_empty() && checked.clocks.iter().all(|clock| clock.state == State::Good);
        if bad(&checked).is_empty() && clocks || Instant::now() > end {
            return checked;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_good_until_a_server_is_gone() {
    let mut cluster = NatsCluster::start().await.unwrap();
    let config = config(cluster.servers.iter().map(NatsServer::url).collect(), 3);
    let empty = check(&config).await;
    let found: Vec<_> = bad(&empty).iter().map(|finding| (&*finding.subject, finding.state)).collect();
    let warned = ["record plenum-cluster", "ledger", "replicas"].map(|subject| (subject, State::Warning));
    assert_eq!(found, warned, "{empty:#?}");
    let _running = replica(&config).await;
    let well = until_good(&config).await;
    assert_eq!((bad(&well), well.replicas), (vec![], Some(1)), "{well:#?}");
    assert!(well.nats.iter().any(|finding| finding.found.starts_with("2 with 3 copies each, leaders n")), "{well:#?}");
    assert!(!well.clocks.is_empty() && well.clocks.iter().all(|clock| clock.state == State::Good), "{well:#?}");

    let changed = CheckConfig {
        log: LogConfig {
            groups: vec![GroupConfig { shards: 3, ..config.log.groups[0].clone() }],
            ..config.log.clone()
        },
        ..config.clone()
    };
    let changed = check(&changed).await;
    assert!(bad(&changed).iter().any(|finding| finding.found.contains("cannot be changed")), "{changed:#?}");

    cluster.servers[2].kill().unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let ill = check(&CheckConfig { limit: Duration::from_secs(3), ..config.clone() }).await;
        let bad = bad(&ill);
        let server = bad.iter().any(|finding| finding.subject.starts_with("server ") && finding.state == State::Failed);
        let copy = bad.iter().any(|finding| finding.found.starts_with("the copy on n2 is silent"));
        if server && copy {
            break;
        }
        assert!(Instant::now() < end, "{ill:#?}");
    }
}

/// Under exactly the documented rights everything is good; each right that is taken away is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_permissions_are_named() {
    let account = include_str!("../../../../deploy/nats/plenum.conf").replace("$PLENUM_NATS_PASSWORD", "secret");
    for missing in ["", "\"plenum.live.>\"", "\"$JS.API.DIRECT.GET.*\"", "\"$KV.plenum-cluster.>\""] {
        let settings = match missing {
            "" => account.clone(),
            // The first is the right to publish.
            missing => account.replacen(missing, "\"something.else\"", 1),
        };
        let server = NatsServer::start_with(ServerOptions { settings, ..ServerOptions::default() }).await.unwrap();
        let mut config = config(vec![server.url()], 1);
        config.pool.credentials = Credentials::UserPassword { user: "plenum".into(), password: "secret".into() };
        let running = match missing {
            "" => Some(replica(&config).await),
            _ => None,
        };
        let checked = if running.is_some() { until_good(&config).await } else { check(&config).await };
        let denied: Vec<_> = bad(&checked).into_iter().filter(|finding| finding.subject == "permissions").collect();
        if missing.is_empty() {
            assert_eq!(bad(&checked), Vec::<&Finding>::new());
        } else {
            let name = missing.trim_matches(['"', '*', '>', '.']);
            assert!(denied.len() == 1 && denied[0].found.contains(name), "{missing}: {checked:#?}");
        }
        assert!(!format!("{checked:?}").contains("secret"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_check_sends_changes_nothing_and_disturbs_nobody() {
    let server = NatsServer::start().await.unwrap();
    let config = config(vec![server.url()], 1);
    let _running = replica(&config).await;
    let pool = Pool::connect(config.pool.clone()).await.unwrap();
    pool.wait_ready(PATIENCE).await.unwrap();
    let control = NatsControl::start(PoolLinks::new(pool.clone()), "plenum").await.unwrap();
    let members = control.members();
    let client = pool.any();
    let state = async || {
        let info = js_api::<Value>(&client, "STREAM.INFO.KV_plenum-ledger", &()).await.unwrap();
        let names = js_api::<Value>(&client, "STREAM.NAMES", &()).await.unwrap();
        (info["state"]["last_seq"].clone(), names["streams"].clone())
    };
    let before = state().await;
    check(&config).await;
    assert_eq!(state().await, before);
    assert_eq!(control.members(), members);
}

#[tokio::test]
async fn a_monitoring_port_tells_of_disk_and_sync() {
    for (settings, always) in [("max_file: 1G", false), ("max_file: 1G\nsync_interval: always", true)] {
        let options = ServerOptions { jetstream_settings: settings.into(), ..ServerOptions::default() };
        let server = NatsServer::start_with(options).await.unwrap();
        let answer = server.monitor("/jsz").await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let findings = monitoring("n0", body).unwrap();
        assert!(findings[0].found.ends_with("of 1.0 GiB") || findings[0].found.contains("of 953"), "{findings:?}");
        assert_eq!(findings[1].state == State::Good, always, "{findings:?}");
    }
    assert!(monitoring("n0", "<html>").is_err());
    let full = r#"{"config": {"max_storage": 100}, "storage": 95}"#;
    assert_eq!(monitoring("n0", full).unwrap()[0].state, State::Failed);
}
