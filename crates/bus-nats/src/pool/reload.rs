//! New settings for a pool that is in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;

use super::connection::Connection;
use super::upkeep::SHUT_LIMIT;
use super::{Pool, PoolConfig, PoolError, Role, check, link};

/// How long a connection may take to accept a list of servers.
const COMMAND_LIMIT: Duration = Duration::from_secs(1);

/// How new settings came into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// With contact, or nothing that needs any has changed.
    Proven,
    /// Without contact, which the old settings did not have either.
    Unproven,
}

impl Pool {
    /// Applies new settings. New publishing connections are made, all with contact, before the old ones retire;
    /// subscribing ones stay and use new servers and credentials at their next reconnect.
    ///
    /// Fails after 10 s, and keeps the old settings, when the new ones reach no server while the old ones do. Where
    /// neither has contact the new ones are taken: the old ones may never have it again. A subscribing connection without
    /// contact goes on with its old list of servers until it has contact. The number of subscribing connections, TLS
    /// paths (the files' contents may change), inbox prefix, name and server discovery are fixed.
    pub async fn reload(&self, config: PoolConfig) -> Result<Reloaded, PoolError> {
        check(&config).await?;
        let old = self.config();
        let fixed = [
            ("subscribing", old.subscribing != config.subscribing),
            ("tls", old.tls != config.tls),
            ("inbox_prefix", old.inbox_prefix != config.inbox_prefix),
            ("name", old.name != config.name),
            ("discover_servers", old.discover_servers != config.discover_servers),
        ];
        if let Some((setting, _)) = fixed.iter().find(|(_, changed)| *changed) {
            return Err(PoolError::Fixed { setting });
        }
        let config = Arc::new(config);
        self.config.store(config.clone());
        let reloaded = match self.follow(&config, &old).await {
            Ok(reloaded) => reloaded,
            Err(error) => {
                self.config.store(old);
                return Err(error);
            }
        };
        if config.servers != old.servers {
            let servers = link::parse_servers(&config.servers)?;
            for connection in &self.subscribing {
                // One without contact takes the list when it has contact again.
                let _ =
                    tokio::time::timeout(COMMAND_LIMIT, connection.client.set_server_pool(servers.as_slice())).await;
            }
        }
        // Those without contact try the new settings soon, not when their long pause is over.
        for connection in self.all().iter().filter(|connection| !connection.is_up()) {
            connection.link.rouse();
        }
        Ok(reloaded)
    }

    /// Makes the publishing connections that the settings ask for; those that do not fit any more retire.
    async fn follow(&self, config: &PoolConfig, old: &PoolConfig) -> Result<Reloaded, PoolError> {
        let _changing = self.changing.lock().await;
        let mut set = Vec::clone(&self.publishing.load());
        let before = set.len();
        let wanted = if config.publishing == old.publishing { before } else { config.publishing };
        let kept = if config.needs_new_connections(old) { 0 } else { wanted.min(before) };
        let (made, reloaded) = self.make_all(wanted - kept).await?;
        self.retiring.lock().extend(set.drain(kept..));
        set.extend(made);
        self.publishing.store(Arc::new(set));
        let replaced = before.min(wanted) - kept;
        self.recycled.fetch_add(replaced as u64, Ordering::Relaxed);
        self.resized.fetch_add(wanted.abs_diff(before) as u64, Ordering::Relaxed);
        Ok(reloaded)
    }

    /// New publishing connections, all with contact; some without it where the present connections have none either.
    async fn make_all(&self, number: usize) -> Result<(Vec<Arc<Connection>>, Reloaded), PoolError> {
        let mut made = Vec::with_capacity(number);
        let mut failed = None;
        for result in join_all((0..number).map(|_| self.make())).await {
            match result {
                Ok(connection) => made.push(connection),
                Err(error) => failed = Some(error),
            }
        }
        let Some(error) = failed else { return Ok((made, Reloaded::Proven)) };
        if self.subscribing.iter().chain(self.publishing.load().iter()).any(|connection| connection.is_up()) {
            for connection in made {
                connection.shut(SHUT_LIMIT).await;
            }
            return Err(error);
        }
        while made.len() < number {
            made.push(self.open(Role::Publishing).await?);
        }
        Ok((made, Reloaded::Unproven))
    }
}
