//! What is left of an entry's life, and its whole life again.

use super::policy::{Decision, decide};
use crate::{
    error::Error,
    remote::{Budget, Life},
    target::Target,
    value::codec::CacheValue,
    write::closed,
};

/// What is left of an entry's life.
pub(crate) async fn life<T: CacheValue>(target: &Target<'_>) -> Result<Option<Life>, Error> {
    let state = target.state;
    if state.is_off() {
        return Ok(None);
    }
    // Before the look into the journal.
    let asked_at = state.clock.now();
    match &state.remote {
        Some(_) if target.must_miss() => Ok(None),
        Some(remote) => {
            let mut budget = Budget::new(state.options.op_timeout);
            let life = remote.ttl(&mut budget, &target.key, &target.purpose::<T>()).await?;
            // As in `Target::accept`: the connection may be one to a server that came back with what it had removed.
            Ok(life.filter(|_| !state.journal.doubts(&target.key, asked_at)))
        }
        None => {
            let now = state.clock.now();
            let found = state.near.fresh_until(target.key.as_str(), target.key.tags(), &target.binding.origin, now);
            let found = found.filter(|(fresh_until, _)| decide(now, *fresh_until) == Decision::Serve);
            Ok(found.map(|(fresh_until, negative)| Life { left: fresh_until.since(now), negative }))
        }
    }
}

/// Gives a valid entry its full TTL again. False when there is none.
pub(crate) async fn touch<T: CacheValue>(target: &Target<'_>) -> Result<bool, Error> {
    let state = target.state;
    if state.is_off() {
        return Err(closed());
    }
    let Some(ttl) = target.fresh_ttl(false) else { return Ok(false) };
    match &state.remote {
        Some(_) if target.must_miss() => Ok(false),
        // A near copy beside Redis keeps its shorter life.
        Some(remote) => {
            let mut budget = Budget::new(state.options.op_timeout);
            remote.touch(&mut budget, &target.key, &target.purpose::<T>(), ttl).await
        }
        None => {
            let now = state.clock.now();
            let renewed = |fresh_until| (decide(now, fresh_until) == Decision::Serve).then(|| now.saturating_add(ttl));
            Ok(state.near.touch(target.key.as_str(), target.key.tags(), &target.binding.origin, now, renewed))
        }
    }
}
