//! Many keys at once: one MGET, one fetch of what is missing.
//!
//! A batch fetches and stores everything it leads before it waits for what it does not, so two batches over the same
//! keys in opposite order never wait for each other.

use std::{collections::HashMap, future::Future, pin::pin, time::Duration};

use futures_util::future::join_all;

use crate::{
    error::Error,
    flight::{Ending, Joined, Leader, nesting},
    invalidate::{backplane, resend},
    near::{Cached, erase},
    read::{
        call::Call,
        lead::{self, Asked, Outcome, Release, Storage, Taking},
        read_through,
    },
    remote::Budget,
    state::State,
    sync::Arc,
    target::{Target, Verdict},
    value::{codec::CacheValue, keyspace::Key},
};

/// What the tiers hold for each target, in input order.
pub(crate) async fn get_many<T: CacheValue>(targets: &[Target<'_>]) -> Result<Vec<Option<Cached<T>>>, Error> {
    let Some(state) = targets.first().map(|target| target.state).filter(|state| !state.is_off()) else {
        return Ok(targets.iter().map(|_| None).collect());
    };
    let mut budget = Budget::new(state.options.op_timeout);
    let (found, failed) = lookup(state, &mut budget, targets).await;
    failed.map_or(Ok(found.into_iter().map(|looked| looked.value).collect()), Err)
}

/// What looking one target up gave.
struct Looked<T> {
    value: Option<Cached<T>>,
    seen: Option<Vec<u8>>,
    newer: bool,
}

/// Near tier, then one MGET of the rest. With an error the near hits are still there.
async fn lookup<T: CacheValue>(
    state: &Arc<State>,
    budget: &mut Budget,
    targets: &[Target<'_>],
) -> (Vec<Looked<T>>, Option<Error>) {
    let near = |target: &Target<'_>| Looked { value: target.lookup_near(), seen: None, newer: false };
    let mut found: Vec<Looked<T>> = targets.iter().map(near).collect();
    backplane::ensure(state);
    resend::ensure(state);
    // The watches before the look into the journal, as an invalidation is written there before it bumps.
    let asked_at = state.clock.now();
    let near_missed = (0..targets.len()).filter(|at| found[*at].value.is_none());
    let watched: Vec<_> = near_missed.map(|at| (at, targets[at].watch())).collect();
    let (missing, watches): (Vec<usize>, Vec<_>) =
        watched.into_iter().filter(|(at, _)| !targets[*at].must_miss()).unzip();
    let mut failed = None;
    if let Some(remote) = state.remote.as_ref().filter(|_| !missing.is_empty()) {
        let keys: Vec<_> = missing.iter().map(|at| targets[*at].key.clone()).collect();
        match remote.read_many(budget, &keys).await {
            Ok(reads) => {
                for ((at, read), watch) in missing.iter().zip(&reads).zip(watches) {
                    let slot = targets[*at].slot();
                    match targets[*at].accept(read, asked_at, watch, slot) {
                        Verdict::Hit(value) => {
                            state.stats.counters(slot).remote_hits.increment();
                            found[*at].value = Some(value);
                        }
                        Verdict::Miss { seen } => found[*at].seen = seen,
                        Verdict::Newer => found[*at].newer = true,
                    }
                }
            }
            Err(error) => {
                let slot = targets[missing[0]].slot();
                state.remote_failed("read", state.stats.counters(slot), &error);
                failed = Some(error);
            }
        }
    }
    for (_, target) in found.iter().zip(targets).filter(|(looked, _)| looked.value.is_none()) {
        state.stats.counters(target.slot()).misses.increment();
    }
    (found, failed)
}

/// A missing key that this call fetches for all who wait.
struct Led<'a, T, E> {
    at: usize,
    call: Call<'a, T, E>,
    leader: Leader<'a>,
    storage: Storage,
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
    let Some(state) = targets.first().map(|target| target.state) else { return Ok(Vec::new()) };
    if state.is_off() {
        return fetch_uncached(keys, fetch).await;
    }
    let mut budget = Budget::new(state.options.op_timeout);
    let (looked, _) = lookup::<T>(state, &mut budget, targets).await;
    let mut values: Vec<Option<Cached<T>>> = Vec::with_capacity(looked.len());
    let mut led: Vec<Led<'_, T, E>> = Vec::new();
    let mut first_at: HashMap<&str, usize> = HashMap::new();
    let mut repeated: Vec<(usize, usize)> = Vec::new();
    for (at, mut looked) in looked.into_iter().enumerate() {
        let target = &targets[at];
        let first = *first_at.entry(target.key.as_str()).or_insert(at);
        if first != at {
            repeated.push((at, first));
        } else if looked.value.is_none() {
            let mut call = Call::new(target, None);
            (call.seen, call.newer, call.budget) = (looked.seen, looked.newer, budget);
            if !call.must_bypass()
                && let Joined::Leader(leader) = call.join()
            {
                match call.unless_near(leader) {
                    Ok(leader) => led.push(Led { at, call, leader, storage: Storage::Nowhere }),
                    Err(value) => {
                        call.counters.coalesced.increment();
                        looked.value = Some(value);
                    }
                }
            }
        }
        values.push(looked.value);
    }
    let led = take_leases(led, &mut values).await;
    fetch_led(led, keys, &fetch, &mut values).await?;
    // The rest is led by others. Nothing is led here any more, so waiting holds up nobody.
    let is_repeated = |at: usize| repeated.iter().any(|(again, _)| *again == at);
    let rest = (0..targets.len()).filter(|at| values[*at].is_none() && !is_repeated(*at)).collect::<Vec<_>>();
    let waiting = rest.iter().map(|at| {
        let single = async { Ok(collect(fetch(vec![keys[*at].clone()]).await?).remove(&keys[*at])) };
        read_through(&targets[*at], single, None)
    });
    for (at, value) in rest.iter().zip(join_all(waiting).await) {
        values[*at] = Some(value?);
    }
    for (again, first) in repeated {
        values[again] = values[first].clone();
    }
    Ok(values.into_iter().map(Option::flatten).collect())
}

/// One LEASE for each led key, all under way at once. Keys that turn out to be there are done; keys that another
/// process is fetching are left for later.
async fn take_leases<'a, T: CacheValue, E>(
    led: Vec<Led<'a, T, E>>,
    values: &mut [Option<Cached<T>>],
) -> Vec<Led<'a, T, E>> {
    let leased = led.into_iter().map(|mut led| async move {
        let unconfirmed = led.call.newer || led.call.target.must_miss();
        led.storage = match (&led.call.state.remote, unconfirmed) {
            (None, _) => Storage::Alone,
            (Some(_), true) => Storage::Unconfirmed,
            (Some(remote), false) => match lead::take_lease(&mut led.call, remote, &led.leader, Duration::ZERO).await {
                Taking::Storage(Storage::Nowhere) => return None,
                Taking::Storage(storage) => storage,
                Taking::Found(value, sent) => return Some(Err((led, value, sent))),
            },
        };
        Some(Ok(led))
    });
    let mut granted = Vec::new();
    for outcome in join_all(leased).await.into_iter().flatten() {
        match outcome {
            Ok(led) => granted.push(led),
            Err((led, value, sent)) => {
                led.call.counters.coalesced.increment();
                led.leader.finish(Ending::Value(erase(&value)), Some(sent));
                values[led.at] = Some(value);
            }
        }
    }
    granted
}

