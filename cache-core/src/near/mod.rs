//! Step *near tier* of the picture: values in this process, bounded by bytes.
//!
//! An entry is checked when it is read: its stripes, its time and what it was stored for. So an invalidation need
//! not find it, and removing it is housekeeping.

mod shares;
mod stripes;

use std::{
    any::Any,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::available_parallelism,
};

use quick_cache::{Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use rapidhash::fast::RandomState;

use self::shares::{Charge, Shares};
pub(crate) use self::stripes::{Stripes, Watch};
use crate::{
    clock::Instant,
    stats::Slot,
    sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering},
    value::keyspace::Origin,
};

/// Estimated bytes of an entry beside its key and value: the map's slot, the entry and two allocations.
const OVERHEAD: usize = 176;

pub(crate) struct Near {
    entries: Cache<Box<str>, Stored, Weight, RandomState, Outside>,
    /// Where tenants are held to a share.
    shares: Option<Shares>,
    pub(crate) stripes: Stripes,
    /// Held while an entry is stored or touched, by key.
    writing: [Mutex<()>; 32],
    /// Until when the backplane vouches for what Redis has confirmed: bits of an instant.
    linked_until: AtomicU64,
}

/// A value of any type, or the knowledge that there is none.
pub(crate) type Erased = Arc<dyn Any + Send + Sync>;

/// What the tiers hold for a key: a value, or that there is none.
pub(crate) type Cached<T> = Option<Arc<T>>;

/// Stands for a cached `None` of this type.
struct Negative<T>(PhantomData<fn() -> T>);

pub(crate) fn erase<T: Send + Sync + 'static>(value: &Cached<T>) -> Erased {
    match value {
        Some(value) => value.clone(),
        None => Arc::new(Negative::<T>(PhantomData)),
    }
}

/// The value again, if it is of this type.
#[inline]
pub(crate) fn unerase<T: Send + Sync + 'static>(value: Erased) -> Option<Cached<T>> {
    match value.downcast::<T>() {
        Ok(value) => Some(Some(value)),
        Err(other) => other.is::<Negative<T>>().then_some(None),
    }
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Erased,
    /// The function the value is bound to.
    pub(crate) origin: Origin,
    pub(crate) watch: Watch,
    pub(crate) expires: Instant,
    /// Until when the entry is served without the backplane vouching for it.
    pub(crate) sure_until: Instant,
    /// Whether it says that there is none.
    pub(crate) negative: bool,
    pub(crate) slot: Slot,
}

/// An entry as the map holds it.
#[derive(Clone)]
struct Stored {
    entry: Entry,
    weight: u32,
    charge: Option<Arc<Charge>>,
}

/// What the map holds no more.
type Gone = (Box<str>, Stored);

/// Carries what is evicted out of the map's lock.
#[derive(Clone)]
struct Outside;

impl Lifecycle<Box<str>, Stored> for Outside {
    type RequestState = Vec<Gone>;

    fn on_evict(&self, gone: &mut Self::RequestState, key: Box<str>, stored: Stored) {
        gone.push((key, stored));
    }
}

/// Drops entries, under no lock: that runs the user's code. Its panic is of no concern to the call that happens to drop
/// somebody's value.
fn discard(gone: impl IntoIterator<Item = Gone>) {
    for entry in gone {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(entry)));
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Box<str>, Stored> for Weight {
    fn weight(&self, _: &Box<str>, stored: &Stored) -> u64 {
        u64::from(stored.weight)
    }
}

