//! One call on its way through the steps of the read path.

use std::marker::PhantomData;

use crate::{
    flight::{Ending, Joined, Leader, nesting, share::Share},
    near::{Cached, erase},
    remote::Budget,
    state::State,
    stats::{Counters, Slot},
    sync::Arc,
    target::Target,
    value::codec::CacheValue,
};

/// One call on its way through the steps.
pub(crate) struct Call<'a, T, E> {
    pub(crate) target: &'a Target<'a>,
    pub(crate) state: &'a Arc<State>,
    pub(crate) slot: Slot,
    pub(crate) counters: &'a Counters,
    pub(crate) budget: Budget,
    pub(crate) share: Option<Share<E>>,
    /// The start of an entry in Redis that this call refused.
    pub(crate) seen: Option<Vec<u8>>,
    /// Redis holds a newer binary's entry.
    pub(crate) newer: bool,
    value: PhantomData<fn() -> T>,
}

impl<'a, T: CacheValue, E> Call<'a, T, E> {
    pub(crate) fn new(target: &'a Target<'a>, share: Option<Share<E>>) -> Self {
        let slot = target.slot();
        Self {
            target,
            state: target.state,
            slot,
            counters: target.state.stats.counters(slot),
            budget: Budget::new(target.state.options.op_timeout),
            share,
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
            self.counters.bypassed.increment();
        }
        bypass
    }

    /// Joins the flight of this entry, or begins one.
    pub(crate) fn join(&self) -> Joined<'a> {
        let (state, target) = (self.state, self.target);
        let now = state.clock.now();
        state.flights.join(target.key.as_str(), target.binding, &state.near.stripes, target.watch(), now)
    }

    /// To be called by a new leader: the one before it may have stored its value after this call looked for it. `Err`
    /// with the value ends the flight: without Redis for all who wait by now, else they look for themselves, as some
    /// may want a stricter answer.
    pub(crate) fn unless_near(&self, leader: Leader<'a>) -> Result<Leader<'a>, Cached<T>> {
        let looked = leader.sending();
        let Some(value) = self.target.lookup_near() else { return Ok(leader) };
        let accepted = self.state.remote.is_none().then_some(looked);
        leader.finish(Ending::Value(erase(&value)), accepted);
        Err(value)
    }
}
