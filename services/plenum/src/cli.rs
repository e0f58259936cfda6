//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use plenum_channels::duration;

use crate::config::Sources;

/// A real-time session server that speaks the Centrifuge protocol.
#[derive(Debug, Parser)]
#[command(name = "plenum", version, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything in one process; with --nats one of several replicas.
    Serve(Serve),
    /// Only client connections, health and metrics (needs NATS).
    Websocket(Settings),
    /// Only the server API, health and metrics (needs NATS).
    Api(Settings),
    /// Only background work, health and metrics (needs NATS): consumers of commands.
    Worker(Settings),
    /// Ask a running process to move its connections elsewhere at a steady pace and end, as SIGTERM does.
    Drain(Drain),
    /// Check everything that a running cluster leans on, and say what to do.
    Doctor(Doctor),
    /// Save everything durable of a running cluster: the log and the ledger on NATS.
    Backup(Backup),
    /// Restore a backup into a NATS that is empty; positions of before are told apart.
    Restore(Restore),
    /// Put load on running servers and compare what was sent with what arrived.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check and explain the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make and check tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a completion script for a shell.
    Completions { shell: Shell },
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub settings: Settings,
    /// For development: on 127.0.0.1, with secrets made at start and printed, a page at / and open namespaces
    #[arg(long)]
    pub dev: bool,
}

/// Settings of a process that serves.
#[derive(Debug, Args)]
pub struct Settings {
    #[command(flatten)]
    pub source: Source,
    /// NATS servers with JetStream, with commas, so that several replicas are one server (nats.servers)
    #[arg(long, value_name = "URLS")]
    pub nats: Option<String>,
    /// Address to listen on (http_server.address)
    #[arg(long)]
    pub address: Option<String>,
    /// Port for clients (http_server.port)
    #[arg(long)]
    pub port: Option<String>,
    /// Port for API, health and metrics (http_server.internal_port)
    #[arg(long)]
    pub internal_port: Option<String>,
    /// none, error, warn, info, debug or trace (log.level)
    #[arg(long)]
    pub log_level: Option<String>,
    /// json or pretty (log.format)
    #[arg(long)]
    pub log_format: Option<String>,
}

/// Where settings come from.
#[derive(Clone, Debug, Args)]
pub struct Source {
    /// File with settings: TOML, JSON or YAML, by its extension
    #[arg(long, short, value_name = "FILE", env = "PLENUM_CONFIG")]
    pub config: Option<PathBuf>,
    /// A setting, e.g. client.channel_limit=256; overrides file and environment
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = assignment)]
    pub set: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Users in sessions, each of whom publishes to all others of the session.
    Session(BenchSession),
}

#[derive(Debug, Args)]
pub struct BenchSession {
    #[command(flatten)]
    pub source: Source,
    /// WebSocket endpoint, ws:// or wss://
    #[arg(long, default_value = "ws://127.0.0.1:8000/connection/websocket")]
    pub url: String,
    /// Connections, each a user of its own
    #[arg(long, default_value_t = 12)]
    pub users: usize,
    /// Channels that the users are spread over; by default one for every 12 users
    #[arg(long)]
    pub sessions: Option<usize>,
    /// How long they publish
    #[arg(long, default_value = "60s", value_parser = time)]
    pub duration: Duration,
    /// Publications per second of each user
    #[arg(long, default_value_t = 1.0)]
    pub rate: f64,
    /// Bytes of a publication
    #[arg(long, default_value_t = 128)]
    pub size: usize,
    /// Beginning of the sessions' channels; their namespace must let clients subscribe and publish
    #[arg(long, default_value = "chat:bench-")]
    pub channel: String,
    /// Connections opened per second
    #[arg(long, default_value_t = 500)]
    pub ramp: u32,
    /// Encoding of messages
    #[arg(long, value_enum, default_value_t = WireEncoding::Json)]
    pub encoding: WireEncoding,
    /// Limit for the last user to get in, and for the last message to arrive
    #[arg(long, default_value = "30s", value_parser = time)]
    pub patience: Duration,
    /// Connect without tokens; otherwise they are signed with client.token.hmac_secret_key
    #[arg(long)]
    pub anonymous: bool,
    /// Origin header to send
    #[arg(long)]
    pub origin: Option<String>,
    /// PEM file of certificate authorities to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Least percentage of connection attempts that succeed
    #[arg(long, default_value_t = 100.0, value_name = "PERCENT")]
    pub min_connect: f64,
    /// Longest latency of 99 % of the messages
    #[arg(long, default_value = "5ms", value_parser = time)]
    pub max_p99: Duration,
    /// Most acknowledged publications that may be missing
    #[arg(long, default_value_t = 0)]
    pub max_lost: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WireEncoding {
    Json,
    Protobuf,
}

/// Which process: the one whose `http_server.internal_port` these settings name.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    pub source: Source,
}

