//! `plenum doctor`: looks at everything that a cluster leans on and says what was looked at, what was found, what to do.
//!
//! This crate puts the checks together; what is known of NATS is in `plenum_bus_nats::check`, of Redis in
//! `plenum_sessions_redis::check`, of a client's way in `plenum_load`. Nothing here prints a secret.

mod brokers;
mod certificates;
mod clients;
mod clocks;
mod files;
mod names;
mod report;
mod server;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use plenum_telemetry::{Finding, State};

use crate::cli::{Check, Doctor};
use crate::config::{self, Config, ConfigError, Loaded};
use report::Report;

/// Limits that `--timeout` may have.
const LIMITS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Between two looks of `--retry-for`.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the checks. Exit status 0: nothing failed; 1: something did, or the command is wrong; 2 is clap's.
pub fn run(arguments: &Doctor) -> anyhow::Result<ExitCode> {
    if !LIMITS.contains(&arguments.timeout) {
        anyhow::bail!("--timeout must be from 100ms to 60s");
    }
    let started = Instant::now();
    let mut report = once(arguments)?;
    while report.worst() == State::Failed && started.elapsed() < arguments.retry_for {
        std::thread::sleep(PAUSE);
        report = once(arguments)?;
    }
    crate::print(&if arguments.json { report.json()? } else { report.text() })?;
    Ok(if report.worst() == State::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything that is asked for, looked at once.
fn once(arguments: &Doctor) -> anyhow::Result<Report> {
    let mut report = Report::new(&arguments.only);
    if let Some(config) = configuration(arguments, &mut report) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(look(arguments, &config, &mut report));
        // A resolver that does not answer holds a thread; nobody waits for it.
        runtime.shutdown_background();
    }
    Ok(report)
}

/// Reads it as a server would. Without one nothing else can be looked at.
fn configuration(arguments: &Doctor, report: &mut Report) -> Option<Config> {
    const ADVICE: &str = "correct it; `plenum config doc` explains every setting";
    let source = arguments.source.config.as_ref();
    let subject = source.map_or("defaults and environment".into(), |file| file.display().to_string());
    match config::load(&arguments.source.sources()) {
        Ok(Loaded { config, warnings }) => {
            if warnings.is_empty() {
                report.add(Check::Config, [Finding::good(&*subject, "every setting can be used")]);
            }
            let advice = "correct it, unless it is meant so";
            let warnings = warnings.into_iter().map(|warning| Finding::warning(&*subject, warning, advice));
            report.add(Check::Config, warnings);
            Some(config)
        }
        Err(ConfigError::Problems { problems }) => {
            let failed = problems.iter().map(|problem| Finding::failed(&*subject, problem.to_string(), ADVICE));
            report.always(Check::Config, failed);
            None
        }
        Err(error) => {
            let reason = format!("{:#}", anyhow::Error::new(error));
            report.always(Check::Config, [Finding::failed(subject, reason, ADVICE)]);
            None
        }
    }
}

async fn look(arguments: &Doctor, config: &Config, report: &mut Report) {
    let limit = arguments.timeout;
    let wanted = |check| report.wants(check);
    let clocks_too = wanted(Check::Clocks);
    let (names, nats, redis, clients, server) = tokio::join!(
        when(wanted(Check::Names), names::check(arguments, config, limit)),
        when(wanted(Check::Nats) || clocks_too, brokers::nats(arguments, config, limit)),
        when(wanted(Check::Redis) || clocks_too, brokers::redis(config, limit)),
        when(
            [Check::Websocket, Check::Message, Check::Clocks, Check::Certificates].into_iter().any(wanted),
            clients::check(arguments, config, limit)
        ),
        when(
            [Check::Files, Check::Clocks, Check::Message].into_iter().any(wanted),
            server::check(arguments, config, limit)
        ),
    );
    let (nats, redis) = (nats.unwrap_or_default(), redis.unwrap_or_default());
    let (clients, server) = (clients.unwrap_or_default(), server.unwrap_or_default());
    report.add(Check::Names, names.unwrap_or_default());
    report.add(Check::Nats, nats.nats);
    report.add(Check::Redis, redis.redis);
    report.add(Check::Websocket, clients.websocket);
    report.add(Check::Message, server.message.into_iter().chain(clients.message));
    report.add(Check::Clocks, nats.clocks);
    report.add(Check::Clocks, clocks::redis(redis.clocks));
    report.add(Check::Clocks, clients.clocks.into_iter().chain(server.clocks));
    if report.wants(Check::Files) {
        report.add(Check::Files, files::check(config).into_iter().chain(server.files));
    }
    if report.wants(Check::Certificates) {
        report.add(Check::Certificates, certificates::check(arguments, config, clients.certificates));
    }
    report.fill();
}

async fn when<T>(wanted: bool, check: impl Future<Output = T>) -> Option<T> {
    if wanted { Some(check.await) } else { None }
}
