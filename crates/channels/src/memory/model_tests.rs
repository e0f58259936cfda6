//! The in-process log against a naive model that keeps everything: seeded random steps under paused time.

use std::collections::HashMap;
use std::sync::Arc;

use plenum_protocol::Publication;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Duration, Instant};

use super::{MemoryBroker, MemoryConfig, MemoryLog};
use crate::conformance::Recorder;
use crate::{Append, AppendError, IdempotencyKey, Log, Page, Position, Read, Retention, Since};

const CHANNELS: usize = 7;
const WINDOW: Duration = Duration::from_secs(300);

/// What a channel went through, never trimmed.
struct Channel {
    name: Arc<str>,
    retention: Retention,
    offsets: Vec<u64>,
    newest: Instant,
    /// Offsets up to here were removed, or had expired when something was published after them.
    hidden: u64,
    keys: HashMap<u32, (u64, Instant)>,
}

struct Model {
    log: Arc<MemoryLog>,
    channels: Vec<Channel>,
    /// The highest offset of any channel that the log may have forgotten.
    forgotten: u64,
    /// The log may trim by bytes: it may know less than the model.
    trims: bool,
    position: Position,
}

impl Channel {
    fn last(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// What a reader sees, by the words of the port.
    fn visible(&self, retention: &Retention) -> &[u64] {
        let expired = !retention.keeps_history() || self.newest.elapsed() >= retention.ttl;
        let from = match expired {
            true => self.offsets.len(),
            false => self.offsets.partition_point(|&offset| offset <= self.hidden),
        };
        &self.offsets[from.max(self.offsets.len().saturating_sub(retention.size))..]
    }

    fn remembered(&self) -> bool {
        let age = self.newest.elapsed();
        let readable = age < self.retention.ttl && self.hidden < self.last();
        !self.offsets.is_empty() && (age < self.retention.meta_ttl || readable)
    }
}

impl Model {
    fn new(config: MemoryConfig, trims: bool) -> Self {
        let seconds = Duration::from_secs;
        let retentions = [(5, 10, 60), (50, 5, 5), (3, 30, 20), (1, 100, 1000), (1000, 20, 40), (0, 0, 30), (0, 0, 0)];
        let channel = |(index, (size, ttl, meta)): (usize, (usize, u64, u64))| Channel {
            name: format!("channel {index}").into(),
            retention: Retention { size, ttl: seconds(ttl), meta_ttl: seconds(meta) },
            offsets: Vec::new(),
            newest: Instant::now(),
            hidden: 0,
            keys: HashMap::new(),
        };
        let channels: Vec<_> = retentions.into_iter().enumerate().map(channel).collect();
        assert_eq!(channels.len(), CHANNELS);
        let log = MemoryBroker::new(config).replica();
        Self { log, channels, forgotten: 0, trims, position: Position::default() }
    }

    async fn step(&mut self, rng: &mut StdRng) {
        for channel in &self.channels {
            if !channel.remembered() {
                self.forgotten = self.forgotten.max(channel.last());
            }
        }
        let index = rng.random_range(0..CHANNELS);
        match rng.random_range(0..100) {
            0..45 => self.append(index, rng).await,
            45..85 => self.read(index, rng).await,
            85..88 => self.remove(index).await,
            88..91 => drop(self.log.subscribe(&self.channels[index].name, Recorder::new()).await),
            91..94 => self.log.unsubscribe(&self.channels[index].name),
            _ => {
                let by =
                    Duration::from_millis(rng.random_range(1..=15) * if rng.random_bool(0.5) { 100 } else { 1000 });
                tokio::time::advance(by).await;
                tokio::task::yield_now().await;
            }
        }
    }

    async fn append(&mut self, index: usize, rng: &mut StdRng) {
        let trims = self.trims;
        let channel = &mut self.channels[index];
        let key = rng.random_bool(0.2).then(|| rng.random_range(0..4));
        let known = key.and_then(|key| channel.keys.get(&key)).filter(|(_, at)| at.elapsed() < WINDOW).copied();
        // A log that forgot the channel may refuse any expectation.
        let certain = channel.remembered() && !trims;
        let expected = (certain && rng.random_bool(0.2)).then(|| channel.last() + rng.random_range(0..2));
        let data = vec![b'x'; rng.random_range(0..200)];
        let call = Append {
            channel: channel.name.clone(),
            publication: Publication { data: data.into(), ..Publication::default() },
            retention: channel.retention,
            idempotency: key.map(|key| IdempotencyKey { scope: "s".into(), key: key.to_string() }),
            expected,
            version: None,
        };
        let result = self.log.append(call).await;
        if let Some((offset, _)) = known {
            let appended = result.unwrap();
            assert_eq!((appended.position.offset, appended.duplicate), (offset, true));
            return;
        }
        if let Some(expected) = expected
            && expected != channel.last()
        {
            assert_eq!(result, Err(AppendError::Conflict { expected, last: channel.last() }));
            return;
        }
        let appended = result.unwrap();
        let offset = appended.position.offset;
        assert!(!appended.duplicate && offset > channel.last());
        if channel.visible(&channel.retention).is_empty() {
            channel.hidden = channel.last();
        }
        channel.offsets.push(offset);
        channel.newest = Instant::now();
        self.position = appended.position;
        if let Some(key) = key {
            channel.keys.insert(key, (offset, Instant::now()));
        }
    }

