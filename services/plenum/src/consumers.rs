//! Consumers of commands as the configuration has them.

use std::sync::Arc;

use plenum_bus_nats::publish::DeadLettersConfig;
use plenum_bus_nats::subscriber::OrderedConfig;
use plenum_channels::Node;
use plenum_worker::{ConsumerConfig, Consumers, ConsumersCollector, ConsumersParts, Mode, PublicationHeaders};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, Consumer};
use crate::nats::Nats;

/// Consumers that begin when the log is usable, and end before NATS is left.
pub struct Consuming {
    begins: JoinHandle<Arc<Consumers>>,
}

impl Consuming {
    /// `None` where the configuration has none that is on.
    pub fn start(config: &Config, nats: &Arc<Nats>, node: &Arc<Node>) -> Option<Self> {
        let configs: Vec<ConsumerConfig> =
            config.consumers.iter().filter(|consumer| consumer.enabled).map(consumer).collect();
        if configs.is_empty() {
            return None;
        }
        let dead_letters = dead_letters(config);
        let (nats, node) = (nats.clone(), node.clone());
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
            consumers
        });
        Some(Self { begins })
    }

    /// Takes no more commands and finishes those that were taken, at most until `deadline`, which may change meanwhile.
    pub async fn drain(self, mut deadline: watch::Receiver<Instant>) {
        let Some(consumers) = begun(self.begins).await else { return };
        loop {
            let left = deadline.borrow_and_update().saturating_duration_since(Instant::now());
            tokio::select! {
                finished = consumers.drain(left) => {
                    if !finished {
                        tracing::warn!("commands at work were cut: they are delivered again");
                    }
                    return;
                }
                Ok(()) = deadline.changed() => {}
            }
        }
    }
}

/// What a task has made or is making at this moment; `None` if it still waits.
async fn begun<T>(begins: JoinHandle<T>) -> Option<T> {
    begins.abort();
    begins.await.ok()
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_begins_while_it_is_told_to_end_is_there_to_be_ended() {
        let (begins, has_begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let task = tokio::spawn(async move {
            begins.send(()).unwrap();
            goes_on.recv_timeout(Duration::from_secs(60)).unwrap();
            "consumers"
        });
        has_begun.recv_timeout(Duration::from_secs(60)).unwrap();
        let begun = tokio::spawn(begun(task));
        tokio::task::yield_now().await;
        go_on.send(()).unwrap();
        assert_eq!(begun.await.unwrap(), Some("consumers"));
        assert_eq!(super::begun(tokio::spawn(std::future::pending::<()>())).await, None);
    }
}
