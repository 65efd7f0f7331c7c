//! What stands in Redis under our names is not what we put there: another type, other bytes, another tenant's entry,
//! another version's. It is a miss and a counter, it is overwritten, and it is never somebody else's value.

mod support;

use std::{
    future::ready,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use cache_core::{Cache, Key, Keyspace, Scoped, TtlProfile};
use support::Server;

const PROFILE: TtlProfile = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0);
const REPORTS: Keyspace<String> = PROFILE.of();
const NAME: &str = "cache:tenant:acme:report:x";
const LEASE: &str = "cache:tenant:acme:report:x~l";

fn strict(url: &str) -> Cache {
    Cache::builder().url(url).near_bytes(0).op_timeout(Duration::from_secs(20)).min_idle(1).build().unwrap()
}

fn fetched(row: &str) -> std::future::Ready<Result<String, ()>> {
    ready(Ok(row.to_owned()))
}

/// G6, types: a list under each of our names before each verb. Whatever the verb, it does what it says.
#[tokio::test]
async fn a_list_under_any_of_our_names_is_a_miss_for_every_verb() {
    let server = Server::start();
    let cache = strict(&server.url());
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let keys = [key.clone(), REPORTS.key("y")];
    let verbs =
        ["get", "get_many", "fetch", "fetch_many", "set", "touch", "exists", "key", "many", "sweep", "space", "all"];
    for name in [NAME, LEASE, "cache:tenant:acme:~g", "cache:tenant:acme:report:~g", "cache:tenant:acme:~f"] {
        for verb in verbs {
            let hint = format!("{verb} with a list at {name}");
            acme.set(&key, "ours".to_owned()).await.unwrap();
            server.cli(&["DEL", name]);
            server.cli(&["RPUSH", name, "a", "list"]);
            // Lease and fence are not looked at by who reads; without its generations a value is none.
            let kept = name == LEASE || name.ends_with("~f");
            let expected = kept.then_some("ours");
            let fetch = |keys: Vec<Key<String>>| {
                ready(Ok::<_, ()>(keys.into_iter().map(|key| (key, "new".to_owned())).collect::<Vec<_>>()))
            };
            match verb {
                "get" => assert_eq!(text(&acme.get(&key).await.unwrap()), expected, "{hint}"),
                "get_many" => assert_eq!(text(&acme.get_many(&keys).await.unwrap()[0]), expected, "{hint}"),
                "fetch" => {
                    let value = acme.try_get_or_fetch(&key, || fetched("new")).await.unwrap();
                    assert_eq!(*value, expected.unwrap_or("new"), "{hint}");
                }
                "fetch_many" => {
                    let values = acme.try_get_or_fetch_many(&keys, fetch).await.unwrap();
                    assert_eq!(text(&values[0]), expected.or(Some("new")), "{hint}");
                }
                "set" => {
                    acme.set(&key, "new".to_owned()).await.unwrap();
                    assert_eq!(text(&acme.get(&key).await.unwrap()), Some("new"), "{hint}");
                }
                "touch" => assert_eq!(acme.touch(&key).await.unwrap(), kept, "{hint}"),
                "exists" => assert_eq!(acme.exists(&key).await.unwrap(), kept, "{hint}"),
                _ => {
                    let outcome = match verb {
                        "key" => acme.invalidate(&key).await,
                        "many" => acme.invalidate_many(&keys).await,
                        "sweep" => acme.invalidate_pattern("report:x*").await,
                        "space" => acme.invalidate_keyspace(&REPORTS).await,
                        _ => acme.invalidate_all().await,
                    };
                    assert!(outcome.is_applied(), "{hint}");
                    assert_eq!(acme.get(&key).await.unwrap(), None, "{hint}");
                }
            }
            // And it heals: what is fetched next is stored.
            assert!(acme.invalidate(&key).await.is_applied());
            server.cli(&["DEL", name]);
            server.cli(&["RPUSH", name, "a", "list"]);
            assert_eq!(*acme.try_get_or_fetch(&key, || fetched("next")).await.unwrap(), "next", "{hint}");
            assert_eq!(text(&acme.get(&key).await.unwrap()), Some("next"), "{hint}: nothing is stored any more");
        }
    }
    assert_eq!(cache.stats().profiles["report"].remote_errors, 0);
}

