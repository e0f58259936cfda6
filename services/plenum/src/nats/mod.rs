//! NATS as this process uses it: pool, log and control bus; contact is sought for ever, and what is known is told.

mod deferred;
mod settings;
mod state;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use plenum_bus_nats::control::NatsControl;
use plenum_bus_nats::ledger::NatsLedger;
use plenum_bus_nats::log::{LogConfig, NatsLog, PoolLinks, SetupError, TailStore};
use plenum_bus_nats::pool::{Pool, PoolCollector, PoolConfig, Reloaded};
use plenum_bus_nats::replicas::NatsReplicas;
use plenum_bus_nats::report::Reporter;
use plenum_bus_nats::workers::Workers;
use plenum_channels::Tails;
use plenum_telemetry::Metrics;
use tokio::task::JoinHandle;
use tokio::time::sleep;

pub use deferred::{DeferredControl, DeferredLedger, DeferredLog};
pub use settings::{Placement, ledger, log, pool};

use crate::config::Config;

/// How long one attempt to reach NATS lasts before it is logged that it did not.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause after an attempt that NATS answered, but not with what is needed.
const PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked whether the log is usable.
const LOOK: Duration = Duration::from_millis(100);
/// How long the end waits for requests under way; the sessions and API calls that made them have ended before.
const CLOSING: Duration = Duration::from_millis(200);
/// How long keyed workers may take for what they have then: live messages that nobody waits for any more.
const ENDING: Duration = Duration::from_secs(1);

/// One process's side of NATS.
pub struct Nats {
    pool: Arc<Pool>,
    /// The process's only ones: of live messages and of commands.
    workers: Arc<Workers>,
    name: String,
    /// The port, usable from the start.
    pub log: Arc<DeferredLog>,
    /// The port, usable from the start.
    pub control: Arc<DeferredControl>,
    /// The port, usable from the start.
    pub ledger: Arc<DeferredLedger>,
    /// Heartbeats of all replicas.
    pub replicas: Arc<NatsReplicas>,
    /// Where last positions of channels outlive their data, if anywhere.
    tails: OnceLock<Arc<dyn Tails>>,
    placement: Placement,
    reporter: Reporter,
    parts: OnceLock<Started>,
    /// The options that the pool's settings were made of.
    options: ArcSwap<crate::config::Nats>,
    /// Why the log could not be set up at the last attempt.
    trouble: ArcSwap<Option<String>>,
}

/// What is there after the first contact.
struct Started {
    log: Arc<NatsLog>,
    control: Arc<NatsControl>,
}

impl Nats {
    /// Opens the pool. No server needs to be there; fails on settings that can never work.
    pub async fn open(config: &Config, name: &str, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let pool = Pool::connect(settings::pool(&config.nats, name)).await;
        let pool = pool.map_err(|error| settings::explain(&config.nats, error))?;
        metrics.register(Box::new(PoolCollector::new(&pool)?))?;
        let replicas = NatsReplicas::start(PoolLinks::new(pool.clone()), &config.nats.prefix);
        let reporter = Reporter::new(settings::limits(&config.nats));
        reporter.add_pool("nats", &pool);
        let workers = Workers::start(settings::workers(&config.nats));
        reporter.add_workers("keyed", &workers);
        Ok(Arc::new(Self {
            pool,
            workers,
            reporter,
            name: name.to_owned(),
            log: Arc::default(),
            control: Arc::default(),
            ledger: Arc::default(),
            replicas,
            tails: OnceLock::new(),
            placement: Placement::new(config),
            parts: OnceLock::new(),
            options: ArcSwap::from_pointee(config.nats.clone()),
            trouble: ArcSwap::default(),
        }))
    }

    /// Has the log remember last positions of channels there; before [`Nats::start`].
    pub fn remember_tails(&self, tails: Arc<dyn Tails>) {
        let _ = self.tails.set(tails);
    }

    /// Sets the log up as soon as NATS lets it, trying for ever, and says when contact comes and goes. Ends only with an
    /// error that no waiting mends: a setting that contradicts what the cluster holds.
    pub fn start(self: &Arc<Self>, config: &Config) -> JoinHandle<SetupError> {
        let tails = self.tails.get().cloned();
        let tails = tails.map(|tails| TailStore { tails, ttl: settings::tails_ttl(&config.channel) });
        let (nats, config) =
            (self.clone(), LogConfig { workers: Some(self.workers.clone()), tails, ..settings::log(config) });
        tokio::spawn(async move {
            let watch = nats.watch();
            tokio::pin!(watch);
            let begin = async {
                while let Err(error) = nats.begin(&config).await {
                    if !is_passing(&error) {
                        return error;
                    }
                    tracing::error!(%error, "the log on NATS is not usable yet, trying again");
                    nats.trouble.store(Arc::new(Some(error.to_string())));
                    sleep(PAUSE).await;
                }
                nats.trouble.store(Arc::default());
                tracing::info!(prefix = config.prefix, replicas = config.replicas, "the log on NATS is usable");
                std::future::pending().await
            };
            tokio::select! {
                error = begin => error,
                () = &mut watch => std::future::pending().await,
            }
        })
    }

