//! Processes that cannot read or store, or cannot tell the others: they still invalidate what they can, and say so where
//! they cannot.

mod support;

use std::{cell::Cell, time::Duration};

use cache_core::{Cache, ErrorKind, Invalidated, Keyspace, TtlProfile, cached};
use support::{Server, child};

const PROFILE: TtlProfile = TtlProfile::new("report", Duration::from_secs(60)).with_jitter(0.0);
const REPORTS: Keyspace<u64> = PROFILE.of();

#[cached(profile = PROFILE, key = "{id}", tenant = "acme")]
async fn report(id: u64) -> u64 {
    id + 1
}

fn cache(server: &Server) -> Cache {
    let builder = Cache::builder().url(&server.url()).near_bytes(0).op_timeout(Duration::from_secs(20));
    builder.min_idle(1).build().unwrap()
}

fn on_a_runtime<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

#[test]
fn disabled_process() {
    if !child::is_child() {
        return;
    }
    on_a_runtime(async {
        assert_eq!(report::invalidate(1).await, Invalidated::Applied);
        assert_eq!(report::refresh(2).await, 3);
        assert_eq!(report::put(3, 30).await.unwrap_err().kind(), ErrorKind::Closed);
        let acme = Cache::from_env().await.unwrap().tenant("acme").unwrap();
        assert_eq!(acme.set(&REPORTS.key(4), 40).await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(acme.touch(&REPORTS.key(5)).await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(acme.invalidate_and_hold(&REPORTS.key(6), Duration::from_millis(1)).await.is_applied());
    });
}

#[test]
fn a_disabled_cache_invalidates_for_the_others_what_it_is_given() {
    let server = Server::start();
    on_a_runtime(async {
        let acme = cache(&server).tenant("acme").unwrap();
        for id in 1..=6 {
            acme.set(&REPORTS.key(id), 100).await.unwrap();
        }
        child::spawn("disabled_process", &[("REDIS_URL", &server.url()), ("CACHE_DISABLED", "1")]).finish();
        let keys: Vec<_> = (1..=6).map(|id| REPORTS.key(id)).collect();
        let found = acme.get_many(&keys).await.unwrap();
        let found: Vec<_> = found.iter().map(|value| value.as_deref().copied()).collect();
        // What is touched is no older for it.
        assert_eq!(found, [None, None, None, None, Some(100), None]);
    });
}

#[test]
fn process_with_a_wrong_environment() {
    if !child::is_child() {
        return;
    }
    on_a_runtime(async {
        assert_eq!(report::invalidate(1).await, Invalidated::Pending);
        assert_eq!((report(1).await, report::refresh(2).await), (2, 3));
        assert_eq!(report::put(3, 30).await.unwrap_err().kind(), ErrorKind::Closed);
    });
}

#[test]
fn a_process_that_does_not_know_its_redis_does_not_claim_to_have_invalidated() {
    for wrong in [("REDIS_URL", "http://localhost"), ("CACHE_DISABLED", "perhaps"), ("CACHE_ROOT", "!")] {
        child::spawn("process_with_a_wrong_environment", &[wrong]).finish();
    }
}

/// Reads are refused, and the key is known.
#[tokio::test]
async fn a_function_without_a_tenant_is_invalidated_where_a_tenant_is_demanded() {
    #[cached(profile = PROFILE, key = "{id}", tenant = global, cache = cache, skip(cache))]
    async fn load(cache: &Cache, id: u64) -> u64 {
        id + 1
    }
    let server = Server::start();
    let others = cache(&server);
    let demanding = Cache::builder().url(&server.url()).require_tenant(true).build().unwrap();
    for id in [1, 2, 3] {
        others.global().unwrap().set(&REPORTS.key(id), 100).await.unwrap();
    }
    assert_eq!(load::invalidate(&demanding, 1).await, Invalidated::Applied);
    assert_eq!((load(&demanding, 1).await, load::refresh(&demanding, 2).await), (2, 3));
    assert_eq!(load::put(&demanding, 3, 30).await.unwrap_err().kind(), ErrorKind::TenantRequired);
    for id in [1, 2, 3] {
        assert_eq!(others.global().unwrap().get(&REPORTS.key(id)).await.unwrap(), None, "{id}");
    }
}

/// The key does not depend on the TTL.
#[tokio::test]
async fn a_ttl_that_is_out_of_range_at_the_moment_keeps_no_invalidation_back() {
    #[cached(ttl = Duration::ZERO, key_prefix = "report", key = "{id}", tenant = "acme", cache = cache, skip(cache))]
    async fn load(cache: &Cache, id: u64) -> u64 {
        id + 1
    }
    let server = Server::start();
    let cache = cache(&server);
    let acme = cache.tenant("acme").unwrap();
    for id in [1, 2, 3] {
        acme.set(&REPORTS.key(id), 100).await.unwrap();
    }
    assert_eq!(load::invalidate(&cache, 1).await, Invalidated::Applied);
    assert_eq!((load(&cache, 1).await, load::refresh(&cache, 2).await), (2, 3));
    assert_eq!(load::put(&cache, 3, 30).await.unwrap_err().kind(), ErrorKind::InvalidProfile);
    for id in [1, 2, 3] {
        assert_eq!(acme.get(&REPORTS.key(id)).await.unwrap(), None, "{id}");
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_stored_replaces_the_older_one() {
    const TEXTS: Keyspace<String> = PROFILE.of();
    let server = Server::start();
    let builder = Cache::builder().url(&server.url()).near_bytes(0).max_value(10);
    let acme = builder.build().unwrap().tenant("acme").unwrap();
    acme.set(&TEXTS.key("x"), "old".to_owned()).await.unwrap();
    let error = acme.set(&TEXTS.key("x"), "new".repeat(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(acme.get(&TEXTS.key("x")).await.unwrap(), None);
}

/// Serializable at some times only, as what is locked or borrowed.
struct Borrowed(Cell<bool>);

impl serde::Serialize for Borrowed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.get() { Err(serde::ser::Error::custom("borrowed")) } else { serializer.serialize_u8(1) }
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_built_is_done_only_where_it_names_no_entry() {
    #[cached(profile = PROFILE, cache = cache, skip(cache))]
    async fn load(cache: &Cache, tenant_id: &str, _number: f64) -> u64 {
        7
    }
    #[cached(profile = PROFILE, tenant = global, cache = cache, skip(cache))]
    async fn by(cache: &Cache, _borrowed: &Borrowed) -> u64 {
        7
    }
    let cache = Cache::in_memory();
    assert_eq!(load(&cache, "acme", f64::NAN).await, 7);
    assert_eq!(load::invalidate(&cache, "acme", f64::NAN).await, Invalidated::Applied);
    assert_eq!(load::invalidate(&cache, "", 1.0).await, Invalidated::Pending, "another tenant was meant");
    let borrowed = Borrowed(Cell::new(false));
    assert_eq!(by(&cache, &borrowed).await, 7);
    borrowed.0.set(true);
    assert_eq!(by::invalidate(&cache, &borrowed).await, Invalidated::Pending, "there is an entry");

    let acme = cache.tenant("acme").unwrap();
    let [good, empty, bad] = [REPORTS.key("x"), REPORTS.key(""), REPORTS.key(cache_core::Canonical(&borrowed))];
    acme.set(&good, 1).await.unwrap();
    assert_eq!(acme.invalidate(&empty).await, Invalidated::Applied);
    assert_eq!(acme.invalidate_many(&[bad.clone(), good.clone(), empty]).await, Invalidated::Pending);
    assert_eq!(acme.get(&good).await.unwrap(), None, "the others are invalidated all the same");
    assert_eq!(acme.invalidate_and_hold(&bad, Duration::from_secs(1)).await, Invalidated::Pending);
    assert_eq!(acme.invalidate_pattern("").await, Invalidated::Applied);
    assert_eq!(
        acme.invalidate_pattern(&"*:".repeat(300)).await,
        Invalidated::Pending,
        "it covers what was not looked for"
    );
}
