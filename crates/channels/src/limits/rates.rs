//! Rate limits: by user and by address, for connect, subscribe, publish and rpc.
//!
//! A bucket of this replica holds always; for connects and publishes one that all replicas share stands behind it, which
//! answers at once from what is known.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{SHA256, digest};
use plenum_telemetry::{Limit, LimitOutcome, Metrics};

use super::buckets::Buckets;
use super::{CommandRates, Fallback};
use crate::{Bucket, ClientSettings, Quotas, Rate, Token};

/// Longest user id under which the shared buckets know a user; of a longer one they know a hash.
const MAX_KEY: usize = 64;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    Connect,
    Subscribe,
    Publish,
    Rpc,
}

/// Where a client is, as limits tell clients apart: an IPv4 address, or the first 64 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin(u64);

/// No client has this address: it is one of many at once.
const UNKNOWN: u64 = u64::MAX;

/// In the upper half of an IPv4 [`Origin`]: no IPv6 network of clients begins so.
const V4: u64 = 0xffff << 32;

impl Origin {
    /// `None`: it is not known, and not limited.
    pub fn of(address: Option<IpAddr>) -> Self {
        Self(match address.map(|address| address.to_canonical()) {
            None => UNKNOWN,
            Some(IpAddr::V4(address)) => V4 | u64::from(u32::from(address)),
            Some(IpAddr::V6(address)) => (u128::from(address) >> 64) as u64,
        })
    }

    fn is_known(self) -> bool {
        self.0 != UNKNOWN
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 & V4 == V4 && self.0 >> 48 == 0 {
            true => Ipv4Addr::from(self.0 as u32).fmt(f),
            false => Ipv6Addr::from(u128::from(self.0) << 64).fmt(f),
        }
    }
}

/// The buckets of one command.
#[derive(Default)]
struct Pair {
    user: Option<Arc<Buckets>>,
    address: Option<Arc<Buckets>>,
}

/// Connect, subscribe, publish, rpc.
type Table = [Pair; 4];

/// All rate limits of this replica, and the shared ones.
pub(crate) struct Rates {
    quotas: Option<Arc<dyn Quotas>>,
    table: ArcSwap<Table>,
    hasher: RandomState,
    metrics: Arc<Metrics>,
}

impl Rates {
    pub fn new(quotas: Option<Arc<dyn Quotas>>, settings: &ClientSettings, metrics: Arc<Metrics>) -> Self {
        let rates = Self { quotas, table: ArcSwap::default(), hasher: RandomState::new(), metrics };
        rates.configure(settings);
        rates
    }

    /// Puts limits in force; buckets whose size is as before stay as full as they are.
    pub fn configure(&self, settings: &ClientSettings) {
        let limits = &settings.rate_limit;
        let before = self.table.load();
        let made = |wanted: Option<Bucket>, before: &Option<Arc<Buckets>>| {
            let wanted = wanted?;
            let same = before.clone().filter(|buckets| buckets.bucket() == wanted);
            Some(same.unwrap_or_else(|| Arc::new(Buckets::new(wanted))))
        };
        let (user, address) = (by_command(&limits.user), by_command(&limits.address));
        let pair = |index: usize| Pair {
            user: made(user[index], &before[index].user),
            address: made(address[index], &before[index].address),
        };
        self.table.store(Arc::new(std::array::from_fn(pair)));
    }

    /// Takes a token for the address and one for the user; false when either has none.
    pub fn take(&self, limited: Limited, user: &str, origin: Origin, settings: &ClientSettings) -> bool {
        self.take_address(limited, origin, settings) && self.take_user(limited, user, settings)
    }

    /// Takes a token for the user; an anonymous one is not limited.
    pub fn take_user(&self, limited: Limited, user: &str, settings: &ClientSettings) -> bool {
        let table = self.table.load();
        let Some(buckets) = table[limited as usize].user.as_ref().filter(|_| !user.is_empty()) else { return true };
        let (limit, rate) = match limited {
            Limited::Connect => (Limit::UserConnect, Some(Rate::UserConnect)),
            Limited::Subscribe => (Limit::UserSubscribe, None),
            Limited::Publish => (Limit::UserPublish, Some(Rate::UserPublish)),
            Limited::Rpc => (Limit::UserRpc, None),
        };
        self.take_own(buckets, user, limit)
            && self.take_shared(rate, || short(user), buckets.bucket(), limit, fallback(limited, settings))
    }

    /// Takes a token for the address, if it is known.
    pub fn take_address(&self, limited: Limited, origin: Origin, settings: &ClientSettings) -> bool {
        let table = self.table.load();
        let Some(buckets) = table[limited as usize].address.as_ref().filter(|_| origin.is_known()) else {
            return true;
        };
        let (limit, rate) = match limited {
            Limited::Connect => (Limit::AddressConnect, Some(Rate::AddressConnect)),
            Limited::Subscribe => (Limit::AddressSubscribe, None),
            Limited::Publish => (Limit::AddressPublish, Some(Rate::AddressPublish)),
            Limited::Rpc => (Limit::AddressRpc, None),
        };
        let key = || Cow::Owned(origin.to_string());
        self.take_own(buckets, origin, limit)
            && self.take_shared(rate, key, buckets.bucket(), limit, fallback(limited, settings))
    }

    fn take_own(&self, buckets: &Buckets, key: impl std::hash::Hash, limit: Limit) -> bool {
        let taken = buckets.take(self.hasher.hash_one(key));
        if !taken {
            self.metrics.limits(limit, LimitOutcome::Replica).inc();
        }
        taken
    }

    fn take_shared<'a>(
        &self,
        rate: Option<Rate>,
        key: impl FnOnce() -> Cow<'a, str>,
        bucket: Bucket,
        limit: Limit,
        fallback: Fallback,
    ) -> bool {
        let (Some(quotas), Some(rate)) = (&self.quotas, rate) else { return true };
        let outcome = match (quotas.take(rate, &key(), bucket), fallback) {
            (Token::Given, _) => return true,
            (Token::Refused, _) => LimitOutcome::Cluster,
            (Token::Unknown, Fallback::Open) => LimitOutcome::LetIn,
            (Token::Unknown, Fallback::Closed) => LimitOutcome::ShutOut,
        };
        self.metrics.limits(limit, outcome).inc();
        outcome == LimitOutcome::LetIn
    }
}

fn by_command(rates: &CommandRates) -> [Option<Bucket>; 4] {
    [rates.connect, rates.subscribe, rates.publish, rates.rpc]
}

fn fallback(limited: Limited, settings: &ClientSettings) -> Fallback {
    match limited {
        Limited::Connect => settings.on_unavailable.connect_rate,
        Limited::Publish => settings.on_unavailable.publish_rate,
        Limited::Subscribe | Limited::Rpc => Fallback::Open,
    }
}

fn short(user: &str) -> Cow<'_, str> {
    if user.len() <= MAX_KEY {
        return Cow::Borrowed(user);
    }
    let hash = digest(&SHA256, user.as_bytes());
    Cow::Owned(hash.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}
