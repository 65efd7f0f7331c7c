//! G7: Redis absent, slow or wrong means slower, not broken; and it is used again as soon as it answers.

mod support;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Invalidated, Keyspace, Scoped, Status, TtlProfile};
use support::{Fault, Proxy, Server, Spoil};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
const OP_TIMEOUT: Duration = Duration::from_millis(200);

fn builder(url: &str) -> cache_core::Builder {
    Cache::builder().url(url).op_timeout(OP_TIMEOUT).min_idle(1)
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

/// Calls with keys of their own until Redis answers hits again. Returns how long the slowest call took.
async fn until_used_again(acme: &Scoped) -> Duration {
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for n in 0.. {
        assert!(begun.elapsed() < Duration::from_secs(15), "Redis is not used again");
        let key = REPORTS.key(("again", n));
        let call = Instant::now();
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
        slowest = slowest.max(call.elapsed());
        if acme.exists(&key).await.unwrap_or(false) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    slowest
}

/// A call pays one `op_timeout` over all its commands; after a few failures in a row about nothing.
async fn degrades(acme: &Scoped) {
    for n in 0..6 {
        let begun = Instant::now();
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(("down", n)), || fetched("v")).await.unwrap(), "v");
        // Generous for a loaded machine; a second timeout would be over it.
        assert!(begun.elapsed() < OP_TIMEOUT + Duration::from_millis(150), "call {n}: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    for n in 0..100 {
        acme.try_get_or_fetch(&REPORTS.key(("open", n)), || fetched("v")).await.unwrap();
    }
    assert!(begun.elapsed() < OP_TIMEOUT * 2, "the breaker is not open: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_that_is_killed_and_restarted_is_used_again() {
    let server = Server::start();
    let cache = builder(&server.url()).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    server.kill();
    degrades(&acme).await;
    assert!(acme.get(&REPORTS.key("unknown")).await.unwrap_err().is_unavailable());
    assert_eq!(acme.invalidate(&key).await, Invalidated::Pending);
    let health = cache.health().await;
    assert_eq!(health.status, Status::Degraded);
    assert!(health.error.unwrap().to_string().contains("refused"));
    assert!(cache.stats().profiles["report"].remote_errors > 0);
    server.restart();
    until_used_again(&acme).await;
}

#[tokio::test]
async fn a_server_that_hangs_costs_a_call_one_op_timeout_and_is_used_again() {
    let server = Server::start();
    let acme = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
    acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
    server.pause();
    degrades(&acme).await;
    server.resume();
    assert!(until_used_again(&acme).await < OP_TIMEOUT * 2);
}

#[tokio::test]
async fn a_half_open_connection_is_replaced() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = builder(proxy.url()).connect().await.unwrap().tenant("acme").unwrap();
    acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap();
    proxy.set(Fault::Swallow);
    degrades(&acme).await;
    proxy.set(Fault::None);
    until_used_again(&acme).await;
}

#[tokio::test]
async fn dropped_connections_cost_no_call_its_hit() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let builder = builder(proxy.url()).near_bytes(0).min_idle(5);
    // It is the hits that count, on a loaded machine, too.
    let cache = builder.op_timeout(Duration::from_secs(20)).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    for _ in 0..20 {
        proxy.drop_connections();
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("other")).await.unwrap(), "v");
    }
}

#[tokio::test]
async fn truncated_and_garbled_replies_lead_to_the_fetch_or_to_another_connection() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = builder(proxy.url()).near_bytes(0).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    for spoil in [Spoil::Truncate, Spoil::Garble, Spoil::Corrupt] {
        acme.set(&key, "v".to_owned()).await.unwrap();
        proxy.spoil_next("MGET", spoil);
        let value = acme.try_get_or_fetch(&key, || fetched("fetched")).await.unwrap();
        assert!(*value == "v" || *value == "fetched", "{spoil:?}: {value}");
        until_used_again(&acme).await;
        for command in ["EVALSHA", "MGET"] {
            proxy.spoil_next(command, spoil);
            let key = REPORTS.key((format!("{spoil:?}"), command));
            assert_eq!(*acme.try_get_or_fetch(&key, || fetched("f")).await.unwrap(), "f", "{spoil:?} of {command}");
        }
        until_used_again(&acme).await;
    }
}

/// While Redis is down a value is fetched once per key, process and three seconds, not once per call.
#[tokio::test]
async fn near_copies_carry_through_a_short_absence() {
    let server = Server::start();
    let acme = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
    server.kill();
    let fetches = AtomicUsize::new(0);
    for _ in 0..50 {
        let fetch = || {
            fetches.fetch_add(1, Ordering::SeqCst);
            fetched("v")
        };
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), fetch).await.unwrap(), "v");
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

