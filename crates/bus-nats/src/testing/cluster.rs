use std::io;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, Stream};

use super::server::again_if_taken;
use super::{NatsServer, Proxy, ServerOptions, free_port};

/// How long a stream may take to come about and to have a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a cluster differs from a plain one of three with JetStream.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Number of servers (default 3).
    pub size: usize,
    /// Routes go through proxies, so that a test can slow, stall and cut them (default false).
    pub proxied_routes: bool,
    /// Tell clients the addresses of the other servers (default true); false when clients go through proxies.
    pub advertise_clients: bool,
    /// Of each server.
    pub server: ServerOptions,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions { size: 3, proxied_routes: false, advertise_clients: true, server: ServerOptions::default() }
    }
}

/// A NATS cluster on loopback. Members are named `n0`, `n1` and so on.
pub struct NatsCluster {
    /// The members.
    pub servers: Vec<NatsServer>,
    /// Of each pair `(lower, higher)` of members, when routes are proxied.
    routes: Vec<((usize, usize), Proxy)>,
    jetstream: bool,
}

impl NatsCluster {
    /// Three members with JetStream, ready.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(ClusterOptions::default()).await
    }

    /// Three members with JetStream, ready, with a proxy on each route.
    pub async fn start_proxied() -> io::Result<Self> {
        Self::start_with(ClusterOptions { proxied_routes: true, ..ClusterOptions::default() }).await
    }

    /// Starts a cluster and waits until all members are ready.
    pub async fn start_with(options: ClusterOptions) -> io::Result<Self> {
        again_if_taken(async || Self::try_start(&options).await).await
    }

    async fn try_start(options: &ClusterOptions) -> io::Result<Self> {
        let ports = (0..options.size).map(|_| free_port()).collect::<io::Result<Vec<u16>>>()?;
        let mut routes = Vec::new();
        if options.proxied_routes {
            for higher in 0..options.size {
                for (lower, port) in ports.iter().enumerate().take(higher) {
                    routes.push(((lower, higher), Proxy::start(format!("127.0.0.1:{port}")).await?));
                }
            }
        }
        let mut cluster = NatsCluster { servers: Vec::new(), routes, jetstream: options.server.jetstream };
        for member in 0..options.size {
            let block = cluster.block(member, &ports, options);
            cluster.servers.push(NatsServer::prepare(&format!("n{member}"), &options.server, &block)?);
        }
        for server in &mut cluster.servers {
            server.launch()?;
        }
        cluster.ready(Duration::from_secs(60)).await?;
        Ok(cluster)
    }

    /// The `cluster` block of one member. With proxies each pair has one route, made by its higher member through the
    /// proxy, and the advertised address leads nowhere, so that gossip makes no route around the proxy.
    fn block(&self, member: usize, ports: &[u16], options: &ClusterOptions) -> String {
        let addresses: Vec<String> = if options.proxied_routes {
            let lower = self.routes.iter().filter(|((_, higher), _)| *higher == member);
            let mut lower: Vec<String> = lower.map(|(_, proxy)| proxy.address()).collect();
            if lower.is_empty() {
                // JetStream insists on a configured route; one to itself is recognized and dropped.
                lower.push(format!("127.0.0.1:{}", ports[member]));
            }
            lower
        } else {
            let others = ports.iter().enumerate().filter(|(other, _)| *other != member);
            others.map(|(_, port)| format!("127.0.0.1:{port}")).collect()
        };
        let routes: Vec<String> = addresses.iter().map(|address| format!("nats-route://{address}")).collect();
        let mut block = format!("cluster {{\nname: plenum-test\nlisten: 127.0.0.1:{}\n", ports[member]);
        block += &format!("routes: [{}]\n", routes.join(", "));
        if options.proxied_routes {
            block += "advertise: \"127.0.0.1:9\"\n";
        }
        if !options.advertise_clients {
            block += "no_advertise: true\n";
        }
        block + "}\n"
    }

    /// Waits until all members that run are healthy and have a leader for the cluster's own state.
    pub async fn ready(&mut self, deadline: Duration) -> io::Result<()> {
        let started = Instant::now();
        for server in self.servers.iter_mut().filter(|server| server.pid().is_some()) {
            server.ready(deadline.saturating_sub(started.elapsed())).await?;
        }
        while self.jetstream && !self.led().await {
            if started.elapsed() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the members have no common leader"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Whether all members that run name the same leader of the cluster's own state, and it hears all that run.
    async fn led(&self) -> bool {
        let mut names = Vec::new();
        let mut heard = 0;
        let running = || self.servers.iter().filter(|server| server.pid().is_some());
        for server in running() {
            let answer = server.monitor("/jsz").await.unwrap_or_default();
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let meta = serde_json::from_str(body).unwrap_or(serde_json::Value::Null)["meta_cluster"].take();
            let Some(leader) = meta["leader"].as_str().filter(|leader| !leader.is_empty()) else { return false };
            if leader == server.name() {
                let replicas = meta["replicas"].as_array().map_or(&[][..], Vec::as_slice);
                heard = 1 + replicas.iter().filter(|one| one["current"] == true && one["offline"] != true).count();
            }
            names.push(leader.to_owned());
        }
        names.dedup();
        names.len() == 1 && heard >= running().count()
    }

    /// Addresses of all members.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }

    /// The member with this name.
    pub fn member_named(&self, name: &str) -> Option<usize> {
        self.servers.iter().position(|server| server.name() == name)
    }

    /// The member that leads a stream now, as `client` is told within 2 s.
    pub async fn stream_leader(&self, client: &async_nats::Client, stream: &str) -> Option<usize> {
        let ask = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
        let answer = tokio::time::timeout(Duration::from_secs(2), ask).await.ok()?.ok()?;
        let info: serde_json::Value = serde_json::from_slice(&answer.payload).ok()?;
        self.member_named(info["cluster"]["leader"].as_str()?)
    }

    /// The same, asked until there is one.
    pub async fn leader_of(&self, client: &async_nats::Client, stream: &str) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            if let Some(leader) = self.stream_leader(client, stream).await {
                return Ok(leader);
            }
            if started.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nobody leads {stream}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has a stream led by another server than `away`; gives its leader.
    pub async fn lead_elsewhere(&self, client: &async_nats::Client, stream: &str, away: usize) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            let leader = self.leader_of(client, stream).await?;
            if leader != away {
                return Ok(leader);
            }
            if started.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("n{away} stays the leader of {stream}")));
            }
            // It may take long on slow routes, and nobody answers while there is no leader; its name says whether it happened.
            let ask = client.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}"), "".into());
            let _ = tokio::time::timeout(Duration::from_secs(3), ask).await;
        }
    }

    /// Makes a stream whose leader hears what `client` publishes on `subject`: right after the answer neither need be so on a
    /// busy machine. Stores nothing.
    pub async fn make_stream(client: &async_nats::Client, config: Config, subject: &'static str) -> io::Result<Stream> {
        let context = async_nats::jetstream::new(client.clone());
        let started = Instant::now();
        loop {
            // The leader refuses what it is to put into another stream; where nobody listens nobody refuses.
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Expected-Stream", "another");
            let failed = match context.create_stream(config.clone()).await {
                Ok(stream) => match client.request_with_headers(subject, headers, "".into()).await {
                    Ok(_) => return Ok(stream),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if started.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, failed));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The proxy on the route between two members; `None` without proxied routes.
    pub fn route(&self, one: usize, other: usize) -> Option<&Proxy> {
        let pair = (one.min(other), one.max(other));
        self.routes.iter().find(|(members, _)| *members == pair).map(|(_, proxy)| proxy)
    }

    /// The proxies on all routes of a member; empty without proxied routes.
    pub fn routes_of(&self, member: usize) -> impl Iterator<Item = &Proxy> {
        self.routes
            .iter()
            .filter(move |((lower, higher), _)| [*lower, *higher].contains(&member))
            .map(|(_, proxy)| proxy)
    }

    /// Kills a member (SIGKILL).
    pub fn kill(&mut self, member: usize) -> io::Result<()> {
        self.servers[member].kill()
    }

    /// Starts a member again and waits until it is ready. With fewer than a majority running use
    /// [`launch`](Self::launch) for each, then [`ready`](Self::ready).
    pub async fn restart(&mut self, member: usize) -> io::Result<()> {
        self.servers[member].restart().await
    }

    /// Starts a member that does not run, without waiting for it.
    pub fn launch(&mut self, member: usize) -> io::Result<()> {
        self.servers[member].launch()
    }
}