impl Near {
    /// A near tier of at most `capacity` bytes whose largest value is about `max_value` bytes, and of which one tenant
    /// holds at most `share` percent; with that many stripes.
    pub(crate) fn new(capacity: u64, max_value: u64, share: u32, stripes: usize) -> Self {
        // Each shard holds an equal part of the capacity, and the largest value must fit into one.
        let threads = available_parallelism().map_or(1, |n| n.get() as u64);
        let shards = (capacity / (max_value + max_value / 4).max(1)).clamp(1, threads * 4);
        let shards = 1_usize << shards.ilog2();
        let items = usize::try_from(capacity / 512).unwrap_or(usize::MAX).max(32 * shards);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items)
            .weight_capacity(capacity)
            .shards(shards)
            .build()
            .unwrap_or_else(|_| unreachable!("both capacities are set"));
        let entries = Cache::with_options(options, Weight, RandomState::new(), Outside);
        let shares = (share < 100).then(|| Shares::new(capacity / 100 * u64::from(share)));
        Self {
            entries,
            shares,
            stripes: Stripes::new(stripes),
            writing: Default::default(),
            linked_until: AtomicU64::new(0),
        }
    }

    /// The value under `key`, if it is of this type and function, has these tags, is alive, and not invalidated.
    #[inline]
    pub(crate) fn get<T: Send + Sync + 'static>(
        &self,
        key: &str,
        tags: &[Box<str>],
        origin: &Origin,
        now: Instant,
    ) -> Option<(Cached<T>, Slot)> {
        let Stored { entry, .. } = self.entries.get(key)?;
        if entry.origin != *origin || !self.is_alive(&entry, tags, now) {
            return None;
        }
        Some((unerase(entry.value)?, entry.slot))
    }

    /// The end of the life of the entry under `key` and whether it says that there is none, if [`get`](Self::get) would return it.
    pub(crate) fn expiry(
        &self,
        key: &str,
        tags: &[Box<str>],
        origin: &Origin,
        now: Instant,
    ) -> Option<(Instant, bool)> {
        let Stored { entry, .. } = self.entries.peek(key)?;
        let alive = entry.origin == *origin && self.is_alive(&entry, tags, now);
        alive.then_some((entry.expires, entry.negative))
    }

    #[inline]
    fn is_alive(&self, entry: &Entry, tags: &[Box<str>], now: Instant) -> bool {
        now < entry.expires
            && (now < entry.sure_until || self.is_linked(now))
            && self.stripes.unchanged(&entry.watch)
            && (tags.is_empty() || self.stripes.is_watched(&entry.watch, tags))
    }

    /// Whether the backplane vouches now.
    #[inline]
    pub(crate) fn is_linked(&self, now: Instant) -> bool {
        now < Instant::from_bits(self.linked_until.load(Ordering::SeqCst))
    }

    /// Lets the backplane vouch until then.
    pub(crate) fn link(&self, until: Instant) {
        self.linked_until.store(until.to_bits(), Ordering::SeqCst);
    }

    /// The backplane vouches no more.
    pub(crate) fn unlink(&self) {
        self.linked_until.store(0, Ordering::SeqCst);
    }

    /// Keeps an entry. Its watch was taken before the value was asked for; if something came in between, or comes
    /// while this runs, the entry is never served.
    pub(crate) fn insert(&self, scope: &str, key: &str, entry: Entry, value_len: usize) {
        let queued = if self.shares.is_some() { key.len() + shares::OVERHEAD } else { 0 };
        let weight = u32::try_from(key.len() + value_len + OVERHEAD + queued).unwrap_or(u32::MAX);
        let charge = self.shares.as_ref().map(|shares| shares.charge(scope, weight.into()));
        let stored = Stored { entry, weight, charge: charge.clone() };
        let mut gone = Vec::new();
        {
            let _writing = self.writing(key);
            self.entries.insert_with_lifecycle(key.into(), stored, &mut gone);
        }
        if let Some((shares, charge)) = self.shares.as_ref().zip(charge) {
            shares.queue(key, &charge);
            while let Some((key, oldest)) = shares.next_over(&charge) {
                let is_oldest = |stored: &Stored| {
                    stored.charge.as_ref().is_some_and(|charge| oldest.as_ptr() == Arc::as_ptr(charge))
                };
                gone.extend(self.entries.remove_if(&*key, is_oldest));
            }
        }
        discard(gone);
    }

    /// Gives the entry under `key` a new end of life. Returns whether there was one.
    pub(crate) fn touch(&self, key: &str, tags: &[Box<str>], origin: &Origin, now: Instant, expires: Instant) -> bool {
        // Where the entry is removed meanwhile the last of its value is here: it outlives the lock.
        let mut gone = Vec::new();
        let touched = self.touch_locked(&mut gone, key, |entry| {
            let alive = entry.origin == *origin && self.is_alive(entry, tags, now);
            // Its watch is kept: an invalidation in between still counts.
            alive.then(|| Entry { expires, ..entry.clone() })
        });
        discard(gone);
        touched
    }

    fn touch_locked(&self, gone: &mut Vec<Gone>, key: &str, touch: impl FnOnce(&Entry) -> Option<Entry>) -> bool {
        // A value that is stored between the look and the replacement would be lost to the older one.
        let _writing = self.writing(key);
        let Some(stored) = self.entries.peek(key) else { return false };
        let touched = touch(&stored.entry).map(|entry| Stored { entry, ..stored.clone() });
        gone.push((key.into(), stored));
        let Some(touched) = touched else { return false };
        match self.entries.replace_with_lifecycle(key.into(), touched, true, gone) {
            Ok(()) => true,
            Err(removed) => {
                gone.push(removed);
                false
            }
        }
    }

    fn writing(&self, key: &str) -> MutexGuard<'_, ()> {
        self.writing[self.stripes.spread(key, self.writing.len())].lock()
    }

    /// Removes what is stored under `key`. Housekeeping: the bump of its stripe is what invalidates.
    pub(crate) fn remove(&self, key: &str) {
        discard(self.entries.remove(key));
    }

    /// The keys that `covers` accepts, expired ones included.
    pub(crate) fn keys(&self, mut covers: impl FnMut(&str) -> bool) -> Vec<Box<str>> {
        self.entries.iter().map(|(key, _)| key).filter(|key| covers(key)).collect()
    }

    /// Entries and bytes held.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.entries.weight())
    }

    pub(crate) fn clear(&self) {
        // One by one: the map's own `clear` drops values under its locks.
        discard(self.entries.drain());
    }
}

