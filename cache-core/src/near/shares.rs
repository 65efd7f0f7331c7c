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
    /// How many there may be before those that hold nothing are forgotten.
    tidy_at: usize,
}

/// What one tenant holds.
#[derive(Debug, Default)]
struct Share {
    bytes: AtomicU64,
    entries: Mutex<Queue>,
}

/// A tenant's entries, oldest first; those that are gone included for a while.
#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<(Box<str>, Weak<Charge>)>,
    tidy_at: usize,
}

/// The bytes of one entry, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    share: Arc<Share>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.share.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl Shares {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, tenants: Mutex::default() }
    }

    /// Counts an entry that is about to be stored.
    pub(super) fn charge(&self, scope: &str, bytes: u64) -> Arc<Charge> {
        let share = self.share(scope);
        share.bytes.fetch_add(bytes, Ordering::SeqCst);
        Arc::new(Charge { share, bytes })
    }

    fn share(&self, scope: &str) -> Arc<Share> {
        let mut tenants = self.tenants.lock();
        if let Some(share) = tenants.by_scope.get(scope) {
            return share.clone();
        }
        if tenants.by_scope.len() >= tenants.tidy_at {
            // Only the map's own: no entry, and nobody about to store one.
            tenants.by_scope.retain(|_, share| Arc::strong_count(share) > 1);
            tenants.tidy_at = (tenants.by_scope.len() * 2).max(64);
        }
        tenants.by_scope.entry(scope.into()).or_default().clone()
    }

    /// Queues a stored entry of its tenant.
    pub(super) fn queue(&self, key: &str, charge: &Arc<Charge>) {
        let mut queue = charge.share.entries.lock();
        if queue.entries.len() >= queue.tidy_at {
            queue.entries.retain(|(_, charge)| charge.strong_count() > 0);
            queue.tidy_at = (queue.entries.len() * 2).max(64);
        }
        queue.entries.push_back((key.into(), Arc::downgrade(charge)));
    }

    /// The oldest entry of a tenant that holds too much.
    pub(super) fn next_over(&self, charge: &Charge) -> Option<(Box<str>, Weak<Charge>)> {
        if charge.share.bytes.load(Ordering::SeqCst) <= self.limit {
            return None;
        }
        charge.share.entries.lock().entries.pop_front()
    }
}
