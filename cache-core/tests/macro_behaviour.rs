//! What a `#[cached]` function does, in a cache of this process alone.

#![expect(unused_variables, reason = "arguments that are in the key and that no body needs")]

use std::{
    collections::HashMap,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use cache_core::{Cache, Invalidated, Keyspace, TtlProfile, cached, profiles::WORKFLOW_DEF};
use serde::Serialize;

/// Counts the runs of one body.
struct Runs(AtomicU32);

impl Runs {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// One more; gives the number of this run.
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The default cache of this process, whatever the environment says.
fn default_cache() -> &'static Cache {
    static INSTALLED: Once = Once::new();
    static CACHE: std::sync::LazyLock<Cache> = std::sync::LazyLock::new(Cache::in_memory);
    INSTALLED.call_once(|| CACHE.install().expect("no annotated function ran before"));
    &CACHE
}

#[derive(Debug, Clone, PartialEq)]
struct LoadError;

type Outcome<T> = Result<T, LoadError>;

#[tokio::test]
async fn every_shape_of_return_type_is_fetched_once() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn plain(id: u64) -> u32 {
        assert_eq!(id, 1);
        RUNS.next()
    }
    #[cached(ttl = 300)]
    async fn shared(id: u64) -> Arc<u32> {
        assert_eq!(id, 1);
        Arc::new(RUNS.next())
    }
    #[cached(ttl = 300)]
    async fn result(id: u64) -> Result<u32, LoadError> {
        assert_eq!(id, 1);
        Ok(RUNS.next())
    }
    #[cached(ttl = 300)]
    async fn alias(id: u64) -> Outcome<Arc<u32>> {
        assert_eq!(id, 1);
        Ok(Arc::new(RUNS.next()))
    }
    #[cached(ttl = 300)]
    async fn option(id: u64) -> Option<u32> {
        assert_eq!(id, 1);
        Some(RUNS.next())
    }
    #[cached(ttl = 300)]
    async fn optional_result(id: u64) -> Outcome<Option<Arc<u32>>> {
        assert_eq!(id, 1);
        Ok(Some(Arc::new(RUNS.next())))
    }
    #[cached(ttl = 300)]
    async fn nothing_but_success(id: u64) -> Result<(), LoadError> {
        assert_eq!(id, 1);
        RUNS.next();
        Ok(())
    }

    for _ in 0..3 {
        assert_eq!(plain(1).await, 1);
        assert_eq!(*shared(1).await, 2);
        assert_eq!(result(1).await, Ok(3));
        assert_eq!(alias(1).await.as_deref(), Ok(&4));
        assert_eq!(option(1).await, Some(5));
        assert_eq!(optional_result(1).await, Ok(Some(Arc::new(6))));
        assert_eq!(nothing_but_success(1).await, Ok(()));
    }
    assert_eq!(RUNS.count(), 7);
}

#[tokio::test]
async fn an_arc_is_handed_out_without_a_copy() {
    default_cache();

    #[cached(ttl = 300)]
    async fn shared() -> Arc<String> {
        Arc::new(String::from("large"))
    }
    let (first, second, third) = (shared().await, shared().await, shared().await);
    assert!(Arc::ptr_eq(&second, &third));
    assert_eq!(first, second);
}

#[tokio::test]
async fn an_error_is_never_cached() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn fails(id: u64) -> Outcome<u32> {
        let run = RUNS.next();
        if run < 3 { Err(LoadError) } else { Ok(run) }
    }
    assert_eq!(fails(1).await, Err(LoadError));
    assert_eq!(fails::peek(1).await, None);
    assert_eq!(fails(1).await, Err(LoadError));
    assert_eq!(fails(1).await, Ok(3));
    assert_eq!(fails(1).await, Ok(3));
}

#[tokio::test]
async fn an_absent_value_is_cached_only_with_a_negative_ttl() {
    static WITHOUT: Runs = Runs::new();
    static WITH: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn forgets(id: u64) -> Option<u32> {
        assert_eq!(id, 1);
        WITHOUT.next();
        None
    }
    #[cached(ttl = 300, negative_ttl = "1m")]
    async fn remembers(id: u64) -> Outcome<Option<u32>> {
        assert_eq!(id, 1);
        WITH.next();
        Ok(None)
    }
    for _ in 0..3 {
        assert_eq!(forgets(1).await, None);
        assert_eq!(remembers(1).await, Ok(None));
    }
    assert_eq!((WITHOUT.count(), WITH.count()), (3, 1));
    assert_eq!(forgets::peek(1).await, None);
    assert_eq!(remembers::peek(1).await, Some(Ok(None)));
}

