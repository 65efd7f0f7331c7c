//! The expansion of `#[cached]` among names, attributes and lints it does not know: that this file compiles is the test.

#![deny(warnings, missing_docs, unreachable_pub, unused, elided_lifetimes_in_paths)]
#![deny(missing_debug_implementations, missing_copy_implementations)]
#![deny(unnameable_types, unused_lifetimes, unused_qualifications, unused_results)]
#![deny(clippy::all, clippy::pedantic, clippy::allow_attributes)]
#![forbid(unsafe_code, dead_code)]

/// Functions of a public API, with everything documented.
pub mod api {
    #![forbid(warnings, nonstandard_style, missing_docs)]

    use cache_core::cached;

    /// Documentation of the function.
    #[cached(ttl = 300, key_prefix = "hygiene")]
    #[must_use = "slow"]
    #[inline]
    pub async fn documented(target: &str) -> String {
        target.to_owned()
    }

    /// The attribute may stand behind others.
    #[must_use]
    #[cached(ttl = "5m", jitter = "10%", negative_ttl = 5, version = 2)]
    #[expect(clippy::too_many_arguments, reason = "for the function, and for what is generated from it")]
    pub async fn many(one: u8, two: u8, three: u8, four: u8, five: u8, six: u8, seven: u8, eight: u8) -> Option<u8> {
        one.checked_add(two + three + four + five + six + seven + eight)
    }

    /// As many as clippy allows, so that no generated function may have more.
    #[cached(ttl = 1)]
    pub async fn seven(one: u8, two: u8, three: u8, four: u8, five: u8, six: u8, seven: u8) -> u8 {
        one + two + three + four + five + six + seven
    }

    /// With an error that is not `Clone`.
    ///
    /// # Errors
    /// Always.
    #[cached(ttl = 1, share_error = copied)]
    pub async fn fails(shape: u8) -> Result<u8, std::io::Error> {
        Err(std::io::Error::other(format!("{shape}")))
    }

    fn copied(probe: &std::io::Error) -> std::io::Error {
        std::io::Error::new(probe.kind(), probe.to_string())
    }

    /// Not there.
    #[cached(ttl = 1)]
    #[cfg(any())]
    pub async fn absent() -> Unknown {
        nothing()
    }

    /// A raw name with a raw argument.
    #[cached(ttl = 1, key = "{type}")]
    pub async fn r#match(r#type: u8) -> u8 {
        r#type
    }

    /// Seen in the crate only.
    #[cached(ttl = 1)]
    pub(crate) async fn crate_wide() -> u8 {
        1
    }

    /// Seen in one module only.
    #[cached(ttl = 1)]
    pub(in crate::api) async fn module_wide() -> u8 {
        crate_wide().await
    }

    /// Calls a sibling.
    #[cached(ttl = 1)]
    pub async fn sibling() -> u8 {
        module_wide().await
    }
}

/// Names of the prelude and of this library that mean something else here.
mod shadowed {
    use cache_core::cached;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub(crate) struct Result(pub(crate) u8);
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub(crate) struct Option(pub(crate) u8);
    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub(crate) struct Arc(pub(crate) u8);
    #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
    pub(crate) enum Choice {
        Some,
        None,
        Ok,
        Err,
    }
    use Choice::{Err, None, Ok, Some};
    pub(crate) type String = u8;
    pub(crate) type Duration = u8;
    pub(crate) type Cache = u8;
    pub(crate) type Future = u8;
    pub(crate) trait Clone {}
    pub(crate) trait AsRef {}
    pub(crate) trait Shape {}
    impl Shape for u8 {}
    impl Clone for u8 {}
    impl AsRef for u8 {}
    pub(crate) fn use_them(_: impl Clone + AsRef + Shape) {}

    #[cached(ttl = 1)]
    pub(crate) async fn results(call: u8, shape: Duration) -> Result {
        Result(call + shape)
    }

    #[cached(ttl = 1)]
    pub(crate) async fn options(hit: String, probe: Cache, share: Future) -> Option {
        Option(hit + probe + share)
    }

    #[cached(ttl = 1)]
    pub(crate) async fn arcs(writer: u8, part: u8, value: u8) -> Arc {
        Arc(writer + part + value)
    }

    #[cached(ttl = 1)]
    pub(crate) async fn choices(cache: u8) -> Choice {
        match cache {
            0 => Some,
            1 => None,
            2 => Ok,
            _ => Err,
        }
    }
}

