//! Limits: how many connections a user, and how many subscribers a channel may have; and how often clients may do something
//! ([`Rates`]).
//!
//! This replica's own count is looked at first and always; behind it stands the cluster's, if there is one. Both count
//! client ids, so a connection that resumes is not counted twice.

mod buckets;
pub mod rate;
mod rates;
mod settings;

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use plenum_telemetry::{Limit, LimitOutcome, Metrics};
use uuid::Uuid;

use crate::{Quota, QuotaError, Quotas};

pub(crate) use self::rates::{Limited, Origin, Rates};
pub use self::settings::{CommandRates, Fallback, OnUnavailable, RateLimits};

/// One user, or one channel.
type Place = (Quota, Arc<str>);

/// What this replica counts, and the cluster's counts.
pub(crate) struct Limits {
    quotas: Option<Arc<dyn Quotas>>,
    /// How many times each client id is held; nothing that is held by nobody.
    held: Mutex<HashMap<Place, HashMap<Uuid, u32>>>,
    metrics: Arc<Metrics>,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The limit is reached.
    Full,
    /// The cluster was not reached, and the limit fails closed.
    Unknown,
}

/// One that is counted until this is dropped.
pub(crate) struct Counted(Box<Entry>);

struct Entry {
    limits: Arc<Limits>,
    place: Place,
    member: Uuid,
}

impl Limits {
    pub(crate) fn new(quotas: Option<Arc<dyn Quotas>>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { quotas, held: Mutex::default(), metrics })
    }

    /// Counts a client id unless `max` others are there. Dropping the future takes it back.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        place: Place,
        member: Uuid,
        max: usize,
        fallback: Fallback,
    ) -> Result<Counted, Refused> {
        let (quota, key) = place.clone();
        let Some(counted) = self.hold(place, member, max) else {
            self.count(quota, LimitOutcome::Replica);
            return Err(Refused::Full);
        };
        let Some(quotas) = &self.quotas else { return Ok(counted) };
        let name = name(member);
        match (quotas.enter(quota, &key, &name, max as u64).await, fallback) {
            (Ok(()), _) => Ok(counted),
            (Err(QuotaError::Reached { .. }), _) => {
                self.count(quota, LimitOutcome::Cluster);
                Err(Refused::Full)
            }
            (Err(error @ QuotaError::Unavailable { .. }), Fallback::Open) => {
                tracing::debug!(%error, "let in by this replica's own count");
                self.count(quota, LimitOutcome::LetIn);
                quotas.hold(quota, &key, &name);
                Ok(counted)
            }
            (Err(error @ QuotaError::Unavailable { .. }), Fallback::Closed) => {
                tracing::debug!(%error, "refused: the limit fails closed");
                self.count(quota, LimitOutcome::ShutOut);
                Err(Refused::Unknown)
            }
        }
    }

    fn hold(self: &Arc<Self>, place: Place, member: Uuid, max: usize) -> Option<Counted> {
        let mut held = self.held.lock();
        let there = held.get(&place).map_or((0, false), |members| (members.len(), members.contains_key(&member)));
        if !there.1 && there.0 >= max {
            return None;
        }
        *held.entry(place.clone()).or_default().entry(member).or_insert(0) += 1;
        Some(Counted(Box::new(Entry { limits: self.clone(), place, member })))
    }

    fn count(&self, quota: Quota, outcome: LimitOutcome) {
        let limit = match quota {
            Quota::UserConnections => Limit::UserConnections,
            Quota::ChannelSubscribers => Limit::Subscribers,
        };
        self.metrics.limits(limit, outcome).inc();
    }

    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.held.lock().len()
    }
}

/// A client id as the cluster's counts have it.
fn name(member: Uuid) -> String {
    member.simple().to_string()
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Entry { limits, place, member } = &*self.0;
        let mut held = limits.held.lock();
        let Some(members) = held.get_mut(place) else { return };
        match members.get_mut(member) {
            Some(times) if *times > 1 => *times -= 1,
            _ => {
                members.remove(member);
                if members.is_empty() {
                    held.remove(place);
                }
                // Under the lock: who comes with this client id after this is counted after this.
                if let Some(quotas) = &limits.quotas {
                    quotas.exit(place.0, &place.1, &name(*member));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
