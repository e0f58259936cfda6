//! Consumers of commands as the configuration has them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plenum_bus_nats::publish::DeadLettersConfig;
use plenum_bus_nats::subscriber::OrderedConfig;
use plenum_channels::Node;
use plenum_worker::{ConsumerConfig, Consumers, ConsumersCollector, ConsumersParts, Mode, PublicationHeaders};
use tokio::task::JoinHandle;

use crate::config::{Config, Consumer};
use crate::nats::Nats;

/// Consumers that begin when the log is usable, and end before NATS is left.
pub struct Consuming {
    begins: JoinHandle<()>,
    consumers: Arc<Mutex<Option<Arc<Consumers>>>>,
}

impl Consuming {
    /// `None` where the configuration has none that is on.
    pub fn start(config: &Config, nats: &Arc<Nats>, node: &Arc<Node>) -> Option<Self> {
        let configs: Vec<ConsumerConfig> =
            config.consumers.iter().filter(|consumer| consumer.enabled).map(consumer).collect();
        if configs.is_empty() {
            return None;
        }
        let consumers: Arc<Mutex<Option<Arc<Consumers>>>> = Arc::default();
        let dead_letters = dead_letters(config);
        let (nats, node, begun) = (nats.clone(), node.clone(), consumers.clone());
        let begins = tokio::spawn(async move {
            nats.started().await;
            let (pool, workers) = (nats.pool().clone(), nats.workers().clone());
            let parts = ConsumersParts { pool, workers, node: node.clone(), dead_letters };
            let consumers = Consumers::start(configs, parts);
            consumers.report_to(nats.reporter());
            let collector = ConsumersCollector::new(&consumers).map_err(anyhow::Error::new);
            let registered = collector.and_then(|collector| Ok(node.metrics().register(Box::new(collector))?));
            if let Err(error) = registered {
                tracing::error!(%error, "consumers have no metrics");
            }
            *begun.lock() = Some(consumers);
        });
        Some(Self { begins, consumers })
    }

    /// Takes no more commands and finishes those that were taken, at most for `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        self.begins.abort();
        let consumers = self.consumers.lock().clone();
        let Some(consumers) = consumers else { return };
        if !consumers.drain(deadline).await {
            tracing::warn!("commands at work were cut: they are delivered again");
        }
    }
}

/// Where commands go that fail; where the log reserves no storage, neither do they.
fn dead_letters(config: &Config) -> DeadLettersConfig {
    let nats = &config.nats;
    let defaults = DeadLettersConfig::new(nats.prefix.clone());
    let reserves = nats.groups().iter().any(|group| group.max_bytes > 0);
    DeadLettersConfig { replicas: nats.replicas, max_bytes: defaults.max_bytes.filter(|_| reserves), ..defaults }
}

fn consumer(consumer: &Consumer) -> ConsumerConfig {
    let source = consumer.nats_jetstream.clone();
    let mode = source.publication_data_mode;
    let mode = if mode.enabled {
        Mode::Publications(PublicationHeaders {
            channels: mode.channels_header,
            idempotency_key: mode.idempotency_key_header,
            delta: mode.delta_header,
            version: mode.version_header,
            version_epoch: mode.version_epoch_header,
            tags_prefix: mode.tags_header_prefix,
        })
    } else {
        Mode::Commands { method_header: source.method_header }
    };
    ConsumerConfig {
        name: consumer.name.clone(),
        source: OrderedConfig {
            filters: source.subjects,
            max_unsettled: source.max_ack_pending,
            tries: source.tries,
            retry_delay: source.retry_delay,
            new_only: source.deliver_policy == "new",
            ..OrderedConfig::new(source.stream_name, source.durable_consumer_name)
        },
        mode,
        max_message_bytes: source.max_message_size,
    }
}
