//! What an operator would look at on Redis: contact, cluster state, slots, copies, memory, a write in every primary, clocks.
//!
//! What is written are keys of this check, one to a primary, that expire within 10 s. `docs/doctor.md` lists the checks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use hashbrown::HashMap;
use plenum_telemetry::Finding;
use tokio::time::{Instant, sleep, timeout};

use crate::client::{
    Address, Call, CallError, Client, ConfigError, Layout, Node, Purpose, Redis, RedisConfig, RedisMetrics, Value,
};
use crate::keys::SLOTS;

/// Life of the keys that are written, milliseconds.
const KEY_LIFE: i64 = 10_000;
/// Oldest server that the settings are made for.
const OLDEST: u32 = 7;
/// Shares of the memory limit beyond which it is worth a line, and beyond which it is late.
const WARNING: f64 = 0.7;
const LIMIT: f64 = 0.9;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Of Redis.
    pub redis: Vec<Finding>,
    /// Server, and how far its clock is ahead of this machine's, milliseconds.
    pub clocks: Vec<(String, i64)>,
}

/// Checks everything. Each step ends within the deadlines of the configuration; finding the cluster within `limit`.
pub async fn check(config: RedisConfig, limit: Duration) -> Checked {
    let mut checked = Checked::default();
    let cluster = config.layout == Layout::Cluster;
    checked.redis = join_all(config.servers.iter().map(|server| reachable(server, config.connect_timeout))).await;
    let redis = match open(config) {
        Ok(redis) => redis,
        Err(error) => {
            checked.redis.push(Finding::failed("settings", error.to_string(), "correct the setting"));
            return checked;
        }
    };
    let mut slots = redis.watch_slots();
    let covered = timeout(limit, slots.wait_for(|slots| slots.covered() == usize::from(SLOTS))).await.is_ok();
    let slots = redis.slots();
    if cluster {
        checked.redis.push(coverage(slots.covered(), slots.primaries().len(), covered));
    }
    let client = redis.client(Purpose::Layout);
    for (findings, clock) in join_all(slots.primaries().iter().map(|node| primary(&redis, &client, node, limit))).await
    {
        checked.redis.extend(findings);
        checked.clocks.extend(clock);
    }
    checked
}

fn open(config: RedisConfig) -> Result<std::sync::Arc<Redis>, ConfigError> {
    let metrics = RedisMetrics::new().map_err(|error| ConfigError::Tls { reason: error.to_string() })?;
    Redis::open(config, metrics)
}

/// A plain connection, so that a seed that is gone is named although others make up for it.
async fn reachable(server: &Address, limit: Duration) -> Finding {
    let subject = format!("server {server}");
    let started = Instant::now();
    let advice = "is it up, and is the address right? Others make up for it while one of the list answers";
    match timeout(limit, tokio::net::TcpStream::connect((server.host.as_str(), server.port))).await {
        Ok(Ok(_)) => Finding::good(subject, format!("connected in {} ms", started.elapsed().as_millis())),
        Ok(Err(error)) => Finding::failed(subject, error.to_string(), advice),
        Err(_) => Finding::failed(subject, format!("no connection within {limit:?}"), advice),
    }
}

fn coverage(covered: usize, primaries: usize, complete: bool) -> Finding {
    let found = format!("{covered} of {SLOTS} slots served by {primaries} primaries");
    match (complete, covered) {
        (true, _) => Finding::good("slots", found),
        (false, 0) => {
            let advice = "is it a cluster (redis.mode), do user and password fit, and may the user run CLUSTER NODES?";
            Finding::failed("slots", "the cluster told no layout", advice)
        }
        (false, _) => {
            let advice = "bring the missing primaries or their replicas back; redis-cli --cluster check says which";
            Finding::failed("slots", found, advice)
        }
    }
}

