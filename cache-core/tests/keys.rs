//! What tells two entries apart, from the key of a call to the type of its value.

#![expect(unused_variables, reason = "arguments that are in the key and that no body needs")]

mod support;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use cache_core::{Cache, Error, KeyArgument, KeyWriter, Keyspace, TtlProfile, cached};
use serde::{Deserialize, Serialize};
use support::{Server, child};

const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(300));

/// Told apart by what it writes alone, as the docs of `KeyArgument` ask.
#[derive(Clone, Copy)]
enum Id {
    Global(u64),
    Of(u64, u64),
}

impl KeyArgument for Id {
    fn write_key(&self, writer: &mut KeyWriter) -> Result<(), Error> {
        match self {
            Self::Global(id) => id.write_key(writer),
            Self::Of(org, id) => (org, id).write_key(writer),
        }
    }
}
use Id::{Global, Of};

fn shown(id: &Id) -> String {
    match id {
        Global(id) => format!("{id}"),
        Of(org, id) => format!("{org}/{id}"),
    }
}

#[tokio::test]
async fn an_argument_never_runs_into_the_next() {
    #[cached(ttl = 300, cache = cache, skip(cache))]
    async fn transfer(cache: &Cache, from: Id, to: Id) -> String {
        format!("{} -> {}", shown(&from), shown(&to))
    }
    #[cached(profile = REPORT, key = "{from}:to:{to}", cache = cache, skip(cache))]
    async fn templated(cache: &Cache, from: Id, to: Id) -> String {
        format!("{} -> {}", shown(&from), shown(&to))
    }
    let cache = Cache::in_memory();
    for (from, to, expected) in [(Global(1), Of(2, 3), "1 -> 2/3"), (Of(1, 2), Global(3), "1/2 -> 3")] {
        assert_eq!(transfer(&cache, from, to).await, expected);
        assert_eq!(templated(&cache, from, to).await, expected);
    }
}