/// One fetch of all led keys, then all stores at once.
async fn fetch_led<T, V, E, I, F>(
    mut led: Vec<Led<'_, T, E>>,
    keys: &[Key<T>],
    fetch: &impl Fn(Vec<Key<T>>) -> F,
    values: &mut [Option<Cached<T>>],
) -> Result<(), E>
where
    T: CacheValue,
    V: Into<Arc<T>>,
    I: IntoIterator<Item = (Key<T>, V)>,
    F: Future<Output = Result<I, E>>,
{
    let Some(first) = led.first() else { return Ok(()) };
    let (state, counters) = (first.call.state, first.call.counters);
    let begun: Vec<Asked> = led.iter_mut().map(|led| lead::begin(&led.call, &led.leader, &mut led.storage)).collect();
    let is_capped = led.iter().any(|led| led.storage.is_capped());
    let mut outcome = Outcome { counters, failed: true };
    let frames = led.iter().map(|led| {
        let lease = led.storage.lease().map_or([0; 16], Release::token);
        (led.call.target.key.as_str(), led.call.target.binding, lease)
    });
    let missing = led.iter().map(|led| keys[led.at].clone()).collect();
    let result = {
        // Beside the beats: leaders that wait for a permit are alive, and keep their leases.
        let mut fetching = pin!(async {
            let _permit = if is_capped { state.cap.permit(state.options.lease).await } else { None };
            counters.fetches.increment();
            nesting::within(state.id, frames, async { fetch(missing).await.map(collect) }).await
        });
        let beats = led.iter().map(|led| lead::beat(&led.call, Some(&led.leader), led.storage.lease()));
        let mut beats = pin!(join_all(beats));
        lead::beside(&mut fetching, &mut beats).await
    };
    outcome.failed = result.is_err();
    let fetched = match result {
        Ok(fetched) => fetched,
        Err(error) => {
            for led in led {
                led.leader.finish(Ending::Failed(None), None);
            }
            return Err(error);
        }
    };
    let stored = led.into_iter().zip(begun).map(|(mut led, begun)| {
        let value = fetched.get(&keys[led.at]).cloned();
        async move {
            let cost = state.clock.now().since(begun.asked_at);
            let accepted = lead::store(&mut led.call, &led.leader, led.storage, &value, begun, cost).await;
            led.leader.finish(Ending::Value(erase(&value)), accepted);
            (led.at, value)
        }
    });
    for (at, value) in join_all(stored).await {
        values[at] = Some(value);
    }
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
