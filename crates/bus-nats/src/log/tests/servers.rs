//! NATS servers for the tests of the log.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::{FixedLinks, GroupConfig, LogConfig, NatsLog};

fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One server, or three that form a cluster. They end when this is dropped.
pub struct Servers {
    nodes: Vec<Node>,
    folder: PathBuf,
}

struct Node {
    port: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Servers {
    pub async fn start(count: usize) -> Arc<Self> {
        let folder = std::env::temp_dir().join(format!("plenum-nats-{:016x}", rand::random::<u64>()));
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let routes: Vec<String> = ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}")).collect();
        let node = |(index, (port, route)): (usize, &(u16, u16))| {
            let store = folder.join(index.to_string());
            let mut arguments: Vec<String> = ["-a", "127.0.0.1", "-js", "-p"].into_iter().map(str::to_owned).collect();
            arguments.extend([port.to_string(), "-sd".into(), store.display().to_string()]);
            arguments.extend(["-n".into(), format!("n{index}")]);
            if count > 1 {
                let cluster = format!("nats://127.0.0.1:{route}");
                arguments.extend(["--cluster_name".into(), "test".into(), "--cluster".into(), cluster]);
                arguments.extend(["--routes".into(), routes.join(",")]);
            }
            Node { port: *port, arguments, process: None }
        };
        let mut servers = Self { nodes: ports.iter().enumerate().map(node).collect(), folder };
        for node in &mut servers.nodes {
            node.start();
        }
        servers.until_ready().await;
        Arc::new(servers)
    }

    pub async fn connect(&self, index: usize) -> async_nats::Client {
        let url = format!("nats://127.0.0.1:{}", self.nodes[index % self.nodes.len()].port);
        async_nats::connect(url).await.unwrap()
    }

    async fn until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        for index in 0..self.nodes.len() {
            loop {
                assert!(Instant::now() < deadline, "the servers do not come up");
                let url = format!("nats://127.0.0.1:{}", self.nodes[index].port);
                if let Ok(client) = async_nats::connect(url).await {
                    let subject = "$JS.API.STREAM.NAMES";
                    if let Ok(answer) = client.request(subject, "".into()).await
                        && !String::from_utf8_lossy(&answer.payload).contains("error")
                    {
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Node {
    fn start(&mut self) {
        let command = Command::new(binary()).args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.process = Some(command.unwrap());
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Replicas of one log under a prefix of its own.
pub async fn replicas(servers: &Servers, count: usize, copies: u32) -> Vec<Arc<NatsLog>> {
    let prefix = format!("t{:08x}", rand::random::<u32>());
    let mut logs = Vec::new();
    for replica in 0..count {
        let mut clients = Vec::new();
        for connection in 0..3 {
            clients.push(servers.connect(replica + connection).await);
        }
        let groups = vec![GroupConfig { max_bytes: None, ..GroupConfig::default() }];
        let config = LogConfig { prefix: prefix.clone(), replicas: copies, groups, ..LogConfig::default() };
        logs.push(NatsLog::start(Arc::new(FixedLinks(clients)), config).await.unwrap());
    }
    logs
}