/// One primary: what it says of itself, and a write.
async fn primary(
    redis: &Redis,
    client: &Client,
    node: &Node,
    limit: Duration,
) -> (Vec<Finding>, Option<(String, i64)>) {
    let cluster = !node.id.is_empty();
    let subject = format!("primary {}", node.address);
    let mut findings = Vec::new();
    let end = Instant::now() + limit;
    match read(client, &node.address, ("INFO", &[]), end).await {
        Ok(info) => {
            findings.push(version(&subject, &info));
            findings.push(copies(&subject, &info, cluster));
            findings.extend(memory(&subject, &info));
            findings.extend(disk(&subject, &info));
        }
        Err(error) => {
            let advice = "is it up, and may the user run INFO? deploy/redis/users.conf lists what a replica needs";
            findings.push(Finding::failed(&*subject, error.to_string(), advice));
            return (findings, None);
        }
    }
    if cluster && let Some(finding) = state(&subject, client, &node.address, end).await {
        findings.push(finding);
    }
    findings.push(write(&subject, redis, node, limit).await);
    (findings, clock(client, &node.address, end).await)
}

/// The lines of an answer to a command that only reads, which is repeated until `end` where it gets none: a connection is made
/// with the first question, and a server may be busy for longer than one command may take.
async fn read(
    client: &Client,
    address: &Address,
    command: (&'static str, &[&'static str]),
    end: Instant,
) -> Result<HashMap<String, String>, CallError> {
    loop {
        let arguments = command.1.iter().copied().map(Value::from).collect();
        match client.ask_server(address, command.0, arguments).await {
            Ok(text) => return Ok(fields(&text.into_string().unwrap_or_default())),
            Err(error @ CallError::Refused { .. }) => return Err(error),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// `name:value` lines.
fn fields(text: &str) -> HashMap<String, String> {
    let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn number(info: &HashMap<String, String>, name: &str) -> u64 {
    info.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn version(subject: &str, info: &HashMap<String, String>) -> Finding {
    let version = info.get("redis_version").map_or("unknown", String::as_str);
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let found = format!("version {version}, {} clients", number(info, "connected_clients"));
    match major >= OLDEST {
        true => Finding::good(subject, found),
        false => Finding::failed(subject, found, format!("Redis {OLDEST} or later is needed")),
    }
}

fn copies(subject: &str, info: &HashMap<String, String>, cluster: bool) -> Finding {
    let replicas = number(info, "connected_slaves");
    let behind =
        (0..replicas).filter(|n| info.get(&format!("slave{n}")).is_some_and(|it| !it.contains("state=online")));
    let (behind, found) = (behind.count() as u64, format!("{replicas} replicas connected"));
    if info.get("role").is_some_and(|role| role != "master") {
        return Finding::failed(subject, "it is no primary any more", "a failover is under way: run this again");
    }
    match (replicas, cluster) {
        (0, true) => {
            Finding::warning(subject, "it has no replica", "add one: when this server dies, its slots have no server")
        }
        _ if behind > 0 => {
            Finding::warning(subject, format!("{found}, {behind} of them not in step"), "look at their logs")
        }
        _ => Finding::good(subject, found),
    }
}

fn memory(subject: &str, info: &HashMap<String, String>) -> Vec<Finding> {
    let (used, most) = (number(info, "used_memory"), number(info, "maxmemory"));
    let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let mut findings = Vec::new();
    if most == 0 {
        let found = format!("{} used, no maxmemory", mebibytes(used));
        findings.push(Finding::warning(subject, found, "set maxmemory: without it the kernel may end the server"));
    } else {
        let (share, found) = (used as f64 / most as f64, format!("{} of {} used", mebibytes(used), mebibytes(most)));
        let advice = "raise maxmemory or add primaries: a full server refuses presence and quotas";
        findings.push(match share {
            share if share > LIMIT => Finding::failed(subject, found, advice),
            share if share > WARNING => Finding::warning(subject, found, advice),
            _ => Finding::good(subject, found),
        });
    }
    let policy = info.get("maxmemory_policy").map_or("unknown", String::as_str);
    if policy != "noeviction" {
        let advice = "set maxmemory-policy noeviction: evicting takes presence of people who are connected, silently";
        findings.push(Finding::failed(subject, format!("maxmemory-policy is {policy}"), advice));
    }
    findings
}

fn disk(subject: &str, info: &HashMap<String, String>) -> Option<Finding> {
    let broken = ["aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"]
        .into_iter()
        .find(|name| info.get(*name).is_some_and(|status| status != "ok"));
    if let Some(name) = broken {
        return Some(Finding::failed(subject, format!("{name} is not ok"), "look at the server's disk and log"));
    }
    (info.get("aof_enabled").map(String::as_str) == Some("0")).then(|| {
        let advice =
            "set appendonly yes: a primary that restarts at once comes back empty, and its replica copies that";
        Finding::warning(subject, "it keeps no append-only file", advice)
    })
}

async fn state(subject: &str, client: &Client, address: &Address, end: Instant) -> Option<Finding> {
    let state = match read(client, address, ("CLUSTER", &["INFO"]), end).await {
        Ok(state) => state,
        Err(error) => return Some(Finding::failed(subject, error.to_string(), "may the user run CLUSTER INFO?")),
    };
    let (broken, suspected) = (number(&state, "cluster_slots_fail"), number(&state, "cluster_slots_pfail"));
    match state.get("cluster_state").map_or("unknown", String::as_str) {
        "ok" if broken + suspected == 0 => None,
        found => {
            let found = format!("cluster_state {found}, {broken} slots failed, {suspected} suspected");
            Some(Finding::failed(subject, found, "bring the missing nodes back; redis-cli --cluster check says which"))
        }
    }
}

/// Writes a key in one of the primary's slots and reads it again.
async fn write(subject: &str, redis: &Redis, node: &Node, limit: Duration) -> Finding {
    let slots = redis.slots();
    let owned = |slot| slots.owner(slot).is_some_and(|owner| owner.address == node.address);
    let Some(tag) = redis.keys().tag_in(owned) else {
        return Finding::failed(subject, "it serves no slot", "run this again");
    };
    let key = redis.keys().key("doctor", &tag);
    let client = redis.client(Purpose::Results).with_deadline(limit);
    let started = Instant::now();
    let value = format!("{:x}", rand::random::<u64>());
    let life = [Value::from(value.as_str()), Value::from("PX"), Value::Integer(KEY_LIFE)];
    let done = async {
        client.call(Call::command("SET", &key, life).repeatable()).await?;
        client.call(Call::command("GET", &key, []).reading()).await
    };
    match done.await {
        Ok(read) if read.as_string().as_deref() == Some(value.as_str()) => {
            let took = started.elapsed().as_secs_f64() * 1e3;
            Finding::good(subject, format!("a key was written and read in {took:.1} ms"))
        }
        Ok(_) => Finding::failed(subject, "what was written was not read", "does something else use the same prefix?"),
        Err(error) => {
            let advice = "does the server refuse writes (memory, disk, min-replicas), or lack the user a right?";
            Finding::failed(subject, error.to_string(), advice)
        }
    }
}

async fn clock(client: &Client, address: &Address, end: Instant) -> Option<(String, i64)> {
    let (answer, middle) = loop {
        let asked = unix_ms();
        match client.ask_server(address, "TIME", Vec::new()).await {
            Ok(answer) => break (answer, asked.midpoint(unix_ms())),
            Err(CallError::Refused { .. }) => return None,
            Err(_) if Instant::now() >= end => return None,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    let parts = answer.into_array();
    let part = |index: usize| parts.get(index).and_then(Value::as_string).and_then(|text| text.parse::<i64>().ok());
    Some((address.to_string(), part(0)? * 1000 + part(1)? / 1000 - middle))
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use plenum_telemetry::State;

    use super::*;
    use crate::testing::{ClusterOptions, RedisCluster, RedisServer};

    fn failed(checked: &Checked) -> Vec<&Finding> {
        checked.redis.iter().filter(|finding| finding.state == State::Failed).collect()
    }

    #[tokio::test]
    async fn a_cluster_is_good_until_a_primary_is_gone() {
        let options = ClusterOptions { replicas: 0, ..ClusterOptions::default() };
        let mut cluster = RedisCluster::start_with(&options).await.unwrap();
        let well = check(cluster.patient(), Duration::from_secs(30)).await;
        // The test's servers evict nothing by default, and have no limit and no disk: warnings.
        assert_eq!(failed(&well), Vec::<&Finding>::new());
        let found = |checked: &Checked, text: &str| checked.redis.iter().filter(|it| it.found.contains(text)).count();
        assert_eq!(
            (found(&well, "written and read"), found(&well, "no maxmemory"), found(&well, "no replica")),
            (3, 3, 3)
        );
        assert_eq!(found(&well, "16384 of 16384 slots served by 3 primaries"), 1);
        assert_eq!(well.clocks.len(), 3);
        assert!(well.clocks.iter().all(|(_, ahead)| ahead.abs() < 5_000), "{:?}", well.clocks);

        cluster.servers[1].kill().unwrap();
        let gone = cluster.servers[1].address().to_string();
        // The others need their time to agree that it is gone.
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut ill = check(cluster.config(), Duration::from_secs(5)).await;
        // Nor does one that is slow to answer count.
        let told = |ill: &Checked| failed(ill).iter().any(|finding| finding.advice.contains("bring the missing"));
        while !(told(&ill) && found(&ill, "written and read") == 2) {
            assert!(Instant::now() < deadline, "{ill:#?}");
            ill = check(cluster.config(), Duration::from_secs(5)).await;
        }
        let failed = failed(&ill);
        assert!(failed.iter().any(|finding| finding.subject == format!("server {gone}")), "{failed:#?}");
    }

    #[tokio::test]
    async fn settings_that_lose_data_are_named() {
        let server = RedisServer::start().await.unwrap();
        for setting in [["maxmemory", "100mb"], ["maxmemory-policy", "allkeys-lru"]] {
            server.ask(&["CONFIG", "SET", setting[0], setting[1]]).await.unwrap();
        }
        let checked = check(server.patient(), Duration::from_secs(30)).await;
        let failed = failed(&checked);
        assert_eq!(failed.len(), 1, "{failed:#?}");
        assert_eq!(failed[0].found, "maxmemory-policy is allkeys-lru");
    }

    #[tokio::test]
    async fn a_server_that_is_busy_for_a_moment_is_asked_again() {
        let server = RedisServer::start().await.unwrap();
        let config = RedisConfig { command_timeout: Duration::from_millis(100), ..server.config() };
        let redis = open(config).unwrap();
        let (client, address) = (redis.client(Purpose::Layout), server.address());
        let end = Instant::now() + Duration::from_secs(60);
        read(&client, &address, ("INFO", &[]), end).await.unwrap();
        server.pause().unwrap();
        let now = read(&client, &address, ("INFO", &[]), Instant::now()).await;
        assert!(now.is_err(), "the case shows nothing: {now:?}");
        let (answer, ()) = tokio::join!(read(&client, &address, ("INFO", &[]), end), async {
            sleep(Duration::from_millis(500)).await;
            server.resume().unwrap();
        });
        assert_eq!(version("", &answer.unwrap()).state, State::Good);
    }

    #[tokio::test]
    async fn a_wrong_password_is_a_failure_and_not_shown() {
        let server = RedisServer::start().await.unwrap();
        server.ask(&["CONFIG", "SET", "requirepass", "right"]).await.unwrap();
        let config = RedisConfig { password: Some("wrong-password".into()), ..server.config() };
        let checked = check(config, Duration::from_secs(1)).await;
        assert!(!failed(&checked).is_empty());
        assert!(!format!("{checked:?}").contains("wrong-password"));
    }
}
