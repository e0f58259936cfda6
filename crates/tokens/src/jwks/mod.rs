//! Keys fetched from key set endpoints: cached, refreshed, one flight at a time per endpoint.
//!
//! Keys are found by the endpoint's resolved URL and `kid` together, since issuers choose `kid` freely: a key of one
//! issuer never verifies a token of another.
//!
//! - A set is used for an hour, then fetched again by the first token that needs it.
//! - An unknown `kid` asks for a new set, at most once per [`Times::interval`] and endpoint whatever clients send;
//!   tokens that come in between wait for that fetch. They are refused only by a set that was requested after they
//!   came, so that a new key counts at once.
//! - While fetching fails, known keys go on being used up to a day after they were fetched; other tokens get
//!   [`TokenError::Unavailable`] at once, and the endpoint is tried again at most once per interval.
//!
//! A token waits at most for the fetch under way, an interval and one fetch more: 10 s with the default [`Times`].

mod fetch;
mod set;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use parking_lot::Mutex;
use plenum_channels::TokenError;
use tokio::sync::watch;

pub(crate) use self::fetch::Fetcher;
use self::set::{KeySet, Keys};
use crate::clock::Clock;
use crate::jose::invalid;

/// Most endpoints that are remembered; past it the one fetched longest ago is forgotten.
const MAX_ENDPOINTS: usize = 1000;

/// How long what holds.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    /// A set is used so long without asking again.
    pub(crate) fresh: Duration,
    /// A set is used so long at most, while it cannot be fetched.
    pub(crate) stale: Duration,
    /// Between the end of a fetch and the next one from the same endpoint.
    pub(crate) interval: Duration,
    /// For one fetch, from connecting to the last byte.
    pub(crate) fetch: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(3600),
            stale: Duration::from_secs(24 * 3600),
            interval: Duration::from_secs(2),
            fetch: Duration::from_secs(4),
        }
    }
}

/// All endpoints of one verifier.
pub(crate) struct Cache {
    fetcher: Arc<Fetcher>,
    times: Times,
    clock: Clock,
    sources: Mutex<HashMap<String, Arc<Source>>>,
}

/// One endpoint.
struct Source {
    url: Uri,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last set that came, and when it had come.
    set: Option<(KeySet, Instant)>,
    last: Option<Attempt>,
    /// Closed when the fetch that is under way has ended.
    flight: Option<watch::Receiver<()>>,
}

/// The last fetch that ended.
struct Attempt {
    requested: Instant,
    ended: Instant,
    failure: Option<String>,
}

enum Step {
    Done(Result<Keys, TokenError>),
    Wait(watch::Receiver<()>),
}

impl Cache {
    pub(crate) fn new(fetcher: Fetcher, times: Times, clock: Clock) -> Self {
        Self { fetcher: Arc::new(fetcher), times, clock, sources: Mutex::default() }
    }

    /// The keys with this `kid` at this endpoint.
    ///
    /// # Errors
    /// `Invalid` when the endpoint has no such key, `Unavailable` when that could not be found out.
    pub(crate) async fn find(&self, url: &str, kid: &str) -> Result<Keys, TokenError> {
        let source = self.source(url)?;
        let begun = self.clock.now();
        loop {
            match self.step(&source, kid, begun) {
                Step::Done(result) => return result,
                // It ends by being closed, also when the fetching task was lost.
                Step::Wait(mut flight) => while flight.changed().await.is_ok() {},
            }
        }
    }

    fn source(&self, url: &str) -> Result<Arc<Source>, TokenError> {
        let mut sources = self.sources.lock();
        if let Some(source) = sources.get(url) {
            return Ok(source.clone());
        }
        let uri = url.parse().map_err(|_| invalid("issuer or audience do not make a URL of a key set"))?;
        if sources.len() >= MAX_ENDPOINTS {
            let oldest =
                sources.iter().min_by_key(|(_, source)| source.state.lock().last.as_ref().map(|last| last.ended));
            if let Some(oldest) = oldest.map(|(url, _)| url.clone()) {
                sources.remove(&oldest);
            }
        }
        let source = Arc::new(Source { url: uri, state: Mutex::default() });
        sources.insert(url.to_owned(), source.clone());
        Ok(source)
    }

    /// What to do for a token that came at `begun`.
    fn step(&self, source: &Arc<Source>, kid: &str, begun: Instant) -> Step {
        let now = self.clock.now();
        let mut state = source.state.lock();
        let known = state.set.as_ref().and_then(|(set, came)| Some((set.get(kid)?.clone(), now.duration_since(*came))));
        if let Some((keys, age)) = &known
            && *age < self.times.fresh
        {
            return Step::Done(Ok(keys.clone()));
        }
        if let Some(flight) = &state.flight
            && flight.has_changed().is_ok()
        {
            return Step::Wait(flight.clone());
        }
        let usable = known.filter(|(_, age)| *age < self.times.stale).map(|(keys, _)| keys);
        let mut delay = Duration::ZERO;
        if let Some(last) = &state.last {
            delay = (last.ended + self.times.interval).saturating_duration_since(now);
            match &last.failure {
                None if last.requested >= begun => {
                    return Step::Done(Err(invalid("the key set has no key of this kid")));
                }
                Some(failure) if last.requested >= begun || !delay.is_zero() => {
                    let unavailable = || TokenError::Unavailable { reason: format!("key set endpoint: {failure}") };
                    return Step::Done(usable.ok_or_else(unavailable));
                }
                _ => {}
            }
        }
        let flight = self.launch(source, delay);
        state.flight = Some(flight.clone());
        Step::Wait(flight)
    }

    /// Fetches in a task of its own: the connection that asked may go away, those that wait with it do not.
    fn launch(&self, source: &Arc<Source>, delay: Duration) -> watch::Receiver<()> {
        let (landed, flight) = watch::channel(());
        let (source, fetcher, clock) = (source.clone(), self.fetcher.clone(), self.clock.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let requested = clock.now();
            let fetched = fetcher.fetch(&source.url).await;
            let ended = clock.now();
            let host = source.url.host().unwrap_or_default();
            let mut state = source.state.lock();
            let failure = match fetched {
                Ok(set) => {
                    tracing::info!(host, keys = set.len(), "fetched a key set for tokens");
                    state.set = Some((set, ended));
                    None
                }
                Err(failure) => {
                    tracing::warn!(host, failure, "cannot fetch the key set for tokens");
                    Some(failure)
                }
            };
            state.last = Some(Attempt { requested, ended, failure });
            state.flight = None;
            drop(state);
            drop(landed);
        });
        flight
    }
}

#[cfg(test)]
mod tests;
