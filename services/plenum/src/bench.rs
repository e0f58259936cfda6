//! `plenum bench session`: a load test against running servers, through every proxy in front of them.

use std::process::ExitCode;

use anyhow::{Context, bail};
use plenum_load::{MIN_SIZE, Plan, Progress, Target, Thresholds, TokenMaker};
use plenum_protocol::Encoding;
use plenum_tokens::{ConnectionTokenSpec, sign_connection};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{BenchSession, WireEncoding};
use crate::config;

/// Connections of one process that the usual limit of open files allows.
const MAX_USERS: usize = 60_000;

/// Runs the test. Exit status 0: all thresholds were met; 1: one was missed; 2 is clap's.
pub fn session(arguments: &BenchSession) -> anyhow::Result<ExitCode> {
    let plan = plan(arguments)?;
    let thresholds =
        Thresholds { connect: arguments.min_connect / 100.0, p99: arguments.max_p99, lost: arguments.max_lost };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let users = arguments.users;
    let report = runtime.block_on(plenum_load::run(plan, enough(), |progress| show(&progress, users)));
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.text(&thresholds)),
    }
    let complaints = report.complaints(&thresholds);
    if arguments.json {
        complaints.iter().for_each(|complaint| eprintln!("FAILED: {complaint}"));
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Done at the first SIGINT or SIGTERM, so that a test which is ended early still reports; the next one ends the process.
async fn enough() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    either(&mut interrupt, &mut terminate).await;
    tokio::spawn(async move {
        either(&mut interrupt, &mut terminate).await;
        std::process::exit(130);
    });
}

async fn either(first: &mut Signal, second: &mut Signal) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
    }
}

fn plan(arguments: &BenchSession) -> anyhow::Result<Plan> {
    let BenchSession { users, sessions, size, .. } = *arguments;
    if !(1..=MAX_USERS).contains(&users) {
        bail!("--users {users} is not allowed: 1 to {MAX_USERS}");
    }
    let sessions = sessions.unwrap_or(users.div_ceil(12));
    if !(1..=users).contains(&sessions) {
        bail!("--sessions {sessions} is not allowed: 1 to the number of users, {users}");
    }
    if !(MIN_SIZE..=65_536).contains(&size) {
        bail!("--size {size} is not allowed: {MIN_SIZE} to 65536 bytes");
    }
    if !(0.001..=1000.0).contains(&arguments.rate) {
        bail!("--rate {} is not allowed: 0.001 to 1000 publications a second of each user", arguments.rate);
    }
    let target = Target::new(&arguments.url, arguments.origin.as_deref(), arguments.ca.as_deref())?;
    Ok(Plan {
        target,
        encoding: match arguments.encoding {
            WireEncoding::Json => Encoding::Json,
            WireEncoding::Protobuf => Encoding::Protobuf,
        },
        users,
        sessions,
        duration: arguments.duration,
        interval: std::time::Duration::from_secs_f64(1.0 / arguments.rate),
        size,
        // A run of its own: what an earlier one left in the history is not its business.
        channel: format!("{}{:08x}-", arguments.channel, rand::random::<u32>()),
        ramp: arguments.ramp,
        patience: arguments.patience,
        token: token(arguments)?,
    })
}

/// Signs with the configured secret, unless users are anonymous.
fn token(arguments: &BenchSession) -> anyhow::Result<Option<TokenMaker>> {
    if arguments.anonymous {
        return Ok(None);
    }
    let config = config::load(&arguments.source.sources())?.config;
    let keys = config.access.token;
    if keys.hmac_secret_key.is_empty() {
        bail!("client.token.hmac_secret_key is not set: name the server's settings with --config, or use --anonymous");
    }
    let secret = keys.hmac_secret_key.clone();
    let spec = move |user: &str| ConnectionTokenSpec {
        user: user.to_owned(),
        audience: Some(keys.audience.clone()).filter(|text| !text.is_empty()),
        issuer: Some(keys.issuer.clone()).filter(|text| !text.is_empty()),
        ..ConnectionTokenSpec::default()
    };
    sign_connection(&secret, &spec("probe")).context("client.token.hmac_secret_key")?;
    Ok(Some(Box::new(move |user| sign_connection(&secret, &spec(user)).unwrap_or_default())))
}

fn show(progress: &Progress, users: usize) {
    eprintln!(
        "{:>5.0} s  {}/{users} connected  {} acknowledged  {} received  p99 {:.2} ms",
        progress.elapsed.as_secs_f64(),
        progress.ready,
        progress.acknowledged,
        progress.received,
        progress.p99.as_secs_f64() * 1000.0
    );
}