/// An annotated function with a template shares its entries with a keyspace.
#[tokio::test]
async fn a_template_is_the_key_of_a_tuple_of_its_segments() {
    #[cached(profile = REPORT, key = "{id}")]
    async fn sole(id: Id) -> u8 {
        0
    }
    #[cached(profile = REPORT, key = "{id}:{page}")]
    async fn paged(id: Id, page: u8) -> u8 {
        0
    }
    const REPORTS: Keyspace<u8> = REPORT.of();
    let cache = Cache::in_memory();
    cache.install().unwrap();
    let global = cache.global().unwrap();
    let key = |identifier: &str| format!("cache:report:{identifier}");
    assert_eq!(REPORTS.key(Of(1, 2)).identifier(), "1:2");
    assert_eq!(sole::key(Of(1, 2)).unwrap(), key("1:2"));
    assert_eq!(REPORTS.key((Of(1, 2), 3)).identifier(), "1|2:3");
    assert_eq!(paged::key(Of(1, 2), 3).unwrap(), key("1|2:3"));
    assert_eq!((sole(Of(1, 2)).await, paged(Of(1, 2), 3).await), (0, 0));
    assert_eq!(global.get(&REPORTS.key(Of(1, 2))).await.unwrap().as_deref(), Some(&0));
    assert_eq!(global.get(&REPORTS.key((Of(1, 2), 3))).await.unwrap().as_deref(), Some(&0));
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Separated<const BY: char>(Vec<String>);

#[tokio::test]
async fn types_that_differ_in_a_constant_are_two_types() {
    const COMMAS: Keyspace<Separated<','>> = REPORT.of();
    const SPACES: Keyspace<Separated<' '>> = REPORT.of();
    let server = Server::start();
    let cache = Cache::builder().url(&server.url()).near_bytes(0).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    acme.set(&COMMAS.key("x"), Separated(vec!["a b".into()])).await.unwrap();
    assert_eq!(acme.get(&SPACES.key("x")).await.unwrap(), None);
    assert!(acme.get(&COMMAS.key("x")).await.unwrap().is_some());
}

trait Table {
    type Id: Serialize + Send + Sync;
    const NAME: &'static str;
}
struct Users;
struct Orders;
impl Table for Users {
    type Id = u64;
    const NAME: &'static str = "users";
}
impl Table for Orders {
    type Id = u64;
    const NAME: &'static str = "orders";
}

static ROWS: AtomicU32 = AtomicU32::new(0);

#[cached(ttl = 300, key_prefix = "rows", cache = cache, skip(cache))]
async fn row<T: Table>(cache: &Cache, id: T::Id) -> String {
    ROWS.fetch_add(1, SeqCst);
    T::NAME.to_owned()
}

#[tokio::test]
async fn instances_of_a_generic_function_have_keys_of_their_own() {
    let cache = Cache::in_memory();
    for _ in 0..3 {
        assert_eq!((row::<Users>(&cache, 1).await, row::<Orders>(&cache, 1).await), ("users".into(), "orders".into()));
    }
    assert_eq!(ROWS.load(SeqCst), 2, "one evicts the other");
    assert!(row::invalidate::<Users>(&cache, 1).await.is_applied());
    assert_eq!(row::peek::<Users>(&cache, 1).await, None);
    assert_eq!(row::peek::<Orders>(&cache, 1).await.as_deref(), Some("orders"), "each is invalidated alone");
    assert_eq!(row::key::<Users>(&cache, 1).unwrap(), "cache:rows:row@0e15a2@86795b:1");
}

/// `&str` and `String` name one value.
#[tokio::test]
async fn an_invalidation_reaches_a_value_whatever_type_names_it() {
    #[cached(ttl = 300, cache = cache, skip(cache))]
    async fn load<S: AsRef<str> + KeyArgument>(cache: &Cache, id: S) -> usize {
        id.as_ref().len()
    }
    let cache = Cache::in_memory();
    assert_eq!(load(&cache, "x").await, 1);
    assert!(load::invalidate(&cache, String::from("x")).await.is_applied());
    assert_eq!(load::peek(&cache, "x").await, None);
}

static RUNS: AtomicU32 = AtomicU32::new(0);

/// Two releases of a function inside another one: the newer one changed the body and raised the version.
async fn release(which: &str) -> u32 {
    if which == "older" {
        #[cached(ttl = 300, key_prefix = "releases", cache = cache(), version = 1)]
        async fn load(id: u64) -> u32 {
            1
        }
        load(1).await
    } else {
        #[cached(ttl = 300, key_prefix = "releases", cache = cache(), version = 2)]
        async fn load(id: u64) -> u32 {
            RUNS.fetch_add(1, SeqCst);
            2
        }
        load(1).await
    }
}

fn cache() -> &'static Cache {
    static CACHE: OnceLock<Cache> = OnceLock::new();
    CACHE.get_or_init(|| Cache::builder().url(&std::env::var("TEST_URL").unwrap()).near_bytes(0).build().unwrap())
}

#[test]
fn other_process() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while let Some(which) = child::wait_for_parent() {
            let value = release(&which).await;
            child::report(&format!("{value} {}", RUNS.load(SeqCst)));
        }
    });
}

/// 1. The newer release stores its value.
/// 2. The older one is asked, fetches, and leaves that entry alone.
/// 3. Both ask again.
#[test]
fn a_raised_version_spares_a_function_inside_another_whose_body_changed() {
    let server = Server::start();
    let process = || child::spawn("other_process", &[("TEST_URL", &server.url())]);
    let (mut older, mut newer) = (process(), process());
    for _ in 0..5 {
        newer.tell("newer");
        assert_eq!(newer.next_report(), "2 1", "the older release overwrote the newer one's entry");
        older.tell("older");
        assert_eq!(older.next_report(), "1 0");
    }
    drop((older.finish(), newer.finish()));
}