#[tokio::test]
async fn arguments_may_be_owned_or_borrowed() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[derive(Serialize)]
    struct Query {
        text: String,
        limit: Option<u8>,
    }
    #[cached(ttl = 300)]
    async fn many(
        text: &str,
        owned: String,
        query: &Query,
        list: &[u8],
        pair: (u8, char),
        flag: Option<bool>,
    ) -> String {
        RUNS.next();
        format!("{text}{owned}{}{:?}{list:?}{pair:?}{flag:?}", query.text, query.limit)
    }
    let query = |limit| Query { text: String::from("q"), limit };
    let first = many("a", String::from("b"), &query(Some(1)), &[1, 2], (3, 'c'), Some(true)).await;
    assert_eq!(many("a", String::from("b"), &query(Some(1)), &[1, 2], (3, 'c'), Some(true)).await, first);
    assert_eq!(RUNS.count(), 1);
    many("x", String::from("b"), &query(Some(1)), &[1, 2], (3, 'c'), Some(true)).await;
    many("a", String::from("x"), &query(Some(1)), &[1, 2], (3, 'c'), Some(true)).await;
    many("a", String::from("b"), &query(None), &[1, 2], (3, 'c'), Some(true)).await;
    many("a", String::from("b"), &query(Some(1)), &[12], (3, 'c'), Some(true)).await;
    many("a", String::from("b"), &query(Some(1)), &[1, 2], (3, 'd'), Some(true)).await;
    many("a", String::from("b"), &query(Some(1)), &[1, 2], (3, 'c'), None).await;
    assert_eq!(RUNS.count(), 7, "each argument is in the key");
}

#[tokio::test]
async fn a_colon_in_one_argument_is_not_the_border_to_the_next() {
    default_cache();

    #[cached(ttl = 300)]
    async fn joined(a: &str, b: &str) -> String {
        format!("{a}|{b}")
    }
    #[cached(ttl = 300, key = "{a}:{b}")]
    async fn templated(a: &str, b: &str) -> String {
        format!("{a}|{b}")
    }
    assert_eq!(joined("a:b", "").await, "a:b|");
    assert_eq!(joined("a", "b").await, "a|b");
    assert_eq!(joined("", "a:b").await, "|a:b");
    assert_eq!(templated("a:b", "c").await, "a:b|c");
    assert_eq!(templated("a", "b:c").await, "a|b:c");
}

