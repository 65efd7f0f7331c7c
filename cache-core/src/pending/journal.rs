//! The journal: invalidations from before they are sent until ten seconds after they were acknowledged.
//!
//! Written first, so that dropping the caller's future still invalidates. Until it is acknowledged, what an
//! invalidation covers is a local must-miss: neither READ nor LEASE is asked, for Redis may still hold the old value.
//! Acknowledged ones are sent again after every reconnect, in case the server lost what it had acknowledged.

use std::{collections::HashMap, time::Duration};

use crate::{
    clock::{Clock, Instant},
    key::{FullKey, pattern::Glob},
    sync::{AtomicU64, AtomicUsize, Mutex, Ordering},
};

/// Entries above which the acknowledged ones are dropped, and the others widened: keys to their keyspaces, those to
/// their tenants.
pub(crate) const CAP: usize = 4096;
/// How long an acknowledged invalidation is kept for replay.
const KEEP: Duration = Duration::from_secs(10);

/// What an invalidation covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Coverage {
    Key(Box<FullKey>),
    /// Prefix and profile.
    Keyspace(String),
    /// The generation of a tenant's tag.
    Tag(String),
    /// The tenant's prefix.
    Scope(String),
    Pattern {
        scope: String,
        glob: Glob,
    },
}

impl Coverage {
    /// Something larger that covers this too, if there is something.
    fn widened(&self) -> Option<Self> {
        match self {
            Self::Key(key) => Some(Self::Keyspace(key.keyspace().to_owned())),
            Self::Keyspace(keyspace) => {
                // The profile holds no `:`, so the prefix ends at the last one.
                let end = keyspace.rfind(':').map_or(0, |colon| colon + 1);
                Some(Self::Scope(keyspace[..end].to_owned()))
            }
            // No tenant holds a `~`.
            Self::Tag(generation) => generation.split_once('~').map(|(scope, _)| Self::Scope(scope.to_owned())),
            Self::Pattern { scope, .. } => Some(Self::Scope(scope.clone())),
            Self::Scope(_) => None,
        }
    }

