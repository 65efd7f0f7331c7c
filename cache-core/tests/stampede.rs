//! G4 and G5 beside a real Redis: one fetch per fleet, and nobody waits for a leader that is gone.

mod support;

use std::{
    future::{Future, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile, cached};
use redis::AsyncTypedCommands as _;
use support::{Proxy, Server, child, child::Child};
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();

/// Waits are counted here, so a loaded machine must not make commands time out.
async fn patient(url: &str) -> Cache {
    Cache::builder().url(url).op_timeout(Duration::from_secs(20)).min_idle(1).connect().await.unwrap()
}

async fn acme(url: &str) -> Scoped {
    patient(url).await.tenant("acme").unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

/// Calls of one process in one round.
const CALLERS: usize = 1_000;
const PROCESSES: usize = 4;

/// The child of the tests below. In each round the parent names a row; a thousand calls ask for it at once.
#[test]
fn thousand_callers() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let url = std::env::var("REDIS_URL").unwrap();
        let near_bytes = std::env::var("NEAR_BYTES").unwrap().parse().unwrap();
        let builder = Cache::builder().url(&url).op_timeout(Duration::from_secs(20)).near_bytes(near_bytes);
        let acme = builder.connect().await.unwrap().tenant("acme").unwrap();
        let upstream = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        child::report("ready");
        while let Some(round) = child::wait_for_parent() {
            let (id, row) = round.split_once(' ').unwrap();
            ask(&acme, id, row, &upstream).await;
            child::report("done");
        }
    });
}

/// A thousand calls for `id`, each of which must get `row`. They begin when the parent says so.
async fn ask(acme: &Scoped, id: &str, row: &str, upstream: &redis::aio::MultiplexedConnection) {
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (acme, key, row, upstream) = (acme.clone(), REPORTS.key(id), row.to_owned(), upstream.clone());
            let (gate, begun) = (gate.clone(), begun.clone());
            tokio::spawn(async move {
                gate.acquire().await.unwrap().forget();
                if begun.fetch_add(1, Ordering::SeqCst) + 1 == CALLERS {
                    let mut upstream = upstream.clone();
                    let arrived = format!("arrived {row}");
                    tokio::spawn(async move { upstream.incr(arrived, 1).await.unwrap() });
                }
                let fetch = || async {
                    let mut upstream = upstream.clone();
                    upstream.incr("fetches", 1).await.unwrap();
                    // Until the calls of all processes have begun: none of them comes to a warm key.
                    while upstream.get_int(format!("arrived {row}")).await.unwrap() != Some(PROCESSES as isize) {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    Ok::<_, ()>(row.clone())
                };
                assert_eq!(*acme.try_get_or_fetch(&key, fetch).await.unwrap(), row);
            })
        })
        .collect();
    child::report("armed");
    assert_eq!(child::wait_for_parent().as_deref(), Some("go"));
    gate.add_permits(CALLERS);
    for call in calls {
        call.await.unwrap();
    }
}

/// Four processes, each with a thousand calls for one cold key, a hundred times. `chill` names the key of a round.
async fn stampede(server: &Server, near_bytes: &str, mut chill: impl AsyncFnMut(usize) -> String) {
    let env = [("REDIS_URL", &*server.url()), ("NEAR_BYTES", near_bytes)];
    let mut children: Vec<_> = (0..PROCESSES).map(|_| child::spawn("thousand_callers", &env)).collect();
    fn hear(children: &mut [Child], word: &str) {
        children.iter_mut().for_each(|child| assert_eq!(child.next_report(), word));
    }
    hear(&mut children, "ready");
    for round in 1..=100 {
        let id = chill(round).await;
        children.iter_mut().for_each(|child| child.tell(&format!("{id} row-{round}")));
        hear(&mut children, "armed");
        children.iter_mut().for_each(|child| child.tell("go"));
        hear(&mut children, "done");
        assert_eq!(server.cli(&["GET", "fetches"]), round.to_string(), "fetches after round {round}");
    }
    children.into_iter().for_each(|child| drop(child.finish()));
}

/// G4, with near tier and link: those who wait for the lease of another process are woken.
#[tokio::test]
async fn a_cold_key_under_four_processes_of_a_thousand_calls_is_fetched_once() {
    let server = Server::start();
    stampede(&server, "1000000", async |round| format!("cold-{round}")).await;
}

/// G4 and G2, without near tier and link: those who wait look again, and none is given the row of the round before.
#[tokio::test]
async fn an_invalidated_key_under_four_processes_of_a_thousand_calls_is_fetched_once() {
    let server = Server::start();
    let acme = acme(&server.url()).await;
    let invalidated = async |_| {
        assert!(acme.invalidate(&REPORTS.key("hot")).await.is_applied());
        "hot".to_owned()
    };
    stampede(&server, "0", invalidated).await;
}

