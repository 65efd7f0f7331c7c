//! One call on its way through the steps of the read path.

use std::marker::PhantomData;

use crate::{
    clock::Instant,
    flight::{Joined, nesting},
    near::{Cached, Watch},
    remote::Budget,
    state::State,
    stats::{Counters, Edge, Slot},
    sync::Arc,
    target::Target,
    value::codec::CacheValue,
};

/// One call on its way through the steps.
pub(crate) struct Call<'a, T> {
    pub(crate) target: &'a Target<'a>,
    pub(crate) state: &'a Arc<State>,
    pub(crate) slot: Slot,
    pub(crate) counters: &'a Counters,
    pub(crate) budget: Budget,
    /// What this call returns, once it is known.
    pub(crate) found: Option<Cached<T>>,
    /// Counted as a miss: what this call finds from then on is another call's doing.
    pub(crate) missed: bool,
    /// A fetch asked for its own key: the call runs uncached.
    pub(crate) is_bypassed: bool,
    /// The start of an entry in Redis that this call refused.
    pub(crate) seen: Option<Vec<u8>>,
    /// Redis holds a newer binary's entry.
    pub(crate) newer: bool,
    value: PhantomData<fn() -> T>,
}

/// What was known before an entry was asked for or fetched.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) watch: Watch,
}

impl<'a, T: CacheValue> Call<'a, T> {
    pub(crate) fn new(target: &'a Target<'a>) -> Self {
        let slot = target.slot();
        Self {
            target,
            state: target.state,
            slot,
            counters: target.state.stats.counters(slot),
            budget: Budget::new(target.state.options.op_timeout),
            found: None,
            missed: false,
            is_bypassed: false,
            seen: None,
            newer: false,
            value: PhantomData,
        }
    }

    /// A cache that is off, and a fetch that asks for its own key, run uncached.
    pub(crate) fn must_bypass(&self) -> bool {
        let bypass =
            self.state.is_off() || nesting::is_fetching(self.state.id, self.target.key.as_str(), self.target.binding);
        if bypass {
            self.counters.note(Edge::Bypassed);
        }
        bypass
    }

    /// Counts a call that found nothing in the tiers.
    pub(crate) fn note_miss(&mut self) {
        self.missed = true;
        self.counters.note(Edge::Miss);
    }

    /// To be called before the entry is asked for, and before the look into the journal, as an invalidation is written
    /// there before it bumps.
    pub(crate) fn ask(&self) -> Asked {
        Asked { at: self.state.clock.now(), watch: self.target.watch() }
    }

    /// Joins the flight of this entry, or begins one.
    pub(crate) fn join(&self) -> Joined<'a> {
        let (state, target) = (self.state, self.target);
        let now = state.clock.now();
        state.flights.join(target.key.as_str(), target.binding, &state.near.stripes, target.watch(), now)
    }
}
