//! The built binary for tests.
#![allow(clippy::unwrap_used)] // a test says what it expects by unwrapping
#![allow(dead_code)] // each test binary uses a part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// For what a server that runs does, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn plenum(arguments: &[&str]) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_plenum")), arguments)
}

fn clean(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PLENUM_") {
            command.env_remove(name);
        }
    }
    command
}

pub fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = plenum(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("plenum-binary-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server; killed when the test ends early.
pub struct Server {
    child: Child,
    pub address: String,
    pub log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts `plenum serve` on a free port and waits until it says where it listens.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_as("serve", arguments)
    }

    /// As [`Server::start`], in a role.
    pub fn start_as(role: &str, arguments: &[&str]) -> Self {
        Self::start_by(plenum(&[role]), arguments)
    }

    /// As [`Server::start`], in a shell that sets limits first (`ulimit`).
    pub fn start_under(limits: &str, arguments: &[&str]) -> Self {
        let script = format!("{limits} && exec \"$0\" \"$@\"");
        let shell = clean(Command::new("sh"), &["-c", &script, env!("CARGO_BIN_EXE_plenum"), "serve"]);
        Self::start_by(shell, arguments)
    }

    fn start_by(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["--address", "127.0.0.1", "--port", "0", "--log-format", "json"]);
        let mut child = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let shared = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = shared.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { child, address: String::new(), log };
        server.address = server.logged("\"serving\"", |line| {
            let (_, rest) = line.split_once("\"address\":\"")?;
            Some(rest.split_once('"')?.0.to_owned())
        });
        server
    }

    /// Waits for a line of the log that holds `text` and yields something.
    pub fn logged<T>(&self, text: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            let log = self.log.lock().unwrap().clone();
            if let Some(found) = log.lines().filter(|line| line.contains(text)).find_map(&find) {
                return found;
            }
            assert!(Instant::now() < end, "no {text} in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Status code of an API call.
    pub fn info(&self, key: &str) -> u16 {
        self.api(key, "info", "{}").0
    }

    /// Status code and reply of an API call.
    pub fn api(&self, key: &str, method: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.ask(&format!(
            "POST /api/{method} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    /// Calls a method that changes nothing until its reply holds this text, and gives the reply: a replica that stood still
    /// for seconds is in doubt about the log until it has heard of it again.
    pub fn answers(&self, key: &str, method: &str, body: &str, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let (_, reply) = self.api(key, method, body);
            if reply.contains(text) {
                return reply;
            }
            assert!(Instant::now() < end, "{method}: no {text} in {reply}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Status code and body of a page.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
    }

    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{reply}"));
        (status, reply.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
    }

    /// Waits until a page has this status, and gives its body.
    pub fn until(&self, path: &str, status: u16) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let (found, body) = self.get(path);
            if found == status {
                return body;
            }
            assert!(Instant::now() < end, "{path}: {found}, not {status}: {body}\n{}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a page holds this text.
    pub fn shows(&self, path: &str, text: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let (_, body) = self.get(path);
            if body.contains(text) {
                return;
            }
            assert!(Instant::now() < end, "{path}: no {text} in {body}\n{}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server did not end:\n{}", self.log.lock().unwrap());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
