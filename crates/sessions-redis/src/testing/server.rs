use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::admin::{self, Reply};
use super::{binary, free_port};
use crate::client::{Address, RedisConfig, Tls};

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Certificates for servers and clients of a test.
#[derive(Clone, Debug)]
pub struct TestTls {
    /// PEM of the authority.
    pub authority: String,
    /// PEM of the certificate that servers and clients show.
    pub certificate: String,
    /// PEM of its private key.
    pub key: String,
}

/// How a server differs from a plain one that keeps nothing on disk.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Settings, one a line, after ours.
    pub settings: String,
    /// TLS on the port that [`RedisServer::address`] names; the test's own questions go to a plain one.
    pub tls: Option<TestTls>,
    /// User and password for the test's own questions, when `settings` close the default user.
    pub auth: Option<(String, String)>,
}

/// A redis-server process. Dropping it kills the process and removes its folder.
pub struct RedisServer {
    folder: PathBuf,
    port: u16,
    tls_port: Option<u16>,
    pub(super) bus_port: u16,
    auth: Option<(String, String)>,
    child: Option<Child>,
}

impl RedisServer {
    /// A standalone server, ready.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(&ServerOptions::default()).await
    }

    /// A standalone server, ready.
    pub async fn start_with(options: &ServerOptions) -> io::Result<Self> {
        let mut server = Self::prepare(options, "")?;
        server.launch()?;
        server.ready(PATIENCE).await?;
        Ok(server)
    }

    pub(super) fn prepare(options: &ServerOptions, cluster: &str) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("plenum-redis-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder)?;
        let (port, bus_port) = (free_port()?, free_port()?);
        let tls_port = options.tls.is_some().then(free_port).transpose()?;
        let mut text = format!(
            "bind 127.0.0.1\nport {port}\ndir {folder:?}\nlogfile {:?}\nsave \"\"\nappendonly no\nrepl-diskless-sync-delay 0\n\
             enable-debug-command yes\n",
            folder.join("server.log"),
        );
        if let (Some(tls), Some(tls_port)) = (&options.tls, tls_port) {
            for (name, content) in [("ca.pem", &tls.authority), ("cert.pem", &tls.certificate), ("key.pem", &tls.key)] {
                std::fs::write(folder.join(name), content)?;
            }
            text += &format!(
                "tls-port {tls_port}\ntls-ca-cert-file {:?}\ntls-cert-file {:?}\ntls-key-file {:?}\n",
                folder.join("ca.pem"),
                folder.join("cert.pem"),
                folder.join("key.pem"),
            );
        }
        if !cluster.is_empty() {
            text += &format!("cluster-enabled yes\ncluster-port {bus_port}\n{cluster}\n");
        }
        std::fs::write(folder.join("server.conf"), text + &options.settings)?;
        Ok(RedisServer { folder, port, tls_port, bus_port, auth: options.auth.clone(), child: None })
    }

    pub(super) fn launch(&mut self) -> io::Result<()> {
        let child = Command::new(binary()?)
            .arg(self.folder.join("server.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it answers.
    pub async fn ready(&mut self, deadline: Duration) -> io::Result<()> {
        let started = Instant::now();
        while self.ask(&["PING"]).await.is_err() {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
                return Err(io::Error::other(format!("redis-server ended ({status}):\n{log}")));
            }
            if started.elapsed() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "redis-server is not ready"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Asks one command past the client under test, within 10 s.
    pub async fn ask(&self, command: &[&str]) -> io::Result<Reply> {
        admin::ask(self.port, self.auth.as_ref(), command, Duration::from_secs(10)).await
    }

    /// Where clients connect.
    pub fn address(&self) -> Address {
        Address::new("127.0.0.1", self.tls_port.unwrap_or(self.port))
    }

    /// Port without TLS.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A configuration for a standalone server.
    pub fn config(&self) -> RedisConfig {
        RedisConfig::standalone(self.address())
    }

    /// The same with limits that a busy machine keeps too, for tests that are not about them.
    pub fn patient(&self) -> RedisConfig {
        super::patient(self.config())
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it without warning (SIGKILL).
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Freezes it (SIGSTOP). All of its threads stand when this returns: until the one that takes the signal is scheduled, the
    /// others go on.
    pub fn pause(&self) -> io::Result<()> {
        self.signal("STOP")?;
        let Some(pid) = self.pid() else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        while !stands(pid)? {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid} does not stand")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets a frozen one go on (SIGCONT).
    pub fn resume(&self) -> io::Result<()> {
        self.signal("CONT")
    }

    /// Starts it again on the same ports, empty, and waits until it answers.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.launch()?;
        self.ready(PATIENCE).await
    }

    fn signal(&self, signal: &str) -> io::Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -{signal} {pid}: {status}"))) }
    }

    /// Names of keys that would stay for ever; none of a replica, which holds its primary's.
    pub async fn keys_without_expiry(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        if self.ask(&["ROLE"]).await?.list().first().is_none_or(|role| role.text() != "master") {
            return Ok(found);
        }
        for key in self.ask(&["KEYS", "*"]).await?.list() {
            if self.ask(&["PTTL", key.text()]).await?.number() == -1 {
                found.push(key.text().to_owned());
            }
        }
        Ok(found)
    }
}

/// Whether every thread of a process is stopped, as `/proc/PID/task/TID/stat` says behind the name in brackets.
fn stands(pid: u32) -> io::Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        if !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
        let _ = remove(&self.folder);
    }
}

impl TestTls {
    /// TLS of a client that shows the certificate too.
    pub fn client(&self) -> Tls {
        let identity = Some((self.certificate.as_bytes(), self.key.as_bytes()));
        #[allow(clippy::expect_used, reason = "made by the test itself")]
        Tls::from_pem(self.authority.as_bytes(), identity, None).expect("the certificates are good")
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