/// No prelude at all.
mod bare {
    #![no_implicit_prelude]

    #[::cache_core::cached(ttl = 1, jitter = 0.5)]
    pub(super) async fn number(a: u8) -> ::std::result::Result<u8, ()> {
        ::std::result::Result::Ok(a)
    }

    #[::cache_core::cached(ttl = ::std::time::Duration::from_secs(1), jitter = 0, negative_ttl = 1)]
    pub(super) async fn computed(tenant_id: &str, a: u8) -> ::std::option::Option<u8> {
        let _ = tenant_id;
        ::std::option::Option::Some(a)
    }
}

/// Generics of every kind.
mod generic {
    use std::fmt::Display;
    use std::future::Future;

    use cache_core::{Cache, KeyArgument, cached};
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    pub(crate) trait Storable: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {}
    impl<T: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Storable for T {}

    #[cached(ttl = 1)]
    pub(crate) async fn one<T>(value: T) -> T
    where
        T: Storable + KeyArgument,
    {
        value
    }

    #[cached(ttl = 1)]
    pub(crate) async fn only_returned<T: Storable + Default>() -> Result<T, ()> {
        Ok(T::default())
    }

    #[cached(ttl = 1)]
    pub(crate) async fn lifetimes<'a, 'b: 'a>(a: &'a str, b: &'b [&'a str]) -> usize {
        a.len() + b.len()
    }

    #[cached(ttl = 1)]
    pub(crate) async fn sizes<const N: usize>(bytes: [u8; N]) -> Vec<u8> {
        bytes.to_vec()
    }

    #[cached(ttl = 1)]
    pub(crate) async fn anonymous(a: impl Display + Serialize, b: &(impl Display + Serialize + ?Sized)) -> String {
        format!("{a}{b}")
    }

    #[cached(ttl = 1)]
    pub(crate) async fn mixed<T: Storable + Default>(a: impl Serialize + Display) -> (T, String) {
        (T::default(), a.to_string())
    }

    #[cached(ttl = 1, skip(fetch, log))]
    pub(crate) async fn skipped<'l, F, R, L: Fn(&str) + 'l>(id: u8, fetch: F, log: &'l L) -> u8
    where
        F: FnOnce(u8) -> R,
        R: Future<Output = u8>,
    {
        log("fetch");
        fetch(id).await
    }

    #[cached(ttl = 1, cache = cache)]
    pub(crate) async fn any_cache<C: AsRef<Cache>>(cache: C, id: u8) -> u8 {
        let _ = cache.as_ref();
        id
    }
}

/// Arguments that are no plain names.
mod patterns {
    use cache_core::cached;

    #[derive(Debug, Clone, serde::Serialize)]
    pub(crate) struct User {
        pub(crate) id: u64,
        pub(crate) org: Org,
    }
    #[derive(Debug, Clone, serde::Serialize)]
    pub(crate) struct Org(pub(crate) String);

    #[cached(ttl = 1)]
    #[expect(clippy::toplevel_ref_arg, reason = "any pattern is allowed")]
    pub(crate) async fn taken_apart((a, b): (u8, u8), _: u8, mut c: u8, ref d: u8) -> u8 {
        c += *d;
        a + b + c
    }

    #[cached(ttl = 1)]
    #[expect(non_snake_case, reason = "the companions repeat the name")]
    pub(crate) async fn camel(userId: u8) -> u8 {
        userId
    }

    #[cached(ttl = 1)]
    pub(crate) async fn underscored(_a: u8, tenant_id: &str) -> u8 {
        1
    }

    #[cached(ttl = 1, key = "v1:{user.id}:{user.org.0}", skip(log))]
    pub(crate) async fn fields(user: &User, log: &mut Vec<u64>) -> u64 {
        log.push(user.id);
        user.id
    }

    #[cached(ttl = 1, tenant = user.org.0, skip(user))]
    pub(crate) async fn tenant_field(user: User, id: u8) -> u64 {
        user.id + u64::from(id)
    }

    #[cached(ttl = 1, tenant = format!("{}-{region}", user.org.0), skip(user, region))]
    pub(crate) async fn tenant_text(user: &User, region: &str) -> u64 {
        user.id + region.len() as u64
    }

    #[cached(ttl = 1, tenant = tenant_id.unwrap_or("nobody"), skip(tenant_id))]
    pub(crate) async fn tenant_resolved(tenant_id: Option<&str>) -> usize {
        tenant_id.map_or(0, str::len)
    }
}