#[tokio::test]
async fn a_skipped_argument_is_not_in_the_key() {
    static RUNS: Runs = Runs::new();
    default_cache();

    struct Connection(&'static str);
    #[cached(ttl = 300, skip(connection))]
    async fn load(id: u64, connection: &Connection) -> String {
        RUNS.next();
        format!("{id}{}", connection.0)
    }
    assert_eq!(load(1, &Connection("a")).await, "1a");
    assert_eq!(load(1, &Connection("b")).await, "1a");
    assert_eq!(load(2, &Connection("b")).await, "2b");
    assert_eq!(RUNS.count(), 2);
    assert_eq!(load::peek(1).await.as_deref(), Some("1a"));
    assert_eq!(load::refresh(1, &Connection("c")).await, "1c");
    assert_eq!(load(1, &Connection("d")).await, "1c");
}

#[tokio::test]
async fn tenants_do_not_share_values() {
    default_cache();

    #[cached(ttl = 300)]
    async fn named(tenant_id: &str, id: u64) -> String {
        format!("{tenant_id}-{id}")
    }
    struct Context {
        org: u64,
    }
    #[cached(ttl = 300, tenant = context.org, skip(context))]
    async fn through_field(id: u64, context: &Context) -> String {
        format!("{}-{id}", context.org)
    }
    #[cached(ttl = 300, tenant = global)]
    async fn explicit_global(tenant_id: &str) -> String {
        tenant_id.to_owned()
    }
    #[cached(ttl = 300, tenant = tenant_id.unwrap_or("nobody"), skip(tenant_id))]
    async fn resolved(tenant_id: Option<&str>) -> String {
        format!("{tenant_id:?}")
    }

    for tenant in ["acme", "beta"] {
        assert_eq!(named(tenant, 1).await, format!("{tenant}-1"));
        assert_eq!(named(tenant, 1).await, format!("{tenant}-1"));
        assert_eq!(explicit_global(tenant).await, tenant);
    }
    for org in [1, 2] {
        assert_eq!(through_field(1, &Context { org }).await, format!("{org}-1"));
    }
    assert_eq!(resolved(Some("acme")).await, "Some(\"acme\")");
    assert_eq!(resolved(None).await, "None");

    let key = named::key("acme", 1).unwrap();
    assert!(key.starts_with("cache:tenant:acme:"), "{key}");
    let identifier = key.rsplit_once(":named@").expect("the function's name").1;
    assert_eq!(identifier.split(':').nth(1), Some("1"), "the tenant is not part of the identifier: {key}");
    let key = through_field::key(7, &Context { org: 2 }).unwrap();
    assert!(key.starts_with("cache:tenant:2:") && key.ends_with(":7"), "{key}");
    let key = explicit_global::key("acme").unwrap();
    assert!(!key.contains(":tenant:") && key.ends_with(":acme"), "{key}");

    assert_eq!(named::invalidate("acme", 1).await, Invalidated::Applied);
    assert_eq!(named::peek("acme", 1).await, None);
    assert_eq!(named::peek("beta", 1).await.as_deref(), Some("beta-1"));
}

#[tokio::test]
async fn an_empty_tenant_runs_uncached() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn load(tenant_id: &str) -> u32 {
        RUNS.next()
    }
    assert_eq!((load("").await, load("").await), (1, 2));
    assert_eq!(load::peek("").await, None);
    assert!(load::key("").unwrap_err().to_string().contains("tenant"));
    assert!(load::put("", 7).await.is_err());
    assert_eq!(load::refresh("").await, 3);
}

#[tokio::test]
async fn a_template_is_the_identifier_of_a_keyspace() {
    const WORKFLOWS: Keyspace<String> = WORKFLOW_DEF.of();
    let cache = default_cache();

    #[cached(profile = WORKFLOW_DEF, key = "{workflow_id}")]
    async fn workflow(workflow_id: &str, tenant_id: &str) -> Outcome<Arc<String>> {
        Ok(Arc::new(format!("{tenant_id}/{workflow_id}")))
    }
    let acme = cache.tenant("acme").unwrap();
    let key = WORKFLOWS.key("abc-456");
    assert_eq!(workflow::key("abc-456", "acme").unwrap(), "cache:tenant:acme:workflow_def:abc-456");
    workflow("abc-456", "acme").await.unwrap();
    assert_eq!(acme.get(&key).await.unwrap().as_deref().map(String::as_str), Some("acme/abc-456"));

    acme.set(&key, String::from("set")).await.unwrap();
    assert_eq!(*workflow("abc-456", "acme").await.unwrap(), "set");
    assert!(acme.invalidate(&key).await.is_applied());
    assert_eq!(*workflow("abc-456", "acme").await.unwrap(), "acme/abc-456");
}

#[tokio::test]
async fn templates_take_fields_and_text() {
    default_cache();

    #[derive(Clone)]
    struct User {
        id: u64,
        name: (String, u8),
    }
    #[cached(ttl = 300, key_prefix = "users", key = "v1:{user.id}:n-{user.name.0}:{{x}}")]
    async fn load(user: User) -> u8 {
        user.name.1
    }
    let user = User { id: 7, name: (String::from("ann"), 3) };
    assert_eq!(load(user.clone()).await, 3);
    let key = load::key(user).unwrap();
    assert_eq!(key, "cache:users:v1:7:n-ann:%7Bx%7D");
}

