//! Functions of one name under one prefix: each is cached under a key of its own, or the second of two that cannot be told
//! apart is reported and runs uncached.

#![expect(unused_variables, reason = "arguments that are in the key and that no body needs")]

mod support;

use std::sync::{
    Once, OnceLock,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use cache_core::{Cache, Invalidated, cached};
use support::{Server, child, log};
use tracing::Level;

/// The default cache of this process, whatever the environment says.
fn default_cache() -> &'static Cache {
    static INSTALLED: Once = Once::new();
    static CACHE: std::sync::LazyLock<Cache> = std::sync::LazyLock::new(Cache::in_memory);
    INSTALLED.call_once(|| CACHE.install().expect("no annotated function ran before"));
    &CACHE
}

static ONE: AtomicU32 = AtomicU32::new(0);
static TWO: AtomicU32 = AtomicU32::new(0);

mod one {
    #[cache_core::cached(ttl = 300, key_prefix = "places")]
    pub(crate) async fn load(id: u64) -> u32 {
        super::ONE.fetch_add(1, super::SeqCst) + 1
    }

    #[cache_core::cached(ttl = 300)]
    pub(crate) async fn own(id: u64) -> u64 {
        id
    }

    #[cache_core::cached(profile = cache_core::profiles::JOB)]
    pub(crate) async fn r#type(id: u64) -> u64 {
        id
    }
}

mod two {
    #[cache_core::cached(ttl = 300, key_prefix = "places")]
    pub(crate) async fn load(id: u64) -> u32 {
        super::TWO.fetch_add(1, super::SeqCst) + 100
    }
}

/// Upper case has no place in a profile, so that its name alone does not tell the two modules apart.
#[expect(non_snake_case, reason = "the point of the test")]
mod Case {
    #[cache_core::cached(ttl = 300)]
    pub(crate) async fn load(id: u64) -> u64 {
        id + 1
    }
}
mod case {
    #[cache_core::cached(ttl = 300)]
    pub(crate) async fn load(id: u64) -> u64 {
        id + 2
    }
}

#[tokio::test]
async fn functions_of_two_modules_under_one_prefix_are_both_cached() {
    default_cache();
    for _ in 0..3 {
        assert_eq!((one::load(1).await, two::load(1).await), (1, 100), "one of them was fetched again");
        assert_eq!((Case::load(1).await, case::load(1).await), (2, 3));
    }
    assert_ne!(Case::load::key(1).unwrap(), case::load::key(1).unwrap());
    assert!(one::load::invalidate(1).await.is_applied());
    assert_eq!((one::load(1).await, two::load(1).await), (2, 100), "each is invalidated alone");
}

/// As in the wild: the work of fifteen functions is called `inner` in each.
#[tokio::test]
async fn inner_functions_of_many_functions_are_all_cached() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    macro_rules! outer {
        ($($name:ident)*) => {$(
            async fn $name(id: u64) -> String {
                #[cached(ttl = 300, key_prefix = "inner")]
                async fn inner(id: u64) -> String {
                    RUNS.fetch_add(1, SeqCst);
                    format!("{id} {}", stringify!($name))
                }
                inner(id).await
            }
        )*};
    }
    outer!(a b c d e f g h i j k l m n o);
    default_cache();
    for _ in 0..3 {
        assert_eq!((a(1).await, b(1).await, c(1).await), ("1 a".into(), "1 b".into(), "1 c".into()));
        drop((d(1).await, e(1).await, f(1).await, g(1).await, h(1).await, i(1).await));
        drop((j(1).await, k(1).await, l(1).await, m(1).await, n(1).await, o(1).await));
    }
    assert_eq!(RUNS.load(SeqCst), 15);
}