fn text(value: &Option<std::sync::Arc<String>>) -> Option<&str> {
    value.as_deref().map(String::as_str)
}

/// G1 and G6, types: a list takes the place of a name while a value is fetched under a lease. FILL is refused where the
/// lease, a generation or the fence can no longer be compared; no call fails.
#[tokio::test]
async fn a_list_that_appears_during_a_fetch_is_no_error() {
    let server = Server::start();
    let cache = strict(&server.url());
    let acme = cache.tenant("acme").unwrap();
    for (n, name) in [NAME, LEASE, "cache:tenant:acme:~g", "cache:tenant:acme:report:~g", "cache:tenant:acme:~f"]
        .into_iter()
        .enumerate()
    {
        let key = REPORTS.key("x");
        assert!(acme.invalidate(&key).await.is_applied());
        let fetch = || async {
            server.cli(&["DEL", name]);
            server.cli(&["RPUSH", name, "a", "list"]);
            fetched("v").await
        };
        assert_eq!(*acme.try_get_or_fetch(&key, fetch).await.unwrap(), "v");
        let stored = acme.get(&key).await.unwrap();
        assert_eq!(text(&stored), (n == 0).then_some("v"), "{name}");
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap(), "v");
        assert_eq!(text(&acme.get(&key).await.unwrap()), Some("v"), "{name}: nothing is stored any more");
    }
    assert_eq!(cache.stats().profiles["report"].remote_errors, 0);
}

/// An entry as it stands in Redis.
fn stored(server: &Server, name: &str) -> Vec<u8> {
    redis::cmd("GET").arg(name).query(&mut server.connect().unwrap()).unwrap()
}

/// Plants bytes under [`NAME`] and reads them in every way; then somebody fetches and overwrites them.
async fn is_a_miss(acme: &Scoped, connection: &mut redis::Connection, bytes: &[u8], hint: &str) {
    let key = REPORTS.key("x");
    redis::cmd("SET").arg(NAME).arg(bytes).arg("PX").arg(60_000).exec(connection).unwrap();
    assert_eq!(acme.get(&key).await.unwrap(), None, "{hint}");
    assert_eq!(acme.get_many(&[key.clone(), REPORTS.key("none")]).await.unwrap(), [None, None], "{hint}");
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("fetched")).await.unwrap(), "fetched", "{hint}");
    assert_eq!(text(&acme.get(&key).await.unwrap()), Some("fetched"), "{hint}: not overwritten");
}

/// G8 and G6, bytes: each byte of an entry flipped, and each length of it that is too short; head, stamp, generations
/// and payload.
#[tokio::test]
async fn an_entry_with_any_byte_flipped_or_missing_is_a_miss_and_is_overwritten() {
    const GENERATIONS: std::ops::Range<usize> = 88..120;
    let server = Server::start();
    let cache = strict(&server.url());
    let acme = cache.tenant("acme").unwrap();
    let mut connection = server.connect().unwrap();
    acme.set(&REPORTS.key("x"), "payload of some length".to_owned()).await.unwrap();
    let whole = stored(&server, NAME);
    assert!(whole.len() > GENERATIONS.end + 10);
    let unusable = || cache.stats().profiles["report"].unusable;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let before = unusable();
        is_a_miss(&acme, &mut connection, &bytes, &format!("byte {at} is flipped")).await;
        // Other generations are those of an entry that was invalidated: no fault to be counted.
        assert_eq!(unusable() > before, !GENERATIONS.contains(&at), "byte {at}");
        let before = unusable();
        is_a_miss(&acme, &mut connection, &whole[..at], &format!("{at} bytes are left")).await;
        assert!(unusable() > before, "{at} bytes are left");
    }
    let longer = [&whole[..], &b"!"[..]].concat();
    is_a_miss(&acme, &mut connection, &longer, "a byte too many").await;
}