/// Bodies with control flow, statics and recursion.
mod bodies {
    use std::sync::atomic::{AtomicU8, Ordering};

    use cache_core::cached;

    #[cached(ttl = 1)]
    pub(crate) async fn flow(text: &str) -> Result<u8, std::num::ParseIntError> {
        if text.is_empty() {
            return Ok(0);
        }
        let number: u8 = text.parse()?;
        Ok(number)
    }

    #[cached(ttl = 1)]
    pub(crate) async fn recursive(n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        let (a, b) = (Box::pin(recursive(n - 1)).await, Box::pin(recursive(n - 2)).await);
        a + b
    }

    #[cached(ttl = 1, key = "{n}", skip(of))]
    pub(crate) async fn counted(n: u8, of: &str) -> u8 {
        static CALLS: AtomicU8 = AtomicU8::new(0);
        assert!(!of.is_empty());
        n + CALLS.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Names of companions.
mod named {
    use cache_core::cached;

    pub(crate) mod load {
        pub(crate) const ONE: u8 = 1;
    }

    #[cached(ttl = 1, companions = LoadCache)]
    pub(crate) async fn load() -> u8 {
        load::ONE
    }

    pub(crate) mod bare {
        pub(crate) const TWO: u8 = 2;
    }

    #[cached(ttl = 1, companions = false)]
    pub(crate) async fn bare() -> u8 {
        bare::TWO
    }
}

/// Another way to the library.
mod elsewhere {
    pub(crate) mod vendored {
        pub(crate) use cache_core as renamed;
    }

    #[cache_core::cached(ttl = 1, crate = "crate::elsewhere::vendored::renamed")]
    pub(crate) async fn through_a_path(n: u8) -> u8 {
        n
    }
}

/// Functions made by a macro of the user.
mod made {
    macro_rules! cached_number {
        ($name:ident, $argument:ident: $ty:ty, $ttl:literal) => {
            #[cache_core::cached(ttl = $ttl, key_prefix = "made", key = "{x}:{other}", tenant = $argument)]
            pub(crate) async fn $name($argument: $ty, x: u8, other: $ty) -> u8 {
                let _ = ($argument, other);
                x
            }
        };
    }
    cached_number!(number, owner: &str, 5);
}

const fn assert_send<F: Future + Send>(future: F) -> F {
    future
}

#[tokio::test]
async fn public_functions_work() {
    let _ = cache();
    assert_eq!(api::documented("a").await, "a");
    assert_eq!(assert_send(api::documented("a")).await, "a");
    assert_eq!(api::documented::peek("a").await.as_deref(), Some("a"));
    assert_eq!(api::many(1, 2, 3, 4, 5, 6, 7, 8).await, Some(36));
    assert_eq!(api::r#match(3).await, 3);
    assert_eq!(api::r#match::peek(3).await, Some(3));
    assert_eq!(api::sibling().await, 1);
}

#[tokio::test]
async fn shadowed_names_do_not_reach_the_expansion() {
    let _ = cache();
    shadowed::use_them(1_u8);
    assert_eq!(shadowed::results(1, 2).await.0, 3);
    assert_eq!(shadowed::options(1, 2, 3).await.0, 6);
    assert_eq!(shadowed::arcs(1, 2, 3).await.0, 6);
    assert!(matches!(shadowed::choices(0).await, shadowed::Choice::Some));
    assert!(matches!(shadowed::choices::refresh(3).await, shadowed::Choice::Err));
    assert_eq!(bare::number(4).await, Ok(4));
    assert_eq!(bare::computed("t", 4).await, Some(4));
}

#[tokio::test]
async fn generics_are_replicated() {
    let _ = cache();
    assert_eq!(generic::one(5_u8).await, 5);
    assert_eq!(generic::one(String::from("x")).await, "x");
    assert_eq!(generic::one::peek(5_u8).await, Some(5));
    assert_eq!(generic::only_returned::<u8>().await, Ok(0));
    assert_eq!(generic::only_returned::peek::<u8>().await, Some(Ok(0)));
    assert_eq!(generic::lifetimes("a", &["b"]).await, 2);
    assert_eq!(generic::sizes([1, 2]).await, [1, 2]);
    assert_eq!(generic::sizes::peek([1, 2]).await, Some(vec![1, 2]));
    assert_eq!(generic::anonymous(1_u8, "b").await, "1b");
    assert_eq!(generic::anonymous::peek(1_u8, "b").await.as_deref(), Some("1b"));
    assert_eq!(generic::mixed::<u8>("b").await, (0, String::from("b")));
    assert_eq!(generic::mixed::peek::<u8>("b").await, Some((0, String::from("b"))));
    let log = |_: &str| {};
    assert_eq!(generic::skipped(1, |id| async move { id + 1 }, &log).await, 2);
    assert_eq!(generic::skipped::peek(1).await, Some(2), "no type of a skipped argument is asked");
}

#[tokio::test]
async fn a_generic_cache_is_an_argument_like_any_other() {
    let cache = cache();
    assert_eq!(generic::any_cache(cache.clone(), 1).await, 1);
    assert_eq!(generic::any_cache::peek(cache.clone(), 1).await, Some(1));
    assert_eq!(generic::any_cache::peek(&cache, 1).await, Some(1), "the type of the cache is not in the key");
    assert_eq!(generic::any_cache(&cache, 1).await, 1);
}

/// A cache of this process alone, which is also the default one, whatever the environment says.
fn cache() -> cache_core::Cache {
    static CACHE: std::sync::OnceLock<cache_core::Cache> = std::sync::OnceLock::new();
    let install = || {
        let cache = cache_core::Cache::in_memory();
        cache.install().expect("no annotated function ran before");
        cache
    };
    CACHE.get_or_init(install).clone()
}

#[tokio::test]
async fn patterns_are_seen_by_the_body_alone() {
    let _ = cache();
    assert_eq!(patterns::taken_apart((1, 2), 3, 4, 5).await, 12);
    assert_eq!(patterns::taken_apart::peek((1, 2), 3, 4, 5).await, Some(12));
    assert_eq!(patterns::camel(1).await, 1);
    assert_eq!(patterns::underscored(1, "acme").await, 1);
    let user = patterns::User { id: 7, org: patterns::Org(String::from("acme")) };
    let mut log = Vec::new();
    assert_eq!(patterns::fields(&user, &mut log).await, 7);
    assert_eq!(patterns::fields(&user, &mut log).await, 7);
    assert_eq!(patterns::fields::peek(&user).await, Some(7));
    assert_eq!(log, [7]);
    assert_eq!(patterns::tenant_field(user.clone(), 1).await, 8);
    assert_eq!(patterns::tenant_field::peek(user.clone(), 1).await, Some(8));
    assert_eq!(patterns::tenant_text(&user, "eu").await, 9);
    assert_eq!(patterns::tenant_text::peek(&user, "eu").await, Some(9));
    assert_eq!(patterns::tenant_resolved(Some("abc")).await, 3);
    assert_eq!(patterns::tenant_resolved::peek(Some("abc")).await, Some(3));
}

#[tokio::test]
async fn bodies_keep_their_control_flow_and_exist_once() {
    let _ = cache();
    assert_eq!(bodies::flow("").await, Ok(0));
    assert_eq!(bodies::flow("7").await, Ok(7));
    assert!(bodies::flow("x").await.is_err());
    assert_eq!(tokio::spawn(bodies::recursive(20)).await.unwrap(), 6765);
    assert_eq!(bodies::counted(1, "of").await, 2);
    assert_eq!(bodies::counted::refresh(1, "of").await, 3);
}

#[tokio::test]
async fn companions_have_the_wanted_name_or_none() {
    let _ = cache();
    assert_eq!(named::load().await, 1);
    assert_eq!(named::LoadCache::peek().await, Some(1));
    assert_eq!(named::bare().await, 2);
    assert_eq!(elsewhere::through_a_path(3).await, 3);
    assert_eq!(made::number("acme", 3, "b").await, 3);
    assert_eq!(made::number::peek("acme", 3, "b").await, Some(3));
}

#[tokio::test]
async fn functions_inside_functions_have_companions_and_keys_of_their_own() {
    async fn first() -> u8 {
        #[cache_core::cached(ttl = 60)]
        async fn inner(n: u8) -> u8 {
            n + 1
        }
        let value = inner(1).await;
        assert_eq!(inner::peek(1).await, Some(value));
        value
    }
    async fn second() -> u8 {
        #[cache_core::cached(ttl = 60)]
        async fn inner(n: u8) -> u8 {
            n + 2
        }
        inner(1).await
    }
    let _ = cache();
    assert_eq!((first().await, second().await), (2, 3));
}
