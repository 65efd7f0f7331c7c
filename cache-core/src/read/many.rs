//! Many keys at once: one MGET, one fetch of what is missing.
//!
//! A batch fetches and stores everything it leads before it waits for what it does not, so two batches over the same
//! keys in opposite order never wait for each other.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    time::Duration,
};

use futures_util::future::join_all;

use super::{
    call::Call,
    fly,
    lead::{self, Led},
    look, unless_near,
};
use crate::{
    error::Error,
    flight::Joined,
    near::Cached,
    stats::Edge,
    sync::Arc,
    target::Target,
    value::{codec::CacheValue, keyspace::Key},
};

/// What the tiers hold for each target, in input order.
pub(crate) async fn get_many<T: CacheValue>(targets: &[Target<'_>]) -> Result<Vec<Option<Cached<T>>>, Error> {
    if targets.first().is_none_or(|target| target.state.is_off()) {
        return Ok(targets.iter().map(|_| None).collect());
    }
    let mut calls: Vec<_> = targets.iter().map(look_near).collect();
    look::look(&mut calls).await?;
    Ok(calls.into_iter().map(|call| call.found).collect())
}

fn look_near<'a, T: CacheValue>(target: &'a Target<'a>) -> Call<'a, T> {
    let mut call = Call::new(target);
    call.found = look::near(target);
    call
}

/// The value of each target, in input order: from a tier, or from one `fetch` of all that are missing. `fetch` is
/// called again for single keys only where another call was fetching them and failed to.
pub(crate) async fn read_through_many<T, V, E, I, F>(
    targets: &[Target<'_>],
    keys: &[Key<T>],
    fetch: impl Fn(Vec<Key<T>>) -> F,
) -> Result<Vec<Cached<T>>, E>
where
    T: CacheValue,
    V: Into<Arc<T>>,
    I: IntoIterator<Item = (Key<T>, V)>,
    F: Future<Output = Result<I, E>>,
{
    if targets.first().is_none_or(|target| target.state.is_off()) {
        return fetch_uncached(keys, fetch).await;
    }
    let (distinct, places) = distinct(targets);
    let mut calls: Vec<Call<'_, T>> = distinct.iter().map(|at| look_near(&targets[*at])).collect();
    look::look_or_go_on(&mut calls).await;
    lead_together(&mut calls, |missing| {
        let missing: Vec<&Key<T>> = missing.iter().map(|place| &keys[distinct[*place]]).collect();
        let fetch = &fetch;
        // Called when it is polled, under its permit: a closure may do work before it returns its future.
        async move {
            // Keys that differ in their tags alone are one row.
            let mut asked = HashSet::with_capacity(missing.len());
            let once = missing.iter().filter(|key| asked.insert(**key)).map(|key| (*key).clone()).collect();
            let fetched = collect(fetch(once).await?);
            Ok(missing.into_iter().map(|key| fetched.get(key).cloned()).collect())
        }
    })
    .await?;
    // The rest is led by others. Nothing is led here any more, so waiting holds up nobody.
    let rest = calls.iter_mut().enumerate().filter(|(_, call)| call.found.is_none());
    let waiting = rest.map(|(place, call)| {
        let key = &keys[distinct[place]];
        let single = async { Ok(collect(fetch(vec![key.clone()]).await?).remove(key)) };
        async {
            let value = if call.is_bypassed { single.await } else { fly(call, single, None).await };
            value.map(|value| call.found = Some(value))
        }
    });
    join_all(waiting).await.into_iter().collect::<Result<(), E>>()?;
    Ok(places.into_iter().map(|place| calls[place].found.clone().flatten()).collect())
}

/// The places of targets that are entries of their own, and for each target which of them it is. Keys of one text may
/// differ in their tags, and what they read of the value: those are never taken for one another.
fn distinct(targets: &[Target<'_>]) -> (Vec<usize>, Vec<usize>) {
    let (mut distinct, mut known) = (Vec::new(), HashMap::with_capacity(targets.len()));
    let places = targets.iter().enumerate().map(|(at, target)| {
        *known.entry((target.key.as_str(), target.key.tags(), target.version)).or_insert_with(|| {
            distinct.push(at);
            distinct.len() - 1
        })
    });
    let places = places.collect();
    (distinct, places)
}

/// Leads, at once, all calls that nobody else fetches. `fetch` gets their places.
async fn lead_together<'a, T: CacheValue, E, F: Future<Output = Result<Vec<Cached<T>>, E>>>(
    calls: &mut [Call<'a, T>],
    fetch: impl FnOnce(Vec<usize>) -> F,
) -> Result<(), E> {
    let mut led = Vec::new();
    for (at, call) in calls.iter_mut().enumerate().filter(|(_, call)| call.found.is_none()) {
        call.is_bypassed = call.must_bypass();
        if !call.is_bypassed
            && let Joined::Leader(leader) = call.join()
        {
            match unless_near(call, leader) {
                Ok(leader) => led.push(Led { at, call, leader }),
                Err(value) => {
                    call.counters.note(Edge::Coalesced);
                    call.found = Some(value);
                }
            }
        }
    }
    if led.is_empty() {
        return Ok(());
    }
    let left = lead::lead(led, Duration::ZERO, None, fetch).await?;
    look::spend(calls, left);
    Ok(())
}

fn collect<T, V: Into<Arc<T>>>(fetched: impl IntoIterator<Item = (Key<T>, V)>) -> HashMap<Key<T>, Arc<T>> {
    fetched.into_iter().map(|(key, value)| (key, value.into())).collect()
}

/// One fetch of all keys, past the cache.
pub(crate) async fn fetch_uncached<T, V, E, I, F>(
    keys: &[Key<T>],
    fetch: impl Fn(Vec<Key<T>>) -> F,
) -> Result<Vec<Cached<T>>, E>
where
    V: Into<Arc<T>>,
    I: IntoIterator<Item = (Key<T>, V)>,
    F: Future<Output = Result<I, E>>,
{
    let fetched = collect(fetch(keys.to_vec()).await?);
    Ok(keys.iter().map(|key| fetched.get(key).cloned()).collect())
}
