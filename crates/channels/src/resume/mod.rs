//! Resume: a connection comes back on any replica with its client id, identity and server-side subscriptions.
//!
//! The connect reply carries a sealed [`Pass`]; the client returns it in its next connect. A fence in the ledger, one
//! register a client id, says which pass opens: a pass is taken by compare-and-set, and it stays good until a frame on the
//! new connection shows that its successor has arrived.

mod changes;
mod fence;
mod grace;
mod handover;
mod pass;
mod resumption;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use parking_lot::Mutex;
use plenum_telemetry::Resume as Outcome;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use self::changes::Noted;
pub(crate) use self::fence::{Fence, Nonce};
pub(crate) use self::grace::{Grace, Leave, NewLeave};
pub(crate) use self::pass::{Pass, token_mark};
pub(crate) use self::resumption::{Join, Resumption};

use self::pass::Sealer;
use crate::{LEDGER_FULL, Ledger, LedgerError, ResumeSettings};

/// Key of the object in `data` of connect and its reply.
const FIELD: &str = "plenum";
/// A fence outlives the passes that it judges by this much, for clocks that differ.
const FENCE_MARGIN: Duration = Duration::from_secs(600);
/// Longest pass that is handed out, in characters; a connection with a larger state cannot be resumed.
const MAX_PASS: usize = 16 * 1024;
/// Between two attempts to confirm a resume, at first.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// And after some of them: the ledger may be away for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A ledger that does not answer for longer than that is not expected back at once: elections take up to 9 s.
const INTERRUPTION: Duration = Duration::from_secs(15);
/// Changes of one replica's connections that wait for room in the ledger; further ones are lost, as their client ids are.
const MAX_WAITING: usize = 1 << 16;
/// Register of the key that replicas share when none is configured.
pub(crate) const KEY_REGISTER: &str = "resume/key";
/// Registers of fences begin so.
pub(crate) const FENCES: &str = "f/";

/// What a client carries in `data` of its connect.
#[derive(Deserialize)]
struct Carried {
    plenum: Option<CarriedPass>,
}

#[derive(Deserialize)]
struct CarriedPass {
    resume: Option<String>,
}

/// What a won fence gives.
#[derive(Clone, Debug)]
pub(crate) struct Won {
    pub(crate) fence: Fence,
    revision: u64,
}

/// The replica's side of resuming.
pub(crate) struct Resume {
    ledger: Arc<dyn Ledger>,
    sealer: ArcSwapOption<Sealer>,
    /// The ledger's room is short: no fences of further client ids.
    full: AtomicBool,
    /// For changes that wait until it is not.
    waiting: Semaphore,
    /// Since when the ledger has not answered.
    away_since: Mutex<Option<Instant>>,
}

impl Resume {
    pub(crate) fn new(ledger: Arc<dyn Ledger>, settings: &ResumeSettings) -> Self {
        let resume = Self {
            ledger,
            sealer: ArcSwapOption::empty(),
            full: AtomicBool::new(false),
            waiting: Semaphore::new(MAX_WAITING),
            away_since: Mutex::new(None),
        };
        resume.configure(settings);
        resume
    }

    /// Takes a configured secret over; without one the key comes from the ledger, see [`Resume::share_key`].
    pub(crate) fn configure(&self, settings: &ResumeSettings) {
        if !settings.secret.is_empty() {
            self.sealer.store(Sealer::new(settings.secret.expose().as_bytes()).map(Arc::new));
        }
    }

    /// Looks at the ledger's room; answers how much of it is taken, in percent.
    pub(crate) async fn look_at_room(&self) -> Result<i64, LedgerError> {
        let share = self.ledger.fill().await?;
        *self.away_since.lock() = None;
        let full = share >= LEDGER_FULL;
        if full && !self.full.swap(full, Ordering::Relaxed) {
            tracing::error!(share, "the ledger is nearly full: who comes back for the first time gets a new client id");
        }
        self.full.store(full, Ordering::Relaxed);
        Ok((100.0 * share) as i64)
    }

    /// Whether passes can be sealed and opened.
    pub(crate) fn has_key(&self) -> bool {
        self.sealer.load().is_some()
    }

    /// Finds the key that the replicas share, or makes it.
    pub(crate) async fn share_key(&self) -> Result<(), LedgerError> {
        let key = match self.ledger.get(KEY_REGISTER).await? {
            Some(record) => record.value.unwrap_or_default(),
            None => {
                let made = Bytes::copy_from_slice(&rand::random::<[u8; 32]>());
                match self.ledger.put(KEY_REGISTER, Some(made.clone()), Some(0), None).await {
                    Ok(_) => made,
                    Err(_) => self.ledger.get(KEY_REGISTER).await?.and_then(|it| it.value).unwrap_or_default(),
                }
            }
        };
        if key.len() != 32 {
            return Err(LedgerError::Unavailable { reason: "the key of resume tokens is not there yet".into() });
        }
        self.sealer.store(Sealer::new(&key).map(Arc::new));
        Ok(())
    }