    async fn remove(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        let position = self.log.remove(&channel.name).await.unwrap();
        assert!(position.offset >= channel.last());
        channel.hidden = channel.last();
    }

    async fn read(&mut self, index: usize, rng: &mut StdRng) {
        let channel = &self.channels[index];
        let since = match rng.random_range(0..8) {
            0 => 0,
            1 => channel.last() + rng.random_range(0..3),
            _ if channel.offsets.is_empty() => 0,
            _ => channel.offsets[rng.random_range(0..channel.offsets.len())].saturating_sub(rng.random_range(0..2)),
        };
        let mut retention = channel.retention;
        if rng.random_bool(0.2) {
            retention.size = rng.random_range(0..=retention.size);
        }
        if rng.random_bool(0.1) {
            retention.ttl /= 2;
        }
        let reverse = rng.random_bool(0.3);
        let from = match rng.random_bool(0.2) || self.position.epoch.as_str().is_empty() {
            true => Since::End,
            false => Since::Position(Position { offset: since, epoch: self.position.epoch.clone() }),
        };
        let limit = rng.random_range(0..20);
        let read = Read { since: from.clone(), reverse, limit, max_bytes: usize::MAX, retention };
        let page = self.log.read(&channel.name, read).await.unwrap();
        self.check(channel, &retention, &from, reverse, limit, &page);
    }

    fn check(&self, channel: &Channel, retention: &Retention, from: &Since, reverse: bool, limit: usize, page: &Page) {
        let context = format!("{} {retention:?} {from:?} reverse {reverse}: {page:?}", channel.name);
        let (visible, mut wanted) = (channel.visible(retention), channel.visible(retention).to_vec());
        if let Since::Position(since) = from {
            wanted.retain(|&offset| if reverse { offset < since.offset } else { offset > since.offset });
        }
        let got: Vec<u64> = page.entries.iter().map(|entry| entry.offset).collect();
        if reverse {
            wanted.reverse();
        }
        match self.trims {
            false => {
                assert_eq!(got, wanted[..wanted.len().min(limit)], "{context}");
                assert_eq!(page.more, wanted.len() > limit, "{context}");
            }
            true if reverse => assert!(wanted.starts_with(&got), "{context}"),
            true => assert!(got.iter().all(|offset| wanted.contains(offset)), "{context}"),
        }
        assert!(page.top.offset >= channel.last(), "{context}");
        if channel.remembered() && !self.trims {
            assert_eq!(page.top.offset, channel.last(), "{context}");
        }
        let Since::Position(since) = from else { return };
        let all_after = channel.offsets.iter().filter(|&&offset| offset > since.offset);
        let truth = match reverse {
            false => all_after.clone().all(|offset| visible.contains(offset)) && since.offset <= page.top.offset,
            true => since.offset <= page.top.offset && (!wanted.is_empty() || channel.offsets.is_empty()),
        };
        // Nothing below the first publication: complete, though there is nothing to show for it.
        let nothing_below = reverse && channel.offsets.first().is_none_or(|&first| first >= since.offset);
        assert!(!page.complete || truth || nothing_below, "not complete: {context}");
        if page.complete && !reverse {
            let due: Vec<u64> = all_after.copied().take(limit).collect();
            assert_eq!(got, due, "{context}");
        }
        if !reverse && truth && !self.trims && channel.remembered() && since.offset >= self.forgotten {
            assert!(page.complete, "complete: {context}");
        }
    }
}

async fn run(seed: u64, config: MemoryConfig, trims: bool) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::new(config, trims);
    for step in 0..600 {
        // Shown with the failure of a test.
        println!("seed {seed} step {step}");
        model.step(&mut rng).await;
    }
}

#[tokio::test(start_paused = true)]
async fn random_steps_agree_with_the_model() {
    for seed in 0..250 {
        let shards = 1 + seed as usize % 3;
        run(seed, MemoryConfig { shards, idempotency_window: WINDOW, ..MemoryConfig::default() }, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn random_steps_within_few_bytes_never_claim_too_much() {
    for seed in 1000..1150 {
        let config =
            MemoryConfig { shards: 2, max_bytes: 16_384, idempotency_window: WINDOW, ..MemoryConfig::default() };
        run(seed, config, true).await;
    }
}
