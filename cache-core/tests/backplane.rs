//! G3: what another process invalidates is forgotten here within a hop, and within three seconds whatever happens to
//! the link.

mod support;

use std::{
    future::ready,
    time::{Duration, Instant},
};

use cache_core::{Cache, Invalidated, Key, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server, child};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();
/// What G3 promises.
const BOUND: Duration = Duration::from_secs(3);

fn builder(url: &str) -> cache_core::Builder {
    Cache::builder().url(url).op_timeout(Duration::from_secs(20)).min_idle(1)
}

async fn acme(url: &str) -> Scoped {
    builder(url).connect().await.unwrap().tenant("acme").unwrap()
}

async fn read(scope: &Scoped, key: &Key<String>, row: &str) -> String {
    let value = scope.try_get_or_fetch(key, || ready(Ok::<_, ()>(row.to_owned()))).await.unwrap();
    (*value).clone()
}

/// Waits until near copies are vouched for: one that is older than the bound is still served.
async fn until_linked(scope: &Scoped, proxy: &Proxy) {
    let key = REPORTS.key("link");
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(20), "the link never comes up");
        read(scope, &key, "v").await;
        proxy.reset();
        tokio::time::sleep(BOUND + Duration::from_millis(100)).await;
        read(scope, &key, "v").await;
        if proxy.count("MGET") == 0 {
            return;
        }
    }
}

/// Reads until the new row is seen; returns how long the old one was served after the invalidation had returned.
async fn old_served_for(scope: &Scoped, key: &Key<String>, since: Instant) -> Duration {
    let mut last = Duration::ZERO;
    loop {
        // When the read began is what counts.
        let begun = since.elapsed();
        if read(scope, key, "new").await == "new" {
            return last;
        }
        last = begun;
        assert!(last <= BOUND, "{last:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_near_copy_lives_on_while_the_link_is_up_and_hears_of_every_invalidation() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (reader, writer) = (acme(proxy.url()).await, acme(&server.url()).await);
    until_linked(&reader, &proxy).await;
    for how in 0..5 {
        let key = REPORTS.key("x-1");
        assert_eq!(read(&reader, &key, "old").await, "old");
        let outcome = match how {
            0 => writer.invalidate(&key).await,
            1 => writer.invalidate_keyspace(&REPORTS).await,
            2 => writer.invalidate_all().await,
            3 => writer.invalidate_pattern("report:x*").await,
            _ => {
                writer.set(&key, "new".to_owned()).await.unwrap();
                Invalidated::Applied
            }
        };
        assert!(outcome.is_applied());
        let served = old_served_for(&reader, &key, Instant::now()).await;
        assert!(served < Duration::from_millis(500), "{how}: {served:?}");
        assert!(writer.invalidate(&key).await.is_applied());
        while reader.get(&key).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Half open both ways, held, cut: the word of the link runs out.
#[tokio::test]
async fn a_link_that_hears_nothing_serves_nothing_old_for_longer_than_the_bound() {
    let server = Server::start();
    let writer = acme(&server.url()).await;
    let faults = [Fault::Swallow, Fault::HoldReplies, Fault::Delay(Duration::from_secs(8))];
    let runs = faults.map(|fault| {
        let (server, writer) = (&server, &writer);
        async move {
            let proxy = Proxy::start(server);
            let cache = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(100)).min_idle(1);
            let reader = cache.connect().await.unwrap().tenant("acme").unwrap();
            until_linked(&reader, &proxy).await;
            let key = REPORTS.key(format!("{fault:?}"));
            assert_eq!(read(&reader, &key, "old").await, "old");
            proxy.set(fault);
            assert!(writer.invalidate(&key).await.is_applied());
            old_served_for(&reader, &key, Instant::now()).await;
        }
    });
    futures::future::join_all(runs).await;
}

/// The subscriber is killed and comes back: what it missed meanwhile is forgotten.
#[tokio::test]
async fn what_was_invalidated_while_the_subscriber_was_away_is_forgotten() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (reader, writer) = (acme(proxy.url()).await, acme(&server.url()).await);
    until_linked(&reader, &proxy).await;
    for round in 0..10 {
        let key = REPORTS.key(round);
        assert_eq!(read(&reader, &key, "old").await, "old");
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert!(writer.invalidate(&key).await.is_applied());
        old_served_for(&reader, &key, Instant::now()).await;
    }
}

/// A flushed server says nothing of what it lost; the missing sentinel does.
#[tokio::test]
async fn copies_of_a_flushed_server_are_forgotten() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let reader = acme(proxy.url()).await;
    until_linked(&reader, &proxy).await;
    let key = REPORTS.key("x");
    assert_eq!(read(&reader, &key, "old").await, "old");
    server.cli(&["FLUSHALL"]);
    old_served_for(&reader, &key, Instant::now()).await;
}

#[test]
fn paused_reader() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let reader = acme(&std::env::var("REDIS_URL").unwrap()).await;
        let key = REPORTS.key("x");
        // Long enough for the link to vouch, whatever a copy's own time is.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            read(&reader, &key, "old").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        child::report("linked");
        // Reads without a pause: the first one after the process goes on counts as much as any.
        loop {
            for _ in 0..1_000 {
                if read(&reader, &key, "new").await == "new" {
                    child::report("new");
                    return;
                }
            }
            tokio::task::yield_now().await;
            child::report("old");
        }
    });
}

