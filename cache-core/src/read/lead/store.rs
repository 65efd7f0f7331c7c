//! Step *store*: what was fetched goes into Redis and near, as far as its lease and its watch allow.

use std::time::Duration;

use super::{Release, Storage};
use crate::{
    flight::{Event, Leader},
    near::{Cached, Watch},
    read::call::{Asked, Call},
    stats::Edge,
    value::codec::CacheValue,
    write::{self, Encoded},
};

/// Stores a fetched value. Returns the event at which a command was sent that accepted it, if one did.
pub(super) async fn store<T: CacheValue>(
    call: &mut Call<'_, T>,
    leader: &Leader<'_>,
    storage: Storage,
    value: &Cached<T>,
    asked: Asked,
) -> Option<Event> {
    let ttl = call.target.fresh_ttl(value.is_none());
    match (storage, ttl) {
        (Storage::Fill(release), Some(ttl)) => {
            let cost = call.state.clock.now().since(asked.at);
            match write::encode(call.target, &release.remote, value, ttl, cost) {
                Ok(encoded) => Box::pin(fill(call, leader, *release, value, encoded, asked)).await,
                Err(error) => {
                    call.target.not_stored(call.slot, &error);
                    Box::pin(release.now(&mut call.budget)).await;
                    None
                }
            }
        }
        // Nothing is stored, and all the same the server says whether it would have been: then all who wait may have
        // this answer, and need not fetch one after the other to find nothing.
        (Storage::Fill(release), None) => {
            Box::pin(fill(call, leader, *release, value, Encoded::nothing(), asked)).await
        }
        (Storage::Alone, ttl) => store_alone(call, leader, value, ttl, asked.watch),
        (Storage::Unconfirmed, Some(ttl)) => {
            keep_unconfirmed(call, value, ttl, asked);
            None
        }
        (Storage::Unconfirmed, None) | (Storage::Nowhere, _) => None,
    }
}

async fn fill<T: CacheValue>(
    call: &mut Call<'_, T>,
    leader: &Leader<'_>,
    mut release: Release,
    value: &Cached<T>,
    encoded: Encoded,
    asked: Asked,
) -> Option<Event> {
    let (sent, sent_at, ttl, weight) = (leader.sending(), call.state.clock.now(), encoded.ttl, encoded.weight);
    // FILL drops the lease, in a task that outlives this call.
    let lease = release.lease.take()?;
    let filled = write::fill(&release.remote, &mut call.budget, release.op_timeout, lease, encoded).await;
    if ttl.is_zero() {
        return filled.is_ok_and(|accepted| accepted).then_some(sent);
    }
    match filled {
        Ok(true) => {
            call.counters.note(Edge::Stored);
            call.target.keep_confirmed(value, ttl, sent_at, asked.watch, call.slot, weight);
            Some(sent)
        }
        Ok(false) => {
            call.counters.note(Edge::Refused);
            None
        }
        Err(error) => {
            call.target.not_stored(call.slot, &error);
            keep_unconfirmed(call, value, ttl, asked);
            None
        }
    }
}

/// Without Redis the check of the stripes is the verdict: made after everybody in the flight has joined.
fn store_alone<T: CacheValue>(
    call: &Call<'_, T>,
    leader: &Leader<'_>,
    value: &Cached<T>,
    ttl: Option<Duration>,
    watch: Watch,
) -> Option<Event> {
    let checked = leader.sending();
    if !call.state.near.stripes.unchanged(&watch) {
        call.counters.note(Edge::Refused);
        return None;
    }
    if let Some(ttl) = ttl {
        match call.target.keep_alone(value, ttl, watch, call.slot) {
            Ok(true) => call.counters.note(Edge::Stored),
            Ok(false) => {}
            Err(error) => call.target.not_stored(call.slot, &error),
        }
    }
    Some(checked)
}

/// Keeps a value that no command accepted for as long as that is safe, counted from before its fetch.
fn keep_unconfirmed<T: CacheValue>(call: &Call<'_, T>, value: &Cached<T>, ttl: Duration, asked: Asked) {
    if let Ok(weight) = call.target.weigh(value) {
        call.target.keep_unconfirmed(value, ttl, asked.at, asked.watch, call.slot, weight);
    }
}
