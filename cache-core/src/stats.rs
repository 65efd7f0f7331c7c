//! Counters: one per edge of the picture, kept per profile.

use std::{collections::BTreeMap, fmt};

use crate::{
    error::{Error, ErrorKind},
    sync::{AtomicU64, AtomicUsize, Mutex, OnceLock, Ordering},
};

/// Profiles counted on their own; later ones share the last slot, named `other`.
const MAX_PROFILES: usize = u8::MAX as usize;
/// Cells of the one counter that is bumped on every near hit, so that threads do not share a cache line.
const CELLS: usize = 16;

/// A counter spread over padded cells, one per thread while there are few.
#[derive(Debug, Default)]
struct SpreadCounter([Cell; CELLS]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

impl SpreadCounter {
    #[inline]
    fn increment(&self) {
        self.0[CELL.with(|cell| *cell)].0.fetch_add(1, Ordering::Relaxed);
    }

    fn sum(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

static NEXT_CELL: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static CELL: usize = NEXT_CELL.fetch_add(1, Ordering::Relaxed) % CELLS;
}

macro_rules! edges {
    ($($(#[doc = $doc:literal])+ $edge:ident => $name:ident,)+) => {
        /// Counters of one profile since the cache was built.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ProfileStats {
            /// Calls answered from the memory of this process.
            pub near_hits: u64,
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        /// An edge of the picture that a call took. Each is counted by the field of [`ProfileStats`] that says what it means.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Edge {
            NearHit,
            $($edge,)+
        }

        /// Live counters of one profile.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            near_hits: SpreadCounter,
            $($name: AtomicU64,)+
        }

        impl Counters {
            #[inline]
            pub(crate) fn note(&self, edge: Edge) {
                let counter = match edge {
                    Edge::NearHit => return self.near_hits.increment(),
                    $(Edge::$edge => &self.$name,)+
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }

            fn snapshot(&self) -> ProfileStats {
                ProfileStats { near_hits: self.near_hits.sum(), $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl ProfileStats {
            fn add(&mut self, other: &Self) {
                self.near_hits += other.near_hits;
                $(self.$name += other.$name;)+
            }
        }
    };
}

edges! {
    /// Calls answered by Redis, in one round trip.
    RemoteHit => remote_hits,
    /// Calls that found nothing in either tier.
    Miss => misses,
    /// Runs of the user's fetch.
    Fetch => fetches,
    /// Runs of the user's fetch that returned an error or were dropped before they ended.
    FailedFetch => failed_fetches,
    /// Calls answered by the fetch of another call, in this process or in another.
    Coalesced => coalesced,
    /// Values stored: accepted by Redis, or by the near tier of a cache without Redis.
    Stored => stored,
    /// Fetched values not stored because an invalidation came while they were fetched, or the lease was lost.
    Refused => refused,
    /// Values not stored because they are above `max_value`, or without Redis too large for the near tier.
    TooLarge => too_large,
    /// Values not stored, or not kept near, because they could not be serialised or are nested too deeply.
    EncodeError => encode_errors,
    /// Entries in Redis that were not usable: truncated, garbage, of another type, key or older version.
    Unusable => unusable,
    /// Entries of a newer version of the type, left alone for the newer binary.
    NewerVersion => newer_version,
    /// Calls that read or store whose command to Redis failed, or was not sent because Redis failed a moment ago. Not
    /// counted are `get`, `exists`, `ttl` and `touch`, whose caller gets the error, and invalidations.
    RemoteError => remote_errors,
    /// Calls that ran uncached: bad key, no tenant where one is demanded, a fetch that asked for its own key.
    Bypassed => bypassed,
    /// Keys and keyspaces invalidated. A pattern, a tag and a tenant are of no one profile, and not counted.
    Invalidation => invalidations,
}

impl Edge {
    /// The edge that ends with a value not stored.
    pub(crate) fn not_stored(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::TooLarge => Self::TooLarge,
            ErrorKind::Encode => Self::EncodeError,
            _ => Self::RemoteError,
        }
    }
}

impl ProfileStats {
    /// Calls answered by a tier or by another call's fetch, as a percentage of all calls; `None` before the first.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    pub fn hit_rate_percent(&self) -> Option<f64> {
        let hits = self.near_hits + self.remote_hits + self.coalesced;
        let calls = self.near_hits + self.remote_hits + self.misses;
        (calls > 0).then(|| 100.0 * hits.min(calls) as f64 / calls as f64)
    }
}

/// A snapshot of a cache's counters and of the near tier's size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The sum over all profiles.
    pub total: ProfileStats,
    /// Counters by profile name. At most 255 profiles are told apart; the rest is under `other`.
    pub profiles: BTreeMap<String, ProfileStats>,
    /// Entries in the near tier, expired ones that were not looked at since included.
    pub near_entries: u64,
    /// Weight of the near tier in bytes: the memory that values take, as [`Builder::near_bytes`](crate::Builder::near_bytes)
    /// says, their keys and a constant per entry.
    pub near_bytes: u64,
}

/// The slot of a profile's counters: small enough to sit in every near entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u8);

/// The slot shared by all profiles beyond the cap.
const OTHER: Slot = Slot(u8::MAX);

/// The counters of a cache, by profile.
pub(crate) struct Registry {
    names: Mutex<BTreeMap<String, Slot>>,
    slots: Box<[OnceLock<Counters>]>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { names: Mutex::default(), slots: (0..=MAX_PROFILES).map(|_| OnceLock::new()).collect() }
    }
}

impl Registry {
    /// The slot of `profile`, taken on first use. A lock and a tree look-up: not for the hit path.
    pub(crate) fn slot(&self, profile: &str) -> Slot {
        let mut names = self.names.lock();
        if let Some(slot) = names.get(profile) {
            return *slot;
        }
        let Ok(free) = u8::try_from(names.len()) else { return OTHER };
        if free == OTHER.0 {
            return OTHER;
        }
        names.insert(profile.to_owned(), Slot(free));
        Slot(free)
    }

    #[inline]
    pub(crate) fn counters(&self, slot: Slot) -> &Counters {
        self.slots[usize::from(slot.0)].get_or_init(Counters::default)
    }

    /// Notes an edge of a call that has no slot of its own at hand. As costly as [`slot`](Self::slot).
    pub(crate) fn note(&self, profile: &str, edge: Edge) {
        self.counters(self.slot(profile)).note(edge);
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let mut stats = Stats::default();
        for (name, slot) in self.names.lock().iter() {
            stats.profiles.insert(name.clone(), self.counters(*slot).snapshot());
        }
        if let Some(other) = self.slots[usize::from(OTHER.0)].get() {
            stats.profiles.entry("other".to_owned()).or_default().add(&other.snapshot());
        }
        for profile in stats.profiles.values() {
            stats.total.add(profile);
        }
        stats
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("profiles", &self.names.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_beyond_the_cap_share_one_slot() {
        let registry = Registry::default();
        for i in 0..MAX_PROFILES + 5 {
            registry.note(&format!("p{i}"), Edge::Miss);
        }
        let stats = registry.snapshot();
        assert_eq!(stats.profiles["other"].misses, 5);
        assert_eq!(stats.total.misses, MAX_PROFILES as u64 + 5);
    }

    #[test]
    fn hit_rate_counts_coalesced_calls_as_hits() {
        let stats = ProfileStats { near_hits: 6, remote_hits: 2, misses: 2, coalesced: 1, ..ProfileStats::default() };
        assert_eq!(stats.hit_rate_percent(), Some(90.0));
        assert_eq!(ProfileStats::default().hit_rate_percent(), None);
    }
}
