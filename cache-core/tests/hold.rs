//! The write fence: between an invalidation and a commit nobody stores the old row. And strict reads.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cache_core::{Builder, Cache, Key, Keyspace, Scoped, profiles::WORKFLOW_DEF};
use support::{Fault, Proxy, Server};

const WORKFLOWS: Keyspace<u64> = WORKFLOW_DEF.of();
const HOLD: Duration = Duration::from_millis(400);

/// With time enough for a machine that is busy: what is tested is not how fast it answers.
fn builder(url: &str) -> Builder {
    Cache::builder().url(url).op_timeout(Duration::from_secs(20))
}

async fn scopes(server: &Server) -> [Scoped; 3] {
    let near = builder(&server.url()).connect().await.unwrap();
    let strict = builder(&server.url()).near_bytes(0).connect().await.unwrap();
    [Cache::in_memory(), near, strict].map(|cache| cache.tenant("acme").unwrap())
}

/// The interleaving it is for: invalidate; a reader fetches the old row; commit; nobody invalidates again.
#[tokio::test]
async fn a_row_read_before_the_commit_is_not_served_after_it() {
    let server = Server::start();
    for scoped in scopes(&server).await {
        let row = AtomicU64::new(1);
        let key = WORKFLOWS.key("abc");
        let read = async || *scoped.get_or_fetch(&key, || async { row.load(Ordering::SeqCst) }).await;
        assert_eq!(read().await, 1);
        assert!(scoped.invalidate_and_hold(&key, HOLD).await.is_applied());
        assert_eq!((read().await, read().await), (1, 1), "functions go on");
        let batch = scoped
            .try_get_or_fetch_many(std::slice::from_ref(&key), async |keys| {
                Ok::<_, std::io::Error>(keys.into_iter().map(|key| (key, 1_u64)).collect::<Vec<_>>())
            })
            .await
            .unwrap();
        assert_eq!(batch[0].as_deref(), Some(&1));
        scoped.set(&key, 1_u64).await.unwrap();
        // Another's invalidation in between takes no fence down.
        assert!(scoped.invalidate(&key).await.is_applied());
        assert_eq!(read().await, 1);
        row.store(2, Ordering::SeqCst);
        assert_eq!(read().await, 2, "{scoped:?}");
    }
}