#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub source: Source,
    /// WebSocket endpoint of clients, ws:// or wss://; repeat it for each proxy on the way
    #[arg(long)]
    pub url: Vec<String>,
    /// Server API, http://HOST:PORT/api, best on its own port
    #[arg(long)]
    pub api: Option<String>,
    /// The same for each address that this URL's host has, so that every replica behind one name is reached; ws:// only
    #[arg(long, value_name = "URL")]
    pub each_url: Vec<String>,
    /// Replicas that the connections must come to; 0: any number. Needs --api or --each-url
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    pub min_replicas: usize,
    /// Monitoring port of a NATS server, http://HOST:8222; repeat it for each server
    #[arg(long, value_name = "URL")]
    pub nats_monitoring: Vec<String>,
    /// Only these checks, with commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "CHECKS")]
    pub only: Vec<Check>,
    /// Limit of each contact
    #[arg(long, default_value = "5s", value_parser = time)]
    pub timeout: Duration,
    /// While something fails, look at all of it again until this time has passed: policies may not know a new pod at once
    #[arg(long, default_value = "0s", value_parser = time)]
    pub retry_for: Duration,
    /// How long a connection through each URL stays open with nothing but pings
    #[arg(long, default_value = "0s", value_parser = time)]
    pub idle: Duration,
    /// Connections that a message has to reach, spread over the URLs
    #[arg(long, default_value_t = 6, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    pub connections: usize,
    /// Beginning of the channel; its namespace must let clients subscribe, and publish unless --api is given
    #[arg(long, default_value = "chat:doctor-")]
    pub channel: String,
    /// Connect without a token; otherwise one is signed with client.token.hmac_secret_key
    #[arg(long)]
    pub anonymous: bool,
    /// Origin header to send
    #[arg(long)]
    pub origin: Option<String>,
    /// PEM file of certificate authorities to trust instead of the system's, for --url and --api
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `doctor` looks at, in the order of its report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Every setting
    Config,
    /// Host names
    Names,
    /// Servers, permissions, streams, storage
    Nats,
    /// Servers, slots, memory, a write to each primary
    Redis,
    /// A WebSocket through every --url
    Websocket,
    /// A message to clients behind all of them
    Message,
    /// Clocks of servers
    Clocks,
    /// Limits of open files and connections
    Files,
    /// How long certificates are valid
    Certificates,
}

#[derive(Debug, Args)]
pub struct Backup {
    #[command(flatten)]
    pub source: Source,
    /// New or empty folder
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
    /// Into a folder of its own below --to, named by its time
    #[arg(long)]
    pub dated: bool,
    /// Only this many dated backups stay, the newest ones; 0: all
    #[arg(long, default_value_t = 0, value_name = "COUNT", requires = "dated")]
    pub keep: usize,
}

#[derive(Debug, Args)]
pub struct Restore {
    #[command(flatten)]
    pub source: Source,
    /// Folder of a backup
    #[arg(long, value_name = "FOLDER")]
    pub from: PathBuf,
    /// The newest of the dated backups below --from
    #[arg(long)]
    pub newest: bool,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read all settings as `serve` would and say what is wrong with them.
    Check(Source),
    /// Print a file with every setting at its default (TOML).
    Default,
    /// Explain every setting.
    Doc,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Sign a token with the configured HMAC secret (HS256).
    Make(MakeToken),
    /// Verify a token with the configured keys and show what it says.
    Check(CheckToken),
}

#[derive(Debug, Args)]
pub struct MakeToken {
    #[command(flatten)]
    pub source: Source,
    /// The user's id; empty for the anonymous user
    #[arg(long)]
    pub user: String,
    /// Makes a subscription token for this channel instead of a connection token
    #[arg(long)]
    pub channel: Option<String>,
    /// Binds the subscription token to this client id
    #[arg(long, requires = "channel")]
    pub client: Option<String>,
    /// Server-side subscriptions of a connection token
    #[arg(long = "subscribe", value_name = "CHANNEL", conflicts_with = "channel")]
    pub subscribe: Vec<String>,
    /// JSON that others see beside the user's id
    #[arg(long, value_name = "JSON")]
    pub info: Option<String>,
    /// How long it is valid; 0s: for ever
    #[arg(long, default_value = "1h", value_parser = time)]
    pub ttl: Duration,
}

#[derive(Debug, Args)]
pub struct CheckToken {
    #[command(flatten)]
    pub source: Source,
    /// The token; - reads it from standard input
    pub token: String,
    /// What it must be good for; by default what it looks like
    #[arg(long)]
    pub kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Connection,
    Subscription,
}

impl Source {
    /// With the environment of this process.
    pub fn sources(&self) -> Sources {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let flags = self.set.iter().map(|(key, value)| ("--set".to_owned(), key.clone(), value.clone())).collect();
        Sources { file: self.config.clone(), environment, flags, ..Sources::default() }
    }
}

impl Settings {
    /// With the flags that stand for single settings.
    pub fn sources(&self) -> Sources {
        let mut sources = self.source.sources();
        for (flag, key, value) in [
            ("--nats", "nats.servers", &self.nats),
            ("--address", "http_server.address", &self.address),
            ("--port", "http_server.port", &self.port),
            ("--internal-port", "http_server.internal_port", &self.internal_port),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ] {
            if let Some(value) = value {
                sources.flags.push((flag.to_owned(), key.to_owned(), value.clone()));
            }
        }
        sources
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    duration::parse(text).ok_or_else(|| format!("must be {}", duration::EXPECTED))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_settings() {
        let line = ["plenum", "serve", "--port", "8100", "--set", "client.channel_limit=3", "--log-format", "pretty"];
        let line = line.into_iter().chain(["--nats", "nats://a,nats://b"]);
        let Command::Serve(serve) = Cli::try_parse_from(line).unwrap().command else { panic!("serve") };
        let mut sources = serve.settings.sources();
        sources.environment.clear();
        let config = crate::config::load(&sources).unwrap().config;
        assert_eq!(config.nats.servers, ["nats://a", "nats://b"]);
        assert_eq!((config.http_server.port, config.client.channel_limit), (8100, 3));
        assert_eq!(config.log.format, crate::config::Format::Pretty);
        assert!(Cli::try_parse_from(["plenum", "serve", "--set", "novalue"]).is_err());
    }
}
