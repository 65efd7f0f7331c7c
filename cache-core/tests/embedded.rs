//! A cache in this process alone: the direct verbs, and G1, G2, G4 and G5 without a server.

use std::{
    future::{Future, pending},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use futures::future::join_all;
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0).of();

fn cache() -> Scoped {
    Cache::builder().tokio_clock().build().unwrap().tenant("acme").unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_value_is_kept_for_its_ttl_and_no_longer() {
    let acme = cache();
    let key = REPORTS.key("x");
    acme.set(&key, "v1".to_owned()).await.unwrap();
    tokio::time::advance(Duration::from_millis(59_999)).await;
    assert_eq!(acme.get(&key).await.unwrap().as_deref(), Some(&"v1".to_owned()));
    assert!(acme.exists(&key).await.unwrap());
    assert_eq!(acme.ttl(&key).await.unwrap(), Some(Duration::from_millis(1)));
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_eq!(acme.get(&key).await.unwrap(), None);
    assert_eq!(acme.ttl(&key).await.unwrap(), None);
    assert!(!acme.touch(&key).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn touching_gives_the_full_ttl_again() {
    let acme = cache();
    let key = REPORTS.key("x");
    acme.set(&key, "v1".to_owned()).await.unwrap();
    tokio::time::advance(Duration::from_secs(50)).await;
    assert!(acme.touch(&key).await.unwrap());
    tokio::time::advance(Duration::from_secs(50)).await;
    assert!(acme.exists(&key).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_answered_in_input_order_by_one_fetch_of_the_missing() {
    let acme = cache();
    let keys: Vec<_> = ["a", "b", "c", "b", "d"].into_iter().map(|id| REPORTS.key(id)).collect();
    acme.set(&keys[0], "A".to_owned()).await.unwrap();
    let fetches = AtomicUsize::new(0);
    let values = acme
        .try_get_or_fetch_many(&keys, |missing| {
            fetches.fetch_add(1, Ordering::SeqCst);
            async move {
                let found = missing.into_iter().filter(|key| key.identifier() != "d");
                Ok::<_, ()>(found.map(|key| (key.clone(), key.identifier().to_uppercase())).collect::<Vec<_>>())
            }
        })
        .await
        .unwrap();
    let values: Vec<_> = values.iter().map(|value| value.as_ref().map(|value| value.as_str())).collect();
    assert_eq!(values, [Some("A"), Some("B"), Some("C"), Some("B"), None]);
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
    let again = acme.get_many(&keys[..3]).await.unwrap();
    assert!(again.iter().all(Option::is_some));
}

/// G8.
#[tokio::test(start_paused = true)]
async fn tenants_and_the_keys_of_no_tenant_never_see_each_other() {
    let cache = Cache::builder().tokio_clock().build().unwrap();
    let key = REPORTS.key("x");
    let scopes =
        [cache.tenant("a").unwrap(), cache.tenant("b").unwrap(), cache.tenant(7).unwrap(), cache.global().unwrap()];
    for (at, scope) in scopes.iter().enumerate() {
        scope.set(&key, format!("of {at}")).await.unwrap();
    }
    for (at, scope) in scopes.iter().enumerate() {
        assert_eq!(*scope.get(&key).await.unwrap().unwrap(), format!("of {at}"));
    }
    assert_eq!(scopes[0].invalidate_all().await, Invalidated::Applied);
    assert!(!scopes[0].exists(&key).await.unwrap());
    assert!(scopes[1].exists(&key).await.unwrap());
    assert!(scopes[3].exists(&key).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_pattern_spares_what_it_does_not_cover() {
    let acme = cache();
    for id in ["abc-1", "abc-2", "abd"] {
        acme.set(&REPORTS.key(id), id.to_owned()).await.unwrap();
    }
    assert_eq!(acme.invalidate_pattern("report:abc*").await, Invalidated::Applied);
    assert!(!acme.exists(&REPORTS.key("abc-1")).await.unwrap());
    assert!(!acme.exists(&REPORTS.key("abc-2")).await.unwrap());
    assert!(acme.exists(&REPORTS.key("abd")).await.unwrap());
}

/// G4.
#[tokio::test(start_paused = true)]
async fn a_thousand_calls_for_a_cold_key_make_one_fetch() {
    let acme = cache();
    let key = REPORTS.key("x");
    let fetches = AtomicUsize::new(0);
    let calls = (0..1000).map(|_| {
        acme.try_get_or_fetch(&key, || async {
            fetches.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            fetched("v1").await
        })
    });
    assert!(join_all(calls).await.iter().all(|value| value.as_deref() == Ok(&"v1".to_owned())));
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

/// What invalidates the key of the fetch under way.
#[derive(Clone, Copy, Debug)]
enum How {
    Key,
    Keyspace,
    Tenant,
    Pattern,
    Set,
}

/// G1, G2. The interleaving: a fetch reads the old row; the row is written and the cache invalidated; a call arrives;
/// the fetch ends.
#[tokio::test(start_paused = true)]
async fn an_invalidation_while_a_fetch_runs_is_never_undone() {
    for how in [How::Key, How::Keyspace, How::Tenant, How::Pattern, How::Set] {
        let acme = cache();
        let key = REPORTS.key("x-1");
        let gate = Arc::new(Semaphore::new(0));
        let (slow, opened, scope, slow_key) = (acme.clone(), gate.clone(), acme.clone(), key.clone());
        let old = tokio::spawn(async move {
            slow.try_get_or_fetch(&slow_key, || async {
                let row = fetched("old").await;
                opened.acquire().await.unwrap().forget();
                row
            })
            .await
        });
        tokio::task::yield_now().await;
        let joined_before = tokio::spawn({
            let (acme, key) = (acme.clone(), key.clone());
            async move { acme.try_get_or_fetch(&key, || fetched("new")).await }
        });
        tokio::task::yield_now().await;
        let outcome = match how {
            How::Key => scope.invalidate(&key).await,
            How::Keyspace => scope.invalidate_keyspace(&REPORTS).await,
            How::Tenant => scope.invalidate_all().await,
            How::Pattern => scope.invalidate_pattern("report:x*").await,
            How::Set => {
                scope.set(&key, "new".to_owned()).await.unwrap();
                Invalidated::Applied
            }
        };
        assert!(outcome.is_applied(), "{how:?}");
        // A call that arrives now neither gets the old row nor waits for who fetches it.
        let later = acme.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        assert_eq!(*later, "new", "{how:?}");
        gate.add_permits(10);
        assert_eq!(*old.await.unwrap().unwrap(), "old", "{how:?}: its own call began before");
        assert_eq!(*joined_before.await.unwrap().unwrap(), "new", "{how:?}: it joined after the fetch began");
        assert_eq!(acme.get(&key).await.unwrap().as_deref(), Some(&"new".to_owned()), "{how:?}");
    }
}

/// G5. The leader is dropped at every point where it waits.
#[tokio::test(start_paused = true)]
async fn a_follower_leads_when_the_leader_is_dropped_at_any_point() {
    for polls in 1..6 {
        let acme = cache();
        let key = REPORTS.key("x");
        let mut leader = Box::pin(acme.try_get_or_fetch(&key, || async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            pending::<Result<String, ()>>().await
        }));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..polls {
            assert!(leader.as_mut().poll(&mut context).is_pending());
        }
        let fetches = Arc::new(AtomicUsize::new(0));
        let followers: Vec<_> = (0..100)
            .map(|_| {
                let (acme, key, fetches) = (acme.clone(), key.clone(), fetches.clone());
                tokio::spawn(async move {
                    acme.try_get_or_fetch(&key, || async {
                        fetches.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        fetched("v").await
                    })
                    .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(leader);
        let begun = tokio::time::Instant::now();
        for follower in followers {
            assert_eq!(*follower.await.unwrap().unwrap(), "v");
        }
        assert!(begun.elapsed() < Duration::from_millis(100), "{polls}: {:?}", begun.elapsed());
        assert_eq!(fetches.load(Ordering::SeqCst), 1, "{polls}");
    }
}

/// G5. A leader parked in a `select!` that is not polled loses its place after a lease period.
#[tokio::test(start_paused = true)]
async fn a_follower_leads_when_the_leader_is_not_polled() {
    let acme = cache();
    let key = REPORTS.key("x");
    let mut parked = Box::pin(acme.try_get_or_fetch(&key, pending::<Result<String, ()>>));
    assert!(parked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let begun = tokio::time::Instant::now();
    let value = acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
    assert_eq!(*value, "v");
    assert!(begun.elapsed() <= Duration::from_secs(5) + Duration::from_millis(10), "{:?}", begun.elapsed());
    drop(parked);
}

/// G5.
#[tokio::test(start_paused = true)]
async fn a_panicking_fetch_hands_over() {
    let acme = cache();
    let key = REPORTS.key("x");
    let (panicking, panicking_key) = (acme.clone(), key.clone());
    let leader = tokio::spawn(async move {
        panicking
            .try_get_or_fetch(&panicking_key, || async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                panic!("as a test");
                #[expect(unreachable_code, reason = "gives the closure its type")]
                Ok::<String, ()>(String::new())
            })
            .await
    });
    tokio::task::yield_now().await;
    let value = acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
    assert_eq!(*value, "v");
    assert!(leader.await.unwrap_err().is_panic());
}

/// Errors are not cached. Where one cannot be shared, waiting calls take turns for a lease period, and no longer.
#[tokio::test(start_paused = true)]
async fn followers_of_a_failing_fetch_queue_for_a_lease_period_at_most() {
    let acme = cache();
    let key = REPORTS.key("x");
    for shared in [true, false] {
        let fetches = AtomicUsize::new(0);
        let begun = tokio::time::Instant::now();
        let calls = (0..1000).map(|_| {
            let fetch = || async {
                fetches.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err::<String, _>("down".to_owned())
            };
            let (acme, key) = (&acme, &key);
            async move {
                if shared {
                    acme.try_get_or_fetch_shared(key, fetch).await
                } else {
                    acme.try_get_or_fetch(key, fetch).await
                }
            }
        });
        assert!(join_all(calls).await.iter().all(|result| result.as_ref().unwrap_err() == "down"));
        // Shared: one fetch. Else one fetch, turns for a lease period, then each for itself under the cap, whose queue
        // nobody stands in for longer than a lease period.
        let longest = if shared { 1 } else { 1 + 5 + 5 + 1 };
        assert!(begun.elapsed() <= Duration::from_secs(longest) + Duration::from_millis(50), "{:?}", begun.elapsed());
        if shared {
            assert_eq!(fetches.load(Ordering::SeqCst), 1);
        }
    }
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("up")).await.unwrap(), "up");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_asks_for_its_own_key_runs_uncached_inside() {
    let acme = cache();
    let key = REPORTS.key("x");
    let inner = async || acme.try_get_or_fetch(&key, || fetched("inner")).await.map(|value| format!("around {value}"));
    let value = acme.try_get_or_fetch(&key, inner).await.unwrap();
    assert_eq!(*value, "around inner");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_in_two_caches_is_two_entries_that_never_wait_for_each_other() {
    let (outer, inner) = (cache(), cache());
    let key = REPORTS.key("x");
    let value = outer.try_get_or_fetch(&key, || inner.try_get_or_fetch(&key, || fetched("v"))).await.unwrap();
    assert_eq!(*value, "v");
    assert!(inner.exists(&key).await.unwrap() && outer.exists(&key).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn values_above_max_value_are_handed_out_and_not_kept() {
    let cache = Cache::builder().tokio_clock().max_value(100).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let large = "x".repeat(200);
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched(&large)).await.unwrap(), large);
    assert!(!acme.exists(&key).await.unwrap());
    assert_eq!(cache.stats().profiles["report"].too_large, 1);
    assert!(acme.set(&key, large).await.unwrap_err().is_invalid_input());
}

#[tokio::test(start_paused = true)]
async fn an_unusable_key_is_an_error_of_direct_verbs_and_leads_a_fetch_past_the_cache() {
    const SCORES: Keyspace<String> = TtlProfile::new("score", Duration::from_secs(60)).of();
    let cache = Cache::builder().tokio_clock().build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    for key in [SCORES.key(cache_core::Canonical(&f64::NAN)), SCORES.key("")] {
        assert!(acme.get(&key).await.unwrap_err().is_invalid_input());
        assert!(acme.set(&key, String::new()).await.is_err());
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
        assert_eq!(acme.invalidate(&key).await, Invalidated::Applied);
    }
    assert_eq!(cache.stats().profiles["score"].bypassed, 2);
}

#[tokio::test(start_paused = true)]
async fn a_closed_or_disabled_cache_fetches_every_time() {
    let closed = Cache::builder().tokio_clock().build().unwrap();
    let key = REPORTS.key("x");
    closed.tenant("acme").unwrap().set(&key, "kept".to_owned()).await.unwrap();
    closed.close().await;
    for cache in [closed, Cache::disabled()] {
        let acme = cache.tenant("acme").unwrap();
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("1")).await.unwrap(), "1");
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("2")).await.unwrap(), "2");
        assert_eq!(acme.get(&key).await.unwrap(), None);
        assert_eq!(acme.invalidate_all().await, Invalidated::Applied);
    }
}

#[tokio::test]
async fn a_tenant_is_demanded_where_the_cache_says_so() {
    let cache = Cache::builder().require_tenant(true).build().unwrap();
    assert!(cache.global().unwrap_err().is_invalid_input());
    assert!(cache.tenant("acme").is_ok());
}

#[test]
fn the_near_tier_works_without_a_runtime() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    futures::executor::block_on(async {
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("w")).await.unwrap(), "v");
    });
    let mut pinned = pin!(acme.get(&key));
    assert!(pinned.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

/// What the fetch returns need not be `Send` for the call to be.
#[test]
fn calls_are_send_whatever_the_error_is() {
    fn assert_send<F: Future + Send>(future: F) {
        drop(future);
    }
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    assert_send(acme.try_get_or_fetch(&key, || async { Err::<String, Box<dyn std::error::Error>>("local".into()) }));
}

/// Callers hold these futures in theirs, and callers of callers: what a miss needs is on the heap.
#[test]
fn calls_are_small_futures() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let sizes = [
        size_of_val(&acme.get(&key)),
        size_of_val(&acme.try_get_or_fetch(&key, || fetched("v"))),
        size_of_val(&acme.set(&key, String::new())),
        size_of_val(&acme.invalidate(&key)),
        size_of_val(&acme.exists(&key)),
        size_of_val(&acme.touch(&key)),
        size_of_val(&acme.invalidate_pattern("*x")),
    ];
    assert!(sizes.iter().all(|size| *size < 6_000) && sizes[1] < 1_500, "{sizes:?}");
}

/// Without Redis a value lost is a value fetched again: writing one key costs no other.
#[tokio::test]
async fn ten_thousand_values_are_set_and_all_of_them_are_there() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    for id in 0..10_000 {
        acme.set(&REPORTS.key(id), id.to_string()).await.unwrap();
    }
    for id in (0..10_000).step_by(3) {
        assert!(acme.invalidate(&REPORTS.key(id)).await.is_applied());
    }
    for id in 0..10_000 {
        let found = acme.get(&REPORTS.key(id)).await.unwrap();
        assert_eq!(found.as_deref().cloned(), (id % 3 != 0).then(|| id.to_string()));
    }
}

/// G1. The interleaving: a leader is not polled and loses its place; the follower that leads fetches, stores and ends
/// the flight; the key is invalidated; the first leader's fetch ends.
#[tokio::test(start_paused = true)]
async fn a_deposed_leader_stores_nothing_that_was_invalidated_meanwhile() {
    let acme = cache();
    let key = REPORTS.key("x");
    let (send, receive) = tokio::sync::oneshot::channel::<String>();
    let mut leader = pin!(acme.try_get_or_fetch(&key, || async move { Ok::<_, ()>(receive.await.unwrap()) }));
    assert!(leader.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("old")).await.unwrap(), "old");
    assert!(acme.invalidate(&key).await.is_applied());
    send.send("old".to_owned()).unwrap();
    assert_eq!(*leader.await.unwrap(), "old", "its own call began before");
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("new")).await.unwrap(), "new");
}

/// Nothing is kept, and nothing is counted as stored.
#[tokio::test]
async fn without_a_near_tier_nothing_counts_as_stored() {
    let cache = Cache::builder().near_bytes(0).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("w")).await.unwrap(), "w");
    assert_eq!((acme.get(&REPORTS.key("x")).await.unwrap(), cache.stats().total.stored), (None, 0));
}

#[tokio::test]
async fn invalidations_of_keys_and_keyspaces_are_counted() {
    let cache = Cache::in_memory();
    let acme = cache.tenant("acme").unwrap();
    assert!(acme.invalidate(&REPORTS.key("x")).await.is_applied());
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    assert_eq!(cache.stats().profiles["report"].invalidations, 2);
}