#[tokio::test]
async fn companions_do_what_they_say() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300, key_prefix = "companions")]
    async fn load(id: u64, kind: &str) -> Outcome<u32> {
        Ok(RUNS.next())
    }
    assert_eq!(load::key(1, "a").unwrap(), "cache:companions:load@476381:1:a");
    assert_eq!(load::peek(1, "a").await, None);
    assert_eq!(load::ttl(1, "a").await.unwrap(), None);
    assert_eq!(RUNS.count(), 0, "nothing but the function and `refresh` fetches");

    assert_eq!(load(1, "a").await, Ok(1));
    assert_eq!(load::peek(1, "a").await, Some(Ok(1)));
    let ttl = load::ttl(1, "a").await.unwrap().expect("an entry");
    assert!(ttl > Duration::from_secs(200) && ttl <= Duration::from_secs(300), "{ttl:?}");

    assert_eq!(load::refresh(1, "a").await, Ok(2));
    assert_eq!(load(1, "a").await, Ok(2));

    load::put(1, "a", 40).await.unwrap();
    assert_eq!(load(1, "a").await, Ok(40));
    load::put(1, "a", Ok(50)).await.unwrap();
    assert_eq!(load(1, "a").await, Ok(50));

    assert_eq!(load::invalidate(1, "a").await, Invalidated::Applied);
    assert_eq!(load::peek(1, "a").await, None);
    assert_eq!(load(1, "a").await, Ok(3));
}

#[tokio::test]
async fn a_value_is_put_in_any_shape() {
    default_cache();

    #[cached(ttl = 300, negative_ttl = 60)]
    async fn option() -> Option<u8> {
        None
    }
    #[cached(ttl = 300)]
    async fn shared() -> Outcome<Arc<u8>> {
        Err(LoadError)
    }
    #[cached(ttl = 300)]
    async fn plain() -> u8 {
        0
    }
    option::put(Some(1)).await.unwrap();
    assert_eq!(option().await, Some(1));
    option::put(None).await.unwrap();
    assert_eq!(option::peek().await, Some(None));
    shared::put(Arc::new(2)).await.unwrap();
    assert_eq!(shared().await.as_deref(), Ok(&2));
    plain::put(3).await.unwrap();
    assert_eq!(plain().await, 3);
}

#[tokio::test]
async fn a_ttl_may_be_an_expression() {
    static RUNS: Runs = Runs::new();
    default_cache();

    fn configured(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    #[cached(ttl = configured(60), key_prefix = "configured", jitter = 0, negative_ttl = 5)]
    async fn load() -> Option<u32> {
        Some(RUNS.next())
    }
    assert_eq!((load().await, load().await), (Some(1), Some(1)));
    let ttl = load::ttl().await.unwrap().expect("an entry");
    assert!(ttl > Duration::from_secs(50) && ttl <= Duration::from_secs(60), "{ttl:?}");
}

#[tokio::test]
async fn a_ttl_out_of_range_at_run_time_runs_uncached() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = Duration::ZERO)]
    async fn load() -> u32 {
        RUNS.next()
    }
    assert_eq!((load().await, load().await), (1, 2));
    assert_eq!((load::peek().await, load::refresh().await), (None, 3));
    assert!(load::ttl().await.unwrap_err().to_string().contains("TTL"));
    assert!(load::put(7).await.unwrap_err().to_string().contains("TTL"));
}

/// The key does not depend on it.
#[tokio::test]
async fn a_ttl_out_of_range_at_run_time_is_in_the_way_of_no_invalidation() {
    static RUNS: Runs = Runs::new();
    static SECONDS: AtomicU32 = AtomicU32::new(60);
    default_cache();

    #[cached(ttl = Duration::from_secs(SECONDS.load(Ordering::Relaxed).into()), key_prefix = "changing")]
    async fn load() -> u32 {
        RUNS.next()
    }
    for (removed_by, value) in [("invalidate", 1), ("refresh", 2)] {
        assert_eq!((load().await, load().await), (value, value));
        SECONDS.store(0, Ordering::Relaxed);
        assert!(load::key().unwrap().starts_with("cache:changing:load"));
        match removed_by {
            "invalidate" => assert_eq!(load::invalidate().await, Invalidated::Applied),
            _ => assert_eq!(load::refresh().await, 3),
        }
        SECONDS.store(60, Ordering::Relaxed);
        assert_eq!(load::peek().await, None, "{removed_by} left the older value");
    }
}

