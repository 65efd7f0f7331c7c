//! A server that is full or flushed: reads go on, nothing is stored that it has no room for, leases are given back.

mod support;

use std::{
    future::ready,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use cache_core::{Cache, ErrorKind, Keyspace, Scoped, TtlProfile};
use support::Server;
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// Time for a loaded machine: what is waited for comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

fn strict(url: &str) -> Scoped {
    leasing(url, PATIENCE)
}

fn leasing(url: &str, lease: Duration) -> Scoped {
    let builder = Cache::builder().url(url).op_timeout(PATIENCE).min_idle(1).near_bytes(0).lease(lease);
    builder.build().unwrap().tenant("acme").unwrap()
}

fn fetched(row: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(row.to_owned()))
}

/// G7 and G1 on a full server that evicts nothing: it answers what it holds, calls for other keys fetch and store
/// nothing, every invalidation is applied.
#[tokio::test]
async fn a_full_server_is_read_and_invalidated_and_nothing_is_stored_in_it() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let (acme, observer) = (strict(&server.url()), strict(&server.url()));
    for id in ["kept", "key", "many", "sweep-1", "set", "all"] {
        acme.set(&REPORTS.key(id), "old".to_owned()).await.unwrap();
    }
    // Generations and fence are there, as on any server in use.
    acme.try_get_or_fetch(&REPORTS.key("fetched"), || fetched("v")).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let stored = || server.cli(&["DBSIZE"]);
    let before = stored();
    let fetches = AtomicUsize::new(0);
    for n in 0..50 {
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("kept"), || fetched("new")).await.unwrap(), "old");
        let fetch = || {
            fetches.fetch_add(1, Ordering::SeqCst);
            fetched("v")
        };
        // One key again and again, and keys of their own.
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key("one"), fetch).await.unwrap(), "v");
        assert_eq!(*acme.try_get_or_fetch(&REPORTS.key(n), fetch).await.unwrap(), "v");
    }
    assert_eq!((stored(), fetches.into_inner()), (before, 100), "stored in a full server");
    // Neither the old value nor the new one, here and soon everywhere.
    let error = acme.set(&REPORTS.key("set"), "new".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert_eq!(acme.get(&REPORTS.key("set")).await.unwrap(), None);
    let begun = Instant::now();
    while observer.get(&REPORTS.key("set")).await.unwrap().is_some() {
        assert!(begun.elapsed() < PATIENCE, "the older value stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gone = async |id: &'static str| assert_eq!(observer.get(&REPORTS.key(id)).await.unwrap(), None, "{id}");
    assert!(acme.invalidate(&REPORTS.key("key")).await.is_applied());
    gone("key").await;
    assert!(acme.invalidate_many(&[REPORTS.key("many"), REPORTS.key("none")]).await.is_applied());
    gone("many").await;
    assert!(acme.invalidate_pattern("report:sweep*").await.is_applied());
    gone("sweep-1").await;
    assert!(observer.get(&REPORTS.key("all")).await.unwrap().is_some());
    assert!(acme.invalidate_keyspace(&REPORTS).await.is_applied());
    gone("all").await;
    assert!(acme.invalidate_all().await.is_applied());
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    acme.try_get_or_fetch(&REPORTS.key("one"), || fetched("v")).await.unwrap();
    assert!(observer.exists(&REPORTS.key("one")).await.unwrap(), "there is room again");
}

/// G5: the server becomes full while a value is fetched. FILL is refused, and the lease is given back: nobody waits
/// for what is left of it.
#[tokio::test]
async fn a_lease_is_given_back_when_there_is_no_room_for_the_value() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let key = REPORTS.key("x");
    let (leading, waiting) = (strict(&server.url()), strict(&server.url()));
    waiting.try_get_or_fetch(&REPORTS.key("other"), || fetched("v")).await.unwrap();
    let fetch = || async {
        server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        fetched("v").await
    };
    assert_eq!(*leading.try_get_or_fetch(&key, fetch).await.unwrap(), "v");
    let names = ["cache:tenant:acme:report:x", "cache:tenant:acme:report:x~l"];
    assert_eq!(server.cli(&["EXISTS", names[0]]), "0", "stored in a full server");
    assert_eq!(server.cli(&["EXISTS", names[1]]), "0", "the lease is kept");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    let begun = Instant::now();
    assert_eq!(*waiting.try_get_or_fetch(&key, || fetched("w")).await.unwrap(), "w");
    assert!(begun.elapsed() < PATIENCE / 2, "waited for the lease");
}

/// G1 and G5, one interleaving at a time: a value is fetched under a lease and another process waits; the server is
/// flushed; the row is written and invalidated; the fetch ends.
#[tokio::test]
async fn a_flush_in_the_middle_of_a_lease_makes_a_miss() {
    let server = Server::start();
    let lease = Duration::from_secs(2);
    let (one, two) = (leasing(&server.url(), lease), leasing(&server.url(), lease));
    for (n, command) in ["FLUSHALL", "FLUSHDB"].into_iter().enumerate() {
        let key = REPORTS.key(n);
        let (gate, began) = (Semaphore::new(0), Semaphore::new(0));
        let leading = one.try_get_or_fetch(&key, || async {
            began.add_permits(1);
            gate.acquire().await.unwrap().forget();
            fetched("old").await
        });
        let rest = async {
            began.acquire().await.unwrap().forget();
            let waiting = two.try_get_or_fetch(&key, || fetched("new"));
            let flush = async {
                // The waiting one has been told of the lease.
                let lease = format!("cache:tenant:acme:report:{n}~l");
                while server.cli(&["GETRANGE", &lease, "0", "1"]) != "L1" {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                server.cli(&[command]);
                assert!(two.invalidate(&key).await.is_applied());
            };
            let (waited, ()) = tokio::join!(waiting, flush);
            assert_eq!(*waited.unwrap(), "new", "{command}");
            gate.add_permits(1);
        };
        let (old, ()) = tokio::join!(leading, rest);
        assert_eq!(*old.unwrap(), "old", "its own call began before");
        let value = two.get(&key).await.unwrap();
        // Stored before the invalidation, the new value is gone, too.
        assert_ne!(value.as_deref().map(String::as_str), Some("old"), "{command}");
    }
}

/// G3 and the near tier on a full server, which refuses to queue any command: the link holds, and so do near copies,
/// long after they are served without it.
#[tokio::test]
async fn near_copies_outlive_the_bound_on_a_full_server() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let cache = Cache::builder().url(&server.url()).op_timeout(PATIENCE).connect().await.unwrap();
    let (acme, fetches) = (cache.tenant("acme").unwrap(), AtomicUsize::new(0));
    let read = async || {
        let fetch = || {
            fetches.fetch_add(1, Ordering::SeqCst);
            fetched("v")
        };
        acme.try_get_or_fetch(&REPORTS.key("x"), fetch).await.unwrap()
    };
    let mut reads = 0;
    let is_asked = |server: &Server| {
        let stats = server.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_mget:")).unwrap_or_default().to_owned();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse::<u64>().ok()).unwrap_or_default()
    };
    // Until a copy lives on the link's word.
    let begun = Instant::now();
    loop {
        read().await;
        let asked = is_asked(&server);
        tokio::time::sleep(Duration::from_millis(3_200)).await;
        read().await;
        if is_asked(&server) == asked {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "the link never comes up");
    }
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let asked = is_asked(&server);
    let full = Instant::now();
    while full.elapsed() < Duration::from_millis(6_500) {
        read().await;
        reads += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((is_asked(&server) - asked, fetches.into_inner()), (0, 1), "of {reads} reads");
}
