//! Beside a real Redis: the verbs, their round trips, and bytes that are not ours.

mod support;

use std::{collections::HashMap, time::Duration};

use cache_core::{Cache, Codec, Invalidated, Keyspace, Status, TtlProfile};
use serde::{Deserialize, Serialize};
use support::{Proxy, Server};

const PROFILE: TtlProfile = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0);
const REPORTS: Keyspace<String> = PROFILE.of();

/// A cache with no near tier: every read goes to the server.
async fn strict(url: &str) -> Cache {
    let cache = Cache::builder().url(url).near_bytes(0).op_timeout(Duration::from_secs(5));
    // One connection, so that no other one's handshake is counted as a round trip of ours.
    cache.min_idle(1).connect().await.unwrap()
}

fn fetched(value: &str) -> std::future::Ready<Result<String, ()>> {
    std::future::ready(Ok(value.to_owned()))
}

#[tokio::test]
async fn every_verb_does_what_it_says() {
    let server = Server::start();
    let acme = strict(&server.url()).await.tenant("acme").unwrap();
    let key = REPORTS.key("abc-456");
    assert_eq!(acme.get(&key).await.unwrap(), None);
    assert!(!acme.exists(&key).await.unwrap());
    assert!(!acme.touch(&key).await.unwrap());
    acme.set(&key, "v1".to_owned()).await.unwrap();
    assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "v1");
    assert!(acme.exists(&key).await.unwrap());
    let ttl = acme.ttl(&key).await.unwrap().unwrap();
    assert!(ttl <= Duration::from_secs(60) && ttl > Duration::from_secs(55), "{ttl:?}");
    server.cli(&["PEXPIRE", "cache:tenant:acme:report:abc-456", "5000"]);
    assert!(acme.touch(&key).await.unwrap());
    assert!(acme.ttl(&key).await.unwrap().unwrap() > Duration::from_secs(55));
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v2")).await.unwrap(), "v1");
    assert_eq!(acme.invalidate(&key).await, Invalidated::Applied);
    assert_eq!(*acme.try_get_or_fetch(&key, || fetched("v2")).await.unwrap(), "v2");
    assert_eq!(acme.invalidate_keyspace(&REPORTS).await, Invalidated::Applied);
    assert_eq!(acme.get(&key).await.unwrap(), None);
    acme.set(&key, "v3".to_owned()).await.unwrap();
    assert_eq!(acme.invalidate_all().await, Invalidated::Applied);
    assert!(!acme.exists(&key).await.unwrap());
}

/// A hit is one round trip, whoever else is there, and so is every other verb on one key.
#[tokio::test]
async fn a_hit_is_exactly_one_round_trip() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    acme.set(&key, "v".to_owned()).await.unwrap();
    for _ in 0..20 {
        proxy.reset();
        assert!(acme.get(&key).await.unwrap().is_some());
        assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
        proxy.reset();
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("other")).await.unwrap(), "v");
        assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
    }
    proxy.reset();
    acme.set(&key, "w".to_owned()).await.unwrap();
    assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
    proxy.reset();
    assert!(acme.exists(&key).await.unwrap());
    assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
    proxy.reset();
    assert!(acme.invalidate(&key).await.is_applied());
    assert_eq!(proxy.round_trips(), 1, "{:?}", proxy.trips());
    // A miss: READ, LEASE, FILL.
    proxy.reset();
    acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
    assert_eq!(proxy.round_trips(), 3, "{:?}", proxy.trips());
}

#[tokio::test]
async fn a_near_hit_is_no_round_trip() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let cache = Cache::builder().url(proxy.url()).min_idle(1).connect().await.unwrap();
    let acme = cache.tenant("acme").unwrap();
    let key = REPORTS.key("x");
    let begun = std::time::Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(5), "no copy is kept");
        acme.try_get_or_fetch(&key, || fetched("v")).await.unwrap();
        proxy.reset();
        assert!(acme.get(&key).await.unwrap().is_some());
        // The link, when it comes up, makes the near tier forget what came before it: once.
        if proxy.count("MGET") == 0 {
            break;
        }
    }
    assert!(cache.stats().profiles["report"].near_hits >= 1);
}

#[tokio::test]
async fn a_near_copy_does_not_outlive_its_entry_in_redis() {
    const SHORT: Keyspace<String> = TtlProfile::new("short", Duration::from_millis(700)).with_jitter(0.0).of();
    let server = Server::start();
    let writer = strict(&server.url()).await.tenant("acme").unwrap();
    let reader = Cache::connect(&server.url()).await.unwrap().tenant("acme").unwrap();
    let key = SHORT.key("x");
    let begun = std::time::Instant::now();
    writer.set(&key, "v".to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(reader.get(&key).await.unwrap().is_some());
    while reader.get(&key).await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_millis(1_000), "the near copy outlived its entry");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn many_keys_are_one_round_trip() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await.tenant("acme").unwrap();
    let keys: Vec<_> = (0..50).map(|id| REPORTS.key(id)).collect();
    let fetch = async |missing: Vec<_>| {
        assert_eq!(missing.len(), 50);
        Ok::<_, ()>(missing.into_iter().map(|key| (key, "v".to_owned())).collect::<Vec<_>>())
    };
    let values = acme.try_get_or_fetch_many(&keys, fetch).await.unwrap();
    assert!(values.iter().all(Option::is_some));
    proxy.reset();
    assert!(acme.get_many(&keys).await.unwrap().iter().all(Option::is_some));
    assert_eq!(proxy.round_trips(), 1);
    proxy.reset();
    assert_eq!(acme.invalidate_many(&keys).await, Invalidated::Applied);
    assert_eq!(proxy.round_trips(), 1);
    assert!(acme.get_many(&keys).await.unwrap().iter().all(Option::is_none));
}

