//! Step *fenced store* of the picture: the only writer. A fetched value goes through FILL, a given one through SET.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind},
    invalidate::{self, resend},
    near::Cached,
    pending::coverage::Coverage,
    remote::{Budget, Lease, Remote, breaks_connection},
    stats::Edge,
    sync::Arc,
    target::Target,
    value::{
        codec::CacheValue,
        envelope::{HEAD, Head, Stamp},
    },
};

/// A value ready to be stored.
pub(crate) struct Encoded {
    head: [u8; HEAD],
    payload: Vec<u8>,
    pub(crate) ttl: Duration,
    /// What the value takes in memory.
    pub(crate) weight: usize,
}

impl Encoded {
    /// For a FILL that stores nothing and is answered all the same.
    pub(crate) fn nothing() -> Self {
        Self { head: [0; HEAD], payload: Vec::new(), ttl: Duration::ZERO, weight: 0 }
    }
}

/// Encodes a value for Redis. Neither a failing nor a panicking `Serialize` gets further than this.
pub(crate) fn encode<T: CacheValue>(
    target: &Target<'_>,
    remote: &Remote,
    value: &Cached<T>,
    ttl: Duration,
    cost: Duration,
) -> Result<Encoded, Error> {
    let codec = target.codec();
    let weight = value.as_deref().map_or(Ok(0), |value| codec.weigh(value))?;
    let payload = value.as_deref().map_or(Ok(Vec::new()), |value| codec.encode(value))?;
    target.check_len(payload.len())?;
    if value.is_some() {
        target.check_serde::<T>(codec, &payload);
    }
    let head = Head {
        entry: rand::random(),
        codec,
        negative: value.is_none(),
        purpose: target.purpose::<T>(),
        cost,
        stamp: Stamp::new(remote.server_now_ms(), ttl),
    };
    let head = head.to_bytes(target.key.generation_count(), &payload);
    Ok(Encoded { head, payload, ttl, weight })
}

/// FILL in a task of its own, so that a finished fetch is stored even when the call that ran it is dropped.
/// `Ok(false)` when the value was refused. Drops the lease in any case.
pub(crate) async fn fill(
    remote: &Arc<Remote>,
    budget: &mut Budget,
    op_timeout: Duration,
    lease: Lease,
    value: Encoded,
) -> Result<bool, Error> {
    let remote = remote.clone();
    let filled = tokio::spawn(async move {
        let Encoded { head, payload, ttl, .. } = &value;
        let filled = remote.fill(&mut Budget::new(op_timeout), &lease, head, payload, *ttl).await;
        if filled.is_err() {
            // Redis is full or gone; whoever waits must not wait for the whole lease.
            let _ = remote.release(&mut Budget::new(op_timeout), &lease).await;
        }
        filled
    });
    let ended = || Error::new(ErrorKind::Unavailable, "the runtime ended while a value was stored");
    budget.limit(async { filled.await.unwrap_or_else(|_| Err(ended())) }).await
}

/// Stores a given value: an invalidation of the older one, in every process.
pub(crate) async fn set<T: CacheValue>(target: &Target<'_>, value: Cached<T>) -> Result<(), Error> {
    let (state, slot) = (target.state, target.slot());
    if state.is_off() {
        // Not stored, and all the same newer than what the others have.
        let _ = invalidate::keys(state, std::slice::from_ref(&target.key)).await;
        return Err(closed());
    }
    let Some(ttl) = target.fresh_ttl(value.is_none()) else {
        // Nothing that may be stored, and all the same newer than what is.
        let _ = invalidate::keys(state, std::slice::from_ref(&target.key)).await;
        return Ok(());
    };
    let counters = state.stats.counters(slot);
    let Some(remote) = &state.remote else {
        // Dooms fetches under way; the snapshot after it is the new value's.
        invalidate::bump_key(state, target.key.as_str());
        let watch = target.watch();
        // After the watch: a fence that comes later bumps what is watched.
        if target.is_fenced() {
            counters.note(Edge::Refused);
            return Ok(());
        }
        let kept = target.keep_alone(&value, ttl, watch, slot);
        if kept.inspect_err(|error| counters.note(Edge::not_stored(error)))? {
            counters.note(Edge::Stored);
        }
        return Ok(());
    };
    let encoded = match encode(target, remote, &value, ttl, Duration::ZERO) {
        Ok(encoded) => encoded,
        Err(error) => {
            counters.note(Edge::not_stored(&error));
            // As without Redis: what cannot be stored replaces what is.
            let _ = invalidate::keys(state, std::slice::from_ref(&target.key)).await;
            return Err(error);
        }
    };
    let mut budget = Budget::new(state.options.op_timeout);
    // Before: a copy read from now on may be older than this value. After: one read meanwhile may be, too. The
    // value itself is not kept near: another process's newer one may have been announced already.
    state.near.stripes.bump(target.key.as_str());
    let mut unanswered = Unanswered { target, is_answered: false };
    let mut sent_at = state.clock.now();
    let mut stored = remote.set(&mut budget, &target.key, &encoded.head, &encoded.payload, encoded.ttl).await;
    if stored.as_ref().is_err_and(breaks_connection) {
        sent_at = state.clock.now();
        stored = remote.set(&mut budget, &target.key, &encoded.head, &encoded.payload, encoded.ttl).await;
        if stored.is_ok() {
            // The first one may still arrive, after somebody's later invalidation.
            resend::when_late(state, &target.key);
        }
    }
    unanswered.is_answered = !stored.as_ref().is_err_and(Error::is_unavailable);
    state.near.stripes.bump(target.key.as_str());
    state.near.remove(target.key.as_str());
    match stored {
        Ok(true) => {
            counters.note(Edge::Stored);
            // A server that comes back with the older value has to be told again.
            resend::executed(state, Coverage::Key(Box::new(target.key.clone())), sent_at);
        }
        Ok(false) => counters.note(Edge::Refused),
        Err(error) => {
            counters.note(Edge::not_stored(&error));
            // Refused: the older value must not be read as if nothing had happened.
            resend::later(state, Coverage::Key(Box::new(target.key.clone())));
            return Err(error);
        }
    }
    Ok(())
}

/// A SET under way. Dropped without an answer, also with its caller, it may be stored or not: neither the older value nor
/// this one is to be read as if nothing had happened. And once more when the server takes it no more, as in between it
/// may arrive after somebody's later invalidation.
struct Unanswered<'a> {
    target: &'a Target<'a>,
    is_answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let Target { state, key, .. } = self.target;
            resend::later(state, Coverage::Key(Box::new(key.clone())));
            resend::when_late(state, key);
        }
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the cache is closed or disabled; only functions and fetches still run")
}
