//! What the near tier holds under a key, and what it weighs.

use std::{
    any::Any,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
};

use quick_cache::{Lifecycle, Weighter};

use super::{shares::Charge, stripes::Watch};
use crate::{clock::Instant, stats::Slot, sync::Arc, value::keyspace::Origin};

/// Estimated bytes of an entry beside its key and value: its place in the map's arrays, which grow by doubling, and the
/// allocations of key and value. Measured in `benches/tests/memory.rs`.
pub(super) const OVERHEAD: usize = 272;

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
        Err(other) => {
            let is_negative = other.is::<Negative<T>>();
            drop_quietly(other);
            is_negative.then_some(None)
        }
    }
}

#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Erased,
    /// The function the value is bound to.
    pub(crate) origin: Origin,
    pub(crate) watch: Watch,
    /// The end of its life.
    pub(crate) fresh_until: Instant,
    /// Until when the entry is served without the backplane vouching for it.
    pub(crate) sure_until: Instant,
    /// Whether it says that there is none.
    pub(crate) negative: bool,
    pub(crate) slot: Slot,
}

/// An entry that nothing speaks against but perhaps its age.
pub(crate) struct Found<T> {
    pub(crate) value: Cached<T>,
    pub(crate) fresh_until: Instant,
    pub(crate) slot: Slot,
}

/// An entry as the map holds it.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) weight: u32,
    pub(super) charge: Option<Arc<Charge>>,
}

/// What the map holds no more.
pub(super) type Gone = (Box<str>, Stored);

/// Carries what is evicted out of the map's lock.
#[derive(Clone)]
pub(super) struct Outside;

impl Lifecycle<Box<str>, Stored> for Outside {
    type RequestState = Vec<Gone>;

    fn on_evict(&self, gone: &mut Self::RequestState, key: Box<str>, stored: Stored) {
        gone.push((key, stored));
    }
}

/// Entries that the map holds no more count no more for their tenants, whoever holds them for longer.
pub(super) fn give_back<'g>(gone: impl IntoIterator<Item = &'g Gone>) {
    for (_, stored) in gone {
        if let Some(charge) = &stored.charge {
            charge.give_back();
        }
    }
}

/// Drops entries, under no lock.
pub(super) fn discard(gone: impl IntoIterator<Item = Gone>) {
    for entry in gone {
        drop_quietly(entry);
    }
}

/// Drops what may hold the last of a value, which runs the user's code. Its panic is of no concern to the call that happens to
/// drop somebody's value.
pub(super) fn drop_quietly<T>(value: T) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

#[derive(Clone)]
pub(super) struct Weight;

impl Weighter<Box<str>, Stored> for Weight {
    fn weight(&self, _: &Box<str>, stored: &Stored) -> u64 {
        u64::from(stored.weight)
    }
}
