//! Proof that publications are delivered: one that is sent to oneself through the log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plenum_channels::{Append, Live, LiveEvent, Log, Retention};
use plenum_protocol::Publication;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// Time in which a canary has to be subscribed, acknowledged and delivered.
const DEADLINE: Duration = Duration::from_secs(2);
/// A result answers for this long, so that frequent probes do not load the log.
const FRESH: Duration = Duration::from_secs(1);

/// Sends canaries, one at a time.
pub(crate) struct Canary {
    log: Arc<dyn Log>,
    /// Random, so that no client can be subscribed to it.
    channel: Arc<str>,
    flight: Mutex<Flight>,
    arrivals: Arc<Arrivals>,
}

/// What the last canary came to.
#[derive(Clone, Debug)]
pub(crate) enum Beat {
    /// It came back after this time.
    Delivered(Duration),
    /// It did not, for this reason.
    Dead(String),
}

#[derive(Default)]
struct Flight {
    subscribed: bool,
    number: u64,
    last: Option<(Instant, Beat)>,
}

/// The payload that came last.
struct Arrivals(watch::Sender<Bytes>);

impl Live for Arrivals {
    fn deliver(&self, events: &[LiveEvent]) {
        for event in events {
            if let LiveEvent::Publication(entry) = event {
                self.0.send_replace(entry.publication.data.clone());
            }
        }
    }
}

impl Canary {
    pub(crate) fn new(log: Arc<dyn Log>) -> Self {
        let channel = format!("$canary:{}", Uuid::new_v4()).into();
        let arrivals = Arc::new(Arrivals(watch::Sender::default()));
        Self { log, channel, flight: Mutex::default(), arrivals }
    }

    /// Sends a canary, or says what one sent less than a second ago came to. Ends within about two seconds.
    pub(crate) async fn beat(&self) -> Beat {
        let mut flight = self.flight.lock().await;
        if let Some((at, beat)) = &flight.last
            && at.elapsed() < FRESH
        {
            return beat.clone();
        }
        let started = Instant::now();
        let beat = match timeout(DEADLINE, self.fly(&mut flight)).await {
            Ok(Ok(())) => Beat::Delivered(started.elapsed()),
            Ok(Err(reason)) => Beat::Dead(reason),
            Err(_) => Beat::Dead(format!("a canary was not delivered within {} s", DEADLINE.as_secs())),
        };
        // After a failure the subscription may be what is broken.
        flight.subscribed &= matches!(beat, Beat::Delivered(_));
        flight.last = Some((Instant::now(), beat.clone()));
        beat
    }

    async fn fly(&self, flight: &mut Flight) -> Result<(), String> {
        if !flight.subscribed {
            self.log.subscribe(&self.channel, self.arrivals.clone()).await.map_err(|error| error.to_string())?;
            flight.subscribed = true;
        }
        flight.number += 1;
        let data = Bytes::from(flight.number.to_string());
        let mut arrivals = self.arrivals.0.subscribe();
        let append = Append {
            channel: self.channel.clone(),
            publication: Publication { data: data.clone(), ..Publication::default() },
            retention: Retention::NONE,
            idempotency: None,
            expected: None,
            version: None,
        };
        self.log.append(append).await.map_err(|error| error.to_string())?;
        arrivals.wait_for(|arrived| *arrived == data).await.map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.log.unsubscribe(&self.channel);
    }
}
