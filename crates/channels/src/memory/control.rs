//! In-process control: orders and questions to the replicas of one process.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::{Answer, Control, ControlError, Order, Question, Replica};

/// How long orders and questions wait for a replica.
const DEADLINE: Duration = Duration::from_secs(2);

/// What connects the replicas of one process.
#[derive(Default)]
pub struct ControlBus {
    sides: Mutex<Vec<Weak<MemoryControl>>>,
}

/// One replica's side of a [`ControlBus`]. The bus forgets it when it is dropped.
pub struct MemoryControl {
    bus: Arc<ControlBus>,
    replica: OnceLock<Arc<dyn Replica>>,
}

impl ControlBus {
    /// A bus without replicas.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One more side. It takes part once a replica is attached, and holds that replica as long as it lives.
    pub fn side(self: &Arc<Self>) -> Arc<MemoryControl> {
        let side = Arc::new(MemoryControl { bus: self.clone(), replica: OnceLock::new() });
        let mut sides = self.sides.lock();
        sides.retain(|side| side.strong_count() > 0);
        sides.push(Arc::downgrade(&side));
        side
    }

    fn replicas(&self) -> Vec<Arc<dyn Replica>> {
        let sides: Vec<_> = self.sides.lock().iter().filter_map(Weak::upgrade).collect();
        sides.iter().filter_map(|side| side.replica.get().cloned()).collect()
    }
}

impl MemoryControl {
    /// The only side of a fresh bus.
    pub fn single() -> Arc<Self> {
        ControlBus::new().side()
    }
}

#[async_trait]
impl Control for MemoryControl {
    /// A second call is ignored.
    fn attach(&self, replica: Arc<dyn Replica>) {
        if self.replica.set(replica).is_err() {
            tracing::error!("a second replica was attached to one side of control; it gets no orders");
        }
    }

    /// Ends within 2 s; a replica that is not done by then goes on by itself, and the broadcast is reported as
    /// incomplete. It also goes on everywhere when the caller does not wait for the end.
    async fn broadcast(&self, order: Order) -> Result<(), ControlError> {
        let deadline = Instant::now() + DEADLINE;
        let execute = |replica: Arc<dyn Replica>| {
            let order = order.clone();
            let task = tokio::spawn(async move { replica.execute(order).await });
            async move { matches!(timeout_at(deadline, task).await, Ok(Ok(()))) }
        };
        let done = join_all(self.bus.replicas().into_iter().map(execute)).await;
        let missing = done.iter().filter(|done| !**done).count();
        if missing == 0 {
            return Ok(());
        }
        let reason = format!("{missing} of {} replicas did not carry out the order within {DEADLINE:?}", done.len());
        Err(ControlError::Unavailable { reason })
    }

    async fn survey(&self, question: Question) -> Result<Vec<Answer>, ControlError> {
        let deadline = Instant::now() + DEADLINE;
        let ask = |replica: Arc<dyn Replica>| {
            let question = question.clone();
            let task = tokio::spawn(async move { replica.answer(question).await });
            // An answer that nobody waits for any more is not worth finishing.
            let unwanted = AbortOnDrop(task.abort_handle());
            async move {
                let _unwanted = unwanted;
                timeout_at(deadline, task).await.ok().and_then(Result::ok)
            }
        };
        Ok(join_all(self.bus.replicas().into_iter().map(ask)).await.into_iter().flatten().collect())
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