/// More keys than one command carries: in input order all the same, and the commands travel together.
#[tokio::test]
async fn a_thousand_keys_are_read_in_order() {
    let server = Server::start();
    let proxy = Proxy::start(&server);
    let acme = strict(proxy.url()).await.tenant("acme").unwrap();
    let keys: Vec<_> = (0..1_000).map(|id| REPORTS.key(id)).collect();
    let fetch = async |missing: Vec<cache_core::Key<String>>| {
        let found = missing.into_iter().filter(|key| !key.identifier().ends_with('7'));
        Ok::<_, ()>(found.map(|key| (key.clone(), key.identifier().to_owned())).collect::<Vec<_>>())
    };
    acme.try_get_or_fetch_many(&keys, fetch).await.unwrap();
    proxy.reset();
    let values = acme.get_many(&keys).await.unwrap();
    for (id, value) in values.iter().enumerate() {
        assert_eq!(value.as_deref().cloned(), (id % 10 != 7).then(|| id.to_string()));
    }
    assert_eq!(proxy.count("MGET"), 8);
}

/// Concurrent reads are gathered; each gets its own answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gathered_reads_get_their_own_values() {
    let server = Server::start();
    let cache = strict(&server.url()).await;
    let scopes: Vec<_> = (0..4).map(|tenant| cache.tenant(tenant).unwrap()).collect();
    for (tenant, scope) in scopes.iter().enumerate() {
        for id in 0..50 {
            scope.set(&REPORTS.key(id), format!("{tenant}/{id}")).await.unwrap();
        }
    }
    let reads: Vec<_> = (0..2_000)
        .map(|n: usize| {
            let (tenant, id) = (n % 4, n / 4 % 60);
            let scope = scopes[tenant].clone();
            tokio::spawn(async move { (tenant, id, scope.get(&REPORTS.key(id)).await.unwrap()) })
        })
        .collect();
    for read in reads {
        let (tenant, id, value) = read.await.unwrap();
        assert_eq!(value.as_deref().cloned(), (id < 50).then(|| format!("{tenant}/{id}")));
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Workflow {
    name: String,
    steps: Vec<u32>,
}

#[tokio::test]
async fn values_of_either_codec_are_read_whatever_the_reader_writes() {
    let server = Server::start();
    let acme = strict(&server.url()).await.tenant("acme").unwrap();
    let value = Workflow { name: "deploy".into(), steps: vec![1, 2] };
    for (write, read) in [(Codec::Json, Codec::MessagePack), (Codec::MessagePack, Codec::Json)] {
        let key = |codec| PROFILE.of::<Workflow>().with_codec(codec).key("x");
        acme.set(&key(write), value.clone()).await.unwrap();
        assert_eq!(*acme.get(&key(read)).await.unwrap().unwrap(), value);
    }
}

/// What does not verify is a miss and a counter, and is overwritten: never an error, never stored for ever.
#[tokio::test]
async fn bytes_that_are_not_ours_are_counted_misses() {
    let server = Server::start();
    let cache = strict(&server.url()).await;
    let acme = cache.tenant("acme").unwrap();
    let other = cache.tenant("other").unwrap();
    let key = REPORTS.key("x");
    let name = "cache:tenant:acme:report:x";
    other.set(&key, "of another tenant".to_owned()).await.unwrap();
    acme.set(&REPORTS.key("y"), "of another key".to_owned()).await.unwrap();
    acme.set(&PROFILE.of::<u64>().key("z"), 7).await.unwrap();
    let plants: [&dyn Fn(); 8] = [
        &|| drop(server.cli(&["SET", name, "garbage"])),
        &|| drop(server.cli(&["SET", name, ""])),
        &|| drop(server.cli(&["RPUSH", name, "a", "list"])),
        &|| drop(server.cli(&["COPY", "cache:tenant:other:report:x", name])),
        &|| drop(server.cli(&["COPY", "cache:tenant:acme:report:y", name])),
        &|| drop(server.cli(&["COPY", "cache:tenant:acme:report:z", name])),
        &|| {
            // A byte of the payload flipped.
            drop(server.cli(&["SETRANGE", name, "121", "?"]));
        },
        &|| drop(server.cli(&["APPEND", name, "more"])),
    ];
    for (at, plant) in plants.iter().enumerate() {
        if at < 6 {
            server.cli(&["DEL", name]);
        }
        plant();
        assert_eq!(acme.get(&key).await.unwrap(), None, "plant {at}");
        assert_eq!(*acme.try_get_or_fetch(&key, || fetched("ours")).await.unwrap(), "ours", "plant {at}");
        assert_eq!(*acme.get(&key).await.unwrap().unwrap(), "ours", "plant {at}: overwritten");
        let left: i64 = server.cli(&["PTTL", name]).trim_start_matches("(integer) ").trim().parse().unwrap();
        assert!(left > 0 && left <= 60_000, "plant {at}: {left}");
    }
    assert!(cache.stats().profiles["report"].unusable >= 8);
    assert_eq!(*other.get(&key).await.unwrap().unwrap(), "of another tenant");
}

/// Two versions of a struct side by side, as in a rolling deploy.
#[tokio::test]
async fn an_older_binary_leaves_a_newer_entry_alone() {
    let server = Server::start();
    let old = Cache::connect(&server.url()).await.unwrap();
    let new = strict(&server.url()).await;
    let old_key = PROFILE.of::<String>().with_version(1).key("x");
    let new_key = PROFILE.of::<String>().with_version(2).key("x");
    let (old_scope, new_scope) = (old.tenant("acme").unwrap(), new.tenant("acme").unwrap());
    old_scope.set(&old_key, "v1".to_owned()).await.unwrap();
    // Older: a miss, overwritten.
    assert_eq!(*new_scope.try_get_or_fetch(&new_key, || fetched("v2")).await.unwrap(), "v2");
    // Newer: left alone. The older binary keeps its own in memory.
    for _ in 0..3 {
        assert_eq!(*old_scope.try_get_or_fetch(&old_key, || fetched("v1")).await.unwrap(), "v1");
        assert_eq!(*new_scope.get(&new_key).await.unwrap().unwrap(), "v2");
    }
    let stats = &old.stats().profiles["report"];
    assert_eq!((stats.fetches, stats.newer_version), (1, 1));
}

#[tokio::test]
async fn roots_keep_deployments_apart_on_one_server() {
    let server = Server::start();
    let at = async |root| {
        let cache = Cache::builder().url(&server.url()).root(root).connect().await.unwrap();
        cache.tenant("acme").unwrap()
    };
    let (prod, staging) = (at("prod").await, at("staging").await);
    let key = REPORTS.key("x");
    prod.set(&key, "p".to_owned()).await.unwrap();
    assert_eq!(staging.get(&key).await.unwrap(), None);
    assert!(staging.invalidate_pattern("*x").await.is_applied());
    assert_eq!(*prod.get(&key).await.unwrap().unwrap(), "p");
}

#[tokio::test]
async fn nothing_is_stored_without_an_end() {
    let server = Server::start();
    let acme = strict(&server.url()).await.tenant("R&D 50% *?[x]{y}").unwrap();
    for id in ["a", ":", "*", "é\n"] {
        acme.set(&REPORTS.key(id), id.to_owned()).await.unwrap();
        assert_eq!(*acme.get(&REPORTS.key(id)).await.unwrap().unwrap(), id);
        acme.try_get_or_fetch(&REPORTS.key((id, 1)), || fetched("v")).await.unwrap();
    }
    let mut connection = server.connect().unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    assert!(keys.len() >= 8);
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        assert!(left > 0, "{key} lives for ever");
    }
}

