//! Step *near tier* of the picture: values in this process, bounded by bytes.
//!
//! An entry is checked when it is read: its stripes, its time and what it was stored for. So an invalidation need
//! not find it, and removing it is housekeeping.

mod entry;
mod shares;
mod stripes;

use std::thread::available_parallelism;

use quick_cache::{OptionsBuilder, sync::Cache};
use rapidhash::fast::RandomState;

pub(crate) use self::{
    entry::{Cached, Entry, Erased, Found, erase, unerase},
    stripes::{Stripes, Watch},
};
use self::{
    entry::{Gone, OVERHEAD, Outside, Stored, Weight, discard, drop_quietly, give_back},
    shares::Shares,
};
use crate::{
    clock::Instant,
    sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering},
    value::keyspace::Origin,
};

pub(crate) struct Near {
    entries: Cache<Box<str>, Stored, Weight, RandomState, Outside>,
    /// The most that one entry may weigh.
    largest: u64,
    /// Where tenants are held to a share.
    shares: Option<Shares>,
    pub(crate) stripes: Stripes,
    /// Held while an entry is stored or touched, by key.
    writing: [Mutex<()>; 32],
    /// Until when the backplane vouches for what Redis has confirmed: bits of an instant.
    linked_until: AtomicU64,
}

impl Near {
    /// A near tier of at most `capacity` bytes that keeps values of `max_value` bytes, and of which one tenant
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
            .hot_allocation(0.97)
            .build()
            .unwrap_or_else(|_| unreachable!("both capacities are set"));
        let entries = Cache::with_options(options, Weight, RandomState::new(), Outside);
        // No more fits among the hot ones of a shard.
        let largest = entries.shard_capacity() / 100 * 97;
        let shares = (share < 100).then(|| Shares::new(capacity / 100 * u64::from(share)));
        Self {
            entries,
            largest,
            shares,
            stripes: Stripes::new(stripes),
            writing: Default::default(),
            linked_until: AtomicU64::new(0),
        }
    }

    /// The entry under `key`, if it is of this type and function, has these tags, is vouched for and not invalidated.
    /// Whether it is still fresh is for the caller to decide.
    #[inline]
    pub(crate) fn get<T: Send + Sync + 'static>(
        &self,
        key: &str,
        tags: &[Box<str>],
        origin: &Origin,
        now: Instant,
    ) -> Option<Found<T>> {
        let Stored { entry, .. } = self.entries.get(key)?;
        if !self.is_valid(&entry, tags, origin, now) {
            // Removed meanwhile, the last of its value is here.
            drop_quietly(entry);
            return None;
        }
        Some(Found { fresh_until: entry.fresh_until, slot: entry.slot, value: unerase(entry.value)? })
    }

    /// Until when the entry under `key` is fresh and whether it says that there is none, if [`get`](Self::get) would return it.
    pub(crate) fn fresh_until(
        &self,
        key: &str,
        tags: &[Box<str>],
        origin: &Origin,
        now: Instant,
    ) -> Option<(Instant, bool)> {
        let Stored { entry, .. } = self.entries.peek(key)?;
        let found = self.is_valid(&entry, tags, origin, now).then_some((entry.fresh_until, entry.negative));
        drop_quietly(entry);
        found
    }

    #[inline]
    fn is_valid(&self, entry: &Entry, tags: &[Box<str>], origin: &Origin, now: Instant) -> bool {
        entry.origin == *origin
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

    /// Keeps an entry whose value takes `bytes` of memory. Its watch was taken before the value was asked for; if something
    /// came in between, or comes while this runs, the entry is never served. False if it is too large to be kept.
    pub(crate) fn insert(&self, scope: &str, key: &str, entry: Entry, bytes: usize) -> bool {
        let queued = if self.shares.is_some() { key.len() + shares::OVERHEAD } else { 0 };
        let weight = bytes.saturating_add(key.len() + OVERHEAD + queued);
        let fits =
            |weight: u64| weight <= self.largest && self.shares.as_ref().is_none_or(|shares| shares.fits(weight));
        let Some(weight) = u32::try_from(weight).ok().filter(|weight| fits(u64::from(*weight))) else {
            self.remove(key);
            return false;
        };
        let charge = self.shares.as_ref().map(|shares| shares.charge(scope, weight.into()));
        let stored = Stored { entry, weight, charge: charge.clone() };
        let mut gone = Vec::new();
        {
            let _writing = self.writing(key);
            self.entries.insert_with_lifecycle(key.into(), stored, &mut gone);
        }
        if let Some((shares, charge)) = self.shares.as_ref().zip(charge) {
            shares.queue(key, &charge);
            give_back(&gone);
            while let Some((key, oldest)) = shares.next_over(&charge) {
                let is_oldest = |stored: &Stored| {
                    stored.charge.as_ref().is_some_and(|charge| oldest.as_ptr() == Arc::as_ptr(charge))
                };
                let removed = self.entries.remove_if(&*key, is_oldest);
                give_back(&removed);
                gone.extend(removed);
            }
        }
        discard(gone);
        true
    }

    /// Lets the entry under `key` be fresh for longer, if [`get`](Self::get) would return it: until when, `renewed` makes of
    /// until when it is fresh now. False if there is none, it says that there is no value, or `renewed` has nothing to say.
    pub(crate) fn touch(
        &self,
        key: &str,
        tags: &[Box<str>],
        origin: &Origin,
        now: Instant,
        renewed: impl FnOnce(Instant) -> Option<Instant>,
    ) -> bool {
        // Where the entry is removed meanwhile the last of its value is here: it outlives the lock.
        let mut gone = Vec::new();
        let touched = self.touch_locked(&mut gone, key, |entry| {
            let is_value = !entry.negative && self.is_valid(entry, tags, origin, now);
            let fresh_until = renewed(entry.fresh_until).filter(|_| is_value)?;
            // Its watch is kept: an invalidation in between still counts.
            Some(Entry { fresh_until, ..entry.clone() })
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
    use crate::{clock::Clock, stats::Registry};

    fn near(share: u32) -> Near {
        Near::new(1 << 20, 1 << 10, share, 1 << 16)
    }

    fn after(ms: u64) -> Instant {
        Clock::Coarse.now().saturating_add(Duration::from_millis(ms))
    }

    /// A seven that is sure and does not end.
    fn entry(near: &Near, key: &str) -> Entry {
        Entry {
            value: Arc::new(7_u64),
            origin: Origin::none(),
            watch: near.stripes.watch([key, "space", "tenant"]),
            fresh_until: Instant::MAX,
            sure_until: Instant::MAX,
            negative: false,
            slot: Registry::default().slot("p"),
        }
    }

    fn get(near: &Near, key: &str, now: Instant) -> Option<u64> {
        near.get::<u64>(key, &[], &Origin::none(), now)?.value.as_deref().copied()
    }

    #[test]
    fn an_entry_comes_with_the_end_of_its_life_and_is_touched_by_whoever_reads_that() {
        let (near, end) = (near(100), after(1000));
        assert!(near.insert("tenant", "k", Entry { fresh_until: end, ..entry(&near, "k") }, 8));
        let fresh_until = || near.get::<u64>("k", &[], &Origin::none(), end).map(|found| found.fresh_until);
        assert_eq!(fresh_until(), Some(end));
        assert!(!near.touch("k", &[], &Origin::none(), end, |_| None));
        assert_eq!(fresh_until(), Some(end));
        let later = end.saturating_add(Duration::from_secs(1));
        assert!(near.touch("k", &[], &Origin::none(), end, |until| (until == end).then_some(later)));
        assert_eq!(fresh_until(), Some(later));
        near.stripes.bump("k");
        assert!(!near.touch("k", &[], &Origin::none(), end, Some));
    }

    #[test]
    fn an_entry_is_never_served_as_another_type_or_to_another_function() {
        let near = near(100);
        near.insert("tenant", "k", entry(&near, "k"), 8);
        assert!(near.get::<u32>("k", &[], &Origin::none(), after(0)).is_none());
        assert!(near.get::<u64>("k", &[], &Origin::of(Some((std::any::TypeId::of::<u8>(), 1))), after(0)).is_none());
    }

    #[test]
    fn an_entry_asked_for_before_a_bump_is_never_served_even_when_inserted_after_it() {
        let near = near(100);
        let entry = entry(&near, "k");
        near.stripes.bump("space");
        near.insert("tenant", "k", entry, 8);
        assert_eq!(get(&near, "k", after(0)), None);
    }

    #[test]
    fn an_entry_that_is_not_sure_is_served_only_while_linked() {
        let near = near(100);
        let now = Clock::Coarse.now();
        let later = |ms| now.saturating_add(Duration::from_millis(ms));
        let unsure = Entry { sure_until: later(3_000), ..entry(&near, "k") };
        near.insert("tenant", "k", unsure, 8);
        let served = |ms| get(&near, "k", later(ms)).is_some();
        assert!(served(2_999) && !served(3_000));
        near.link(later(6_000));
        assert!(served(5_999) && !served(6_000));
        near.unlink();
        assert!(!served(3_000));
    }

    #[test]
    fn a_tenant_over_its_share_loses_its_own_oldest_entries_only() {
        let flood = |share: u32| {
            let near = near(share);
            for i in 0..400 {
                near.insert("b", &format!("b{i}"), entry(&near, "k"), 100);
            }
            for i in 0..20_000 {
                let key = format!("a{i}");
                near.insert("a", &key, entry(&near, "k"), 100);
                // Used again, or the map takes it for a scan and spares what it held before.
                for _ in 0..3 {
                    get(&near, &key, after(0));
                }
                if i % 7 == 0 {
                    near.remove(&format!("a{i}"));
                }
            }
            let of = |tenant: &str| near.keys(|key| key.starts_with(tenant)).len();
            (of("a"), of("b"), get(&near, "a19998", after(0)).is_some())
        };
        let (a, b, newest) = flood(20);
        assert!(newest && b == 400 && (200..700).contains(&a), "{a} {b}");
        let (_, b, _) = flood(100);
        assert!(b < 400, "without a share the other tenant suffers: {b}");
    }

    #[test]
    fn a_tenant_over_its_share_loses_no_more_than_it_is_over() {
        let near = near(20);
        let limit = (1 << 20) / 100 * 20;
        let mut most = 0;
        for i in 0..3_000 {
            let key = format!("a{i}");
            assert!(near.insert("a", &key, entry(&near, &key), 8));
            assert_eq!(get(&near, &key, after(0)), Some(7), "{i}");
            let (entries, bytes) = near.size();
            assert!(bytes <= limit && entries + 8 >= most, "{entries} of {most}, {bytes}");
            most = most.max(entries);
        }
        assert!(most > 400, "{most}");
    }

    /// 1. A tenant fills its share. 2. Somebody reads its oldest entry, and is held up. 3. That entry is evicted for a
    ///    newer one.
    #[test]
    fn what_is_read_while_it_is_evicted_counts_no_more() {
        let near = near(20);
        let mut held = None;
        for i in 0..3_000 {
            let key = format!("a{i}");
            near.insert("a", &key, entry(&near, &key), 8);
            held = held.or_else(|| near.entries.get("a0"));
            assert_eq!(get(&near, &key, after(0)), Some(7), "{i}");
        }
        assert!(near.entries.get("a0").is_none() && near.size().0 > 400, "{:?}", near.size());
    }

    #[test]
    fn a_value_larger_than_the_share_costs_its_tenant_nothing_else() {
        let near = Near::new(1 << 20, 1 << 18, 20, 1 << 16);
        for i in 0..10 {
            assert!(near.insert("a", &i.to_string(), entry(&near, "k"), 8));
        }
        assert!(!near.insert("a", "0", entry(&near, "k"), 220_000), "more than 20 %");
        assert_eq!((get(&near, "0", after(0)), near.size().0), (None, 9));
    }

    #[test]
    fn a_cached_none_is_not_touched() {
        let (near, end) = (near(100), after(1000));
        near.insert("tenant", "k", Entry { fresh_until: end, negative: true, ..entry(&near, "k") }, 8);
        assert!(!near.touch("k", &[], &Origin::none(), after(0), Some));
    }

    #[test]
    fn the_near_tier_stays_within_its_bytes() {
        let near = near(100);
        for i in 0..50_000 {
            let key = format!("key-{i}");
            near.insert("tenant", &key, entry(&near, &key), 8);
        }
        let (entries, bytes) = near.size();
        assert!(bytes <= 1 << 20, "{bytes}");
        assert!(entries > 1_000, "{entries}");
    }

    #[test]
    fn a_value_that_is_too_large_is_not_kept_and_leaves_no_older_one() {
        let near = Near::new(1 << 20, 1 << 14, 100, 1 << 16);
        assert!(near.insert("tenant", "k", entry(&near, "k"), 1 << 14));
        assert!(!near.insert("tenant", "k", entry(&near, "k"), 1 << 20));
        assert_eq!(get(&near, "k", after(0)), None);
        assert_eq!(near.size(), (0, 0));
        assert!(!near.insert("tenant", "k", entry(&near, "k"), usize::MAX));
        // What is let in is kept, up to the last byte.
        let most = usize::try_from(near.largest).unwrap() - OVERHEAD - 1;
        assert!(near.insert("tenant", "k", entry(&near, "k"), most));
        assert_eq!(get(&near, "k", after(0)), Some(7));
        assert!(!near.insert("tenant", "k", entry(&near, "k"), most + 1));
    }
}
