//! The keyed worker pool: order within a key, parallel across keys, bounded memory; no lock and no allocation per
//! message that is done at once. One per process: a message that waits for something holds up its key and nothing else.

mod places;
mod queue;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::histogram::{Histogram, Latency};
use crate::parcel::Parcel;
use queue::{Job, Queue};

/// Settings of a worker pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkersConfig {
    /// Workers; each is one task (default 256).
    pub workers: usize,
    /// Messages that wait for one worker, at most (default 1,000). Of work that waits ([`Terms::waits`]) as many more may
    /// have been taken by it and not be done.
    pub queue: usize,
    /// How long [`Workers::submit`] waits for room (default 500 ms).
    pub wait: Duration,
}

impl Default for WorkersConfig {
    fn default() -> Self {
        WorkersConfig { workers: 256, queue: 1000, wait: Duration::from_millis(500) }
    }
}

/// How far a message's work is after its first step.
pub enum Step {
    /// Done; costs no allocation.
    Done,
    /// The rest waits for something, until it is done or its deadline is over. What comes meanwhile for this key of this
    /// work waits behind it, in order, and the worker goes on with other messages; if [`Terms::waits`] was not announced,
    /// it takes none before this is over.
    Later(BoxFuture<'static, ()>),
}

/// Why a message that was accepted was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Its deadline passed, in the queue or at work.
    Expired,
    /// Its work panicked.
    Panicked,
    /// The pool was stopped.
    Stopped,
}

/// On which terms the messages of a work are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Time from submission in which a message must be done; `None`: as long as it takes (default 30 s).
    pub deadline: Option<Duration>,
    /// They may answer [`Step::Later`] (default false). From submission until it is done each has one of its worker's
    /// [`WorkersConfig::queue`] places for such messages, and is refused as [`Reason::Full`] when none is free: so
    /// however many keys wait, messages that are done at once find room.
    pub waits: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Terms { deadline: Some(Duration::from_secs(30)), waits: false }
    }
}

/// Work on messages of type `M`. Registered once; a reference to it travels with each message.
pub trait Work<M>: Send + Sync + 'static {
    /// Works on one message. Must not block the thread.
    fn run(self: Arc<Self>, key: u64, message: M) -> Step;

    /// Asked at each submission.
    fn terms(&self) -> Terms {
        Terms::default()
    }

    /// Says that an accepted message of this key was not done.
    fn lost(&self, key: u64, loss: Loss) {
        let _ = (key, loss);
    }
}

/// A message that was not accepted, given back.
#[derive(Debug)]
pub struct Rejected<M> {
    /// The message.
    pub message: M,
    /// Why.
    pub reason: Reason,
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its worker's queue was full, or its places for work that waits, for as long as the call may wait.
    Full,
    /// The pool is stopped.
    Stopped,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct WorkersStats {
    /// Workers.
    pub workers: usize,
    /// Messages that wait now for their worker.
    pub queued: usize,
    /// Messages that wait now for the busiest worker.
    pub longest_queue: usize,
    /// Messages of work that waits, submitted and not done.
    pub waiting: usize,
    /// Of these, those of the worker that has most.
    pub most_waiting: usize,
    /// Bound of one queue, and of one worker's messages of work that waits.
    pub queue_bound: usize,
    /// Messages done.
    pub done: u64,
    /// Times that a message was refused because a queue was full, each attempt counted.
    pub rejected: u64,
    /// Accepted messages whose deadline passed.
    pub expired: u64,
    /// Accepted messages whose work panicked.
    pub panicked: u64,
    /// Steps that kept a worker busy past their message's deadline; they were done all the same.
    pub overran: u64,
    /// Accepted messages given up at the stop.
    pub abandoned: u64,
    /// From submission to done; of every 16th message of work that does not wait.
    pub latency: Latency,
    /// From submission to done; of work that waits.
    pub waited: Latency,
}

/// The pool; that of a process carries [`Parcel`]s.
pub struct Workers<M = Parcel> {
    queues: Box<[Arc<Queue<M>>]>,
    waited: Arc<Histogram>,
    config: WorkersConfig,
    tasks: Mutex<JoinSet<()>>,
}

impl<M: Send + 'static> Workers<M> {
    /// Starts the workers on the present runtime. A queue takes its memory when its first message comes.
    pub fn start(config: WorkersConfig) -> Arc<Self> {
        let count = config.workers.max(1);
        let waited = Arc::new(Histogram::new());
        let queue = |_| Arc::new(Queue::new(config.queue.max(1), waited.clone()));
        let queues: Box<[_]> = (0..count).map(queue).collect();
        let mut tasks = JoinSet::new();
        for queue in &queues {
            tasks.spawn(worker::run(queue.clone()));
        }
        Arc::new(Workers { queues, waited, config, tasks: Mutex::new(tasks) })
    }

