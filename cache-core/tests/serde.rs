//! Types whose serde does not bring back what it wrote: what the log says of them, and what it does not.

mod support;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use cache_core::{Cache, CacheValue, Codec, Keyspace, Scoped, TtlProfile};
use serde::{Deserialize, Deserializer, Serialize};
use support::{Server, log};
use tracing::Level;

const HOUR: Duration = Duration::from_secs(3600);

/// Two processes at one server.
fn two(server: &Server) -> [(Cache, Scoped); 2] {
    let cache = || Cache::builder().url(&server.url()).op_timeout(Duration::from_secs(20)).build().unwrap();
    [cache(), cache()].map(|cache| {
        let scope = cache.tenant("acme").unwrap();
        (cache, scope)
    })
}

/// Stores two values and reads them elsewhere. What was logged about the profile, and how many reads found nothing.
async fn logged<T: CacheValue>(server: &Server, keys: Keyspace<T>, value: impl Fn() -> T) -> (Vec<String>, u64) {
    log::collect();
    let [(_, writes), (reader, reads)] = two(server);
    for id in ["a", "b"] {
        writes.set(&keys.key(id), value()).await.unwrap();
        let _ = reads.get(&keys.key(id)).await.unwrap();
    }
    (log::lines(Level::WARN, &format!("profile {},", keys.profile().name())), reader.stats().total.unusable)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all(deserialize = "camelCase"))]
struct Renamed {
    user_name: String,
}

#[tokio::test]
async fn a_type_that_does_not_read_what_it_writes_is_named_once_by_writer_and_reader() {
    let server = Server::start();
    let keys: Keyspace<Renamed> = TtlProfile::new("renamed", HOUR).of();
    let (lines, unusable) = logged(&server, keys, || Renamed { user_name: "hunter2".to_owned() }).await;
    assert_eq!(unusable, 2);
    assert_eq!(lines.len(), if cfg!(debug_assertions) { 2 } else { 1 }, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("serde::Renamed")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("Redis holds an entry that the type's Deserialize refuses")));
    assert!(lines.iter().all(|line| !line.contains("hunter2") && !line.contains("user_name")), "{lines:?}");
}

#[cfg(debug_assertions)]
#[tokio::test]
async fn a_type_that_reads_another_value_than_it_writes_is_named_once() {
    #[derive(Serialize, Deserialize)]
    struct Forgets {
        #[serde(skip_deserializing)]
        secret: u64,
        name: String,
    }
    let server = Server::start();
    for (name, codec) in [("forgets", Codec::MessagePack), ("forgets-json", Codec::Json)] {
        let keys: Keyspace<Forgets> = TtlProfile::new(name, HOUR).of().with_codec(codec);
        let (lines, unusable) = logged(&server, keys, || Forgets { secret: 7, name: "n".to_owned() }).await;
        assert_eq!((lines.len(), unusable), (1, 0), "{lines:?}");
        assert!(lines[0].contains("another value"), "{lines:?}");
    }
}

#[tokio::test]
async fn hash_tables_and_numbers_of_all_kinds_are_no_flaw() {
    type Any = (HashMap<String, HashSet<u64>>, HashSet<(u8, String)>, f64, Option<f32>, Vec<Option<bool>>);
    let server = Server::start();
    let table = || {
        (
            (0..50).map(|n| (n.to_string(), (0..20).collect())).collect(),
            (0..200).map(|n| (n, n.to_string())).collect(),
            f64::NAN,
            Some(0.1),
            vec![None, Some(true)],
        )
    };
    let keys: Keyspace<Any> = TtlProfile::new("tables", HOUR).of();
    assert_eq!(logged(&server, keys, table).await, (vec![], 0));
}

#[tokio::test]
async fn a_newer_type_replaces_entries_of_an_older_version_in_silence() {
    let server = Server::start();
    let [(_, writes), (reader, reads)] = two(&server);
    log::collect();
    let profile = TtlProfile::new("versions", HOUR);
    writes.set(&profile.of::<u64>().key("a"), 1).await.unwrap();
    assert_eq!(reads.get(&profile.of::<String>().with_version(1).key("a")).await.unwrap(), None);
    assert_eq!(reader.stats().total.unusable, 1);
    assert_eq!(log::lines(Level::WARN, "profile versions,"), Vec::<String>::new());
    // The same version, and another type.
    assert_eq!(reads.get(&profile.of::<String>().key("a")).await.unwrap(), None);
    assert_eq!(log::lines(Level::WARN, "profile versions,").len(), 1);
}

/// Each of the user's parts of the check panics.
#[tokio::test]
async fn panics_of_the_type_reach_no_call() {
    #[derive(Serialize)]
    struct Panics(u8);
    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("as a test")
        }
    }
    #[derive(Serialize, Deserialize)]
    struct Drops(u8);
    impl Drop for Drops {
        fn drop(&mut self) {
            assert!(self.0 == 0, "as a test");
        }
    }
    let server = Server::start();
    let keys: Keyspace<Panics> = TtlProfile::new("panics", HOUR).of();
    let (lines, unusable) = logged(&server, keys, || Panics(1)).await;
    assert_eq!(unusable, 2);
    assert!(lines.iter().all(|line| line.contains("Deserialize refuses")), "{lines:?}");
    let [(_, writes), _] = two(&server);
    let keys: Keyspace<Drops> = TtlProfile::new("drops", HOUR).of();
    let kept = std::sync::Arc::new(Drops(1));
    writes.set(&keys.key("a"), kept.clone()).await.unwrap();
    std::mem::forget(kept);
}