/// G4 with Redis down: an upstream sees no more than the cap of one process, however many keys are asked for.
#[tokio::test]
async fn no_more_fetches_than_the_cap_run_while_the_server_is_down() {
    let server = Server::start();
    let acme = builder(&server.url()).fetch_cap(4).connect().await.unwrap().tenant("acme").unwrap();
    server.kill();
    let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (running, most) = (&running, &most);
    let calls = (0..100).map(|id| {
        let (acme, key) = (&acme, REPORTS.key(("cap", id)));
        async move {
            let nested = || async {
                // A call inside a fetch takes no second permit: four of these would otherwise block each other.
                acme.try_get_or_fetch(&REPORTS.key(("inner", id)), || fetched("inner")).await?;
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                fetched("v").await
            };
            acme.try_get_or_fetch(&key, nested).await
        }
    });
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

/// A cache belongs to no runtime: when the one that carried its connections is gone, the next call connects anew.
#[test]
fn a_cache_is_used_from_one_runtime_after_another() {
    let server = Server::start();
    let cache = builder(&server.url()).near_bytes(0).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    for round in 0..5 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let begun = Instant::now();
            if round == 0 {
                acme.set(&key, "v".to_owned()).await.unwrap();
            }
            assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v", "round {round}");
            assert!(begun.elapsed() < OP_TIMEOUT);
        });
    }
}

#[tokio::test]
async fn a_wrong_password_is_a_clear_error_that_does_not_show_it() {
    let server = Server::with_args(&["--requirepass", "right"]);
    for (url, says) in [
        (format!("redis://:hunter2@127.0.0.1:{}/", server.port()), "WRONGPASS"),
        (format!("redis://127.0.0.1:{}/", server.port()), "password"),
    ] {
        let error = builder(&url).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        assert!(error.to_string().contains(says) && error.to_string().contains("REDIS_PASSWORD"), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        // A cache that was built all the same fetches.
        let acme = builder(&url).build().unwrap().tenant("acme").unwrap();
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
    }
    let cache = builder(&format!("redis://127.0.0.1:{}/", server.port())).password("right").connect().await.unwrap();
    assert_eq!(cache.health().await.status, Status::Healthy);
    assert!(!format!("{:?}", builder("redis://:hunter2@host").password("hunter2")).contains("hunter2"));
}

#[tokio::test]
async fn a_full_server_is_a_clear_error_and_calls_fetch() {
    let server = Server::with_args(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    let acme = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
    let error = acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert!(error.to_string().contains("maxmemory"));
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
    // Invalidations of whole keyspaces free memory and work all the same.
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    assert!(acme.invalidate_all().await.is_applied());
    assert!(acme.invalidate(&REPORTS.key("x")).await.is_applied());
}

#[tokio::test]
async fn a_replica_is_a_clear_error_and_calls_fetch() {
    let server = Server::with_args(&["--replicaof", "127.0.0.1", "1"]);
    let acme = builder(&server.url()).build().unwrap().tenant("acme").unwrap();
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
    assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
    let error = acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Loading | ErrorKind::Unavailable), "{error:?}");
}

#[tokio::test]
async fn a_user_without_rights_is_a_clear_error_and_calls_fetch() {
    let server = Server::start();
    server.cli(&["ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection"]);
    let url = format!("redis://reader:pw@127.0.0.1:{}/", server.port());
    let acme = builder(&url).connect().await.unwrap().tenant("acme").unwrap();
    assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap(), "v");
    let error = acme.set(&REPORTS.key("x"), "v".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
}

/// The URL of nothing: connecting does not fail, and names what is wrong in `health`.
#[tokio::test]
async fn an_absent_server_is_no_error_at_start() {
    let server = Server::start();
    let url = server.url();
    server.kill();
    let cache = builder(&url).connect().await.unwrap();
    degrades(&cache.tenant("acme").unwrap()).await;
    server.restart();
    until_used_again(&cache.tenant("acme").unwrap()).await;
}

/// While a script keeps the server busy nobody knows whether there is a value, and a look says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_is_an_error_to_every_look_and_not_a_missing_value() {
    let server = Server::with_args(&["--lua-time-limit", "1"]);
    let cache = builder(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(20)).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    thread::scope(|scope| {
        scope.spawn(|| server.cli(&["EVAL", "while true do end", "0"]));
        while server.cli(&["PING"]) == "PONG" {
            thread::yield_now();
        }
        let looks = async {
            let results =
                [acme.get(&key).await.map(drop), acme.exists(&key).await.map(drop), acme.ttl(&key).await.map(drop)];
            let health = cache.health().await;
            (results, health)
        };
        let (results, health) = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(looks));
        server.cli(&["SCRIPT", "KILL"]);
        for result in results {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Server);
        }
        assert_eq!((health.status, health.connected), (Status::Degraded, true));
        assert!(health.error.unwrap().to_string().contains("BUSY"));
    });
    assert!(acme.exists(&key).await.unwrap());
}

/// Health says why a write is refused that asks for no right: too few replicas, and no memory.
#[tokio::test]
async fn health_says_why_a_server_takes_no_writes() {
    let server = Server::with_args(&["--min-replicas-to-write", "1"]);
    let cache = builder(&server.url()).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    assert_eq!(acme.invalidate(&REPORTS.key("x")).await, Invalidated::Pending);
    let health = cache.health().await;
    assert_eq!((health.status, health.connected), (Status::Degraded, true));
    assert!(health.error.unwrap().to_string().contains("NOREPLICAS"));
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(cache.health().await.status, Status::Healthy);

    let server = Server::with_args(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    let cache = builder(&server.url()).connect().await.unwrap();
    let error = cache.health().await.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
}
