//! All consumers of a process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use plenum_api::Commands;
use plenum_bus_nats::pool::Pool;
use plenum_bus_nats::publish::{DeadLetters, DeadLettersConfig, FailedPublish, Publisher, PublisherConfig};
use plenum_bus_nats::report::Reporter;
use plenum_bus_nats::subscriber::{Subscription, SubscriptionStats};
use plenum_bus_nats::workers::Workers;
use plenum_channels::Node;

use crate::config::ConsumerConfig;
use crate::consumer::Consumer;

/// What consumers work with.
pub struct ConsumersParts {
    /// Connections to NATS.
    pub pool: Arc<Pool>,
    /// The keyed workers of the process; they end after the consumers.
    pub workers: Arc<Workers>,
    /// What commands are carried out on.
    pub node: Arc<Node>,
    /// Where those go that fail.
    pub dead_letters: DeadLettersConfig,
}

/// Consumers at work.
pub struct Consumers {
    publisher: Arc<Publisher>,
    running: Vec<(String, Arc<Subscription>)>,
}

impl Consumers {
    /// Starts them and returns at once. To be called when the node's log is usable: what fails before counts as tried.
    pub fn start(configs: Vec<ConsumerConfig>, parts: ConsumersParts) -> Arc<Self> {
        let ConsumersParts { pool, workers, node, dead_letters } = parts;
        // Dead letters are published one by one, so that nothing ever fails behind a caller's back.
        let publisher = Arc::new(Publisher::new(pool.clone(), PublisherConfig::default(), |_: FailedPublish| {}));
        let dead_letters = Arc::new(DeadLetters::new(pool.clone(), publisher.clone(), dead_letters));
        let commands = Commands::new(node);
        let running = configs.into_iter().map(|config| {
            let (name, source) = (config.name.clone(), config.source.clone());
            tracing::info!(consumer = name, stream = source.stream, durable = source.durable, "consuming commands");
            let (commands, dead_letters) = (commands.clone(), dead_letters.clone());
            let consumer = Arc::new(Consumer { config, commands, dead_letters });
            (name, Arc::new(Subscription::ordered(&pool, source, consumer, &workers)))
        });
        let running = running.collect();
        Arc::new(Consumers { publisher, running })
    }

    /// Has a report tell of them.
    pub fn report_to(&self, reporter: &Reporter) {
        reporter.add_publisher("dead letters", &self.publisher);
        for (name, subscription) in &self.running {
            reporter.add_subscription(name.clone(), subscription);
        }
    }

    /// Takes no more commands, finishes those that were taken, at most for `deadline`, and ends. What is left is delivered
    /// again, to another process or later. False if something was left.
    pub async fn drain(&self, deadline: Duration) -> bool {
        let drained = join_all(self.running.iter().map(|(_, subscription)| subscription.drain(deadline))).await;
        drained.into_iter().all(|all| all)
    }

    /// Name and numbers of each.
    pub fn stats(&self) -> Vec<(String, SubscriptionStats)> {
        self.running.iter().map(|(name, subscription)| (name.clone(), subscription.stats())).collect()
    }
}