/// G8: another tenant's, key's or type's whole entry under our name, with our generations spliced in: all that is left
/// to tell them apart is what it was written for.
#[tokio::test]
async fn another_entry_under_our_generations_is_never_served() {
    let server = Server::start();
    let cache = strict(&server.url());
    let (acme, other) = (cache.tenant("acme").unwrap(), cache.tenant("other").unwrap());
    let mut connection = server.connect().unwrap();
    acme.set(&REPORTS.key("x"), "ours".to_owned()).await.unwrap();
    let ours = stored(&server, NAME);
    other.set(&REPORTS.key("x"), "of another tenant".to_owned()).await.unwrap();
    cache.global().unwrap().set(&REPORTS.key("x"), "of no tenant".to_owned()).await.unwrap();
    acme.set(&REPORTS.key("y"), "of another key".to_owned()).await.unwrap();
    let names = ["cache:tenant:other:report:x", "cache:report:x", "cache:tenant:acme:report:y"];
    let mut others = names.map(|name| (name, stored(&server, name))).to_vec();
    // The same bytes under the same key, of a type that reads them just as well.
    acme.set(&PROFILE.of::<Box<str>>().key("x"), Box::<str>::from("of another type")).await.unwrap();
    others.push(("another type", stored(&server, NAME)));
    for (name, mut bytes) in others {
        bytes[88..120].copy_from_slice(&ours[88..120]);
        is_a_miss(&acme, &mut connection, &bytes, name).await;
    }
    assert!(cache.stats().profiles["report"].unusable >= 4);
    redis::cmd("SET").arg(NAME).arg(&ours[..]).exec(&mut connection).unwrap();
    assert_eq!(text(&acme.get(&REPORTS.key("x")).await.unwrap()), Some("ours"), "the test plants what cannot be read");
}

/// A rolling deploy: two versions of a type take turns at one key, with and without near tiers, and somebody
/// invalidates now and then. The newer entry is stored once per invalidation and stays; the older binary fetches
/// and leaves it alone. Each reads its own version only.
#[tokio::test]
async fn two_versions_that_take_turns_do_not_overwrite_each_other_all_the_time() {
    const ROUNDS: u64 = 40;
    const INVALIDATIONS: u64 = 4;
    let server = Server::start();
    for near_bytes in [0, 1 << 20] {
        let binary = || {
            let builder =
                Cache::builder().url(&server.url()).near_bytes(near_bytes).op_timeout(Duration::from_secs(20));
            builder.min_idle(1).build().unwrap()
        };
        let (old, new) = (binary(), binary());
        let (older, newer) = (old.tenant("acme").unwrap(), new.tenant("acme").unwrap());
        let old_key = PROFILE.of::<String>().with_version(1).key(("deploy", near_bytes));
        let new_key = PROFILE.of::<String>().with_version(2).key(("deploy", near_bytes));
        let fetches = AtomicUsize::new(0);
        for round in 0..ROUNDS {
            if round % (ROUNDS / INVALIDATIONS) == 0 {
                let by_old = round % 20 == 0;
                let outcome = if by_old { older.invalidate(&old_key).await } else { newer.invalidate(&new_key).await };
                assert!(outcome.is_applied());
            }
            assert_eq!(*older.try_get_or_fetch(&old_key, || fetched("one")).await.unwrap(), "one", "round {round}");
            let fetch = || {
                fetches.fetch_add(1, Ordering::SeqCst);
                fetched("two")
            };
            assert_eq!(*newer.try_get_or_fetch(&new_key, fetch).await.unwrap(), "two", "round {round}");
            assert_eq!(text(&newer.get(&new_key).await.unwrap()), Some("two"), "round {round}: it does not stay");
        }
        let stats = |cache: &Cache| cache.stats().profiles["report"].clone();
        assert!(stats(&new).stored <= INVALIDATIONS && stats(&old).stored <= INVALIDATIONS, "{near_bytes}");
        assert!(fetches.into_inner() as u64 <= INVALIDATIONS, "the newer binary fetches again and again");
        assert_eq!(stats(&new).newer_version, 0);
        assert!(near_bytes > 0 || stats(&old).newer_version > 0, "the older binary never met the newer entry");
        assert!(near_bytes == 0 || stats(&old).fetches < ROUNDS / 2, "the older binary keeps no copy of its own");
    }
}
