//! The journal: invalidations from before they are sent until ten seconds after they were acknowledged.
//!
//! Written first, so that dropping the caller's future still invalidates. Until it is acknowledged, what an
//! invalidation covers is a local must-miss: neither READ nor LEASE is asked, for Redis may still hold the old value.
//! Acknowledged ones are sent again after every reconnect, in case the server lost what it had acknowledged.

use std::time::Duration;

use super::coverage::{Coverage, Index};
use crate::{
    clock::{Clock, Instant},
    key::FullKey,
    sync::{AtomicU64, AtomicUsize, Ordering, RwLock},
};

/// Pending entries, and acknowledged ones, above which either are widened: keys to their keyspaces, those to their
/// tenants. The number of tenants is the bound beyond it.
pub(crate) const CAP: usize = 4096;
/// How long an acknowledged invalidation is kept for replay.
const KEEP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Journal {
    clock: Clock,
    cap: usize,
    /// How many are pending: all that the read path looks at while all is well.
    pending: AtomicUsize,
    /// When the last reconnect was: bits of an instant.
    doubted_at: AtomicU64,
    entries: RwLock<Entries>,
}

/// Two stores, each bounded and widened for itself: what is acknowledged must not make a must-miss of anything.
#[derive(Debug, Default)]
struct Entries {
    pending: Index<Pending>,
    acknowledged: Index<Acknowledged>,
    /// The number of the last record.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Which record this is: an acknowledgement of an earlier one says nothing about it.
    number: u64,
    /// When a reconnect took its acknowledgement back last.
    doubted: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    at: Instant,
    /// As before it was acknowledged again.
    doubted: Option<Instant>,
}

/// A recorded invalidation, to be acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) coverage: Coverage,
    number: u64,
}

impl Journal {
    /// A journal that widens its entries above `cap`.
    pub(crate) fn new(clock: Clock, cap: usize) -> Self {
        let (pending, doubted_at) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { clock, cap, pending, doubted_at, entries: RwLock::default() }
    }

    /// Writes an invalidation down.
    pub(crate) fn record(&self, coverage: Coverage) -> Record {
        let mut entries = self.entries.write();
        let number = entries.record(coverage.clone(), self.cap);
        self.count(&entries);
        Record { coverage, number }
    }

    /// Notes that the server has executed what was recorded.
    pub(crate) fn acknowledge(&self, record: &Record) {
        let mut entries = self.entries.write();
        if entries.pending.get(&record.coverage).is_some_and(|pending| pending.number == record.number) {
            entries.acknowledge(record.coverage.clone(), self.clock.now(), self.cap);
            self.count(&entries);
        }
    }

    /// Whether an invalidation that covers `key` waits for its acknowledgement.
    #[inline]
    pub(crate) fn must_miss(&self, key: &FullKey) -> bool {
        self.has_pending() && self.covers(key)
    }

    /// Whether the server may have come back with what an invalidation of `key` had removed, after `asked_at`: then what it
    /// answered may be from before that was sent again, even where that is acknowledged by now.
    #[inline]
    pub(crate) fn doubts(&self, key: &FullKey, asked_at: Instant) -> bool {
        Instant::from_bits(self.doubted_at.load(Ordering::SeqCst)) >= asked_at && self.covers_doubted(key, asked_at)
    }

    /// Whether any invalidation waits for its acknowledgement.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    #[cold]
    fn covers(&self, key: &FullKey) -> bool {
        self.entries.read().pending.covers(key, |_| true)
    }

    #[cold]
    fn covers_doubted(&self, key: &FullKey, asked_at: Instant) -> bool {
        let entries = self.entries.read();
        let is_recent = |doubted: Option<Instant>| doubted.is_some_and(|at| at >= asked_at);
        entries.pending.covers(key, |entry| is_recent(entry.doubted))
            || entries.acknowledged.covers(key, |entry| is_recent(entry.doubted))
    }

    /// What waits for its acknowledgement, oldest first.
    pub(crate) fn pending(&self) -> Vec<Record> {
        let entries = self.entries.read();
        let record = |(coverage, entry): (Coverage, &Pending)| Record { coverage, number: entry.number };
        let mut pending: Vec<_> = entries.pending.iter().map(record).collect();
        pending.sort_by_key(|record| record.number);
        pending
    }

    /// Takes back the acknowledgements of the last ten seconds: the server may have lost what it acknowledged.
    pub(crate) fn doubt(&self) {
        let now = self.clock.now();
        let mut entries = self.entries.write();
        self.doubted_at.store(now.to_bits(), Ordering::SeqCst);
        entries.acknowledged.retain(|entry| now.since(entry.at) < KEEP);
        let Entries { pending, acknowledged, number } = &mut *entries;
        let mut doubted = || {
            *number += 1;
            Pending { number: *number, doubted: Some(now) }
        };
        // An answer of the old server that is still under way acknowledges nothing any more.
        pending.retain(|entry| {
            *entry = doubted();
            true
        });
        for (coverage, _) in std::mem::take(acknowledged).iter() {
            pending.insert(coverage, doubted());
        }
        self.count(&entries);
    }