    /// The pass that a client returned; `None` if it returned none. It may be past the expiry of its claims: a newer token
    /// may come with it.
    pub(crate) fn open(&self, data: &Bytes, settings: &ResumeSettings, now: u64) -> Option<Result<Pass, Outcome>> {
        if !settings.enabled || data.is_empty() {
            return None;
        }
        let text = serde_json::from_slice::<Carried>(data).ok()?.plenum?.resume.filter(|text| !text.is_empty())?;
        let Some(sealer) = self.sealer.load_full() else { return Some(Err(Outcome::Unavailable)) };
        let Some(pass) = (text.len() <= MAX_PASS).then(|| sealer.open(&text)).flatten() else {
            return Some(Err(Outcome::Altered));
        };
        if pass.sealed_at.saturating_add(settings.ttl.as_secs()) <= now {
            return Some(Err(Outcome::Outdated));
        }
        Some(Ok(pass))
    }

    /// `data` of a connect reply with a pass in it, beside what the application put there; `None` if that is no JSON object,
    /// or the pass would be too large.
    pub(crate) fn enclose(&self, data: &Bytes, settings: &ResumeSettings, pass: &Pass) -> Option<Bytes> {
        if !settings.enabled {
            return None;
        }
        let text = self.sealer.load_full()?.seal(pass).filter(|text| text.len() <= MAX_PASS)?;
        let own = serde_json::json!({ "resume": text });
        if data.is_empty() {
            return Some(serde_json::json!({ FIELD: own }).to_string().into());
        }
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(data).ok()?;
        object.insert(FIELD.to_owned(), own);
        serde_json::to_vec(&object).ok().map(Bytes::from)
    }

