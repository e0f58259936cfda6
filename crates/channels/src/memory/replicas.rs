//! In-process heartbeats: the replicas of one process, as tests and the embedded mode have them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::vigil::{BEAT, Beat, Vigil};
use crate::{Census, Incarnation, Replicas};

/// What carries the heartbeats of the replicas of one process.
#[derive(Default)]
pub struct ReplicaBus {
    sides: Mutex<Vec<Weak<MemoryReplicas>>>,
}

/// One replica's side of a [`ReplicaBus`]. It lives, for the others, until it is dropped.
pub struct MemoryReplicas {
    bus: Arc<ReplicaBus>,
    vigil: Mutex<Vigil>,
    cut: AtomicBool,
    beating: Mutex<Option<JoinHandle<()>>>,
}

/// The only replica: always alive, always judging.
pub struct SoleReplica(ArcSwap<Census>);

impl ReplicaBus {
    /// A bus without replicas.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// One more replica, whose heart beats from now on. Must be called within a tokio runtime.
    pub fn side(self: &Arc<Self>) -> Arc<MemoryReplicas> {
        let side = Arc::new(MemoryReplicas {
            bus: self.clone(),
            vigil: Mutex::new(Vigil::new(rand::random())),
            cut: AtomicBool::new(false),
            beating: Mutex::default(),
        });
        self.sides.lock().push(Arc::downgrade(&side));
        *side.beating.lock() = Some(tokio::spawn(beat(Arc::downgrade(&side))));
        side
    }

    fn carry(&self, beat: Beat) {
        let mut sides = self.sides.lock();
        sides.retain(|side| side.strong_count() > 0);
        let sides: Vec<_> = sides.iter().filter_map(Weak::upgrade).collect();
        for side in sides {
            if !side.cut.load(Ordering::Relaxed) && side.vigil.lock().hear(beat, Instant::now()) {
                // A newcomer learns at once who is there.
                tokio::spawn(async move { side.show_life() });
            }
        }
    }
}

async fn beat(side: Weak<MemoryReplicas>) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        beats.tick().await;
        let Some(side) = side.upgrade() else { return };
        side.show_life();
    }
}

impl MemoryReplicas {
    /// Cuts this replica off from the bus, itself included, or joins it again.
    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    fn show_life(&self) {
        if self.cut.load(Ordering::Relaxed) {
            return;
        }
        let beat = self.vigil.lock().beat(Instant::now());
        self.bus.carry(beat);
    }
}

impl Drop for MemoryReplicas {
    fn drop(&mut self) {
        if let Some(beating) = self.beating.lock().take() {
            beating.abort();
        }
    }
}

impl Replicas for MemoryReplicas {
    fn census(&self) -> Arc<Census> {
        Arc::new(self.vigil.lock().census(Instant::now()).0)
    }

    fn begin_anew(&self) {
        self.vigil.lock().begin_anew();
        self.show_life();
    }

    fn resign(&self) {
        self.vigil.lock().resign();
        self.show_life();
    }
}

impl SoleReplica {
    /// A replica without others.
    pub fn new() -> Arc<Self> {
        let own = Incarnation { replica: rand::random(), generation: 1 };
        let alive = Arc::new(HashMap::from_iter([(own.replica, own.generation)]));
        Arc::new(Self(ArcSwap::from_pointee(Census { own, alive, judging: true })))
    }
}

impl Replicas for SoleReplica {
    fn census(&self) -> Arc<Census> {
        self.0.load_full()
    }

    fn begin_anew(&self) {
        let Incarnation { replica, generation } = self.0.load().own;
        let own = Incarnation { replica, generation: generation + 1 };
        let alive = Arc::new(HashMap::from_iter([(own.replica, own.generation)]));
        self.0.store(Arc::new(Census { own, alive, judging: true }));
    }

    fn resign(&self) {
        let own = self.0.load().own;
        self.0.store(Arc::new(Census { own, alive: Arc::default(), judging: false }));
    }
}