/// Neither lines nor bodies are part of a key. What tells a place apart is there where the prefix does not say it.
#[tokio::test]
async fn keys_of_functions_are_readable_and_pinned() {
    #[cached(ttl = 300, key_prefix = "places")]
    async fn load(id: u64) -> u64 {
        id
    }
    #[cached(ttl = 300)]
    async fn own(id: u64) -> u64 {
        id
    }
    default_cache();
    let keys = [
        one::load::key(1),
        two::load::key(1),
        load::key(1),
        one::own::key(1),
        own::key(1),
        Case::load::key(1),
        case::load::key(1),
        one::r#type::key(1),
    ]
    .map(Result::unwrap);
    assert_eq!(
        keys,
        [
            "cache:places:load@ccea6b:1",
            "cache:places:load@b191cc:1",
            "cache:places:load@736bb5:1",
            "cache:macro_places.one:own:1",
            "cache:macro_places:own@ada9b2:1",
            "cache:macro_places.case:load@e252d7:1",
            "cache:macro_places.case:load:1",
            "cache:job:type@9309d2:1",
        ]
    );
    assert_eq!((load(1).await, own(1).await, one::own(1).await, one::r#type(1).await), (1, 1, 1, 1));
}

#[tokio::test]
async fn the_second_of_two_that_cannot_be_told_apart_is_reported_and_runs_uncached() {
    static FIRST: AtomicU32 = AtomicU32::new(0);
    static SECOND: AtomicU32 = AtomicU32::new(0);
    log::collect();
    let cache = default_cache();
    let bypassed = || cache.stats().profiles.get("blocks").map_or(0, |stats| stats.bypassed);
    let first = {
        #[cached(ttl = 300, key_prefix = "blocks")]
        async fn in_a_block(id: u64) -> u32 {
            FIRST.fetch_add(1, SeqCst) + 1
        }
        assert_eq!((in_a_block(1).await, in_a_block(1).await), (1, 1));
        || in_a_block(1)
    };
    assert!(log::lines(Level::ERROR, "in_a_block").is_empty());
    {
        #[cached(ttl = 300, key_prefix = "blocks")]
        async fn in_a_block(id: u64) -> u32 {
            SECOND.fetch_add(1, SeqCst) + 100
        }
        assert_eq!((in_a_block(1).await, in_a_block(1).await), (100, 101));
        let lines = log::lines(Level::ERROR, "in_a_block");
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in ["macro_places.rs", "cannot_be_told_apart", "blocks", "key"] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        assert_eq!((in_a_block::peek(1).await, bypassed()), (None, 3));
        assert_eq!((first().await, FIRST.load(SeqCst)), (1, 1), "the first is cached all the same");
        // In another process this one may have come first: what is stored under the key is removed.
        assert_eq!(in_a_block::invalidate(1).await, Invalidated::Applied);
        assert_eq!(first().await, 2);
        assert_eq!(in_a_block::refresh(1).await, 102);
        assert_eq!(first().await, 3);
        assert!(in_a_block::put(1, 7).await.unwrap_err().to_string().contains("in_a_block"));
        assert_eq!(first().await, 4);
        assert_eq!(in_a_block(1).await, 103);
    }
    assert_eq!(log::lines(Level::ERROR, "in_a_block").len(), 1, "reported once");
}

/// Two functions that cannot be told apart, one of which comes first here and the other one there.
async fn blocks(which: &str) -> String {
    if which == "one" {
        #[cached(ttl = 300, key_prefix = "blocks", cache = cache())]
        async fn load(id: u64) -> String {
            "one".to_owned()
        }
        load(1).await
    } else {
        #[cached(ttl = 300, key_prefix = "blocks", cache = cache())]
        async fn load(id: u64) -> String {
            "two".to_owned()
        }
        load(1).await
    }
}

fn cache() -> &'static Cache {
    static CACHE: OnceLock<Cache> = OnceLock::new();
    CACHE.get_or_init(|| Cache::builder().url(&std::env::var("TEST_URL").unwrap()).build().unwrap())
}

#[test]
fn other_process() {
    if !child::is_child() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        while let Some(which) = child::wait_for_parent() {
            child::report(&blocks(&which).await);
        }
    });
}

/// 1. Process A calls the first one, which is cached there.
/// 2. Process B calls the second one, which is cached there, under the same key.
/// 3. Each asks again. Neither may be given the value of the other function.
#[test]
fn two_processes_that_choose_differently_do_not_share_values() {
    let server = Server::start();
    let process = || child::spawn("other_process", &[("TEST_URL", &server.url())]);
    let (mut a, mut b) = (process(), process());
    for _ in 0..3 {
        for (process, which) in [(&mut a, "one"), (&mut b, "two")] {
            process.tell(which);
            assert_eq!(process.next_report(), which);
        }
    }
    drop((a.finish(), b.finish()));
}
