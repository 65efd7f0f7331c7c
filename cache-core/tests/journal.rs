//! An invalidation that Redis has not heard: this process forgets at once, and Redis hears of it when it answers.

mod support;

use std::{
    future::{Future, ready},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use support::{Fault, Proxy, Server};

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

/// A server that comes back with what it had lost: restarted from an older snapshot, or failed over.
#[tokio::test]
async fn what_was_acknowledged_lately_is_sent_again_after_a_reconnect() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let (mine, observer) = (acme(proxy.url(), 1_000).await, acme(&server.url(), 20_000).await);
    let key = REPORTS.key("x");
    observer.set(&key, "old".to_owned()).await.unwrap();
    server.cli(&["COPY", "cache:tenant:acme:report:x", "snapshot"]);
    assert!(mine.invalidate(&key).await.is_applied());
    // The old value is back, and the connection breaks: what a failover looks like.
    server.cli(&["COPY", "snapshot", "cache:tenant:acme:report:x"]);
    assert!(observer.get(&key).await.unwrap().is_some());
    proxy.drop_connections();
    let _ = mine.get(&REPORTS.key("other")).await;
    eventually_gone(&observer, &key).await;
}
