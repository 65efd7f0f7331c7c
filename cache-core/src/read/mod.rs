//! The read path: near tier, remote tier, single-flight, lease, fetch, store. One function per step, in the order of
//! the picture.
//!
//! The hand-out law: a call that finds nothing near may be given a value only if the fetch that made it began after
//! the call began, or a command sent after the call began accepted it. Whoever may not take an outcome looks into the
//! tiers again and goes round, and after two rounds fetches for itself.

pub(crate) mod call;
pub(crate) mod lead;
pub(crate) mod many;

use std::future::Future;

use crate::{
    clock::sleep,
    error::Error,
    flight::{Awaited, Ending, Follower, Joined, Leader, nesting, share::Share},
    invalidate::{self, backplane, resend},
    near::{Cached, unerase},
    read::call::Call,
    remote::Budget,
    target::{Target, Verdict},
    value::codec::CacheValue,
};

/// Rounds through the flight before a call fetches for itself.
const ROUNDS: usize = 2;

/// The value of `target`: from the near tier, from Redis, from another call's fetch, or from `fetch`.
pub(crate) async fn read_through<T: CacheValue, E>(
    target: &Target<'_>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
    share: Option<Share<E>>,
) -> Result<Cached<T>, E> {
    if let Some(value) = target.lookup_near() {
        return Ok(value);
    }
    let mut call = Call::new(target, share);
    if call.must_bypass() {
        return fetch.await;
    }
    if let Some(value) = call.lookup_remote().await {
        call.counters.remote_hits.increment();
        return Ok(value);
    }
    call.counters.misses.increment();
    for _ in 0..ROUNDS {
        // Errors are never held across an await: they need not be `Send`.
        let leader = match call.join_flight().await {
            Step::Lead(leader) => Some(leader),
            Step::Done(result) => {
                call.counters.coalesced.increment();
                return result;
            }
            Step::GoAround => None,
            Step::Alone => break,
        };
        if let Some(leader) = leader {
            return lead::lead(call, leader, fetch).await;
        }
        // What it may not take from the flight is stored by now, as a rule. Without this look all who join a flight
        // after its last command was sent would fetch for themselves.
        if let Some(value) = call.look_again().await {
            call.counters.coalesced.increment();
            return Ok(value);
        }
    }
    lead::fetch_alone(&call, fetch).await
}

/// Forgets what the tiers hold, fetches, and stores the result.
///
/// The fetch runs under a lease like any other: were its result stored as a plain SET, an invalidation that came
/// during the fetch would be undone.
pub(crate) async fn refresh<T: CacheValue, E>(
    target: &Target<'_>,
    fetch: impl Future<Output = Result<Cached<T>, E>>,
) -> Result<Cached<T>, E> {
    let call = Call::new(target, None);
    if call.must_bypass() {
        return fetch.await;
    }
    // Where Redis cannot be reached the outcome is reported there, and the fetch is worth its value all the same.
    let _ = invalidate::keys(target.state, std::slice::from_ref(&target.key)).await;
    match call.join() {
        Joined::Leader(leader) => lead::lead(call, leader, fetch).await,
        // Its fetch began after the invalidation and so is as new; ours need not be stored.
        Joined::Follower(_) => lead::fetch_alone(&call, fetch).await,
    }
}

/// The value of `target` if a tier has it. Never fetches.
pub(crate) async fn peek<T: CacheValue>(target: &Target<'_>) -> Result<Option<Cached<T>>, Error> {
    let state = target.state;
    if state.is_off() {
        return Ok(None);
    }
    if let Some(value) = target.lookup_near() {
        return Ok(Some(value));
    }
    let slot = target.slot();
    let counters = state.stats.counters(slot);
    backplane::ensure(state);
    resend::ensure(state);
    // The watch before the look into the journal, as an invalidation is written there before it bumps.
    let (asked_at, watch) = (state.clock.now(), target.watch());
    if let Some(remote) = state.remote.as_ref().filter(|_| !target.must_miss()) {
        let read = remote.read(&mut Budget::new(state.options.op_timeout), &target.key).await;
        let read = read.inspect_err(|_| counters.remote_errors.increment())?;
        if let Verdict::Hit(value) = target.accept(&read, asked_at, watch, slot) {
            counters.remote_hits.increment();
            return Ok(Some(value));
        }
    }
    counters.misses.increment();
    Ok(None)
}