    fn covers(&self, key: &FullKey) -> bool {
        match self {
            Self::Key(other) => **other == *key,
            Self::Keyspace(keyspace) => keyspace == key.keyspace(),
            Self::Tag(generation) => key.tags().iter().any(|tag| **tag == **generation),
            Self::Scope(scope) => scope == key.scope(),
            Self::Pattern { scope, glob } => scope == key.scope() && glob.covers(&key.as_str()[scope.len()..]),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Journal {
    clock: Clock,
    cap: usize,
    /// How many are not acknowledged: all that the read path looks at while all is well.
    unacknowledged: AtomicUsize,
    /// When the last reconnect was: bits of an instant.
    doubted_at: AtomicU64,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_coverage: HashMap<Coverage, Entry>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Which record this is: an acknowledgement of an earlier one says nothing about it.
    number: u64,
    acknowledged: Option<Instant>,
    /// When a reconnect took its acknowledgement back last. Kept when it is acknowledged again.
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
        let (unacknowledged, doubted_at) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { clock, cap, unacknowledged, doubted_at, entries: Mutex::default() }
    }

    /// Writes an invalidation down.
    pub(crate) fn record(&self, coverage: Coverage) -> Record {
        let mut entries = self.entries.lock();
        entries.next += 1;
        let number = entries.next;
        let doubted = entries.by_coverage.get(&coverage).and_then(|entry| entry.doubted);
        let entry = Entry { number, acknowledged: None, doubted };
        let replaced = entries.by_coverage.insert(coverage.clone(), entry);
        if replaced.is_none_or(|entry| entry.acknowledged.is_some()) {
            self.unacknowledged.fetch_add(1, Ordering::SeqCst);
        }
        if entries.by_coverage.len() > self.cap {
            entries.shrink(self.clock.now(), self.cap);
            self.recount(&entries);
        }
        Record { coverage, number }
    }

    /// Notes that the server has executed what was recorded.
    pub(crate) fn acknowledge(&self, record: &Record) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.by_coverage.get_mut(&record.coverage)
            && entry.number == record.number
            && entry.acknowledged.is_none()
        {
            entry.acknowledged = Some(self.clock.now());
            self.unacknowledged.fetch_sub(1, Ordering::SeqCst);
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
        self.unacknowledged.load(Ordering::SeqCst) > 0
    }

    #[cold]
    fn covers(&self, key: &FullKey) -> bool {
        let entries = self.entries.lock();
        entries.by_coverage.iter().any(|(coverage, entry)| entry.acknowledged.is_none() && coverage.covers(key))
    }

    #[cold]
    fn covers_doubted(&self, key: &FullKey, asked_at: Instant) -> bool {
        let entries = self.entries.lock();
        let is_recent = |entry: &Entry| entry.doubted.is_some_and(|at| at >= asked_at);
        entries.by_coverage.iter().any(|(coverage, entry)| is_recent(entry) && coverage.covers(key))
    }

    /// What waits for its acknowledgement, oldest first.
    pub(crate) fn pending(&self) -> Vec<Record> {
        let entries = self.entries.lock();
        let pending = entries.by_coverage.iter().filter(|(_, entry)| entry.acknowledged.is_none());
        let mut pending: Vec<_> =
            pending.map(|(coverage, entry)| Record { coverage: coverage.clone(), number: entry.number }).collect();
        pending.sort_by_key(|record| record.number);
        pending
    }

    /// Takes back the acknowledgements of the last ten seconds: the server may have lost what it acknowledged.
    pub(crate) fn doubt(&self) {
        let now = self.clock.now();
        let mut entries = self.entries.lock();
        self.doubted_at.store(now.to_bits(), Ordering::SeqCst);
        entries.forget_old(now);
        let Entries { by_coverage, next } = &mut *entries;
        for entry in by_coverage.values_mut() {
            (entry.acknowledged, entry.doubted) = (None, Some(now));
            // An answer of the old server that is still under way acknowledges nothing any more.
            *next += 1;
            entry.number = *next;
        }
        self.recount(&entries);
    }

    fn recount(&self, entries: &Entries) {
        let count = entries.by_coverage.values().filter(|entry| entry.acknowledged.is_none()).count();
        self.unacknowledged.store(count, Ordering::SeqCst);
    }
}

impl Entries {
    fn forget_old(&mut self, now: Instant) {
        self.by_coverage.retain(|_, entry| entry.acknowledged.is_none_or(|since| now.since(since) < KEEP));
    }

    /// Forgets what is old, then what is acknowledged, then widens until few enough are left. Tenants cannot be
    /// widened; their number is the bound. What is acknowledged is never widened: a busy keyspace would become a
    /// must-miss.
    fn shrink(&mut self, now: Instant, cap: usize) {
        self.forget_old(now);
        if self.by_coverage.len() > cap {
            self.by_coverage.retain(|_, entry| entry.acknowledged.is_none());
        }
        for widens in [
            |coverage: &Coverage| matches!(coverage, Coverage::Key(_) | Coverage::Pattern { .. }),
            |coverage: &Coverage| matches!(coverage, Coverage::Keyspace(_) | Coverage::Tag(_)),
        ] {
            if self.by_coverage.len() <= cap {
                return;
            }
            let narrow: Vec<_> = self.by_coverage.extract_if(|coverage, _| widens(coverage)).collect();
            for (coverage, mut entry) in narrow {
                let Some(wide) = coverage.widened() else { continue };
                // A number of its own: no acknowledgement under way speaks of the wider one.
                self.next += 1;
                entry.number = self.next;
                entry.doubted = entry.doubted.max(self.by_coverage.get(&wide).and_then(|entry| entry.doubted));
                self.by_coverage.insert(wide, entry);
            }
        }
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
