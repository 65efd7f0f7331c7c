//! The read path: near tier, remote tier, single-flight, lease, fetch, store. One function per step, in the order of
//! the picture.
//!
//! The hand-out law: a call that finds nothing near may be given a value only if the fetch that made it began after
//! the call began, or a command sent after the call began accepted it. A call that may not take an outcome looks into the
//! tiers again and joins the next flight. After two rounds it fetches for itself.
//!
//! A leading miss looks near twice: before it joins, and once more as the leader. The first look is the caller's own
//! ([`near`]), before anything is allocated. The second one has its reason beside it ([`join`]).

mod many;
pub(crate) mod lead;
mod look;
mod life;
mod policy;
pub(crate) mod call;

use std::future::Future;

use self::call::Call;
pub(crate) use self::{
    life::{life, touch},
    look::{near, near_by_key},
    many::{fetch_uncached, get_many, read_through_many},
};
use crate::{
    clock::sleep,
    error::Error,
    flight::{Awaited, Ending, Follower, Joined, Leader, Patience, nesting, share::Share},
    invalidate,
    near::{Cached, erase, unerase},
    stats::Edge,
    target::Target,
    value::codec::CacheValue,
};

/// Rounds through the flight before a call fetches for itself.
const ROUNDS: usize = 2;

/// What Redis has for `target`, which was looked for near. Never fetches.
pub(crate) async fn get<T: CacheValue>(target: &Target<'_>) -> Result<Option<Cached<T>>, Error> {
    if target.state.is_off() {
        return Ok(None);
    }
    let mut call = Call::new(target);
    look::look(std::slice::from_mut(&mut call)).await?;
    Ok(call.found)
}

/// The value of `target`, which was looked for near: from Redis, from another call's fetch, or from `fetch`.
pub(crate) async fn read_through<T: CacheValue, E>(
    target: &Target<'_>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
    share: Option<Share<E>>,
) -> Result<Cached<T>, E> {
    let mut call = Call::new(target);
    if call.must_bypass() {
        return fetch.await;
    }
    look::look_or_go_on(std::slice::from_mut(&mut call)).await;
    match call.found {
        Some(value) => Ok(value),
        None => fly(&mut call, fetch, share).await,
    }
}

/// Forgets what the tiers hold, fetches, and stores the result.
///
/// The fetch runs under a lease like any other: were its result stored as a plain SET, an invalidation that came
/// during the fetch would be undone.
pub(crate) async fn refresh<T: CacheValue, E>(
    target: &Target<'_>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    // Also where the call runs uncached: others store. Where Redis cannot be reached the outcome is reported there, and
    // the fetch is worth its value all the same.
    let _ = invalidate::keys(target.state, std::slice::from_ref(&target.key)).await;
    let mut call = Call::new(target);
    if call.must_bypass() {
        return fetch.await;
    }
    match call.join() {
        Joined::Leader(leader) => lead::lead_one(&mut call, leader, fetch, None).await,
        // Its fetch began after the invalidation and so is as new; ours need not be stored.
        Joined::Follower(_) => lead::fetch_alone(&call, fetch).await,
    }
}

/// What joining the flight led to.
enum Step<'a, T, E> {
    Lead(Leader<'a>),
    Done(Result<Cached<T>, E>),
    GoAround,
    /// It has waited for long enough.
    Alone,
}

/// A miss: waits for the fetch of another call, or leads.
async fn fly<'a, T: CacheValue, E>(
    call: &mut Call<'a, T>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
    share: Option<Share<E>>,
) -> Result<Cached<T>, E> {
    for _ in 0..ROUNDS {
        // Errors are never held across an await: they need not be `Send`.
        let leader = match join(call, share).await {
            Step::Lead(leader) => Some(leader),
            Step::Done(result) => {
                call.counters.note(Edge::Coalesced);
                return result;
            }
            Step::GoAround => None,
            Step::Alone => break,
        };
        if let Some(leader) = leader {
            return lead::lead_one(call, leader, fetch, share).await;
        }
        if let Some(value) = look::look_again(call).await {
            call.counters.note(Edge::Coalesced);
            return Ok(value);
        }
    }
    lead::fetch_alone(call, fetch).await
}

async fn join<'a, T: CacheValue, E>(call: &Call<'a, T>, share: Option<Share<E>>) -> Step<'a, T, E> {
    let awaited = match call.join() {
        Joined::Leader(leader) => Some(Awaited::Leader(leader)),
        Joined::Follower(follower) => follow(call, follower).await,
    };
    match awaited {
        Some(Awaited::Leader(leader)) => match unless_near(call, leader) {
            Ok(leader) => Step::Lead(leader),
            Err(value) => Step::Done(Ok(value)),
        },
        Some(Awaited::Ending(ending)) => take(ending, share),
        Some(Awaited::GoAround) => Step::GoAround,
        None => Step::Alone,
    }
}

/// The second look of a new leader:
///
/// 1. This call looks near and finds nothing.
/// 2. The leader before it stores the value, and its flight ends.
/// 3. This call joins, and leads a flight for what is near by now.
///
/// `Err` with the value ends the flight: without Redis for all who wait by now, else they look for themselves, as some
/// may want a stricter answer.
fn unless_near<'a, T: CacheValue>(call: &Call<'a, T>, leader: Leader<'a>) -> Result<Leader<'a>, Cached<T>> {
    let looked = leader.sending();
    let Some(value) = near(call.target) else { return Ok(leader) };
    let accepted = call.state.remote.is_none().then_some(looked);
    leader.finish(Ending::Value(erase(&value)), accepted);
    Err(value)
}

/// Waits for the leader, and takes its place if it is silent for too long. `None` when this call has waited enough.
async fn follow<'a, T: CacheValue>(call: &Call<'a, T>, mut follower: Follower<'a>) -> Option<Awaited<'a>> {
    let (clock, period) = (call.state.clock, call.state.options.lease);
    // Inside a fetch no longer than a lease period: whoever leads may be waiting for the fetch around this call.
    let mut left = if nesting::is_nested() { period } else { call.state.options.max_fetch };
    loop {
        let turn = match follower.look_after(period, call.target.watch(), clock.now()) {
            Patience::Leader(leader) => return Some(Awaited::Leader(leader)),
            Patience::Left(turn) => turn.min(left),
            Patience::Over => return None,
            Patience::GoAround => return Some(Awaited::GoAround),
        };
        if turn.is_zero() {
            return None;
        }
        tokio::select! {
            biased;
            awaited = follower.wait(call.target.watch(), || clock.now()) => return Some(awaited),
            _ = sleep(turn) => {}
        }
        left = left.saturating_sub(turn);
    }
}

fn take<'a, T: CacheValue, E>(ending: Ending, share: Option<Share<E>>) -> Step<'a, T, E> {
    match ending {
        Ending::Value(value) => unerase(value).map_or(Step::GoAround, |value| Step::Done(Ok(value))),
        Ending::Failed(error) => {
            let error = share.and_then(|share| share.restore(&error));
            error.map_or(Step::GoAround, |error| Step::Done(Err(error)))
        }
    }
}
