//! Calls that are dropped, or panic, or are polled no more, at every point where they wait: G1, G4 and G5, and that
//! nothing is left behind.
//!
//! A call is polled once, twice, three times and so on, each time when something has woken it, until it ends by
//! itself; each of these runs is a case of its own. After the last poll it is dropped: before what it asked for is
//! sent, after the server has got it and before the answer is there, or when the answer is there and nobody will look
//! at it. The lease is a minute long: who waits for one to run out is seen.

mod support;

#[path = "cancellation/cut.rs"]
mod cut;
#[path = "cancellation/world.rs"]
mod world;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_core::{Cache, Key, Keyspace, Scoped, Status, TtlProfile};
use cut::{Cut, When, at_every_point, soon, until};
use futures::future::{BoxFuture, FutureExt as _, join_all};
use tokio::sync::{Barrier, Semaphore};
use world::{Fetcher, LEASE, Log, REPORTS, World, fetch, get, report, roughly};

/// G4, G5. Three calls of the same process and two of another want the key that the dropped call was to fetch. One of
/// them fetches, unless the dropped one's fetch had ended: that one is stored.
async fn others_go_on(world: World) {
    let mut tenants = Vec::new();
    // How often the call was dropped before, in and after its fetch.
    let mut reached = [0; 3];
    for fetcher in Fetcher::ALL {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let call = |cache| fetcher.call(cache, &tenant, &log);
            let (mine, theirs) = ([&world.mine; 3].map(call).into(), [&world.other; 2].map(call).into());
            let first = Cut::new(call(&world.mine));
            let (ended, others) = world.cut_before(first, (when, polls), 1, mine, theirs).await;
            if !ended {
                reached[if log.cut() > 0 { 1 } else { 2 * usize::from(log.ended() > 0) }] += 1;
            }
            for other in others {
                let value = soon((fetcher, when, polls), other).await.unwrap();
                assert_eq!(value, "new");
            }
            assert_eq!(log.ended(), 1, "{fetcher:?} {when:?} {polls}: {log:?}");
            assert_eq!(world.held(&tenant).await.as_deref(), Some("new"), "{fetcher:?} {when:?} {polls}");
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    let embedded = world.whens().len() == 2;
    // Without Redis a value is stored in the poll in which its fetch ends.
    assert!(
        reached[usize::from(embedded)..if embedded { 2 } else { 3 }].iter().all(|times| *times >= 15),
        "{reached:?}"
    );
    world.check_counters_and_leaks(&tenants).await;
}

#[tokio::test]
async fn others_go_on_when_a_fetching_call_is_dropped_at_any_point() {
    others_go_on(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn others_go_on_without_redis_when_a_fetching_call_is_dropped_at_any_point() {
    others_go_on(World::embedded()).await;
}

/// G5, and what a dropped call leaves: with nobody else there, a fetch that had ended is stored, and a lease is given
/// back.
#[tokio::test]
async fn a_finished_fetch_is_stored_and_an_unfinished_one_leaves_no_lease() {
    let world = World::with_redis().await;
    let mut tenants = Vec::new();
    for fetcher in Fetcher::ALL {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let ended = world.cut(Cut::new(fetcher.call(&world.mine, &tenant, &log)), when, polls).await;
            if log.ended() > 0 {
                let stored = async || world.held(&tenant).await.as_deref() == Some("new");
                until(&format!("{fetcher:?} {when:?} {polls}: the value is not stored"), stored).await;
            }
            let left = format!("{fetcher:?} {when:?} {polls}: the lease stays");
            until(&left, async || world.leases().is_empty()).await;
            assert_eq!(soon(polls, fetcher.call(&world.other, &tenant, &log)).await, "new");
            assert_eq!(log.ended(), 1, "{fetcher:?} {when:?} {polls}: {log:?}");
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    world.check_counters_and_leaks(&tenants).await;
}

/// G5. The call that is woken to lead is itself dropped before it is polled, several times in a row.
async fn the_lead_is_passed_on(world: World) {
    let mut tenants = Vec::new();
    for dropped in 1..6 {
        let (tenant, log) = (format!("t{dropped}"), Log::new());
        let call = || Cut::new(Fetcher::TryGetOrFetch.call(&world.mine, &tenant, &log));
        let mut calls = Vec::new();
        for _ in 0..dropped {
            let (mut call, missed) = (call(), world.misses());
            // The first one leads and fetches; the others have missed and so wait for it.
            while world.misses() == missed || log.begun() == 0 {
                call.poll().await;
            }
            calls.push(call);
        }
        let missed = world.misses();
        let last = tokio::spawn(Fetcher::TryGetOrFetch.call(&world.mine, &tenant, &log));
        until("the last one joins", async || world.misses() > missed).await;
        // So that the last one waits, too.
        roughly(5, || false).await;
        for mut call in calls {
            call.wait_until_woken().await;
            drop(call);
        }
        assert_eq!(soon(dropped, last).await.unwrap(), "new");
        assert_eq!((log.begun(), log.ended()), (2, 1));
        tenants.push((tenant, log));
    }
    world.check_counters_and_leaks(&tenants).await;
}

#[tokio::test]
async fn a_call_that_is_woken_to_lead_and_dropped_passes_it_on() {
    the_lead_is_passed_on(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_woken_to_lead_and_dropped_passes_it_on_without_redis() {
    the_lead_is_passed_on(World::embedded()).await;
}

/// Every verb that only reads.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Get,
    GetMany,
    Exists,
    Ttl,
    Touch,
    Peek,
    CompanionTtl,
}

impl Reader {
    fn call(self, world: &World, tenant: &str) -> BoxFuture<'static, bool> {
        let (cache, scope, tenant) = (world.mine.clone(), world.mine(tenant), tenant.to_owned());
        Box::pin(async move {
            let key = REPORTS.key("x");
            match self {
                Self::Get => scope.get(&key).await.unwrap().is_some(),
                Self::GetMany => scope.get_many(&[key, REPORTS.key("y")]).await.unwrap().iter().all(Option::is_some),
                Self::Exists => scope.exists(&key).await.unwrap(),
                Self::Ttl => scope.ttl(&key).await.unwrap().is_some(),
                Self::Touch => scope.touch(&key).await.unwrap(),
                Self::Peek => report::peek(&cache, &tenant, "x").await.is_some(),
                Self::CompanionTtl => report::ttl(&cache, &tenant, "x").await.unwrap().is_some(),
            }
        })
    }
}

/// G5, G6. Reads under way are gathered into one command, which a dropped one takes from nobody.
#[tokio::test]
async fn others_read_on_when_a_read_is_dropped_at_any_point() {
    let world = World::with_redis().await;
    let mut tenants = Vec::new();
    let readers =
        [Reader::Get, Reader::GetMany, Reader::Exists, Reader::Ttl, Reader::Touch, Reader::Peek, Reader::CompanionTtl];
    for reader in readers {
        at_every_point(world.whens(), async |when, polls| {
            let tenant = format!("t{}", tenants.len());
            for id in ["x", "y", "z"] {
                world.other(&tenant).set(&REPORTS.key(id), "old".to_owned()).await.unwrap();
            }
            let read = |id: &'static str| {
                let scope = world.mine(&tenant);
                tokio::spawn(async move { scope.get(&REPORTS.key(id)).await.unwrap().is_some() })
            };
            // The first two go out by themselves, the dropped one and those behind it are gathered.
            let mut others = vec![read("y"), read("z")];
            tokio::task::yield_now().await;
            let mut call = Cut::new(reader.call(&world, &tenant));
            call.poll_to(polls.min(usize::from(when != When::InFlight))).await;
            others.extend([read("y"), read("x"), read("z")]);
            let ended = world.cut(call, when, polls).await;
            for other in others {
                assert!(soon((reader, when, polls), other).await.unwrap(), "{reader:?} {when:?} {polls}");
            }
            assert!(soon(reader, reader.call(&world, &tenant)).await, "{reader:?} {when:?} {polls}");
            assert_eq!(world.held(&tenant).await.as_deref(), Some("old"));
            tenants.push((tenant, Log::new()));
            ended
        })
        .await;
    }
    world.check_counters_and_leaks(&tenants).await;
}

/// Every verb that invalidates, by what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Invalidator {
    Key,
    Many,
    /// Looks through the keys of the server.
    Pattern,
    Keyspace,
    All,
    Companion,
    Refresh,
}

impl Invalidator {
    const ALL: [Self; 7] =
        [Self::Key, Self::Many, Self::Pattern, Self::Keyspace, Self::All, Self::Companion, Self::Refresh];

    fn call(self, cache: &Cache, tenant: &str, log: &Arc<Log>) -> BoxFuture<'static, ()> {
        let (cache, scope, tenant, log) =
            (cache.clone(), cache.tenant(tenant).unwrap(), tenant.to_owned(), log.clone());
        Box::pin(async move {
            let key = REPORTS.key("x");
            let outcome = match self {
                Self::Key => scope.invalidate(&key).await,
                Self::Many => scope.invalidate_many(&[REPORTS.key("y"), key]).await,
                Self::Pattern => scope.invalidate_pattern("report:x*").await,
                Self::Keyspace => scope.invalidate_keyspace(&REPORTS).await,
                Self::All => scope.invalidate_all().await,
                Self::Companion => report::invalidate(&cache, &tenant, "x").await,
                Self::Refresh => {
                    assert_eq!(report::refresh(&cache, &tenant, "x", log).await.unwrap(), "new");
                    return;
                }
            };
            assert!(outcome.is_applied());
        })
    }
}

/// A fetch of another process that has read the old row, and ends when told.
struct Slow {
    gate: Arc<Semaphore>,
    call: tokio::task::JoinHandle<String>,
}

impl Slow {
    async fn begin(scope: Scoped) -> Self {
        let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (opened, begun) = (gate.clone(), began.clone());
        let call = tokio::spawn(async move {
            let fetch = || async {
                begun.add_permits(1);
                opened.acquire().await.unwrap().forget();
                Ok::<_, ()>("old".to_owned())
            };
            (*scope.try_get_or_fetch(&REPORTS.key("x"), fetch).await.unwrap()).clone()
        });
        began.acquire().await.unwrap().forget();
        Self { gate, call }
    }

    async fn end(self) {
        self.gate.add_permits(1);
        assert_eq!(soon("the slow fetch", self.call).await.unwrap(), "old");
    }
}

/// G1, journal. Polled once and dropped at any point after that, an invalidation reaches everybody, though its own
/// cache makes no further call that would send it.
#[tokio::test]
async fn an_invalidation_dropped_at_any_point_reaches_everybody() {
    let world = World::with_redis().await;
    // A sweep has to ask more than once.
    let filler = "for n = 1, 2500 do redis.call('SET', 'filler:' .. n, '') end";
    world.server().cli(&["EVAL", filler, "0"]);
    let mut tenants = Vec::new();
    for invalidator in Invalidator::ALL {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let case = format!("{invalidator:?} {when:?} {polls}");
            world.other(&tenant).set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
            // Near copies in both processes.
            for cache in [&world.mine, &world.other] {
                assert_eq!(get(cache, &tenant).await.as_deref(), Some("old"));
            }
            let call = Cut::new(invalidator.call(&world.mine, &tenant, &log));
            let ended = world.cut(call, when, polls).await;
            if polls == 0 {
                world.executed().await;
                assert_eq!(world.held(&tenant).await.as_deref(), Some("old"), "{case}: it did not begin");
            } else {
                let is_old = async |cache: &Cache| get(cache, &tenant).await.as_deref() == Some("old");
                for cache in [&world.observer, &world.other] {
                    until(&format!("{case}: the old value stays"), async || !is_old(cache).await).await;
                }
                assert!(!is_old(&world.mine).await, "{case}: the process that invalidated reads the old value");
                for cache in [&world.mine, &world.other] {
                    let next = Fetcher::TryGetOrFetch.call(cache, &tenant, &log);
                    assert_eq!(soon(&case, next).await, "new");
                }
                // What the first of them fetched is not stored while the acknowledgement is on its way.
                assert!(log.ended() <= 2, "{case}: {log:?}");
                assert_eq!(world.held(&tenant).await.as_deref(), Some("new"), "{case}: not cached again");
            }
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    world.check_leaks(&tenants).await;
}

/// G1. The interleaving: another process's fetch reads the old row; an invalidation is called here and dropped; the
/// fetch ends. Only a call that was never polled lets the old row in.
#[tokio::test]
async fn a_dropped_invalidation_dooms_a_fetch_under_way_elsewhere() {
    let world = World::with_redis().await;
    let mut tenants = Vec::new();
    for invalidator in Invalidator::ALL {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let slow = Slow::begin(world.other(&tenant)).await;
            let call = Cut::new(invalidator.call(&world.mine, &tenant, &log));
            let ended = world.cut(call, when, polls).await;
            world.executed().await;
            slow.end().await;
            let held = world.held(&tenant).await;
            assert_eq!(held.as_deref() == Some("old"), polls == 0, "{invalidator:?} {when:?} {polls}: {held:?}");
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    world.check_leaks(&tenants).await;
}

/// G1. A `set` or `put` that is dropped once it may have been sent leaves neither the old value nor the new one, and never
/// comes after a later invalidation.
#[tokio::test]
async fn a_set_dropped_at_any_point_leaves_neither_value() {
    let world = World::with_redis().await;
    let mut tenants = Vec::new();
    for companion in [false, true] {
        at_every_point(world.whens(), async |when, polls| {
            let tenant = format!("t{}", tenants.len());
            let case = format!("{companion} {when:?} {polls}");
            world.other(&tenant).set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
            for cache in [&world.mine, &world.other] {
                assert_eq!(get(cache, &tenant).await.as_deref(), Some("old"));
            }
            let (cache, scope, of) = (world.mine.clone(), world.mine(&tenant), tenant.clone());
            let call = Cut::new(async move {
                if companion {
                    report::put(&cache, &of, "x", "new".to_owned()).await.unwrap();
                } else {
                    scope.set(&REPORTS.key("x"), "new".to_owned()).await.unwrap();
                }
            });
            let ended = world.cut(call, when, polls).await;
            world.executed().await;
            let left = match (polls, ended) {
                (0, _) => Some("old".to_owned()),
                (_, true) => Some("new".to_owned()),
                _ => None,
            };
            until(&format!("{case}: not {left:?}"), async || world.held(&tenant).await == left).await;
            for cache in [&world.mine, &world.other] {
                until(&format!("{case}: not all read the same"), async || get(cache, &tenant).await == left).await;
            }
            assert!(soon(&case, world.other(&tenant).invalidate(&REPORTS.key("x"))).await.is_applied());
            assert_eq!(world.held(&tenant).await, None, "{case}");
            for cache in [&world.mine, &world.other] {
                until(&format!("{case}: a value stays"), async || get(cache, &tenant).await.is_none()).await;
            }
            tenants.push((tenant, Log::new()));
            ended
        })
        .await;
    }
    for (tenant, _) in &tenants {
        assert_eq!(world.held(tenant).await, None, "{tenant}: the dropped `set` came late");
    }
    world.check_counters_and_leaks(&tenants).await;
}

/// A `connect` that is dropped leaves no connection behind, and a dropped `close` closes; `health` may be dropped at
/// will.
#[tokio::test]
async fn handles_may_be_dropped_while_they_connect_ask_and_close() {
    let world = World::with_redis().await;
    let before = world.clients().await;
    let url = world.proxy().url().to_owned();
    at_every_point(world.whens(), async |when, polls| {
        let url = url.clone();
        let ended = world.cut(Cut::new(async move { Cache::connect(&url).await.unwrap() }), when, polls).await;
        world.until_no_more_clients_than(before, &format!("connect {when:?} {polls}")).await;
        ended
    })
    .await;
    at_every_point(world.whens(), async |when, polls| {
        let cache = world.mine.clone();
        let ended = world.cut(Cut::new(async move { cache.health().await.status }), when, polls).await;
        assert_eq!(soon("health", world.mine.health()).await.status, Status::Healthy, "{when:?} {polls}");
        ended
    })
    .await;
    at_every_point(&[When::AtOnce, When::Woken], async |when, polls| {
        let cache = Cache::connect(&url).await.unwrap();
        let scope = cache.tenant("closing").unwrap();
        scope.set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
        let closing = cache.clone();
        let ended = world.cut(Cut::new(async move { closing.close().await }), when, polls).await;
        let is_open = polls == 0;
        assert_eq!(scope.get(&REPORTS.key("x")).await.unwrap().is_some(), is_open, "{when:?} {polls}");
        let log = Log::new();
        let value = soon("a call after close", Fetcher::TryGetOrFetch.call(&cache, "closing", &log)).await;
        assert_eq!((value.as_str(), log.ended()), if is_open { ("old", 0) } else { ("new", 1) });
        if !is_open {
            world.until_no_more_clients_than(before, &format!("close {when:?} {polls}")).await;
        }
        drop((cache, scope));
        world.until_no_more_clients_than(before, "a cache that is gone").await;
        ended
    })
    .await;
    world.check_leaks(&[]).await;
}

/// G1, G4, G5. The first call of a cache, which connects, is dropped; others came right behind it.
#[tokio::test]
async fn a_first_call_dropped_while_it_connects_takes_nothing_along() {
    let world = World::with_redis().await;
    let before = world.clients().await;
    let case = AtomicUsize::new(0);
    for invalidator in [None, Some(Invalidator::Key), Some(Invalidator::Refresh)] {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", case.fetch_add(1, Ordering::SeqCst)), Log::new());
            let what = format!("{invalidator:?} {when:?} {polls}");
            let cache = world.unconnected();
            let fetch = |cache| Fetcher::TryGetOrFetch.call(cache, &tenant, &log);
            if invalidator.is_some() {
                world.other(&tenant).set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
            }
            let mut call = Cut::new(match invalidator {
                Some(invalidator) => invalidator.call(&cache, &tenant, &log),
                None => fetch(&cache).map(drop).boxed(),
            });
            call.poll_to(polls.min(1)).await;
            let others = [&cache, &cache, &world.other].map(|cache| tokio::spawn(fetch(cache)));
            let ended = world.cut(call, when, polls).await;
            for other in others {
                let value = soon(&what, other).await.unwrap();
                assert!(value == "new" || invalidator.is_some(), "{what}");
            }
            if invalidator.is_none() {
                assert_eq!(log.ended(), 1, "{what}: {log:?}");
            } else if polls > 0 {
                let is_new = async || world.held(&tenant).await.as_deref() != Some("old");
                until(&format!("{what}: the old value stays"), is_new).await;
            }
            drop(cache);
            until(&format!("{what}: a lease is left"), async || world.leases().is_empty()).await;
            ended
        })
        .await;
    }
    world.until_no_more_clients_than(before, "caches that are gone").await;
    world.check_leaks(&[]).await;
}

/// G4, G5, the cap. Redis is gone and two fetches may run at a time. Calls that are dropped while they run, or while
/// they wait for their turn, take no permit along: two fetches that wait for each other then still end.
#[tokio::test]
async fn a_dropped_fetch_takes_no_permit_of_the_cap_along() {
    let world = World::with_redis_and(|builder| builder.fetch_cap(2).near_bytes(0)).await;
    world.server().kill();
    let case = AtomicUsize::new(0);
    for (fetcher, is_crowded) in Fetcher::ALL.into_iter().flat_map(|fetcher| [(fetcher, false), (fetcher, true)]) {
        at_every_point(&[When::AtOnce, When::Woken], async |when, polls| {
            let (tenant, log) = (format!("t{}", case.fetch_add(1, Ordering::SeqCst)), Log::new());
            let holders = if is_crowded {
                vec![Slow::begin(world.mine("holder-1")).await, Slow::begin(world.mine("holder-2")).await]
            } else {
                Vec::new()
            };
            let mut call = Cut::new(fetcher.call(&world.mine, &tenant, &log));
            call.poll_to(polls.min(1)).await;
            let release = async {
                for holder in holders {
                    roughly(10, || log.begun() > 0).await;
                    holder.end().await;
                }
            };
            let (ended, ()) = tokio::join!(world.cut(call, when, polls), release);
            let both = Barrier::new(2);
            let meet = async |tenant: &str| {
                let fetch = || async {
                    both.wait().await;
                    Ok::<_, ()>("new".to_owned())
                };
                world.mine(tenant).try_get_or_fetch(&REPORTS.key("x"), fetch).await.unwrap()
            };
            let what = format!("{fetcher:?} crowded: {is_crowded} {when:?} {polls}");
            soon(what, async { tokio::join!(meet("one"), meet("two")) }).await;
            ended
        })
        .await;
    }
}

/// G5. A fetch that panics at its first, second and third poll, or before it returns a future, hands over as one that
/// is dropped.
async fn others_go_on_after_a_panic(world: World) {
    let mut tenants = Vec::new();
    for fetcher in [Fetcher::TryGetOrFetch, Fetcher::Many, Fetcher::Annotated] {
        for polls in 0..4_usize {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let (cache, scope, of, its_log) = (world.mine.clone(), world.mine(&tenant), tenant.clone(), log.clone());
            let missed = world.misses();
            let leader = tokio::spawn(async move {
                let bad = async |log: Arc<Log>| -> Result<String, String> {
                    let _running = log.begin();
                    for _ in 1..polls {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    panic!("as a test")
                };
                let key = REPORTS.key("x");
                match fetcher {
                    Fetcher::Many => {
                        let fetch = |missing: Vec<Key<String>>| {
                            assert!(polls > 0, "as a test");
                            let bad = bad(its_log.clone());
                            async move { bad.await.map(|value| missing.into_iter().map(move |key| (key, value.clone()))) }
                        };
                        drop(scope.try_get_or_fetch_many(&[key], fetch).await);
                    }
                    Fetcher::Annotated => drop(panicking(&cache, &of, "x", polls, its_log).await),
                    _ => {
                        let fetch = || {
                            assert!(polls > 0, "as a test");
                            bad(its_log)
                        };
                        drop(scope.try_get_or_fetch(&key, fetch).await);
                    }
                }
            });
            until("the leader begins", async || world.misses() > missed).await;
            let caches = [&world.mine, &world.mine, &world.other];
            let others = caches.map(|cache| tokio::spawn(fetcher.call(cache, &tenant, &log)));
            assert!(soon("the leader", leader).await.unwrap_err().is_panic());
            for other in others {
                assert_eq!(soon((fetcher, polls), other).await.unwrap(), "new");
            }
            assert_eq!(log.ended(), 1, "{fetcher:?} {polls}: {log:?}");
            tenants.push((tenant, log));
        }
    }
    world.check_leaks(&tenants).await;
}

#[cache_core::cached(profile = PANICKING, key = "{id}", skip(polls, log), cache = cache)]
async fn panicking(cache: &Cache, tenant_id: &str, id: &str, polls: usize, log: Arc<Log>) -> Result<String, String> {
    let (_, _running) = ((cache, tenant_id, id), log.begin());
    for _ in 1..polls {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("as a test")
}

const PANICKING: TtlProfile = TtlProfile::new("report", Duration::from_secs(3_600));

#[tokio::test]
async fn others_go_on_when_a_fetch_panics_at_any_point() {
    others_go_on_after_a_panic(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn others_go_on_without_redis_when_a_fetch_panics_at_any_point() {
    others_go_on_after_a_panic(World::embedded()).await;
}

/// A value whose `Serialize` panics.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
struct Touchy;

impl serde::Serialize for Touchy {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("as a test")
    }
}

const TOUCHY: Keyspace<Touchy> = TtlProfile::new("touchy", Duration::from_secs(60)).of();

/// G5. A value whose `Serialize` panics is handed out and not stored, nobody waits for its lease, and all that at
/// whatever point the leader is dropped.
async fn others_go_on_after_a_panicking_serialize(world: World) {
    let case = AtomicUsize::new(0);
    at_every_point(world.whens(), async |when, polls| {
        let tenant = format!("t{}", case.fetch_add(1, Ordering::SeqCst));
        let call = |cache: &Cache| {
            let (scope, fetch) = (cache.tenant(&*tenant).unwrap(), fetch(Log::new()));
            let fetch = async move { fetch.await.map(|_| Touchy) };
            async move { (*scope.try_get_or_fetch(&TOUCHY.key("x"), || fetch).await.unwrap()).clone() }.boxed()
        };
        let (mine, theirs) = (vec![call(&world.mine), call(&world.mine)], vec![call(&world.other)]);
        let leader = Cut::new(call(&world.mine));
        let (ended, others) = world.cut_before(leader, (when, polls), 1, mine, theirs).await;
        for other in others {
            assert_eq!(soon((when, polls), other).await.unwrap(), Touchy);
        }
        let error = world.mine(&tenant).set(&TOUCHY.key("x"), Touchy).await.unwrap_err();
        assert_eq!(error.kind(), cache_core::ErrorKind::Encode);
        assert!(!world.mine(&tenant).exists(&TOUCHY.key("x")).await.unwrap());
        until("a lease is left", async || world.leases().is_empty()).await;
        ended
    })
    .await;
    assert!(world.mine.stats().total.encode_errors > 0);
    world.check_leaks(&[]).await;
}

#[tokio::test]
async fn others_go_on_when_serialize_panics() {
    others_go_on_after_a_panicking_serialize(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn others_go_on_without_redis_when_serialize_panics() {
    others_go_on_after_a_panicking_serialize(World::embedded()).await;
}

/// G1, G5. The interleaving: a call is polled so many times and then no more, as in a `select!` that does something
/// else; others want its key, and go on after a lease period; the key is invalidated and fetched anew; the call is
/// polled again, to its end. It gets what it fetched, and stores nothing over what is newer.
async fn others_go_on_beside_a_parked_call(world: World, lease: Duration, slack: Duration) {
    let mut tenants = Vec::new();
    for fetcher in [Fetcher::TryGetOrFetch, Fetcher::Many] {
        at_every_point(&[When::AtOnce], async |_, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let mut parked = Cut::new(fetcher.call(&world.mine, &tenant, &log));
            parked.poll_to(polls).await;
            let others = [&world.mine, &world.mine, &world.other, &world.other];
            let others = join_all(others.map(|cache| fetcher.call(cache, &tenant, &log)));
            let Ok(values) = tokio::time::timeout(lease + slack, others).await else {
                panic!("{fetcher:?} {polls}: others wait for longer than a lease period");
            };
            assert!(values.iter().all(|value| value == "new"));
            assert!(soon("invalidating", world.other(&tenant).invalidate(&REPORTS.key("x"))).await.is_applied());
            let newer = || async { Ok::<_, ()>("newer".to_owned()) };
            let value = world.other(&tenant).try_get_or_fetch(&REPORTS.key("x"), newer).await.unwrap();
            assert_eq!(*value, "newer");
            let ended = parked.has_ended();
            if !ended {
                let value = soon("the parked call", parked.end()).await;
                assert!(value == "new" || value == "newer", "{value}");
            }
            assert_eq!(world.held(&tenant).await.as_deref(), Some("newer"), "{fetcher:?} {polls}");
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    world.check_leaks(&tenants).await;
}

#[tokio::test]
async fn others_go_on_beside_a_call_that_is_polled_no_more() {
    let lease = Duration::from_millis(250);
    let world = World::with_redis_and(|builder| builder.lease(lease)).await;
    others_go_on_beside_a_parked_call(world, lease, Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn others_go_on_without_redis_beside_a_call_that_is_polled_no_more() {
    others_go_on_beside_a_parked_call(World::embedded(), LEASE, Duration::from_millis(10)).await;
}

/// A batch over `keys`, each with its own log.
fn batch(scope: Scoped, keys: Vec<Key<String>>, logs: Vec<Arc<Log>>) -> BoxFuture<'static, Vec<String>> {
    Box::pin(async move {
        let fetch = async |missing: Vec<Key<String>>| {
            let log = |key: &Key<String>| logs[key.identifier().parse::<usize>().unwrap()].begin();
            let running: Vec<_> = missing.iter().map(log).collect();
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            running.into_iter().for_each(|running| running.end());
            Ok::<_, ()>(missing.into_iter().map(|key| (key, "new".to_owned())))
        };
        let values = scope.try_get_or_fetch_many(&keys, fetch).await.unwrap();
        values.into_iter().map(|value| (*value.unwrap()).clone()).collect()
    })
}

/// G4, G5. A batch is dropped while two others, one of them another process's, want the same keys in opposite order:
/// each key is fetched once more at most.
async fn batches_in_opposite_order(world: World) {
    let mut tenants = Vec::new();
    at_every_point(world.whens(), async |when, polls| {
        let tenant = format!("t{}", tenants.len());
        let logs: Vec<_> = (0..6).map(|_| Log::new()).collect();
        let keys: Vec<_> = (0..6).map(|id| REPORTS.key(id)).collect();
        let reversed: Vec<_> = keys.iter().rev().cloned().collect();
        let reverse = |scope| batch(scope, reversed.clone(), logs.clone());
        let (mine, theirs) = (vec![reverse(world.mine(&tenant))], vec![reverse(world.other(&tenant))]);
        let call = Cut::new(batch(world.mine(&tenant), keys, logs.clone()));
        let (ended, others) = world.cut_before(call, (when, polls), 6, mine, theirs).await;
        for other in others {
            assert_eq!(soon((when, polls), other).await.unwrap(), ["new"; 6]);
        }
        assert!(logs.iter().all(|log| log.ended() == 1 && log.cut() <= 1), "{when:?} {polls}: {logs:?}");
        tenants.push((tenant, Log::new()));
        ended
    })
    .await;
    world.check_leaks(&tenants).await;
}

#[tokio::test]
async fn batches_in_opposite_order_go_on_when_one_is_dropped_at_any_point() {
    batches_in_opposite_order(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn batches_in_opposite_order_go_on_without_redis_when_one_is_dropped_at_any_point() {
    batches_in_opposite_order(World::embedded()).await;
}

/// How a fetch asks for the key it is the fetch of.
#[derive(Clone, Copy, Debug)]
enum Own {
    Directly,
    ThroughABatch,
    /// The fetch is a batch's.
    OfABatch,
    BatchOfABatch,
}

/// G5. A fetch that asks for its own key never waits for itself, and is dropped like any other.
async fn own_keys(world: World) {
    let mut tenants = Vec::new();
    for own in [Own::Directly, Own::ThroughABatch, Own::OfABatch, Own::BatchOfABatch] {
        at_every_point(world.whens(), async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let (scope, its_log) = (world.mine(&tenant), log.clone());
            let call = Cut::new(async move {
                let keys = [REPORTS.key("y"), REPORTS.key("x")];
                let many = async |log: Arc<Log>| {
                    let all = async |missing: Vec<Key<String>>| {
                        let value = fetch(log.clone()).await?;
                        Ok::<_, String>(missing.into_iter().map(move |key| (key, value.clone())))
                    };
                    let values = scope.try_get_or_fetch_many(&keys, all).await?;
                    Ok::<_, String>((**values[1].as_ref().unwrap()).clone())
                };
                let single = async |log: Arc<Log>| {
                    scope.try_get_or_fetch(&keys[1], || fetch(log)).await.map(|value| (*value).clone())
                };
                let around = async |missing: Vec<Key<String>>| {
                    let value = match own {
                        Own::Directly | Own::OfABatch => single(its_log.clone()).await?,
                        Own::ThroughABatch | Own::BatchOfABatch => many(its_log.clone()).await?,
                    };
                    Ok::<_, String>(missing.into_iter().map(move |key| (key, value.clone())))
                };
                let value = match own {
                    Own::Directly | Own::ThroughABatch => {
                        let fetch =
                            || async { Ok::<_, String>(around(vec![keys[1].clone()]).await?.next().unwrap().1) };
                        scope.try_get_or_fetch(&keys[1], fetch).await
                    }
                    Own::OfABatch | Own::BatchOfABatch => {
                        let values = scope.try_get_or_fetch_many(&keys, around).await;
                        values.map(|mut values| values.pop().unwrap().unwrap())
                    }
                };
                assert_eq!(*value.unwrap(), "new");
            });
            let other = |cache| Fetcher::Shared.call(cache, &tenant, &log);
            let (mine, theirs) = ([&world.mine; 2].map(other).into(), vec![other(&world.other)]);
            let (ended, others) = world.cut_before(call, (when, polls), 1, mine, theirs).await;
            for other in others {
                assert_eq!(soon((own, when, polls), other).await.unwrap(), "new");
            }
            assert_eq!(world.held(&tenant).await.as_deref(), Some("new"));
            tenants.push((tenant, log));
            ended
        })
        .await;
    }
    world.check_leaks(&tenants).await;
}

#[tokio::test]
async fn a_fetch_that_asks_for_its_own_key_is_dropped_at_any_point() {
    own_keys(World::with_redis().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_asks_for_its_own_key_is_dropped_at_any_point_without_redis() {
    own_keys(World::embedded()).await;
}

/// A fetch of one second that fails, each time with another error.
async fn failing(log: Arc<Log>, length: Duration, all_there: impl Fn() -> bool) -> Result<String, String> {
    let running = log.begin();
    let error = format!("down for the {}. time", log.begun());
    tokio::task::yield_now().await;
    while !all_there() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(length).await;
    running.end();
    Err(error)
}

/// A leader and `waiting` calls for a key whose fetch fails.
fn crowd_for_an_error(
    world: &World,
    tenant: &str,
    log: &Arc<Log>,
    length: Duration,
    (is_shared, waiting): (bool, u64),
) -> Vec<BoxFuture<'static, Result<(), String>>> {
    let missed = world.misses();
    let call = |_| {
        let (cache, scope, log) = (world.mine.clone(), world.mine(tenant), log.clone());
        async move {
            let key = REPORTS.key("x");
            let fetch = || failing(log, length, || cache.stats().total.misses >= missed + waiting);
            let result = if is_shared {
                scope.try_get_or_fetch_shared(&key, fetch).await
            } else {
                scope.try_get_or_fetch(&key, fetch).await
            };
            result.map(drop)
        }
    };
    (0..=waiting).map(|at| call(at).boxed()).collect()
}

/// G5. The leader of a thousand calls is dropped and the next one's fetch fails. Shared, that is the one error of all.
/// Else a hundred take turns, for a lease period since the first failure, and after that each fetches for itself under the
/// cap, where no wait is longer than a lease period.
async fn thousand_errors(world: World, length: Duration, lease: Duration, slack: Duration) {
    let mut tenants = Vec::new();
    for (is_shared, waiting) in [(true, 1_000), (false, 100)] {
        at_every_point(&[When::AtOnce, When::Woken], async |when, polls| {
            let (tenant, log) = (format!("t{}", tenants.len()), Log::new());
            let mut calls = crowd_for_an_error(&world, &tenant, &log, length, (is_shared, waiting));
            let leader = Cut::new(calls.remove(0));
            let (ended, others) = world.cut_before(leader, (when, polls), 1, calls, Vec::new()).await;
            let begun = tokio::time::Instant::now();
            let mut errors = Vec::new();
            for other in others {
                errors.push(other.await.unwrap().unwrap_err());
            }
            let longest = if is_shared { length } else { length + lease + lease + length };
            let took = begun.elapsed();
            assert!(took <= longest + slack, "shared: {is_shared} {when:?} {polls}: {took:?}");
            if is_shared {
                assert_eq!(log.ended(), 1, "{when:?} {polls}: {log:?}");
                assert!(errors.iter().all(|error| *error == errors[0]), "{when:?} {polls}");
            }
            tenants.push((tenant, log));
            // Further ones are more turns of one and the same wait.
            ended || polls > 8
        })
        .await;
    }
    world.check_leaks(&tenants).await;
}

#[tokio::test]
async fn a_thousand_calls_get_an_error_when_the_leader_is_dropped_at_any_point() {
    let length = Duration::from_millis(5);
    let world = World::with_redis().await;
    thousand_errors(world, length, Duration::ZERO, cut::BOUND).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_get_an_error_without_redis_when_the_leader_is_dropped_at_any_point() {
    thousand_errors(World::embedded(), Duration::from_secs(1), LEASE, Duration::from_millis(50)).await;
}

/// G4, G5, on two threads. Of the calls for a key most are dropped, each after its own number of polls; those that
/// stay get the value, and one fetch of all ends.
async fn crowds(world: World, rounds: u64) {
    let mut tenants = Vec::new();
    for round in 0..rounds {
        let (tenant, log) = (format!("t{round}"), Log::new());
        let calls = (0..32_u64).map(|at| {
            // A fixed sequence that looks like none.
            let number = (round * 32 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let cache = if number % 3 == 0 { &world.other } else { &world.mine };
            let fetcher = Fetcher::ALL[usize::try_from(number / 3 % 5).unwrap()];
            let polls = (at % 4 > 0).then_some(usize::try_from(number / 15 % 9).unwrap());
            let mut call = Cut::new(fetcher.call(cache, &tenant, &log));
            let when_woken = number % 2 == 0;
            tokio::spawn(async move {
                let Some(polls) = polls else { return Some(call.end().await) };
                call.poll_to(polls).await;
                if when_woken && !call.has_ended() {
                    call.wait_until_woken().await;
                }
                None
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let value = soon(round, call).await.unwrap();
            assert!(value.is_none_or(|value| value == "new"));
        }
        assert_eq!(log.ended(), 1, "round {round}: {log:?}");
        tenants.push((tenant, log));
    }
    world.check_counters_and_leaks(&tenants).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_lose_members_on_two_threads() {
    crowds(World::with_redis().await, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_lose_members_on_two_threads_without_redis() {
    crowds(World::embedded(), 300).await;
}
