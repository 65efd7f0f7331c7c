//! Two releases beside each other on one Redis: types that are renamed or moved, versions that are raised, a later format
//! of entries.

mod support;

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile, cached};
use support::Server;
use tokio::sync::Semaphore;

const PROFILE: TtlProfile = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0);
const NAME: &str = "cache:tenant:acme:report:x";

/// The type as the older release has it, and the newer one, where it has another name in another module.
mod old {
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    pub(crate) struct Report {
        pub(crate) id: u32,
    }
}
mod new {
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    pub(crate) struct Summary {
        pub(crate) id: u32,
    }
}

fn cache(server: &Server) -> Cache {
    let builder = Cache::builder().url(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(20));
    builder.min_idle(1).build().unwrap()
}

fn stored(server: &Server) -> Vec<u8> {
    redis::cmd("GET").arg(NAME).query(&mut server.connect().unwrap()).unwrap()
}

fn plant(server: &Server, entry: &[u8]) {
    redis::cmd("SET").arg(NAME).arg(entry).arg("PX").arg(60_000).exec(&mut server.connect().unwrap()).unwrap();
}

/// Version outranks type: the older binary knows the newer type's name as little as its version.
#[tokio::test]
async fn an_entry_of_a_newer_version_is_left_alone_whatever_its_type_is_called() {
    let server = Server::start();
    let (older, newer) = (cache(&server), cache(&server));
    let (old, new) = (older.tenant("acme").unwrap(), newer.tenant("acme").unwrap());
    let old_key = PROFILE.of::<old::Report>().with_version(1).key("x");
    let new_key = PROFILE.of::<new::Summary>().with_version(2).key("x");
    let fetches = AtomicUsize::new(0);
    for _ in 0..10 {
        let fetch = || async {
            fetches.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ()>(new::Summary { id: 2 })
        };
        assert_eq!(new.try_get_or_fetch(&new_key, fetch).await.unwrap().id, 2);
        let fetched = old.try_get_or_fetch(&old_key, || ready(Ok::<_, ()>(old::Report { id: 1 }))).await.unwrap();
        assert_eq!(fetched.id, 1);
    }
    assert_eq!(fetches.into_inner(), 1, "the older binary overwrote the newer entry");
    let stats = older.stats().profiles["report"].clone();
    assert!(stats.newer_version > 0 && stats.unusable == 0, "{stats:?}");
}

/// The generations of an entry are those of its tags, too, which the older binary does not name.
#[tokio::test]
async fn an_entry_of_a_newer_version_is_left_alone_however_many_tags_it_has() {
    let server = Server::start();
    let (older, newer) = (cache(&server), cache(&server));
    let (old, new) = (older.tenant("acme").unwrap(), newer.tenant("acme").unwrap());
    let old_key = PROFILE.of::<u32>().with_version(1).key("x");
    let new_key = PROFILE.of::<u32>().with_version(2).key("x").with_tags(["plan"]);
    let (mut fetches, mut older_fetches) = (0, 0);
    for _ in 0..5 {
        let fetched = new.get_or_fetch(&new_key, || {
            fetches += 1;
            ready(2)
        });
        assert_eq!(*fetched.await, 2);
        let fetched = old.get_or_fetch(&old_key, || {
            older_fetches += 1;
            ready(1)
        });
        assert_eq!(*fetched.await, 1);
    }
    assert_eq!((fetches, older_fetches), (1, 5), "the older binary overwrote the newer entry");
    assert!(older.stats().profiles["report"].newer_version > 0);
    // It counts no more once it is invalidated, nor does one that is damaged.
    assert!(new.invalidate_tag("plan").await.is_applied());
    assert_eq!(*new.get_or_fetch(&new_key, || ready(3)).await, 3);
    let mut damaged = stored(&server);
    damaged[28] ^= 1;
    plant(&server, &damaged);
    assert_eq!(*old.get_or_fetch(&old_key, || ready(4)).await, 4);
    assert_eq!(old.get(&old_key).await.unwrap().as_deref(), Some(&4));
}

