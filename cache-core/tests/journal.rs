//! An invalidation that Redis has not heard: this process forgets at once, and Redis hears of it when it answers.

mod support;

use std::{
    future::{Future, ready},
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server};
use tokio::runtime::{Builder, Runtime};

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();

async fn acme(url: &str, op_timeout: u64) -> Scoped {
    let builder = Cache::builder().url(url).op_timeout(Duration::from_millis(op_timeout)).near_bytes(0).min_idle(1);
    builder.connect().await.unwrap().tenant("acme").unwrap()
}

/// What a process that can always reach the server reads.
async fn eventually_gone(observer: &Scoped, key: &cache_core::Key<String>) {
    let begun = Instant::now();
    while observer.get(key).await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(15), "the invalidation never arrives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_pending_invalidation_is_a_miss_here_at_once_and_everywhere_once_the_server_is_reached() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (acme(proxy.url(), 200).await, acme(&server.url(), 20_000).await);
    let keys = ["x-1", "x-2", "x-3"].map(|id| REPORTS.key(id));
    for (at, key) in keys.iter().enumerate() {
        observer.set(key, "old".to_owned()).await.unwrap();
        assert!(mine.get(key).await.unwrap().is_some());
        proxy.refuse_connections();
        proxy.drop_connections();
        let outcome = match at {
            0 => mine.invalidate(key).await,
            1 => mine.invalidate_pattern("report:x*").await,
            _ => mine.invalidate_all().await,
        };
        assert_eq!(outcome, Invalidated::Pending, "{at}");
        // The server still holds the old value; this process does not ask it.
        assert!(observer.get(key).await.unwrap().is_some());
        assert_eq!(mine.get(key).await.unwrap(), None, "{at}");
        assert_eq!(mine.ttl(key).await.unwrap(), None, "{at}");
        let fetched = mine.try_get_or_fetch(key, || ready(Ok::<_, ()>("new".to_owned()))).await.unwrap();
        assert_eq!(*fetched, "new", "{at}");
        proxy.accept_connections();
        eventually_gone(&observer, key).await;
        let begun = Instant::now();
        while mine.try_get_or_fetch(key, || ready(Ok::<_, ()>("new".to_owned()))).await.is_ok()
            && observer.get(key).await.unwrap().is_none()
        {
            assert!(begun.elapsed() < Duration::from_secs(15), "the key is never cached again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The future is dropped after one poll, before anything was sent.
#[tokio::test]
async fn a_dropped_invalidation_is_sent_all_the_same() {
    let server = Server::start();
    let (mine, observer) = (acme(&server.url(), 20_000).await, acme(&server.url(), 20_000).await);
    let key = REPORTS.key("x");
    observer.set(&key, "old".to_owned()).await.unwrap();
    {
        let mut invalidating = std::pin::pin!(mine.invalidate(&key));
        assert!(invalidating.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    eventually_gone(&observer, &key).await;
}

/// Stored or not: a `set` that got no answer leaves no older value behind.
#[tokio::test]
async fn a_set_without_an_answer_invalidates() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (acme(proxy.url(), 200).await, acme(&server.url(), 20_000).await);
    let key = REPORTS.key("x");
    observer.set(&key, "old".to_owned()).await.unwrap();
    proxy.set(Fault::Swallow);
    assert!(mine.set(&key, "new".to_owned()).await.unwrap_err().is_unavailable());
    assert_eq!(mine.get(&key).await.unwrap(), None);
    proxy.set(Fault::None);
    eventually_gone(&observer, &key).await;
}

/// A server that was a replica for a moment, in the same run, and holds what its primary held.
#[tokio::test]
async fn what_was_acknowledged_lately_is_sent_again_to_a_server_that_was_a_replica_meanwhile() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (acme(proxy.url(), 1_000).await, acme(&server.url(), 20_000).await);
    let key = REPORTS.key("x");
    observer.set(&key, "old".to_owned()).await.unwrap();
    server.cli(&["COPY", "cache:tenant:acme:report:x", "snapshot"]);
    assert!(mine.invalidate(&key).await.is_applied());
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    server.cli(&["COPY", "snapshot", "cache:tenant:acme:report:x"]);
    assert!(observer.get(&key).await.unwrap().is_some());
    proxy.drop_connections();
    eventually_gone(&observer, &key).await;
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// 1. An invalidation is pending, and the task that sends it again lives on one runtime.
/// 2. Nobody drives that runtime any more.
/// 3. The server is reached again, and another runtime is busy with other keys.
#[test]
fn what_is_pending_on_an_idle_runtime_is_sent_from_a_busy_one() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (idle, busy) = (runtime(), runtime());
    let (key, other) = (REPORTS.key("x"), REPORTS.key("other"));
    let observer = busy.block_on(acme(&server.url(), 20_000));
    busy.block_on(observer.set(&key, "old".to_owned())).unwrap();
    let mine = idle.block_on(async {
        let mine = acme(proxy.url(), 200).await;
        proxy.refuse_connections();
        proxy.drop_connections();
        assert_eq!(mine.invalidate(&key).await, Invalidated::Pending);
        mine
    });
    proxy.accept_connections();
    busy.block_on(async {
        let begun = Instant::now();
        while observer.get(&key).await.unwrap().is_some() {
            assert!(begun.elapsed() < Duration::from_secs(15), "the invalidation never arrives");
            let _ = mine.get(&other).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // The task of the idle runtime wakes up, finds that another one took its place, and disturbs nobody.
    proxy.reset();
    idle.block_on(async { tokio::time::sleep(Duration::from_millis(300)).await });
    assert_eq!(proxy.count("INVALIDATE"), 0);
}

/// How many values there are in this process.
static VALUES: AtomicUsize = AtomicUsize::new(0);

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(from = "u8")]
struct Counted(u8);

/// One that is decoded counts, too.
impl From<u8> for Counted {
    fn from(_: u8) -> Self {
        Self::new()
    }
}

impl Counted {
    fn new() -> Self {
        VALUES.fetch_add(1, Ordering::SeqCst);
        Self(7)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        VALUES.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The caller is done with the cache before Redis has heard: what is pending is sent all the same, and the values kept in
/// this process do not wait for that.
#[tokio::test]
async fn what_is_pending_outlives_the_last_clone_of_the_cache() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let observer = acme(&server.url(), 20_000).await;
    let (key, kept) = (REPORTS.key("x"), TtlProfile::new("kept", Duration::from_secs(60)).of().key("y"));
    observer.set(&key, "old".to_owned()).await.unwrap();
    // All connections of the observer are there, those for transactions too.
    for id in 0..32 {
        observer.touch(&REPORTS.key(id)).await.unwrap();
    }
    let clients = || server.cli(&["CLIENT", "LIST"]).lines().count();
    let others = clients();
    {
        let cache = Cache::builder().url(proxy.url()).op_timeout(Duration::from_millis(200)).min_idle(1);
        let mine = cache.connect().await.unwrap().tenant("acme").unwrap();
        mine.try_get_or_fetch(&kept, || ready(Ok::<_, ()>(Counted::new()))).await.unwrap();
        assert_eq!(VALUES.load(Ordering::SeqCst), 1, "it is kept near");
        proxy.refuse_connections();
        proxy.drop_connections();
        assert_eq!(mine.invalidate(&key).await, Invalidated::Pending);
    }
    let begun = Instant::now();
    while VALUES.load(Ordering::SeqCst) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(15), "values are kept for nobody");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    proxy.accept_connections();
    eventually_gone(&observer, &key).await;
    let begun = Instant::now();
    while clients() > others {
        assert!(begun.elapsed() < Duration::from_secs(15), "the dropped cache keeps its connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A `set` without an answer, whose caller is done with the cache: what the server stores late is removed all the same.
#[tokio::test]
async fn a_set_without_an_answer_is_undone_after_the_last_clone_of_the_cache() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let observer = acme(&server.url(), 20_000).await;
    let key = REPORTS.key("x");
    {
        let mine = acme(proxy.url(), 200).await;
        proxy.set(Fault::HoldReplies);
        assert!(mine.set(&key, "late".to_owned()).await.unwrap_err().is_unavailable());
    }
    proxy.set(Fault::None);
    eventually_gone(&observer, &key).await;
}

/// `close` ends what is pending, too: the process is about to end, and says so.
#[tokio::test]
async fn a_closed_cache_sends_nothing_that_was_pending() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (observer, key) = (acme(&server.url(), 20_000).await, REPORTS.key("x"));
    observer.set(&key, "old".to_owned()).await.unwrap();
    let cache = Cache::builder().url(proxy.url()).near_bytes(0).min_idle(1).connect().await.unwrap();
    let mine = cache.tenant("acme").unwrap();
    proxy.refuse_connections();
    proxy.drop_connections();
    assert_eq!(mine.invalidate(&key).await, Invalidated::Pending);
    cache.close().await;
    let accepted = proxy.accepted();
    proxy.accept_connections();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(observer.get(&key).await.unwrap().as_deref().map(String::as_str), Some("old"));
    assert_eq!(proxy.accepted(), accepted, "nobody connects any more");
}
