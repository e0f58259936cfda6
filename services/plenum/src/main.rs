//! The plenum binary: reads the configuration, puts the server together, runs it until it is told to end.

mod cli;
mod compose;
mod config;
mod dev;
mod serve;
mod token;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use plenum_telemetry::{LogFormat, init_logs};

use cli::{Cli, Command, ConfigCommand, Serve};
use config::{Config, Loaded};
use dev::Dev;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For commands that do not exist yet; as for a wrong command line.
const UNAVAILABLE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(arguments) => serve(&arguments),
        Command::Websocket => Ok(unavailable("websocket")),
        Command::Api => Ok(unavailable("api")),
        Command::Worker => Ok(unavailable("worker")),
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

fn serve(arguments: &Serve) -> anyhow::Result<ExitCode> {
    let dev = arguments.dev.then(Dev::new);
    let mut sources = arguments.sources();
    if let Some(dev) = &dev {
        sources.preset = dev.preset();
    }
    let Loaded { config, warnings } = config::load(&sources)?;
    logs(&config)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let app = compose::in_process(&config, dev.is_some())?;
        let bound = app.bound();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), address = %bound.public, internal = bound.internal.map(tracing::field::display), "serving");
        if let Some(dev) = &dev {
            print(&dev.banner(&config, &bound))?;
        }
        serve::run(app, config, &sources).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn logs(config: &Config) -> anyhow::Result<()> {
    let format = match config.log.format {
        config::Format::Json => LogFormat::Json,
        config::Format::Pretty => LogFormat::Pretty,
    };
    Ok(init_logs(format, &config.log.directives().map_err(anyhow::Error::msg)?)?)
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

fn unavailable(command: &str) -> ExitCode {
    eprintln!(
        "plenum {command}: needs the configuration sections nats and redis, which this version does not have; \
         `plenum serve` runs everything in one process"
    );
    ExitCode::from(UNAVAILABLE)
}
