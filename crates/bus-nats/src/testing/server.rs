use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{binary, free_port};

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a server differs from a plain one with JetStream.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Run JetStream (default true).
    pub jetstream: bool,
    /// Settings inside the `jetstream` block, one a line.
    pub jetstream_settings: String,
    /// Settings at the top level (accounts, limits), one a line.
    pub settings: String,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            jetstream: true,
            jetstream_settings: "max_mem: 128M\nmax_file: 4G".into(),
            settings: String::new(),
        }
    }
}

/// A nats-server process. Dropping it kills the process and removes its folder.
pub struct NatsServer {
    name: String,
    folder: PathBuf,
    port: u16,
    monitor: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a single server with JetStream and waits until it is ready.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(ServerOptions::default()).await
    }

    /// Starts a single server and waits until it is ready.
    pub async fn start_with(options: ServerOptions) -> io::Result<Self> {
        again_if_taken(async || {
            let mut server = Self::prepare("single", &options, "")?;
            server.launch()?;
            server.ready(PATIENCE).await?;
            Ok(server)
        })
        .await
    }

    /// Writes the configuration of a server that is not started yet.
    pub(super) fn prepare(name: &str, options: &ServerOptions, cluster: &str) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("plenum-nats-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder)?;
        let (port, monitor) = (free_port()?, free_port()?);
        let mut text = format!("server_name: {name}\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitor}\n");
        // Writing to a String cannot fail.
        if options.jetstream {
            let store = folder.join("store");
            let _ = writeln!(text, "jetstream {{\nstore_dir: {store:?}\n{}\n}}", options.jetstream_settings);
        }
        let _ = writeln!(text, "{cluster}\n{}", options.settings);
        std::fs::write(folder.join("server.conf"), text)?;
        Ok(NatsServer { name: name.into(), folder, port, monitor, child: None })
    }

    pub(super) fn launch(&mut self) -> io::Result<()> {
        let child = Command::new(binary()?)
            .arg("-c")
            .arg(self.folder.join("server.conf"))
            .arg("-l")
            .arg(self.log())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until the server says that it is healthy.
    pub async fn ready(&mut self, deadline: Duration) -> io::Result<()> {
        let started = Instant::now();
        while !self.healthy().await {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                return Err(io::Error::other(format!("nats-server {} ended ({status}):\n{log}", self.name)));
            }
            if started.elapsed() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nats-server {} is not ready", self.name)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn healthy(&self) -> bool {
        matches!(self.monitor("/healthz").await, Ok(answer) if answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"))
    }

    /// The answer of the monitoring port, head and body, within a second.
    pub async fn monitor(&self, path: &str) -> io::Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.monitor)).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(1), exchange)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from the monitoring port")))
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:port`, for a [`Proxy`](super::Proxy).
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Folder of its streams.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Ends it without warning (SIGKILL).
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Stops it cleanly (SIGTERM) and waits for its end.
    pub async fn stop(&mut self) -> io::Result<()> {
        self.signal("TERM")?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let started = Instant::now();
        while child.try_wait()?.is_none() {
            if started.elapsed() > PATIENCE {
                child.kill()?;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
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

    /// Has it send its clients away before it ends (lame duck mode, SIGUSR2).
    pub fn lame_duck(&self) -> io::Result<()> {
        self.signal("USR2")
    }

    /// Has it read its configuration again (SIGHUP).
    pub fn reload(&self) -> io::Result<()> {
        self.signal("HUP")
    }

    /// Starts it again, on the same ports and store, and waits until it is ready.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.launch()?;
        self.ready(PATIENCE).await
    }

    /// Removes its streams. Only while it does not run.
    pub fn wipe_store(&self) -> io::Result<()> {
        if self.child.is_some() {
            return Err(io::Error::other("the server runs"));
        }
        remove(&self.store())
    }

    /// Sends a signal by its name; no effect when the server does not run.
    pub fn signal(&self, signal: &str) -> io::Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -{signal} {pid}: {status}"))) }
    }

    /// Adds settings to its configuration file; they count after [`reload`](Self::reload) or a restart.
    pub fn edit_config(&self, edit: impl FnOnce(String) -> String) -> io::Result<()> {
        let path = self.folder.join("server.conf");
        std::fs::write(&path, edit(std::fs::read_to_string(&path)?))
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

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.kill();
        let _ = remove(&self.folder);
    }
}

/// A port that was free may be taken by another test before the server has it: then with other ports, a few times.
pub(super) async fn again_if_taken<T>(start: impl AsyncFn() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..3 {
        match start().await {
            Err(error) if error.to_string().contains("address already in use") => {}
            outcome => return outcome,
        }
    }
    start().await
}

fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