/// 1. The newer binary holds the lease. 2. The older one waits for it. 3. The newer one stores its entry, which has a tag, and
///    the lease is gone. 4. The older one asks for the lease again.
#[tokio::test]
async fn an_entry_of_a_newer_version_that_appears_while_a_lease_is_waited_for_is_left_alone() {
    let server = Server::start();
    let (older, newer) = (cache(&server).tenant("acme").unwrap(), cache(&server).tenant("acme").unwrap());
    let key = PROFILE.of::<u32>().with_version(2).key("x").with_tags(["plan"]);
    newer.set(&key, 2).await.unwrap();
    let entry = stored(&server);
    assert!(newer.invalidate(&key).await.is_applied());
    let lease = format!("{NAME}~l");
    let old_key = PROFILE.of::<u32>().with_version(1).key("x");
    let (begun, end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let holder = tokio::spawn({
        let (older, key, begun, end) =
            (cache(&server).tenant("acme").unwrap(), old_key.clone(), begun.clone(), end.clone());
        async move {
            let fetch = || async {
                begun.add_permits(1);
                end.acquire().await.unwrap().forget();
                0
            };
            *older.get_or_fetch(&key, fetch).await
        }
    });
    begun.acquire().await.unwrap().forget();
    let waiting = tokio::spawn(async move { *older.get_or_fetch(&old_key, || ready(1)).await });
    let since = Instant::now();
    while !redis::cmd("GET").arg(&lease).query::<Vec<u8>>(&mut server.connect().unwrap()).unwrap().starts_with(b"L1") {
        assert!(since.elapsed() < Duration::from_secs(20), "nobody waits for the lease");
        tokio::task::yield_now().await;
    }
    plant(&server, &entry);
    server.cli(&["DEL", &lease]);
    assert_eq!(waiting.await.unwrap(), 1);
    assert_eq!(stored(&server), entry, "overwritten");
    end.add_permits(1);
    assert_eq!(holder.await.unwrap(), 0);
    assert_eq!(stored(&server), entry, "overwritten");
}

/// What `get` does not see is not there for `exists` and `ttl` either, and `touch` leaves it as it is.
#[tokio::test]
async fn an_entry_of_another_version_type_or_name_exists_for_its_own_readers_alone() {
    let server = Server::start();
    let acme = cache(&server).tenant("acme").unwrap();
    let key = PROFILE.of::<u32>().with_version(2).key("x");
    acme.set(&key, 1).await.unwrap();
    let before = stored(&server);
    for other in [PROFILE.of::<u32>().with_version(1).key("x"), PROFILE.of::<u32>().with_schema("cents").key("x")] {
        assert_eq!((acme.get(&other).await.unwrap(), acme.exists(&other).await.unwrap()), (None, false));
        assert_eq!((acme.ttl(&other).await.unwrap(), acme.touch(&other).await.unwrap()), (None, false));
    }
    let other = PROFILE.of::<String>().with_version(2).key("x");
    assert_eq!((acme.get(&other).await.unwrap(), acme.exists(&other).await.unwrap()), (None, false));
    assert!(!acme.touch(&other).await.unwrap());
    assert_eq!(stored(&server), before);
    assert!(acme.exists(&key).await.unwrap() && acme.touch(&key).await.unwrap());
    assert_ne!(stored(&server), before);
}

/// The companion `ttl` knows the type of what the function returns.
#[tokio::test]
async fn the_life_of_what_an_annotated_function_returned_is_told_to_it() {
    #[cached(profile = PROFILE, key = "{id}", tenant = "acme", cache = cache, skip(cache))]
    async fn load(cache: &Cache, id: &str) -> Result<Option<old::Report>, String> {
        Ok(Some(old::Report { id: u32::try_from(id.len()).unwrap() }))
    }
    let server = Server::start();
    let cache = cache(&server);
    assert_eq!(load::ttl(&cache, "x").await.unwrap(), None);
    load(&cache, "x").await.unwrap();
    assert!(load::ttl(&cache, "x").await.unwrap().is_some());
}

/// The near tier knows a given name, too.
#[tokio::test]
async fn values_of_two_schemas_are_two_in_memory() {
    let acme = Cache::in_memory().tenant("acme").unwrap();
    let (cents, euros) = (PROFILE.of::<u64>().with_schema("cents"), PROFILE.of::<u64>().with_schema("euros"));
    acme.set(&cents.key("x"), 5).await.unwrap();
    assert_eq!(acme.get(&euros.key("x")).await.unwrap(), None);
    assert_eq!(acme.get(&cents.key("x")).await.unwrap().as_deref(), Some(&5));
}

/// An entry of an older version is overwritten, whatever its type was called.
#[tokio::test]
async fn an_entry_of_an_older_version_is_a_miss_and_is_overwritten() {
    let server = Server::start();
    let acme = cache(&server).tenant("acme").unwrap();
    acme.set(&PROFILE.of::<old::Report>().with_version(1).key("x"), old::Report { id: 1 }).await.unwrap();
    let key = PROFILE.of::<new::Summary>().with_version(2).key("x");
    assert_eq!(acme.get(&key).await.unwrap(), None);
    assert_eq!(acme.get_or_fetch(&key, || ready(new::Summary { id: 2 })).await.id, 2);
    assert_eq!(acme.get(&key).await.unwrap().unwrap().id, 2);
}

#[tokio::test]
async fn a_type_with_a_schema_name_may_be_renamed_and_moved() {
    const OLD: Keyspace<old::Report> = PROFILE.of().with_schema("report");
    const NEW: Keyspace<new::Summary> = PROFILE.of().with_schema("report");
    const OTHER: Keyspace<new::Summary> = PROFILE.of().with_schema("another");
    const UNNAMED: Keyspace<new::Summary> = PROFILE.of();
    let server = Server::start();
    let acme = cache(&server).tenant("acme").unwrap();
    acme.set(&OLD.key("x"), old::Report { id: 7 }).await.unwrap();
    assert_eq!(acme.get(&NEW.key("x")).await.unwrap().as_deref(), Some(&new::Summary { id: 7 }));
    assert_eq!(acme.get(&OTHER.key("x")).await.unwrap(), None);
    assert_eq!(acme.get(&UNNAMED.key("x")).await.unwrap(), None);
    // With a near tier, too, which knows types by themselves.
    let near = Cache::connect(&server.url()).await.unwrap().tenant("acme").unwrap();
    assert_eq!(near.get(&OLD.key("x")).await.unwrap().as_deref(), Some(&old::Report { id: 7 }));
    assert_eq!(near.get(&NEW.key("x")).await.unwrap().as_deref(), Some(&new::Summary { id: 7 }));
}

#[tokio::test]
async fn the_attribute_names_a_schema() {
    #[cached(profile = PROFILE, key = "{id}", tenant = "acme", cache = cache, skip(cache), schema = "report")]
    async fn before(cache: &Cache, id: &str) -> old::Report {
        old::Report { id: u32::try_from(id.len()).unwrap() }
    }
    #[cached(profile = PROFILE, key = "{id}", tenant = "acme", cache = cache, skip(cache), schema = "report")]
    async fn after(cache: &Cache, id: &str) -> new::Summary {
        unreachable!("fetched by the older release: {id}")
    }
    let server = Server::start();
    let cache = cache(&server);
    assert_eq!(before(&cache, "x").await.id, 1);
    assert_eq!(after(&cache, "x").await.id, 1);
}

/// An entry in a format that a later release of this library writes: known by its first bytes alone.
fn of_a_later_format(entry: &[u8]) -> Vec<u8> {
    let mut entry = entry.to_vec();
    (entry[3], entry[23]) = (3, 3);
    // Nothing behind the first 24 bytes need be where it is now.
    entry.truncate(40);
    entry
}

#[tokio::test]
async fn an_entry_of_a_later_format_is_left_alone() {
    let server = Server::start();
    let cache = cache(&server);
    let acme = cache.tenant("acme").unwrap();
    let key = PROFILE.of::<old::Report>().key("x");
    acme.set(&key, old::Report { id: 1 }).await.unwrap();
    let later = of_a_later_format(&stored(&server));
    plant(&server, &later);
    for _ in 0..3 {
        assert_eq!(acme.get_or_fetch(&key, || ready(old::Report { id: 2 })).await.id, 2);
        assert_eq!((acme.get(&key).await.unwrap(), acme.exists(&key).await.unwrap()), (None, false));
        assert!(!acme.touch(&key).await.unwrap());
        assert_eq!(stored(&server), later);
    }
    let stats = cache.stats().profiles["report"].clone();
    assert!(stats.newer_version > 0 && stats.unusable == 0, "{stats:?}");
    // What is given, or invalidated, is newer than any entry.
    acme.set(&key, old::Report { id: 3 }).await.unwrap();
    assert_eq!(acme.get(&key).await.unwrap().unwrap().id, 3);
    plant(&server, &later);
    assert!(acme.invalidate(&key).await.is_applied());
    assert_eq!(acme.get_or_fetch(&key, || ready(old::Report { id: 4 })).await.id, 4);
    assert_eq!(acme.get(&key).await.unwrap().unwrap().id, 4);
    // One byte alone makes no later format.
    plant(&server, &[&b"CCE\x03"[..], &stored(&server)[4..]].concat());
    assert_eq!(acme.get_or_fetch(&key, || ready(old::Report { id: 5 })).await.id, 5);
    assert_eq!(acme.get(&key).await.unwrap().unwrap().id, 5);
}

/// 1. The newer binary holds the lease. 2. The older one reads a miss and waits for it. 3. The newer one stores, in its
///    format. 4. The older one asks for the lease again: granted, its FILL would overwrite the newer entry.
#[tokio::test]
async fn an_entry_of_a_later_format_that_appears_while_a_lease_is_waited_for_is_left_alone() {
    let server = Server::start();
    let key = PROFILE.of::<old::Report>().key("x");
    let scope = || cache(&server).tenant("acme").unwrap();
    let (newer, older) = (scope(), scope());
    newer.set(&key, old::Report { id: 1 }).await.unwrap();
    let later = of_a_later_format(&stored(&server));
    assert!(newer.invalidate(&key).await.is_applied());
    let (begun, end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let holder = tokio::spawn({
        let (key, begun, end) = (key.clone(), begun.clone(), end.clone());
        async move {
            let fetch = || async {
                begun.add_permits(1);
                end.acquire().await.unwrap().forget();
                old::Report { id: 2 }
            };
            newer.get_or_fetch(&key, fetch).await.id
        }
    });
    begun.acquire().await.unwrap().forget();
    let waiting = tokio::spawn(read(older, 3));
    let lease = format!("{NAME}~l");
    let begun = Instant::now();
    while !redis::cmd("GET").arg(&lease).query::<Vec<u8>>(&mut server.connect().unwrap()).unwrap().starts_with(b"L1") {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody waits for the lease");
        tokio::task::yield_now().await;
    }
    // What the newer binary's FILL does.
    plant(&server, &later);
    server.cli(&["DEL", &lease]);
    assert_eq!(waiting.await.unwrap(), 3);
    assert_eq!(stored(&server), later, "overwritten");
    end.add_permits(1);
    assert_eq!(holder.await.unwrap(), 2);
    assert_eq!(stored(&server), later, "overwritten");
}

async fn read(scope: Scoped, fetched: u32) -> u32 {
    scope.get_or_fetch(&PROFILE.of::<old::Report>().key("x"), || ready(old::Report { id: fetched })).await.id
}