/// The process is stopped for longer than lease and link, an invalidation passes it by, and it reads at once when it
/// goes on.
#[tokio::test]
async fn a_process_that_was_stopped_serves_nothing_old_when_it_goes_on() {
    let server = Server::start();
    let writer = acme(&server.url()).await;
    let mut reader = child::spawn("paused_reader", &[("REDIS_URL", &server.url())]);
    assert_eq!(reader.next_report(), "linked");
    assert_eq!(reader.next_report(), "old");
    reader.pause();
    assert!(writer.invalidate(&REPORTS.key("x")).await.is_applied());
    tokio::time::sleep(BOUND + Duration::from_secs(1)).await;
    // Lines it wrote before it was stopped are in the pipe; a thousand reads each, they end with the first after.
    reader.resume();
    let resumed = Instant::now();
    while reader.next_report() != "new" {
        assert!(resumed.elapsed() < Duration::from_secs(2), "old rows are served after the stop");
    }
}

/// While the link is up nobody polls for a lease: the holder's release wakes.
#[tokio::test]
async fn a_waiting_process_is_woken_and_does_not_poll() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (waiting, leading) = (acme(proxy.url()).await, acme(&server.url()).await);
    until_linked(&waiting, &proxy).await;
    let key = REPORTS.key("x");
    let fetch = || async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        Ok::<_, ()>("v".to_owned())
    };
    let leader = leading.try_get_or_fetch(&key, fetch);
    let waiter = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.reset();
        let value = read(&waiting, &key, "own").await;
        (value, Instant::now())
    };
    let (leader, (value, waited_until)) = tokio::join!(async { (leader.await.unwrap(), Instant::now()) }, waiter);
    assert_eq!((leader.0.as_str(), value.as_str()), ("v", "v"));
    assert!(waited_until.saturating_duration_since(leader.1) < Duration::from_millis(100));
    // One that finds it taken, one that finds the value; the heartbeat is a MULTI.
    assert_eq!(proxy.count("EVALSHA"), 2, "{:?}", proxy.trips());
}

/// A cache whose runtime ended links anew from the next one.
#[test]
fn the_link_moves_to_the_next_runtime() {
    let server = Server::start();
    let cache = builder(&server.url()).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            read(&acme, &REPORTS.key("other"), "v").await;
            read(&acme, &key, "v").await;
            let begun = Instant::now();
            while server.cli(&["PUBSUB", "NUMSUB", "cache:~n"]).lines().last() != Some("1") {
                assert!(begun.elapsed() < Duration::from_secs(5), "no subscription");
                tokio::time::sleep(Duration::from_millis(20)).await;
                // A near hit does not look after the link; a miss does.
                read(&acme, &REPORTS.key(begun.elapsed().as_nanos()), "v").await;
            }
        });
    }
}

/// 1. The link lives on one runtime.
/// 2. Nobody drives that runtime any more.
/// 3. Another runtime is busy: near copies are vouched for there again.
/// 4. The first one wakes up, and disturbs nobody.
#[test]
fn a_link_on_an_idle_runtime_is_taken_over_by_a_busy_one() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (idle, busy) = (runtime(), runtime());
    let (cache, reader) = idle.block_on(async {
        let builder = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(200)).min_idle(1);
        let cache = builder.connect().await.unwrap();
        let reader = cache.tenant("acme").unwrap();
        until_linked(&reader, &proxy).await;
        (cache, reader)
    });
    let asked = || {
        let stats = &cache.stats().profiles["report"];
        stats.remote_hits + stats.misses
    };
    busy.block_on(async {
        let (key, begun, mut last) = (REPORTS.key("x"), Instant::now(), Instant::now());
        while last.elapsed() <= BOUND + Duration::from_millis(100) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the link never comes up");
            let before = asked();
            read(&reader, &key, "v").await;
            if asked() > before {
                last = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let subscribers =
        || server.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().filter(|line| !line.is_empty()).count();
    let begun = Instant::now();
    while subscribers() > 1 {
        assert!(begun.elapsed() < Duration::from_secs(15), "two links");
        idle.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    }
    busy.block_on(async {
        let (writer, key) = (acme(&server.url()).await, REPORTS.key("x"));
        let before = asked();
        read(&reader, &key, "v").await;
        assert_eq!(asked(), before, "the old link took the new one's word along");
        assert!(writer.invalidate(&key).await.is_applied());
        old_served_for(&reader, &key, Instant::now()).await;
    });
}