/// G4: once the fence has ended values are stored again; a shorter one does not shorten it.
#[tokio::test]
async fn a_fence_ends_by_itself_and_is_never_shortened() {
    let server = Server::start();
    for scoped in scopes(&server).await {
        let (key, fetches) = (WORKFLOWS.key("abc"), AtomicU64::new(0));
        let read = async || *scoped.get_or_fetch(&key, || async { fetches.fetch_add(1, Ordering::SeqCst) }).await;
        let held = tokio::time::Instant::now();
        assert!(scoped.invalidate_and_hold(&key, HOLD).await.is_applied());
        assert!(scoped.invalidate_and_hold(&key, Duration::from_millis(1)).await.is_applied());
        let stored = async || {
            let first = read().await;
            read().await == first
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        let kept = stored().await;
        // On a machine so slow that the fence ended meanwhile this says nothing.
        assert!(!kept || held.elapsed() > HOLD, "{scoped:?}");
        while !stored().await {
            assert!(held.elapsed() < HOLD * 20);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(held.elapsed() >= HOLD - Duration::from_millis(20), "{:?}", held.elapsed());
    }
}

/// Somebody else's, which this library would not have put up.
#[tokio::test]
async fn a_fence_without_an_end_is_given_none() {
    let no_scripts =
        ["--rename-command", "EVAL", "", "--rename-command", "EVALSHA", "", "--rename-command", "SCRIPT", ""];
    for args in [&[][..], &no_scripts] {
        let server = Server::with_args(args);
        let acme = builder(&server.url()).connect().await.unwrap().tenant("acme").unwrap();
        let fence = "cache:tenant:acme:workflow_def:abc~l";
        server.cli(&["SET", fence, "W"]);
        assert!(acme.invalidate_and_hold(&WORKFLOWS.key("abc"), HOLD).await.is_applied());
        let left: i64 = redis::cmd("PTTL").arg(fence).query(&mut server.connect().unwrap()).unwrap();
        assert_eq!(left, -1, "{args:?}");
    }
}

/// G1: the fetch began before the fence went up, and ends while it is up, or after.
#[tokio::test]
async fn a_fetch_under_way_when_the_fence_goes_up_is_not_stored() {
    let server = Server::start();
    for (n, scoped) in scopes(&server).await.into_iter().enumerate() {
        for hold in [Duration::from_secs(30), Duration::from_millis(1)] {
            let key = WORKFLOWS.key((n, hold.as_millis() as u64));
            let (begun, begins) = tokio::sync::oneshot::channel();
            let (ends, end) = tokio::sync::oneshot::channel::<()>();
            let old = tokio::spawn({
                let (scoped, key) = (scoped.clone(), key.clone());
                async move {
                    let fetch = || async move {
                        begun.send(()).unwrap();
                        end.await.unwrap();
                        1_u64
                    };
                    *scoped.get_or_fetch(&key, fetch).await
                }
            });
            begins.await.unwrap();
            assert!(scoped.invalidate_and_hold(&key, hold).await.is_applied());
            tokio::time::sleep(Duration::from_millis(20)).await;
            ends.send(()).unwrap();
            assert_eq!(old.await.unwrap(), 1);
            assert_eq!(*scoped.get_or_fetch(&key, || async { 2_u64 }).await, 2, "{scoped:?} {hold:?}");
        }
    }
}

/// G1 and G3 at home: the fence is up, Redis is gone before a call asks there, and what is fetched past it reads the old row.
#[tokio::test]
async fn a_fence_of_this_process_counts_while_redis_cannot_be_asked() {
    let (server, row) = (Server::start(), AtomicU64::new(1));
    let proxy = Proxy::start(&server);
    let scoped = builder(proxy.url()).connect().await.unwrap().tenant("acme").unwrap();
    let key = WORKFLOWS.key("abc");
    let read = async || *scoped.get_or_fetch(&key, || async { row.load(Ordering::SeqCst) }).await;
    assert_eq!(read().await, 1);
    assert!(scoped.invalidate_and_hold(&key, Duration::from_secs(60)).await.is_applied());
    proxy.refuse_connections();
    proxy.drop_connections();
    assert_eq!(read().await, 1);
    row.store(2, Ordering::SeqCst);
    assert_eq!(read().await, 2);
}

/// G1 and G3 at home. A batch reads; a hold is called and executed; the batch finds it pending for one key, so it does not ask
/// for that key's lease, and asks for the other's; the hold is acknowledged; the batch fetches under the fence; commit.
#[tokio::test]
async fn a_batch_that_overlaps_a_hold_keeps_nothing_under_its_fence() {
    let (server, row) = (Server::start(), Arc::new(AtomicU64::new(1)));
    let proxy = Proxy::start(&server);
    let cache = builder(proxy.url()).connect().await.unwrap();
    let scoped = cache.tenant("acme").unwrap();
    let keys = [WORKFLOWS.key("held"), WORKFLOWS.key("other")];
    let (returns, returned) = tokio::sync::watch::channel(false);
    proxy.reset();
    proxy.set(Fault::HoldRepliesTo("MGET"));
    // A task of its own: it is woken in the order of the replies, before the task that sends the invalidation.
    let batch = tokio::spawn({
        let (scoped, keys, row) = (scoped.clone(), keys.clone(), row.clone());
        async move {
            let fetch = |keys: Vec<Key<u64>>| {
                let (mut returned, row) = (returned.clone(), row.clone());
                async move {
                    returned.wait_for(|returned| *returned).await.unwrap();
                    let read = keys.into_iter().map(|key| (key, row.load(Ordering::SeqCst)));
                    Ok::<_, std::io::Error>(read.collect::<Vec<_>>())
                }
            };
            scoped.try_get_or_fetch_many(&keys, fetch).await.unwrap()
        }
    });
    proxy.until("MGET", 1).await;
    let holding = async {
        let held = scoped.invalidate_and_hold(&keys[0], Duration::from_secs(60)).await;
        returns.send_replace(true);
        held
    };
    let passing = async {
        proxy.until("EVALSHA", 1).await;
        proxy.set(Fault::None);
    };
    let (held, ()) = tokio::join!(holding, passing);
    let values = batch.await.unwrap();
    assert!(held.is_applied() && values.iter().all(|value| value.as_deref() == Some(&1)));
    row.store(2, Ordering::SeqCst);
    assert_eq!(*scoped.get_or_fetch(&keys[0], || async { row.load(Ordering::SeqCst) }).await, 2);
}

/// G1 on a full server: a script that has deleted may write.
#[tokio::test]
async fn a_full_server_takes_a_fence_all_the_same() {
    let server = Server::with_args(&["--maxmemory-policy", "noeviction"]);
    let scoped = Cache::connect(&server.url()).await.unwrap().tenant("acme").unwrap();
    let key = WORKFLOWS.key("abc");
    scoped.set(&key, 1_u64).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(server.cli(&["SET", "other", "x"]).contains("OOM"));
    assert!(scoped.invalidate_and_hold(&key, Duration::from_secs(60)).await.is_applied());
    assert_eq!(scoped.get(&key).await.unwrap(), None);
    assert_eq!(server.cli(&["GET", "cache:tenant:acme:workflow_def:abc~l"]), "W");
}

/// G2: a strict read never takes the near copy, another cache's invalidation is seen by the first read after it; the
/// other handle keeps its near copies.
#[tokio::test]
async fn a_strict_read_sees_an_invalidation_by_another_process_at_once() {
    let server = Server::start();
    let [_, here, there] = scopes(&server).await;
    let (strict, row) = (here.clone().strict(), AtomicU64::new(0));
    for round in 1..200 {
        let key = WORKFLOWS.key(round % 3);
        let fetch = || async { row.load(Ordering::SeqCst) };
        here.get_or_fetch(&key, fetch).await;
        row.store(round, Ordering::SeqCst);
        assert!(there.invalidate(&key).await.is_applied());
        assert_eq!(*strict.get_or_fetch(&key, fetch).await, round);
        there.set(&key, round + 1000).await.unwrap();
        assert_eq!(strict.get(&key).await.unwrap().as_deref(), Some(&(round + 1000)));
        let many = strict.get_many(std::slice::from_ref(&key)).await.unwrap();
        assert_eq!(many[0].as_deref(), Some(&(round + 1000)));
        assert!(there.invalidate_all().await.is_applied());
    }
}
