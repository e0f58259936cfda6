//! The port `Replicas` on core NATS: a heartbeat twice a second to everybody, judged by each reader for itself.
//!
//! Nothing is stored. Heartbeats are sent and heard over one connection, so that an own one that comes back proves that
//! this replica hears those of the others; the rules are those of [`plenum_channels::vigil`].

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use parking_lot::Mutex;
use plenum_channels::vigil::{BEAT, Beat, Vigil};
use plenum_channels::{Census, Incarnation, Replicas};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::log::Links;

/// How long NATS may take to accept a heartbeat or a subscription.
const DEADLINE: Duration = Duration::from_secs(1);

/// Pause before the subscription is made again.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a newcomer waits, once it hears itself, for the answers of those that are there.
const INTRODUCTION: Duration = Duration::from_millis(300);

/// Bytes of a heartbeat; longer ones come from later versions, and what they add is passed over.
const BEAT_BYTES: usize = 21;

const RESIGNED: u8 = 1;

/// One replica's heartbeats, and its view of the others. Its tasks end when it is dropped.
pub struct NatsReplicas {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

struct Inner {
    links: Arc<dyn Links>,
    subject: String,
    vigil: Mutex<Vigil>,
    view: ArcSwap<View>,
    /// A heartbeat is due before its time.
    hurry: Notify,
    /// Own heartbeats come back.
    heard: watch::Sender<bool>,
}

/// A census, and until when it is true if nothing is heard.
struct View {
    census: Arc<Census>,
    valid: Instant,
}

impl NatsReplicas {
    /// Begins to beat on `<prefix>.control.beat`, as soon as NATS can be reached. Must be called within a tokio runtime.
    pub fn start(links: Arc<dyn Links>, prefix: &str) -> Arc<Self> {
        let mut vigil = Vigil::new(rand::random());
        let (census, valid) = vigil.census(Instant::now());
        let inner = Arc::new(Inner {
            links,
            subject: format!("{prefix}.control.beat"),
            vigil: Mutex::new(vigil),
            view: ArcSwap::from_pointee(View { census: Arc::new(census), valid }),
            hurry: Notify::new(),
            heard: watch::Sender::new(false),
        });
        let client = inner.links.subscribing(0);
        let tasks = vec![tokio::spawn(inner.clone().follow(client.clone())), tokio::spawn(inner.clone().beat(client))];
        Arc::new(Self { inner, tasks })
    }

    /// Waits until this replica knows the others, each of which answers a newcomer at once; false after `patience`.
    pub async fn introduced(&self, patience: Duration) -> bool {
        let mut heard = self.inner.heard.subscribe();
        let introduced = async {
            if heard.wait_for(|heard| *heard).await.is_ok() {
                sleep(INTRODUCTION).await;
            }
        };
        timeout(patience, introduced).await.is_ok()
    }
}

impl Drop for NatsReplicas {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Replicas for NatsReplicas {
    fn census(&self) -> Arc<Census> {
        let now = Instant::now();
        let view = self.inner.view.load();
        // A pause ends here, too, before the tasks of this replica have noticed it.
        if now <= view.valid { view.census.clone() } else { self.inner.look(&mut self.inner.vigil.lock(), now) }
    }

    fn begin_anew(&self) {
        let mut vigil = self.inner.vigil.lock();
        vigil.begin_anew();
        self.inner.look(&mut vigil, Instant::now());
        drop(vigil);
        self.inner.hurry.notify_one();
    }

    fn resign(&self) {
        let mut vigil = self.inner.vigil.lock();
        vigil.resign();
        self.inner.look(&mut vigil, Instant::now());
        drop(vigil);
        self.inner.hurry.notify_one();
    }
}

impl Inner {
    fn look(&self, vigil: &mut Vigil, now: Instant) -> Arc<Census> {
        let (census, valid) = vigil.census(now);
        let census = Arc::new(census);
        let before = self.view.swap(Arc::new(View { census: census.clone(), valid }));
        if before.census.own != census.own {
            let generation = census.own.generation;
            tracing::warn!(generation, "this replica was not heard for a while: it begins another generation");
        }
        census
    }

    async fn beat(self: Arc<Self>, client: Client) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = beats.tick() => {}
                () = self.hurry.notified() => {}
            }
            // What waits in a buffer until there is a connection again would tell the others of a life that was.
            if client.connection_state() != State::Connected {
                continue;
            }
            let beat = {
                let mut vigil = self.vigil.lock();
                let now = Instant::now();
                let beat = vigil.beat(now);
                self.look(&mut vigil, now);
                beat
            };
            let _ = timeout(DEADLINE, client.publish(self.subject.clone(), encode(beat).into())).await;
        }
    }

    async fn follow(self: Arc<Self>, client: Client) {
        loop {
            if let Ok(Ok(beats)) = timeout(DEADLINE, client.subscribe(self.subject.clone())).await {
                self.hurry.notify_one();
                self.hear(beats).await;
            }
            sleep(AGAIN).await;
        }
    }

    async fn hear(&self, mut beats: Subscriber) {
        while let Some(message) = beats.next().await {
            let Some(beat) = decode(&message.payload) else { continue };
            let mut vigil = self.vigil.lock();
            let now = Instant::now();
            if vigil.hear(beat, now) {
                self.hurry.notify_one();
            }
            let census = self.look(&mut vigil, now);
            drop(vigil);
            if beat.from == census.own {
                self.heard.send_replace(true);
            }
        }
    }
}

fn encode(beat: Beat) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BEAT_BYTES);
    bytes.extend_from_slice(&beat.from.replica.to_le_bytes());
    bytes.extend_from_slice(&beat.from.generation.to_le_bytes());
    bytes.extend_from_slice(&beat.counter.to_le_bytes());
    bytes.push(if beat.resigned { RESIGNED } else { 0 });
    bytes
}

/// The heartbeat in a message; `None` for anything else.
pub(crate) fn decode(bytes: &[u8]) -> Option<Beat> {
    let (replica, rest) = bytes.split_first_chunk()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (counter, rest) = rest.split_first_chunk()?;
    let from = Incarnation { replica: u64::from_le_bytes(*replica), generation: u32::from_le_bytes(*generation) };
    Some(Beat { from, counter: u64::from_le_bytes(*counter), resigned: rest.first()? & RESIGNED != 0 })
}
