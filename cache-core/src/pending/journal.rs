//! The journal: invalidations from before they are sent until ten seconds after they were acknowledged.
//!
//! Written first, so that dropping the caller's future still invalidates. Until it is acknowledged, what an
//! invalidation covers is a local must-miss: neither READ nor LEASE is asked, for Redis may still hold the old value.
//! Acknowledged ones are sent again to every other run of the server, in case it came back without what it had
//! acknowledged. Until then they make nothing a must-miss.

use std::{mem::take, time::Duration};

use super::coverage::{Coverage, Index};
use crate::{
    clock::{Clock, Instant},
    key::FullKey,
    sync::{AtomicU64, AtomicUsize, Ordering, RwLock},
};

/// Pending entries, and acknowledged ones of each of two periods, above which they are widened: keys to their keyspaces,
/// those to their tenants. The number of tenants is the bound beyond it.
pub(crate) const CAP: usize = 4096;
/// How much longer the run of the server that acknowledged an invalidation must have lived before it is forgotten.
const KEEP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Journal {
    clock: Clock,
    cap: usize,
    /// How many are pending: all that the read path looks at while all is well.
    pending: AtomicUsize,
    /// How many are acknowledged and kept.
    acknowledged: AtomicUsize,
    /// When the last doubt was: bits of an instant.
    doubted_at: AtomicU64,
    entries: RwLock<Entries>,
}

/// Each store is bounded and widened for itself: what is acknowledged must not make a must-miss of anything.
#[derive(Debug, Default)]
struct Entries {
    pending: Index<Pending>,
    /// Acknowledged in this period, of [`KEEP`] or more, and in the one before it.
    recent: Index<Acknowledged>,
    earlier: Index<Acknowledged>,
    /// When this period began: bits of an instant.
    period: u64,
    /// The number of the last record.
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Which record this is: an acknowledgement of an earlier one says nothing about it.
    number: u64,
    /// When its acknowledgement was taken back last.
    doubted: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    /// As before it was acknowledged again.
    doubted: Option<Instant>,
}

/// One invalidation as recorded.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) coverage: Coverage,
    number: u64,
}

impl Journal {
    /// A journal that widens its entries above `cap`.
    pub(crate) fn new(clock: Clock, cap: usize) -> Self {
        Self {
            clock,
            cap,
            pending: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            doubted_at: AtomicU64::new(0),
            entries: RwLock::default(),
        }
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
            let doubted = entries.pending.remove(&record.coverage).and_then(|entry| entry.doubted);
            entries.acknowledge(record.coverage.clone(), doubted, self.cap);
            self.count(&entries);
        }
    }

    /// Notes an invalidation that was not written down before the server executed it. Where the server was doubted after
    /// `sent_at` it waits for an acknowledgement like any other: this one may be of the run before.
    pub(crate) fn record_acknowledged(&self, coverage: Coverage, sent_at: Instant) {
        let mut entries = self.entries.write();
        if self.was_doubted_since(sent_at) {
            entries.record(coverage, self.cap);
        } else {
            entries.acknowledge(coverage, None, self.cap);
        }
        self.count(&entries);
    }

    /// Whether `key` is covered by an invalidation that waits for its acknowledgement. Costs one load where there is
    /// none.
    pub(crate) fn must_miss(&self, key: &FullKey) -> bool {
        self.has_pending() && self.covers(key)
    }

    /// Whether an answer for `key` that was asked for at `asked_at` may be what an acknowledged invalidation removed: it
    /// is pending again, or was put in doubt after that and has been acknowledged since. Costs two loads where nothing is
    /// pending and nothing was doubted meanwhile.
    pub(crate) fn doubts(&self, key: &FullKey, asked_at: Instant) -> bool {
        self.must_miss(key) || self.was_doubted_since(asked_at) && self.covers_doubted(key, asked_at)
    }

    fn was_doubted_since(&self, at: Instant) -> bool {
        // Zero means never, and in tests time begins there.
        let doubted_at = self.doubted_at.load(Ordering::SeqCst);
        doubted_at != 0 && doubted_at >= at.to_bits()
    }

    /// Whether any invalidation waits for its acknowledgement.
    pub(crate) fn has_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    /// Whether any acknowledged invalidation would have to be sent to another run of the server.
    pub(crate) fn has_acknowledged(&self) -> bool {
        self.acknowledged.load(Ordering::SeqCst) > 0
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
            || entries.recent.covers(key, |entry| is_recent(entry.doubted))
            || entries.earlier.covers(key, |entry| is_recent(entry.doubted))
    }

    /// What waits for its acknowledgement, oldest first.
    pub(crate) fn pending(&self) -> Vec<Record> {
        let entries = self.entries.read();
        let record = |(coverage, entry): (Coverage, &Pending)| Record { coverage, number: entry.number };
        let mut pending: Vec<_> = entries.pending.iter().map(record).collect();
        pending.sort_by_key(|record| record.number);
        pending
    }

    /// The run of the server that acknowledged everything since the last doubt was alive at `at`. Forgets what it had
    /// acknowledged ten seconds or more before: the time in which it is not known to be alive does not count, for it may
    /// have died at its beginning.
    pub(crate) fn alive(&self, at: Instant) {
        let mut entries = self.entries.write();
        if at.since(Instant::from_bits(entries.period)) < KEEP {
            return;
        }
        entries.period = self.clock.now().to_bits();
        entries.earlier = take(&mut entries.recent);
        self.count(&entries);
    }

    /// Takes back what was acknowledged lately: the server may have lost it.
    pub(crate) fn doubt(&self) {
        let mut entries = self.entries.write();
        let now = self.clock.now();
        self.doubted_at.store(now.to_bits().max(1), Ordering::SeqCst);
        let Entries { pending, recent, earlier, number, .. } = &mut *entries;
        let mut doubted = || {
            *number += 1;
            Pending { number: *number, doubted: Some(now) }
        };
        // An answer of the old server that is still under way acknowledges nothing any more.
        pending.retain(|entry| {
            *entry = doubted();
            true
        });
        for acknowledged in [take(earlier), take(recent)] {
            for (coverage, _) in acknowledged.iter() {
                pending.insert(coverage, doubted());
            }
        }
        self.count(&entries);
    }

    fn count(&self, entries: &Entries) {
        self.pending.store(entries.pending.len(), Ordering::SeqCst);
        self.acknowledged.store(entries.recent.len() + entries.earlier.len(), Ordering::SeqCst);
    }
}

