//! Sessions, presence, quotas and results on Redis, standalone or as a cluster. Redis is shared, fast and
//! reconstructible: nothing that a user was promised lives only here. The only crate that names fred.
//!
//! [`client::Redis::open`] gives one [`client::Client`] per [`client::Purpose`]; all share the cluster's layout, and each
//! has connections of its own. A store names its keys with [`keys::Keys`] (a hash tag per session, user or channel), and
//! calls either single commands or a [`script::Script`] on keys of one tag:
//!
//! ```no_run
//! use plenum_sessions_redis::client::{Call, Purpose, Redis, RedisConfig, RedisMetrics, Value};
//! use plenum_sessions_redis::script::Script;
//!
//! static TOUCH: Script = Script::new("touch/1", "return redis.call('PEXPIRE', KEYS[1], ARGV[1])");
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = RedisConfig::cluster(vec!["127.0.0.1:7000".parse()?]);
//! let redis = Redis::open(config, RedisMetrics::new()?)?;
//! let client = redis.client(Purpose::Presence);
//! let tag = redis.keys().tag(&["channel"]);
//! let key = redis.keys().part("p", &tag, "r");
//! let read = client.call(Call::command("HGETALL", &key, []).reading()).await?;
//! let touch = Call::script(&TOUCH, &[&key], [Value::Integer(60_000)]).repeatable();
//! for answer in client.call_all(vec![touch]).await {
//!     answer?;
//! }
//! # let _ = read;
//! // Watching servers: each primary with its id and epoch, a tag in one server's slots, a command without a key.
//! for node in redis.slots().primaries() {
//!     let canary = redis.keys().tag_in(|slot| redis.slots().owner(slot).is_some_and(|owner| owner.id == node.id));
//!     let info = client.ask_server(&node.address, "INFO", vec![Value::from("server")]).await?;
//!     # let _ = (canary, info);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Outcomes ([`client::CallError`]): `Unavailable` (nothing was executed), `Indeterminate` (sent, no answer; never for a call that is
//! [`reading`](client::Call::reading)), `Refused` (a right is missing, or a mistake). A call is executed at most once
//! unless it is `reading` or [`repeatable`](client::Call::repeatable); it follows moved slots, loads scripts and waits
//! for a failover until its deadline of 0.9 s. [`testing`] runs real servers. `docs/redis.md` is the manual.

pub mod check;
pub mod client;
mod copies;
pub mod keys;
pub mod presence;
pub mod quotas;
mod results;
pub mod script;
mod sessions;
mod tails;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use copies::RedisCopies;
pub use results::{RESULT_TTL, RedisResults};
pub use sessions::{RedisSessions, SessionLoss};
pub use tails::RedisTails;
