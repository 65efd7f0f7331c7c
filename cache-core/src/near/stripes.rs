//! Stripes: the near tier's invalidation, without a lock and without an order to rely on.
//!
//! One counter, and a fixed array holding for each stripe the counter's value at its last bump. A reader takes a
//! snapshot of the counter before it asks anyone for a value; an entry keeps that snapshot, and every hit checks
//! that none of its stripes was bumped since. A stripe shared by two keys costs a needless miss, never a stale hit.

use std::hash::BuildHasher;

use rapidhash::fast::RandomState;

use crate::{
    key::tag::MAX_TAGS,
    sync::{AtomicU64, Ordering},
};

#[derive(Debug)]
pub(crate) struct Stripes {
    counter: AtomicU64,
    /// The counter when everything was bumped last.
    everything: AtomicU64,
    bumped: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// What an entry or a fetch depends on, and the counter's value before it was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    snapshot: u64,
    /// Of key, keyspace, tenant and tags, as many as there are.
    stripes: [u16; 3 + MAX_TAGS],
    len: u8,
}

impl Watch {
    fn stripes(&self) -> &[u16] {
        &self.stripes[..usize::from(self.len)]
    }

    /// Whether a bump of anything that `other` watches is noticed by this one, too.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.stripes().iter().all(|stripe| self.stripes().contains(stripe))
    }
}

impl Stripes {
    /// `count` stripes; no more than 65 536 are used.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            counter: AtomicU64::new(1),
            everything: AtomicU64::new(0),
            bumped: (0..count).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    /// Begins to watch a key, its keyspace, its tenant and its tags. To be called *before* the value is asked for: an
    /// invalidation that comes after it is then noticed, whatever the order in which replies arrive.
    pub(crate) fn watch<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Watch {
        let mut watch = Watch { snapshot: self.counter.load(Ordering::SeqCst), stripes: [0; 3 + MAX_TAGS], len: 0 };
        for (stripe, name) in watch.stripes.iter_mut().zip(names) {
            *stripe = self.stripe(name);
            watch.len += 1;
        }
        watch
    }

    /// Whether `watch` watches all these names.
    pub(super) fn is_watched(&self, watch: &Watch, names: &[Box<str>]) -> bool {
        names.iter().all(|name| watch.stripes().contains(&self.stripe(name)))
    }

    /// Whether nothing watched was invalidated since.
    #[inline]
    pub(crate) fn unchanged(&self, watch: &Watch) -> bool {
        self.everything.load(Ordering::SeqCst) <= watch.snapshot
            && watch
                .stripes()
                .iter()
                .all(|stripe| self.bumped[usize::from(*stripe)].load(Ordering::SeqCst) <= watch.snapshot)
    }

    /// Invalidates everything that watches `name`: a key, or the prefix of a keyspace or tenant.
    ///
    /// A snapshot taken between the two steps holds the new count, and so survives the bump. It belongs to a read
    /// that began after this invalidation was called. That read may still be answered before the server executes
    /// the invalidation, which is why a second bump follows the server's reply.
    pub(crate) fn bump(&self, name: &str) {
        let now = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
        self.bumped[usize::from(self.stripe(name))].fetch_max(now, Ordering::SeqCst);
    }

    /// Invalidates whatever is watched.
    pub(crate) fn bump_everything(&self) {
        let now = self.counter.fetch_add(1, Ordering::SeqCst) + 1;
        self.everything.fetch_max(now, Ordering::SeqCst);
    }

    /// One of `places` for this name.
    pub(super) fn spread(&self, name: &str, places: usize) -> usize {
        (self.hasher.hash_one(name) >> 32) as usize % places
    }

    fn stripe(&self, name: &str) -> u16 {
        let count = self.bumped.len() as u64;
        u16::try_from(self.hasher.hash_one(name) % count).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bump_of_any_watched_name_is_noticed() {
        let stripes = Stripes::new(1 << 16);
        for name in ["cache:tenant:a:p:x", "cache:tenant:a:p", "cache:tenant:a:"] {
            let watch = stripes.watch(["cache:tenant:a:p:x", "cache:tenant:a:p", "cache:tenant:a:"]);
            assert!(stripes.unchanged(&watch));
            stripes.bump(name);
            assert!(!stripes.unchanged(&watch), "{name}");
        }
    }

    #[test]
    fn tags_are_watched_and_only_what_is_watched_is_covered() {
        let stripes = Stripes::new(1 << 16);
        let tags = ["t1".into(), "t2".into()];
        let plain = stripes.watch(["k", "p", "s"]);
        let tagged = stripes.watch(["k", "p", "s", "t1", "t2"]);
        assert!(tagged.covers(&plain) && !plain.covers(&tagged));
        assert!(stripes.is_watched(&tagged, &tags) && !stripes.is_watched(&plain, &tags));
        stripes.bump("t2");
        assert!(stripes.unchanged(&plain) && !stripes.unchanged(&tagged));
    }

    #[test]
    fn bumping_everything_spares_nothing() {
        let stripes = Stripes::new(1 << 16);
        let watch = stripes.watch(["a", "b", "c"]);
        stripes.bump_everything();
        assert!(!stripes.unchanged(&watch));
        assert!(stripes.unchanged(&stripes.watch(["a", "b", "c"])));
    }

    #[test]
    fn a_watch_taken_after_the_bump_holds() {
        let stripes = Stripes::new(1 << 16);
        stripes.bump("a");
        assert!(stripes.unchanged(&stripes.watch(["a", "b", "c"])));
    }
}
