//! A value's `Drop` is the user's code: it runs under no lock of the cache, so it may ask that very cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use cache_core::{Cache, Keyspace, Scoped, TtlProfile};
use futures::FutureExt;
use serde::{Deserialize, Serialize};

const PROFILE: TtlProfile = TtlProfile::new("report", Duration::from_secs(60));
const REPORTS: Keyspace<Asking> = PROFILE.of();

/// Uses the cache it was stored in when it is dropped: reads, statistics, and a store under its own key.
#[derive(Clone, Serialize, Deserialize)]
struct Asking {
    id: u64,
    padding: String,
    #[serde(skip)]
    asks: Option<Asks>,
}

#[derive(Clone)]
struct Asks {
    cache: Cache,
    scoped: Scoped,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(asks) = self.asks.take() else { return };
        let key = REPORTS.key(self.id);
        let _ = asks.cache.stats();
        let _ = asks.scoped.get(&key).now_or_never().expect("a read of a cache in memory waits for nobody");
        let _ = asks.scoped.touch(&key).now_or_never().unwrap();
        let _ = asks.scoped.set(&key, Self { id: self.id, padding: String::new(), asks: None }).now_or_never().unwrap();
        let _ = asks.scoped.invalidate(&key).now_or_never().unwrap();
        asks.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

struct World(Asks);

impl World {
    fn new(near_share: u32) -> Self {
        let cache = Cache::builder().near_bytes(1 << 20).max_value(1 << 16).near_share(near_share).build().unwrap();
        let scoped = cache.tenant("acme").unwrap();
        Self(Asks { cache, scoped, dropped: Arc::default() })
    }

    fn set(&self, id: u64, bytes: usize) {
        let value = Asking { id, padding: "x".repeat(bytes), asks: Some(self.0.clone()) };
        self.0.scoped.set(&REPORTS.key(id), value).now_or_never().unwrap().unwrap();
    }

    fn dropped(&self) -> usize {
        self.0.dropped.load(Ordering::SeqCst)
    }
}

/// Runs `work`, which hangs for good where a value is dropped under a lock.
fn within_ten_seconds(work: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    if ended.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a value that asks the cache in its `Drop` hangs");
    }
    thread.join().unwrap();
}

#[test]
fn a_value_may_ask_when_it_is_invalidated() {
    within_ten_seconds(|| {
        let world = World::new(100);
        for id in 0..4 {
            world.set(id, 8);
        }
        let acme = &world.0.scoped;
        assert!(acme.invalidate(&REPORTS.key(0_u64)).now_or_never().unwrap().is_applied());
        assert!(acme.invalidate_pattern("report:1").now_or_never().unwrap().is_applied());
        assert!(acme.invalidate_many(&[REPORTS.key(2_u64), REPORTS.key(3_u64)]).now_or_never().unwrap().is_applied());
        assert_eq!(world.dropped(), 4);
    });
}

#[test]
fn a_value_may_ask_when_another_replaces_it() {
    within_ten_seconds(|| {
        let world = World::new(100);
        for _ in 0..3 {
            world.set(0, 8);
        }
        assert_eq!(world.dropped(), 2);
    });
}

#[test]
fn a_value_may_ask_when_it_is_touched() {
    within_ten_seconds(|| {
        let world = World::new(100);
        world.set(0, 8);
        assert!(world.0.scoped.touch(&REPORTS.key(0_u64)).now_or_never().unwrap().unwrap());
        assert_eq!(world.dropped(), 0);
        assert!(world.0.scoped.invalidate(&REPORTS.key(0_u64)).now_or_never().unwrap().is_applied());
        assert_eq!(world.dropped(), 1);
    });
}

#[test]
fn a_value_may_ask_when_it_is_evicted() {
    within_ten_seconds(|| {
        let world = World::new(100);
        (0..200).for_each(|id| world.set(id, 20_000));
        assert!(world.dropped() > 100, "{}", world.dropped());
    });
}

#[test]
fn a_value_may_ask_when_its_tenant_is_over_its_share() {
    within_ten_seconds(|| {
        let world = World::new(10);
        (0..50).for_each(|id| world.set(id, 5_000));
        assert!(world.dropped() > 20, "{}", world.dropped());
    });
}

#[test]
fn a_value_may_ask_when_the_cache_is_closed() {
    within_ten_seconds(|| {
        let world = World::new(100);
        (0..50).for_each(|id| world.set(id, 100));
        futures::executor::block_on(world.0.cache.close());
        assert_eq!(world.dropped(), 50);
        assert_eq!(world.0.cache.stats().near_entries, 0);
    });
}

#[test]
fn a_fetch_that_ends_after_the_cache_was_closed_leaves_nothing() {
    let cache = Cache::in_memory();
    let acme = cache.tenant("acme").unwrap();
    let key = PROFILE.of::<u64>().key("x");
    let fetched = acme.get_or_fetch(&key, async || {
        cache.close().await;
        7
    });
    assert_eq!(*futures::executor::block_on(fetched), 7);
    assert_eq!(cache.stats().near_entries, 0);
}

/// A reader holds the last of it for a moment where the entry is removed while it looks.
#[test]
fn readers_and_removers_beside_each_other_meet_no_panic_of_a_drop() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Panicking(u64, #[serde(skip)] Option<()>);
    impl Drop for Panicking {
        fn drop(&mut self) {
            assert!(self.1.is_none(), "as a test");
        }
    }
    let cache = Cache::in_memory();
    let acme = cache.tenant("acme").unwrap();
    let key = PROFILE.of::<Panicking>().key(1);
    // Finds the entry, which is of another type, and lets it go.
    let other = PROFILE.of::<u64>().key(1);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            for _ in 0..20_000 {
                assert_eq!(acme.get(&other).now_or_never().unwrap().unwrap(), None);
                let _ = acme.exists(&other).now_or_never().unwrap();
            }
        });
        while !reader.is_finished() {
            acme.set(&key, Panicking(1, Some(()))).now_or_never().unwrap().unwrap();
            assert!(acme.invalidate(&key).now_or_never().unwrap().is_applied());
        }
        reader.join().unwrap();
    });
}

/// Its panic is of no concern to the call that happens to drop another's value.
#[test]
fn a_value_that_panics_when_it_is_dropped_harms_nobody_else() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Panicking(String, #[serde(skip)] Option<()>);
    impl Drop for Panicking {
        fn drop(&mut self) {
            assert!(self.1.is_none(), "as a test");
        }
    }
    let cache = Cache::builder().near_bytes(1 << 20).max_value(1 << 16).build().unwrap();
    let acme = cache.tenant("acme").unwrap();
    let panicking = PROFILE.of::<Panicking>();
    let set = |id: u64| acme.set(&panicking.key(id), Panicking("x".repeat(20_000), Some(()))).now_or_never().unwrap();
    (0..200).for_each(|id| set(id % 150).unwrap());
    let left = cache.stats().near_entries;
    assert!((10..100).contains(&left), "{left}");
    for id in 0..200_u64 {
        assert!(acme.invalidate(&panicking.key(id)).now_or_never().unwrap().is_applied());
    }
    assert_eq!(cache.stats().near_entries, 0);
    (0..20).for_each(|id| set(id).unwrap());
    futures::executor::block_on(cache.close());
    assert_eq!(cache.stats().near_entries, 0);
}
