//! The way to the delivery workers.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use plenum_channels::{Live, Position, ReadError};
use tokio::sync::{mpsc, oneshot};

use super::links::Links;
use super::live::Worker;
use super::shard::{Shard, Tracked};
use super::stats::{Deliveries, DeliveryStats};
use crate::channel_token;

/// One call of `subscribe`.
pub(super) struct Sink {
    pub live: Arc<dyn Live>,
    /// Cleared by `unsubscribe`, so that nothing that is appended later arrives.
    pub active: AtomicBool,
}

pub(super) enum Command {
    Subscribe {
        channel: Arc<str>,
        shard: Arc<Shard>,
        sink: Arc<Sink>,
        reply: oneshot::Sender<Result<Position, ReadError>>,
    },
    Unsubscribe {
        channel: Arc<str>,
        sink: Arc<Sink>,
    },
    /// The channel with this id has something at or after the sequence.
    Require {
        id: u64,
        seq: u64,
    },
    /// Look up the end of every channel, or of those of one shard.
    Verify {
        only: Option<Look>,
    },
    /// The shard is another stream now.
    Reincarnated {
        shard: usize,
    },
}

/// A look at the ends of one shard's channels.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// The shard's index.
    pub shard: usize,
    /// Everything through here is known.
    pub behind: u64,
    /// The answer must come from a server that knows this sequence.
    pub required: u64,
}

/// The way to the workers.
#[derive(Clone)]
pub(super) struct Workers {
    commands: Arc<[mpsc::UnboundedSender<Command>]>,
    counts: Arc<[Arc<Deliveries>]>,
}

impl Workers {
    /// Starts `count` workers; they end when the last handle is dropped.
    pub fn start(count: usize, links: &Arc<dyn Links>) -> Self {
        let counts: Arc<[Arc<Deliveries>]> = (0..count.max(1)).map(|_| Arc::default()).collect();
        let worker = |(index, counts): (usize, &Arc<Deliveries>)| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Worker::new(index, links.clone(), counts.clone()).run(receiver));
            sender
        };
        Self { commands: counts.iter().enumerate().map(worker).collect(), counts }
    }

    pub fn stats(&self) -> Vec<DeliveryStats> {
        self.counts.iter().map(|counts| counts.read()).collect()
    }

    /// Commands of one channel are carried out in the order of the calls. The queue has no bound of its own: callers
    /// wait for `Subscribe`, and of the others there are at most a few per channel.
    pub fn send(&self, channel: &str, command: Command) {
        let worker = (channel_token::hash(channel) >> 40) as usize % self.commands.len();
        let _ = self.commands[worker].send(command);
    }

    pub fn require(&self, lacking: Vec<(Arc<Tracked>, u64)>) {
        for (tracked, seq) in lacking {
            let _ = self.commands[tracked.worker].send(Command::Require { id: tracked.id, seq });
        }
    }

    /// Everything of the shard through `behind` is known from ticks; what it has through `required` is looked at.
    pub fn verify_shard(&self, shard: &Shard, behind: u64, required: u64) {
        let look = Look { shard: shard.index, behind, required };
        self.send_all(|| Command::Verify { only: Some(look) });
    }

    pub fn verify_all(&self) {
        self.send_all(|| Command::Verify { only: None });
    }

    pub fn reincarnated(&self, shard: &Shard) {
        self.send_all(|| Command::Reincarnated { shard: shard.index });
    }

    fn send_all(&self, command: impl Fn() -> Command) {
        for worker in self.commands.iter() {
            let _ = worker.send(command());
        }
    }
}
