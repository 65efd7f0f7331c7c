//! Mistakes that were made once: each test failed before the code was right.

mod support;

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile, cached};
use std::{
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};
use support::{Fault, Hold, Proxy, Server};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
fn ok(v: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(v.to_owned()))
}

/// > 4096 invalidations within 10 s on a healthy server: the keyspace is a must-miss for ever.
#[tokio::test]
async fn thousands_of_invalidations_leave_no_keyspace_uncached() {
    let server = Server::start();
    let cache =
        Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).near_bytes(0).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    for chunk in (0..4200u32).collect::<Vec<_>>().chunks(100) {
        let keys: Vec<_> = chunk.iter().map(|n| REPORTS.key(*n)).collect();
        assert_eq!(acme.invalidate_many(&keys).await, Invalidated::Applied);
    }
    let mut last = 0;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let fetched = AtomicUsize::new(0);
        for _ in 0..5 {
            acme.try_get_or_fetch(&REPORTS.key("other"), || async {
                fetched.fetch_add(1, Ordering::SeqCst);
                Ok::<_, ()>("v".to_owned())
            })
            .await
            .unwrap();
        }
        last = fetched.load(Ordering::SeqCst);
    }
    assert!(last <= 1, "nothing of the keyspace is cached any more: {last} fetches of 5 calls");
}

/// A runtime that ends while an invalidation is pending.
#[test]
fn a_runtime_may_end_while_an_invalidation_is_pending() {
    let server = Server::start();
    let cache = Cache::builder().url(&server.url()).build().unwrap();
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let acme = cache.tenant("acme").unwrap();
        acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
        server.kill();
        assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
    });
    drop(rt);
}

/// A TTL shorter than half the fetch.
#[tokio::test]
async fn a_fetch_longer_than_twice_its_ttl_is_stored() {
    const SHORT: Keyspace<String> = TtlProfile::new("short", Duration::from_millis(500)).with_jitter(0.0).of();
    let server = Server::start();
    let (a, b) = (Cache::connect(&server.url()).await.unwrap(), Cache::connect(&server.url()).await.unwrap());
    let fetched = AtomicUsize::new(0);
    let slow = || async {
        fetched.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1600)).await;
        Ok::<_, ()>("v".to_owned())
    };
    let (sa, sb) = (a.tenant("acme").unwrap(), b.tenant("acme").unwrap());
    let key = SHORT.key("x");
    let (k1, k2) = (key.clone(), key.clone());
    let _ = tokio::join!(async { sa.try_get_or_fetch(&k1, slow).await }, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sb.try_get_or_fetch(&k2, slow).await
    });
    let (x, y) = (a.stats().total, b.stats().total);
    assert_eq!((fetched.load(Ordering::SeqCst), x.stored + y.stored), (1, 1));
}

/// A closed (or disabled) cache says `Applied` and tells nobody.
#[tokio::test]
async fn a_closed_cache_does_not_claim_to_have_invalidated() {
    let server = Server::start();
    let (a, b) = (Cache::connect(&server.url()).await.unwrap(), Cache::connect(&server.url()).await.unwrap());
    let key = REPORTS.key("x");
    b.tenant("acme").unwrap().set(&key, "old".to_owned()).await.unwrap();
    a.close().await;
    let outcome = a.tenant("acme").unwrap().invalidate(&key).await;
    let still = b.tenant("acme").unwrap().get(&key).await.unwrap();
    assert!(outcome == Invalidated::Pending || still.is_none(), "{outcome:?}, and others read {still:?}");
}

/// An embedded cache on a tokio runtime without timers.
#[test]
fn a_runtime_without_timers_is_no_panic() {
    let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let acme = Cache::in_memory().tenant("acme").unwrap();
    rt.block_on(async {
        acme.try_get_or_fetch(&REPORTS.key("x"), || async {
            tokio::task::yield_now().await;
            Ok::<_, ()>("v".to_owned())
        })
        .await
        .unwrap()
    });
}

/// A handle of a runtime that was shut down.
#[test]
fn a_runtime_that_was_shut_down_is_no_panic() {
    let server = Server::start();
    let rt = tokio::runtime::Runtime::new().unwrap();
    let handle = rt.handle().clone();
    let cache = rt.block_on(Cache::connect(&server.url())).unwrap();
    rt.shutdown_timeout(Duration::from_secs(1));
    let acme = cache.tenant("acme").unwrap();
    handle.block_on(async { acme.try_get_or_fetch(&REPORTS.key("x"), || ok("v")).await.unwrap() });
}

