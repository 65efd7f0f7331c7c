//! Tags: many values invalidated by a name they share, in both tiers, while fetches run, in one tenant only.

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use cache_core::{Cache, Key, Keyspace, profiles::WORKFLOW_DEF};
use support::{Fault, Proxy, Server};

const WORKFLOWS: Keyspace<u64> = WORKFLOW_DEF.of();

fn tagged(id: u64, tags: &[&str]) -> Key<u64> {
    WORKFLOWS.key(id).with_tags(tags)
}

async fn caches(server: &Server) -> [Cache; 2] {
    let near = Cache::connect(&server.url()).await.unwrap();
    let strict = Cache::builder().url(&server.url()).near_bytes(0).connect().await.unwrap();
    [near, strict]
}

/// G1, embedded and over Redis: what names the tag goes, the rest stays, other tenants stay.
#[tokio::test]
async fn a_tag_invalidates_what_names_it_in_its_tenant_and_nothing_else() {
    let server = Server::start();
    let [near, strict] = caches(&server).await;
    for cache in [Cache::in_memory(), near, strict] {
        let (acme, other) = (cache.tenant("acme").unwrap(), cache.tenant("other").unwrap());
        let (gold, both, plain) = (tagged(1, &["gold"]), tagged(2, &["eu", "gold"]), WORKFLOWS.key(3));
        for key in [&gold, &both, &plain] {
            acme.set(key, 1).await.unwrap();
            other.set(key, 1).await.unwrap();
        }
        assert_eq!(acme.get(&both).await.unwrap().as_deref(), Some(&1));
        assert!(acme.touch(&both).await.unwrap() && acme.exists(&both).await.unwrap());
        assert!(acme.invalidate_tag("gold").await.is_applied());
        let left = acme.get_many(&[gold.clone(), both.clone(), plain.clone()]).await.unwrap();
        assert_eq!(left.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true], "{cache:?}");
        assert!(!acme.exists(&both).await.unwrap() && !acme.touch(&both).await.unwrap());
        for key in [&gold, &both, &plain] {
            assert!(other.get(key).await.unwrap().is_some(), "{cache:?}");
        }
        acme.set(&both, 2).await.unwrap();
        assert!(acme.invalidate_tag("eu").await.is_applied());
        assert_eq!(acme.get(&both).await.unwrap(), None);
        cache.close().await;
    }
}

/// The order in which tags are named does not matter; which they are does.
#[tokio::test]
async fn a_value_is_found_by_the_same_tags_only() {
    let server = Server::start();
    let [near, strict] = caches(&server).await;
    for cache in [Cache::in_memory(), near, strict] {
        let acme = cache.tenant("acme").unwrap();
        acme.set(&tagged(1, &["a", "b"]), 1).await.unwrap();
        // Twice: from Redis, then from the near tier.
        for _ in 0..2 {
            assert_eq!(acme.get(&tagged(1, &["b", "a", "b"])).await.unwrap().as_deref(), Some(&1));
            assert_eq!(acme.get(&tagged(1, &["a", "c"])).await.unwrap(), None, "{cache:?}");
        }
        let fetched = acme.get_or_fetch(&tagged(1, &["a", "c"]), || async { 2_u64 }).await;
        assert_eq!(*fetched, 2);
        // Invalidating needs no tags.
        assert!(acme.invalidate(&WORKFLOWS.key(1_u64)).await.is_applied());
        assert_eq!(acme.get(&tagged(1, &["a", "c"])).await.unwrap(), None);
        cache.close().await;
    }
}

#[tokio::test]
async fn a_tag_that_cannot_be_used_is_named_and_the_fetch_runs() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let many: Vec<String> = (0..9).map(|n| n.to_string()).collect();
    for key in [tagged(1, &[""]), tagged(1, &["x".repeat(129).as_str()]), WORKFLOWS.key(1_u64).with_tags(many)] {
        let error = acme.get(&key).await.unwrap_err().to_string();
        assert!(error.contains("tag"), "{error}");
        assert_eq!(*acme.get_or_fetch(&key, || async { 5_u64 }).await, 5);
    }
    assert!(acme.invalidate_tag("").await.is_applied());
    // Invalidating needs no tags, so bad ones are no hindrance.
    let key = tagged(2, &["good"]);
    acme.set(&key, 2).await.unwrap();
    assert!(acme.invalidate(&tagged(2, &[""])).await.is_applied());
    assert_eq!(acme.get(&key).await.unwrap(), None);
}

/// G1 and G2: fetch begins, tag invalidated (in this process, in another), fetch ends: its value is not stored, and a
/// call after the invalidation returned does not wait for it.
#[tokio::test]
async fn a_fetch_that_began_before_a_tag_was_invalidated_is_never_stored() {
    let server = Server::start();
    let [near, strict] = caches(&server).await;
    let [here, there] = [near, strict].map(|cache| cache.tenant("acme").unwrap());
    let alone = Cache::in_memory().tenant("acme").unwrap();
    for (reader, invalidator) in [(&alone, &alone), (&here, &here), (&here, &there), (&there, &here)] {
        let key = tagged(7, &["plan"]);
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (ends, end) = tokio::sync::oneshot::channel::<()>();
        let old = tokio::spawn({
            let (reader, key) = (reader.clone(), key.clone());
            async move {
                let fetch = || async move {
                    begun.send(()).unwrap();
                    end.await.unwrap();
                    1_u64
                };
                reader.get_or_fetch(&key, fetch).await
            }
        });
        begins.await.unwrap();
        assert!(invalidator.invalidate_tag("plan").await.is_applied());
        // Neither waits for the old fetch nor gets its value.
        assert_eq!(*invalidator.get_or_fetch(&key, || async { 2_u64 }).await, 2);
        ends.send(()).unwrap();
        assert_eq!(*old.await.unwrap(), 1);
        assert_eq!(invalidator.get(&key).await.unwrap().as_deref(), Some(&2));
        assert!(invalidator.invalidate_tag("plan").await.is_applied());
    }
}

/// G3: near copies of another cache follow the notice; and while the server cannot be reached the tag is a must-miss here.
#[tokio::test]
async fn a_tag_reaches_the_near_copies_of_others_and_waits_in_the_journal_meanwhile() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let ours = Cache::connect(proxy.url()).await.unwrap();
    let theirs = Cache::connect(&server.url()).await.unwrap();
    let [here, there] = [&ours, &theirs].map(|cache| cache.tenant("acme").unwrap());
    let (key, fetches) = (tagged(1, &["plan"]), Arc::new(AtomicUsize::new(0)));
    let read = async |scoped: &cache_core::Scoped| {
        let fetch = || async { fetches.fetch_add(1, Ordering::SeqCst) as u64 };
        *scoped.get_or_fetch(&key, fetch).await
    };
    assert_eq!((read(&here).await, read(&there).await), (0, 0));
    assert!(here.invalidate_tag("plan").await.is_applied());
    let until_new = async |scoped: &cache_core::Scoped, at_least: u64| {
        while read(scoped).await < at_least {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(3), until_new(&there, 1)).await.unwrap();
    proxy.set(Fault::HoldReplies);
    assert!(!here.invalidate_tag("plan").await.is_applied());
    assert!(read(&here).await > 1, "what Redis may still hold is not asked for");
    proxy.set(Fault::None);
    tokio::time::timeout(std::time::Duration::from_secs(10), until_new(&there, 2)).await.unwrap();
}