#[tokio::test]
async fn a_profile_can_be_adapted() {
    const REPORT: TtlProfile = TtlProfile::new("report", Duration::from_secs(600));
    default_cache();

    #[cached(profile = REPORT, jitter = "0%", negative_ttl = 5)]
    async fn load(id: u64) -> Option<u64> {
        (id > 1).then_some(id)
    }
    assert_eq!(load(2).await, Some(2));
    assert!(load::ttl(2).await.unwrap().expect("an entry") > Duration::from_secs(590));
    assert_eq!(load(1).await, None);
    assert_eq!(load::peek(1).await, Some(None));
    assert_eq!(load::key(2).unwrap(), "cache:report:load@f0bff5:2");
}

#[tokio::test]
async fn functions_of_one_name_and_prefix_never_share() {
    mod one {
        #[cache_core::cached(ttl = 300, key_prefix = "twins")]
        pub(super) async fn load(id: u64) -> u64 {
            id + 1
        }
    }
    mod two {
        #[cache_core::cached(ttl = 300, key_prefix = "twins")]
        pub(super) async fn load(id: u64) -> u64 {
            id + 2
        }
    }
    async fn third() -> u64 {
        #[cached(ttl = 300, key_prefix = "twins")]
        async fn load(id: u64) -> u64 {
            id + 3
        }
        load(1).await
    }
    async fn fourth() -> u64 {
        #[cached(ttl = 300, key_prefix = "twins")]
        async fn load(id: u64) -> u64 {
            id + 4
        }
        load(1).await
    }
    default_cache();
    for _ in 0..2 {
        assert_eq!((one::load(1).await, two::load(1).await), (2, 3));
        assert_eq!((third().await, fourth().await), (4, 5));
    }
}

#[tokio::test]
async fn types_of_a_generic_function_never_share() {
    default_cache();

    #[cached(ttl = 300)]
    async fn name_of<T: Send>(id: u8) -> String {
        format!("{id} {}", std::any::type_name::<T>())
    }
    #[cached(ttl = 300)]
    async fn of_argument<T: Serialize>(value: T) -> String {
        std::any::type_name::<T>().to_owned()
    }
    #[cached(ttl = 300)]
    async fn anonymous(value: impl Serialize) -> String {
        std::any::type_name_of_val(&value).to_owned()
    }
    #[cached(ttl = 300)]
    async fn sized<const N: usize>() -> usize {
        N
    }
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    for _ in 0..2 {
        assert_eq!((name_of::<u8>(1).await, name_of::<u16>(1).await), pair("1 u8", "1 u16"));
        assert_eq!((of_argument(1_u8).await, of_argument(1_u16).await), pair("u8", "u16"));
        assert_eq!((anonymous(1_u8).await, anonymous(1_u16).await), pair("u8", "u16"));
        assert_eq!((sized::<1>().await, sized::<2>().await), (1, 2));
    }
}

#[tokio::test]
async fn an_argument_without_a_key_runs_uncached() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn round(number: f64) -> u32 {
        RUNS.next()
    }
    assert_eq!((round(f64::NAN).await, round(f64::NAN).await), (1, 2));
    assert_eq!((round(1.5).await, round(1.5).await), (3, 3));
    assert!(round::key(f64::NAN).is_err());
    assert_eq!(round::peek(f64::NAN).await, None);
}

#[tokio::test]
async fn the_order_of_a_map_does_not_matter() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn sum(numbers: &HashMap<String, u64>) -> u64 {
        RUNS.next();
        numbers.values().sum()
    }
    let forwards: HashMap<_, _> = (0..50).map(|n| (n.to_string(), n)).collect();
    let backwards: HashMap<_, _> = (0..50).rev().map(|n| (n.to_string(), n)).collect();
    assert_eq!((sum(&forwards).await, sum(&backwards).await), (1225, 1225));
    assert_eq!(RUNS.count(), 1);
}