/// G8: types of the same name in two modules.
mod api {
    #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
    pub(crate) struct User {
        pub(crate) id: u32,
    }
}
mod db {
    #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
    pub(crate) struct User {
        pub(crate) id: u32,
        pub(crate) secret: String,
    }
}
#[tokio::test]
async fn types_of_one_name_in_two_modules_never_share_a_value() {
    const P: TtlProfile = TtlProfile::new("user", Duration::from_secs(60));
    const API: Keyspace<api::User> = P.of();
    const DB: Keyspace<db::User> = P.of();
    let server = Server::start();
    let acme = Cache::connect(&server.url()).await.unwrap().tenant("acme").unwrap();
    acme.set(&DB.key(42), db::User { id: 7, secret: "s".into() }).await.unwrap();
    assert!(acme.get(&API.key(42)).await.unwrap().is_none(), "db::User was read as api::User");
}

/// The password in an error.
#[test]
fn a_password_in_a_malformed_url_is_not_shown() {
    for url in [
        "redis://user:/hunter2@host:6379/0",
        "redis://user:12/hunter2@host",
        "redis://user:12?hunter2@host/0",
        "redis://user:?hunter2@host/0",
    ] {
        let error = Cache::builder().url(url).build().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A leader that is not polled any more: at most one lease period.
#[tokio::test]
async fn a_leader_that_is_polled_no_more_delays_by_one_lease_period() {
    let lease = Duration::from_millis(900);
    let cache = Cache::builder().lease(lease).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let mut leader =
        Box::pin(acme.try_get_or_fetch(&key, || async { std::future::pending::<Result<String, ()>>().await }));
    // Polled for two thirds of a period, then never again.
    let _ = tokio::time::timeout(Duration::from_millis(50), &mut leader).await;
    let follower = tokio::spawn({
        let acme = acme.clone();
        async move {
            acme.try_get_or_fetch(&REPORTS.key("x"), || ok("v")).await.unwrap();
            Instant::now()
        }
    });
    let _ = tokio::time::timeout(Duration::from_millis(400), &mut leader).await;
    let stopped = Instant::now();
    let done = follower.await.unwrap();
    let delay = done - stopped;
    assert!(delay < lease + Duration::from_millis(200), "{delay:?}, a lease is {lease:?}");
}

/// Two fetches that ask for each other's keys.
#[tokio::test]
async fn fetches_that_ask_for_each_other_wait_one_lease_period_at_most() {
    let cache = Cache::builder().lease(Duration::from_millis(300)).max_fetch(Duration::from_secs(2)).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let begun = Instant::now();
    let one = |mine: &'static str, other: &'static str| {
        let acme = acme.clone();
        async move {
            let inner = acme.clone();
            acme.try_get_or_fetch(&REPORTS.key(mine), || async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                inner.try_get_or_fetch(&REPORTS.key(other), || ok("inner")).await.map(|v| (*v).clone())
            })
            .await
            .unwrap();
        }
    };
    tokio::join!(one("a", "b"), one("b", "a"));
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?} (max_fetch 2 s)", begun.elapsed());
}

/// An invalidation from a thread without a runtime.
#[tokio::test]
async fn an_invalidation_outside_of_a_runtime_is_sent_by_the_next_call() {
    let server = Server::start();
    let cache = Cache::connect(&server.url()).await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    acme.set(&REPORTS.key("x"), "old".to_owned()).await.unwrap();
    let observer = Cache::builder().url(&server.url()).near_bytes(0).build().unwrap().tenant("acme").unwrap();
    let other = acme.clone();
    let outcome =
        std::thread::spawn(move || futures::executor::block_on(other.invalidate(&REPORTS.key("x")))).join().unwrap();
    assert_eq!(outcome, Invalidated::Pending);
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        acme.try_get_or_fetch(&REPORTS.key("x"), || ok("new")).await.unwrap();
        if observer.get(&REPORTS.key("x")).await.unwrap().is_none_or(|v| *v != "old") {
            return;
        }
    }
    panic!("5 s and 50 calls later the old value is still there");
}

