//! Updates sessions by compare-and-set until its standard input ends, then says as JSON what became of them: for faults that
//! others cause meanwhile. Another client reads the sessions beside the writers; after the line `rest` nobody uses them any
//! more, so that only a store that looks by itself can tell what was lost then.
//!
//! `REDIS_USER=… REDIS_PASSWORD=… updates HOST:PORT …`

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plenum_channels::{SessionError, Sessions};
use plenum_sessions_redis::client::{Address, Redis, RedisConfig, RedisMetrics};
use plenum_sessions_redis::{RedisSessions, SessionLoss};
use serde_json::json;
use tokio::sync::{broadcast, watch};

const SESSIONS: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3600);
/// Between two reads of all sessions.
const READ_EVERY: Duration = Duration::from_millis(200);
/// How long the last look at a session is tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a report is waited for.
const REPORTED_WITHIN: Duration = Duration::from_secs(15);

/// What one session's writer saw.
#[derive(Default)]
struct Seen {
    /// Newest version that was acknowledged, or told of since.
    version: u64,
    acknowledged: u64,
    /// Calls that ended with a temporary error or an unknown outcome.
    unanswered: u64,
    /// Times that the store said that it went back, and updates that were lost by that.
    told: u64,
    lost: u64,
    /// Updates that were gone without a word.
    silent: u64,
    stall: Duration,
}

impl Seen {
    /// The store says, or shows, that this is the version.
    fn found(&mut self, version: u64) {
        self.silent += self.version.saturating_sub(version);
        self.version = version;
    }

    fn fails(&mut self, error: SessionError) {
        match error {
            SessionError::WentBack { known, found } => {
                self.told += 1;
                self.lost += known.saturating_sub(found);
                self.version = found;
            }
            SessionError::Conflict { found, .. } | SessionError::Exists { version: found } => self.found(found),
            SessionError::NotFound => self.found(0),
            _ => self.unanswered += 1,
        }
    }
}

/// Writes until all rest; says then what it was told and saw.
async fn write(sessions: Arc<RedisSessions>, id: String, rest: watch::Receiver<bool>) -> Seen {
    let (mut seen, mut last) = (Seen::default(), Instant::now());
    while !*rest.borrow() {
        let state = seen.version.to_string().into();
        let outcome = match seen.version {
            0 => sessions.create(&id, "somebody", state, TTL).await.map(|()| 1),
            version => sessions.update(&id, version, state, TTL).await,
        };
        match outcome {
            Ok(version) => {
                (seen.version, seen.acknowledged) = (version, seen.acknowledged + 1);
                seen.stall = seen.stall.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => seen.fails(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    seen
}

/// The version of a session past all that the clients before remember; 0: none is there.
async fn version(sessions: &RedisSessions, id: &str) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match sessions.get(id).await {
            Ok(stored) => return stored.version,
            Err(SessionError::NotFound) => return 0,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    panic!("session {id} cannot be read");
}

/// Reads all sessions again and again until all rest; the version that it saw last of each.
async fn read(sessions: Arc<RedisSessions>, rest: watch::Receiver<bool>) -> HashMap<String, u64> {
    let mut newest = HashMap::new();
    while !*rest.borrow() {
        for id in (0..SESSIONS).map(name) {
            match sessions.get(&id).await {
                Ok(stored) => newest.insert(id, stored.version),
                Err(SessionError::WentBack { found, .. }) => newest.insert(id, found),
                Err(_) => None,
            };
        }
        tokio::time::sleep(READ_EVERY).await;
    }
    newest
}

fn name(n: usize) -> String {
    format!("update {n}")
}

/// Of the versions that a client knew when all began to rest: updates lost since, sessions that it reported, and sessions of which
/// it did not say so within [`REPORTED_WITHIN`].
async fn resting(
    known: &HashMap<String, u64>,
    fresh: &RedisSessions,
    losses: &mut broadcast::Receiver<SessionLoss>,
) -> (u64, u64, u64) {
    let (mut lost, mut waiting) = (0, HashMap::new());
    for (id, known) in known {
        let found = version(fresh, id).await;
        lost += known.saturating_sub(found);
        if found < *known {
            waiting.insert(id.as_str(), *known);
        }
    }
    let (all, deadline) = (waiting.len() as u64, tokio::time::Instant::now() + REPORTED_WITHIN);
    while !waiting.is_empty() {
        match tokio::time::timeout_at(deadline, losses.recv()).await {
            Ok(Ok(loss)) if waiting.get(&*loss.id).is_some_and(|known| *known <= loss.known) => {
                waiting.remove(&*loss.id);
            }
            Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => {}
            Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => break,
        }
    }
    (lost, all - waiting.len() as u64, waiting.len() as u64)
}

/// Waits for a line; false where the input has ended.
async fn line() -> Result<bool, Box<dyn std::error::Error>> {
    Ok(tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await?? > 0)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut servers = Vec::new();
    for server in std::env::args().skip(1) {
        let (host, port) = server.rsplit_once(':').ok_or("HOST:PORT")?;
        servers.push(Address { host: host.into(), port: port.parse()? });
    }
    let config = RedisConfig {
        username: std::env::var("REDIS_USER").ok(),
        password: std::env::var("REDIS_PASSWORD").ok().map(Into::into),
        ..RedisConfig::cluster(servers)
    };
    let open = || Redis::open(config.clone(), RedisMetrics::new()?).map_err(Box::<dyn std::error::Error>::from);
    let (writing, reading, fresh) = (open()?, open()?, open()?);
    let (writer, reader) = (RedisSessions::new(&writing), RedisSessions::new(&reading));
    let (mut by_writer, mut by_reader) = (writer.losses(), reader.losses());
    let (rest, rests) = watch::channel(false);
    let writers = (0..SESSIONS).map(|n| tokio::spawn(write(writer.clone(), name(n), rests.clone())));
    let writers: Vec<_> = writers.collect();
    let read = tokio::spawn(read(reader.clone(), rests));
    let mut goes_on = line().await?;
    rest.send_replace(true);
    let (mut all, mut written) = (Seen::default(), HashMap::new());
    for (n, writer) in writers.into_iter().enumerate() {
        let seen = writer.await?;
        written.insert(name(n), seen.version);
        all.acknowledged += seen.acknowledged;
        all.unanswered += seen.unanswered;
        all.told += seen.told;
        all.lost += seen.lost;
        all.silent += seen.silent;
        all.stall = all.stall.max(seen.stall);
    }
    let read = read.await?;
    while goes_on {
        println!("resting");
        goes_on = line().await?;
    }
    // It remembers nothing, and so shows what is there.
    let fresh = RedisSessions::new(&fresh);
    let (lost, told, silent) = resting(&written, &fresh, &mut by_writer).await;
    let (_, read_told, read_silent) = resting(&read, &fresh, &mut by_reader).await;
    let report = json!({
        "acknowledged": all.acknowledged, "unanswered": all.unanswered, "told": all.told + told, "lost": all.lost + lost,
        "silent": all.silent + silent, "stall": all.stall.as_secs_f64(), "reader": { "told": read_told, "silent": read_silent },
    });
    println!("{report}");
    Ok(())
}