#[tokio::test]
async fn a_function_may_name_its_cache() {
    static RUNS: Runs = Runs::new();

    #[derive(Clone)]
    struct App {
        cache: Cache,
    }
    #[cached(ttl = 300, cache = cache)]
    async fn borrowed(cache: &Cache, id: u64) -> u32 {
        RUNS.next()
    }
    #[cached(ttl = 300, cache = app.cache, skip(app))]
    async fn owned(app: App, id: u64) -> u32 {
        RUNS.next()
    }
    let (one, two) = (Cache::in_memory(), Cache::in_memory());
    assert_eq!((borrowed(&one, 1).await, borrowed(&one, 1).await), (1, 1));
    assert_eq!((borrowed(&two, 1).await, borrowed(&two, 1).await), (2, 2));
    assert_eq!(borrowed::invalidate(&one, 1).await, Invalidated::Applied);
    assert_eq!((borrowed(&one, 1).await, borrowed(&two, 1).await), (3, 2));

    let app = App { cache: one };
    assert_eq!((owned(app.clone(), 1).await, owned(app.clone(), 1).await), (4, 4));
    assert_eq!(owned::peek(app, 1).await, Some(4));

    let off = Cache::disabled();
    assert_eq!((borrowed(&off, 1).await, borrowed(&off, 1).await), (5, 6));
}

#[tokio::test]
async fn calls_at_the_same_time_share_one_fetch_and_its_error() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn slow(id: u64) -> Outcome<u32> {
        let run = RUNS.next();
        tokio::task::yield_now().await;
        if id == 0 { Err(LoadError) } else { Ok(run) }
    }
    let values = futures::future::join_all((0..20).map(|_| slow(1))).await;
    assert!(values.iter().all(|value| *value == Ok(1)), "{values:?}");
    let errors = futures::future::join_all((0..20).map(|_| slow(0))).await;
    assert!(errors.iter().all(|error| *error == Err(LoadError)), "{errors:?}");
    assert_eq!(RUNS.count(), 2);
}

#[tokio::test]
async fn a_fetch_that_asks_for_its_own_key_runs_uncached() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300)]
    async fn itself(id: u64) -> u32 {
        let run = RUNS.next();
        if run < 3 { Box::pin(itself(id)).await } else { run }
    }
    assert_eq!(itself(1).await, 3);
    assert_eq!(itself(1).await, 3);
    assert_eq!(RUNS.count(), 3);
}

#[tokio::test]
async fn tags_invalidate_what_names_them_in_their_tenant() {
    static RUNS: Runs = Runs::new();
    let cache = default_cache();

    #[cached(ttl = 300, key_prefix = "tagged", tags = ["plan".to_owned(), format!("owner:{}", owner.0)], skip(owner))]
    async fn page(id: u32, tenant_id: &str, owner: (u32, u32)) -> u32 {
        RUNS.next()
    }

    assert_eq!((page(1, "acme", (7, 0)).await, page(1, "acme", (7, 0)).await), (1, 1));
    assert_eq!(page(1, "other", (7, 0)).await, 2);
    let acme = cache.tenant("acme").unwrap();
    assert!(acme.invalidate_tag("owner:8").await.is_applied());
    assert_eq!(page(1, "acme", (7, 0)).await, 1);
    assert!(acme.invalidate_tag("owner:7").await.is_applied());
    assert_eq!((page(1, "acme", (7, 0)).await, page(1, "other", (7, 0)).await), (3, 2));
    // What leads to a tag is an argument of the companions, too.
    assert_eq!(page::peek(1, "acme", (7, 0)).await, Some(3));
    assert_eq!(page::refresh(1, "acme", (7, 0)).await, 4);
    page::put(1, "acme", (7, 0), 9).await.unwrap();
    assert_eq!(page(1, "acme", (7, 0)).await, 9);
    assert!(acme.invalidate_tag("plan").await.is_applied());
    assert_eq!(page::peek(1, "acme", (7, 0)).await, None);
    assert!(page::invalidate(1, "acme", (7, 0)).await.is_applied());
}

/// A tag that cannot be used: the body runs, uncached.
#[tokio::test]
async fn a_bad_tag_runs_the_body() {
    static RUNS: Runs = Runs::new();
    default_cache();

    #[cached(ttl = 300, tags = [tag])]
    async fn page(tag: &str) -> u32 {
        RUNS.next()
    }

    assert_eq!((page("").await, page("").await), (1, 2));
    assert_eq!((page("x").await, page("x").await), (3, 3));
    assert!(page::put("", 5).await.unwrap_err().to_string().contains("tag"));
    // Its name is known all the same.
    assert!(page::invalidate("").await.is_applied());
}
