use std::io;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{RedisServer, Reply, ServerOptions};
use crate::client::{Address, RedisConfig};
use crate::keys::SLOTS;

/// How a cluster differs from six plain servers.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Silence after which a node counts as failed (default 1 s).
    pub node_timeout: Duration,
    /// Serve what slots there are while others have no server (default true, as `deploy/redis` sets it).
    pub partial: bool,
    /// Replicas of each of the three primaries (default 1).
    pub replicas: usize,
    /// Of each server.
    pub server: ServerOptions,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            node_timeout: Duration::from_secs(1),
            partial: true,
            replicas: 1,
            server: ServerOptions::default(),
        }
    }
}

const PRIMARIES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// A Redis Cluster on loopback: servers 0 to 2 begin as primaries of a third of the slots each, the others as their
/// replicas.
pub struct RedisCluster {
    /// The servers.
    pub servers: Vec<RedisServer>,
    _turn: SemaphorePermit<'static>,
}

/// Clusters that live at once in a process: of more, servers starve on a small machine and are taken for dead.
static TURNS: Semaphore = Semaphore::const_new(2);

impl RedisCluster {
    /// Three primaries, three replicas, node timeout 1 s; ready.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(&ClusterOptions::default()).await
    }

    /// The same with a node timeout of 15 s: on a busy machine nobody is taken for dead, whom a failover would cost writes.
    pub async fn start_steady() -> io::Result<Self> {
        Self::start_with(&ClusterOptions { node_timeout: Duration::from_secs(15), ..ClusterOptions::default() }).await
    }

    /// Starts a cluster and waits until every slot is served and every replica has caught up; before that, until fewer than
    /// two others live in this process.
    pub async fn start_with(options: &ClusterOptions) -> io::Result<Self> {
        let settings = format!(
            "cluster-node-timeout {}\ncluster-require-full-coverage {}\ncluster-replica-validity-factor 0\n\
             cluster-migration-barrier 99\n{}",
            options.node_timeout.as_millis(),
            if options.partial { "no" } else { "yes" },
            if options.server.tls.is_some() { "tls-cluster yes\ntls-replication yes\n" } else { "" },
        );
        let turn = TURNS.acquire().await.map_err(io::Error::other)?;
        let mut servers = Vec::new();
        for _ in 0..PRIMARIES * (1 + options.replicas) {
            let mut server = RedisServer::prepare(&options.server, &settings)?;
            server.launch()?;
            servers.push(server);
        }
        let mut cluster = RedisCluster { servers, _turn: turn };
        for server in &mut cluster.servers {
            server.ready(PATIENCE).await?;
        }
        cluster.join().await?;
        cluster.ready(PATIENCE).await?;
        Ok(cluster)
    }

    async fn join(&self) -> io::Result<()> {
        let share = SLOTS / PRIMARIES as u16 + 1;
        for (n, server) in self.servers.iter().enumerate() {
            server.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]).await?;
            if n < PRIMARIES {
                let first = n as u16 * share;
                let last = (first + share).min(SLOTS) - 1;
                server.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await?;
            }
        }
        let first = &self.servers[0];
        for server in &self.servers[1..] {
            // With TLS among the nodes a node is met at its port with TLS.
            let port = server.address().port.to_string();
            first.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &server.bus_port.to_string()]).await?;
        }
        let all = self.servers.len();
        self.until("all know all", async || {
            for server in &self.servers {
                let nodes = server.ask(&["CLUSTER", "NODES"]).await?;
                let known = nodes.text().lines().filter(|line| !line.contains("handshake")).count();
                if known < all {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        for (n, server) in self.servers.iter().enumerate().skip(PRIMARIES) {
            let primary = self.id(n % PRIMARIES).await?;
            server.ask(&["CLUSTER", "REPLICATE", &primary]).await?;
        }
        Ok(())
    }

    /// Waits until every slot is served and every replica that runs has caught up with its primary.
    pub async fn ready(&self, deadline: Duration) -> io::Result<()> {
        let limit = Instant::now() + deadline;
        self.until("the cluster is ready", async || {
            if Instant::now() > limit {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the cluster is not ready"));
            }
            for server in self.servers.iter().filter(|server| server.pid().is_some()) {
                let info = server.ask(&["CLUSTER", "INFO"]).await?;
                let served = info.text().contains("cluster_state:ok") && info.text().contains("cluster_slots_ok:16384");
                let role = server.ask(&["ROLE"]).await?;
                let synced = match role.list() {
                    [kind, _, _, state, _] if kind.text() == "slave" => state.text() == "connected",
                    _ => true,
                };
                if !served || !synced {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    async fn until(&self, what: &str, done: impl AsyncFn() -> io::Result<bool>) -> io::Result<()> {
        let started = Instant::now();
        loop {
            match done().await {
                Ok(true) => return Ok(()),
                Ok(false) | Err(_) if started.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(false) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("waited in vain until {what}")));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A configuration that finds the cluster.
    pub fn config(&self) -> RedisConfig {
        RedisConfig::cluster(self.addresses())
    }

    /// The same with limits that a busy machine keeps too, for tests that are not about them.
    pub fn patient(&self) -> RedisConfig {
        super::patient(self.config())
    }

    /// Addresses of all servers.
    pub fn addresses(&self) -> Vec<Address> {
        self.servers.iter().map(RedisServer::address).collect()
    }

    /// A server's id in the cluster.
    pub async fn id(&self, server: usize) -> io::Result<String> {
        Ok(self.servers[server].ask(&["CLUSTER", "MYID"]).await?.text().to_owned())
    }

    /// The server that serves a slot, as the first server that runs and answers sees it.
    pub async fn owner(&self, slot: u16) -> io::Result<usize> {
        self.owner_as_seen_by(0..self.servers.len(), slot).await
    }

    async fn owner_as_seen_by(&self, servers: std::ops::Range<usize>, slot: u16) -> io::Result<usize> {
        for server in self.servers[servers].iter().filter(|server| server.pid().is_some()) {
            let Ok(slots) = server.ask(&["CLUSTER", "SLOTS"]).await else { continue };
            for range in slots.list() {
                if let [first, last, node, ..] = range.list()
                    && (first.number()..=last.number()).contains(&i64::from(slot))
                    && let Some(port) = node.list().get(1).map(Reply::number)
                {
                    let found = self.servers.iter().position(|one| i64::from(one.port()) == port);
                    return found.ok_or_else(|| io::Error::other(format!("nobody listens on {port}")));
                }
            }
        }
        Err(io::Error::other(format!("nobody serves slot {slot}")))
    }

    /// The replica of a primary that runs.
    pub async fn replica_of(&self, primary: usize) -> io::Result<usize> {
        let id = self.id(primary).await?;
        let replicas = self.servers[primary].ask(&["CLUSTER", "REPLICAS", &id]).await?;
        let first = replicas.list().first().map_or("", |line| line.text());
        let address = first.split(' ').nth(1).and_then(|place| place.split('@').next()).unwrap_or_default();
        let found = self.servers.iter().position(|server| server.address().to_string() == address);
        found.ok_or_else(|| io::Error::other(format!("no replica: {first}")))
    }

    /// Cuts the replica off, so that what is written from now on is only with the primary: the replica is frozen and its
    /// connection closed. Let it go on ([`RedisServer::resume`]) when the primary is dead, and it takes over without.
    pub async fn cut_replica(&self, primary: usize) -> io::Result<usize> {
        let replica = self.replica_of(primary).await?;
        self.servers[replica].pause()?;
        self.servers[primary].ask(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
        Ok(replica)
    }

    /// Has the primary of a slot hand over to its replica in good order.
    pub async fn fail_over(&self, slot: u16) -> io::Result<()> {
        let before = self.owner(slot).await?;
        let replica = self.replica_of(before).await?;
        self.servers[replica].ask(&["CLUSTER", "FAILOVER"]).await?;
        self.until("the replica has taken over", async || Ok(self.owner(slot).await? == replica)).await
    }

    /// Moves one slot with its keys to another primary.
    pub async fn move_slot(&self, slot: u16, to: usize) -> io::Result<()> {
        let from = self.owner(slot).await?;
        self.begin_move(slot, to).await?;
        let (slot, port) = (slot.to_string(), self.servers[to].address().port.to_string());
        loop {
            let keys = self.servers[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await?;
            let [_, ..] = keys.list() else { break };
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "2000", "KEYS"];
            migrate.extend(keys.list().iter().map(Reply::text));
            self.servers[from].ask(&migrate).await?;
        }
        let ids = [self.id(from).await?, self.id(to).await?];
        for server in [to, from] {
            self.servers[server].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]]).await?;
        }
        self.settle(slot.parse().unwrap_or_default(), ids, [from, to]).await
    }

    /// Waits until both sides of a move agree. On a busy machine an older message may have ended the import before its time: each
    /// server then names the other as the owner for ever, unless the import is begun and ended again.
    async fn settle(&self, slot: u16, [old, new]: [String; 2], [from, to]: [usize; 2]) -> io::Result<()> {
        for attempt in 0..200 {
            let mut agreed = true;
            for server in [from, to] {
                agreed &= self.owner_as_seen_by(server..server + 1, slot).await.is_ok_and(|owner| owner == to);
            }
            if agreed {
                return Ok(());
            }
            if attempt % 20 == 19 {
                let slot = slot.to_string();
                self.servers[to].ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &old]).await?;
                for server in [to, from] {
                    self.servers[server].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &new]).await?;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        Err(io::Error::other(format!("slot {slot} is in dispute")))
    }

    /// Begins to move a slot: from now on its owner points to the other server for keys that it does not have.
    pub async fn begin_move(&self, slot: u16, to: usize) -> io::Result<()> {
        let from = self.owner(slot).await?;
        let (ids, slot) = ([self.id(from).await?, self.id(to).await?], slot.to_string());
        self.servers[to].ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]).await?;
        self.servers[from].ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]).await?;
        Ok(())
    }

    /// Empties every server.
    pub async fn flush(&self) -> io::Result<()> {
        for server in self.servers.iter().filter(|server| server.pid().is_some()) {
            if server.ask(&["ROLE"]).await?.list().first().is_some_and(|role| role.text() == "master") {
                server.ask(&["FLUSHALL"]).await?;
            }
        }
        Ok(())
    }
}