    fn count(&self, entries: &Entries) {
        self.pending.store(entries.pending.len(), Ordering::SeqCst);
    }
}

impl Entries {
    fn record(&mut self, coverage: Coverage, cap: usize) -> u64 {
        let Self { pending, acknowledged, number } = self;
        let mut next = |doubted| {
            *number += 1;
            Pending { number: *number, doubted }
        };
        let acknowledged = acknowledged.remove(&coverage).and_then(|entry| entry.doubted);
        let entry = next(pending.get(&coverage).and_then(|entry| entry.doubted).max(acknowledged));
        pending.insert(coverage, entry);
        // A number of its own: no acknowledgement under way speaks of a wider one.
        pending.widen(cap, |narrow, wide| next(narrow.doubted.max(wide.and_then(|wide| wide.doubted))));
        entry.number
    }

    fn acknowledge(&mut self, coverage: Coverage, at: Instant, cap: usize) {
        let doubted = self.pending.remove(&coverage).and_then(|entry| entry.doubted);
        let entry = Acknowledged { at, doubted }.merged(self.acknowledged.get(&coverage));
        self.acknowledged.insert(coverage, entry);
        self.acknowledged.widen(cap, Acknowledged::merged);
    }
}

impl Acknowledged {
    /// One entry for both.
    fn merged(self, other: Option<&Self>) -> Self {
        other.map_or(self, |other| Self { at: self.at.max(other.at), doubted: self.doubted.max(other.doubted) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyArgument as _, KeyWriter, prefix};

    fn key(tenant: &str, profile: &str, id: u64) -> FullKey {
        let mut writer = KeyWriter::new();
        writer.segment();
        id.write_key(&mut writer).unwrap();
        FullKey::new(&prefix("cache", Some(tenant)).unwrap(), profile, &writer)
    }

    fn of(key: &FullKey) -> Coverage {
        Coverage::Key(Box::new(key.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_recorded_is_a_must_miss_until_acknowledged() {
        let journal = Journal::new(Clock::tokio(), CAP);
        let (x, y) = (key("a", "p", 1), key("a", "p", 2));
        let record = journal.record(of(&x));
        assert!(journal.must_miss(&x) && !journal.must_miss(&y));
        let again = journal.record(of(&x));
        journal.acknowledge(&record);
        assert!(journal.must_miss(&x), "the second one is still under way");
        journal.acknowledge(&again);
        assert!(!journal.must_miss(&x));
        journal.doubt();
        assert!(journal.must_miss(&x), "a reconnect puts it in doubt");
        journal.acknowledge(&again);
        assert!(journal.must_miss(&x), "an answer from before the reconnect says nothing");
        journal.pending().iter().for_each(|record| journal.acknowledge(record));
        tokio::time::advance(KEEP).await;
        journal.doubt();
        assert!(!journal.must_miss(&x), "not after ten seconds");
    }

    /// Asked, reconnected, sent again and acknowledged, and only then answered: the answer may be from before that.
    #[tokio::test(start_paused = true)]
    async fn an_answer_asked_for_before_a_reconnect_is_doubted_even_when_all_is_acknowledged_again() {
        let clock = Clock::tokio();
        let journal = Journal::new(clock, CAP);
        let (x, y) = (key("a", "p", 1), key("a", "p", 2));
        journal.acknowledge(&journal.record(of(&x)));
        let asked_at = clock.now();
        assert!(!journal.doubts(&x, asked_at));
        tokio::time::advance(Duration::from_millis(10)).await;
        journal.doubt();
        journal.pending().iter().for_each(|record| journal.acknowledge(record));
        assert!(!journal.must_miss(&x));
        assert!(journal.doubts(&x, asked_at) && !journal.doubts(&y, asked_at));
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(!journal.doubts(&x, clock.now()), "asked after it was acknowledged");
    }

    #[tokio::test]
    async fn an_overflow_widens_and_forgets_nothing() {
        let journal = Journal::new(Clock::tokio(), CAP);
        let keys: Vec<_> = (0..3 * CAP as u64).map(|id| key(&format!("t{}", id % 7), "p", id)).collect();
        for key in &keys {
            journal.record(of(key));
        }
        assert!(journal.pending().len() <= CAP + 1);
        assert!(keys.iter().all(|key| journal.must_miss(key)));
        for (tenant, profile) in (0..2 * CAP).map(|n| (n % 9, n)) {
            journal.record(Coverage::Keyspace(format!("cache:tenant:t{tenant}:p{profile}")));
        }
        assert!(journal.pending().len() <= CAP + 1);
        assert!(keys.iter().all(|key| journal.must_miss(key)));
    }
}