/// G4 with Redis down: who comes while a key is fetched finds the near copy.
#[tokio::test]
async fn without_redis_a_hot_key_is_fetched_once_at_a_time() {
    let cache = Cache::builder().url("redis://127.0.0.1:1/").build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let calls = (0..200).map(|n| {
        let (acme, now, most) = (acme.clone(), &now, &most);
        async move {
            tokio::time::sleep(Duration::from_millis(n)).await;
            acme.try_get_or_fetch(&REPORTS.key("x"), || async {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(500)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, ()>("v".to_owned())
            })
            .await
            .unwrap();
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(most.load(Ordering::SeqCst), 1, "fetches of one key at a time");
}

/// Waiting for another process's fetch over a link of 5 ms, without a near tier.
#[tokio::test]
async fn waiting_for_another_process_uses_up_no_time_for_commands() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let builder = || Cache::builder().url(proxy.url()).op_timeout(Duration::from_secs(1));
    let make = || builder().near_bytes(0).build().unwrap();
    let (a, b) = (make(), make());
    let fetched = AtomicUsize::new(0);
    let slow = || async {
        fetched.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(3000)).await;
        Ok::<_, ()>("v".to_owned())
    };
    let (sa, sb) = (a.tenant("acme").unwrap(), b.tenant("acme").unwrap());
    let key = REPORTS.key("x");
    tokio::join!(async { sa.try_get_or_fetch(&key, slow).await.unwrap() }, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sb.try_get_or_fetch(&key, slow).await.unwrap()
    });
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
}

