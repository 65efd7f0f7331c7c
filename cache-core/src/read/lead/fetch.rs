//! Step *fetch*: the user's code, and beside it the renewal of the leases.

use std::{future::Future, pin::pin};

use super::{Ready, Release, all, beside};
use crate::{
    clock::sleep,
    flight::nesting,
    read::call::Call,
    remote::Budget,
    stats::{Counters, Edge},
    value::{codec::CacheValue, envelope::Id, keyspace::Binding},
};

/// Runs the fetch of all these keys.
pub(super) async fn run<T: CacheValue, R, E>(
    ready: &[Ready<'_, '_, T>],
    fetch: impl Future<Output = Result<R, E>>,
) -> Result<R, E> {
    let Some(first) = ready.first() else { return fetch.await };
    let frames = ready.iter().map(|ready| {
        let target = ready.call.target;
        (target.key.as_str(), target.binding, ready.storage.token())
    });
    let is_capped = ready.iter().any(|ready| ready.storage.is_capped());
    let fetch = pin!(counted(first.call, frames, is_capped, fetch));
    if ready.iter().all(|ready| ready.storage.lease().is_none()) {
        return fetch.await;
    }
    // Beside the renewals: a leader that waits for a permit keeps its lease.
    beside(fetch, Box::pin(renew(ready)).as_mut()).await
}

/// Runs a fetch under the cap, where nothing else bounds how many run, and counts it.
pub(super) async fn counted<'k, T: CacheValue, R, E>(
    call: &Call<'_, T>,
    frames: impl IntoIterator<Item = (&'k str, Binding, Id)>,
    is_capped: bool,
    fetch: impl Future<Output = Result<R, E>>,
) -> Result<R, E> {
    let fetch = nesting::within(call.state.id, frames, fetch);
    let mut unfinished = Unfinished { counters: call.counters, failed: true };
    let _permit = if is_capped { call.state.cap.permit(call.state.options.lease).await } else { None };
    call.counters.note(Edge::Fetch);
    let result = fetch.await;
    unfinished.failed = result.is_err();
    result
}

/// Renews the leases three times per period, until the fetch has taken `max_fetch`.
async fn renew<T: CacheValue>(ready: &[Ready<'_, '_, T>]) {
    let Some(state) = ready.first().map(|ready| ready.call.state) else { return };
    let (period, mut left) = (state.options.lease, state.options.max_fetch);
    let mut renewed: Vec<_> =
        ready.iter().filter_map(|ready| ready.storage.lease().map(|release| (ready, release))).collect();
    while !renewed.is_empty() {
        sleep(period / 3).await;
        left = left.saturating_sub(period / 3);
        if left.is_zero() {
            break;
        }
        let renewals = renewed.into_iter().map(|(ready, release)| async move {
            let is_ours = is_renewed(ready, release).await;
            if !is_ours {
                // Doomed: the value will be refused, so nobody need wait for it.
                ready.leader.close();
            }
            is_ours.then_some((ready, release))
        });
        renewed = all(renewals).await.into_iter().flatten().collect();
    }
    std::future::pending().await
}

/// Whether the lease is still ours, as far as is known.
async fn is_renewed<T: CacheValue>(ready: &Ready<'_, '_, T>, release: &Release) -> bool {
    let (state, Some(lease)) = (ready.call.state, &release.lease) else { return false };
    let renewed = release.remote.renew(&mut Budget::new(release.op_timeout), lease, state.options.lease).await;
    renewed.unwrap_or_else(|error| {
        state.remote_failed("renew", ready.call.counters, &error);
        true
    })
}

/// Counts a fetch that fails, panics or is dropped.
struct Unfinished<'a> {
    counters: &'a Counters,
    failed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.counters.note(Edge::FailedFetch);
        }
    }
}
