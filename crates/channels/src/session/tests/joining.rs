//! History and live stream join with nothing missing, doubled or out of order, under random interleavings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use plenum_protocol::Encoding;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Client, api_publish, node_with, settings, text};
use crate::channel::Sabotage;
use crate::memory::MemoryLog;
use crate::{Announcement, Append, AppendError, Appended, Live, LiveEvent, Log, Page, Position, Read, ReadError, Tail};

/// The in-process log with random delays before and after each answer, and before each delivery.
struct Jittery {
    log: Arc<MemoryLog>,
    random: Arc<Mutex<SmallRng>>,
}

impl Jittery {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { log: MemoryLog::single(), random: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))) })
    }

    fn delay(random: &Mutex<SmallRng>, max_ms: u64) -> tokio::time::Sleep {
        let ms = random.lock().random_range(0..=max_ms);
        tokio::time::sleep(Duration::from_millis(ms))
    }

    async fn pause(&self) {
        Self::delay(&self.random, 40).await;
    }
}

/// Delivers in order, late.
struct Late(tokio::sync::mpsc::UnboundedSender<Vec<LiveEvent>>);

impl Late {
    fn new(live: Arc<dyn Live>, random: Arc<Mutex<SmallRng>>) -> Arc<Self> {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<Vec<LiveEvent>>();
        tokio::spawn(async move {
            while let Some(events) = receiver.recv().await {
                Jittery::delay(&random, 15).await;
                live.deliver(&events);
            }
        });
        Arc::new(Self(sender))
    }
}

impl Live for Late {
    fn deliver(&self, events: &[LiveEvent]) {
        let _ = self.0.send(events.to_vec());
    }
}

#[async_trait]
impl Log for Jittery {
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let appending = self.log.append(append);
        let random = self.random.clone();
        async move {
            let appended = appending.await;
            Self::delay(&random, 5).await;
            appended
        }
        .boxed()
    }

    async fn announce(&self, channel: &str, announcement: Announcement) -> Result<(), AppendError> {
        self.log.announce(channel, announcement).await
    }

    async fn read(&self, channel: &str, read: Read) -> Result<Page, ReadError> {
        self.pause().await;
        let page = self.log.read(channel, read).await;
        self.pause().await;
        page
    }

    async fn tail(&self, channel: &str) -> Result<Tail, ReadError> {
        self.pause().await;
        let tail = self.log.tail(channel).await;
        self.pause().await;
        tail
    }

    async fn subscribe(&self, channel: &str, live: Arc<dyn Live>) -> Result<Position, ReadError> {
        self.pause().await;
        let position = self.log.subscribe(channel, Late::new(live, self.random.clone())).await;
        self.pause().await;
        position
    }

    fn unsubscribe(&self, channel: &str) {
        self.log.unsubscribe(channel);
    }

    async fn remove(&self, channel: &str) -> Result<Position, AppendError> {
        self.log.remove(channel).await
    }
}

const PUBLICATIONS: u64 = 120;

/// Publishes throughout; a client subscribes, leaves in the middle and comes back several times. Returns what is wrong
/// with the sequence that it saw.
async fn interleave(seed: u64) -> Result<(), String> {
    let mut random = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut settings = settings();
    // Small chunks make catch-up part of the story.
    settings.client.recovery_max_publication_limit = random.random_range(1..40);
    settings.client.recovery_max_bytes = random.random_range(1024..4000);
    let log = Jittery::new(seed);
    let node = node_with(settings, log);
    let channel = "log:joining";
    // A second subscriber now and then keeps the channel subscribed between the client's visits.
    let mut neighbour = Client::connect(&node).await;
    if random.random_bool(0.5) {
        neighbour.subscribe(channel, None).await.map_err(|error| error.message.to_string())?;
    }
    let publisher = {
        let node = node.clone();
        let gap = random.random_range(1..12);
        tokio::spawn(async move {
            for number in 1..=PUBLICATIONS {
                api_publish(&node, channel, number).await;
                tokio::time::sleep(Duration::from_millis(gap)).await;
            }
        })
    };
    let mut seen: Vec<u64> = Vec::new();
    let mut position: Option<(u64, String)> = None;
    let encoding = if random.random_bool(0.5) { Encoding::Json } else { Encoding::Protobuf };
    while seen.last() != Some(&PUBLICATIONS) {
        let visit = random.random_range(20..400);
        let deadline = tokio::time::Instant::now() + Duration::from_millis(visit);
        let last = publisher.is_finished();
        let mut client = Client::attach(&node, encoding);
        client.call(plenum_protocol::Request::Connect(Box::default())).await.map_err(|error| format!("{error:?}"))?;
        let since = position.clone();
        let since = since.as_ref().map(|(offset, epoch)| (*offset, epoch.as_str()));
        let result = client.subscribe(channel, since).await.map_err(|error| format!("{error:?}"))?;
        if since.is_some() && !result.recovered {
            return Err(format!("seed {seed}: not recovered since {since:?}"));
        }
        if since.is_none() {
            // The first visit begins somewhere: what came before is not missing.
            seen.clear();
        }
        let mut offset = result.offset;
        let mut take = |publication: &plenum_protocol::Publication, offset: &mut u64| -> Result<(), String> {
            let number: u64 = text(publication).parse().map_err(|_| "not a number")?;
            if publication.offset <= *offset {
                return Err(format!("seed {seed}: offset {} after {offset}", publication.offset));
            }
            if seen.last().is_some_and(|last| number != last + 1) {
                return Err(format!("seed {seed}: {number} after {:?}", seen.last()));
            }
            *offset = publication.offset;
            seen.push(number);
            Ok(())
        };
        for publication in &result.publications {
            take(publication, &mut offset)?;
        }
        loop {
            let next = client.publication();
            match tokio::time::timeout_at(deadline, next).await {
                Ok(publication) => take(&publication, &mut offset)?,
                Err(_) => break,
            }
        }
        position = Some((offset, result.epoch));
        if last && seen.is_empty() {
            // Everything was published before the first visit.
            return Ok(());
        }
        if last && offset == 0 {
            return Ok(());
        }
        drop(client);
        if last && seen.last() != Some(&PUBLICATIONS) && visit > 350 {
            return Err(format!("seed {seed}: nothing came after {:?}", seen.last()));
        }
    }
    Ok(())
}

fn run(seed: u64, sabotage: Sabotage) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    sabotage.with(|| runtime.block_on(interleave(seed)))
}

#[test]
fn random_interleavings_lose_double_and_reorder_nothing() {
    for seed in 0..400 {
        run(seed, Sabotage::None).unwrap_or_else(|problem| panic!("{problem}"));
    }
}

#[test]
fn the_property_notices_joining_code_that_is_broken() {
    for sabotage in [Sabotage::ForgetRecent, Sabotage::RepeatRecent, Sabotage::SkipFilter] {
        let noticed = (0..400).any(|seed| run(seed, sabotage).is_err());
        assert!(noticed, "{sabotage:?} went unnoticed");
    }
}