/// After `close` nothing connects again.
#[tokio::test]
async fn a_closed_cache_connects_no_more() {
    let server = Server::start();
    let cache = Cache::connect(&server.url()).await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let call = tokio::spawn({
        let acme = acme.clone();
        async move {
            acme.try_get_or_fetch(&REPORTS.key("x"), || async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok::<_, ()>("v".to_owned())
            })
            .await
            .unwrap()
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cache.close().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    call.await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let clients = server.cli(&["CLIENT", "LIST"]);
    assert_eq!(clients.lines().count(), 1, "{clients}");
}

/// `put` of an uncacheable `None` leaves the older value.
#[cached(ttl = 60, key_prefix = "maybe", tenant = global, cache = CACHE.get().unwrap())]
async fn maybe(id: u32) -> Option<u32> {
    Some(id)
}
static CACHE: std::sync::OnceLock<Cache> = std::sync::OnceLock::new();
#[tokio::test]
async fn putting_an_uncacheable_none_removes_the_older_value() {
    let _ = CACHE.set(Cache::in_memory());
    assert_eq!(maybe(1).await, Some(1));
    maybe::put(1, None).await.unwrap();
    assert_ne!(maybe::peek(1).await, Some(Some(1)), "the older value stays after `put` returned Ok");
}

/// A value whose Drop uses the cache.
static DROPS: std::sync::OnceLock<Scoped> = std::sync::OnceLock::new();
#[derive(serde::Serialize, serde::Deserialize)]
struct Noisy(Vec<u8>);
impl Drop for Noisy {
    fn drop(&mut self) {
        if let Some(s) = DROPS.get() {
            let key = NOISY.key("none");
            let mut get = Box::pin(s.get(&key));
            let _ = get.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}
const NOISY: Keyspace<Noisy> = TtlProfile::new("noisy", Duration::from_secs(60)).of();
#[test]
fn dropping_a_value_may_use_the_cache() {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let cache = Cache::builder().near_bytes(64 << 10).max_value(60 << 10).build().unwrap();
        let acme = cache.tenant("acme").unwrap();
        let _ = DROPS.set(acme.clone());
        futures::executor::block_on(async {
            for n in 0..2000 {
                acme.set(&NOISY.key(n), Noisy(vec![1; 100])).await.unwrap();
            }
            acme.set(&NOISY.key("big"), Noisy(vec![1; 20_000])).await.unwrap();
        });
        sender.send(()).unwrap();
    });
    receiver.recv_timeout(Duration::from_secs(5)).expect("deadlock");
}

/// Version, in process.
#[tokio::test]
async fn versions_are_told_apart_in_the_near_tier() {
    const V1: Keyspace<String> = REPORTS.with_version(1);
    const V2: Keyspace<String> = REPORTS.with_version(2);
    let acme = Cache::in_memory().tenant("acme").unwrap();
    acme.set(&V1.key("x"), "one".to_owned()).await.unwrap();
    assert!(acme.get(&V2.key("x")).await.unwrap().is_none());
}

/// A SET that was given up arrives after an invalidation returned.
struct Gate {
    port: u16,
    held: Arc<AtomicBool>,
    gen_: Arc<AtomicUsize>,
}
fn gate(to: u16) -> Gate {
    use std::io::{Read, Write};
    use std::net::*;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let held = Arc::new(AtomicBool::new(false));
    let gen_ = Arc::new(AtomicUsize::new(0));
    let (h, g) = (held.clone(), gen_.clone());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let mine = g.load(Ordering::SeqCst);
            let (h, g) = (h.clone(), g.clone());
            let (mut c, mut s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let mut b = [0; 65536];
                while let Ok(n) = c.read(&mut b) {
                    if n == 0 {
                        break;
                    }
                    // Held: connections from before `hold`. Their bytes arrive late, as after a retransmission.
                    while h.load(Ordering::SeqCst) && g.load(Ordering::SeqCst) > mine {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    if s.write_all(&b[..n]).is_err() {
                        break;
                    }
                }
                let _ = s.shutdown(Shutdown::Write);
            });
            let (mut c, mut s) = (client, server);
            std::thread::spawn(move || {
                let mut b = [0; 65536];
                while let Ok(n) = s.read(&mut b) {
                    if n == 0 || c.write_all(&b[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Gate { port, held, gen_ }
}
#[tokio::test]
async fn a_set_that_was_given_up_undoes_no_later_invalidation() {
    let server = Server::start();
    let gate = gate(server.port());
    let a = Cache::builder()
        .url(&format!("redis://127.0.0.1:{}/", gate.port))
        .near_bytes(0)
        .build()
        .unwrap()
        .tenant("acme")
        .unwrap();
    let b = Cache::builder()
        .url(&server.url())
        .near_bytes(0)
        .op_timeout(Duration::from_secs(5))
        .build()
        .unwrap()
        .tenant("acme")
        .unwrap();
    let key = REPORTS.key("x");
    assert!(a.get(&key).await.unwrap().is_none());
    assert!(b.get(&key).await.unwrap().is_none());
    gate.gen_.fetch_add(1, Ordering::SeqCst);
    gate.held.store(true, Ordering::SeqCst);
    for n in 0..2 {
        assert!(a.get(&REPORTS.key(("other", n))).await.unwrap_err().is_timeout());
    }
    assert!(a.set(&key, "old".to_owned()).await.unwrap_err().is_timeout());
    // The replay of `a` opens the breaker, reconnects and is heard.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(a.invalidate(&key).await, Invalidated::Applied);
    assert_eq!(b.invalidate(&key).await, Invalidated::Applied);
    gate.held.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (x, y) = (a.get(&key).await.unwrap(), b.get(&key).await.unwrap());
    assert!(x.is_none() && y.is_none(), "older than the invalidation: {x:?} {y:?}");
}

/// exists / get on a cached None, and of another type.
#[cached(ttl = 60, key = "{id}", key_prefix = "neg", tenant = global, negative_ttl = 60, cache = CACHE2.get().unwrap())]
async fn neg(id: u32) -> Option<u32> {
    let _ = id;
    None
}
static CACHE2: std::sync::OnceLock<Cache> = std::sync::OnceLock::new();
#[tokio::test]
async fn exists_says_what_get_says_of_a_cached_none() {
    let _ = CACHE2.set(Cache::in_memory());
    const NEG: Keyspace<u32> = TtlProfile::new("neg", Duration::from_secs(60)).of();
    assert_eq!(neg(1).await, None);
    let g = CACHE2.get().unwrap().global().unwrap();
    assert_eq!(g.get(&NEG.key(1)).await.unwrap().is_some(), g.exists(&NEG.key(1)).await.unwrap());
}

/// Duplicates in a batch.
#[tokio::test]
async fn a_key_twice_in_a_batch_is_fetched_once() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let calls = AtomicUsize::new(0);
    let keys = [REPORTS.key("a"), REPORTS.key("a")];
    let _ = acme
        .try_get_or_fetch_many(&keys, |_| {
            calls.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, ()>(Vec::<(cache_core::Key<String>, String)>::new()) }
        })
        .await
        .unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
/// Wrong password: attempts per call.
#[tokio::test]
async fn a_wrong_password_is_not_tried_on_every_call() {
    let server = Server::with_args(&["--requirepass", "right"]);
    let url = format!("redis://:wrong@127.0.0.1:{}/", server.port());
    let acme = Cache::builder().url(&url).near_bytes(0).min_idle(1).build().unwrap().tenant("acme").unwrap();
    let before: u64 = info(&server, "total_connections_received");
    let begun = Instant::now();
    for n in 0..100 {
        acme.try_get_or_fetch(&REPORTS.key(n), || ok("v")).await.unwrap();
    }
    let took = begun.elapsed();
    let after: u64 = info(&server, "total_connections_received");
    assert!(after - before < 30, "{} connections for 100 calls, {took:?}", after - before);
}
fn info(server: &Server, name: &str) -> u64 {
    server.cli(&["INFO"]).lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().parse().unwrap()
}

/// many keys, small op_timeout.
#[tokio::test]
async fn a_long_journal_is_heard_in_parts() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(20)).near_bytes(0).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let _ = acme.get(&REPORTS.key("x")).await;
    let keys: Vec<_> = (0..4000).map(|n| REPORTS.key(n)).collect();
    let _ = acme.invalidate_many(&keys).await;
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let fetched = AtomicUsize::new(0);
        for _ in 0..5 {
            acme.try_get_or_fetch(&REPORTS.key(1), || async {
                fetched.fetch_add(1, Ordering::SeqCst);
                Ok::<_, ()>("v".to_owned())
            })
            .await
            .unwrap();
        }
        if fetched.load(Ordering::SeqCst) <= 1 {
            return;
        }
    }
    panic!("15 s later still a must-miss on a healthy server");
}

/// A pattern that the server forbids must not hold up other pending invalidations.
#[tokio::test]
async fn an_invalidation_the_server_refuses_holds_up_no_other() {
    let server =
        Server::with_args(&["--user", "app", "on", ">pw", "~*", "&*", "+@all", "-scan"]).logged_in_as("app", "pw");
    let proxy = Proxy::start(&server);
    let url = server.url_at(proxy.port());
    let make = |url: &str| Cache::builder().url(url).near_bytes(0).min_idle(1).build().unwrap().tenant("acme").unwrap();
    let (mine, observer) = (make(&url), make(&server.url()));
    let key = REPORTS.key("x");
    observer.set(&key, "old".to_owned()).await.unwrap();
    assert!(mine.get(&key).await.unwrap().is_some());
    assert_eq!(mine.invalidate_pattern("other:a*b").await, Invalidated::Pending);
    proxy.refuse_connections();
    proxy.drop_connections();
    assert_eq!(mine.invalidate_keyspace(&REPORTS).await, Invalidated::Pending);
    proxy.accept_connections();
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if observer.get(&key).await.unwrap().is_none() {
            return;
        }
    }
    panic!("8 s after Redis is back the keyspace is still not invalidated");
}
#[tokio::test]
async fn asking_for_the_health_of_a_closed_cache_connects_no_more() {
    let server = Server::start();
    let cache = Cache::connect(&server.url()).await.unwrap();
    cache.close().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.cli(&["CLIENT", "LIST"]).lines().count(), 1);
}

/// The closure itself must not run on a hit.
#[tokio::test]
async fn the_closure_of_a_fetch_is_not_called_on_a_hit() {
    let server = Server::start();
    let acme = Cache::builder().url(&server.url()).near_bytes(0).build().unwrap().tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    let called = AtomicUsize::new(0);
    acme.try_get_or_fetch(&key, || {
        called.fetch_add(1, Ordering::SeqCst);
        ok("v")
    })
    .await
    .unwrap();
    assert_eq!(called.load(Ordering::SeqCst), 0);
}

/// G1 in the end. A SET gets no answer in time, or its caller is dropped; another process invalidates, which is acknowledged;
/// and then the SET arrives, just in time to be taken. It is undone.
#[tokio::test]
async fn a_set_that_arrives_after_its_caller_gave_up_does_not_stay() {
    for is_dropped in [false, true] {
        set_late(is_dropped).await;
    }
}

async fn set_late(is_dropped: bool) {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let builder = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(400));
    let acme = builder.near_bytes(0).connect().await.unwrap().tenant("acme").unwrap();
    let others = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).near_bytes(0);
    let others = others.connect().await.unwrap().tenant("acme").unwrap();
    let key = REPORTS.key("late");
    acme.set(&REPORTS.key("other"), "connects".to_owned()).await.unwrap();
    proxy.hold(support::Hold::Command("SET"));
    if is_dropped {
        tokio::select! {
            stored = acme.set(&key, "late".to_owned()) => panic!("{stored:?}"),
            () = proxy.until_arrived("SET", 1) => {}
        }
    } else {
        acme.set(&key, "late".to_owned()).await.unwrap_err();
    }
    assert!(others.invalidate(&key).await.is_applied());
    proxy.hold(support::Hold::None);
    let given_up = tokio::time::Instant::now();
    // Taken or not; either way it is not there for long.
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    while others.get(&key).await.unwrap().is_some() {
        assert!(given_up.elapsed() < Duration::from_secs(10), "it stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// G1. The reply to LEASE is lost with its connection, and LEASE is sent again. The key is invalidated. Then what was sent
/// first arrives once more, as from a network that held it up: it makes a lease, but none that the older fetch can FILL
/// under.
#[tokio::test]
async fn a_lease_that_arrives_again_after_an_invalidation_stores_nothing() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let long = Duration::from_secs(20);
    let make = async |url: &str| {
        let cache = Cache::builder().url(url).op_timeout(long).near_bytes(0).connect().await.unwrap();
        cache.tenant("acme").unwrap()
    };
    let (reader, writer) = (make(proxy.url()).await, make(&server.url()).await);
    let key = REPORTS.key("x");
    writer.set(&REPORTS.key("other"), "makes the generations".to_owned()).await.unwrap();
    server.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    server.cli(&["SLOWLOG", "RESET"]);
    proxy.spoil_next("LEASE", support::Spoil::Truncate);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (ends, end) = tokio::sync::oneshot::channel::<()>();
    let old = tokio::spawn({
        let (reader, key) = (reader.clone(), key.clone());
        async move {
            let fetch = || async move {
                begun.send(()).unwrap();
                end.await.unwrap();
                "old".to_owned()
            };
            reader.get_or_fetch(&key, fetch).await
        }
    });
    begins.await.unwrap();
    let mut connection = server.connect().unwrap();
    type Logged = Vec<(i64, i64, i64, Vec<Vec<u8>>, String, String)>;
    let log: Logged = redis::cmd("SLOWLOG").arg("GET").arg(100).query(&mut connection).unwrap();
    let is_lease = |words: &Vec<Vec<u8>>| {
        words[0].eq_ignore_ascii_case(b"EVALSHA") && words[2] == b"5" && words[4].ends_with(b"report:x~l")
    };
    // The newest comes first.
    let leases: Vec<_> = log.into_iter().map(|entry| entry.3).filter(is_lease).collect();
    assert_eq!(leases.len(), 2, "sent twice");
    assert!(writer.invalidate(&key).await.is_applied());
    let first = &leases[1];
    let mut again = redis::cmd("EVALSHA");
    for word in &first[1..] {
        again.arg(&word[..]);
    }
    again.query::<redis::Value>(&mut connection).unwrap();
    ends.send(()).unwrap();
    assert_eq!(*old.await.unwrap(), "old");
    assert_eq!(writer.get(&key).await.unwrap(), None);
}

/// 1. A `set` is given up on a runtime that stands idle from then on.
/// 2. A busy runtime sends the invalidation.
/// 3. Another process invalidates.
/// 4. The `set` arrives, still in time. It is undone all the same, from the busy runtime.
#[test]
fn a_set_that_was_given_up_on_an_idle_runtime_is_undone() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let busy = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let idle = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scope = |url: &str| {
        let cache = Cache::builder().url(url).near_bytes(0).op_timeout(Duration::from_secs(4)).build().unwrap();
        cache.tenant("acme").unwrap()
    };
    let (acme, others) = (scope(proxy.url()), scope(&server.url()));
    let key = REPORTS.key("x");
    busy.block_on(async {
        acme.get(&REPORTS.key("warm")).await.unwrap();
        others.get(&REPORTS.key("warm")).await.unwrap();
    });
    proxy.hold(Hold::Command("SET"));
    idle.block_on(async {
        drop(tokio::time::timeout(Duration::from_millis(100), acme.set(&key, "old".to_owned())).await)
    });
    let begun = Instant::now();
    let calls = async |until: Duration| {
        while begun.elapsed() < until {
            drop(tokio::time::timeout(Duration::from_millis(50), acme.get(&REPORTS.key("other"))).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    busy.block_on(async {
        calls(Duration::from_millis(2_000)).await;
        assert!(others.invalidate(&key).await.is_applied());
        assert!(others.get(&key).await.unwrap().is_none());
        proxy.hold(Hold::None);
        calls(Duration::from_millis(6_500)).await;
        assert_eq!(others.get(&key).await.unwrap(), None, "it stays, after an invalidation that was applied");
    });
    drop(idle);
}