impl std::fmt::Debug for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Near").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    fn fixture() -> (Near, Instant, impl Fn(&Near, &str, Duration)) {
        let near = Near::new(1 << 20, 1 << 10, 100, 1 << 16);
        let now = Clock::Coarse.now();
        let insert = move |near: &Near, key: &str, ttl: Duration| {
            let watch = near.stripes.watch([key, "space", "tenant"]);
            let entry = Entry {
                value: Arc::new(7_u64),
                origin: Origin::none(),
                watch,
                expires: now.saturating_add(ttl),
                sure_until: Instant::MAX,
                negative: false,
                slot: crate::stats::Registry::default().slot("p"),
            };
            near.insert("tenant", key, entry, 8);
        };
        (near, now, insert)
    }

    #[test]
    fn an_entry_is_served_until_its_end_and_not_after() {
        let (near, now, insert) = fixture();
        insert(&near, "k", Duration::from_secs(1));
        assert_eq!(near.get::<u64>("k", &[], &Origin::none(), now).unwrap().0.as_deref(), Some(&7));
        assert!(near.get::<u64>("k", &[], &Origin::none(), now.saturating_add(Duration::from_secs(1))).is_none());
    }

    #[test]
    fn an_entry_is_never_served_as_another_type_or_to_another_function() {
        let (near, now, insert) = fixture();
        insert(&near, "k", Duration::from_secs(1));
        assert!(near.get::<u32>("k", &[], &Origin::none(), now).is_none());
        assert!(near.get::<u64>("k", &[], &Origin::of::<u8>(), now).is_none());
    }

    #[test]
    fn an_entry_asked_for_before_a_bump_is_never_served_even_when_inserted_after_it() {
        let (near, now, _) = fixture();
        let watch = near.stripes.watch(["k", "space", "tenant"]);
        near.stripes.bump("space");
        let slot = crate::stats::Registry::default().slot("p");
        let expires = now.saturating_add(Duration::from_secs(1));
        near.insert(
            "tenant",
            "k",
            Entry {
                value: Arc::new(7_u64),
                origin: Origin::none(),
                watch,
                expires,
                sure_until: Instant::MAX,
                negative: false,
                slot,
            },
            8,
        );
        assert!(near.get::<u64>("k", &[], &Origin::none(), now).is_none());
    }

    #[test]
    fn an_entry_that_is_not_sure_is_served_only_while_linked() {
        let (near, now, _) = fixture();
        let later = |ms| now.saturating_add(Duration::from_millis(ms));
        let watch = near.stripes.watch(["k", "space", "tenant"]);
        let slot = crate::stats::Registry::default().slot("p");
        let value = Arc::new(7_u64);
        let entry = Entry {
            value,
            origin: Origin::none(),
            watch,
            expires: later(9_000),
            sure_until: later(3_000),
            negative: false,
            slot,
        };
        near.insert("tenant", "k", entry, 8);
        let served = |ms| near.get::<u64>("k", &[], &Origin::none(), later(ms)).is_some();
        assert!(served(2_999) && !served(3_000));
        near.link(later(6_000));
        assert!(served(5_999) && !served(6_000));
        near.link(later(60_000));
        assert!(served(8_999) && !served(9_000));
        near.unlink();
        assert!(!served(3_000));
    }

    #[test]
    fn a_tenant_over_its_share_loses_its_own_oldest_entries_only() {
        let watched = |near: &Near| near.stripes.watch(["k", "space", "tenant"]);
        let insert = |near: &Near, scope: &str, key: &str| {
            let entry = Entry {
                value: Arc::new(7_u64),
                origin: Origin::none(),
                watch: watched(near),
                expires: Instant::MAX,
                sure_until: Instant::MAX,
                negative: false,
                slot: crate::stats::Registry::default().slot("p"),
            };
            near.insert(scope, key, entry, 100);
        };
        let flood = |share: u32| {
            let near = Near::new(1 << 20, 1 << 10, share, 1 << 16);
            (0..500).for_each(|i| insert(&near, "b", &format!("b{i}")));
            for i in 0..20_000 {
                let key = format!("a{i}");
                insert(&near, "a", &key);
                // Used again, or the map takes it for a scan and spares what it held before.
                (0..3).for_each(|_| drop(near.get::<u64>(&key, &[], &Origin::none(), Clock::Coarse.now())));
                if i % 7 == 0 {
                    near.remove(&format!("a{i}"));
                }
            }
            let of = |tenant: &str| near.keys(|key| key.starts_with(tenant)).len();
            let newest = near.get::<u64>("a19998", &[], &Origin::none(), Clock::Coarse.now()).is_some();
            (of("a"), of("b"), newest)
        };
        let (a, b, newest) = flood(20);
        assert!(newest && b == 500 && (200..700).contains(&a), "{a} {b}");
        let (_, b, _) = flood(100);
        assert!(b < 500, "without a share the other tenant suffers: {b}");
    }

    #[test]
    fn the_near_tier_stays_within_its_bytes() {
        let (near, _, insert) = fixture();
        for i in 0..50_000 {
            insert(&near, &format!("key-{i}"), Duration::from_secs(9));
        }
        let (entries, bytes) = near.size();
        assert!(bytes <= 1 << 20, "{bytes}");
        assert!(entries > 1_000, "{entries}");
    }
}