    /// Whether the ledger has been away no longer than an election or a reconnect takes: a pass that it cannot judge now it
    /// may judge in a moment.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.away_since.lock().is_some_and(|since| since.elapsed() < INTERRUPTION)
    }

    /// Takes the pass if its time is now: exactly one of those who try at the same time succeeds.
    pub(crate) async fn take(&self, pass: &Pass, settings: &ResumeSettings) -> Result<Won, Outcome> {
        let taken = self.try_take(pass, settings).await;
        let mut away_since = self.away_since.lock();
        match taken {
            Err(Outcome::Unavailable) => _ = away_since.get_or_insert_with(Instant::now),
            _ => *away_since = None,
        }
        taken
    }

    async fn try_take(&self, pass: &Pass, settings: &ResumeSettings) -> Result<Won, Outcome> {
        let key = register(pass.client);
        let unavailable = |error: LedgerError| {
            tracing::warn!(%error, "a resume was not possible");
            Outcome::Unavailable
        };
        let mut seen: Option<Fence> = None;
        // The first pass of a client id mostly finds no fence: the compare-and-set says so by itself, without a look before it.
        let full = self.full.load(Ordering::Relaxed);
        let mut blind = pass.generation == 1 && !full;
        for _ in 0..4 {
            let record = if blind { None } else { self.ledger.get(&key).await.map_err(unavailable)? };
            let (found, revision) = match record {
                None => (None, 0),
                Some(record) => (record.value.as_deref().and_then(Fence::decode), record.revision),
            };
            // A fence that somebody else has moved since the last look: they were faster.
            if let Some(before) = &seen
                && found.as_ref().is_none_or(|found| !found.is_same_step(before))
            {
                return Err(Outcome::Outdated);
            }
            let next = Fence::accept(found.as_ref(), pass.generation, pass.nonce).ok_or(Outcome::Outdated)?;
            if full && found.is_none() {
                return Err(Outcome::Full);
            }
            match self.ledger.put(&key, Some(next.encode()), Some(revision), Some(settings.ttl + FENCE_MARGIN)).await {
                Ok(revision) => return Ok(Won { fence: next, revision }),
                Err(LedgerError::Conflict { .. }) if blind => blind = false,
                Err(LedgerError::Conflict { .. }) if found.is_none() => return Err(Outcome::Outdated),
                // A confirmation may have come between; anything else is found out by looking again.
                Err(LedgerError::Conflict { .. }) => seen = found,
                Err(LedgerError::Indeterminate) => return self.settle(&key, &next).await.map_err(unavailable)?,
                Err(error) => return Err(unavailable(error)),
            }
        }
        Err(Outcome::Outdated)
    }

    /// Finds out whether a write without an answer took place.
    async fn settle(&self, key: &str, written: &Fence) -> Result<Result<Won, Outcome>, LedgerError> {
        let record = self.ledger.get(key).await?;
        let found = record.and_then(|record| Some((Fence::decode(record.value.as_deref()?)?, record.revision)));
        Ok(match found {
            Some((fence, revision)) if fence.successor == written.successor => Ok(Won { fence, revision }),
            _ => Err(Outcome::Unavailable),
        })
    }

    /// Whether nobody has come back after this step; also while the ledger does not say.
    pub(crate) async fn is_newest(&self, client: Uuid, step: u32) -> bool {
        let Ok(Some(record)) = self.ledger.get(&register(client)).await else { return true };
        record.value.as_deref().and_then(Fence::decode).is_none_or(|fence| fence.step <= step)
    }

    /// The successor has arrived: what was taken is good no more. Until that is written both passes are usable, of which only
    /// one can be taken.
    pub(crate) async fn confirm(&self, client: Uuid, won: Won, ttl: Duration) {
        let (step, known) = (won.fence.step, Some((Some(won.fence), won.revision)));
        self.amend(client, step, known, ttl, |fence| fence.confirmed = true).await;
    }

    /// Writes down what the server API changed of a connection, which its pass does not say. Until that is written a resume
    /// does not know of it, and what was not written by then is lost.
    pub(crate) async fn note(&self, client: Uuid, step: u32, noted: &Noted, ttl: Duration) {
        // Mostly there is no fence yet: the compare-and-set says so by itself.
        let mut known = (step == 0).then_some((None, 0));
        while let Some(changes) = noted.next() {
            self.amend(client, step, known.take(), ttl, |fence| fence.changes.extend(&changes)).await;
        }
    }

    /// Changes the fence of a connection. Tried until it is written, or somebody else has taken a pass, or `ttl` is over, which
    /// ends the pass too. `known`: what is there as far as the caller knows. While the ledger has no room for a further fence
    /// the change waits without asking it: once there is room the pass opens again, and must not open without the change.
    async fn amend(
        &self,
        client: Uuid,
        step: u32,
        mut known: Option<(Option<Fence>, u64)>,
        ttl: Duration,
        change: impl Fn(&mut Fence),
    ) {
        let (key, end) = (register(client), Instant::now() + ttl);
        let (mut pause, mut conflicts) = (SHORTEST_PAUSE, 0);
        let mut permit = None;
        while Instant::now() < end {
            match self.try_amend(&key, step, &mut known, ttl, &change).await {
                Ok(Amended::Done) | Err(LedgerError::TooLarge { .. }) => return,
                Ok(Amended::Full) => {
                    permit = permit.or_else(|| self.waiting.try_acquire().ok());
                    if permit.is_none() {
                        return tracing::warn!("the ledger is full: what the API changed of a connection is lost");
                    }
                    tokio::time::sleep(LONGEST_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
                }
                // The other writer of this connection, or a resume: look again.
                Err(LedgerError::Conflict { .. }) if conflicts < 4 => conflicts += 1,
                Err(error) => {
                    tracing::debug!(%error, "a fence was not written yet");
                    // Many come back at the same time: they must not all ask at the same time as well.
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    async fn try_amend(
        &self,
        key: &str,
        step: u32,
        known: &mut Option<(Option<Fence>, u64)>,
        ttl: Duration,
        change: &impl Fn(&mut Fence),
    ) -> Result<Amended, LedgerError> {
        let (fence, revision) = match known.take() {
            Some(known) => known,
            None => match self.ledger.get(key).await? {
                Some(record) => (record.value.as_deref().and_then(Fence::decode), record.revision),
                None => (None, 0),
            },
        };
        let mut fence = match fence {
            Some(fence) if fence.step == step => fence,
            None if step == 0 => {
                // Room for blocks counts more; while it is short this client id does not come back either.
                if self.full.load(Ordering::Relaxed) {
                    *known = Some((None, revision));
                    return Ok(Amended::Full);
                }
                Fence::untaken()
            }
            _ => return Ok(Amended::Done),
        };
        change(&mut fence);
        self.ledger.put(key, Some(fence.encode()), Some(revision), Some(ttl + FENCE_MARGIN)).await?;
        Ok(Amended::Done)
    }
}

/// What came of one attempt to change a fence.
enum Amended {
    /// It is written, or there is nothing to write any more.
    Done,
    /// There is no fence yet, and no room for one.
    Full,
}

fn register(client: Uuid) -> String {
    format!("{FENCES}{}", client.simple())
}