/// The leader is dropped after `polls` polls, wherever it then waits: at READ, LEASE, the fetch or FILL.
#[tokio::test]
async fn followers_get_the_value_when_the_leader_is_dropped_at_any_point() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = acme(proxy.url()).await;
    for polls in 1..40 {
        let key = REPORTS.key(polls);
        let mut ended = false;
        {
            let mut leader = Box::pin(acme.try_get_or_fetch(&key, || async {
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                fetched("v").await
            }));
            for _ in 0..polls {
                if leader.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    ended = true;
                    break;
                }
                // Lets the reply it waits for arrive.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let followers: Vec<_> = (0..100)
                .map(|_| {
                    let (acme, key) = (acme.clone(), key.clone());
                    tokio::spawn(async move { acme.try_get_or_fetch(&key, || fetched("v")).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(2)).await;
            drop(leader);
            let begun = Instant::now();
            for follower in followers {
                assert_eq!(*follower.await.unwrap().unwrap(), "v", "{polls}");
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "{polls}: {:?}", begun.elapsed());
        }
        // No lease is left behind: it is released at once, not after its period.
        let lease = format!("cache:tenant:acme:report:{polls}~l");
        let begun = Instant::now();
        while server.cli(&["EXISTS", &lease]) != "0" && server.cli(&["EXISTS", &lease]) != "(integer) 0" {
            assert!(begun.elapsed() < Duration::from_secs(2), "{polls}: the lease stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if ended {
            return;
        }
    }
    panic!("the leader never ended: the polls above did not reach every point");
}

/// A leader that is dropped while it fetches alone leaves no lease behind.
#[tokio::test]
async fn a_dropped_fetch_gives_its_lease_back() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, others) = (acme(proxy.url()).await, acme(&server.url()).await);
    let key = REPORTS.key("x");
    let dropped =
        tokio::time::timeout(Duration::from_millis(100), mine.try_get_or_fetch(&key, pending::<Result<String, ()>>));
    assert!(dropped.await.is_err());
    let begun = Instant::now();
    assert_eq!(*others.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(others.exists(&key).await.unwrap(), "it was stored, so the lease was free");
}

#[test]
fn crashing_leader() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let acme = acme(&std::env::var("REDIS_URL").unwrap()).await;
        let fetch = || async {
            child::report("fetching");
            pending::<Result<String, ()>>().await
        };
        let _ = acme.try_get_or_fetch(&REPORTS.key("x"), fetch).await;
    });
}

/// A crashed process holds up the others for one lease period at most.
#[tokio::test]
async fn a_killed_leader_delays_others_by_its_lease_at_most() {
    let server = Server::start();
    let url = server.url();
    let mut leader = child::spawn("crashing_leader", &[("REDIS_URL", &url)]);
    assert_eq!(leader.next_report(), "fetching");
    leader.kill();
    let others = acme(&url).await;
    let begun = Instant::now();
    assert_eq!(*others.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
    assert!(begun.elapsed() < Duration::from_millis(5_500), "{:?}", begun.elapsed());
}

/// A fetch longer than its lease keeps it: the lease is renewed.
#[tokio::test]
async fn a_fetch_longer_than_its_lease_is_still_the_only_one() {
    let server = Server::start();
    let cache = async || {
        let builder = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20));
        builder.lease(Duration::from_millis(1_200)).connect().await.unwrap().tenant("acme").unwrap()
    };
    let (first, second) = (cache().await, cache().await);
    let key = REPORTS.key("x");
    let fetches = AtomicUsize::new(0);
    let slow = || async {
        fetches.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        fetched("v").await
    };
    // The second one comes late enough not to lose its patience, one lease period, before the first is done.
    let late = async {
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        second.try_get_or_fetch(&key, slow).await
    };
    let (a, b) = tokio::join!(first.try_get_or_fetch(&key, slow), late);
    assert_eq!((a.unwrap().as_str(), b.unwrap().as_str()), ("v", "v"));
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

/// The same key in two caches on one server: the inner one sees that the lease is held around it.
#[tokio::test]
async fn the_same_key_in_two_caches_on_one_server_never_waits_for_itself() {
    let server = Server::start();
    let (outer, inner) = (acme(&server.url()).await, acme(&server.url()).await);
    let key = REPORTS.key("x");
    let begun = Instant::now();
    let value = outer.try_get_or_fetch(&key, || inner.try_get_or_fetch(&key, || fetched("v"))).await.unwrap();
    assert_eq!(*value, "v");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[cached(ttl = 60, key_prefix = "nested", cache = cache)]
async fn outer(cache: &Cache, id: u32) -> Result<String, String> {
    Ok(format!("outer of {}", inner(cache, id).await?))
}

#[cached(ttl = 60, key_prefix = "nested", cache = cache)]
async fn inner(cache: &Cache, id: u32) -> Result<String, String> {
    Ok(format!("inner {id}"))
}

#[tokio::test]
async fn nested_annotated_functions_never_wait_for_each_other() {
    let server = Server::start();
    let cache = patient(&server.url()).await;
    let begun = Instant::now();
    for id in 0..20 {
        let calls = (0..10).map(|_| outer(&cache, id));
        for value in futures::future::join_all(calls).await {
            assert_eq!(value.unwrap(), format!("outer of inner {id}"));
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(cache.stats().profiles["nested"].fetches, 40);
}

/// Two batches over the same keys in opposite order.
#[tokio::test]
async fn two_batches_in_opposite_order_do_not_wait_for_each_other() {
    let server = Server::start();
    let (one, two) = (acme(&server.url()).await, acme(&server.url()).await);
    let keys: Vec<_> = (0..20).map(|id| REPORTS.key(id)).collect();
    let reversed: Vec<_> = keys.iter().rev().cloned().collect();
    let fetch = async |missing: Vec<_>| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, ()>(missing.into_iter().map(|key| (key, "v".to_owned())).collect::<Vec<_>>())
    };
    let begun = Instant::now();
    let (a, b) = tokio::join!(one.try_get_or_fetch_many(&keys, fetch), two.try_get_or_fetch_many(&reversed, fetch));
    assert!(a.unwrap().iter().chain(&b.unwrap()).all(Option::is_some));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