    async fn begin(&self, config: &LogConfig) -> Result<(), SetupError> {
        while let Err(error) = self.pool.wait_ready(ATTEMPT).await {
            let error = format!("{:#}", settings::explain(&self.options.load(), error));
            tracing::error!(error, servers = self.pool.config().servers.join(" "), "waiting for NATS");
            self.trouble.store(Arc::new(Some(error)));
        }
        let links = PoolLinks::new(self.pool.clone());
        let log = NatsLog::start(links.clone(), config.clone()).await?;
        let control = NatsControl::start(links.clone(), &config.prefix).await;
        let control = control.map_err(|error| SetupError::Unavailable {
            doing: "starting the control bus".into(),
            reason: error.to_string(),
        })?;
        let ledger = settings::ledger_of(config);
        let ledger = NatsLedger::start(links, &ledger).await.map_err(|error| SetupError::Unavailable {
            doing: "starting the ledger".into(),
            reason: error.to_string(),
        })?;
        self.ledger.set(ledger);
        // A newcomer takes nobody for present before it has heard the others.
        self.replicas.introduced(ATTEMPT).await;
        self.control.set(control.clone());
        self.log.set(log.clone());
        self.reporter.add_log("log", &log);
        // Set once: begin is not called again after it.
        let _ = self.parts.set(Started { log, control });
        Ok(())
    }

    /// What the pool uses, with warnings against limits, as JSON.
    pub fn report(&self) -> String {
        serde_json::to_string_pretty(&self.reporter.report()).unwrap_or_default()
    }

    /// Writes the report to the log.
    pub fn log_report(&self) {
        self.reporter.log();
    }

    /// Whether there was contact and the log is usable since.
    pub fn is_started(&self) -> bool {
        self.parts.get().is_some()
    }

    /// Waits for that.
    pub async fn started(&self) {
        while !self.is_started() {
            sleep(LOOK).await;
        }
    }

    /// The connections.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The keyed workers.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// What makes the report.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Puts new settings of the pool in force; those that cannot change while the process runs stay as they are.
    pub async fn reload(&self, config: &Config) -> anyhow::Result<()> {
        let old = self.pool.config();
        let new = settings::pool(&config.nats, &self.name);
        let new = PoolConfig {
            subscribing: old.subscribing,
            tls: old.tls.clone(),
            discover_servers: old.discover_servers,
            probe_subject: old.probe_subject.clone(),
            inbox_prefix: old.inbox_prefix.clone(),
            ..new
        };
        if *old == new {
            return Ok(());
        }
        let reloaded = self.pool.reload(new).await.map_err(|error| settings::explain(&config.nats, error))?;
        self.options.store(Arc::new(config.nats.clone()));
        if reloaded == Reloaded::Unproven {
            tracing::warn!(
                servers = config.nats.servers.join(" "),
                "the new settings of NATS connections are in force without contact: the old ones had none either"
            );
        }
        Ok(())
    }

    /// Records namespaces that this configuration adds, so that no replica puts them in another retention group. Fails on
    /// one that stands there with another group; what cannot be recorded now is recorded at the next start.
    pub async fn record_places(&self, config: &Config) -> Result<(), SetupError> {
        let Some(started) = self.parts.get() else { return Ok(()) };
        let namespaces = settings::log(config).namespaces;
        match tokio::time::timeout(ATTEMPT, started.log.record_namespaces(namespaces)).await {
            Ok(Err(error)) if !is_passing(&error) => Err(error),
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                tracing::warn!("NATS does not answer: new namespaces are recorded at the next start only");
                Ok(())
            }
        }
    }

    /// Whether all channels stay in their retention groups under this configuration.
    pub fn keeps_places(&self, config: &Config) -> bool {
        self.placement == Placement::new(config)
    }

    /// Ends the keyed workers, whose users have ended before, and closes all connections, after what is under way.
    pub async fn close(&self) {
        self.workers.stop(ENDING).await;
        self.pool.close(CLOSING).await;
    }
}

/// Whether the servers may do later what they do not do now.
fn is_passing(error: &SetupError) -> bool {
    matches!(error, SetupError::Unavailable { .. })
}