/// Generations and fences outlive the entries that depend on them.
#[tokio::test]
async fn generations_live_twice_as_long_as_the_longest_entry() {
    const LONG: Keyspace<String> = TtlProfile::new("long", Duration::from_secs(3600)).with_jitter(0.0).of();
    let server = Server::start();
    let acme = strict(&server.url()).await.tenant("acme").unwrap();
    acme.try_get_or_fetch(&LONG.key("x"), || fetched("v")).await.unwrap();
    acme.try_get_or_fetch(&REPORTS.key("x"), || fetched("v")).await.unwrap();
    let mut connection = server.connect().unwrap();
    let mut left = HashMap::new();
    for key in ["cache:tenant:acme:~g", "cache:tenant:acme:long:~g", "cache:tenant:acme:~f"] {
        left.insert(key, redis::cmd("PTTL").arg(key).query::<i64>(&mut connection).unwrap());
    }
    assert!(left.values().all(|left| *left > 7_100_000 && *left <= 7_200_000), "{left:?}");
}

#[tokio::test]
async fn health_tells_how_the_server_is() {
    let server = Server::start();
    let cache = Cache::connect(&server.url()).await.unwrap();
    let health = cache.health().await;
    assert_eq!(health.status, Status::Healthy);
    assert!(health.connected && health.latency.is_some() && health.used_memory.unwrap() > 0);
    assert!(health.server_version.is_some() && health.connected_clients.unwrap() > 0 && health.uptime.is_some());
    assert_eq!(Cache::in_memory().health().await.status, Status::InProcess);
}
