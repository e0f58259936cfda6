//! A pool's numbers for Prometheus, read at each scrape.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounter, IntGauge, Opts};

use super::{Pool, Role};

/// Collects one pool. Connections are labelled by role and place, not by number, so that replaced ones make no new
/// series; `retiring` ones are only counted.
pub struct PoolCollector {
    pool: Weak<Pool>,
    up: GaugeVec,
    reconnects: GaugeVec,
    age: GaugeVec,
    round_trip: GaugeVec,
    in_flight: GaugeVec,
    unacknowledged: GaugeVec,
    failed_probes: GaugeVec,
    slow_consumers: GaugeVec,
    retiring: IntGauge,
    leases: IntGauge,
    leases_reclaimed: IntCounter,
    recycled: IntCounter,
    resized: IntCounter,
}

impl PoolCollector {
    /// A collector for this pool; collects nothing once the pool is gone.
    pub fn new(pool: &Arc<Pool>) -> Result<Self, prometheus::Error> {
        let each = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &["role", "place"]);
        Ok(PoolCollector {
            pool: Arc::downgrade(pool),
            up: each("plenum_nats_connection_up", "1 while the connection has contact with a NATS server.")?,
            reconnects: each(
                "plenum_nats_connection_reconnects",
                "Contacts after the first, of the present connection.",
            )?,
            age: each("plenum_nats_connection_age_seconds", "Age of the connection.")?,
            round_trip: each("plenum_nats_connection_round_trip_seconds", "Last measured round trip to the server.")?,
            in_flight: each("plenum_nats_connection_in_flight", "Requests in flight, at least one for each use.")?,
            unacknowledged: each(
                "plenum_nats_connection_unacknowledged",
                "Publishes of a publisher without an acknowledgement yet; the log's appends count as in flight.",
            )?,
            failed_probes: each("plenum_nats_connection_failed_probes", "Probes of the connection without an answer.")?,
            slow_consumers: each(
                "plenum_nats_connection_slow_consumers",
                "Times that a subscription's buffer was full.",
            )?,
            retiring: IntGauge::new("plenum_nats_connections_retiring", "Replaced connections with a user left.")?,
            leases: IntGauge::new("plenum_nats_leases", "Connections on lease.")?,
            leases_reclaimed: IntCounter::new("plenum_nats_leases_reclaimed_total", "Leases that were held too long.")?,
            recycled: IntCounter::new("plenum_nats_connections_recycled_total", "Connections replaced by new ones.")?,
            resized: IntCounter::new(
                "plenum_nats_connections_resized_total",
                "Connections added and removed by load.",
            )?,
        })
    }

    fn each(&self) -> [&GaugeVec; 8] {
        [
            &self.up,
            &self.reconnects,
            &self.age,
            &self.round_trip,
            &self.in_flight,
            &self.unacknowledged,
            &self.failed_probes,
            &self.slow_consumers,
        ]
    }

    fn parts(&self) -> Vec<&dyn Collector> {
        let each = self.each().into_iter().map(|part| part as &dyn Collector);
        let single: [&dyn Collector; 5] =
            [&self.retiring, &self.leases, &self.leases_reclaimed, &self.recycled, &self.resized];
        each.chain(single).collect()
    }

    fn refresh(&self, pool: &Pool) {
        let stats = pool.stats();
        for family in self.each() {
            family.reset();
        }
        let mut places = [0, 0];
        for connection in stats.connections.iter().filter(|connection| !connection.retiring) {
            let place = &mut places[usize::from(connection.role == Role::Publishing)];
            let text = place.to_string();
            *place += 1;
            let labels = [connection.role.name(), text.as_str()];
            let set = |family: &GaugeVec, value: f64| family.with_label_values(&labels).set(value);
            set(&self.up, f64::from(u8::from(connection.healthy)));
            set(&self.reconnects, connection.reconnects as f64);
            set(&self.age, connection.age_seconds);
            set(&self.in_flight, connection.in_flight as f64);
            set(&self.unacknowledged, connection.unacknowledged as f64);
            set(&self.failed_probes, connection.failed_probes as f64);
            set(&self.slow_consumers, connection.slow_consumer_events as f64);
            if let Some(ms) = connection.round_trip_ms {
                set(&self.round_trip, ms / 1e3);
            }
        }
        self.retiring.set(stats.connections.iter().filter(|connection| connection.retiring).count() as i64);
        self.leases.set(stats.leases as i64);
        for (counter, value) in [
            (&self.leases_reclaimed, stats.leases_reclaimed),
            (&self.recycled, stats.recycled),
            (&self.resized, stats.resized),
        ] {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }
}

impl Collector for PoolCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(pool) = self.pool.upgrade() else { return Vec::new() };
        self.refresh(&pool);
        self.parts().into_iter().flat_map(|part| part.collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::PoolConfig;

    #[tokio::test]
    async fn every_connection_has_its_series() {
        let pool = Pool::connect(PoolConfig::new(["127.0.0.1:1"])).await.unwrap();
        let metrics = plenum_telemetry::Metrics::new().unwrap();
        metrics.register(Box::new(PoolCollector::new(&pool).unwrap())).unwrap();
        assert!(metrics.register(Box::new(PoolCollector::new(&pool).unwrap())).is_err(), "once per process");
        let text = metrics.render();
        for series in [
            "plenum_nats_connection_up{place=\"0\",role=\"publishing\"} 0",
            "plenum_nats_connection_up{place=\"1\",role=\"publishing\"} 0",
            "plenum_nats_connection_up{place=\"0\",role=\"subscribing\"} 0",
            "plenum_nats_leases 0",
        ] {
            assert!(text.contains(series), "{series} in {text}");
        }
        drop(pool);
        assert!(!metrics.render().contains("plenum_nats"));
    }
}