    /// Its settings.
    pub fn config(&self) -> WorkersConfig {
        self.config
    }

    fn queue(&self, key: u64) -> &Queue<M> {
        &self.queues[(crate::pool::spread(key) % self.queues.len() as u64) as usize]
    }

    fn job(key: u64, work: &Arc<dyn Work<M>>, message: M) -> Job<M> {
        let submitted = Instant::now();
        let Terms { deadline, waits } = work.terms();
        // A deadline beyond what the clock knows is none.
        let deadline = deadline.and_then(|deadline| submitted.checked_add(deadline));
        Job { work: work.clone(), message, key, submitted, deadline, waits, place: None }
    }

    /// Gives a message to the worker of its key, or gives it back at once. For readers that must not wait.
    pub fn try_submit(&self, key: u64, work: &Arc<dyn Work<M>>, message: M) -> Result<(), Rejected<M>> {
        let queue = self.queue(key);
        let outcome = queue.push(Self::job(key, work, message));
        outcome.map_err(|(job, reason)| queue.reject(job.message, reason))
    }

    /// Gives a message to the worker of its key; waits for room for [`WorkersConfig::wait`] and then gives it back.
    /// Messages of one work's key that are submitted one after the other are worked on in that order, each after the end of
    /// the one before it. Other work on the same number is not waited for.
    pub async fn submit(&self, key: u64, work: &Arc<dyn Work<M>>, message: M) -> Result<(), Rejected<M>> {
        let queue = self.queue(key);
        match queue.push(Self::job(key, work, message)) {
            Ok(()) => Ok(()),
            Err((job, Reason::Full)) => {
                let outcome = queue.push_within(job, self.config.wait).await;
                outcome.map_err(|(job, reason)| queue.reject(job.message, reason))
            }
            Err((job, reason)) => Err(queue.reject(job.message, reason)),
        }
    }

    /// Numbers at this moment.
    pub fn stats(&self) -> WorkersStats {
        let mut stats =
            WorkersStats { workers: self.queues.len(), queue_bound: self.config.queue, ..WorkersStats::default() };
        let latency = Histogram::new();
        for queue in &self.queues {
            queue.add_to(&mut stats);
            latency.add(&queue.latency);
        }
        (stats.latency, stats.waited) = (latency.latency(), self.waited.latency());
        stats
    }

    /// Takes no more messages, works off what waits, at most for `deadline`, and ends every task. What is left then is
    /// told [`Loss::Stopped`]; its number is returned.
    pub async fn stop(&self, deadline: Duration) -> u64 {
        let before = self.abandoned();
        for queue in &self.queues {
            queue.close();
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let all_done = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all_done).await.is_err() {
            tasks.shutdown().await;
        }
        self.queues.iter().for_each(|queue| queue.abandon());
        self.abandoned() - before
    }

    fn abandoned(&self) -> u64 {
        self.queues.iter().map(|queue| queue.abandoned.load(Ordering::Relaxed)).sum()
    }
}
