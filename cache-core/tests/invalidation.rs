//! G1 and G2 beside a real Redis: what was invalidated while it was fetched never comes back.

mod support;

use std::{sync::Arc, time::Duration};

use cache_core::{Cache, Invalidated, Keyspace, Scoped, TtlProfile};
use support::{Proxy, Server};
use tokio::sync::Semaphore;

const REPORTS: Keyspace<String> = TtlProfile::new("report", Duration::from_secs(60)).of();

async fn cache(url: &str) -> Cache {
    Cache::builder().url(url).op_timeout(Duration::from_secs(20)).connect().await.unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

/// What invalidates the key whose fetch is under way.
#[derive(Clone, Copy, Debug)]
enum How {
    Key,
    Many,
    Keyspace,
    Tenant,
    Pattern,
    Set,
}

const ALL: [How; 6] = [How::Key, How::Many, How::Keyspace, How::Tenant, How::Pattern, How::Set];

async fn invalidate(scope: &Scoped, how: How) {
    let key = REPORTS.key("x-1");
    let outcome = match how {
        How::Key => scope.invalidate(&key).await,
        How::Many => scope.invalidate_many(&[REPORTS.key("y"), key]).await,
        How::Keyspace => scope.invalidate_keyspace(&REPORTS).await,
        How::Tenant => scope.invalidate_all().await,
        How::Pattern => scope.invalidate_pattern("report:x*").await,
        How::Set => {
            scope.set(&key, "new".to_owned()).await.unwrap();
            Invalidated::Applied
        }
    };
    assert!(outcome.is_applied(), "{how:?}");
}

/// The interleaving: a fetch reads the old row; the row is written, and the cache invalidated, by this process or by
/// another one; calls arrive; the fetch ends and tries to store the old row.
async fn fetch_races_invalidation(how: How, same_process: bool) {
    let server = Server::start();
    let fetching = cache(&server.url()).await;
    // Another cache has its own near tier, flights and connections: all that makes a process, for Redis.
    let writing = if same_process { fetching.clone() } else { cache(&server.url()).await };
    let (fetching, writing) = (fetching.tenant("acme").unwrap(), writing.tenant("acme").unwrap());
    let key = REPORTS.key("x-1");
    let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let old = tokio::spawn({
        let (scope, key, gate, began) = (fetching.clone(), key.clone(), gate.clone(), began.clone());
        async move {
            let fetch = || async {
                let row = fetched("old").await;
                began.add_permits(1);
                gate.acquire().await.unwrap().forget();
                row
            };
            scope.try_get_or_fetch(&key, fetch).await
        }
    });
    began.acquire().await.unwrap().forget();
    invalidate(&writing, how).await;
    // From here on nobody gets the old row, wherever and however they ask.
    let later: Vec<_> = [&fetching, &writing]
        .into_iter()
        .map(|scope| {
            let (scope, key) = (scope.clone(), key.clone());
            tokio::spawn(async move { scope.try_get_or_fetch(&key, || fetched("new")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(30)).await;
    gate.add_permits(1);
    assert_eq!(*old.await.unwrap().unwrap(), "old", "{how:?}: its own call began before");
    for later in later {
        assert_eq!(*later.await.unwrap().unwrap(), "new", "{how:?} in the same process: {same_process}");
    }
    for scope in [&fetching, &writing] {
        assert_eq!(*scope.try_get_or_fetch(&key, || fetched("new")).await.unwrap(), "new", "{how:?}");
        assert_eq!(scope.get(&key).await.unwrap().as_deref(), Some(&"new".to_owned()), "{how:?}");
    }
}

#[tokio::test]
async fn an_invalidation_by_this_process_while_it_fetches_is_never_undone() {
    for how in ALL {
        fetch_races_invalidation(how, true).await;
    }
}

#[tokio::test]
async fn an_invalidation_by_another_process_while_this_one_fetches_is_never_undone() {
    for how in ALL {
        fetch_races_invalidation(how, false).await;
    }
}

/// The interleaving: a READ is answered with the old value and the answer is under way; this process invalidates; the
/// answer arrives and would be kept near.
#[tokio::test]
async fn an_old_answer_that_arrives_after_an_invalidation_is_not_kept() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = cache(proxy.url()).await.tenant("acme").unwrap();
    let other = cache(&server.url()).await.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    other.set(&key, "old".to_owned()).await.unwrap();
    proxy.reset();
    proxy.set(support::Fault::HoldRepliesTo("MGET"));
    let read = tokio::spawn({
        let (acme, key) = (acme.clone(), key.clone());
        async move { acme.get(&key).await.unwrap() }
    });
    proxy.until("MGET", 1).await;
    other.set(&key, "new".to_owned()).await.unwrap();
    let invalidating = tokio::spawn({
        let (acme, key) = (acme.clone(), key.clone());
        async move { acme.invalidate(&key).await }
    });
    proxy.until("EVALSHA", 1).await;
    proxy.set(support::Fault::None);
    // It began before: the old value is right, and so is none while the invalidation is pending here.
    assert!(read.await.unwrap().is_none_or(|value| *value == "old"));
    assert!(invalidating.await.unwrap().is_applied());
    assert_eq!(acme.get(&key).await.unwrap(), None);
}

/// A pattern never leaves its tenant, spares what it does not cover, and finds keys that end in a hash.
#[tokio::test]
async fn a_pattern_removes_what_it_covers_and_nothing_else() {
    let server = Server::start();
    let cache = cache(&server.url()).await;
    let (acme, other, none) = (cache.tenant("acme").unwrap(), cache.tenant("acme2").unwrap(), cache.global().unwrap());
    let long = format!("abc{}", "x".repeat(300));
    let ids = ["abc-1", "abc-2", "abd", "a*c", long.as_str(), "zabc"];
    for scope in [&acme, &other, &none] {
        for id in ids {
            scope.set(&REPORTS.key(id), id.to_owned()).await.unwrap();
        }
    }
    let left = async |scope: &Scoped| {
        let keys = ids.map(|id| REPORTS.key(id));
        scope.get_many(&keys).await.unwrap().iter().map(Option::is_some).collect::<Vec<_>>()
    };
    assert!(none.invalidate_pattern("*abc*").await.is_applied());
    assert_eq!(left(&none).await, [false, false, true, true, false, false]);
    assert_eq!(left(&acme).await, [true; 6]);
    assert!(acme.invalidate_pattern("report:abc*").await.is_applied());
    assert_eq!(left(&acme).await, [false, false, true, true, false, true]);
    assert_eq!(left(&other).await, [true; 6]);
    assert!(other.invalidate_pattern("report:*").await.is_applied());
    assert_eq!(left(&other).await, [false; 6]);
}

/// G3 within what holds without a backplane: another process forgets its near copy after three seconds.
#[tokio::test]
async fn another_process_serves_an_invalidated_value_for_three_seconds_at_most() {
    let server = Server::start();
    let reader = cache(&server.url()).await.tenant("acme").unwrap();
    let writer = cache(&server.url()).await.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    reader.try_get_or_fetch(&key, || fetched("old")).await.unwrap();
    assert!(writer.invalidate(&key).await.is_applied());
    let begun = std::time::Instant::now();
    loop {
        let value = reader.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        let elapsed = begun.elapsed();
        if *value == "new" {
            break;
        }
        assert!(elapsed <= Duration::from_secs(3), "{elapsed:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Losing any of our keys only makes misses (G6).
#[tokio::test]
async fn losing_keys_makes_misses_and_never_brings_an_old_value_back() {
    let server = Server::start();
    let acme =
        Cache::builder().url(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(20)).connect().await.unwrap();
    let acme = acme.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let lost =
        ["cache:tenant:acme:report:x", "cache:tenant:acme:~g", "cache:tenant:acme:report:~g", "cache:tenant:acme:~f"];
    for name in lost {
        acme.set(&key, "old".to_owned()).await.unwrap();
        acme.invalidate_keyspace(&REPORTS).await.is_applied().then_some(()).unwrap();
        acme.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
        server.cli(&["DEL", name]);
        let value = acme.try_get_or_fetch(&key, || fetched("newer")).await.unwrap();
        assert!(*value == "newer" || name.ends_with("~f") && *value == "new", "{name}: {value}");
        acme.invalidate(&key).await.is_applied().then_some(()).unwrap();
    }
    for command in [&["FLUSHALL"][..], &["SCRIPT", "FLUSH"]] {
        acme.set(&key, "v".to_owned()).await.unwrap();
        server.cli(command);
        assert!(acme.try_get_or_fetch(&key, || fetched("v")).await.is_ok());
        assert!(acme.set(&key, "w".to_owned()).await.is_ok());
        assert!(acme.invalidate_many(&[key.clone(), REPORTS.key("y")]).await.is_applied());
    }
}

/// More keys than the journal holds one by one: on a healthy server they are sent in parts, and nothing else of their keyspace
/// is removed.
#[tokio::test]
async fn ten_thousand_keys_are_invalidated_and_no_other() {
    let server = Server::start();
    let cache = Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).near_bytes(0);
    let acme = cache.connect().await.unwrap().tenant("acme").unwrap();
    let (one, bystander) = (REPORTS.key("9999"), REPORTS.key("bystander"));
    acme.set(&one, "old".to_owned()).await.unwrap();
    acme.set(&bystander, "kept".to_owned()).await.unwrap();
    let keys: Vec<_> = (0..10_000).map(|id| REPORTS.key(id)).collect();
    assert!(acme.invalidate_many(&keys).await.is_applied());
    assert_eq!(acme.get(&one).await.unwrap(), None);
    // Nothing is left that would be sent again.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(acme.get(&bystander).await.unwrap().is_some());
}