impl Entries {
    fn record(&mut self, coverage: Coverage, cap: usize) -> u64 {
        let Self { pending, recent, earlier, number, .. } = self;
        let mut next = |doubted| {
            *number += 1;
            Pending { number: *number, doubted }
        };
        let acknowledged = [recent, earlier].map(|kept| kept.remove(&coverage).and_then(|entry| entry.doubted));
        let doubted = pending.get(&coverage).and_then(|entry| entry.doubted);
        let entry = next(doubted.max(acknowledged[0]).max(acknowledged[1]));
        pending.insert(coverage, entry);
        // A number of its own: no acknowledgement under way speaks of a wider one.
        pending.widen(cap, |narrow, wide| next(narrow.doubted.max(wide.and_then(|wide| wide.doubted))));
        entry.number
    }

    fn acknowledge(&mut self, coverage: Coverage, doubted: Option<Instant>, cap: usize) {
        let entry = Acknowledged { doubted }.merged(self.recent.get(&coverage));
        self.recent.insert(coverage, entry);
        self.recent.widen(cap, Acknowledged::merged);
    }
}

impl Acknowledged {
    /// One entry for both.
    fn merged(self, other: Option<&Self>) -> Self {
        Self { doubted: self.doubted.max(other.and_then(|other| other.doubted)) }
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
        assert!(!journal.must_miss(&x) && journal.has_acknowledged());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_acknowledged_is_forgotten_when_its_server_has_lived_for_ten_seconds_more() {
        let clock = Clock::tokio();
        let journal = Journal::new(clock, CAP);
        let x = key("a", "p", 1);
        let known_alive = async |journal: &Journal, seconds: u64| {
            for _ in 0..seconds * 2 {
                tokio::time::advance(Duration::from_millis(500)).await;
                journal.alive(clock.now());
            }
        };
        known_alive(&journal, 15).await;
        journal.acknowledge(&journal.record(of(&x)));
        known_alive(&journal, 9).await;
        // A minute in which nobody knows.
        tokio::time::advance(Duration::from_secs(60)).await;
        journal.doubt();
        assert!(journal.must_miss(&x), "forgotten during an outage");
        journal.pending().iter().for_each(|record| journal.acknowledge(record));
        known_alive(&journal, 21).await;
        assert!(!journal.has_acknowledged(), "kept for ever");
        journal.doubt();
        assert!(!journal.must_miss(&x));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_executed_without_a_record_is_doubted_like_the_others() {
        let clock = Clock::tokio();
        let journal = Journal::new(clock, CAP);
        let (x, y) = (key("a", "p", 1), key("a", "p", 2));
        let sent_at = clock.now();
        journal.record_acknowledged(of(&x), sent_at);
        assert!(!journal.must_miss(&x));
        tokio::time::advance(Duration::from_millis(10)).await;
        journal.doubt();
        assert!(journal.must_miss(&x));
        journal.record_acknowledged(of(&y), sent_at);
        assert!(journal.must_miss(&y), "its answer may be of the run before");
    }

    #[tokio::test]
    async fn acknowledged_ones_above_the_cap_are_widened_make_no_miss_and_are_all_doubted() {
        let journal = Journal::new(Clock::tokio(), CAP);
        let keys: Vec<_> = (0..5 * CAP as u64).map(|id| key(&format!("t{}", id % 7), "p", id)).collect();
        for key in &keys {
            journal.acknowledge(&journal.record(of(key)));
        }
        assert!(!journal.has_pending() && !keys.iter().any(|key| journal.must_miss(key)));
        journal.doubt();
        assert!(journal.pending().len() <= CAP + 7);
        assert!(keys.iter().all(|key| journal.must_miss(key)));
        journal.pending().iter().for_each(|record| journal.acknowledge(record));
        assert!(!keys.iter().any(|key| journal.must_miss(key)), "a must-miss for longer than until it was sent again");
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
