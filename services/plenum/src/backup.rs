//! `plenum backup` and `plenum restore`: what is durable, out of NATS and into one that is empty.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use plenum_bus_nats::backup::{Summary, backup, restore};

use crate::cli::{Backup, Restore, Source};
use crate::config::{self, Config};
use crate::nats;
use crate::shelf::Shelf;

/// Saves everything under `nats.prefix` into a folder.
pub fn save(arguments: &Backup) -> anyhow::Result<ExitCode> {
    let config = with_nats(&arguments.source)?;
    let pool = nats::pool(&config.nats, "plenum-backup");
    if !arguments.dated {
        let summary = run(backup(&pool, &config.nats.prefix, &arguments.to))?.context("backup")?;
        return say("saved to", &arguments.to, &summary);
    }
    let shelf = Shelf::new(&arguments.to);
    let unfinished = shelf.unfinished()?;
    let summary = match run(backup(&pool, &config.nats.prefix, &unfinished))? {
        Ok(summary) => summary,
        Err(error) => {
            // What is incomplete only takes room.
            let _ = std::fs::remove_dir_all(&unfinished);
            return Err(error).context("backup");
        }
    };
    let (place, removed) = shelf.put(&unfinished, &summary.made_at, arguments.keep)?;
    if removed > 0 {
        crate::print(&format!("removed {removed} older backups\n"))?;
    }
    say("saved to", &place, &summary)
}

/// Restores a folder.
pub fn put_back(arguments: &Restore) -> anyhow::Result<ExitCode> {
    let config = with_nats(&arguments.source)?;
    let pool = nats::pool(&config.nats, "plenum-backup");
    let from = if arguments.newest { Shelf::new(&arguments.from).newest()? } else { arguments.from.clone() };
    let (prefix, replicas) = (&config.nats.prefix, config.nats.replicas);
    let summary = run(restore(&pool, prefix, replicas, &from))?.context("restore")?;
    say("restored from", &from, &summary)
}

fn with_nats(source: &Source) -> anyhow::Result<Config> {
    let config = config::load(&source.sources())?.config;
    if !config.nats.enabled() {
        bail!("nats.servers is not set: name the server's settings with --config; without NATS nothing is durable");
    }
    Ok(config)
}

fn run<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work))
}

fn say(done: &str, folder: &Path, summary: &Summary) -> anyhow::Result<ExitCode> {
    let Summary { made_at, streams, entries, ledger, bytes } = summary;
    let ledger = if *ledger { " and the ledger" } else { "" };
    let folder = folder.display();
    crate::print(&format!(
        "{done} {folder}: {streams} streams with {entries} entries{ledger}, {bytes} bytes, as of {made_at}\n"
    ))
}
