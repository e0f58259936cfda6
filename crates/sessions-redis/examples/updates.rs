//! Updates sessions by compare-and-set until its standard input ends, then says as JSON what became of them: for faults that
//! others cause meanwhile.
//!
//! `REDIS_USER=… REDIS_PASSWORD=… updates HOST:PORT …`

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plenum_channels::{SessionError, Sessions};
use plenum_sessions_redis::RedisSessions;
use plenum_sessions_redis::client::{Address, Redis, RedisConfig, RedisMetrics};
use serde_json::json;
use tokio::sync::watch;

const SESSIONS: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);
const TTL: Duration = Duration::from_secs(3600);
/// How long the last look at a session is tried.
const PATIENCE: Duration = Duration::from_secs(60);

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

async fn write(sessions: Arc<RedisSessions>, id: String, end: watch::Receiver<bool>) -> Seen {
    let (mut seen, mut last) = (Seen::default(), Instant::now());
    while !*end.borrow() {
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
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match sessions.get(&id).await {
            Ok(stored) => {
                seen.found(stored.version);
                return seen;
            }
            Err(SessionError::NotFound) => {
                seen.found(0);
                return seen;
            }
            Err(error) => seen.fails(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("session {id} cannot be read");
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
    let redis = Redis::open(config, RedisMetrics::new()?)?;
    let sessions = RedisSessions::new(&redis);
    let (end, ended) = watch::channel(false);
    let writers = (0..SESSIONS).map(|n| tokio::spawn(write(sessions.clone(), format!("update {n}"), ended.clone())));
    let writers: Vec<_> = writers.collect();
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    end.send_replace(true);
    let mut all = Seen::default();
    for writer in writers {
        let seen = writer.await?;
        all.acknowledged += seen.acknowledged;
        all.unanswered += seen.unanswered;
        all.told += seen.told;
        all.lost += seen.lost;
        all.silent += seen.silent;
        all.stall = all.stall.max(seen.stall);
    }
    let report = json!({
        "acknowledged": all.acknowledged, "unanswered": all.unanswered, "told": all.told, "lost": all.lost,
        "silent": all.silent, "stall": all.stall.as_secs_f64(),
    });
    println!("{report}");
    Ok(())
}