/// What joining the flight led to.
enum Step<'a, T, E> {
    Lead(Leader<'a>),
    Done(Result<Cached<T>, E>),
    GoAround,
    /// It has waited for long enough.
    Alone,
}

impl<'a, T: CacheValue, E> Call<'a, T, E> {
    async fn lookup_remote(&mut self) -> Option<Cached<T>> {
        backplane::ensure(self.state);
        resend::ensure(self.state);
        // The watch before the look into the journal, as an invalidation is written there before it bumps.
        let (asked_at, watch) = (self.state.clock.now(), self.target.watch());
        let remote = self.state.remote.as_ref().filter(|_| !self.target.must_miss())?;
        match remote.read(&mut self.budget, &self.target.key).await {
            Ok(read) => match self.target.accept(&read, asked_at, watch, self.slot) {
                Verdict::Hit(value) => return Some(value),
                Verdict::Miss { seen } => self.seen = seen,
                Verdict::Newer => self.newer = true,
            },
            Err(error) => self.state.remote_failed("read", self.counters, &error),
        }
        None
    }

    async fn look_again(&mut self) -> Option<Cached<T>> {
        match self.target.lookup_near() {
            None => self.lookup_remote().await,
            near => near,
        }
    }

    async fn join_flight(&mut self) -> Step<'a, T, E> {
        // It may have come while Redis was asked.
        if let Some(value) = self.target.lookup_near() {
            return Step::Done(Ok(value));
        }
        match self.join() {
            Joined::Leader(leader) => self.lead(leader),
            Joined::Follower(follower) => match self.follow(follower).await {
                Some(Awaited::Leader(leader)) => self.lead(leader),
                Some(Awaited::Ending(ending)) => self.take(ending),
                Some(Awaited::GoAround) => Step::GoAround,
                None => Step::Alone,
            },
        }
    }

    fn lead(&self, leader: Leader<'a>) -> Step<'a, T, E> {
        self.unless_near(leader).map_or_else(|value| Step::Done(Ok(value)), Step::Lead)
    }

    /// Waits for the leader, and takes its place if it is not polled for a lease period. `None` after `max_fetch`.
    async fn follow(&self, mut follower: Follower<'a>) -> Option<Awaited<'a>> {
        let (clock, patience) = (self.state.clock, self.state.options.lease);
        // Inside a fetch no longer than a lease period: whoever leads may be waiting for the fetch around this call.
        let mut left = if nesting::is_nested() { patience } else { self.state.options.max_fetch };
        // What is left of the leader's lease period since it was polled last.
        let mut turn = patience;
        loop {
            turn = turn.min(left);
            let awaited = tokio::select! {
                biased;
                awaited = follower.wait(self.target.watch(), || clock.now()) => return Some(awaited),
                () = sleep(turn) => follower.depose(patience, self.target.watch(), clock.now()),
            };
            left = left.saturating_sub(turn);
            match awaited {
                Ok(leader) => return Some(Awaited::Leader(leader)),
                Err(rest) => turn = rest,
            }
            if left.is_zero() {
                return None;
            }
        }
    }

    fn take(&self, ending: Ending) -> Step<'a, T, E> {
        match ending {
            Ending::Value(value) => unerase(value).map_or(Step::GoAround, |value| Step::Done(Ok(value))),
            Ending::Failed(Some(error)) => {
                let error = self.share.and_then(|share| share.restore(&error));
                error.map_or(Step::GoAround, |error| Step::Done(Err(error)))
            }
            Ending::Failed(None) => Step::GoAround,
        }
    }
}
