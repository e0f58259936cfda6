//! The plenum binary: reads the configuration, puts the server together, runs it until it is told to end.

mod backup;
mod bench;
mod cli;
mod compose;
mod config;
mod consumers;
mod dev;
mod doctor;
mod drain;
mod nats;
mod open_files;
mod redis;
mod role;
mod serve;
mod shelf;
mod token;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use plenum_telemetry::{LogFormat, init_logs};

use cli::{BenchCommand, Cli, Command, ConfigCommand, Settings};
use config::{Config, Loaded};
use dev::Dev;
use role::Role;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For roles that the configuration does not allow; as for a wrong command line.
const UNAVAILABLE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(arguments) => serve(&arguments.settings, Role::All, arguments.dev),
        Command::Websocket(settings) => serve(&settings, Role::Websocket, false),
        Command::Api(settings) => serve(&settings, Role::Api, false),
        Command::Worker(settings) => serve(&settings, Role::Worker, false),
        Command::Bench(BenchCommand::Session(arguments)) => bench::session(&arguments),
        Command::Drain(arguments) => drain::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Backup(arguments) => backup::save(&arguments),
        Command::Restore(arguments) => backup::put_back(&arguments),
        Command::Config(command) => configuration(&command),
        Command::Token(command) => token::run(&command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "plenum", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Version => print(&format!("plenum {}\n", env!("CARGO_PKG_VERSION"))),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("plenum: {error:#}");
        ExitCode::FAILURE
    })
}

fn serve(settings: &Settings, role: Role, dev: bool) -> anyhow::Result<ExitCode> {
    let dev = dev.then(Dev::new);
    let mut sources = settings.sources();
    if let Some(dev) = &dev {
        sources.preset = dev.preset();
    }
    let Loaded { mut config, mut warnings } = config::load(&sources)?;
    if role != Role::All && !config.nats.enabled() {
        return Ok(unavailable(role));
    }
    role.apply(&mut config);
    logs(&config)?;
    open_files::raise();
    warnings.extend(open_files::fit(&mut config));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if role == Role::Worker && !config.consumers.iter().any(|consumer| consumer.enabled) {
        tracing::warn!("no consumer is enabled: the worker only keeps the log's clock, health and metrics");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = compose::app(&config, dev.is_some()).await?;
        let bound = app.bound();
        let (address, internal) = (bound.public, bound.internal);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), role = role.name(), %address, ?internal, "serving");
        if let Some(dev) = &dev {
            print(&dev.banner(&config, &bound))?;
        }
        serve::run(app, config, role, &sources).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn logs(config: &Config) -> anyhow::Result<()> {
    let format = match config.log.format {
        config::Format::Json => LogFormat::Json,
        config::Format::Pretty => LogFormat::Pretty,
    };
    let mut directives = config.log.directives().map_err(anyhow::Error::msg)?;
    if directives == "info" {
        // The pool says the same of each connection, with its name.
        directives += ",async_nats=warn";
    }
    Ok(init_logs(format, &directives)?)
}

fn configuration(command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Default => print(&config::default_file()),
        ConfigCommand::Doc => print(&config::documentation()),
        ConfigCommand::Check(source) => {
            let Loaded { warnings, .. } = config::load(&source.sources())?;
            let file =
                source.config.as_ref().map_or("defaults and environment".into(), |file| file.display().to_string());
            let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            print(&format!("{warnings}{file}: ok\n"))
        }
    }
}

/// A reader that has seen enough (`plenum config doc | head`) is no error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn unavailable(role: Role) -> ExitCode {
    let name = role.name();
    eprintln!(
        "plenum {name}: runs beside other processes and needs what they share: set nats.servers (or --nats nats://…); \
         `plenum serve` runs everything in one process without it"
    );
    ExitCode::from(UNAVAILABLE)
}
