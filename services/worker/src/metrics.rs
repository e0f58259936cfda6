//! The numbers of all consumers for Prometheus, read at each scrape. Labels are names from the configuration.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use crate::consumers::Consumers;

/// Collects one process's consumers.
pub struct ConsumersCollector {
    consumers: Weak<Consumers>,
    commands: IntCounterVec,
    tries: IntCounterVec,
    redelivered: IntCounterVec,
    reopened: IntCounterVec,
    remaining: IntGaugeVec,
    unsettled: IntGaugeVec,
}

impl ConsumersCollector {
    /// A collector for these; collects nothing once they are gone.
    pub fn new(consumers: &Arc<Consumers>) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["consumer"]);
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["consumer"]);
        let commands = Opts::new(
            "plenum_consumer_commands_total",
            "Commands that were carried out (done), or put among the dead letters (failed).",
        );
        Ok(ConsumersCollector {
            consumers: Arc::downgrade(consumers),
            commands: IntCounterVec::new(commands, &["consumer", "result"])?,
            tries: counter(
                "plenum_consumer_failed_tries_total",
                "Tries of commands that failed and were to be repeated.",
            )?,
            redelivered: counter(
                "plenum_consumer_redelivered_total",
                "Deliveries of a command after the first: its process ended, or contact with NATS was lost.",
            )?,
            reopened: counter("plenum_consumer_reopened_total", "Times that the NATS consumer had to be opened anew.")?,
            remaining: gauge(
                "plenum_consumer_remaining",
                "Commands in the stream that no process has taken, at the last look, at most 5 s ago.",
            )?,
            unsettled: gauge("plenum_consumer_unsettled", "Commands that this process has taken and not settled.")?,
        })
    }

    fn parts(&self) -> [&dyn Collector; 6] {
        [&self.commands, &self.tries, &self.redelivered, &self.reopened, &self.remaining, &self.unsettled]
    }

    fn refresh(&self, consumers: &Consumers) {
        for (name, stats) in consumers.stats() {
            let name = name.as_str();
            for (family, labels, value) in [
                (&self.commands, &[name, "done"][..], stats.processed),
                (&self.commands, &[name, "failed"], stats.exhausted),
                (&self.tries, &[name], stats.failed + stats.panicked + stats.timed_out),
                (&self.redelivered, &[name], stats.redelivered),
                (&self.reopened, &[name], stats.reopened),
            ] {
                let counter = family.with_label_values(labels);
                counter.inc_by(value.saturating_sub(counter.get()));
            }
            let gauge = |family: &IntGaugeVec, value: u64| {
                family.with_label_values(&[name]).set(i64::try_from(value).unwrap_or(i64::MAX));
            };
            gauge(&self.remaining, stats.remaining);
            gauge(&self.unsettled, stats.pending as u64);
        }
    }
}

impl Collector for ConsumersCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(consumers) = self.consumers.upgrade() else { return Vec::new() };
        self.refresh(&consumers);
        self.parts().into_iter().flat_map(|part| part.collect()).collect()
    }
}
