//! The look into the tiers, for one call or many: near tier, journal, Redis.
//!
//! Whoever holds a cache looks near first, before anything is allocated for the call ([`near`]). What follows here is
//! asked once for all calls that found nothing there.

use super::{
    call::{Asked, Call},
    policy::{Decision, decide},
};
use crate::{
    error::Error,
    invalidate::{backplane, resend},
    key::FullKey,
    near::Cached,
    remote::{Budget, Read},
    state::State,
    target::{Target, Verdict},
    value::{codec::CacheValue, keyspace::Origin},
};

/// The value of `target`, if the near tier has it and may serve it. Counted as a hit.
#[inline]
pub(crate) fn near<T: CacheValue>(target: &Target<'_>) -> Option<Cached<T>> {
    if target.strict && target.state.remote.is_some() {
        return None;
    }
    near_by_key(target.state, &target.key, &target.binding.origin)
}

/// The same for one who has no more than the key and the function.
#[inline]
pub(crate) fn near_by_key<T: CacheValue>(state: &State, key: &FullKey, origin: &Origin) -> Option<Cached<T>> {
    if state.is_off() {
        return None;
    }
    let now = state.clock.now();
    let found = state.near.get(key.as_str(), key.tags(), origin, now)?;
    if decide(now, found.fresh_until) == Decision::Fetch {
        return None;
    }
    state.stats.counters(found.slot).near_hit();
    Some(found.value)
}

/// Looks into Redis for calls that found nothing near, in one round trip. Each is counted as a hit or a miss.
pub(crate) async fn look<T: CacheValue>(calls: &mut [Call<'_, T>]) -> Result<(), Error> {
    remote(calls).await?;
    missing(calls).for_each(Call::note_miss);
    Ok(())
}

/// The same where calls go on without Redis: a failure is reported, and counts as a miss.
pub(crate) async fn look_or_go_on<T: CacheValue>(calls: &mut [Call<'_, T>]) {
    if let Err(error) = remote(calls).await
        && let Some(call) = calls.first()
    {
        call.state.sink.report("read", &error);
    }
    missing(calls).for_each(Call::note_miss);
}

fn missing<'c, 'a, T>(calls: &'c mut [Call<'a, T>]) -> impl Iterator<Item = &'c mut Call<'a, T>> {
    calls.iter_mut().filter(|call| call.found.is_none())
}

/// A call looks again that may not take the outcome of the flight it waited for: that is stored by now, as a rule.
/// Without this look all who join a flight after its last command was sent would fetch for themselves.
pub(crate) async fn look_again<T: CacheValue>(call: &mut Call<'_, T>) -> Option<Cached<T>> {
    call.found = near(call.target);
    if call.found.is_none()
        && let Err(error) = remote(std::slice::from_mut(call)).await
    {
        call.state.sink.report("read", &error);
    }
    call.found.take()
}

async fn remote<T: CacheValue>(calls: &mut [Call<'_, T>]) -> Result<(), Error> {
    let Some(state) = calls.first().map(|call| call.state) else { return Ok(()) };
    backplane::ensure(state);
    resend::ensure(state);
    let Some(remote) = &state.remote else { return Ok(()) };
    if let [call] = calls {
        let asked = call.ask();
        if call.found.is_some() || call.target.must_miss() {
            return Ok(());
        }
        let read = remote.read(&mut call.budget, &call.target.key).await;
        let read = read.inspect_err(|_| call.counters.remote_errors.increment())?;
        call.accept(&read, asked);
        return Ok(());
    }
    let asking = missing(calls).map(|call| (call.ask(), call));
    let mut asking: Vec<_> = asking.filter(|(_, call)| !call.target.must_miss()).collect();
    let Some((_, first)) = asking.first() else { return Ok(()) };
    let (mut budget, counters) = (first.budget, first.counters);
    let keys: Vec<_> = asking.iter().map(|(_, call)| call.target.key.clone()).collect();
    let reads = remote.read_many(&mut budget, &keys).await;
    let reads = reads.inspect_err(|_| counters.remote_errors.increment());
    for ((asked, call), read) in asking.iter_mut().zip(reads.as_deref().unwrap_or_default()) {
        call.accept(read, *asked);
    }
    spend(calls, budget);
    reads.map(drop)
}

/// Leaves each call what is left of the time for commands of all.
pub(crate) fn spend<T>(calls: &mut [Call<'_, T>], left: Budget) {
    for call in calls {
        call.budget = call.budget.min(left);
    }
}

impl<T: CacheValue> Call<'_, T> {
    fn accept(&mut self, read: &Read, asked: Asked) {
        match self.target.accept(read, asked.at, asked.watch, self.slot) {
            Verdict::Hit(value) => {
                if !self.missed {
                    self.counters.remote_hits.increment();
                }
                self.found = Some(value);
            }
            Verdict::Miss { seen } => self.seen = seen,
            Verdict::Newer => self.newer = true,
        }
    }
}
