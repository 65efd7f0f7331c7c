//! How much of the near tier one tenant may hold: a tenant over its share loses its own oldest entries, nobody else's.

use std::collections::{HashMap, VecDeque};

use crate::sync::{Arc, AtomicU64, Mutex, Ordering, Weak};

/// Estimated bytes of an entry's place in its tenant's queue, beside its key.
pub(super) const OVERHEAD: usize = 80;

/// All tenants' shares.
#[derive(Debug)]
pub(super) struct Shares {
    /// Most bytes of one tenant.
    limit: u64,
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    by_scope: HashMap<Box<str>, Arc<Share>>,
    /// Entries stored since what is gone was forgotten last, and how many there may be before it is forgotten again.
    stored: usize,
    tidy_at: usize,
}

/// What one tenant holds.
#[derive(Debug, Default)]
struct Share {
    bytes: AtomicU64,
    /// Its entries, oldest first; those that are gone included for a while.
    entries: Mutex<VecDeque<(Box<str>, Weak<Charge>)>>,
}

/// The bytes of one entry, counted until it is [given back](Self::give_back) or dropped.
#[derive(Debug)]
pub(super) struct Charge {
    share: Arc<Share>,
    bytes: AtomicU64,
}

impl Charge {
    /// Counts no more. Who reads the entry just now may hold it for longer.
    pub(super) fn give_back(&self) {
        self.share.bytes.fetch_sub(self.bytes.swap(0, Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Shares {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, tenants: Mutex::default() }
    }

    /// Whether one entry may take so many bytes.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        bytes <= self.limit
    }

    /// Counts an entry that is about to be stored.
    pub(super) fn charge(&self, scope: &str, bytes: u64) -> Arc<Charge> {
        let share = self.share(scope);
        share.bytes.fetch_add(bytes, Ordering::SeqCst);
        Arc::new(Charge { share, bytes: AtomicU64::new(bytes) })
    }

    fn share(&self, scope: &str) -> Arc<Share> {
        let mut tenants = self.tenants.lock();
        tenants.stored += 1;
        if tenants.stored > tenants.tidy_at {
            tenants.tidy();
        }
        if let Some(share) = tenants.by_scope.get(scope) {
            return share.clone();
        }
        tenants.by_scope.entry(scope.into()).or_default().clone()
    }

    /// Queues a stored entry of its tenant.
    pub(super) fn queue(&self, key: &str, charge: &Arc<Charge>) {
        charge.share.entries.lock().push_back((key.into(), Arc::downgrade(charge)));
    }

    /// The oldest entry of a tenant that holds too much.
    pub(super) fn next_over(&self, charge: &Charge) -> Option<(Box<str>, Weak<Charge>)> {
        if charge.share.bytes.load(Ordering::SeqCst) <= self.limit {
            return None;
        }
        charge.share.entries.lock().pop_front()
    }
}

impl Tenants {
    /// Forgets entries that are gone, of all tenants, and tenants that hold nothing. As often as it costs no more than storing
    /// did since the last time.
    fn tidy(&mut self) {
        let mut live = 0;
        self.by_scope.retain(|_, share| {
            let mut entries = share.entries.lock();
            entries.retain(|(_, charge)| charge.strong_count() > 0);
            entries.shrink_to_fit();
            live += entries.len();
            // Only the map's own: no entry, and nobody about to store one.
            !entries.is_empty() || Arc::strong_count(share) > 1
        });
        (self.stored, self.tidy_at) = (0, live.max(1024));
    }
}
